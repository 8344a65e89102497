//! Accesses as the race state keeps and compares them.

use super::clock::Epoch;
use super::shadow::{Cell, Side};
use crate::machine::memory::{Earlier, Who};
use crate::settings::Checks;

/// The scope of a strong access ([`MemoryScope`], `.sys` as `.gpu`); 0: weak.
///
/// [`MemoryScope`]: super::scope::MemoryScope
pub(super) const SCOPE: u32 = 3 << SCOPE_SHIFT;
pub(super) const SCOPE_SHIFT: u32 = 30;
pub(super) const WROTE: u32 = 1 << 29;
/// A strong read that has read the word's last write, which nothing else orders before it.
pub(super) const SAW: u32 = 1 << 28;
/// A write by compare-and-swap.
pub(super) const SWAPPED: u32 = 1 << 27;
pub(super) const INSTRUCTION: u32 = SWAPPED - 1;
/// Accesses that differ in none of these are the same to everybody else.
pub(super) const KIND: u32 = SCOPE | WROTE;

/// Accesses of lanes of one warp, all with the same clock, kind and instruction.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Entry {
    /// Of the warp's first thread.
    pub(super) epoch: Epoch,
    pub(super) lanes: u32,
    /// Instruction index and the bits from [`SCOPE`] to [`SWAPPED`].
    pub(super) word: u32,
}

impl Entry {
    pub(super) fn wrote(self) -> bool {
        self.word & WROTE != 0
    }

    pub(super) fn saw(self) -> bool {
        self.word & SAW != 0
    }
}

/// The one who accesses, prepared for many cells.
#[derive(Clone, Copy, Debug)]
pub struct Accessor<'a> {
    who: &'a Who<'a>,
    checks: &'a Checks,
    pub(super) epoch: Epoch,
    pub(super) warp: Epoch,
    pub(super) bit: u32,
    /// Instruction index and [`SCOPE`].
    pub(super) word: u32,
    pub(super) limit: usize,
    /// An atomic: it reads the last write in order to replace it.
    pub(super) observes: bool,
    pub(super) is_same_value: bool,
}

impl<'a> Accessor<'a> {
    /// `limit`: the most entries of a cell.
    #[inline]
    pub fn new(who: &'a Who<'a>, checks: &'a Checks, limit: usize) -> Self {
        let epoch = who.clocks.epoch(who.thread);
        let scope = who.scope.map_or(0, |scope| (scope as u32).min(3));
        let word = (who.instruction & INSTRUCTION) | scope << SCOPE_SHIFT;
        let (warp, bit) = (epoch.of_warp(), 1 << epoch.lane());
        Self { who, checks, epoch, warp, bit, word, limit, observes: false, is_same_value: false }
    }

    /// The same by an atomic operation that writes.
    #[must_use]
    pub fn observing(self) -> Self {
        Self { observes: true, ..self }
    }

    /// The same, writing bytes that are there already. Lanes of one warp that store one value to one address with one
    /// instruction have a defined outcome, and kernels rely on it; any other two writes that nothing orders are a race,
    /// equal values or not, unless the settings say otherwise.
    #[must_use]
    pub fn with_same_value(self) -> Self {
        Self { is_same_value: true, ..self }
    }

    /// Whether it may matter to the conflict with an earlier access that the bytes stay as they are.
    pub fn may_excuse_same_value(&self, earlier: &Earlier) -> bool {
        earlier.wrote && (!self.checks.equal_stores || self.is_same_instruction(earlier))
    }

    /// Whether the refused write and the earlier one are one instruction of one warp.
    fn is_same_instruction(&self, earlier: &Earlier) -> bool {
        earlier.wrote
            && earlier.block == self.epoch.block()
            && earlier.thread / 32 == self.epoch.thread() / 32
            && earlier.instruction == self.word & INSTRUCTION
    }

    /// Whether the settings or equal bytes let a conflict pass.
    pub(super) fn excuses(&self, earlier: &Earlier) -> bool {
        self.is_same_value && self.may_excuse_same_value(earlier)
            || earlier.is_plain_read_of_swapped && !self.checks.compare_and_swap_reads
    }

    pub(super) fn scope(&self) -> u32 {
        self.word & SCOPE
    }

    #[inline]
    pub(super) fn has_seen(&self, epoch: Epoch) -> bool {
        self.epoch.is_same_thread(epoch) || self.who.clocks.has_seen(self.who.thread, epoch)
    }

    #[inline]
    pub(super) fn first_unseen(&self, entry: Entry) -> Option<u32> {
        self.who.clocks.first_unseen(self.who.thread, entry.epoch, entry.lanes)
    }

    /// Whether both are strong with scopes that hold each other's thread. `word`: the other's.
    #[inline]
    pub(super) fn is_morally_strong(&self, epoch: Epoch, word: u32) -> bool {
        match self.scope().min(word & SCOPE) >> SCOPE_SHIFT {
            0 => false,
            3 => true,
            narrower => narrower >= self.who.clocks.scope_with(self.who.thread, epoch.block()) as u32,
        }
    }

    /// An earlier access that conflicts. `word`: with [`WROTE`] if it wrote.
    pub(super) fn earlier<const WRITES: bool>(&self, epoch: Epoch, lane: u32, word: u32) -> Earlier {
        // One of the two wrote; a weak read is met by a write of the other.
        let plain_read = if WRITES { word & KIND == 0 } else { self.scope() == 0 };
        let swapped = if WRITES { self.who.compare_and_swap } else { word & SWAPPED != 0 };
        Earlier {
            wrote: word & WROTE != 0,
            block: epoch.block(),
            thread: epoch.thread() + lane,
            instruction: word & INSTRUCTION,
            is_plain_read_of_swapped: plain_read && swapped,
        }
    }

    /// The last write, if it conflicts with an access of ours: it is not ordered before it, and not morally strong.
    #[cold]
    pub(super) fn conflict_with_write<const WRITES: bool>(&self, cell: &Cell, side: &Side) -> Option<Earlier> {
        let earlier = self.earlier::<WRITES>(cell.write, 0, cell.write_word | WROTE);
        let is_observed =
            || std::iter::once(&cell.entry).chain(side.list(cell)).any(|entry| self.follows_observer(entry));
        (!self.excuses(&earlier) && !is_observed()).then_some(earlier)
    }

    /// Whether the entry has read the last write and is ordered before us.
    pub(super) fn follows_observer(&self, entry: &Entry) -> bool {
        let lanes = (0..32).filter(|lane| entry.lanes >> lane & 1 == 1);
        entry.saw() && lanes.map(|lane| entry.epoch.of_lane(lane)).any(|observer| self.has_seen(observer))
    }

    /// Whether nothing needs to be kept of the last write when ours takes its place. `is_concurrent`: it is morally strong
    /// and nothing orders it before us, unless we observe it.
    #[inline]
    pub(super) fn supersedes_write(&self, cell: &Cell, is_concurrent: bool) -> bool {
        self.scope() == 0
            || cell.write.is_none()
            || self.observes && self.is_morally_strong(cell.write, cell.write_word)
            || !is_concurrent && cell.write_word & SCOPE >= self.scope()
    }

    /// The entry of this access; `saw`: [`SAW`] or 0.
    pub(super) fn own_entry(&self, saw: u32) -> Entry {
        Entry { epoch: self.warp, lanes: self.bit, word: self.word | saw }
    }

    /// What a cell keeps of this write.
    pub(super) fn write_word(&self) -> u32 {
        self.word | if self.who.compare_and_swap { SWAPPED } else { 0 }
    }
}
