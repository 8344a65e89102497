//! What ranks must agree about before they exchange anything whose size depends on it.

use crate::backend::Backend;
use crate::data::batch::Batch;
use crate::error::{Error, Result};
use crate::options::{LogRatio, LogitOptions, LossOptions, Reduction};
use crate::ranks::Communicator;
use bytemuck::{Pod, Zeroable};

/// Bytes of a reason: longer ones are cut.
const REASON: usize = 128;

/// What ranks divide among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Divided {
    /// The columns of the same rows.
    Vocab,
    /// The rows of the same sequences.
    Rows,
    /// Sequences and groups.
    Groups,
}

/// Which call: ranks make the same ones in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    TokenLogProbs = 1,
    FromLogits,
    FromHidden,
    HiddenGradient,
}

/// Settings of a call, in the order of [`SETTINGS`].
type Settings = [f64; SETTINGS.len()];

/// All ranks have the same.
const SETTINGS: [&str; 15] = [
    "call",
    "temperature",
    "softcap",
    "whether entropies are computed",
    "log-ratio (0: sum, 1: mean)",
    "reduction (0: mean, 1: sum, 2: normalizer)",
    "normalizer",
    "target of the objective",
    "beta_r, or label smoothing",
    "divergence of the objective",
    "alpha",
    "beta_pi",
    "reference (0: none, 1: per token, 2: per sequence)",
    "whether there are proposal offsets",
    "hidden size",
];

/// What a rank says of its call: for engines to copy.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Note {
    settings: Settings,
    rows: u64,
    /// At most so many, of hidden states; else 0.
    scored_rows: u64,
    /// Of all ranks that have rows of the same sequences.
    rows_of_sequences: u64,
    start: u64,
    columns: u64,
    vocab: u64,
    sequences: u64,
    groups: u64,
    /// A hash of the sizes of the groups.
    group_sizes: u64,
    begins_open: u64,
    ends_open: u64,
    /// Whether the groups are others than in the call before.
    is_new: u64,
    /// Bytes of the reason; 0 if the call is not refused.
    refused: u64,
    /// Whether that is because an engine has failed.
    is_broken: u64,
    reason: [u8; REASON],
}

/// One rank's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreement {
    note: Note,
}

impl Agreement {
    pub(crate) fn new(call: Call, rows: usize, logits: &LogitOptions, columns: usize, entropy: bool) -> Self {
        let mut note = Note::zeroed();
        let shard = logits.shard_of(columns);
        (note.rows, note.rows_of_sequences) = (rows as u64, rows as u64);
        (note.start, note.columns, note.vocab) = (shard.start() as u64, columns as u64, shard.vocab() as u64);
        note.settings[..4].copy_from_slice(&[
            f64::from(call as u8),
            logits.temperature(),
            logits.softcap(),
            f64::from(u8::from(entropy)),
        ]);
        Self { note }
    }

    /// The same of a step of a loss. `reference`: 0, 1 or 2, as [`SETTINGS`] has it; size and
    /// number of hidden states.
    pub(crate) fn with_loss(
        mut self,
        options: &LossOptions,
        batch: &Batch,
        (reference, proposal, of_hidden): (u8, bool, (usize, usize)),
        is_new: bool,
    ) -> Self {
        let (reduction, normalizer) = match options.reduction {
            Reduction::Mean => (0.0, 0.0),
            Reduction::Sum => (1.0, 0.0),
            Reduction::Normalizer(normalizer) => (2.0, normalizer),
        };
        let [target, of_target, divergence, alpha, beta_policy] = options.objective.numbers();
        self.note.settings[4..].copy_from_slice(&[
            f64::from(u8::from(options.log_ratio == LogRatio::Mean)),
            reduction,
            normalizer,
            target,
            of_target,
            divergence,
            alpha,
            beta_policy,
            f64::from(reference),
            f64::from(u8::from(proposal)),
            of_hidden.0 as f64,
        ]);
        self.note.scored_rows = of_hidden.1 as u64;
        let (begins, ends) = batch.open_ends();
        (self.note.begins_open, self.note.ends_open) = (u64::from(begins), u64::from(ends));
        (self.note.sequences, self.note.groups) = (batch.sequences() as u64, batch.groups() as u64);
        self.note.group_sizes = hash(batch.group_offsets());
        self.note.is_new = u64::from(is_new);
        self
    }

