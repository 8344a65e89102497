//! Random programs, judged by a race detector that keeps everything.

use softcuda::check::clock::TeamClocks;
use softcuda::check::flags::SyncTable;
use softcuda::check::scope::{Fence, MemoryScope};
use softcuda::machine::memory::Refusal;
use softcuda::machine::memory::global::{GlobalMemory, LaunchMemory, Who};
use softcuda::machine::memory::shared::SharedMemory;
use softcuda::report::FaultKind;
use softcuda::settings::Checks;

fn who(clocks: &TeamClocks, thread: usize, instruction: u32) -> Who<'_> {
    Who::weak(thread, clocks, instruction)
}

/// One of two teams of one block each, with what a detector needs that forgets nothing.
const BLOCKS: [u32; 2] = [3, 8];
const THREADS: usize = 40;
const TOTAL: usize = 2 * THREADS;

const SCOPES: [MemoryScope; 4] = [MemoryScope::Block, MemoryScope::Cluster, MemoryScope::System, MemoryScope::Device];
const FENCES: [Fence; 4] = [
    Fence { acquires: true, releases: true, scope: MemoryScope::Device },
    Fence { acquires: true, releases: true, scope: MemoryScope::Device },
    Fence { acquires: true, releases: false, scope: MemoryScope::Device },
    Fence { acquires: false, releases: true, scope: MemoryScope::Device },
];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

type Clocks = [u32; TOTAL];

/// An access, as the plain definition keeps it.
#[derive(Clone)]
struct Access {
    thread: usize,
    clock: u32,
    bytes: std::ops::Range<usize>,
    writes: bool,
    /// 0: weak; then as [`MemoryScope`].
    scope: usize,
    /// Per byte: the writes of [`Reference::history`] that precede it in observation order.
    observed: Vec<Vec<usize>>,
}

/// The plain definition: full vectors, all accesses kept.
#[derive(Clone)]
struct Reference {
    now: Vec<Clocks>,
    /// By level: a block, a cluster (here the block), the device.
    fenced: [Vec<Clocks>; 3],
    pending: [Vec<Clocks>; 3],
    history: Vec<Access>,
    /// Index of the last write of each byte.
    last: Vec<Option<usize>>,
    /// Messages by flag: the writer and what it published, by level.
    flags: [Vec<(usize, [Clocks; 3])>; 3],
}

fn raise(mine: &mut Clocks, theirs: &Clocks) {
    mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}

/// How far a scope reaches without clusters.
fn level(scope: MemoryScope) -> usize {
    if scope >= MemoryScope::Device { 2 } else { 0 }
}

impl Reference {
    fn new() -> Self {
        let now = (0..TOTAL).map(|thread| std::array::from_fn(|other| u32::from(other == thread))).collect();
        let nothing = || std::array::from_fn(|_| vec![[0; TOTAL]; TOTAL]);
        Self {
            now,
            fenced: nothing(),
            pending: nothing(),
            history: Vec::new(),
            last: vec![None; 64],
            flags: Default::default(),
        }
    }

    fn join(&mut self, threads: &[usize]) {
        for views in std::iter::once(&mut self.now).chain(&mut self.fenced).chain(&mut self.pending) {
            let mut all = [0; TOTAL];
            for &thread in threads {
                raise(&mut all, &views[thread]);
            }
            for &thread in threads {
                views[thread] = all;
            }
        }
        for &thread in threads {
            self.now[thread][thread] += 1;
        }
    }

    fn fence(&mut self, thread: usize, fence: Fence) {
        for level in 0..=level(fence.scope) {
            if fence.acquires {
                let found = std::mem::replace(&mut self.pending[level][thread], [0; TOTAL]);
                raise(&mut self.now[thread], &found);
            }
        }
        if fence.releases {
            for level in 0..=level(fence.scope) {
                self.fenced[level][thread] = self.now[thread];
            }
            self.now[thread][thread] += 1;
        }
    }

    fn publish(&mut self, flag: usize, thread: usize, scope: MemoryScope, release: bool) {
        let known = std::array::from_fn(|at| match at <= level(scope) {
            true if release => self.now[thread],
            true => self.fenced[at][thread],
            false => [0; TOTAL],
        });
        self.flags[flag].push((thread, known));
        if release {
            self.now[thread][thread] += 1;
        }
    }

