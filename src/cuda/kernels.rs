//! The compiled kernels, loaded once per context.

use crate::cuda::context::{FreedInContext, Kept, bind};
use crate::cuda::driver;
use crate::cuda::driver::called;
use crate::cuda::tuning::Capability;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The fatbin that a file of `kernels/` was compiled to.
#[derive(Clone, Copy)]
pub(super) struct Image {
    /// The file: `linear/rows` is `kernels/linear/rows.cu`.
    pub(super) file: &'static str,
    /// The first and the last compute capability that it runs on, where it lies in the folder of an architecture.
    pub(super) only: Option<(Capability, Capability)>,
    pub(super) bytes: &'static [u8],
}

impl Image {
    /// Whether a device of this compute capability loads it.
    fn is_for(&self, capability: Capability) -> bool {
        self.only.is_none_or(|(first, last)| (first..=last).contains(&capability))
    }
}

/// None where there was no nvcc.
type Images = &'static [Image];

/// The table that `build.rs` wrote.
#[cfg(has_kernels)]
pub(super) const IMAGES: Images = include!(concat!(env!("OUT_DIR"), "/images.rs"));
#[cfg(not(has_kernels))]
pub(super) const IMAGES: Images = &[];

/// The nvcc that made them, as in 13.0.
const NVCC_RELEASE: Option<&str> = option_env!("EXO_KERNELS_NVCC_RELEASE");

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

/// Every kernel that is launched, by its file: what a [`KernelId`] is an index into. The files that stand in for another on
/// one architecture have the names of that one, in the same order.
const TABLE: &[(&str, &[&str])] = &[
    (
        "linear/fold",
        &["linear_log_prob", "linear_log_prob_entropy", "linear_log_prob_softcap", "linear_log_prob_softcap_entropy"],
    ),
    (
        "linear/gradient",
        &[
            "linear_gradient_scale",
            "linear_log_prob_backward_bf16",
            "linear_log_prob_backward_bf16_entropy",
            "linear_log_prob_backward_bf16_softcap",
            "linear_log_prob_backward_bf16_softcap_entropy",
            "linear_log_prob_backward_f16",
            "linear_log_prob_backward_f16_entropy",
            "linear_log_prob_backward_f16_softcap",
            "linear_log_prob_backward_f16_softcap_entropy",
            "linear_log_prob_backward_f32",
            "linear_log_prob_backward_f32_entropy",
            "linear_log_prob_backward_f32_softcap",
            "linear_log_prob_backward_f32_softcap_entropy",
            "linear_withhold_rows",
        ],
    ),
    (
        "linear/head",
        &[
            "linear_bias_gradient_bf16_bf16",
            "linear_bias_gradient_bf16_f32",
            "linear_bias_gradient_f16_f16",
            "linear_bias_gradient_f16_f32",
            "linear_bias_gradient_f32_f32",
            "linear_round_weight_bf16",
            "linear_round_weight_f16",
        ],
    ),
    (
        "linear/kept_logits",
        &["linear_row_coefficients", "linear_scaled_rows_bf16", "linear_scaled_rows_f16", "linear_scaled_rows_f32"],
    ),
    ("linear/row_loss", &["row_loss"]),
    (
        "linear/rows",
        &[
            "linear_bias_bf16",
            "linear_bias_f16",
            "linear_bias_f32",
            "linear_gather_16",
            "linear_gather_32",
            "linear_scatter_bf16",
            "linear_scatter_f16",
            "linear_scatter_f32",
            "linear_scored_rows",
        ],
    ),
    (
        "linear/shard",
        &[
            "linear_empty_parts",
            "linear_unit_share_bf16",
            "linear_unit_share_f16",
            "linear_unit_share_f32",
            "linear_unit_sums",
        ],
    ),
    (
        "linear/unit_gradient",
        &[
            "linear_exponentials_bf16",
            "linear_exponentials_bf16_softcap",
            "linear_exponentials_f16",
            "linear_exponentials_f16_softcap",
            "linear_exponentials_f32",
            "linear_exponentials_f32_softcap",
            "linear_hidden_gradient_bf16",
            "linear_hidden_gradient_f16",
            "linear_hidden_gradient_f32",
            "linear_unit_gradient_bf16",
            "linear_unit_gradient_f16",
            "linear_unit_gradient_f32",
        ],
    ),
    ("log_ratio", &["log_ratio"]),
    ("merge_rows", &["merge_rows", "merge_rows_entropy", "merge_rows_softcap", "merge_rows_softcap_entropy"]),
    ("objective", &["objective"]),
    ("sequence_parts", &["add_ranks", "add_sequences", "place_sequences", "write_count_part", "write_sequence_parts"]),
    ("token_log_prob", TOKEN_LOG_PROB),
    (
        "token_log_prob_backward",
        &[
            "token_log_prob_backward_bf16",
            "token_log_prob_backward_bf16_entropy",
            "token_log_prob_backward_bf16_softcap",
            "token_log_prob_backward_bf16_softcap_entropy",
            "token_log_prob_backward_f16",
            "token_log_prob_backward_f16_entropy",
            "token_log_prob_backward_f16_softcap",
            "token_log_prob_backward_f16_softcap_entropy",
            "token_log_prob_backward_f32",
            "token_log_prob_backward_f32_entropy",
            "token_log_prob_backward_f32_softcap",
            "token_log_prob_backward_f32_softcap_entropy",
        ],
    ),
    ("sm100/token_log_prob", TOKEN_LOG_PROB),
    #[cfg(test)]
    ("sm90a/token_log_prob", TOKEN_LOG_PROB),
];

