//! A launch: teams of blocks over the host's cores, until all have ended or one has met a fault.

use super::device::{Device, Launch};
use super::program::Program;
use super::step::{Count, Launched, Tally};
use super::system::Printed;
use super::team::{Outcome, Random, Team};
use crate::count::{Class, Counters, Executed};
use crate::ptx::decode::Arithmetic;
use crate::ptx::decode::code::Operation;
use crate::report::{Fault, LaunchReport};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Warp instructions that a team executes before another one has its turn.
const QUANTUM: u64 = 1 << 20;
/// The most teams that have begun and not ended, unless the launch is cooperative: multiprocessors times what fits on
/// one.
const RESIDENT: usize = 264;

/// Teams to run.
struct Queue {
    next: u64,
    order: Option<Vec<u32>>,
    teams: u64,
    paused: VecDeque<Team>,
    running: usize,
}

/// Runs a kernel to its end or to its first fault.
pub fn run(device: &Device, program: &Program, kernel: usize, launch: &Launch, number: u64) -> LaunchReport {
    let info = &program.kernels()[kernel];
    let shape = launch.cluster.or(info.required_cluster);
    let cluster = shape.unwrap_or([1; 3]);
    let settings = device.settings();
    let workspace = if launch.cooperative { workspace(device) } else { 0 };
    let launched = Launched {
        program,
        kernel: info,
        launch,
        cluster,
        clustered: shape.is_some(),
        memory: device.memory.begin_launch(&settings.checks),
        checks: settings.checks,
        shuffle: settings.shuffle,
        budget: AtomicI64::new(i64::try_from(settings.instruction_budget).unwrap_or(i64::MAX)),
        stop: AtomicBool::new(false),
        workspace,
        number,
        printed: Printed::default(),
    };
    let blocks = launch.grid.iter().map(|n| u64::from(*n)).product::<u64>();
    let teams = blocks / cluster.iter().map(|n| u64::from(*n)).product::<u64>().max(1);
    // Shuffling a permutation of every block is fine up to sizes that would take hours to run anyway.
    let order = settings.shuffle.filter(|_| teams <= 1 << 24).map(|seed| {
        let mut order: Vec<u32> = (0..teams as u32).collect();
        Random(seed).shuffle(&mut order);
        order
    });
    let queue = Mutex::new(Queue { next: 0, order, teams, paused: VecDeque::new(), running: 0 });
    let fault = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if settings.host_threads == 0 { cores } else { settings.host_threads };
    let workers = threads.min(usize::try_from(teams).unwrap_or(usize::MAX)).max(1);
    let tallies: Vec<Tally> = if workers == 1 {
        vec![work(&launched, &queue, &fault)]
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(|| work(&launched, &queue, &fault))).collect();
            let joined: Vec<_> = handles.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            // A panic is a bug of the interpreter: it goes on to the caller, who knows what to do.
            joined.into_iter().map(|tally| tally.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    };
    if workspace != 0 {
        let _ = device.memory.free(workspace);
    }
    let fault = fault.into_inner().ok().flatten();
    let threads_of_block: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
    LaunchReport {
        kernel: info.name.clone(),
        grid: launch.grid,
        block: launch.block,
        cluster,
        dynamic_shared_bytes: launch.dynamic_shared_bytes,
        counters: counters(program, &tallies, launched.memory.finish(), blocks.saturating_mul(threads_of_block)),
        fault,
        printed: launched.printed.finish(),
    }
}

/// The zeroed words through which the blocks of a cooperative grid meet (`%envreg1`, `%envreg2`).
fn workspace(device: &Device) -> u64 {
    let Some(address) = device.memory.allocate(64) else { return 0 };
    let _ = device.memory.fill(address, &[0], 64);
    address
}

