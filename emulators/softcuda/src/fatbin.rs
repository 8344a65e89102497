//! What a program hands to the driver as a module: PTX text, or a fatbin with PTX for several devices in it.
//!
//! The container is not documented; this is what nvcc 13.0 writes, little-endian throughout. A header of 16 bytes
//! (magic number, version, header size, size of all entries), then entries, each with a header of its own and a payload
//! padded to 8 bytes.

mod decompress;

use std::fmt;

/// The first four bytes of a fatbin.
const MAGIC: u32 = 0xba55_ed50;
/// The first four bytes of the structure that host compilers put around a pointer to a fatbin.
const WRAPPER_MAGIC: u32 = 0x4662_43b1;
/// The first four bytes of an ELF file.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// The kind of an entry that holds PTX.
const KIND_PTX: u16 = 1;

/// Flags of an entry: its payload is an LZ4 block.
const FLAG_LZ4: u64 = 0x2000;
/// Its payload is a Zstandard frame.
const FLAG_ZSTANDARD: u64 = 0x8000;
/// Its target has the suffix `a`: this compute capability only.
const FLAG_ARCHITECTURE_ONLY: u64 = 0x10_0000;
/// Its target has the suffix `f`: this major compute capability only.
const FLAG_FAMILY_ONLY: u64 = 0x20_0000;

/// Why an image gives no PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FatbinError {
    /// Machine code of a GPU alone.
    Cubin,
    /// Neither a fatbin nor PTX.
    Unknown,
    /// The fatbin contradicts itself or ends early.
    Damaged(String),
    /// A fatbin without PTX.
    NoPtx,
    /// A fatbin whose PTX is for other devices.
    OtherDevices {
        /// The compute capability of the device.
        device: (u32, u32),
        /// The targets that there are, such as `sm_90a`.
        targets: Vec<String>,
    },
}

impl fmt::Display for FatbinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cubin => formatter.write_str("the module is a cubin: machine code cannot be run here, PTX can"),
            Self::Unknown => formatter.write_str("the module is neither PTX nor a fatbin"),
            Self::Damaged(why) => write!(formatter, "the fatbin is damaged: {why}"),
            Self::NoPtx => formatter.write_str("the fatbin has no PTX in it: machine code cannot be run here"),
            Self::OtherDevices { device: (major, minor), targets } => {
                let targets = targets.join(", ");
                write!(
                    formatter,
                    "the fatbin has PTX for {targets}, none of which runs on compute capability {major}.{minor}"
                )
            }
        }
    }
}

impl std::error::Error for FatbinError {}

/// The bytes to read behind a pointer to a module whose first bytes (16, always readable) are given: `None` if it is
/// text, which ends with a NUL. Of an ELF file that is as much as [`ptx`] needs to know it by.
pub fn image_length(header: &[u8]) -> Option<usize> {
    if header.starts_with(ELF_MAGIC) {
        return Some(ELF_MAGIC.len());
    }
    match word(header, 0) {
        Some(MAGIC) => Some(container_length(header).unwrap_or(header.len())),
        // Refused, which needs no more than this.
        Some(WRAPPER_MAGIC) => Some(header.len()),
        _ => None,
    }
}

/// Header and entries of a fatbin, in bytes.
fn container_length(image: &[u8]) -> Option<usize> {
    let header = usize::from(half(image, 6)?);
    header.checked_add(usize::try_from(long(image, 8)?).ok()?)
}

/// The PTX to load on a device of this compute capability: of a fatbin, the entry for the highest one that the device
/// has, and among equals the most special; text as it is, up to its first NUL.
///
/// # Errors
/// There is no such PTX, or the image is damaged.
pub fn ptx(image: &[u8], compute_capability: (u32, u32)) -> Result<String, FatbinError> {
    if image.starts_with(ELF_MAGIC) {
        return Err(FatbinError::Cubin);
    }
    match word(image, 0) {
        Some(MAGIC) => {}
        Some(WRAPPER_MAGIC) => return Err(FatbinError::Unknown),
        _ => {
            let text = text(image);
            return if text.contains(".version") { Ok(text) } else { Err(FatbinError::Unknown) };
        }
    }
    let entries = entries(image)?;
    let mut ptx: Vec<&Entry> = entries.iter().filter(|entry| entry.kind == KIND_PTX).collect();
    if ptx.is_empty() {
        return Err(FatbinError::NoPtx);
    }
    let targets = ptx.iter().map(|entry| entry.target()).collect();
    ptx.retain(|entry| entry.runs_on(compute_capability));
    let best = ptx
        .into_iter()
        .max_by_key(|entry| (entry.architecture, entry.flags & FLAG_ARCHITECTURE_ONLY, entry.flags & FLAG_FAMILY_ONLY));
    let Some(best) = best else { return Err(FatbinError::OtherDevices { device: compute_capability, targets }) };
    Ok(text(&best.unpacked()?))
}

