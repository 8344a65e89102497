//! Happens-before: what barriers, fences and flags order, and what they do not.

use softcuda::check::clock::{Epoch, TeamClocks};
use softcuda::check::flags::SyncTable;
use softcuda::check::scope::{Fence, MemoryScope};

const DEVICE: MemoryScope = MemoryScope::Device;

/// `__threadfence`.
fn fence() -> Fence {
    Fence::of(DEVICE)
}

/// Everybody of a team of `threads` threads.
fn all(threads: usize) -> Vec<(usize, u32)> {
    (0..threads).step_by(32).map(|first| (first, u32::MAX >> (32 - (threads - first).min(32)))).collect()
}

#[test]
fn epochs_say_who_and_when() {
    let mut clocks = TeamClocks::new(&[9, (1 << 28) - 1], 96);
    let epoch = clocks.epoch(96 + 70);
    assert_eq!((epoch.block(), epoch.thread(), epoch.clock(), epoch.lane()), ((1 << 28) - 1, 70, 1, 6));
    assert_eq!(epoch.of_warp().thread(), 64);
    assert!(epoch.is_same_warp(clocks.epoch(96 + 95)) && !epoch.is_same_warp(clocks.epoch(96 + 63)));
    assert!(!epoch.is_same_warp(clocks.epoch(70)));
    assert!(!epoch.is_none() && Epoch::NONE.is_none());
    clocks.fence(166, fence());
    assert!(clocks.epoch(166).is_same_thread(epoch) && clocks.epoch(166).clock() == 2);
}

#[test]
fn a_barrier_orders_what_was_before_it_and_nothing_after() {
    let mut clocks = TeamClocks::new(&[0], 100);
    let before = clocks.epoch(99);
    assert!(clocks.has_seen(99, before));
    assert!(!clocks.has_seen(0, before));
    clocks.join(&all(100));
    let after = clocks.epoch(99);
    assert!(clocks.has_seen(0, before) && !clocks.has_seen(0, after));
    clocks.join(&all(100));
    assert!(clocks.has_seen(0, after) && !clocks.has_seen(0, clocks.epoch(99)));
}

#[test]
fn a_warp_barrier_orders_its_lanes_only() {
    let mut clocks = TeamClocks::new(&[0], 64);
    let before = [0, 1, 4, 32].map(|thread| clocks.epoch(thread));
    clocks.join(&[(0, 0b111)]);
    assert!(clocks.has_seen(0, before[1]) && clocks.has_seen(2, before[0]));
    assert!(!clocks.has_seen(0, before[2]) && !clocks.has_seen(4, before[0]) && !clocks.has_seen(0, before[3]));
    assert_eq!(clocks.first_unseen(0, before[0].of_warp(), 0b10111), Some(4));
    assert_eq!(clocks.first_unseen(0, before[0].of_warp(), 0b00111), None);
    assert_eq!(clocks.first_unseen(32, before[0].of_warp(), 0b110), Some(1));
}

#[test]
fn order_is_transitive_through_barriers_of_different_threads() {
    let mut clocks = TeamClocks::new(&[0], 96);
    let first = clocks.epoch(0);
    clocks.join(&[(0, 1), (32, 1)]);
    let second = clocks.epoch(32);
    clocks.join(&[(32, 1), (64, 1)]);
    assert!(clocks.has_seen(64, first) && clocks.has_seen(64, second));
    assert!(!clocks.has_seen(0, second));
}

#[test]
fn a_relaxed_flag_carries_what_was_fenced() {
    let mut writer = TeamClocks::new(&[3], 32);
    let mut reader = TeamClocks::new(&[5], 32);
    let data = writer.epoch(0);
    assert!(writer.publish(0, DEVICE, false).is_none(), "no fence");
    writer.fence(0, fence());
    let later = writer.epoch(0);
    let flag = writer.publish(0, DEVICE, false).expect("fenced");
    reader.read_flag(7, &flag, true);
    assert!(reader.has_seen(7, data));
    assert!(!reader.has_seen(7, later), "written after the fence");
    assert!(!reader.has_seen(6, data), "another thread");
    reader.join(&all(32));
    assert!(reader.has_seen(6, data));
    assert_eq!(reader.first_unseen(6, data.of_warp(), 0b11), Some(1));
}

#[test]
fn a_release_needs_no_fence_and_is_cumulative() {
    let mut a = TeamClocks::new(&[0], 32);
    let mut b = TeamClocks::new(&[1], 32);
    let mut c = TeamClocks::new(&[2], 32);
    let data = a.epoch(4);
    a.join(&all(32));
    let flag = a.publish(0, DEVICE, true).expect("a release");
    assert!(!b.has_seen(0, data));
    b.read_flag(0, &flag, true);
    let second = b.epoch(0);
    let flag = b.publish(0, DEVICE, true).expect("a release");
    c.read_flag(31, &flag, true);
    assert!(c.has_seen(31, data) && c.has_seen(31, second));
    assert!(!c.has_seen(31, a.epoch(0)), "after the release");
}

