//! What ranks must agree about before they exchange anything whose size depends on it.

use crate::data::shard::Shard;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};

/// Bytes of a reason: longer ones are cut.
const REASON: usize = 128;

/// What a rank says of its call, 184 bytes: for engines to copy.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Note {
    rows: u64,
    start: u64,
    columns: u64,
    vocab: u64,
    /// Bits of f64.
    temperature: u64,
    softcap: u64,
    /// Whether entropies are asked for; from bit 1 on the length of the reason, if the call is refused.
    flags: u64,
    reason: [u8; REASON],
}

impl Default for Note {
    fn default() -> Self {
        Self::zeroed()
    }
}

impl Note {
    /// Why the rank refuses its call.
    fn reason(&self) -> Option<String> {
        let length = (self.flags >> 1) as usize;
        let text = self.reason.get(..length).unwrap_or(&self.reason);
        (length > 0).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

/// One rank's side.
pub(super) struct Agreement {
    pub(super) rows: usize,
    pub(super) shard: Shard,
    /// Columns that are held, padding included.
    pub(super) columns: usize,
    pub(super) temperature: f64,
    pub(super) softcap: f64,
    pub(super) entropy: bool,
}

impl Agreement {
    /// Exchanges notes, and gives the most columns that a rank holds. `checked`: whether this rank's call can be made.
    pub(super) fn of_all(
        &self,
        rank: usize,
        checked: Result<()>,
        exchange: impl FnOnce(&[u32]) -> Result<Option<Vec<u32>>>,
    ) -> Result<usize> {
        let words = exchange(bytemuck::cast_slice(&[self.note(checked.as_ref().err())]))?;
        checked?;
        let Some(words) = words else { return Ok(self.columns) };
        let notes: Vec<Note> =
            bytemuck::cast_slice(&words).chunks_exact(size_of::<Note>()).map(bytemuck::pod_read_unaligned).collect();
        let mut others = notes.iter().enumerate().filter(|(other, _)| *other != rank);
        if let Some((rank, reason)) = others.find_map(|(rank, note)| Some((rank, note.reason()?))) {
            return Err(Error::Rank { rank, reason });
        }
        check(&notes)?;
        Ok(notes.iter().map(|note| note.columns as usize).max().unwrap_or(self.columns))
    }

    fn note(&self, refused: Option<&Error>) -> Note {
        let mut note = Note {
            rows: self.rows as u64,
            start: self.shard.start() as u64,
            columns: self.columns as u64,
            vocab: self.shard.vocab() as u64,
            temperature: self.temperature.to_bits(),
            softcap: self.softcap.to_bits(),
            flags: u64::from(self.entropy),
            ..Note::default()
        };
        if let Some(error) = refused {
            let text = error.to_string();
            let length = text.len().min(REASON);
            note.reason[..length].copy_from_slice(&text.as_bytes()[..length]);
            note.flags |= (length as u64) << 1;
        }
        note
    }
}

/// What must be the same on all ranks; each rank's columns follow those of the rank before.
fn check(notes: &[Note]) -> Result<()> {
    type Of = fn(&Note) -> f64;
    const SAME: [(&str, Of); 5] = [
        ("rows", |note| note.rows as f64),
        ("vocabulary", |note| note.vocab as f64),
        ("temperature", |note| f64::from_bits(note.temperature)),
        ("softcap", |note| f64::from_bits(note.softcap)),
        ("whether entropies are computed", |note| (note.flags & 1) as f64),
    ];
    let Some(first) = notes.first() else { return Ok(()) };
    for (rank, note) in notes.iter().enumerate() {
        for (what, of) in SAME {
            let (given, expected) = (of(note), of(first));
            if given != expected {
                return Err(Error::RanksDisagree { what, rank, given, other: 0, expected });
            }
        }
    }
    let mut end = 0;
    for (rank, note) in notes.iter().enumerate() {
        if note.start != end {
            let what = "first column of the shard";
            let (given, expected) = (note.start as f64, end as f64);
            return Err(Error::RanksDisagree { what, rank, given, other: rank.saturating_sub(1), expected });
        }
        end = note.start + note.columns;
    }
    if end < first.vocab {
        let (rank, what) = (notes.len() - 1, "end of the shard");
        return Err(Error::RanksDisagree { what, rank, given: end as f64, other: 0, expected: first.vocab as f64 });
    }
    Ok(())
}
