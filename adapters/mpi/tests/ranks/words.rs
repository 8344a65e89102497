//! Words and sums: every bit arrives, whatever its size and however it is cut.

use crate::Calls;
use exo_kernels::ranks;
use exo_kernels::{Cpu, Error};
use exo_kernels_mpi::Mpi;
use mpi::collective::SystemOperation;
use mpi::request::scope;
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator as _, CommunicatorCollectives, Destination, Source};

/// Nothing, one, odd numbers, more than a message.
const COUNTS: [usize; 6] = [0, 1, 3, 64, 1001, 10_007];

/// Words of one message: none of these numbers is a multiple of 7.
const MESSAGES: [usize; 3] = [7, 1000, 1 << 28];

/// A word of a rank: any bits, those of NaNs and of −0 among them.
fn word(rank: usize, index: usize) -> u32 {
    const SPECIAL: [u32; 6] = [0, 0x8000_0000, 0x7f80_0001, 0xffff_ffff, 0x7fc0_dead, 1];
    let any = (rank as u32 + 1).wrapping_mul(0x9e37_79b9).wrapping_add((index as u32).wrapping_mul(0x85eb_ca6b));
    SPECIAL.get((index + rank) % 16).copied().unwrap_or(any)
}

fn on_every_message(world: &SimpleCommunicator, test: impl Fn(&Mpi)) {
    for largest in MESSAGES {
        test(&Mpi::new(world).and_then(|mpi| mpi.with_largest_message(largest)).expect("a duplicate"));
    }
}

pub(crate) fn every_word_is_gathered(world: &SimpleCommunicator) {
    on_every_message(world, |mpi| {
        for count in COUNTS {
            let of = |rank| (0..count).map(move |index| word(rank, index));
            let expected: Vec<_> = (0..mpi.ranks()).flat_map(of).collect();
            let mut words = vec![0xaaaa_aaaa; mpi.ranks() * count];
            for (place, word) in words[mpi.rank() * count..].iter_mut().zip(of(mpi.rank())) {
                *place = word;
            }
            mpi.all_gather(&mut words).expect("gathered");
            assert!(words == expected, "{count} words of each rank");
        }
    });
}

pub(crate) fn a_number_of_words_that_is_no_multiple_is_refused(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let given = 3 * mpi.ranks() + 1;
    let error = mpi.all_gather(&mut vec![0; given]).expect_err("refused");
    assert_eq!(error, Error::Length { what: "words of an exchange", given, expected: given - 1 });
}

pub(crate) fn every_word_is_exchanged(world: &SimpleCommunicator) {
    on_every_message(world, |mpi| {
        for count in COUNTS {
            let of = |rank| (0..count).map(move |index| word(rank, index));
            let expected: Vec<_> = (0..mpi.ranks()).flat_map(of).collect();
            let found = mpi.exchange(&of(mpi.rank()).collect::<Vec<_>>()).expect("exchanged");
            assert!(found == expected, "{count} words of each rank");
        }
    });
}

pub(crate) fn sums_are_exact_where_f32_is(world: &SimpleCommunicator) {
    on_every_message(world, |mpi| {
        for count in COUNTS {
            // Integers far below 2²⁴: whatever the order, no addition rounds.
            let of = |rank: usize, index: usize| ((rank + 3) * (index % 1013)) as f32 - 500.0;
            let mut numbers: Vec<_> = (0..count).map(|index| of(mpi.rank(), index)).collect();
            mpi.sum(&mut numbers).expect("summed");
            for (index, found) in numbers.iter().enumerate() {
                assert_eq!(
                    *found,
                    (0..mpi.ranks()).map(|rank| of(rank, index)).sum::<f32>(),
                    "number {index} of {count}"
                );
            }
        }
    });
}

pub(crate) fn sums_have_the_same_bits_on_every_rank_within_their_bound(world: &SimpleCommunicator) {
    on_every_message(world, |mpi| {
        for count in COUNTS {
            // All sizes and both signs, so that the additions cancel.
            let of = |rank: usize, index: usize| {
                let bits = word(rank, 16 * index + 15 - rank % 16);
                f32::from_bits((bits & 0x807f_ffff) | (110 + bits % 30) << 23)
            };
            let mut numbers: Vec<_> = (0..count).map(|index| of(mpi.rank(), index)).collect();
            mpi.sum(&mut numbers).expect("summed");
            for (index, found) in numbers.iter().enumerate() {
                let terms = || (0..mpi.ranks()).map(|rank| f64::from(of(rank, index)));
                // P − 1 additions, each off by half a unit of at most the sum of sizes.
                let bound = (mpi.ranks() - 1) as f64 * f64::from(f32::EPSILON) / 2.0
                    * 1.001
                    * terms().map(f64::abs).sum::<f64>();
                let (found, expected) = (f64::from(*found), terms().sum::<f64>());
                assert!((found - expected).abs() <= bound, "number {index} of {count}: {found}, {expected} ± {bound}");
            }
            let bits: Vec<_> = numbers.iter().map(|number| number.to_bits()).collect();
            let all = mpi.exchange(&bits).expect("exchanged");
            assert!(all.chunks(count.max(1)).all(|of_rank| of_rank == bits), "bits of {count} sums");
        }
    });
}