    fn read(&mut self, flag: usize, thread: usize, scope: MemoryScope, acquire: bool) {
        for (writer, known) in &self.flags[flag] {
            for at in 0..=level(scope) {
                if at < 2 && writer / THREADS != thread / THREADS {
                    continue;
                }
                raise(if acquire { &mut self.now[thread] } else { &mut self.pending[at][thread] }, &known[at]);
            }
        }
    }

    fn is_morally_strong(one: &Access, other: &Access) -> bool {
        let needed = if one.thread / THREADS == other.thread / THREADS { 1 } else { 3 };
        one.scope >= needed && other.scope >= needed
    }

    fn is_before(&self, earlier: &Access, thread: usize) -> bool {
        earlier.thread == thread || self.now[thread][earlier.thread] >= earlier.clock
    }

    /// Ordered before the thread's next access, by base causality or because what is was observed.
    fn is_ordered(&self, index: usize, byte: usize, thread: usize) -> bool {
        let earlier = &self.history[index];
        let observes =
            |later: &Access| later.bytes.contains(&byte) && later.observed[byte - later.bytes.start].contains(&index);
        self.is_before(earlier, thread)
            || self.history[index..].iter().any(|later| observes(later) && self.is_before(later, thread))
    }

    fn access(&mut self, thread: usize, bytes: std::ops::Range<usize>, kind: usize, scope: usize) -> bool {
        let (writes, reads) = (kind != 0, kind != 1);
        let clock = self.now[thread][thread];
        let mut access = Access { thread, clock, bytes: bytes.clone(), writes, scope, observed: Vec::new() };
        let races = bytes.clone().any(|byte| {
            (0..self.history.len()).any(|index| {
                let other = &self.history[index];
                other.bytes.contains(&byte)
                    && (writes || other.writes)
                    && !Self::is_morally_strong(&access, other)
                    && !self.is_ordered(index, byte, thread)
            })
        });
        for byte in bytes.clone() {
            let seen = self.last[byte].filter(|&last| reads && Self::is_morally_strong(&access, &self.history[last]));
            let mut observed = Vec::new();
            if let Some(last) = seen {
                let before = &self.history[last];
                // What an atomic observed, its own readers observe.
                observed.clone_from(&before.observed[byte - before.bytes.start]);
                observed.push(last);
            }
            access.observed.push(observed);
            if writes {
                self.last[byte] = Some(self.history.len());
            }
        }
        self.history.push(access);
        races
    }
}

enum Memory {
    Shared(SharedMemory),
    Global(LaunchMemory, u64),
}

impl Memory {
    fn access(&mut self, who: &Who, at: usize, width: usize, kind: usize) -> Result<(), Refusal> {
        let (mut read, written) = ([0; 16], [0; 16]);
        match (self, kind) {
            (Self::Shared(memory), 0) => memory.load(who, at as u32, &mut read[..width]),
            (Self::Shared(memory), 1) => memory.store(who, at as u32, &written[..width]),
            (Self::Shared(memory), _) => memory.atomic(who, at as u32, width as u32, &mut Some).map(drop),
            (Self::Global(memory, base), 0) => memory.load(who, *base + at as u64, &mut read[..width]),
            (Self::Global(memory, base), 1) => memory.store(who, *base + at as u64, &written[..width]),
            (Self::Global(memory, base), _) => memory.atomic(who, *base + at as u64, width as u32, &mut Some).map(drop),
        }
    }
}

