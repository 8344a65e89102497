//! The candle adapter from hidden states on CUDA tensors: the cases that it passes on the CPU.

#[allow(dead_code, reason = "its cases run in `adapter`")]
#[path = "../../support/candle_cases.rs"]
mod candle_cases;
#[path = "../../support/candle_linear_cases.rs"]
mod candle_linear_cases;
#[path = "support/setting.rs"]
mod setting;

use candle_cases::Setting;
use exo_kernels::reference::bounds::Arithmetic;

fn setting() -> Setting {
    Setting { device: setting::cuda_device(), arithmetic: Arithmetic::CUDA }
}

#[test]
fn gradients_reach_hidden_weight_and_bias() {
    candle_linear_cases::gradients_reach_hidden_weight_and_bias(&setting());
}

#[test]
fn what_is_frozen_gets_none() {
    candle_linear_cases::what_is_frozen_gets_none(&setting());
}

#[test]
fn the_preference_loss_is_that_of_the_logits() {
    candle_linear_cases::the_preference_loss_is_that_of_the_logits(&setting());
}

#[test]
fn strided_and_batched_layouts() {
    candle_linear_cases::strided_and_batched_layouts(&setting());
}

#[test]
fn what_does_not_fit_is_refused() {
    candle_linear_cases::what_does_not_fit_is_refused(&setting());
}