pub(crate) fn meanwhile_is_called_once_and_its_error_comes_after_the_sum(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    for result in [Ok(()), Err(Error::NoForward)] {
        let (mut calls, mut numbers) = (0, vec![mpi.rank() as f32; 1001]);
        let found = ranks::Communicator::sum(&mpi, &Cpu::default(), &mut numbers, &mut || {
            calls += 1;
            result.clone()
        });
        assert_eq!((found, calls), (result, 1));
        let expected = (0..mpi.ranks()).map(|rank| rank as f32).sum::<f32>();
        assert!(numbers.iter().all(|number| *number == expected), "summed all the same");
    }
    // Also where no sum is made.
    if mpi.ranks() > 1 {
        let mut calls = 0;
        let found = ranks::Communicator::sum(&mpi, &Cpu::default(), &mut vec![0.0; mpi.rank()], &mut || {
            calls += 1;
            Ok(())
        });
        assert!(matches!(found, Err(Error::RanksDisagree { what: "words of an exchange", .. })), "{found:?}");
        assert_eq!(calls, 1);
    }
}

/// The user's messages, of every kind that ours could meet, are under way while ours are.
pub(crate) fn messages_of_the_user_do_not_mix_with_ours(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let (rank, count) = (world.rank(), world.size());
    let (next, previous) = ((rank + 1) % count, (rank + count - 1) % count);
    let message = [rank as u32; 3];
    let (of_user, mut sum_of_user) = ([rank as u32; 3], [0; 3]);
    scope(|scope| {
        let sent = world.process_at_rank(next).immediate_send(scope, &message[..]);
        let summed = world.immediate_all_reduce_into(scope, &of_user[..], &mut sum_of_user[..], SystemOperation::sum());
        let all = mpi.exchange(&[7, 8, rank as u32]).expect("exchanged");
        for (other, words) in all.chunks(3).enumerate() {
            assert_eq!(words, [7, 8, other as u32]);
        }
        let mut numbers = [1.0; 3];
        mpi.sum(&mut numbers).expect("summed");
        assert_eq!(numbers, [count as f32; 3]);
        let (received, status) = world.process_at_rank(previous).receive_vec::<u32>();
        assert_eq!((received, status.source_rank()), (vec![previous as u32; 3], previous));
        sent.wait();
        summed.wait();
    });
    assert_eq!(sum_of_user, [(0..count as u32).sum::<u32>(); 3]);
}

pub(crate) fn rows_of_a_split_communicator_are_ranks_of_their_own(world: &SimpleCommunicator) {
    let all = Mpi::new(world).expect("a duplicate");
    // Even ranks and odd ones, in descending order.
    let row = world.split_by_color_with_key(Color::with_value(world.rank() % 2), -world.rank()).expect("a row");
    let own = Mpi::new(&row).expect("a duplicate");
    drop(row);
    let parity = all.rank() % 2;
    let members: Vec<_> = (0..all.ranks()).rev().filter(|rank| rank % 2 == parity).map(|rank| rank as u32).collect();
    assert_eq!(own.ranks(), members.len());
    assert_eq!(members[own.rank()], all.rank() as u32);
    // By turns: of the row, of all.
    for _ in 0..3 {
        assert_eq!(own.exchange(&[all.rank() as u32]).expect("exchanged"), members);
        let expected: Vec<_> = (0..all.ranks() as u32).collect();
        assert_eq!(all.exchange(&[all.rank() as u32]).expect("exchanged"), expected);
    }
    let mut sum = [all.rank() as f32];
    own.sum(&mut sum).expect("summed");
    assert_eq!(sum, [members.iter().sum::<u32>() as f32]);
}

pub(crate) fn ranks_that_differ_are_all_told_so_and_go_on(world: &SimpleCommunicator) {
    let mpi = Mpi::new(world).expect("a duplicate");
    let (last, first) = (mpi.ranks() - 1, mpi.rank() == 0);
    let disagree = |what, rank, given, expected| Error::RanksDisagree { what, rank, given, other: 0, expected };
    let call = "call (0 none, 1 all_gather, 2 sum, 3 exchange)";

    let found = if first { mpi.sum(&mut [1.0]) } else { mpi.exchange(&[1]).map(drop) };
    assert_eq!(found, Err(disagree(call, 1, 3.0, 2.0)));
    let found = mpi.exchange(if mpi.rank() == last { &[1, 2] } else { &[1] });
    assert_eq!(found, Err(disagree("words of an exchange", last, 2.0, 1.0)));
    let mut words = vec![5; if mpi.rank() == last { 2 } else { 1 } * mpi.ranks()];
    let expected = mpi.ranks() as f64;
    assert_eq!(mpi.all_gather(&mut words), Err(disagree("words of an exchange", last, 2.0 * expected, expected)));
    assert!(words.iter().all(|word| *word == 5), "a refused call wrote");
    assert_eq!(mpi.exchange(&[9]), Ok(vec![9; mpi.ranks()]), "together still");

    let cut = Mpi::new(world).and_then(|mpi| mpi.with_largest_message(if first { 8 } else { 9 })).expect("a duplicate");
    assert_eq!(cut.exchange(&[9]), Err(disagree("words of one message", 1, 9.0, 8.0)));
}

pub(crate) fn a_largest_message_that_is_none_is_refused(world: &SimpleCommunicator) {
    for words in [0, i32::MAX as usize + 1] {
        let error = Mpi::new(world).and_then(|mpi| mpi.with_largest_message(words)).expect_err("refused");
        assert!(matches!(error, Error::Parameter { name: "largest message", .. }), "{error}");
    }
}
