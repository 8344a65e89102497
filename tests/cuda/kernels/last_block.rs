//! The last block of a row adds up what the others left: both fences around its ticket are needed, and softcuda reports
//! a race where one is missing or reaches the block only.

use super::device::{Kernel, ptx_of};
use bytemuck::{Pod, Zeroable};
use softcuda::report::{FaultKind, LaunchReport};
use std::path::Path;

const KERNEL: &str = "token_log_prob_f32_unaligned";
const THREADS: u32 = 256;
/// Columns of a slice, `SLICE` of the kernel.
const SLICE: i32 = 1 << 15;
const ROWS: u32 = 3;

/// `TokenLogProb` of `kernels/token_log_prob.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Arguments {
    logits: u64,
    targets: u64,
    log_probs: u64,
    states: u64,
    entropies: u64,
    partials: u64,
    tickets: u64,
    status: u64,
    row_stride: i64,
    vocab: i32,
    slices: i32,
    slices_per_block: i32,
    target_bytes: i32,
    scale: f32,
    softcap: f32,
    first_column: i32,
    whole_vocab: i32,
    kept_parts: i32,
    reserved: i32,
}

/// Three rows of two slices and a bit, a block for each slice, by the kernel of this PTX.
fn run(ptx: &str, shuffle: Option<u64>) -> LaunchReport {
    let kernel = Kernel::of(ptx, KERNEL, shuffle);
    let vocab = 2 * SLICE + 77;
    let rows = ROWS as usize;
    let logits: Vec<f32> = (0..rows * vocab as usize).map(|i| (i * 7919 % 1013) as f32 * 0.01).collect();
    let targets: Vec<i64> = (0..i64::from(ROWS)).map(|row| row * 4099).collect();
    let slices = 3;
    let arguments = Arguments {
        logits: kernel.input(Some(&logits)),
        targets: kernel.input(Some(&targets)),
        log_probs: kernel.output::<f32>(rows),
        states: kernel.output::<[f32; 2]>(rows),
        entropies: 0,
        partials: kernel.output::<[f32; 4]>(rows * slices),
        tickets: kernel.input(Some(&vec![0_u32; rows])),
        status: kernel.input(Some(&[0_u32; 16])),
        row_stride: i64::from(vocab),
        vocab,
        slices: slices as i32,
        slices_per_block: 1,
        target_bytes: 8,
        scale: std::f32::consts::LOG2_E,
        softcap: 0.0,
        first_column: 0,
        whole_vocab: vocab,
        kept_parts: 0,
        reserved: 0,
    };
    kernel.try_launch([ROWS, slices as u32, 1], THREADS, &arguments)
}

/// The text of the kernel with its fences, before and after the ticket, replaced.
fn with_fences(before: &str, after: &str) -> String {
    const FENCE: &str = "fence_acquire_release();";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/token_log_prob.cu");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parts: Vec<&str> = text.split(FENCE).collect();
    let [start, ticket, end] = parts[..] else { panic!("the kernel has {} fences, not two", parts.len() - 1) };
    assert!(ticket.contains("atomicInc(arguments.tickets"), "the ticket is between the fences: {ticket}");
    [start, before, ticket, after, end].concat()
}

#[test]
fn both_fences_around_the_ticket_are_needed() {
    let (right, narrow, none) = ("fence_acquire_release();", "__threadfence_block();", "");
    for (label, before, after, races) in [
        ("right", right, right, false),
        ("narrow-before", narrow, right, true),
        ("narrow-after", right, narrow, true),
        ("none-after", right, none, true),
        ("none-before", none, right, true),
        ("narrow-before-none-after", narrow, none, true),
    ] {
        let ptx = ptx_of("token_log_prob", label, &with_fences(before, after));
        for shuffle in [None, Some(1), Some(2)] {
            let fault = run(&ptx, shuffle).fault;
            if !races {
                assert_eq!(fault, None, "{label}, shuffle {shuffle:?}");
                continue;
            }
            let fault = fault.unwrap_or_else(|| panic!("{label}, shuffle {shuffle:?}: no race was found"));
            assert_eq!(fault.kind, FaultKind::Race, "{label}: {fault}");
            // The partial sum of another block is read.
            let other = fault.other.as_ref().expect("a race is between two accesses");
            assert!(
                other.wrote && other.block[0] == fault.block[0] && other.block[1] != fault.block[1],
                "{label}: {fault}"
            );
            assert!(fault.instruction.starts_with("ld.global.cg.v4"), "{label}: {fault}");
        }
    }
}
