//! Without cuBLAS everything but the linear stage works, and without NCCL everything but its ranks; these say what is missing. A binary
//! of its own, into which softcublas and softnccl are never loaded; where the machine has such a library the test says so and stops.

use exo_kernels::cuda::{Head, Matrix, Nccl, TokenLogProbs, cublas_present, nccl_present};
use exo_kernels::{Backend, Error, LogitOptions, SoftmaxState};
use support::backend::TestBackend;
use support::device::{self, download, upload};
use support::host_rows::Rows;

#[test]
fn the_linear_stage_names_what_is_missing() {
    let cuda = device::cuda();
    if cublas_present() {
        println!("NOT RUN: this machine has a cuBLAS");
        return;
    }
    let (hidden, targets) = (upload(&cuda, &[1.0_f32; 4]), upload(&cuda, &[0_i64, 1]));
    let (mut log_probs, mut states) = (upload(&cuda, &[9.0_f32; 2]), upload(&cuda, &[SoftmaxState::default(); 2]));
    let matrix = Matrix::new(hidden.as_view().into(), 2).expect("rows");
    let head = Head::new(Matrix::new(hidden.as_view().into(), 2).expect("rows")).expect("a head");
    let outputs = TokenLogProbs {
        log_probs: log_probs.as_view_mut().into(),
        states: states.as_view_mut().into(),
        entropies: None,
    };
    let options = LogitOptions::default();
    let refused = cuda.linear_token_log_probs(&matrix, &head, &targets, &options, outputs);
    assert_eq!(refused, Err(Error::NoCublas));
    assert!(Error::NoCublas.to_string().contains("libcublas"));
    assert_eq!(download(&cuda, &log_probs), [9.0; 2], "a refused call has written");

    let rows = Rows::new(vec![0.0_f32; 4], vec![1, 0], 2);
    assert!(cuda.forward(&rows, &options, false).log_probs.iter().all(|number| *number < 0.0));
}

#[test]
fn ranks_by_nccl_name_what_is_missing() {
    let cuda = device::cuda();
    if nccl_present() {
        println!("NOT RUN: this machine has an NCCL");
        return;
    }
    assert_eq!(Nccl::unique_id(), Err(Error::NoNccl));
    assert_eq!(Nccl::new(&cuda, &[0; 128], 0, 1).map(drop), Err(Error::NoNccl));
    // SAFETY: no communicator, which nobody asks anything.
    assert_eq!(unsafe { Nccl::from_raw(&cuda, std::ptr::null_mut()) }.map(drop), Err(Error::NoNccl));
    assert!(Error::NoNccl.to_string().contains("libnccl"));
}