/// Stops the other host threads when this one panics: they would wait for its team for ever.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// One host thread: takes teams until none is left.
fn work(launched: &Launched, queue: &Mutex<Queue>, fault: &Mutex<Option<Fault>>) -> Tally {
    let mut tally =
        Tally { instructions: vec![Count::default(); launched.program.instructions.len()], ..Tally::default() };
    let _stop = StopOnPanic(&launched.stop);
    let resident = if launched.launch.cooperative { usize::MAX } else { RESIDENT };
    while !launched.stop.load(Ordering::Relaxed) {
        let Ok(mut waiting) = queue.lock() else { break };
        let begun = waiting.paused.len() + waiting.running;
        let new = (waiting.next < waiting.teams && begun < resident).then_some(waiting.next);
        let team = if new.is_some() { None } else { waiting.paused.pop_front() };
        if team.is_none() && new.is_none() {
            let done = waiting.running == 0;
            drop(waiting);
            if done {
                break;
            }
            // The teams that are left run on other host threads; one of them may be paused in a moment.
            std::thread::sleep(std::time::Duration::from_micros(50));
            continue;
        }
        waiting.running += 1;
        let number = new.map(|next| {
            waiting.next += 1;
            waiting.order.as_ref().map_or(next, |order| u64::from(order[next as usize]))
        });
        drop(waiting);
        let mut team = match (team, number) {
            (Some(team), _) => team,
            (None, number) => Team::new(launched, number.unwrap_or(0)),
        };
        let outcome = team.run(launched, &mut tally, QUANTUM);
        let Ok(mut waiting) = queue.lock() else { break };
        waiting.running -= 1;
        match outcome {
            Ok(Outcome::Finished) => {}
            Ok(Outcome::Paused) => waiting.paused.push_back(team),
            Err(found) => {
                launched.stop.store(true, Ordering::Relaxed);
                drop(waiting);
                if let Ok(mut fault) = fault.lock() {
                    fault.get_or_insert(*found);
                }
            }
        }
    }
    tally
}

/// Adds up what the host threads have counted.
fn counters(program: &Program, tallies: &[Tally], distinct: (u64, u64), threads: u64) -> Counters {
    let mut total = Counters { threads, ..Counters::default() };
    let mut per_thread: Option<(u64, u64)> = None;
    for tally in tallies {
        for (instruction, count) in program.instructions.iter().zip(&tally.instructions) {
            if count.warp == 0 {
                continue;
            }
            let executed: &mut Executed = total.by_class.entry(instruction.class).or_default();
            executed.warp += count.warp;
            executed.thread += count.thread;
            total.instructions.warp += count.warp;
            total.instructions.thread += count.thread;
            if instruction.class == Class::SpecialFunction {
                total.special_function_results += count.thread * results(&instruction.operation);
            }
        }
        total.predicated_off += tally.predicated_off;
        total.block_barriers += tally.block_barriers;
        total.cluster_barriers += tally.cluster_barriers;
        total.atomics += tally.atomics;
        total.divergent_branches += tally.divergent_branches;
        let (global, other) = (&mut total.global, &tally.global);
        global.bytes_loaded += other.bytes_loaded;
        global.bytes_stored += other.bytes_stored;
        global.warp_bytes_loaded += other.warp_bytes_loaded;
        global.warp_bytes_stored += other.warp_bytes_stored;
        global.sectors_loaded += other.sectors_loaded;
        global.sectors_stored += other.sectors_stored;
        global.bytes_atomic += other.bytes_atomic;
        let (shared, other) = (&mut total.shared, &tally.shared);
        shared.bytes_loaded += other.bytes_loaded;
        shared.bytes_stored += other.bytes_stored;
        shared.wavefronts += other.wavefronts;
        shared.bank_conflicts += other.bank_conflicts;
        if let Some((fewest, most)) = tally.per_thread {
            let (low, high) = per_thread.unwrap_or((fewest, most));
            per_thread = Some((low.min(fewest), high.max(most)));
        }
    }
    total.instructions_per_thread = per_thread.unwrap_or_default();
    (total.global.distinct_bytes_read, total.global.distinct_bytes_written) = distinct;
    total
}

/// Results that one lane gets of a special function.
fn results(operation: &Operation) -> u64 {
    match operation {
        Operation::Arithmetic(Arithmetic::Half(operation)) => u64::from(operation.special_function_results()),
        Operation::Arithmetic(Arithmetic::Float(operation)) => u64::from(operation.special_function_results()),
        _ => 1,
    }
}
