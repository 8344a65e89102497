//! The compiled kernels, loaded once per context.

use crate::cuda::context::{FreedInContext, Kept};
use crate::cuda::driver;
use crate::cuda::driver::called;
use crate::cuda::tuning::Capability;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The fatbin that a file of `kernels/` was compiled to.
#[derive(Clone, Copy)]
pub(super) struct Image {
    /// The file: `linear/rows` is `kernels/linear/rows.cu`.
    pub(super) file: &'static str,
    /// The one compute capability that it is for, where it lies in the folder of an architecture.
    pub(super) only: Option<Capability>,
    pub(super) bytes: &'static [u8],
}

/// None where there was no nvcc.
type Images = &'static [Image];

/// The table that `build.rs` wrote.
#[cfg(has_kernels)]
pub(super) const IMAGES: Images = include!(concat!(env!("OUT_DIR"), "/images.rs"));
#[cfg(not(has_kernels))]
pub(super) const IMAGES: Images = &[];

/// Threads of a kernel's blocks: the constant that its code counts with, as in the file of `kernels/`.
fn threads(file: &str, kernel: &str) -> u32 {
    match (file, kernel) {
        // One block for all rows.
        ("linear/rows", "linear_scored_rows")
        | ("linear/gradient", "linear_gradient_scale")
        | ("linear/kept_logits", "linear_row_coefficients") => 1024,
        ("objective", _) => 128,
        _ => 256,
    }
}

/// A kernel, and the threads of its blocks.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    pub(super) threads: u32,
}

/// Kernels by file, then by name.
type Functions = HashMap<&'static str, HashMap<String, Kernel>>;

/// The modules of one context, and the functions that were asked for.
pub(super) struct Kernels {
    context: Arc<CudaContext>,
    modules: Vec<(&'static str, Arc<CudaModule>)>,
    functions: Mutex<Functions>,
}

/// Contexts that have loaded them. A context that nobody uses any more may go: the entry does not keep it. While there are
/// kernels they keep their context, so that no other can have taken its address.
///
/// Not locked while the driver loads or unloads (see `lent.rs`), as are the functions of [`Kernels`].
fn loaded() -> MutexGuard<'static, Vec<Weak<Kept<Kernels>>>> {
    static LOADED: Mutex<Vec<Weak<Kept<Kernels>>>> = Mutex::new(Vec::new());
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernels of a context, loaded if they are not yet: from `images`, which are [`IMAGES`] but for a test's.
pub(super) fn of_context(context: &Arc<CudaContext>, images: Images) -> Result<Arc<Kept<Kernels>>> {
    if images.is_empty() {
        return Err(Error::KernelsNotBuilt);
    }
    driver::require()?;
    if let Some(kernels) = known(context) {
        return Ok(kernels);
    }
    let kernels = Arc::new(Kept::new(Kernels::load(context, images)?));
    // Another thread may have loaded them meanwhile. Two copies do no harm; the first of the list is used from now on.
    loaded().push(Arc::downgrade(&kernels));
    Ok(kernels)
}

/// The kernels that a context has loaded. Those of contexts that nobody uses any more are forgotten.
fn known(context: &CudaContext) -> Option<Arc<Kept<Kernels>>> {
    let alive: Vec<Arc<Kept<Kernels>>> = {
        let mut loaded = loaded();
        loaded.retain(|kernels| kernels.strong_count() > 0);
        loaded.iter().filter_map(Weak::upgrade).collect()
    };
    // The lock is released: dropping one whose last user has gone meanwhile unloads its modules.
    alive.into_iter().find(|kernels| kernels.context.cu_ctx() == context.cu_ctx())
}

impl FreedInContext for Kernels {
    fn freed_in(&self) -> Option<&CudaContext> {
        Some(&self.context)
    }
}

impl Kernels {
    /// Loads what is for the context's device.
    pub(super) fn load(context: &Arc<CudaContext>, images: Images) -> Result<Self> {
        let capability = called("cuDeviceGetAttribute", context.compute_capability())?;
        let capability = (capability.0.max(0) as u32, capability.1.max(0) as u32);
        let mut modules = Vec::new();
        for Image { file, bytes, .. } in images.iter().filter(|image| image.only.is_none_or(|only| only == capability))
        {
            let module = called("cuModuleLoadData", context.load_module(Ptx::from_binary(bytes.to_vec())))?;
            modules.push((*file, module));
        }
        Ok(Self { context: context.clone(), modules, functions: Mutex::default() })
    }