    /// The rows of all ranks that have rows of the same sequences.
    pub(crate) fn set_rows_of_sequences(&mut self, rows: usize) {
        self.note.rows_of_sequences = rows as u64;
    }

    /// Agrees along one line alone. `checked`: whether this rank's call can be made.
    pub(crate) fn reach<B: Backend>(
        &self,
        divided: Divided,
        line: &(impl Communicator<B> + ?Sized),
        checked: Result<()>,
    ) -> Result<Option<Notes>> {
        let mut standing = Standing::from(checked);
        let notes = self.exchange(divided, line, &mut standing);
        standing.checked.map(|()| notes)
    }

    /// Exchanges notes along one line of ranks. What another rank refuses, what they disagree about, and an engine that fails become
    /// this rank's error, for the next line to be told.
    pub(crate) fn exchange<B: Backend>(
        &self,
        divided: Divided,
        line: &(impl Communicator<B> + ?Sized),
        standing: &mut Standing,
    ) -> Option<Notes> {
        let mut note = self.note;
        if let Err(error) = &standing.checked {
            let text = error.to_string();
            let length = text.len().min(REASON);
            note.reason[..length].copy_from_slice(&text.as_bytes()[..length]);
            note.refused = length as u64;
            note.is_broken = u64::from(standing.is_broken);
        }
        let found = line.exchange(bytemuck::cast_slice(&[note]));
        let found = found.map(|words| words.map(|words| notes_of(&words)));
        let is_broken = |notes: &Option<Vec<Note>>| notes.iter().flatten().any(|note| note.is_broken != 0);
        standing.is_broken |= found.as_ref().map_or(true, is_broken);
        let notes = found.and_then(|notes| notes.map(|notes| Notes::of(notes, divided, line.rank())).transpose());
        notes.unwrap_or_else(|error| {
            if standing.checked.is_ok() {
                standing.checked = Err(error);
            }
            None
        })
    }
}

/// How a rank stands before a call.
pub(crate) struct Standing {
    /// Whether the call can be made, as far as this rank knows.
    pub(crate) checked: Result<()>,
    /// Whether an engine has failed, so that not all ranks of a mesh know.
    pub(crate) is_broken: bool,
}

impl From<Result<()>> for Standing {
    fn from(checked: Result<()>) -> Self {
        Self { checked, is_broken: false }
    }
}

/// The notes of a line of ranks who all can make their calls, and agree.
#[derive(Debug)]
pub(crate) struct Notes(Vec<Note>);

impl Notes {
    fn of(notes: Vec<Note>, divided: Divided, own: usize) -> Result<Self> {
        let refused = notes.iter().enumerate().find(|(other, note)| *other != own && note.refused > 0);
        if let Some((rank, note)) = refused {
            let text = note.reason.get(..note.refused as usize).unwrap_or(&note.reason);
            return Err(Error::Rank { rank, reason: String::from_utf8_lossy(text).into_owned() });
        }
        check(&notes, divided)?;
        Ok(Self(notes))
    }

    /// The most columns that a rank holds.
    pub(crate) fn most_columns(&self) -> usize {
        self.0.iter().map(|note| note.columns as usize).max().unwrap_or(0)
    }

    /// Rows of the ranks before this one, and of all.
    pub(crate) fn rows(&self, rank: usize) -> (usize, usize) {
        let sum = |notes: &[Note]| notes.iter().map(|note| note.rows_of_sequences as usize).sum();
        (sum(self.0.get(..rank).unwrap_or_default()), sum(&self.0))
    }

    /// Whether any rank's groups are others than in the call before.
    pub(crate) fn are_new(&self) -> bool {
        self.0.iter().any(|note| note.is_new != 0)
    }

    /// The most groups that a rank has.
    pub(crate) fn most_groups(&self) -> usize {
        self.0.iter().map(|note| note.groups as usize).max().unwrap_or(0)
    }

