//! Putting the software library where cudarc finds it, as softcuda does with the driver.

use softload::library::Library;

pub use softload::library::{InstallError, Installed};

static LIBRARY: Library = Library::new("cuBLAS", "libsoftcublas.so", c"libcublas.so", c"softcublas_is_here");

/// Makes cuBLAS work on softcuda. Call it after `softcuda::install()`, before the first use of cuBLAS; calling it again
/// does nothing. With a real driver it does nothing at all.
///
/// # Errors
/// When the library cannot be loaded.
pub fn install() -> Result<Installed, InstallError> {
    LIBRARY.install()
}
