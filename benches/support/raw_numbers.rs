//! Numbers in a file, in the machine's byte order: how examples and scripts hand each other tensors.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The `count` numbers of a file that holds so many.
pub(crate) fn read<T: bytemuck::Pod>(file: &Path, count: usize) -> Result<Vec<T>> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let mut numbers = vec![T::zeroed(); count];
    if bytes.len() != size_of_val(numbers.as_slice()) {
        bail!("{} has {} bytes, not those of {count} numbers", file.display(), bytes.len());
    }
    bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(&bytes);
    Ok(numbers)
}