const TOKEN_LOG_PROB: &[&str] = &[
    "token_log_prob_bf16",
    "token_log_prob_bf16_entropy",
    "token_log_prob_bf16_softcap",
    "token_log_prob_bf16_softcap_entropy",
    "token_log_prob_bf16_unaligned",
    "token_log_prob_f16",
    "token_log_prob_f16_entropy",
    "token_log_prob_f16_softcap",
    "token_log_prob_f16_softcap_entropy",
    "token_log_prob_f16_unaligned",
    "token_log_prob_f32",
    "token_log_prob_f32_entropy",
    "token_log_prob_f32_softcap",
    "token_log_prob_f32_softcap_entropy",
    "token_log_prob_f32_unaligned",
];

/// Which kernel is launched: its place in the table above, found when this crate is compiled, so that a launch looks nothing
/// up by a text. Made by `kernel!(file, name)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelId {
    file: usize,
    kernel: usize,
}

impl KernelId {
    /// The place of a kernel. For constants: one that the table does not have is an error of the compiler's.
    pub(super) const fn find(file: &str, kernel: &str) -> Self {
        let mut id = Self { file: 0, kernel: 0 };
        while !equal(TABLE[id.file].0, file) {
            id.file += 1;
        }
        let kernels = TABLE[id.file].1;
        while !equal(kernels[id.kernel], kernel) {
            id.kernel += 1;
        }
        id
    }

    /// The kernel of the same name in a file that stands in for this one's: as in [`tuning`](super::tuning).
    pub(super) fn in_file(self, file: &str) -> Self {
        if TABLE[self.file].0 == file {
            return self;
        }
        let other = TABLE.iter().position(|row| row.0 == file);
        Self { file: other.unwrap_or(self.file), ..self }
    }

    fn names(self) -> (&'static str, &'static str) {
        let (file, kernels) = TABLE[self.file];
        (file, kernels[self.kernel])
    }
}

