//! The race state of memory: who wrote each byte last, and who accessed it since without being ordered before later
//! accesses.
//!
//! There is one [`Cell`] per 4-byte word, split into four cells, one per byte, when an access covers only part of the
//! word; a write of the whole word that supersedes everything collapses them. A cell keeps the last write exactly, and
//! *entries*: earlier accesses of lanes of one warp with one clock. An access conflicts with a kept one if one of the
//! two wrote, one of the two is weak, and clocks do not order them. Since reads are kept as well as writes, a race is
//! found whichever of its accesses ran first.
//!
//! Strong accesses (atomic, volatile, relaxed, acquire, release, mbarrier) do not conflict with each other, and do not
//! order each other either. So a strong write that follows unordered strong accesses keeps them as entries: a weak
//! access may come that is ordered behind the last of them only.
//!
//! An access supersedes an earlier one of its own thread, or one that is ordered before it, if whatever conflicts with
//! the earlier one conflicts with it as well: it is weak or the earlier is strong, it writes or the earlier did not.
//!
//! Shared memory keeps all entries. Global memory keeps at most [`GLOBAL_ENTRIES`] per cell, of different blocks before
//! of the same block. A race is missed there only if more than that many warps access the word, unordered among each
//! other, and the conflicting access that follows is ordered behind all that were kept and not behind one that was left
//! out.

use super::clock::Epoch;
use crate::machine::memory::{Earlier, Who};

/// The most entries of a cell of global memory.
pub const GLOBAL_ENTRIES: usize = 4;

const STRONG: u32 = 1 << 31;
const WROTE: u32 = 1 << 30;
const INSTRUCTION: u32 = WROTE - 1;
const SPLIT: u32 = 1 << 31;

/// Accesses of lanes of one warp, all with the same clock, kind and instruction.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Entry {
    /// Of the warp's first thread.
    epoch: Epoch,
    lanes: u32,
    /// Instruction index, [`STRONG`], [`WROTE`].
    word: u32,
}

impl Entry {
    fn is_strong(self) -> bool {
        self.word & STRONG != 0
    }

    fn wrote(self) -> bool {
        self.word & WROTE != 0
    }

    fn earlier(self, lane: u32) -> Earlier {
        let (block, thread) = (self.epoch.block(), self.epoch.thread() + lane);
        Earlier { wrote: self.wrote(), block, thread, instruction: self.word & INSTRUCTION }
    }
}

/// The race state of a word, or of a byte. All zeros: never accessed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Cell {
    write: Epoch,
    /// Instruction index and [`STRONG`].
    write_word: u32,
    /// 0; or the list of further entries, plus 1; or [`SPLIT`] with the index of four cells, and then nothing else here
    /// counts.
    more: u32,
    entry: Entry,
}

/// What cells of one region need beyond their fixed size.
#[derive(Debug, Default)]
pub struct Side {
    lists: Vec<Vec<Entry>>,
    free_lists: Vec<u32>,
    splits: Vec<[Cell; 4]>,
    free_splits: Vec<u32>,
    scratch: Vec<Entry>,
}

impl Side {
    /// Forgets everything, keeps the storage.
    pub fn clear(&mut self) {
        self.lists.clear();
        self.free_lists.clear();
        self.splits.clear();
        self.free_splits.clear();
    }

    fn new_list(&mut self) -> u32 {
        self.free_lists.pop().unwrap_or_else(|| {
            self.lists.push(Vec::new());
            self.lists.len() as u32 - 1
        })
    }

    fn drop_list(&mut self, cell: &mut Cell) {
        if cell.more != 0 {
            self.lists[cell.more as usize - 1].clear();
            self.free_lists.push(cell.more - 1);
            cell.more = 0;
        }
    }

    fn list(&self, cell: &Cell) -> &[Entry] {
        if cell.more == 0 { &[] } else { &self.lists[cell.more as usize - 1] }
    }
}

/// The one who accesses, prepared for many cells.
#[derive(Clone, Copy, Debug)]
pub struct Accessor<'a> {
    who: &'a Who<'a>,
    epoch: Epoch,
    warp: Epoch,
    bit: u32,
    /// Instruction index and [`STRONG`].
    word: u32,
    limit: usize,
    is_same_value: bool,
}

impl<'a> Accessor<'a> {
    /// `limit`: the most entries of a cell.
    #[inline]
    pub fn new(who: &'a Who<'a>, limit: usize) -> Self {
        let epoch = who.clocks.epoch(who.thread);
        let word = (who.instruction & INSTRUCTION) | if who.strong { STRONG } else { 0 };
        Self { who, epoch, warp: epoch.of_warp(), bit: 1 << epoch.lane(), word, limit, is_same_value: false }
    }

    /// The same, writing what lanes of its warp have just written with the same instruction. Lanes of one warp that
    /// store one value to one address have a defined outcome, and kernels rely on it; any other two writes that nothing
    /// orders are a race, equal values or not.
    #[must_use]
    pub fn with_same_value(self) -> Self {
        Self { is_same_value: true, ..self }
    }