#[test]
fn what_was_fenced_before_a_barrier_may_be_published_by_another_thread() {
    let mut clocks = TeamClocks::new(&[0], 64);
    let data = clocks.epoch(40);
    clocks.fence(40, fence());
    let unfenced = clocks.epoch(40);
    clocks.join(&all(64));
    let flag = clocks.publish(0, DEVICE, false).expect("fenced by thread 40");
    let mut reader = TeamClocks::new(&[1], 32);
    reader.read_flag(0, &flag, true);
    assert!(reader.has_seen(0, data) && !reader.has_seen(0, unfenced));
}

#[test]
fn lanes_together_are_like_lanes_one_by_one() {
    let prepare = || {
        let mut clocks = TeamClocks::new(&[0, 1], 64);
        clocks.join(&[(0, 0xff), (64, 0xf)]);
        clocks.fence(2, fence());
        clocks.join(&[(0, 0b110)]);
        clocks
    };
    let (mut together, mut single) = (prepare(), prepare());
    for release in [false, true] {
        let lanes = 0b1_0000_1110;
        let knowledge = together.publish_lanes(0, lanes, release).expect("fenced");
        let mut merged = single.publish_lanes(2, 1, release).expect("fenced");
        for lane in [1, 3, 8] {
            single.publish_lanes(lane, 1, release).iter().for_each(|more| merged.learn(more));
        }
        let (mut a, mut b) = (prepare(), prepare());
        a.acquire_lanes(64, 0xffff, &knowledge);
        (64..80).for_each(|thread| b.acquire(thread, &merged));
        for thread in 60..90 {
            for other in 0..128 {
                for clocks in [&together, &single] {
                    let epoch = clocks.epoch(other);
                    assert_eq!(a.has_seen(thread, epoch), b.has_seen(thread, epoch), "{thread} {other}");
                }
                assert_eq!(a.has_seen(thread, b.epoch(other)), b.has_seen(thread, b.epoch(other)));
            }
        }
    }
}

#[test]
fn a_grid_barrier_of_many_blocks() {
    let blocks = 500;
    let mut teams: Vec<_> = (0..blocks).map(|block| TeamClocks::new(&[block * 7], 32)).collect();
    let before: Vec<_> = teams.iter().map(|team| team.epoch(5)).collect();
    let counter = SyncTable::default();
    for team in &mut teams {
        team.join(&all(32));
        counter.publish_at(8, &team.publish(0, DEVICE, true).expect("a release"));
    }
    for team in &mut teams {
        let found = counter.message_at(8, team.reader(0, DEVICE)).expect("published");
        team.read_flag(0, &found, true);
        team.join(&all(32));
        assert!(before.iter().all(|&epoch| team.has_seen(31, epoch)));
    }
    assert!(!teams[0].has_seen(0, teams[1].epoch(0)));
}

#[test]
fn reset_forgets() {
    let mut clocks = TeamClocks::new(&[0], 64);
    let old = clocks.epoch(1);
    clocks.fence(1, fence());
    clocks.join(&all(64));
    clocks.reset(&[1]);
    assert!(!clocks.has_seen(0, old));
    assert!(clocks.publish(1, DEVICE, false).is_none());
    assert_eq!((clocks.epoch(1).block(), clocks.epoch(1).clock()), (1, 1));
}

#[test]
fn a_flag_teaches_its_reader_and_not_those_who_knew_the_same() {
    let mut clocks = TeamClocks::new(&[0], 64);
    clocks.join(&[(0, u32::MAX)]);
    let data = clocks.epoch(40);
    let flag = clocks.publish(40, DEVICE, true).expect("a release");
    clocks.read_flag(0, &flag, true);
    assert!(clocks.has_seen(0, data));
    assert!((1..32).all(|thread| !clocks.has_seen(thread, data)), "only thread 0 read the flag");
}

#[test]
fn a_fence_passes_on_what_was_learnt_from_another_block() {
    let [mut first, mut second, mut third] = [0, 1, 2].map(|block| TeamClocks::new(&[block], 32));
    let data = first.epoch(0);
    let flag = first.publish(0, DEVICE, true).expect("a release");
    second.read_flag(0, &flag, true);
    second.fence(0, fence());
    let flag = second.publish(0, DEVICE, false).expect("fenced");
    third.read_flag(0, &flag, true);
    assert!(third.has_seen(0, data));
}

