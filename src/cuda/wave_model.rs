//! A model of how blocks share a device's memory, which the rule of [`RowSharing`] is held to. It is a MODEL: nothing in it was
//! measured on a GPU. `benches/tuning.rs` measures the same alternatives where there is one.
//!
//! A multiprocessor holds so many blocks at once, and the next block takes the place of the first that ends. A block waits for
//! [`LATENCY`] until its first bytes come (its target's id before them); then its bytes flow, all of the device's in equal
//! shares but for [`JITTER`], and none faster than what it has in flight allows. A block that shares its row waits twice more:
//! for its sums to be seen by all, and for the count of the row's blocks.

use crate::cuda::row_sharing::RowSharing;
use crate::cuda::tuning::{self, Key, SLICE, TOKEN_LOG_PROB};
use crate::element::Dtype;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

struct Device {
    name: &'static str,
    capability: tuning::Capability,
    multiprocessors: usize,
    /// Bytes a second, from the data sheet.
    bandwidth: f64,
}

const DEVICES: [Device; 3] = [
    Device { name: "H100", capability: (9, 0), multiprocessors: 132, bandwidth: 3.35e12 },
    Device { name: "H200", capability: (9, 0), multiprocessors: 132, bandwidth: 4.8e12 },
    Device { name: "B200", capability: (10, 0), multiprocessors: 148, bandwidth: 8.0e12 },
];

/// Seconds from a load to its bytes.
const LATENCY: f64 = 0.8e-6;
/// Bytes that a block has in flight: four loads of 16 bytes of each of 256 threads.
const IN_FLIGHT: f64 = 16_384.0;
/// How much faster or slower than the mean a block is at most.
const JITTER: f64 = 0.1;

/// Ordered by when, then by which block.
#[derive(PartialEq)]
struct Event(f64, usize);

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// One launch of the forward pass.
#[derive(Clone, Copy)]
struct Launch {
    rows: usize,
    vocab: usize,
    element_bytes: usize,
    /// Blocks that a multiprocessor holds at once.
    blocks: usize,
    slices_per_block: usize,
}

