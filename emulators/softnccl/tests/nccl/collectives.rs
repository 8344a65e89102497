//! Every kind of call against what the host computes, of sizes below and beyond what ranks show each other at once.

use crate::{alone, on_ranks, stream};
use cudarc::nccl::{Comm, ReduceOp};
use half::bf16;
use softcuda::Settings;
use softnccl::Count;

/// Elements: few, and more than one chunk of 128 KiB, so that chunks do not end where ranks' parts do.
const LENGTHS: [usize; 3] = [1, 7, 50_001];

fn number(rank: usize, at: usize) -> f32 {
    ((at * 7919 + rank * 104_729) % 2003) as f32 * 0.37 - 300.0
}

fn numbers(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|at| number(rank, at)).collect()
}

/// In the order of the ranks.
fn sum(ranks: usize, at: usize) -> f32 {
    (1..ranks).fold(number(0, at), |sum, rank| sum + number(rank, at))
}

#[test]
fn sums_are_those_of_the_host_bit_for_bit() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    for ranks in [1, 2, 3] {
        for length in LENGTHS {
            let expected: Vec<_> = (0..length).map(|at| sum(ranks, at).to_bits()).collect();
            let results = on_ranks(ranks, |rank, comm| {
                let stream = comm.stream();
                let send = stream.clone_htod(&numbers(rank, length)).expect("numbers");
                let mut receive = stream.alloc_zeros::<f32>(length).expect("memory");
                comm.all_reduce(&send, &mut receive, &ReduceOp::Sum).expect("a sum");
                let mut in_place = stream.clone_htod(&numbers(rank, length)).expect("numbers");
                comm.all_reduce_in_place(&mut in_place, &ReduceOp::Sum).expect("a sum");
                [stream.clone_dtoh(&receive).expect("read"), stream.clone_dtoh(&in_place).expect("read")]
            });
            for result in results.into_iter().flatten() {
                assert!(result.iter().map(|number| number.to_bits()).eq(expected.iter().copied()), "{ranks} {length}");
            }
        }
    }
}

#[test]
fn gathers_scatters_reductions_and_broadcasts_put_parts_where_they_belong() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let ranks = 3;
    for length in LENGTHS {
        let parts = on_ranks(ranks, |rank, comm| {
            let stream = comm.stream();
            let own = stream.clone_htod(&numbers(rank, length)).expect("numbers");
            let mut all = stream.alloc_zeros::<f32>(ranks * length).expect("memory");
            comm.all_gather(&own, &mut all).expect("a gather");
            let of_all = stream.clone_htod(&numbers(rank, ranks * length)).expect("numbers");
            let mut part = stream.alloc_zeros::<f32>(length).expect("memory");
            comm.reduce_scatter(&of_all, &mut part, &ReduceOp::Sum).expect("a scatter");
            let mut broadcast = stream.clone_htod(&numbers(rank, length)).expect("numbers");
            comm.broadcast_in_place(&mut broadcast, 1).expect("a broadcast");
            let mut reduced = stream.clone_htod(&numbers(rank, length)).expect("numbers");
            comm.reduce_in_place(&mut reduced, &ReduceOp::Max, 2).expect("a reduction");
            [&all, &part, &broadcast, &reduced].map(|buffer| stream.clone_dtoh(buffer).expect("read"))
        });
        let gathered: Vec<_> = (0..ranks).flat_map(|rank| numbers(rank, length)).collect();
        for (rank, [all, part, broadcast, reduced]) in parts.into_iter().enumerate() {
            assert!(all == gathered, "{length}");
            assert!((0..length).all(|at| part[at] == sum(ranks, rank * length + at)), "{length}");
            assert!(broadcast == numbers(1, length), "{length}");
            let greatest = |at| (0..ranks).map(|rank| number(rank, at)).fold(f32::MIN, f32::max);
            let expected: Vec<_> =
                (0..length).map(|at| if rank == 2 { greatest(at) } else { number(rank, at) }).collect();
            assert!(reduced == expected, "{length}, rank {rank}");
        }
    }
}

