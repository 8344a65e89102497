//! The compiled kernels, loaded once per context.

use super::context::Kept;
use super::driver::{self, called};
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Fatbins, by the file of `kernels/` that they were made from; none where there was no nvcc.
type Images = &'static [(Stage, &'static [u8])];

/// The fatbins that `build.rs` made, one per file of `kernels/`.
#[cfg(has_kernels)]
pub(super) const IMAGES: Images = &[
    (Stage::TokenLogProb, include_bytes!(concat!(env!("OUT_DIR"), "/token_log_prob.fatbin"))),
    (Stage::TokenLogProbBackward, include_bytes!(concat!(env!("OUT_DIR"), "/token_log_prob_backward.fatbin"))),
    (Stage::LogRatio, include_bytes!(concat!(env!("OUT_DIR"), "/log_ratio.fatbin"))),
    (Stage::Objective, include_bytes!(concat!(env!("OUT_DIR"), "/objective.fatbin"))),
    (Stage::LinearRows, include_bytes!(concat!(env!("OUT_DIR"), "/linear_rows.fatbin"))),
    (Stage::LinearLogProb, include_bytes!(concat!(env!("OUT_DIR"), "/linear_log_prob.fatbin"))),
    (Stage::LinearLogProbBackward, include_bytes!(concat!(env!("OUT_DIR"), "/linear_log_prob_backward.fatbin"))),
    (Stage::LinearGradients, include_bytes!(concat!(env!("OUT_DIR"), "/linear_gradients.fatbin"))),
    (Stage::RowLoss, include_bytes!(concat!(env!("OUT_DIR"), "/row_loss.fatbin"))),
];
#[cfg(not(has_kernels))]
pub(super) const IMAGES: Images = &[];

/// A file of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    TokenLogProb,
    TokenLogProbBackward,
    LogRatio,
    Objective,
    LinearRows,
    LinearLogProb,
    LinearLogProbBackward,
    LinearGradients,
    RowLoss,
}

/// A kernel, and the threads of its blocks.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    /// What its `__launch_bounds__` says, which is what its code is made for: the number stands in one place.
    pub(super) threads: u32,
}

/// The modules of one context, and the functions that were asked for.
pub(super) struct Kernels {
    context: Arc<CudaContext>,
    modules: Vec<(Stage, Arc<CudaModule>)>,
    functions: Mutex<HashMap<String, Kernel>>,
}

/// Contexts that have loaded them. A context that nobody uses any more may go: the entry does not keep it.
static LOADED: Mutex<Vec<Weak<Kept<Kernels>>>> = Mutex::new(Vec::new());

/// The kernels of a context, loaded if they are not yet: from `images`, which are [`IMAGES`] but for a test's.
pub(super) fn of_context(context: &Arc<CudaContext>, images: Images) -> Result<Arc<Kept<Kernels>>> {
    if images.is_empty() {
        return Err(Error::KernelsNotBuilt);
    }
    driver::require()?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.retain(|kernels| kernels.strong_count() > 0);
    let known = loaded.iter().filter_map(Weak::upgrade).find(|kernels| kernels.context.cu_ctx() == context.cu_ctx());
    if let Some(kernels) = known {
        return Ok(kernels);
    }
    let mut modules = Vec::new();
    for (stage, image) in images {
        let module = called("cuModuleLoadData", context.load_module(Ptx::from_binary(image.to_vec())))?;
        modules.push((*stage, module));
    }
    let kernels = Arc::new(Kept::new(Kernels { context: context.clone(), modules, functions: Mutex::default() }));
    loaded.push(Arc::downgrade(&kernels));
    Ok(kernels)
}

impl Kernels {
    /// A kernel by its name.
    pub(super) fn kernel(&self, stage: Stage, name: &str) -> Result<Kernel> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = functions.get(name) {
            return Ok(kernel.clone());
        }
        let Some((_, module)) = self.modules.iter().find(|module| module.0 == stage) else {
            return Err(Error::KernelsNotBuilt);
        };
        let function = called("cuModuleGetFunction", module.load_function(name))?;
        let threads = called("cuFuncGetAttribute", function.max_threads_per_block())?;
        let kernel = Kernel { function, threads: threads.max(32) as u32 };
        functions.insert(name.to_owned(), kernel.clone());
        Ok(kernel)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// A build without nvcc has no images: that is an error which says what to do, also beside a context that has kernels.
    #[test]
    fn a_build_without_kernels_says_so() {
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let context = CudaContext::new(0).expect("device 0");
        let _loaded = of_context(&context, IMAGES).expect("the kernels load");
        let Err(error) = of_context(&context, &[]) else { panic!("kernels out of nothing") };
        assert_eq!(error, Error::KernelsNotBuilt);
        assert!(error.to_string().contains("nvcc"), "{error}");
    }
}
