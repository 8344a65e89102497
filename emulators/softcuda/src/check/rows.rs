//! Views: what threads of a team know of one another, in rows that those who know the same share.

use super::clock::members;
use super::known::BlockMap;

/// What a thread knows of the others.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Its own clock, which stands in place of its entry in the row.
    pub(super) clock: u32,
    /// The row of [`Rows`] with the clocks of the team's threads.
    pub(super) row: u32,
    /// The other teams.
    pub(super) far: BlockMap,
}

/// A table of shared, reference-counted rows of clocks, one clock per thread of the team.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) width: usize,
    pub(super) clocks: Vec<u32>,
    pub(super) references: Vec<u32>,
    pub(super) free: Vec<u32>,
}

/// The row of threads that know nothing. It is never written or freed.
pub(super) const NOTHING: u32 = 0;

impl Rows {
    pub(super) fn row(&self, row: u32) -> &[u32] {
        &self.clocks[row as usize * self.width..][..self.width]
    }

    pub(super) fn row_mut(&mut self, row: u32) -> &mut [u32] {
        &mut self.clocks[row as usize * self.width..][..self.width]
    }

    pub(super) fn give_back(&mut self, row: u32) {
        if row != NOTHING {
            self.references[row as usize] -= 1;
            if self.references[row as usize] == 0 {
                self.free.push(row);
            }
        }
    }

    pub(super) fn retain(&mut self, row: u32) {
        if row != NOTHING {
            self.references[row as usize] += 1;
        }
    }

    /// A copy with this many references.
    pub(super) fn copy(&mut self, row: u32, references: u32) -> u32 {
        let copy = self.free.pop().unwrap_or_else(|| {
            self.clocks.resize(self.clocks.len() + self.width, 0);
            self.references.push(0);
            self.references.len() as u32 - 1
        });
        let from = row as usize * self.width;
        self.clocks.copy_within(from..from + self.width, copy as usize * self.width);
        self.references[copy as usize] = references;
        copy
    }

    /// Takes into `row` the later clocks of `other`.
    pub(super) fn learn(&mut self, row: u32, other: u32) {
        let (row, other) = (row as usize * self.width, other as usize * self.width);
        for index in 0..self.width {
            self.clocks[row + index] = self.clocks[row + index].max(self.clocks[other + index]);
        }
    }
}

/// Makes one view of several: all members share a row afterwards, which holds their own clocks too.
pub(super) fn merge<T>(
    threads: &mut [T],
    rows: &mut Rows,
    groups: &[(usize, u32)],
    view: impl Fn(&mut T) -> &mut View + Copy,
) {
    let Some(first) = members(groups).next() else { return };
    let View { row: shared, mut far, .. } = view(&mut threads[first]).clone();
    let (mut count, mut is_one_row, mut is_one_far, mut is_done) = (0, true, true, true);
    for thread in members(groups) {
        let View { clock, row, far: theirs } = view(&mut threads[thread]);
        count += 1;
        is_one_row &= *row == shared;
        is_one_far &= theirs.is_same(&far);
        is_done &= rows.row(shared)[thread] >= *clock;
    }
    if is_one_row && is_one_far && is_done {
        return;
    }
    if !is_one_far {
        for thread in members(groups) {
            let theirs = &view(&mut threads[thread]).far;
            if !theirs.is_same(&far) {
                far.learn(theirs);
            }
        }
    }
    let mut target = shared;
    if !is_one_row || shared == NOTHING || rows.references[shared as usize] != count {
        target = rows.copy(shared, count);
        let mut merged = vec![shared];
        for thread in members(groups) {
            let row = view(&mut threads[thread]).row;
            // Threads of a warp mostly share a row: the last one is the likely one.
            if merged.last() != Some(&row) && !merged.contains(&row) {
                merged.push(row);
                rows.learn(target, row);
            }
        }
        for thread in members(groups) {
            let view = view(&mut threads[thread]);
            rows.give_back(view.row);
            view.row = target;
        }
    }
    for thread in members(groups) {
        let view = view(&mut threads[thread]);
        let entry = &mut rows.row_mut(target)[thread];
        *entry = (*entry).max(view.clock);
        if !is_one_far {
            view.far = far.clone();
        }
    }
}
