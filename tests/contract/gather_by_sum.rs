//! A gather made of a sum: every word arrives bit for bit, whatever it is and in whatever order the engine adds.

use exo_kernels::Error;
use exo_kernels::ranks::gather_by_sum;
use proptest::prelude::*;
use std::cell::Cell;

/// Gathers what each rank has by an engine that only sums, and gives what each rank gets. `order` is that of the additions.
fn gathered(of_ranks: &[Vec<u32>], order: &[usize]) -> Vec<Vec<u32>> {
    let (ranks, of_rank) = (of_ranks.len(), of_ranks[0].len());
    // Where the others' words belong this rank has whatever was there before.
    let with_own = |rank: usize| {
        let mut words = vec![0xdead_beef; ranks * of_rank];
        words[rank * of_rank..][..of_rank].copy_from_slice(&of_ranks[rank]);
        words
    };
    // What each rank hands to the engine.
    let handed: Vec<Vec<f32>> = (0..ranks)
        .map(|rank| {
            let mut handed = Vec::new();
            let stop = gather_by_sum(&mut with_own(rank), (rank, ranks), &mut Vec::new(), |numbers| {
                handed = numbers.to_vec();
                Err(Error::NoForward)
            });
            assert_eq!(stop, Err(Error::NoForward));
            handed
        })
        .collect();
    let mut sums = vec![-0.0_f32; handed[0].len()];
    for rank in order {
        for (sum, number) in sums.iter_mut().zip(&handed[*rank]) {
            *sum += number;
        }
    }
    (0..ranks)
        .map(|rank| {
            let (mut words, calls) = (with_own(rank), Cell::new(0));
            // What is kept from another call does not matter.
            let mut kept = vec![f32::NAN; 5];
            gather_by_sum(&mut words, (rank, ranks), &mut kept, |numbers| {
                calls.set(calls.get() + 1);
                numbers.copy_from_slice(&sums);
                Ok(())
            })
            .expect("gathered");
            assert_eq!(calls.get(), 1);
            words
        })
        .collect()
}

/// Words that f32 would not keep as they are: NaNs with payloads, quiet and signalling, −0, subnormal numbers, infinities; and the halves' ends.
const SPECIAL: [u32; 14] = [
    0,
    0x8000_0000,
    0x7f80_0001,
    0xffbf_ffff,
    0x7fc0_dead,
    0xffff_ffff,
    1,
    0x007f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0xffff,
    0x1_0000,
    0xffff_0000,
    0x0100_0001,
];

#[test]
fn words_that_are_no_numbers_arrive() {
    for ranks in 1..=5 {
        let of_ranks: Vec<Vec<u32>> =
            (0..ranks).map(|rank| (0..14).map(|index| SPECIAL[(index + 3 * rank) % 14]).collect()).collect();
        let order: Vec<_> = (0..ranks).rev().collect();
        assert!(gathered(&of_ranks, &order).iter().all(|words| *words == of_ranks.concat()), "{ranks} ranks");
    }
}

proptest! {
    #[test]
    fn any_words_arrive_in_any_order_of_additions(
        (of_ranks, order) in (1_usize..6, 0_usize..20).prop_flat_map(|(ranks, count)| {
            let words = prop::collection::vec(prop::collection::vec(any::<u32>(), count), ranks);
            (words, Just((0..ranks).collect::<Vec<_>>()).prop_shuffle())
        })
    ) {
        let expected = of_ranks.concat();
        prop_assert!(gathered(&of_ranks, &order).iter().all(|words| *words == expected));
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_summed() {
    let refused = |words: usize, place| {
        let mut words = vec![7; words];
        let error = gather_by_sum(&mut words, place, &mut Vec::new(), |_| panic!("summed")).expect_err("refused");
        assert!(words.iter().all(|word| *word == 7), "a refused call wrote");
        error
    };
    assert_eq!(refused(7, (0, 3)), Error::Length { what: "words of an exchange", given: 7, expected: 6 });
    let expected = "below the number of ranks";
    assert_eq!(refused(6, (3, 3)), Error::Parameter { name: "rank", given: 3.0, expected });
    assert_eq!(refused(0, (0, 0)), Error::Parameter { name: "rank", given: 0.0, expected });
}
