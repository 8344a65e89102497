//! Putting the software library where cudarc finds it, as softcuda does with the driver.

use softload::library::Library;

pub use softload::library::{InstallError, Installed};

static LIBRARY: Library = Library::new("NCCL", "libsoftnccl.so", c"libnccl.so", c"softnccl_is_here");

/// Makes NCCL work on softcuda. Call it after `softcuda::install()`, before the first use of NCCL; calling it again
/// does nothing. With a real driver it does nothing at all.
///
/// # Errors
/// When the library cannot be loaded.
pub fn install() -> Result<Installed, InstallError> {
    LIBRARY.install()
}
