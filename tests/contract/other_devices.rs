//! Contracts on a device of compute capability 10.0, which has a forward kernel of its own: softcuda is a 9.0 otherwise, and what
//! it is belongs to the process.

use std::process::Command;
use support::device::{self, CAPABILITY};

/// What the bits and the precision of a row's log-probs, states, entropies and gradients are held to, in every type, with a
/// softcap and without: modules of this binary.
const CONTRACTS: [&str; 6] = [
    "token_log_prob_precision::cuda",
    "token_log_prob_properties::cuda",
    "softcap::cuda",
    "edge_cases::cuda",
    "determinism::cuda",
    "strides::cuda",
];

#[test]
fn contracts_of_rows_hold_on_10_0() {
    let cuda = device::cuda();
    if std::env::var_os(CAPABILITY).is_some() {
        // The process that is made below, before its contracts.
        assert_eq!(cuda.stream().context().compute_capability().expect("a capability"), (10, 0));
        println!("kernels of {:?}", cuda.token_log_prob_files());
        return;
    }
    if softcuda::control().is_none() {
        println!("NOT RUN: a real device is what it is");
        return;
    }
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(CONTRACTS).args(["other_devices", "--show-output"]).env(CAPABILITY, "100");
    let output = child.output().expect("this test runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for contract in CONTRACTS {
        assert!(said.contains(&format!("test {contract}::")), "none of {contract} ran: {said}");
    }
    // What was built is said by the list of architectures; a build with 10.x among them has its kernel.
    let named = option_env!("EXO_KERNELS_CUDA_ARCHS").unwrap_or_default();
    let chosen = kernel_build::architectures::choose(named, None).expect("the list that this was built with");
    let built = chosen.architectures.iter().any(|one| one.capabilities().0.0 == 10);
    assert_eq!(said.contains("sm100/token_log_prob"), built, "{named:?}: {said}");
    if !built {
        println!("NOT RUN with the kernel of 10.x: it was built for {named} alone");
    }
}