    /// Whether a file's kernels have been built, and are for this device.
    pub(super) fn has(&self, file: &str) -> bool {
        self.modules.iter().any(|module| module.0 == file)
    }

    /// A kernel by its file and its name; loaded when it is first asked for.
    pub(super) fn kernel(&self, file: &str, name: &str) -> Result<Kernel> {
        if let Some(kernel) = self.functions().get(file).and_then(|kernels| kernels.get(name)) {
            return Ok(kernel.clone());
        }
        let Some(&(file, ref module)) = self.modules.iter().find(|module| module.0 == file) else {
            return Err(Error::KernelsNotBuilt);
        };
        let function = called("cuModuleGetFunction", module.load_function(name))?;
        let threads = threads(file, name);
        // What the image says, in the launch bounds, or less where the device can do no more. Loops step by the constant
        // and warps are counted with it: blocks of another size would give wrong sums without a word.
        let given = called("cuFuncGetAttribute", function.max_threads_per_block())?;
        if u32::try_from(given) != Ok(threads) {
            return Err(Error::BlockSize { kernel: name.to_owned(), given: given.max(0) as u32, expected: threads });
        }
        let kernel = Kernel { function, threads };
        // The same, if another thread has asked meanwhile.
        self.functions().entry(file).or_default().insert(name.to_owned(), kernel.clone());
        Ok(kernel)
    }

    fn functions(&self) -> MutexGuard<'_, Functions> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
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

    const fn image(file: &'static str, bytes: &'static [u8]) -> Image {
        Image { file, only: None, bytes }
    }

    /// Images of other block sizes than the host launches: made for fewer threads, and for any number.
    #[test]
    fn a_kernel_of_another_block_size_is_refused() {
        const OTHER: Images = &[
            image("linear/row_loss", b".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry row_loss()\n.maxntid 128, 1, 1\n{ ret; }\n\0"),
            image("log_ratio", b".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry log_ratio()\n{ ret; }\n\0"),
        ];
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let context = CudaContext::new(0).expect("device 0");
        let kernels = Kernels::load(&context, OTHER).expect("PTX");
        for (file, name, given) in [("linear/row_loss", "row_loss", 128), ("log_ratio", "log_ratio", 1024)] {
            let refused = kernels.kernel(file, name).map(|kernel| kernel.threads);
            assert_eq!(refused, Err(Error::BlockSize { kernel: name.to_owned(), given, expected: 256 }));
        }
    }

    /// The sources count with the constants that stand here, and promise the same in their launch bounds.
    #[test]
    fn block_sizes_are_the_kernels() {
        for Image { file, .. } in IMAGES {
            let path = format!("{}/kernels/{file}.cu", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(&path).expect("the file that the image was made from");
            let constant = |name: &str| -> Option<u32> {
                let line = source.lines().find_map(|line| line.strip_prefix(&format!("constexpr int {name} = ")))?;
                line.strip_suffix(';')?.parse().ok()
            };
            // "BOUND, BLOCKS) NAME(arguments": the name may be a macro's, all of whose kernels have one size.
            let kernels: Vec<&str> = source.split("__launch_bounds__(").skip(1).collect();
            assert!(!kernels.is_empty(), "{file}");
            for kernel in kernels {
                let (bounds, rest) = kernel.split_once(')').expect("launch bounds");
                let bound = bounds.split(',').next().unwrap_or_default();
                let bound = bound.strip_prefix("exo::").unwrap_or(bound);
                let name = rest.split('(').next().unwrap_or_default().trim_matches([' ', '\\', '\n']);
                assert!(bound.ends_with("THREADS"), "{name}: a number in place of the constant");
                assert_eq!(constant(bound), Some(threads(file, name)), "{file}: {name}");
            }
            assert_eq!(source.matches("__global__").count(), source.matches("__launch_bounds__(").count(), "{file}");
        }
    }
}
