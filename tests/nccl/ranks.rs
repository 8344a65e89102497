//! Log-probs over ranks: their bits, what is exchanged, and what ranks refuse.

use crate::{UNTOUCHED, call, cuda, delayed, on_ranks, rows, shard, slices, turn_with};
use cudarc::driver::DevicePtrMut;
use cudarc::nccl::{result, sys};
use exo_kernels::cuda::{Grown, Nccl};
use exo_kernels::ranks::{Communicator, Threads};
use exo_kernels::{Error, LogitOptions};
use limits::watchdog::within;
use softcuda::Settings;
use softnccl::Count;
use std::ffi::c_void;
use support::backend::{Layout, Rows};
use support::device::{download, upload};

/// At the borders of slices those of one call, also with work that is held back; elsewhere those of the other ranks.
#[test]
fn every_rank_gets_the_bits_of_one_call() {
    for settings in [Settings::default(), delayed()] {
        for ranks in [1, 2, 4] {
            let Some(_turn) = turn_with(ranks, settings.clone(), false) else { continue };
            let options = LogitOptions::default().with_temperature(0.8).expect("valid");
            let (vocab, at_slices) = slices(ranks);
            let elsewhere = Layout::new(&(0..ranks).map(|rank| rank * 100).collect::<Vec<_>>());
            for (vocab, layout, are_those_of_one) in [(vocab, at_slices, true), (600, elsewhere, ranks == 1)] {
                let whole = rows(vocab, 0);
                let found = on_ranks(ranks, |rank, cuda, nccl| {
                    let options = shard(&options, &layout, rank, vocab);
                    let mut parts = Grown::default();
                    let own = layout.of_rank(&whole, rank);
                    call(&cuda, &nccl, &own, &options, &mut parts).0.expect("all ranks fit");
                    let found = call(&cuda, &nccl, &own, &options, &mut parts);
                    assert_eq!(nccl.status(), Ok(()));
                    found
                });
                assert!(found.iter().all(|of_rank| *of_rank == found[0] && of_rank.0 == Ok(())), "{ranks} ranks");
                if are_those_of_one {
                    let alone = Threads::new(1).expect("one").remove(0);
                    let one = support::ranks::Staged(alone);
                    let (result, expected) = call(&cuda(0), &one, &whole, &options, &mut Grown::default());
                    assert_eq!((result, &expected), (Ok(()), &found[0].1), "{ranks} ranks");
                }
            }
        }
    }
}

/// A step gathers once, 16 bytes for each row and slice from each rank, and exchanges one note.
#[test]
fn a_step_gathers_once() {
    for (ranks, slices_of_rank) in [(2, 1), (4, 1), (2, 2)] {
        let Some(_turn) = turn_with(ranks, Settings::default(), true) else { return };
        let control = softnccl::control().expect("the software NCCL");
        let (vocab, layout) = slices(ranks * slices_of_rank);
        let layout = Layout::new(&layout.starts.into_iter().step_by(slices_of_rank).collect::<Vec<_>>());
        let whole = rows(vocab, 0);
        let meet = std::sync::Barrier::new(ranks);
        let counted = on_ranks(ranks, |rank, cuda, nccl| {
            let options = shard(&LogitOptions::default(), &layout, rank, vocab);
            let own = layout.of_rank(&whole, rank);
            // What one exchange of notes is, alone.
            meet.wait();
            control.take_counts();
            meet.wait();
            assert_eq!(nccl.exchange(&[7; 10]).map(|all| all.expect("words").len()), Ok(10 * ranks));
            meet.wait();
            let of_exchange = if rank == 0 { control.take_counts() } else { softnccl::Counts::default() };
            meet.wait();
            call(&cuda, &nccl, &own, &options, &mut Grown::default()).0.expect("all ranks fit");
            meet.wait();
            let of_step = if rank == 0 { control.take_counts() } else { softnccl::Counts::default() };
            meet.wait();
            (of_exchange, of_step)
        });
        let (of_exchange, of_step) = counted[0];
        let all = ranks as u64;
        assert_eq!(of_exchange.all_gather, Count { calls: all, bytes: all * 40 });
        assert_eq!(of_step.all_gather.calls, 2 * all, "a note and the rows");
        let of_rows = all * 16 * 4 * slices_of_rank as u64;
        let of_notes = of_step.all_gather.bytes - of_rows;
        assert!(of_notes.is_multiple_of(all) && (1..512).contains(&(of_notes / all)), "{of_step:?}");
        let rest = softnccl::Counts { all_gather: Count::default(), ..of_step };
        assert_eq!(rest, softnccl::Counts::default(), "nothing else");
    }
}

