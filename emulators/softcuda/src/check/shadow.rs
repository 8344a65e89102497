//! The race state of memory: who wrote each byte last, and who accessed it since without being ordered before later
//! accesses.
//!
//! There is one [`Cell`] per 4-byte word, split into four cells, one per byte, when an access covers only part of the
//! word; a write of the whole word that supersedes everything collapses them. A cell keeps the last write exactly, and
//! *entries*: earlier accesses of lanes of one warp with one clock. An access conflicts with a kept one if one of the
//! two wrote, one of the two is weak, and clocks do not order them. Since reads are kept as well as writes, a race is
//! found whichever of its accesses ran first.
//!
//! Strong accesses (atomic, volatile, relaxed, acquire, release, mbarrier) whose scopes hold each other's thread are
//! *morally strong*: they do not conflict, and do not order each other either. So a strong write that follows unordered
//! strong accesses keeps them as entries: a weak access may come that is ordered behind the last of them only.
//!
//! An access supersedes an earlier one of its own thread, or one that is ordered before it, if whatever conflicts with
//! the earlier one conflicts with it as well: its scope is no wider (a weak one has none), it writes or the earlier did
//! not.
//!
//! A write that was *observed* is ordered before what follows its observer (PTX ISA, "Causality Order", second clause):
//! the block that draws the last ticket may reset the counter with a plain store. An atomic that reads the last write
//! takes its place: whoever is ordered behind the atomic is ordered behind that write, and whoever is not conflicts with
//! the atomic (not if their scopes hold each other and not that write's: such a race is missed). A strong load that
//! reads it is kept with a mark (`SAW`) until the next write. What an observed write has superseded counts as observed
//! with it, which the manual does not say: the value is gone.
//!
//! Shared memory keeps all entries. Global memory keeps at most [`GLOBAL_ENTRIES`] per cell, of different blocks before
//! of the same block. A race is missed there only if more than that many warps access the word, unordered among each
//! other, and the conflicting access that follows is ordered behind all that were kept and not behind one that was left
//! out.

pub use super::accessor::Accessor;
use super::accessor::{Entry, KIND, SAW, SCOPE, WROTE};
use super::clock::Epoch;
use crate::machine::memory::Earlier;

/// The most entries of a cell of global memory.
pub const GLOBAL_ENTRIES: usize = 4;

const SPLIT: u32 = 1 << 31;

