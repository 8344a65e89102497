//! The operations, on CPU tensors and, with the feature `cuda`, on CUDA tensors: the same cases on both, and what only a
//! device has. `scripts/candle-cuda` runs the latter on softcuda.

#[cfg(feature = "cuda")]
mod device;
mod hidden_states;
mod logits;
#[cfg(feature = "cuda")]
mod products;

#[cfg(feature = "cuda")]
use exo_kernels_candle::candle_core::Device;

/// Runs each case as `cpu::name` and `cuda::name`.
macro_rules! on_every_device {
    ($($module:ident: $($case:ident)*;)*) => {
        mod cpu {
            use crate::logits::Setting;
            use exo_kernels::reference::bounds::Arithmetic;
            use exo_kernels_candle::candle_core::Device;

            const SETTING: Setting = Setting { device: Device::Cpu, arithmetic: Arithmetic::BACKEND };

            $($(
                #[test]
                fn $case() {
                    crate::$module::$case(&SETTING);
                }
            )*)*
        }

        #[cfg(feature = "cuda")]
        mod cuda {
            use crate::logits::Setting;
            use exo_kernels::reference::bounds::Arithmetic;

            fn setting() -> Setting {
                Setting { device: crate::cuda_device(), arithmetic: Arithmetic::CUDA }
            }

            $($(
                #[test]
                fn $case() {
                    crate::$module::$case(&setting());
                }
            )*)*
        }
    };
}

on_every_device! {
    logits:
        gradient_of_token_log_probs_is_the_references
        gradient_of_entropies_is_the_references
        gradient_of_the_preference_loss_is_the_references
        layouts_of_all_kinds
        one_row_in_any_layout
        what_cannot_be_done_is_refused
        no_rows;
    hidden_states:
        gradients_reach_hidden_weight_and_bias
        what_is_frozen_gets_none
        the_preference_loss_is_that_of_the_logits
        strided_and_batched_layouts
        what_does_not_fit_is_refused;
}

/// The first device, opened anew.
#[cfg(feature = "cuda")]
fn cuda_device() -> Device {
    let device = Device::new_cuda(0).expect("device 0");
    let context = device.as_cuda_device().expect("CUDA").cuda_stream().context().clone();
    assert!(context.name().expect("a name").contains("softcuda"), "the program is linked with another driver");
    device
}
