//! The candle adapter on CPU tensors. On CUDA tensors the same cases run in `tests/candle_cuda`.

#![cfg(feature = "candle")]

#[path = "support/candle_cases.rs"]
mod candle_cases;

use candle_cases::Setting;
use candle_core::Device;
use exo_kernels::reference::bounds::Arithmetic;

const CPU: Setting = Setting { device: Device::Cpu, arithmetic: Arithmetic::BACKEND };

#[test]
fn gradient_of_token_log_probs_is_the_references() {
    candle_cases::gradient_of_token_log_probs_is_the_references(&CPU);
}

#[test]
fn gradient_of_entropies_is_the_references() {
    candle_cases::gradient_of_entropies_is_the_references(&CPU);
}

#[test]
fn gradient_of_the_preference_loss_is_the_references() {
    candle_cases::gradient_of_the_preference_loss_is_the_references(&CPU);
}

#[test]
fn layouts_of_all_kinds() {
    candle_cases::layouts_of_all_kinds(&CPU);
}

#[test]
fn what_cannot_be_done_is_refused() {
    candle_cases::what_cannot_be_done_is_refused(&CPU);
}

#[test]
fn no_rows() {
    candle_cases::no_rows(&CPU);
}
