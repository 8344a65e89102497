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
//! Flags (PTX ISA, "Release and Acquire Patterns"): a release operation publishes all that its thread knows; a relaxed,
//! volatile or atomic write what the thread knew at its last fence ([`TeamClocks::publish`]). An acquire operation
//! learns what was published; any other strong read only remembers it, and a later fence learns it
//! ([`TeamClocks::read_flag`]). Both sides count as far as their scopes reach: with a `__threadfence_block` on either
//! side, a flag orders nothing between blocks.
//!
//! What was fenced and what was read travel through barriers like the rest: threads write and fence, the block meets,
//! one thread draws a ticket, the block meets, all fence and read. The manual derives that for `fence.sc`, which is what
//! `__threadfence` is: the ticket was read, so the order of the fences cannot be the other one. `fence.acq_rel` counts
//! as much here.
//!
//! Limits: blocks are told apart modulo 2^28. A clock stops at 2^26 - 1: a thread with that many synchronisations may
//! have races missed. None of these reports a race that is not there.

pub use super::epoch::Epoch;
use super::epoch::{BLOCK_MASK, LATEST};
use super::flags::{LEVELS, Message, Reader};
use super::known::BlockMap;
use super::rows::{NOTHING, Rows, View, merge};
use super::scope::{Fence, MemoryScope};
use std::sync::Arc;

/// Clocks of threads, by block. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Knowledge(BlockMap);

impl Knowledge {
    /// Adds what another knows.
    pub fn learn(&mut self, other: &Self) {
        self.0.learn(&other.0);
    }
}

/// What strong reads found, by the least reach of the fence that learns it.
type Pending = Arc<[BlockMap; LEVELS]>;