/// The race state of a word, or of a byte. All zeros: never accessed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Cell {
    pub(super) write: Epoch,
    /// Instruction index, [`SCOPE`], [`SWAPPED`].
    pub(super) write_word: u32,
    /// 0; or the list of further entries, plus 1; or [`SPLIT`] with the index of four cells, and then nothing else here
    /// counts.
    more: u32,
    pub(super) entry: Entry,
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

    pub(super) fn list(&self, cell: &Cell) -> &[Entry] {
        if cell.more == 0 { &[] } else { &self.lists[cell.more as usize - 1] }
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

/// A store that was refused, word by word: where it changes nothing (`same`, of a range of its bytes), equal bytes may
/// excuse it.
///
/// # Errors
/// The first conflict that stays, and whether the bytes of its word stay as they are.
#[cold]
pub fn store_again(
    cells: &mut [Cell],
    start: usize,
    bytes: usize,
    side: &mut Side,
    accessor: &Accessor,
    (byte, earlier): Conflict,
    same: &dyn Fn(std::ops::Range<usize>) -> bool,
) -> Result<(), (usize, bool, Earlier)> {
    let of_word = |byte: usize| (byte / 4 * 4).max(start)..(byte / 4 * 4 + 4).min(start + bytes);
    let is_same = |word: std::ops::Range<usize>| same(word.start - start..word.end - start);
    if !accessor.may_excuse_same_value(&earlier) {
        return Err((byte, is_same(of_word(byte)), earlier));
    }
    let mut at = start;
    while at < start + bytes {
        let word = of_word(at);
        let is_same = is_same(word.clone());
        let accessor = if is_same { accessor.with_same_value() } else { *accessor };
        access::<true>(cells, word.start, word.len(), side, &accessor)
            .map_err(|(byte, earlier)| (byte, is_same, earlier))?;
        at = word.end;
    }
    Ok(())
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
    *cell = Cell { write: accessor.epoch, write_word: accessor.write_word(), ..Cell::default() };
}

/// An access to all that one cell stands for.
#[inline]
fn one<const WRITES: bool>(cell: &mut Cell, side: &mut Side, accessor: &Accessor) -> Result<(), Earlier> {
    // Whether the last write is a strong one that does not conflict, and that only its being read orders before us.
    let mut is_concurrent = false;
    if !cell.write.is_none() && !accessor.has_seen(cell.write) {
        is_concurrent = accessor.is_morally_strong(cell.write, cell.write_word);
        if !is_concurrent && let Some(earlier) = accessor.conflict_with_write::<WRITES>(cell, side) {
            return Err(earlier);
        }
    }
    let saw = if is_concurrent && !WRITES { SAW } else { 0 };
    let has_entries = cell.entry.lanes != 0 || cell.more != 0;
    if WRITES {
        if !has_entries && accessor.supersedes_write(cell, is_concurrent) {
            cell.write = accessor.epoch;
            cell.write_word = accessor.write_word();
            return Ok(());
        }
    } else if !has_entries {
        cell.entry = accessor.own_entry(saw);
        return Ok(());
    } else if cell.more == 0 && cell.entry.epoch == accessor.warp && (cell.entry.word ^ accessor.word) & KIND == 0 {
        if cell.entry.lanes & accessor.bit != 0 && (cell.entry.word & SAW) >= saw {
            return Ok(());
        }
        if cell.entry.word == accessor.word | saw {
            cell.entry.lanes |= accessor.bit;
            return Ok(());
        }
    }
    settle::<WRITES>(cell, side, accessor, is_concurrent)
}

/// The general case: every entry is looked at, and kept unless it is superseded.
fn settle<const WRITES: bool>(
    cell: &mut Cell,
    side: &mut Side,
    accessor: &Accessor,
    is_concurrent: bool,
) -> Result<(), Earlier> {
    let mut entries = std::mem::take(&mut side.scratch);
    entries.clear();
    if cell.entry.lanes != 0 {
        entries.push(cell.entry);
    }
    entries.extend_from_slice(side.list(cell));
    let result = update::<WRITES>(&mut entries, cell, accessor, is_concurrent);
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

fn update<const WRITES: bool>(
    entries: &mut Vec<Entry>,
    cell: &mut Cell,
    accessor: &Accessor,
    is_concurrent: bool,
) -> Result<(), Earlier> {
    // Whoever is ordered behind one that saw the last write need not be noted as having seen it.
    let notes_write = !WRITES && is_concurrent && !entries.iter().any(|entry| accessor.follows_observer(entry));
    let saw = if notes_write { SAW } else { 0 };
    // A concurrent write that somebody has seen is spoken for by what that one did.
    let is_spoken_for = is_concurrent && entries.iter().any(|entry| entry.saw());
    let mut conflict = None;
    let is_superseding =
        |entry: &Entry| entry.word & SCOPE >= accessor.scope() && (WRITES || !entry.wrote() && !entry.saw());
    let says_as_much = |entry: &Entry| {
        !WRITES && entry.epoch == accessor.warp && (entry.word ^ accessor.word) & KIND == 0 && (entry.word & SAW) >= saw
    };
    // An entry of our own lane with our clock says all that another one could.
    let mut is_entered = false;
    entries.retain_mut(|entry| {
        if conflict.is_some() {
            return true;
        }
        let Some(lane) = accessor.first_unseen(*entry) else {
            let is_own = entry.lanes == accessor.bit && says_as_much(entry);
            is_entered |= is_own;
            return is_own || !is_superseding(entry);
        };
        let is_conflict = (WRITES || entry.wrote()) && !accessor.is_morally_strong(entry.epoch, entry.word);
        if is_conflict {
            let earlier = accessor.earlier::<WRITES>(entry.epoch, lane, entry.word);
            if !accessor.excuses(&earlier) {
                conflict = Some(earlier);
                return true;
            }
        }
        if entry.epoch.is_same_warp(accessor.warp) && entry.lanes & accessor.bit != 0 {
            if says_as_much(entry) {
                is_entered = true;
            } else if is_superseding(entry) {
                entry.lanes &= !accessor.bit;
            }
        }
        entry.lanes != 0
    });
    if let Some(earlier) = conflict {
        return Err(earlier);
    }
    if WRITES {
        for entry in entries.iter_mut() {
            entry.word &= !SAW;
        }
        if !accessor.supersedes_write(cell, is_concurrent) && !is_spoken_for {
            let lanes = 1 << cell.write.lane();
            enter(entries, Entry { epoch: cell.write.of_warp(), lanes, word: cell.write_word | WROTE }, accessor.limit);
        }
        cell.write = accessor.epoch;
        cell.write_word = accessor.write_word();
    } else if !is_entered {
        enter(entries, accessor.own_entry(saw), accessor.limit);
    }
    Ok(())
}

/// Adds an entry, to one that differs in the lanes only if there is one.
fn enter(entries: &mut Vec<Entry>, new: Entry, limit: usize) {
    if let Some(entry) = entries.iter_mut().find(|entry| entry.epoch == new.epoch && entry.word == new.word) {
        entry.lanes |= new.lanes;
        return;
    }
    // Without one that saw the last write, a race would be reported that is none: those stay.
    if !new.saw() && entries.iter().filter(|entry| !entry.saw()).count() >= limit {
        let block = |entry: &Entry| entry.epoch.block();
        let has_twin = |index: usize| {
            let mine = block(&entries[index]);
            !entries[index].saw()
                && (mine == block(&new) || entries[index + 1..].iter().any(|other| block(other) == mine))
        };
        // The oldest of a block that has a younger one; with all of different blocks the new one is left out.
        match (0..entries.len()).find(|&index| has_twin(index)) {
            Some(index) => entries.remove(index),
            None => return,
        };
    }
    entries.push(new);
}
