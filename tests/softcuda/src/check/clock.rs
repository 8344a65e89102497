//! Happens-before between threads, by vector clocks.
//!
//! Every thread has a clock that starts at 1 and advances whenever others may learn of what it did: at barriers, fences
//! and releases. An access is stamped with its thread's *epoch* (block, thread, clock). Each thread has a view of all
//! others: the latest clock of theirs whose accesses are ordered before its own next one. An earlier access with epoch
//! e is ordered before a thread's access when the view of that thread holds a clock of at least e's
//! ([`TeamClocks::has_seen`]); otherwise the two are concurrent, in whichever order the interpreter ran them.
//!
//! Threads of one *team* (the blocks of a cluster; usually one block) meet at barriers all the time, so their views are
//! rows of one table, and threads whose views are the same share a row. What is known of other teams arrives through
//! flags in memory and is a persistent map.
//!
//! Flags: a release operation publishes everything that its thread knows. A relaxed (or volatile, or atomic) write
//! publishes only what the thread knew at its last fence: without the fence the device may make the flag visible before
//! the data, and with the flag's reader ordered only behind what was fenced, that missing `__threadfence` is reported
//! as a race on the data. What threads have fenced travels through barriers like the rest (threads write and fence, the
//! block meets, one thread sets the flag: a common and working pattern).
//!
//! Reading is lenient: any relaxed, volatile or atomic read of a flag acquires what was published there at once,
//! without asking for the fence that the PTX memory model wants behind it. Kernels in the field leave it out where a
//! branch or barrier follows; devices do not reorder there.
//!
//! Limits: scopes are not told apart (a fence of block scope counts as one of device scope). Blocks are told apart
//! modulo 2^28. A clock stops at 2^26 - 1: a thread with that many synchronisations may have races missed. None of
//! these reports a race that is not there.

use super::known::BlockMap;

const CLOCK_BITS: u32 = 26;
const THREAD_BITS: u32 = 10;
pub(super) const BLOCK_BITS: u32 = 28;
const LATEST: u32 = (1 << CLOCK_BITS) - 1;
const BLOCK_MASK: u32 = (1 << BLOCK_BITS) - 1;

/// A point in the life of a thread: its block's linear index, its linear index in the block, its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// No thread at no time.
    pub const NONE: Self = Self(0);

    fn new(block: u32, thread: u32, clock: u32) -> Self {
        let block = u64::from(block & BLOCK_MASK);
        Self(((block << THREAD_BITS) | u64::from(thread)) << CLOCK_BITS | u64::from(clock))
    }

    /// Whether this is [`Epoch::NONE`].
    #[inline]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The block's linear index in the grid (its low 28 bits).
    #[inline]
    pub fn block(self) -> u32 {
        (self.0 >> (CLOCK_BITS + THREAD_BITS)) as u32
    }

    /// The thread's linear index in the block.
    #[inline]
    pub fn thread(self) -> u32 {
        (self.0 >> CLOCK_BITS) as u32 & ((1 << THREAD_BITS) - 1)
    }

    /// The clock.
    #[inline]
    pub fn clock(self) -> u32 {
        self.0 as u32 & LATEST
    }

    /// Whether both are of the same thread.
    #[inline]
    pub fn is_same_thread(self, other: Self) -> bool {
        (self.0 ^ other.0) >> CLOCK_BITS == 0
    }

    /// Whether both are of the same warp of the same block.
    #[inline]
    pub fn is_same_warp(self, other: Self) -> bool {
        (self.0 ^ other.0) >> (CLOCK_BITS + 5) == 0
    }

    /// The same clock with the first thread of the warp.
    #[inline]
    #[must_use]
    pub fn of_warp(self) -> Self {
        Self(self.0 & !(31 << CLOCK_BITS))
    }

    /// The lane in the warp, from 0.
    #[inline]
    pub fn lane(self) -> u32 {
        (self.0 >> CLOCK_BITS) as u32 & 31
    }
}