/// Whether two texts are the same, also where constants are computed.
const fn equal(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut index = 0;
    while index < one.len() {
        if one[index] != other[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// The [`KernelId`] of a kernel, by its file and its name.
macro_rules! kernel {
    ($file:expr, $name:expr) => {
        const { $crate::cuda::kernels::KernelId::find($file, $name) }
    };
}

/// Those of a kernel without and with softcap and entropy: an array that [`variant`] is an index into.
macro_rules! variants {
    ($file:expr, $name:expr) => {
        [
            $crate::cuda::kernels::kernel!($file, $name),
            $crate::cuda::kernels::kernel!($file, concat!($name, "_entropy")),
            $crate::cuda::kernels::kernel!($file, concat!($name, "_softcap")),
            $crate::cuda::kernels::kernel!($file, concat!($name, "_softcap_entropy")),
        ]
    };
}

pub(super) use {kernel, variants};

/// The index of a kernel among its variants.
pub(super) fn variant(softcap: bool, entropy: bool) -> usize {
    2 * usize::from(softcap) + usize::from(entropy)
}

/// A kernel, and the threads of its blocks.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    pub(super) threads: u32,
}

/// A file's module, if it has been built and is for this device, and its kernels that were asked for.
struct File {
    module: Option<Arc<CudaModule>>,
    kernels: Box<[OnceLock<Kernel>]>,
}

/// The modules of one context, and their kernels: as [`TABLE`] has them.
pub(super) struct Kernels {
    context: Arc<CudaContext>,
    files: Vec<File>,
}

/// Contexts that have loaded them. A context that nobody uses any more may go: the entry does not keep it. While there are
/// kernels they keep their context, so that no other can have taken its address.
///
/// Not locked while the driver loads or unloads (see `lent.rs`).
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
        let mut files: Vec<File> = TABLE
            .iter()
            .map(|(_, kernels)| File { module: None, kernels: kernels.iter().map(|_| OnceLock::new()).collect() })
            .collect();
        for Image { file, bytes, .. } in images.iter().filter(|image| image.is_for(capability)) {
            let Some(index) = TABLE.iter().position(|row| row.0 == *file) else { continue };
            let module = context.load_module(Ptx::from_binary(bytes.to_vec()));
            let module = driver::loaded(module, NVCC_RELEASE, capability)?;
            files[index].module = Some(module);
        }
        Ok(Self { context: context.clone(), files })
    }

    /// Whether a file's kernels have been built, and are for this device.
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.iter().zip(TABLE).any(|(of_file, row)| of_file.module.is_some() && row.0 == file)
    }

    /// A kernel; loaded when it is first asked for, by whichever thread comes first. No thread waits for another.
    pub(super) fn kernel(&self, id: KernelId) -> Result<&Kernel> {
        let file = &self.files[id.file];
        let place = &file.kernels[id.kernel];
        if let Some(kernel) = place.get() {
            return Ok(kernel);
        }
        let Some(module) = &file.module else { return Err(Error::KernelsNotBuilt) };
        let (file, name) = id.names();
        bind(&self.context)?;
        let function = called("cuModuleGetFunction", module.load_function(name))?;
        let threads = threads(file, name);
        // What the image says, in the launch bounds, or less where the device can do no more. Loops step by the constant
        // and warps are counted with it: blocks of another size would give wrong sums without a word.
        let given = called("cuFuncGetAttribute", function.max_threads_per_block())?;
        if u32::try_from(given) != Ok(threads) {
            return Err(Error::BlockSize { kernel: name.to_owned(), given: given.max(0) as u32, expected: threads });
        }
        // The same, if another thread has asked meanwhile.
        Ok(place.get_or_init(|| Kernel { function, threads }))
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

    /// Machine code runs on later devices of its major number, and on no others; with a suffix on one alone.
    #[test]
    fn an_architecture_s_image_is_for_its_devices() {
        let is_for = |only, capability| Image { only, ..image("token_log_prob", b"") }.is_for(capability);
        let of_10 = Some(((10, 0), (10, 9)));
        for (capability, loaded) in
            [((9, 0), false), ((10, 0), true), ((10, 3), true), ((11, 0), false), ((12, 0), false)]
        {
            assert_eq!(is_for(of_10, capability), loaded, "{capability:?}");
            assert!(is_for(None, capability) && is_for(Some((capability, capability)), capability));
        }
        assert!(!is_for(Some(((10, 0), (10, 0))), (10, 3)));
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
        for (id, given) in [(kernel!("linear/row_loss", "row_loss"), 128), (kernel!("log_ratio", "log_ratio"), 1024)] {
            let refused = kernels.kernel(id).map(|kernel| kernel.threads);
            let name = id.names().1;
            assert_eq!(refused, Err(Error::BlockSize { kernel: name.to_owned(), given, expected: 256 }));
        }
    }

    /// The source of an image: of one that is the file it stands in for under other settings, that file's.
    fn source(file: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file).with_extension("cu");
        let read =
            |path: &std::path::Path| std::fs::read_to_string(path).expect("the file that the image was made from");
        let source = read(&path);
        let other = source.lines().find_map(|line| line.strip_prefix("#include \"")?.strip_suffix(".cu\""));
        other.map_or(source.clone(), |other| read(&path.with_file_name(other).with_extension("cu")))
    }

    /// Every file that was compiled is in the table, and every kernel of the table in its file.
    #[test]
    fn the_table_has_every_kernel() {
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let context = CudaContext::new(0).expect("device 0");
        let kernels = Kernels::load(&context, IMAGES).expect("the kernels load");
        let capability = context.compute_capability().expect("a capability");
        let capability = (capability.0 as u32, capability.1 as u32);
        for (file, row) in TABLE.iter().enumerate() {
            let built = IMAGES.iter().any(|image| image.file == row.0 && image.is_for(capability));
            for kernel in 0..row.1.len() {
                let found = kernels.kernel(KernelId { file, kernel }).map(drop);
                assert_eq!(found, if built { Ok(()) } else { Err(Error::KernelsNotBuilt) }, "{}", row.1[kernel]);
            }
        }
        for Image { file, .. } in IMAGES {
            let names =
                TABLE.iter().find(|row| row.0 == *file).unwrap_or_else(|| panic!("{file} is not in the table")).1;
            let kernels: usize = source(file).matches("__global__").count();
            assert!(kernels > 0 && kernels <= names.len(), "{file}: {kernels} kernels and macros, {names:?}");
        }
    }

    /// Constants, and files that stand in for others.
    #[test]
    fn a_kernel_is_found_by_file_and_name() {
        let id = kernel!("token_log_prob", "token_log_prob_f32_softcap");
        assert_eq!(id.names(), ("token_log_prob", "token_log_prob_f32_softcap"));
        let own = id.in_file("sm90a/token_log_prob");
        assert_eq!(own.names(), ("sm90a/token_log_prob", "token_log_prob_f32_softcap"));
        assert_eq!((own.in_file("token_log_prob"), id.in_file("token_log_prob")), (id, id));
        let variants = variants!("linear/fold", "linear_log_prob");
        for (softcap, entropy) in [(false, false), (false, true), (true, false), (true, true)] {
            let parts = [if softcap { "_softcap" } else { "" }, if entropy { "_entropy" } else { "" }];
            assert_eq!(variants[variant(softcap, entropy)].names().1, format!("linear_log_prob{}", parts.concat()));
        }
    }

    /// The sources count with the constants that stand here, and promise the same in their launch bounds.
    #[test]
    fn block_sizes_are_the_kernels() {
        for Image { file, .. } in IMAGES {
            let source = source(file);
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