#[test]
fn an_average_of_bf16_is_rounded_once() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let results = on_ranks(2, |rank, comm| {
        let stream = comm.stream();
        let own = [256.0, 258.0][rank];
        let mut numbers = stream.clone_htod(&[bf16::from_f32(own), bf16::ONE]).expect("numbers");
        comm.all_reduce_in_place(&mut numbers, &ReduceOp::Avg).expect("an average");
        stream.clone_dtoh(&numbers).expect("read")
    });
    for result in results {
        assert_eq!(result, [bf16::from_f32(257.0), bf16::ONE]);
    }
}

/// One thread has all the ranks: in a group their calls wait for each other.
#[test]
fn one_thread_may_have_several_ranks() {
    let Some(_alone) = alone(&Settings { devices: 2, ..Settings::default() }) else { return };
    let comms = Comm::from_devices(vec![stream(0), stream(1)]).expect("communicators");
    let mut buffers: Vec<_> = comms
        .iter()
        .enumerate()
        .map(|(rank, comm)| comm.stream().clone_htod(&numbers(rank, 9)).expect("numbers"))
        .collect();
    cudarc::nccl::group_start().expect("a group");
    for (comm, buffer) in comms.iter().zip(&mut buffers) {
        comm.all_reduce_in_place(buffer, &ReduceOp::Sum).expect("a sum");
    }
    cudarc::nccl::group_end().expect("the end of the group");
    for (comm, buffer) in comms.iter().zip(&buffers) {
        let expected: Vec<_> = (0..9).map(|at| sum(2, at)).collect();
        assert_eq!(comm.stream().clone_dtoh(buffer).expect("read"), expected);
    }
}

/// Both send first, more than lies between them at once, and two after one another.
#[test]
fn ranks_send_to_each_other() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    for length in LENGTHS {
        let received = on_ranks(2, |rank, comm| {
            let (stream, other) = (comm.stream(), 1 - rank as i32);
            let send = [rank, 7].map(|of| stream.clone_htod(&numbers(of, length)).expect("numbers"));
            let mut receive = [(); 2].map(|()| stream.alloc_zeros::<f32>(length).expect("memory"));
            cudarc::nccl::group_start().expect("a group");
            for send in &send {
                comm.send(send, other).expect("a send");
            }
            for receive in &mut receive {
                comm.recv(receive, other).expect("a receive");
            }
            cudarc::nccl::group_end().expect("the end of the group");
            receive.map(|numbers| stream.clone_dtoh(&numbers).expect("read"))
        });
        for (rank, [first, second]) in received.into_iter().enumerate() {
            assert!(first == numbers(1 - rank, length) && second == numbers(7, length), "{length}");
        }
    }
}

#[test]
fn calls_and_bytes_are_counted() {
    let Some(_alone) = alone(&Settings::default()) else { return };
    let control = softnccl::control().expect("the software NCCL");
    let meet = std::sync::Barrier::new(2);
    on_ranks(2, |rank, comm| {
        let stream = comm.stream();
        let own = stream.clone_htod(&[1.0_f32; 5]).expect("numbers");
        let mut all = stream.alloc_zeros::<f32>(10).expect("memory");
        for _ in 0..3 {
            comm.all_gather(&own, &mut all).expect("a gather");
        }
        let mut part = stream.alloc_zeros::<f32>(5).expect("memory");
        comm.reduce_scatter(&all, &mut part, &ReduceOp::Sum).expect("a scatter");
        if rank == 0 {
            comm.send(&own, 1).expect("a send");
        } else {
            comm.recv(&mut part, 0).expect("a receive");
        }
        stream.synchronize().expect("done");
        // A communicator that is dropped aborts, and the other rank's calls fail.
        meet.wait();
    });
    let counts = control.take_counts();
    assert_eq!(counts.all_gather, Count { calls: 6, bytes: 6 * 20 });
    assert_eq!(counts.reduce_scatter, Count { calls: 2, bytes: 2 * 40 });
    assert_eq!((counts.send, counts.receive), (Count { calls: 1, bytes: 20 }, Count { calls: 1, bytes: 20 }));
    assert_eq!(counts.all_reduce, Count::default());
    assert_eq!(control.take_counts(), softnccl::Counts::default());
}