/// Block 0 or 1 of a cluster, or block 2 alone, reads a flag of block 0 with these scopes: whether it learns.
fn learns(reader: u32, write: (MemoryScope, Option<Fence>), read: (MemoryScope, Option<Fence>)) -> bool {
    let mut cluster = TeamClocks::new(&[0, 1], 32);
    let mut alone = TeamClocks::new(&[2], 32);
    let data = cluster.epoch(0);
    if let Some(fence) = write.1 {
        cluster.fence(0, fence);
    }
    let flag = SyncTable::default();
    if let Some(message) = cluster.publish(0, write.0, write.1.is_none()) {
        flag.publish_at(4, &message);
    }
    let (clocks, thread) = match reader {
        2 => (&mut alone, 0),
        block => (&mut cluster, 32 * block as usize + 5),
    };
    if let Some(found) = flag.message_at(4, clocks.reader(thread, read.0)) {
        clocks.read_flag(thread, &found, read.1.is_none());
    }
    assert!(read.1.is_none() || !clocks.has_seen(thread, data), "nothing is learnt before the fence");
    if let Some(fence) = read.1 {
        clocks.fence(thread, fence);
    }
    clocks.has_seen(thread, data)
}

#[test]
fn a_flag_reaches_as_far_as_the_narrowest_scope_on_its_way() {
    const SCOPES: [MemoryScope; 4] =
        [MemoryScope::Block, MemoryScope::Cluster, MemoryScope::Device, MemoryScope::System];
    // (the reader's block, the narrowest scope that holds it and block 0)
    for (reader, needed) in [(0, MemoryScope::Block), (1, MemoryScope::Cluster), (2, MemoryScope::Device)] {
        for [a, b, c, d] in
            (0..256_usize).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]).map(|four| four.map(|n| SCOPES[n]))
        {
            // Fences on both sides of relaxed operations; a release and an acquire; one of each.
            for (write, read) in [
                ((a, Some(Fence::of(b))), (c, Some(Fence::of(d)))),
                ((a, None), (c, None)),
                ((a, Some(Fence::of(b))), (c, None)),
                ((a, None), (c, Some(Fence::of(d)))),
            ] {
                let scopes = [write.0, write.1.map_or(write.0, |fence| fence.scope), read.0];
                let narrowest = scopes.into_iter().chain(read.1.map(|fence| fence.scope)).min().expect("some");
                assert_eq!(learns(reader, write, read), narrowest >= needed, "{reader}: {write:?} {read:?}");
            }
        }
    }
}

#[test]
fn fences_order_in_their_direction_only() {
    let (release, acquire) = (Fence { acquires: false, ..fence() }, Fence { releases: false, ..fence() });
    assert!(learns(2, (DEVICE, Some(release)), (DEVICE, Some(acquire))));
    assert!(!learns(2, (DEVICE, Some(acquire)), (DEVICE, Some(fence()))));
    assert!(!learns(2, (DEVICE, Some(fence())), (DEVICE, Some(release))));
}

#[test]
fn what_was_read_is_learnt_by_the_fences_of_those_who_met_the_reader() {
    let (mut writer, mut readers) = (TeamClocks::new(&[0], 32), TeamClocks::new(&[1], 64));
    let data = writer.epoch(0);
    writer.fence(0, fence());
    let flag = SyncTable::default();
    flag.publish_at(0, &writer.publish(0, DEVICE, false).expect("fenced"));
    readers.read_flag(0, &flag.message_at(0, readers.reader(0, DEVICE)).expect("found"), false);
    readers.join(&all(64));
    assert!((0..64).all(|thread| !readers.has_seen(thread, data)), "a barrier is no fence");
    readers.fence(40, Fence::of(MemoryScope::Block));
    assert!(!readers.has_seen(40, data), "a fence of the block does not reach another one");
    readers.fence(40, fence());
    assert!(readers.has_seen(40, data) && !readers.has_seen(41, data) && !readers.has_seen(0, data));
}

#[test]
fn a_narrow_fence_does_not_hide_an_earlier_wide_one() {
    let [mut writer, mut reader] = [0, 1].map(|block| TeamClocks::new(&[block], 64));
    let data = writer.epoch(3);
    writer.fence(3, fence());
    writer.join(&all(64));
    let later = writer.epoch(3);
    writer.fence(3, Fence::of(MemoryScope::Block));
    let message = writer.publish(3, DEVICE, false).expect("fenced");
    let flag = SyncTable::default();
    flag.publish_at(0, &message);
    reader.read_flag(0, &flag.message_at(0, reader.reader(0, DEVICE)).expect("found"), true);
    assert!(reader.has_seen(0, data) && !reader.has_seen(0, later));
    writer.read_flag(40, &flag.message_at(0, writer.reader(40, MemoryScope::Block)).expect("found"), true);
    assert!(writer.has_seen(40, later));
}
