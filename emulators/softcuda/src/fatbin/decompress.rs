//! The two compressions of fatbin entries: `--compress-mode=speed` is LZ4, the others are Zstandard.

use std::io::Read;

/// No PTX is larger: what a header says beyond it is refused before memory is taken.
const MOST: u64 = 1 << 30;

fn checked_size(size: u64) -> Result<usize, String> {
    if size > MOST {
        return Err(format!("an entry says that it has {size} bytes uncompressed, more than {MOST}"));
    }
    Ok(size as usize)
}

fn check_length(found: usize, size: u64) -> Result<(), String> {
    if found as u64 == size { Ok(()) } else { Err(format!("an entry has {found} bytes uncompressed, and says {size}")) }
}

/// An LZ4 block without a frame.
pub(super) fn lz4(data: &[u8], size: u64) -> Result<Vec<u8>, String> {
    // A byte of a block stands for at most 255 bytes.
    if size > data.len() as u64 * 255 {
        return Err(format!("an entry says that {} bytes of LZ4 are {size} uncompressed", data.len()));
    }
    let mut unpacked = vec![0; checked_size(size)?];
    let found = lz4_flex::block::decompress_into(data, &mut unpacked).map_err(|error| format!("LZ4: {error}"))?;
    check_length(found, size)?;
    Ok(unpacked)
}

/// A Zstandard frame.
pub(super) fn zstandard(data: &[u8], size: u64) -> Result<Vec<u8>, String> {
    checked_size(size)?;
    let decoder = ruzstd::decoding::StreamingDecoder::new(data).map_err(|error| format!("Zstandard: {error}"))?;
    let mut unpacked = Vec::new();
    decoder.take(size + 1).read_to_end(&mut unpacked).map_err(|error| format!("Zstandard: {error}"))?;
    check_length(unpacked.len(), size)?;
    Ok(unpacked)
}