/// Runs random operations until the first race; returns at which step the reference found it and at which the detector.
/// `is_mixed`: there are strong loads and stores beside atomics, and scopes of all kinds.
fn random_program(seed: u64, is_shared: bool, is_mixed: bool) -> (Option<usize>, Option<usize>) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let checks = Checks { uninitialized: false, ..Checks::default() };
    let device = GlobalMemory::new(1 << 20);
    let mut memory = if is_shared {
        Memory::Shared(SharedMemory::new(64, &checks))
    } else {
        let base = device.allocate(64).expect("room");
        Memory::Global(device.begin_launch(&checks), base)
    };
    let mut teams = BLOCKS.map(|block| TeamClocks::new(&[block], THREADS as u32));
    let mut reference = Reference::new();
    let flags = SyncTable::default();
    // Programs that synchronise much run long before they race; few bytes and threads make accesses meet.
    let (bytes, sync, active) = ([4, 8, 16][random.below(3)], random.below(10), 1 + random.below(TOTAL));
    let weak = random.below(4);
    let narrow = if is_mixed { random.below(3) } else { 0 };
    let scope = |random: &mut Random| SCOPES[if random.below(4) < narrow { random.below(4) } else { 3 }];
    for step in 0..300 {
        let thread = random.below(active) * (TOTAL / active) % TOTAL;
        let (team, local) = (thread / THREADS, thread % THREADS);
        if random.below(12) < sync {
            match random.below(6) {
                0 => {
                    reference.join(&(0..THREADS).map(|local| team * THREADS + local).collect::<Vec<_>>());
                    teams[team].join(&[(0, u32::MAX), (32, 0xff)]);
                }
                1 => {
                    let mask = (random.below(1 << 31) as u32) | 1 << (local % 32);
                    let mask = if local < 32 { mask } else { mask & 0xff };
                    let lanes = (0..32).filter(|lane| mask >> lane & 1 != 0);
                    let first = local / 32 * 32;
                    reference.join(&lanes.map(|lane| team * THREADS + first + lane).collect::<Vec<_>>());
                    teams[team].join(&[(first, mask)]);
                }
                2 => {
                    let fence = Fence { scope: scope(&mut random), ..FENCES[random.below(4)] };
                    reference.fence(thread, fence);
                    teams[team].fence(local, fence);
                }
                3 => {
                    let (flag, release, scope) = (random.below(3), random.below(2) == 0, scope(&mut random));
                    reference.publish(flag, thread, scope, release);
                    if let Some(message) = teams[team].publish(local, scope, release) {
                        flags.publish_at(flag as u64, &message);
                    }
                }
                _ => {
                    let (flag, acquire, scope) = (random.below(3), random.below(2) == 0, scope(&mut random));
                    if let Some(found) = flags.message_at(flag as u64, teams[team].reader(local, scope)) {
                        teams[team].read_flag(local, &found, acquire);
                    }
                    reference.read(flag, thread, scope, acquire);
                }
            }
            continue;
        }
        let width = [1, 2, 4, 4, 4, 8, 16][random.below(7)];
        let at = random.below(bytes.max(width) / width) * width;
        let kind = [0, 0, 1, 2][random.below(4)];
        let is_strong = kind == 2 || is_mixed && random.below(4) >= weak;
        let scope = is_strong.then(|| scope(&mut random));
        let expected = reference.access(thread, at..at + width, kind, scope.map_or(0, |scope| scope as usize));
        // Every instruction is one of its own: nothing is excused as one store of one warp.
        let who = Who { scope, ..who(&teams[team], local, step as u32) };
        let found = memory.access(&who, at, width, kind);
        if let Err(refusal) = &found {
            assert_eq!(refusal.kind, FaultKind::Race, "{refusal:?}");
            let other = refusal.other.as_ref().expect("the other access");
            let index = BLOCKS.iter().position(|&block| block == other.block).expect("a block") * THREADS;
            assert_ne!(index + other.thread as usize, thread);
        }
        if expected || found.is_err() {
            return (expected.then_some(step), found.is_err().then_some(step));
        }
    }
    (None, None)
}

#[test]
fn shared_memory_finds_each_race_at_once_and_no_other() {
    let mut late = 0;
    for seed in 0..12_000 {
        let (expected, found) = random_program(seed, true, false);
        assert_eq!(expected, found, "seed {seed}");
        late += usize::from(expected.is_some_and(|step| step > 20));
    }
    assert!(late > 200, "the programs test something: {late}");
}

/// How many of the programs race, and in how many of those it goes unseen; a race that is none fails.
fn missed(seeds: std::ops::Range<u64>, is_shared: bool, is_mixed: bool) -> (usize, usize) {
    let (mut races, mut missed) = (0, 0);
    for seed in seeds {
        let (expected, found) = random_program(seed, is_shared, is_mixed);
        assert!(found.is_none() || expected == found, "seed {seed}: {expected:?}, {found:?}: a race that is none");
        races += usize::from(expected.is_some());
        missed += usize::from(expected.is_some() && found.is_none());
    }
    (races, missed)
}

#[test]
fn global_memory_finds_nearly_each_race_and_no_other() {
    let (races, missed) = missed(0..4_000, false, false);
    assert!(missed * 50 < races, "{missed} of {races} missed");
}

#[test]
fn scopes_and_observed_writes_are_told_apart() {
    for is_shared in [true, false] {
        let (races, missed) = missed(0..8_000, is_shared, true);
        assert!(missed * 50 < races, "shared {is_shared}: {missed} of {races} missed");
    }
}
