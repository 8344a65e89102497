//! What rows cost that do not start at 16 bytes, counted by softcuda: instructions per logit, and sectors of the first-level
//! cache against the bytes. Vocabularies of an odd size put rows at every residue; views of wider matrices put the gradient
//! at another one than the logits.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::{Matrix, MatrixMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Backend, Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use softcuda::count::Counters;
use support::device::{self, download, upload};
use support::turn;

/// Rows of an odd number of columns at every residue of 2 bytes in 16.
const ROWS: usize = 8;

/// What the forward and the backward pass of `ROWS` contiguous rows did, the gradient's rows at `shift` elements more than
/// the logits'.
fn counted<T: Element + DeviceRepr>(vocab: usize, shift: usize) -> [Counters; 2] {
    let cuda = device::cuda();
    let control = softcuda::control().expect("softcuda");
    let logits: Vec<T> = (0..ROWS * vocab).map(|i| T::from_f32(((i * 7919) % 1013) as f32 * 0.02)).collect();
    let logits = upload(&cuda, &logits);
    let targets = upload(&cuda, &[5_i64, 1, 77, 0, 9, 4000, 3, vocab as i64 - 1]);
    let mut log_probs = upload(&cuda, &[0.0_f32; ROWS]);
    let mut states = upload(&cuda, &[SoftmaxState::default(); ROWS]);
    let mut gradients = upload(&cuda, &vec![T::NAN; shift + ROWS * vocab]);
    let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
    let options = LogitOptions::default();
    control.take_launches();
    let outputs = TokenLogProbs {
        log_probs: log_probs.as_view_mut().into(),
        states: states.as_view_mut().into(),
        entropies: None,
    };
    cuda.token_log_probs(&view, &targets, &options, outputs).expect("forward");
    let upstream = upload(&cuda, &[0.5_f32; ROWS]);
    let saved = SavedRows { states: states.as_view().into(), entropies: None };
    let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
    let into = MatrixMut::new(gradients.slice_mut(shift..).into(), vocab).expect("rows");
    cuda.token_log_probs_backward(&view, &targets, &options, &saved, &upstream, into).expect("backward");
    drop(download(&cuda, &gradients));
    let launches: [_; 2] = control.take_launches().try_into().expect("two launches");
    launches.map(|launch| launch.counters)
}

/// The most instructions per logit, and sectors against those that the bytes fill: forward, and backward with the gradient
/// at the residue of the logits and at another.
struct Most {
    instructions: [f64; 3],
    sectors: [f64; 3],
}

fn check<T: Element + DeviceRepr>(vocab: usize, most: &Most) {
    let (logits, bytes) = ((ROWS * vocab) as f64, (ROWS * vocab * size_of::<T>()) as f64);
    let [forward, alike] = counted::<T>(vocab, 0);
    let [_, apart] = counted::<T>(vocab, 3);
    let mut broken = Vec::new();
    for (index, counters) in [forward, alike, apart].iter().enumerate() {
        let instructions = counters.instructions.thread as f64 / logits;
        let sectors = [counters.global.sectors_loaded, counters.global.sectors_stored].map(|n| n as f64 * 32.0 / bytes);
        let name = ["forward", "backward", "backward, apart"][index];
        let name = format!("{} V={vocab} {name}", std::any::type_name::<T>());
        println!("{name}: {instructions:.2} instructions, {:.2} + {:.2} sectors", sectors[0], sectors[1]);
        if instructions > most.instructions[index] || sectors.iter().any(|&sectors| sectors > most.sectors[index]) {
            broken.push(name);
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn rows_at_any_residue_cost_what_aligned_rows_cost_and_a_shift() {
    let _turn = turn::take();
    drop(device::cuda());
    if softcuda::control().is_none() {
        println!("NOT RUN: this device does not count");
        return;
    }
    // Eight rows do not fill the device, so that each of the two slices of 50257 columns is a block of its own, with a prologue
    // of its own; and the last 1105 columns take an iteration of 8192 or 4096. f16: as in traffic.rs. f32: three loads for two
    // of the three residues.
    check::<bf16>(32_001, &Most { instructions: [7.53, 6.2, 7.0], sectors: [2.0, 1.1, 2.1] });
    check::<bf16>(50_257, &Most { instructions: [8.65, 6.6, 7.4], sectors: [2.0, 1.1, 2.1] });
    check::<f16>(32_001, &Most { instructions: [8.65, 7.25, 8.0], sectors: [2.0, 1.1, 2.1] });
    check::<f16>(50_257, &Most { instructions: [9.85, 7.6, 8.4], sectors: [2.0, 1.1, 2.1] });
    check::<f32>(32_001, &Most { instructions: [7.6, 5.45, 6.0], sectors: [2.5, 1.1, 3.2] });
    check::<f32>(50_257, &Most { instructions: [8.1, 5.65, 6.1], sectors: [2.5, 1.1, 3.2] });
}