    /// Whether the refused write and the earlier one are one instruction of one warp.
    pub fn is_same_instruction(&self, earlier: &Earlier) -> bool {
        earlier.wrote
            && earlier.block == self.epoch.block()
            && earlier.thread / 32 == self.epoch.thread() / 32
            && earlier.instruction == self.word & INSTRUCTION
    }

    fn is_strong(&self) -> bool {
        self.word & STRONG != 0
    }

    #[inline]
    fn has_seen(&self, epoch: Epoch) -> bool {
        self.epoch.is_same_thread(epoch) || self.who.clocks.has_seen(self.who.thread, epoch)
    }

    #[inline]
    fn first_unseen(&self, entry: Entry) -> Option<u32> {
        self.who.clocks.first_unseen(self.who.thread, entry.epoch, entry.lanes)
    }

    /// The last write, if it conflicts with an access of ours.
    #[inline]
    fn conflict_with_write(&self, cell: &Cell) -> Option<Earlier> {
        if cell.write.is_none() || self.has_seen(cell.write) || self.word & cell.write_word & STRONG != 0 {
            return None;
        }
        let earlier = Earlier {
            wrote: true,
            block: cell.write.block(),
            thread: cell.write.thread(),
            instruction: cell.write_word & INSTRUCTION,
        };
        (!(self.is_same_value && self.is_same_instruction(&earlier))).then_some(earlier)
    }

    fn own_entry(&self, wrote: bool) -> Entry {
        Entry { epoch: self.warp, lanes: self.bit, word: self.word | if wrote { WROTE } else { 0 } }
    }
}

/// A conflict: the offset of its first byte in the cells given, and the earlier access.
pub type Conflict = (usize, Earlier);

/// An access to bytes `start..start + bytes`, counted from the first of `cells`; checks and remembers it.
///
/// # Errors
/// The first conflict. Cells before it have taken the access.
#[inline]
pub fn access<const WRITES: bool>(
    cells: &mut [Cell],
    start: usize,
    bytes: usize,
    side: &mut Side,
    accessor: &Accessor,
) -> Result<(), Conflict> {
    for_words(cells, start, bytes, |cell, mask| {
        if cell.more & SPLIT != 0 || mask != 15 {
            return parts::<WRITES>(cell, mask, side, accessor);
        }
        one::<WRITES>(cell, side, accessor).map_err(|earlier| (0, earlier))
    })
}

/// Calls for each word with the mask of the bytes that are accessed.
#[inline]
fn for_words(
    cells: &mut [Cell],
    start: usize,
    bytes: usize,
    mut word: impl FnMut(&mut Cell, u32) -> Result<(), Conflict>,
) -> Result<(), Conflict> {
    let (mut at, end) = (start, start + bytes);
    while at < end {
        let (index, first) = (at / 4, at % 4);
        let count = (4 - first).min(end - at);
        let mask = ((1 << count) - 1) << first;
        word(&mut cells[index], mask).map_err(|(byte, earlier)| (index * 4 + byte.max(first), earlier))?;
        at += count;
    }
    Ok(())
}

/// Part of a word, or a word that is split.
#[cold]
fn parts<const WRITES: bool>(cell: &mut Cell, mask: u32, side: &mut Side, accessor: &Accessor) -> Result<(), Conflict> {
    if cell.more & SPLIT == 0 {
        split(cell, side);
    }
    let index = (cell.more & !SPLIT) as usize;
    let mut four = side.splits[index];
    let result = (0..4)
        .filter(|byte| mask >> byte & 1 != 0)
        .try_for_each(|byte| one::<WRITES>(&mut four[byte], side, accessor).map_err(|earlier| (byte, earlier)));
    side.splits[index] = four;
    let is_superseded = |part: &Cell| part.more == 0 && part.entry.lanes == 0;
    if WRITES && result.is_ok() && mask == 15 && four.iter().all(is_superseded) {
        collapse(cell, side, accessor);
    }
    result
}

fn split(cell: &mut Cell, side: &mut Side) {
    let mut four = [*cell; 4];
    if cell.more != 0 {
        for part in &mut four[1..] {
            let list = side.new_list();
            side.lists[list as usize] = side.list(cell).to_vec();
            part.more = list + 1;
        }
    }
    let index = side.free_splits.pop().unwrap_or_else(|| {
        side.splits.push([Cell::default(); 4]);
        side.splits.len() as u32 - 1
    });
    side.splits[index as usize] = four;
    *cell = Cell { more: SPLIT | index, ..Cell::default() };
}

/// Makes one cell of four that hold nothing but the same last write.
fn collapse(cell: &mut Cell, side: &mut Side, accessor: &Accessor) {
    side.free_splits.push(cell.more & !SPLIT);
    *cell = Cell { write: accessor.epoch, write_word: accessor.word, ..Cell::default() };
}

