//! The candle adapter on CUDA tensors: the cases that it passes on the CPU.

#[path = "../../support/candle_cases.rs"]
mod candle_cases;
#[path = "support/setting.rs"]
mod setting;

use candle_cases::Setting;
use exo_kernels::reference::bounds::Arithmetic;

fn setting() -> Setting {
    Setting { device: setting::cuda_device(), arithmetic: Arithmetic::CUDA }
}

#[test]
fn gradient_of_token_log_probs_is_the_references() {
    candle_cases::gradient_of_token_log_probs_is_the_references(&setting());
}

#[test]
fn gradient_of_entropies_is_the_references() {
    candle_cases::gradient_of_entropies_is_the_references(&setting());
}

#[test]
fn gradient_of_the_preference_loss_is_the_references() {
    candle_cases::gradient_of_the_preference_loss_is_the_references(&setting());
}

#[test]
fn layouts_of_all_kinds() {
    candle_cases::layouts_of_all_kinds(&setting());
}

#[test]
fn one_row_in_any_layout() {
    candle_cases::one_row_in_any_layout(&setting());
}

#[test]
fn what_cannot_be_done_is_refused() {
    candle_cases::what_cannot_be_done_is_refused(&setting());
}

#[test]
fn no_rows() {
    candle_cases::no_rows(&setting());
}
