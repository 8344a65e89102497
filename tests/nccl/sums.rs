//! Sums over ranks, on a stream of their own.

use crate::{delayed, on_ranks, turn_with};
use exo_kernels::Error;
use exo_kernels::ranks::Communicator;
use softcuda::Settings;
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::device::{download, upload};

fn number(rank: usize, at: usize) -> f32 {
    ((at * 7919 + rank * 104_729) % 2003) as f32 * 0.37 - 300.0
}

/// What a rank's stream did before is in the sum, what it does after is not, and `meanwhile` is in between on no account.
#[test]
fn a_sum_is_in_the_order_of_the_backends_stream() {
    for settings in [Settings::default(), delayed()] {
        for ranks in [1, 2, 3] {
            let Some(_turn) = turn_with(ranks, settings.clone(), false) else { continue };
            let count = 2000;
            let found = on_ranks(ranks, |rank, cuda, nccl| {
                let stream = cuda.stream();
                let own: Vec<f32> = (0..count).map(|at| number(rank, at)).collect();
                let mut numbers = stream.alloc_zeros::<f32>(count).expect("memory");
                let mut other = stream.alloc_zeros::<f32>(count).expect("memory");
                let mut after = stream.alloc_zeros::<f32>(count).expect("memory");
                stream.memcpy_htod(&own, &mut numbers).expect("a copy");
                let mut calls = 0;
                nccl.sum(&cuda, (&mut numbers).into(), &mut || {
                    calls += 1;
                    stream.memcpy_htod(&own, &mut other).expect("a copy");
                    Ok(())
                })
                .expect("a sum");
                assert_eq!(calls, 1);
                stream.memcpy_dtod(&numbers, &mut after).expect("a copy");
                stream.memset_zeros(&mut numbers).expect("zeros");
                // And once more, of what is zeros by then.
                nccl.sum(&cuda, (&mut numbers).into(), &mut || Ok(())).expect("a sum");
                assert_eq!(download(&cuda, &other), own);
                assert_eq!(download(&cuda, &numbers), vec![0.0; count]);
                assert_eq!(nccl.status(), Ok(()));
                download(&cuda, &after)
            });
            for of_rank in &found {
                assert_eq!(of_rank, &found[0], "the same bits");
                for (at, sum) in of_rank.iter().enumerate() {
                    let exact: f64 = (0..ranks).map(|rank| f64::from(number(rank, at))).sum();
                    let size: f64 = (0..ranks).map(|rank| f64::from(number(rank, at)).abs()).sum();
                    // What a sum in f32 in any order keeps.
                    let bound = ranks as f64 * f64::from(f32::EPSILON) * size;
                    assert!((f64::from(*sum) - exact).abs() <= bound, "{sum}, {exact}");
                }
            }
        }
    }
}

/// A rank's `meanwhile` waits for its own work in the backend's stream, while the other ranks have not begun their sum: a sum in that
/// stream would never let it.
#[test]
fn what_is_done_meanwhile_does_not_wait_for_the_sum() {
    let Some(_turn) = turn_with(2, delayed(), false) else { return };
    let (done, is_done) = channel::<()>();
    let is_done = Mutex::new(is_done);
    on_ranks(2, |rank, cuda, nccl| {
        let stream = cuda.stream();
        let mut numbers = upload(&cuda, &[1.0_f32 + rank as f32; 5]);
        let mut other = stream.alloc_zeros::<f32>(5).expect("memory");
        if rank == 1 {
            let is_done = is_done.lock().unwrap_or_else(PoisonError::into_inner);
            is_done.recv_timeout(Duration::from_secs(60)).expect("rank 0's work goes on");
        }
        nccl.sum(&cuda, (&mut numbers).into(), &mut || {
            stream.memcpy_htod(&[9.0; 5], &mut other).expect("a copy");
            if rank == 0 {
                stream.record_event(None).and_then(|event| event.synchronize()).expect("the copy");
                done.send(()).expect("rank 1 waits");
            }
            Ok(())
        })
        .expect("a sum");
        assert_eq!(download(&cuda, &numbers), [3.0; 5]);
        assert_eq!(download(&cuda, &other), [9.0; 5]);
    });
}

/// What `meanwhile` gives is the call's error; the sum is made all the same, and the ranks are together.
#[test]
fn an_error_of_what_is_done_meanwhile_is_the_calls() {
    let Some(_turn) = turn_with(2, Settings::default(), false) else { return };
    on_ranks(2, |rank, cuda, nccl| {
        let mut numbers = upload(&cuda, &[1.0_f32]);
        let own = if rank == 0 { Err(Error::NoForward) } else { Ok(()) };
        assert_eq!(nccl.sum(&cuda, (&mut numbers).into(), &mut || own.clone()), own);
        assert_eq!(download(&cuda, &numbers), [2.0]);
        nccl.sum(&cuda, (&mut numbers).into(), &mut || Ok(())).expect("a sum");
        assert_eq!(download(&cuda, &numbers), [4.0]);
    });
}