#[derive(Clone, Debug)]
struct Thread {
    /// Block and thread of its epochs, with clock 0.
    identity: Epoch,
    now: View,
    /// What was behind the last fence, by how far it reached. The first two are only kept once a fence has reached less
    /// far than the device.
    fenced: [View; LEVELS],
    /// What it has read and not acquired.
    pending: Option<Pending>,
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
    /// Whether any fence reached less far than the device.
    any_narrow_fence: bool,
    /// Whether any thread may have read what it has not acquired.
    any_pending: bool,
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
            any_narrow_fence: false,
            any_pending: false,
        };
        clocks.reset(blocks);
        clocks
    }

    /// Starts anew with other blocks of as many threads.
    pub fn reset(&mut self, blocks: &[u32]) {
        self.blocks.clear();
        self.blocks.extend(blocks.iter().map(|block| block & BLOCK_MASK));
        (self.any_fence, self.any_narrow_fence, self.any_pending) = (false, false, false);
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
                fenced: [view(0), view(0), view(0)],
                pending: None,
            })
        }));
    }

    /// The epoch of the thread's next access.
    #[inline]
    pub fn epoch(&self, thread: usize) -> Epoch {
        let state = &self.threads[thread];
        state.identity.at(state.now.clock)
    }

    /// The index in the team of the block's first thread, if the block is one of the team's.
    #[inline]
    fn place(&self, block: u32) -> Option<usize> {
        let index = self.blocks.iter().position(|&of_team| of_team == block)?;
        Some(index * self.threads_per_block as usize)
    }

    /// The narrowest scope that holds the thread and a block.
    #[inline]
    pub fn scope_with(&self, thread: usize, block: u32) -> MemoryScope {
        if self.threads[thread].identity.block() == block {
            MemoryScope::Block
        } else if self.blocks.contains(&block) {
            MemoryScope::Cluster
        } else {
            MemoryScope::Device
        }
    }

    /// How far a scope reaches: an index into what is kept by level.
    fn level(&self, scope: MemoryScope) -> usize {
        match scope {
            MemoryScope::Block => 0,
            // A block without a cluster is one of its own.
            MemoryScope::Cluster => usize::from(self.blocks.len() > 1),
            MemoryScope::Device | MemoryScope::System => 2,
        }
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
            for level in self.fence_levels() {
                merge(&mut self.threads, &mut self.rows, groups, |thread| &mut thread.fenced[level]);
            }
        }
        if self.any_pending {
            self.share_pending(groups);
        }
        for thread in members(groups) {
            advance(&mut self.threads[thread].now);
        }
    }

    fn fence_levels(&self) -> std::ops::Range<usize> {
        if self.any_narrow_fence { 0..LEVELS } else { LEVELS - 1..LEVELS }
    }

    fn share_pending(&mut self, groups: &[(usize, u32)]) {
        let mut all: Option<Pending> = None;
        for thread in members(groups) {
            let Some(theirs) = &self.threads[thread].pending else { continue };
            match &mut all {
                None => all = Some(theirs.clone()),
                Some(all) if Arc::ptr_eq(all, theirs) => {}
                Some(all) => {
                    let all = Arc::make_mut(all);
                    all.iter_mut().zip(theirs.iter()).for_each(|(all, theirs)| all.learn(theirs));
                }
            }
        }
        if all.is_some() {
            members(groups).for_each(|thread| self.threads[thread].pending.clone_from(&all));
        }
    }

    /// A fence: what the thread has read from flags it has learnt from here on, and its relaxed writes publish what it
    /// knows now.
    pub fn fence(&mut self, thread: usize, fence: Fence) {
        let level = self.level(fence.scope);
        if fence.acquires
            && let Some(mut pending) = self.threads[thread].pending.take()
        {
            for found in &pending[..=level] {
                self.acquire(thread, &Knowledge(found.clone()));
            }
            if pending[level + 1..].iter().any(|left| !left.is_empty()) {
                Arc::make_mut(&mut pending)[..=level].fill(BlockMap::default());
                self.threads[thread].pending = Some(pending);
            }
        }
        if !fence.releases {
            return;
        }
        if level + 1 < LEVELS && !std::mem::replace(&mut self.any_narrow_fence, true) {
            for thread in &mut self.threads {
                for narrow in 0..LEVELS - 1 {
                    self.rows.retain(thread.fenced[LEVELS - 1].row);
                    thread.fenced[narrow] = thread.fenced[LEVELS - 1].clone();
                }
            }
        }
        let levels = self.fence_levels();
        let state = &mut self.threads[thread];
        for reached in &mut state.fenced[levels.start..=level] {
            self.rows.retain(state.now.row);
            self.rows.give_back(reached.row);
            *reached = state.now.clone();
        }
        advance(&mut state.now);
        self.any_fence = true;
    }

    /// What a strong write of this scope carries: with `release` all that the thread knows, otherwise (a relaxed,
    /// volatile or atomic write) what the thread knew at its last fence, as far as that reached; `None` when neither it
    /// nor a thread that it met at a barrier has fenced.
    pub fn publish(&mut self, thread: usize, scope: MemoryScope, release: bool) -> Option<Message> {
        if !release && !self.any_fence {
            return None;
        }
        let level = self.level(scope);
        let mut message = Message::from(self.reader(thread, scope));
        if release {
            message.known[..=level].fill(self.gather(thread, 1, |thread| &thread.now));
            advance(&mut self.threads[thread].now);
        } else if self.any_narrow_fence {
            for (level, known) in message.known[..=level].iter_mut().enumerate() {
                *known = self.gather(thread, 1, |thread| &thread.fenced[level]);
            }
        } else {
            message.known[..=level].fill(self.gather(thread, 1, |thread| &thread.fenced[LEVELS - 1]));
        }
        message.known.iter().any(Option::is_some).then_some(message)
    }

    /// What lanes of a warp carry together when they arrive at a barrier: all that they know with `release`, otherwise
    /// what they knew at their last fence that reached the cluster. `first`: the warp's first thread.
    pub fn publish_lanes(&mut self, first: usize, lanes: u32, release: bool) -> Option<Knowledge> {
        if release {
            let known = self.gather(first, lanes, |thread| &thread.now);
            each_lane(lanes).for_each(|lane| advance(&mut self.threads[first + lane as usize].now));
            return known;
        }
        if !self.any_fence {
            return None;
        }
        let level = if self.any_narrow_fence { self.level(MemoryScope::Cluster) } else { LEVELS - 1 };
        self.gather(first, lanes, |thread| &thread.fenced[level])
    }

    /// What lanes of a warp know together by their views: far cheaper than one after the other.
    fn gather(&self, first: usize, lanes: u32, view: impl Fn(&Thread) -> &View) -> Option<Knowledge> {
        let of_lane = |lane: u32| (first + lane as usize, view(&self.threads[first + lane as usize]));
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
        Some(Knowledge(known))
    }

    /// Who reads or writes a flag with an operation of this scope.
    pub fn reader(&self, thread: usize, scope: MemoryScope) -> Reader {
        let block = self.threads[thread].identity.block();
        Reader { block, team: self.blocks.first().copied().unwrap_or(block), level: self.level(scope) }
    }

    /// A strong read has found a message: with `acquire` the thread learns it, otherwise its next fence does.
    pub fn read_flag(&mut self, thread: usize, found: &Message, acquire: bool) {
        if acquire {
            found.known.iter().flatten().for_each(|known| self.acquire(thread, known));
            return;
        }
        let pending = &mut self.threads[thread].pending;
        let mut after = pending.as_deref().cloned().unwrap_or_default();
        for (after, found) in after.iter_mut().zip(&found.known) {
            if let Some(found) = found {
                after.learn(&found.0);
            }
        }
        // Loops that wait read the same again and again: nothing new is nothing to keep, and is shared as it was.
        let is_same = pending.as_deref().is_some_and(|before| before.iter().zip(&after).all(|(a, b)| a.is_same(b)));
        if !is_same {
            *pending = Some(Arc::new(after));
            self.any_pending = true;
        }
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

pub(super) fn members(groups: &[(usize, u32)]) -> impl Iterator<Item = usize> {
    groups.iter().flat_map(|&(first, lanes)| each_lane(lanes).map(move |lane| first + lane as usize))
}