/// An access to all that one cell stands for.
#[inline]
fn one<const WRITES: bool>(cell: &mut Cell, side: &mut Side, accessor: &Accessor) -> Result<(), Earlier> {
    if let Some(earlier) = accessor.conflict_with_write(cell) {
        return Err(earlier);
    }
    let has_entries = cell.entry.lanes != 0 || cell.more != 0;
    if WRITES {
        let is_write_superseded = cell.write.is_none()
            || !accessor.is_strong()
            || (cell.write_word & STRONG != 0 && accessor.has_seen(cell.write));
        if !has_entries && is_write_superseded {
            cell.write = accessor.epoch;
            cell.write_word = accessor.word;
            return Ok(());
        }
    } else if !has_entries {
        cell.entry = accessor.own_entry(false);
        return Ok(());
    } else if cell.more == 0
        && cell.entry.epoch == accessor.warp
        && (cell.entry.word ^ accessor.word) & (STRONG | WROTE) == 0
    {
        if cell.entry.lanes & accessor.bit != 0 {
            return Ok(());
        }
        if cell.entry.word == accessor.word {
            cell.entry.lanes |= accessor.bit;
            return Ok(());
        }
    }
    settle::<WRITES>(cell, side, accessor)
}

/// The general case: every entry is looked at, and kept unless it is superseded.
fn settle<const WRITES: bool>(cell: &mut Cell, side: &mut Side, accessor: &Accessor) -> Result<(), Earlier> {
    let mut entries = std::mem::take(&mut side.scratch);
    entries.clear();
    if cell.entry.lanes != 0 {
        entries.push(cell.entry);
    }
    entries.extend_from_slice(side.list(cell));
    let result = update::<WRITES>(&mut entries, cell, accessor);
    if result.is_ok() {
        let (first, rest) = entries.split_first().map_or((Entry::default(), &[][..]), |(first, rest)| (*first, rest));
        cell.entry = first;
        if rest.is_empty() {
            side.drop_list(cell);
        } else {
            if cell.more == 0 {
                cell.more = side.new_list() + 1;
            }
            let list = &mut side.lists[cell.more as usize - 1];
            list.clear();
            list.extend_from_slice(rest);
        }
    }
    side.scratch = entries;
    result
}

fn update<const WRITES: bool>(entries: &mut Vec<Entry>, cell: &mut Cell, accessor: &Accessor) -> Result<(), Earlier> {
    let mut conflict = None;
    let is_superseding = |entry: &Entry| (entry.is_strong() || !accessor.is_strong()) && (WRITES || !entry.wrote());
    // An entry of our own lane with our clock says all that another one could.
    let mut is_entered = false;
    entries.retain_mut(|entry| {
        if conflict.is_some() {
            return true;
        }
        let Some(lane) = accessor.first_unseen(*entry) else {
            let is_own = !WRITES
                && entry.epoch == accessor.warp
                && entry.lanes == accessor.bit
                && (entry.word ^ accessor.word) & (STRONG | WROTE) == 0;
            is_entered |= is_own;
            return is_own || !is_superseding(entry);
        };
        let is_conflict = (WRITES || entry.wrote()) && !(accessor.is_strong() && entry.is_strong());
        if is_conflict {
            let earlier = entry.earlier(lane);
            if !(WRITES && accessor.is_same_value && accessor.is_same_instruction(&earlier)) {
                conflict = Some(earlier);
                return true;
            }
        }
        if entry.epoch.is_same_warp(accessor.warp) && entry.lanes & accessor.bit != 0 && is_superseding(entry) {
            if !WRITES && entry.epoch == accessor.warp && (entry.word ^ accessor.word) & (STRONG | WROTE) == 0 {
                is_entered = true;
            } else {
                entry.lanes &= !accessor.bit;
            }
        }
        entry.lanes != 0
    });
    if let Some(earlier) = conflict {
        return Err(earlier);
    }
    if WRITES {
        let is_strong = cell.write_word & STRONG != 0;
        let is_superseded = accessor.has_seen(cell.write) && (is_strong || !accessor.is_strong());
        if !cell.write.is_none() && !is_superseded && accessor.is_strong() {
            let lanes = 1 << cell.write.lane();
            enter(entries, Entry { epoch: cell.write.of_warp(), lanes, word: cell.write_word | WROTE }, accessor.limit);
        }
        cell.write = accessor.epoch;
        cell.write_word = accessor.word;
    } else if !is_entered {
        enter(entries, accessor.own_entry(false), accessor.limit);
    }
    Ok(())
}

/// Adds an entry, to one that differs in the lanes only if there is one.
fn enter(entries: &mut Vec<Entry>, new: Entry, limit: usize) {
    if let Some(entry) = entries.iter_mut().find(|entry| entry.epoch == new.epoch && entry.word == new.word) {
        entry.lanes |= new.lanes;
        return;
    }
    if entries.len() >= limit {
        let block = |entry: &Entry| entry.epoch.block();
        let has_twin = |index: usize| {
            let mine = block(&entries[index]);
            mine == block(&new) || entries[index + 1..].iter().any(|other| block(other) == mine)
        };
        // The oldest of a block that has a younger one; with all of different blocks the new one is left out.
        match (0..entries.len()).find(|&index| has_twin(index)) {
            Some(index) => entries.remove(index),
            None => return,
        };
    }
    entries.push(new);
}