/// Text up to its first NUL. Comments may be in any encoding.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// One entry of a fatbin.
struct Entry<'image> {
    kind: u16,
    /// Ten times the major compute capability plus the minor.
    architecture: u32,
    flags: u64,
    payload: &'image [u8],
    /// Bytes of the payload that are compressed data; 0 if it is not compressed.
    compressed: usize,
    /// Bytes after decompression.
    uncompressed: u64,
}

/// Reads the headers of all entries.
fn entries(image: &[u8]) -> Result<Vec<Entry<'_>>, FatbinError> {
    let damaged = |why: &str| FatbinError::Damaged(why.to_owned());
    let start = usize::from(half(image, 6).ok_or_else(|| damaged("its header is cut off"))?);
    let end = container_length(image).ok_or_else(|| damaged("its header is cut off"))?;
    if start < 16 || end > image.len() {
        return Err(damaged("it ends before its header says"));
    }
    let mut found = Vec::new();
    let mut rest = &image[start..end];
    while !rest.is_empty() {
        let (entry, length) = entry(rest).ok_or_else(|| damaged("an entry is cut off"))?;
        found.push(entry);
        rest = &rest[length..];
    }
    Ok(found)
}

/// Reads the entry at the start of some bytes; gives its length too.
fn entry(bytes: &[u8]) -> Option<(Entry<'_>, usize)> {
    let kind = half(bytes, 0)?;
    let header = word(bytes, 4)? as usize;
    let length = header.checked_add(usize::try_from(long(bytes, 8)?).ok()?)?;
    // The fixed part of the header; after it come the options of ptxas and the source's name.
    if header < 64 || length > bytes.len() {
        return None;
    }
    let entry = Entry {
        kind,
        architecture: word(bytes, 28)?,
        flags: long(bytes, 40)?,
        payload: &bytes[header..length],
        compressed: word(bytes, 16)? as usize,
        uncompressed: long(bytes, 56)?,
    };
    Some((entry, length))
}

impl Entry<'_> {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Its target as `.target` spells it.
    fn target(&self) -> String {
        let suffix = match (self.has(FLAG_ARCHITECTURE_ONLY), self.has(FLAG_FAMILY_ONLY)) {
            (true, _) => "a",
            (false, true) => "f",
            (false, false) => "",
        };
        format!("sm_{}{suffix}", self.architecture)
    }

    fn runs_on(&self, (major, minor): (u32, u32)) -> bool {
        let (own_major, own_minor) = (self.architecture / 10, self.architecture % 10);
        if self.has(FLAG_ARCHITECTURE_ONLY) {
            (own_major, own_minor) == (major, minor)
        } else if self.has(FLAG_FAMILY_ONLY) {
            own_major == major && own_minor <= minor
        } else {
            (own_major, own_minor) <= (major, minor)
        }
    }

    fn unpacked(&self) -> Result<Vec<u8>, FatbinError> {
        if self.compressed == 0 {
            return Ok(self.payload.to_vec());
        }
        let data = self.payload.get(..self.compressed);
        let data = data.ok_or_else(|| FatbinError::Damaged("its compressed data is cut off".to_owned()))?;
        let unpacked = if self.has(FLAG_ZSTANDARD) {
            decompress::zstandard(data, self.uncompressed)
        } else if self.has(FLAG_LZ4) {
            decompress::lz4(data, self.uncompressed)
        } else {
            Err(format!("its compression is unknown, flags {:#x}", self.flags))
        };
        unpacked.map_err(FatbinError::Damaged)
    }
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn long(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}