/// What a flag carries from its writer to its readers: clocks of threads, by block. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Knowledge(BlockMap);

impl Knowledge {
    /// Adds what another knows.
    pub fn learn(&mut self, other: &Self) {
        self.0.learn(&other.0);
    }
}

/// What a thread knows of the others.
#[derive(Clone, Debug)]
struct View {
    /// Its own clock, which stands in place of its entry in the row.
    clock: u32,
    /// The row of [`Rows`] with the clocks of the team's threads.
    row: u32,
    /// The other teams.
    far: BlockMap,
}

#[derive(Clone, Debug)]
struct Thread {
    /// Block and thread of its epochs, with clock 0.
    identity: Epoch,
    now: View,
    /// What was behind the last fence.
    fenced: View,
}

/// A table of shared, reference-counted rows of clocks, one clock per thread of the team.
#[derive(Clone, Debug, Default)]
struct Rows {
    width: usize,
    clocks: Vec<u32>,
    references: Vec<u32>,
    free: Vec<u32>,
}

/// The row of threads that know nothing. It is never written or freed.
const NOTHING: u32 = 0;

impl Rows {
    fn row(&self, row: u32) -> &[u32] {
        &self.clocks[row as usize * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: u32) -> &mut [u32] {
        &mut self.clocks[row as usize * self.width..][..self.width]
    }

    fn give_back(&mut self, row: u32) {
        if row != NOTHING {
            self.references[row as usize] -= 1;
            if self.references[row as usize] == 0 {
                self.free.push(row);
            }
        }
    }

    fn retain(&mut self, row: u32) {
        if row != NOTHING {
            self.references[row as usize] += 1;
        }
    }

    /// A copy with this many references.
    fn copy(&mut self, row: u32, references: u32) -> u32 {
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
    fn learn(&mut self, row: u32, other: u32) {
        let (row, other) = (row as usize * self.width, other as usize * self.width);
        for index in 0..self.width {
            self.clocks[row + index] = self.clocks[row + index].max(self.clocks[other + index]);
        }
    }
}

/// The clocks of a team. A thread is named by its index in the team: block in the team x threads of a block + linear
/// index in the block.
#[derive(Clone, Debug)]
pub struct TeamClocks {
    /// Linear indices of the blocks, cut to the bits that epochs have.
    blocks: Vec<u32>,
    threads_per_block: u32,
    threads: Vec<Thread>,
    rows: Rows,
    /// Whether any thread has fenced: until then there is nothing to carry through barriers but `now`.
    any_fence: bool,
}

impl TeamClocks {
    /// A team of blocks, given by their linear indices in the grid.
    pub fn new(blocks: &[u32], threads_per_block: u32) -> Self {
        let mut clocks = Self {
            blocks: Vec::new(),
            threads_per_block,
            threads: Vec::new(),
            rows: Rows::default(),
            any_fence: false,
        };
        clocks.reset(blocks);
        clocks
    }

    /// Starts anew with other blocks of as many threads.
    pub fn reset(&mut self, blocks: &[u32]) {
        self.blocks.clear();
        self.blocks.extend(blocks.iter().map(|block| block & BLOCK_MASK));
        self.any_fence = false;
        self.rows.width = blocks.len() * self.threads_per_block as usize;
        self.rows.clocks.clear();
        self.rows.clocks.resize(self.rows.width, 0);
        self.rows.references.clear();
        self.rows.references.push(1);
        self.rows.free.clear();
        let per_block = self.threads_per_block;
        let view = |clock| View { clock, row: NOTHING, far: BlockMap::default() };
        self.threads.clear();
        self.threads.extend(blocks.iter().flat_map(|&block| {
            (0..per_block).map(move |thread| Thread {
                identity: Epoch::new(block, thread, 0),
                now: view(1),
                fenced: view(0),
            })
        }));
    }

    /// The epoch of the thread's next access.
    #[inline]
    pub fn epoch(&self, thread: usize) -> Epoch {
        let state = &self.threads[thread];
        Epoch(state.identity.0 | u64::from(state.now.clock))
    }

    /// The index in the team of the block's first thread, if the block is one of the team's.
    #[inline]
    fn place(&self, block: u32) -> Option<usize> {
        let index = self.blocks.iter().position(|&of_team| of_team == block)?;
        Some(index * self.threads_per_block as usize)
    }

    /// Whether accesses with this epoch are ordered before the thread's next one.
    #[inline]
    pub fn has_seen(&self, thread: usize, epoch: Epoch) -> bool {
        let state = &self.threads[thread];
        if state.identity.is_same_thread(epoch) {
            return true;
        }
        let of_block = epoch.thread() as usize;
        let clock = match self.place(epoch.block()) {
            Some(first) => self.rows.row(state.now.row).get(first + of_block),
            None => state.now.far.get(epoch.block()).and_then(|clocks| clocks.get(of_block)),
        };
        clock.is_some_and(|&clock| clock >= epoch.clock())
    }

    /// The first of several lanes, all with the clock of `warp` (an epoch of the warp's first thread), that the thread
    /// has not seen.
    #[inline]
    pub fn first_unseen(&self, thread: usize, warp: Epoch, lanes: u32) -> Option<u32> {
        let state = &self.threads[thread];
        let (of_block, clock) = (warp.thread() as usize, warp.clock());
        let place = self.place(warp.block());
        let clocks = match place {
            Some(first) => self.rows.row(state.now.row).get(first + of_block..),
            None => state.now.far.get(warp.block()).and_then(|clocks| clocks.get(of_block..)),
        };
        let clocks = clocks.unwrap_or_default();
        let own = place.map_or(usize::MAX, |first| thread.wrapping_sub(first + of_block));
        each_lane(lanes)
            .find(|&lane| lane as usize != own && clocks.get(lane as usize).is_none_or(|&seen| seen < clock))
    }

    /// A barrier among threads, given as warps (index in the team of the warp's first thread) and masks of their lanes:
    /// each learns all that any of them knew, and what each did before is ordered before what all of them do next.
    pub fn join(&mut self, groups: &[(usize, u32)]) {
        merge(&mut self.threads, &mut self.rows, groups, |thread| &mut thread.now);
        if self.any_fence {
            merge(&mut self.threads, &mut self.rows, groups, |thread| &mut thread.fenced);
        }
        for thread in members(groups) {
            advance(&mut self.threads[thread].now);
        }
    }

    /// A fence: the thread's relaxed writes publish, from here on, what it knows now.
    pub fn fence(&mut self, thread: usize) {
        let state = &mut self.threads[thread];
        self.rows.retain(state.now.row);
        self.rows.give_back(state.fenced.row);
        state.fenced = state.now.clone();
        advance(&mut state.now);
        self.any_fence = true;
    }

    /// What a write to a flag carries: with `release` all that the thread knows, otherwise (a relaxed, volatile or
    /// atomic write) what the thread knew at its last fence, or `None` when neither it nor a thread that it met at a
    /// barrier has fenced.
    pub fn publish(&mut self, thread: usize, release: bool) -> Option<Knowledge> {
        self.publish_lanes(thread, 1, release)
    }

    /// What lanes of a warp carry together, as when they arrive at a barrier: far cheaper than one after the other.
    /// `first`: the warp's first thread.
    pub fn publish_lanes(&mut self, first: usize, lanes: u32, release: bool) -> Option<Knowledge> {
        if !release && !self.any_fence {
            return None;
        }
        let of_lane = |lane: u32| {
            let state = &self.threads[first + lane as usize];
            (first + lane as usize, if release { &state.now } else { &state.fenced })
        };
        let says_nothing = |view: &View| view.clock == 0 && view.row == NOTHING && view.far.is_empty();
        let mut views = each_lane(lanes).map(of_lane).filter(|(_, view)| !says_nothing(view));
        let (_, one) = views.next()?;
        let (mut row, mut last, mut known) = (self.rows.row(one.row).to_vec(), one.row, one.far.clone());
        for (_, view) in views {
            if view.row != last {
                row.iter_mut().zip(self.rows.row(view.row)).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
                last = view.row;
            }
            if !view.far.is_same(&known) {
                known.learn(&view.far);
            }
        }
        for (thread, view) in each_lane(lanes).map(of_lane) {
            row[thread] = row[thread].max(view.clock);
        }
        for (&block, clocks) in self.blocks.iter().zip(row.chunks(self.threads_per_block.max(1) as usize)) {
            if clocks.iter().any(|&clock| clock != 0) {
                known.insert(block, clocks.into());
            }
        }
        if release {
            each_lane(lanes).for_each(|lane| advance(&mut self.threads[first + lane as usize].now));
        }
        Some(Knowledge(known))
    }

    /// Lanes of a warp learn what was published. `first`: the warp's first thread.
    pub fn acquire_lanes(&mut self, first: usize, lanes: u32, knowledge: &Knowledge) {
        // Lanes that knew the same know the same afterwards: they go on sharing a row.
        let mut last: Option<(View, View)> = None;
        for lane in each_lane(lanes) {
            let thread = first + lane as usize;
            let before = self.threads[thread].now.clone();
            let is_like = |other: &View| other.row == before.row && other.far.is_same(&before.far);
            if let Some((_, after)) = last.as_ref().filter(|(old, new)| is_like(old) && new.row != old.row) {
                self.rows.retain(after.row);
                self.rows.give_back(before.row);
                let now = &mut self.threads[thread].now;
                now.row = after.row;
                now.far = after.far.clone();
            } else {
                self.acquire(thread, knowledge);
                last = Some((before, self.threads[thread].now.clone()));
            }
        }
    }

    /// The thread learns what was published.
    pub fn acquire(&mut self, thread: usize, knowledge: &Knowledge) {
        let state = &mut self.threads[thread];
        let per_block = self.threads_per_block as usize;
        for (index, &block) in self.blocks.iter().enumerate() {
            let Some(clocks) = knowledge.0.get(block) else { continue };
            let first = index * per_block;
            let row = &self.rows.row(state.now.row)[first..];
            let mut pairs = clocks.iter().zip(row).enumerate();
            if pairs.all(|(of_block, (new, old))| new <= old || first + of_block == thread) {
                continue;
            }
            if state.now.row == NOTHING || self.rows.references[state.now.row as usize] != 1 {
                let copy = self.rows.copy(state.now.row, 1);
                self.rows.give_back(state.now.row);
                state.now.row = copy;
            }
            for (old, new) in self.rows.row_mut(state.now.row)[first..].iter_mut().zip(clocks) {
                *old = (*old).max(*new);
            }
        }
        if !state.now.far.is_same(&knowledge.0) {
            state.now.far.learn(&knowledge.0);
        }
    }
}

fn advance(view: &mut View) {
    view.clock = (view.clock + 1).min(LATEST);
}

fn each_lane(mut lanes: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lane = lanes.trailing_zeros();
        (lanes != 0).then(|| {
            lanes &= lanes - 1;
            lane
        })
    })
}

fn members(groups: &[(usize, u32)]) -> impl Iterator<Item = usize> {
    groups.iter().flat_map(|&(first, lanes)| each_lane(lanes).map(move |lane| first + lane as usize))
}

/// Makes one view of several: all members share a row afterwards, which holds their own clocks too.
fn merge(
    threads: &mut [Thread],
    rows: &mut Rows,
    groups: &[(usize, u32)],
    view: impl Fn(&mut Thread) -> &mut View + Copy,
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
