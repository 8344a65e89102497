//! What a step on CUDA costs, counted by softcuda: launches, bytes of logits, instructions, device memory. On a real
//! device nothing counts: then this says so and stops.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::{Matrix, MatrixMut, Reference};
use exo_kernels::{Batch, Betas, Dtype, Element, Objective, PreferenceLoss};
use half::{bf16, f16};
use softcuda::report::LaunchReport;
use support::device::{self, download, upload};
use support::turn;

const ROWS: usize = 8;
const VOCAB: usize = 128_256;

/// One step of `ROWS` rows, two of them masked; the launches of the forward and of the backward pass.
fn step<T: Element + DeviceRepr>(in_place: bool) -> Vec<LaunchReport> {
    let cuda = device::cuda();
    let control = softcuda::control().expect("softcuda");
    let logits: Vec<T> = (0..ROWS * VOCAB).map(|i| T::from_f32(((i * 7919) % 1013) as f32 * 0.02)).collect();
    let mut logits = upload(&cuda, &logits);
    let poison = vec![T::NAN; ROWS * VOCAB];
    let mut gradients = upload(&cuda, &poison);
    let targets = upload(&cuda, &[5_i64, -100, 128_255, 77, 0, -1, 9, 4000]);
    let batch = Batch::new(&[0u32, 2, 4, 6, 8], &[0u32, 2, 4]).expect("offsets");
    let mut loss =
        PreferenceLoss::new(cuda.clone(), Objective::exo(Betas { policy: 0.5, reward: 0.5 }).expect("betas"));
    let mut in_use = Vec::new();
    let mut launches = Vec::new();
    for _ in 0..3 {
        control.take_launches();
        let view = Matrix::new(logits.as_view().into(), VOCAB).expect("rows");
        let step = loss.forward(&view, &targets, &batch, &Reference::None, &[1.0, 0.0, -1.0, 0.5]).expect("forward");
        if in_place {
            loss.backward_in_place(step, MatrixMut::new(logits.as_view_mut().into(), VOCAB).expect("rows"))
                .expect("backward");
        } else {
            loss.backward(&step, &view, MatrixMut::new(gradients.as_view_mut().into(), VOCAB).expect("rows"))
                .expect("backward");
        }
        cuda.stream().synchronize().expect("no fault");
        launches = control.take_launches();
        in_use.push(control.memory_in_use());
    }
    assert!(
        in_use.windows(2).all(|pair| pair[0] == pair[1]),
        "device memory in use grows from step to step: {in_use:?}"
    );
    drop(download(&cuda, &gradients));
    launches
}

fn check<T: Element + DeviceRepr>(in_place: bool) {
    let launches = step::<T>(in_place);
    let names: Vec<&str> = launches.iter().map(|launch| launch.kernel.as_str()).collect();
    assert!(launches.len() <= 5, "a step has at most five launches: {names:?}");
    let (scored, masked) = (6, 2);
    let row_bytes = (VOCAB * size_of::<T>()) as u64;
    let elements = (scored * VOCAB) as f64;
    let forward = &launches[0].counters;
    // Beside the logits: an id, and what the blocks of a row tell one another.
    let logits_read = scored as u64 * row_bytes;
    assert!(forward.global.bytes_loaded >= logits_read, "every logit is read");
    assert!(forward.global.bytes_loaded - logits_read < 1 << 18, "and read once: {:?}", forward.global);
    // What lanes share counted once: a few kilobytes for each of a row's blocks.
    assert!(forward.global.warp_bytes_loaded - logits_read < 1 << 14, "and read once: {:?}", forward.global);
    assert!(forward.global.bytes_stored < 1 << 16, "{:?}", forward.global);
    let sectors = logits_read / 32;
    assert!(forward.global.sectors_loaded.abs_diff(sectors) < 1 << 13, "sectors are full: {:?}", forward.global);
    let per_element = forward.instructions.thread as f64 / elements;
    println!("{names:?} {}: forward {per_element:.2} instructions per element", std::any::type_name::<T>());
    // Eight rows do not fill the device: every slice is a block of its own, with a prologue of its own. In the PTX, f16 has
    // a move per element more, to take words apart, which the machine code does not (`scripts/kernel-report`).
    let most = if size_of::<T>() == 2 && T::DTYPE == Dtype::F16 { 7.7 } else { 6.6 };
    assert!(per_element <= most, "forward: {per_element} instructions per element");

    let backward = &launches.last().expect("backward").counters;
    let written = (scored + masked) as u64 * row_bytes;
    assert!(backward.global.bytes_loaded - logits_read < 1 << 19, "read once: {:?}", backward.global);
    assert_eq!(backward.global.distinct_bytes_written, written, "every gradient is written");
    // The target's column is written twice, with what little of a vector surrounds it.
    assert!(backward.global.bytes_stored - written < 1 << 10, "and written once: {:?}", backward.global);
    println!("backward {:.2}", backward.instructions.thread as f64 / elements);
    assert_eq!((forward.shared.bank_conflicts, backward.shared.bank_conflicts), (0, 0));
}

#[test]
fn a_step_reads_the_logits_once_each_way() {
    let _turn = turn::take();
    drop(device::cuda());
    if softcuda::control().is_none() {
        println!("NOT RUN: this device does not count");
        return;
    }
    for in_place in [false, true] {
        check::<bf16>(in_place);
        check::<f16>(in_place);
        check::<f32>(in_place);
    }
}
