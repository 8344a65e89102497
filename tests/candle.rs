//! The candle adapter on CPU tensors. On CUDA tensors the same cases run in `tests/candle_cuda`.

#![cfg(feature = "candle")]

#[path = "support/candle_cases.rs"]
mod candle_cases;
#[path = "support/candle_linear_cases.rs"]
mod candle_linear_cases;

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
fn one_row_in_any_layout() {
    candle_cases::one_row_in_any_layout(&CPU);
}

#[test]
fn what_cannot_be_done_is_refused() {
    candle_cases::what_cannot_be_done_is_refused(&CPU);
}

#[test]
fn no_rows() {
    candle_cases::no_rows(&CPU);
}

#[test]
fn gradients_reach_hidden_weight_and_bias() {
    candle_linear_cases::gradients_reach_hidden_weight_and_bias(&CPU);
}

#[test]
fn what_is_frozen_gets_none() {
    candle_linear_cases::what_is_frozen_gets_none(&CPU);
}

#[test]
fn the_preference_loss_is_that_of_the_logits() {
    candle_linear_cases::the_preference_loss_is_that_of_the_logits(&CPU);
}

#[test]
fn strided_and_batched_layouts() {
    candle_linear_cases::strided_and_batched_layouts(&CPU);
}

#[test]
fn what_does_not_fit_is_refused() {
    candle_linear_cases::what_does_not_fit_is_refused(&CPU);
}