    /// Groups of each rank, and whether the first of them is the rest of one of the rank before.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (usize, bool)> + '_ {
        self.0.iter().map(|note| (note.groups as usize, note.begins_open != 0))
    }
}

fn notes_of(words: &[u32]) -> Vec<Note> {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    bytes.chunks_exact(size_of::<Note>()).map(bytemuck::pod_read_unaligned).collect()
}

/// FNV-1a, to 52 bits: a number that f64 has.
fn hash(offsets: &[usize]) -> u64 {
    let bytes = offsets.iter().flat_map(|offset| (*offset as u64).to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3_u64));
    hash >> 12
}

/// What must be the same on all ranks, and what of one rank must follow from that of the rank before.
fn check(notes: &[Note], divided: Divided) -> Result<()> {
    type Of = fn(&Note) -> u64;
    const OF_VOCAB: &[(&str, Of)] = &[("rows", |note| note.rows), ("scored rows", |note| note.scored_rows)];
    const OF_SEQUENCES: &[(&str, Of)] = &[
        ("sequences", |note| note.sequences),
        ("groups", |note| note.groups),
        ("hash of the group sizes", |note| note.group_sizes),
        ("whether the first group began on another rank", |note| note.begins_open),
        ("whether the last group goes on on another rank", |note| note.ends_open),
    ];
    const ALL: &[(&str, Of)] = &[("vocabulary", |note| note.vocab)];
    let Some(first) = notes.first() else { return Ok(()) };
    let same = match divided {
        Divided::Vocab => [OF_VOCAB, ALL, OF_SEQUENCES],
        Divided::Rows => [ALL, OF_SEQUENCES, &[]],
        Divided::Groups => [ALL, &[], &[]],
    };
    let differ = |what, rank, given, expected| Err(Error::RanksDisagree { what, rank, given, other: 0, expected });
    for (rank, note) in notes.iter().enumerate() {
        for (what, of) in same.into_iter().flatten() {
            if of(note) != of(first) {
                return differ(what, rank, of(note) as f64, of(first) as f64);
            }
        }
        for ((what, given), expected) in SETTINGS.into_iter().zip(note.settings).zip(first.settings) {
            if given.to_bits() != expected.to_bits() {
                return differ(what, rank, given, expected);
            }
        }
    }
    match divided {
        Divided::Vocab => check_columns(notes, first.vocab),
        Divided::Rows => Ok(()),
        Divided::Groups => check_open_groups(notes),
    }
}

/// Each rank's columns follow those of the rank before.
fn check_columns(notes: &[Note], vocab: u64) -> Result<()> {
    let mut end = 0;
    for (rank, note) in notes.iter().enumerate() {
        if note.start != end {
            let what = "first column of the shard";
            let (given, expected) = (note.start as f64, end as f64);
            return Err(Error::RanksDisagree { what, rank, given, other: rank.saturating_sub(1), expected });
        }
        end = note.start + note.columns;
    }
    if end < vocab {
        let (rank, what) = (notes.len() - 1, "end of the shard");
        return Err(Error::RanksDisagree { what, rank, given: end as f64, other: 0, expected: vocab as f64 });
    }
    Ok(())
}

/// A group that goes on after a rank goes on on the next one.
fn check_open_groups(notes: &[Note]) -> Result<()> {
    let mut before = 0;
    // A rank without groups stands between none.
    for (rank, note) in notes.iter().enumerate().filter(|(_, note)| note.groups > 0) {
        if note.begins_open != before {
            let what = "whether the first group began on the rank before";
            let (given, expected) = (note.begins_open as f64, before as f64);
            return Err(Error::RanksDisagree { what, rank, given, other: rank.saturating_sub(1), expected });
        }
        before = note.ends_open;
    }
    if before != 0 {
        let (rank, what) = (notes.len() - 1, "whether the last group goes on on the next rank");
        return Err(Error::RanksDisagree { what, rank, given: 1.0, other: rank, expected: 0.0 });
    }
    Ok(())
}