/// A sum of words, each of which is zero on all ranks but one, is the gather, bit for bit: by a communicator that another framework
/// owns, and that it uses itself between calls.
#[test]
fn a_gather_is_a_sum_of_words() {
    let Some(_turn) = turn_with(2, Settings::default(), false) else { return };
    let id = Nccl::unique_id().expect("an id");
    let word = |rank: usize, at: usize| (0x9e37_79b9_u32).wrapping_mul((rank * 1000 + at) as u32 + 1);
    let count = 1000;
    let found = within(crate::LIMIT, || {
        std::thread::scope(|scope| {
            let rank = |rank: usize| {
                scope.spawn(move || {
                    let cuda = cuda(rank);
                    cuda.stream().context().bind_to_thread().expect("a context");
                    let mut comm = std::ptr::null_mut();
                    let id = sys::ncclUniqueId { internal: id.map(|byte| byte as _) };
                    // SAFETY: a place for the communicator.
                    unsafe { result::comm_init_rank(&raw mut comm, 2, id, rank as i32) }.expect("a communicator");
                    // SAFETY: a communicator that is there until the end, and is used in the same order on all ranks.
                    let nccl = unsafe { Nccl::from_raw(&cuda, comm.cast()) }.expect("ranks");
                    assert_eq!((nccl.rank(), nccl.ranks()), (rank, 2));
                    let mut words = vec![0; 2 * count];
                    words[rank * count..][..count]
                        .iter_mut()
                        .enumerate()
                        .for_each(|(at, place)| *place = word(rank, at));
                    let (mut gathered, mut summed) = (upload(&cuda, &words), upload(&cuda, &words));
                    nccl.all_gather(&cuda, (&mut gathered).into()).expect("a gather");
                    let address = summed.device_ptr_mut(cuda.stream()).0 as *mut c_void;
                    let (data_type, sum) = (sys::ncclDataType_t::ncclUint32, sys::ncclRedOp_t::ncclSum);
                    let stream = cuda.stream().cu_stream().cast();
                    // SAFETY: as many words.
                    unsafe { result::all_reduce(address, address, 2 * count, data_type, sum, comm, stream) }
                        .map(drop)
                        .expect("a sum");
                    let both = [download(&cuda, &gathered), download(&cuda, &summed)];
                    drop(nccl);
                    // SAFETY: nothing uses it any more; it has not been destroyed with `nccl`.
                    unsafe { result::comm_destroy(comm) }.map(drop).expect("it is there still");
                    both
                })
            };
            [rank(0), rank(1)].map(|thread| thread.join().expect("no panic"))
        })
    });
    let expected: Vec<u32> = (0..2).flat_map(|rank| (0..count).map(move |at| word(rank, at))).collect();
    assert!(found.iter().flatten().all(|words| *words == expected));
}

/// Asserts that nothing has been written.
fn untouched(found: &[u32]) {
    assert!(found.iter().all(|bits| *bits == UNTOUCHED.to_bits()), "a refused call has written");
}

/// A shape that one rank refuses, and settings in which ranks differ; the ranks are together still afterwards.
#[test]
fn what_one_rank_refuses_all_are_told() {
    let Some(_turn) = turn_with(3, Settings::default(), false) else { return };
    let (whole, layout) = (rows(100, 0), Layout::new(&[0, 30, 60]));
    let found = on_ranks(3, |rank, cuda, nccl| {
        let own = layout.of_rank(&whole, rank);
        let options = shard(&LogitOptions::default(), &layout, rank, 100);
        let refused = if rank == 1 { Rows { targets: vec![0; 3], ..own.clone() } } else { own.clone() };
        let first = refused_call(&cuda, &nccl, &refused, &own, &options);
        let other = if rank == 2 { options.with_temperature(0.5).expect("valid") } else { options };
        let second = call(&cuda, &nccl, &own, &other, &mut Grown::default());
        let third = call(&cuda, &nccl, &own, &options, &mut Grown::default()).0;
        (first, second, third)
    });
    for (rank, (first, second, third)) in found.iter().enumerate() {
        let refused = first.0.as_ref().expect_err("refused");
        if rank == 1 {
            assert!(matches!(refused, Error::Length { .. }), "{refused}");
        } else {
            assert!(matches!(refused, Error::Rank { rank: 1, .. }), "{refused}");
        }
        untouched(&first.1);
        let (what, given, expected) = ("temperature", 0.5, 1.0);
        assert_eq!(second.0, Err(Error::RanksDisagree { what, rank: 2, given, other: 0, expected }));
        untouched(&second.1);
        assert_eq!(*third, Ok(()));
    }
}