impl Launch {
    /// Seconds.
    fn time(&self, device: &Device) -> f64 {
        let row_blocks = self.vocab.div_ceil(SLICE).div_ceil(self.slices_per_block);
        let waits = LATENCY * if row_blocks > 1 { 3.0 } else { 1.0 };
        // As the grid is: all rows' first blocks, then all second ones.
        let bytes = |block: usize| {
            let first = block / self.rows * self.slices_per_block * SLICE;
            ((self.vocab - first).min(self.slices_per_block * SLICE) * self.element_bytes) as f64
        };
        let weight = |block: usize| {
            let hash = (block as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            1.0 + JITTER * (hash as f64 / f64::from(1 << 23) - 1.0)
        };
        let all = self.rows * row_blocks;
        let mut next = (device.multiprocessors * self.blocks).min(all);
        let mut waiting: BinaryHeap<_> = (0..next).map(|block| Reverse(Event(waits, block))).collect();
        // By how far a block of weight 1 that began at 0 has come when they end.
        let mut flowing: BinaryHeap<Reverse<Event>> = BinaryHeap::new();
        let (mut now, mut come, mut weights) = (0.0, 0.0, 0.0);
        loop {
            let rate = f64::min(IN_FLIGHT / LATENCY, device.bandwidth / weights);
            let begins = waiting.peek().map_or(f64::INFINITY, |event| event.0.0);
            let ends = flowing.peek().map_or(f64::INFINITY, |event| now + (event.0.0 - come) / rate);
            if begins <= ends {
                let Some(Reverse(Event(_, block))) = waiting.pop() else { return now };
                if weights > 0.0 {
                    come += (begins - now) * rate;
                }
                now = begins;
                weights += weight(block);
                flowing.push(Reverse(Event(come + bytes(block) / weight(block), block)));
            } else if let Some(Reverse(Event(at, block))) = flowing.pop() {
                (now, come) = (ends, at);
                weights = if flowing.is_empty() { 0.0 } else { weights - weight(block) };
                if next < all {
                    waiting.push(Reverse(Event(now + waits, next)));
                    next += 1;
                }
            }
        }
    }
}

/// What a launch takes with whole rows, and with a slice to a block.
fn both(device: &Device, launch: Launch) -> [f64; 2] {
    [usize::MAX / SLICE, 1].map(|slices_per_block| Launch { slices_per_block, ..launch }.time(device))
}

/// How much longer than the better of the two a rule's choices take: the geometric mean over numbers of rows, and the most with
/// its number of rows.
fn above_best(found: &[(usize, [f64; 2])], whole: impl Fn(usize) -> bool) -> (f64, f64, usize) {
    let (mut logs, mut most, mut at) = (0.0, 0.0, 0);
    for &(rows, [of_whole, of_shared]) in found {
        let multiple = if whole(rows) { of_whole } else { of_shared } / of_whole.min(of_shared);
        logs += multiple.ln();
        if multiple > most {
            (most, at) = (multiple, rows);
        }
    }
    ((logs / found.len() as f64).exp(), most, at)
}

/// Numbers of rows, close together where it matters: around the ends of waves too.
fn row_counts(wave: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = (1..=8).map(|i| 4 * i).chain((1..40).map(|i| wave * i / 8)).collect();
    counts.extend((1..4).flat_map(|waves| [1, 8, 64].map(|more| waves * wave + more)));
    counts.extend([256, 800, 896, 1024, 2048, 4096]);
    counts.retain(|&rows| rows > 0);
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// The table of the model, and that the rule of the tuning table is near the better choice everywhere, and nearer than the rule
/// that is first thought of: rows are whole where they fill the device.
#[test]
fn rows_are_whole_where_that_is_at_least_as_fast() {
    println!("MODEL, not measured: microseconds of the forward pass, bf16, V = 128256, without the launch itself");
    println!("{:<6}{:>6}{:>9}{:>9}{:>9}  chosen", "", "rows", "copy", "whole", "shared");
    for device in &DEVICES {
        for rows in [1, 32, 256, 512, 792, 800, 896, 1024, 2048, 4096, 8192] {
            let launch = Launch { rows, vocab: 128_256, element_bytes: 2, blocks: 6, slices_per_block: 1 };
            let [whole, shared] = both(device, launch).map(|seconds| 1e6 * seconds);
            let copy = 1e6 * (rows * launch.vocab * 2) as f64 / device.bandwidth;
            let chosen = if rule(device, &launch).walks_whole_rows(rows, device.multiprocessors, 6) {
                "whole"
            } else {
                "shared"
            };
            println!("{:<6}{rows:>6}{copy:>9.1}{whole:>9.1}{shared:>9.1}  {chosen}", device.name);
        }
    }
    println!("\nabove the better of the two, mean and most over numbers of rows");
    let mut broken = Vec::new();
    for device in &DEVICES {
        for (vocab, element_bytes, blocks) in
            [(128_256, 2, 6), (128_256, 2, 4), (262_144, 2, 6), (128_256, 4, 6), (50_257, 2, 6), (65_536, 2, 6)]
        {
            let launch = Launch { rows: 1, vocab, element_bytes, blocks, slices_per_block: 1 };
            let counts = row_counts(device.multiprocessors * blocks).into_iter();
            let found: Vec<_> = counts.map(|rows| (rows, both(device, Launch { rows, ..launch }))).collect();
            let of = |sharing: RowSharing| {
                above_best(&found, |rows| sharing.walks_whole_rows(rows, device.multiprocessors, blocks))
            };
            let chosen = of(rule(device, &launch));
            let one_wave = of(RowSharing { waves: 1, ..RowSharing::ALWAYS });
            let [shared, whole] = [RowSharing::ALWAYS, RowSharing::NEVER].map(of);
            let shown = |(mean, most, rows): (f64, f64, usize)| format!("{mean:.3} {most:.2} at {rows:<5}");
            let name = format!("{} V={vocab}, {element_bytes} bytes, {blocks} blocks", device.name);
            let [of_rule, of_one_wave, of_shared, of_whole] = [chosen, one_wave, shared, whole].map(shown);
            println!("{name:<34} rule {of_rule} one wave {of_one_wave} all shared {of_shared} all whole {of_whole}");
            if chosen.0 > MEAN || chosen.1 > MOST || chosen.0 > one_wave.0 {
                broken.push(name);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
}

/// What a rule of two numbers for all lengths of rows may cost in the model.
const MEAN: f64 = 1.015;
const MOST: f64 = 1.25;

fn rule(device: &Device, launch: &Launch) -> RowSharing {
    let dtype = if launch.element_bytes == 2 { Dtype::Bf16 } else { Dtype::F32 };
    let key = Key { dtype, vocab: launch.vocab, capability: device.capability };
    TOKEN_LOG_PROB.choose(key, |file| file == TOKEN_LOG_PROB.file).1.sharing
}

/// The bytes of a launch that fills the device flow at its bandwidth, and a block alone at what it has in flight.
#[test]
fn the_model_s_limits_are_the_device_s() {
    let [_, device, _] = &DEVICES;
    let launch = Launch { rows: 1, vocab: SLICE, element_bytes: 2, blocks: 6, slices_per_block: 1 };
    // One block: a wait, and its bytes, 16 KiB each 0.8 µs.
    let jitter = 1.0 + JITTER;
    let alone = launch.time(device) - LATENCY;
    let expected = (SLICE * 2) as f64 / IN_FLIGHT * LATENCY;
    assert!(alone > expected / jitter && alone < expected * jitter, "{alone}");
    // Many: the bytes at the bandwidth, and at most the first wait and the last blocks besides.
    let rows = 60_000;
    let many = Launch { rows, ..launch }.time(device);
    let flow = (rows * SLICE * 2) as f64 / device.bandwidth;
    assert!(many > flow && many < flow * 1.02, "{many} for {flow}");
}