/// A call whose targets are those of `refused`, for buffers of the rows of `own`.
fn refused_call(
    cuda: &exo_kernels::cuda::Cuda,
    nccl: &Nccl,
    refused: &Rows<f32>,
    own: &Rows<f32>,
    options: &LogitOptions,
) -> (exo_kernels::Result<()>, Vec<u32>) {
    let rows = Rows { logits: own.logits.clone(), ..refused.clone() };
    call(cuda, nccl, &rows, options, &mut Grown::default())
}

/// Without exchanges between hosts the rest is the same.
#[test]
fn ranks_do_without_notes() {
    let Some(_turn) = turn_with(2, Settings::default(), false) else { return };
    let (vocab, layout) = slices(2);
    let whole = rows(vocab, 0);
    let found = on_ranks(2, |rank, cuda, nccl| {
        let options = shard(&LogitOptions::default(), &layout, rank, vocab);
        let own = layout.of_rank(&whole, rank);
        let with = call(&cuda, &nccl, &own, &options, &mut Grown::default());
        let nccl = nccl.without_notes();
        assert_eq!(nccl.exchange(&[1, 2]), Ok(None));
        let without = call(&cuda, &nccl, &own, &options, &mut Grown::default());
        assert_eq!(nccl.status(), Ok(()));
        (with, without)
    });
    assert!(found.iter().all(|(with, without)| *with == found[0].0 && *without == found[0].0));
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let Some(_turn) = turn_with(2, Settings::default(), false) else { return };
    let backend = cuda(0);
    for (rank, ranks, name) in [(1, 1, "rank"), (0, 0, "rank"), (5, 1 << 40, "ranks")] {
        let refused = Nccl::new(&backend, &[0; 128], rank, ranks).expect_err("refused");
        assert!(matches!(refused, Error::Parameter { name: given, .. } if given == name), "{refused}");
    }
    let refused = Nccl::new(&backend, &[7; 128], 0, 1).expect_err("no id of NCCL's");
    assert!(matches!(refused, Error::Engine { engine: "NCCL", call: "ncclCommInitRank", .. }), "{refused}");
    // SAFETY: none, which NCCL refuses.
    let refused = unsafe { Nccl::from_raw(&backend, std::ptr::null_mut()) }.expect_err("no communicator");
    assert!(matches!(refused, Error::Engine { call: "ncclCommUserRank", .. }), "{refused}");

    let other = cuda(1);
    on_ranks(2, |rank, cuda, nccl| {
        let mut words = upload(&cuda, &[1_u32; 3]);
        let refused = nccl.all_gather(&cuda, (&mut words).into()).expect_err("no multiple");
        assert!(matches!(refused, Error::Length { given: 3, expected: 2, .. }), "{refused}");
        // Another backend's words, and another backend.
        let (mut words, mut numbers) = (upload(&other, &[1_u32; 2]), upload(&other, &[1.0_f32; 2]));
        if rank == 0 {
            let of_device = |result| matches!(result, Err(Error::Device { .. }));
            assert!(of_device(nccl.all_gather(&cuda, (&mut words).into())));
            assert!(of_device(nccl.all_gather(&other, (&mut words).into())));
            assert!(of_device(nccl.sum(&cuda, (&mut numbers).into(), &mut || Ok(()))));
            assert!(of_device(nccl.sum(&other, (&mut numbers).into(), &mut || Ok(()))));
        }
        // All is as it was.
        let mut words = upload(&cuda, &[rank as u32; 2]);
        nccl.all_gather(&cuda, (&mut words).into()).expect("a gather");
        assert_eq!(download(&cuda, &words), [0, 1]);
        assert_eq!(cuda.status().map(drop), Ok(()));
    });
}
