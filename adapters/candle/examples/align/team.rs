//! Ranks that align one model together: each draws its share of the completions, and trains on its share of every step's groups. All have the
//! same model before and after each step, bit for bit, so that each could write the log.

use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use exo_kernels::Cpu;
use exo_kernels::ranks::Communicator;

use crate::llama::Llama;

/// Of one process, unless it is told of others.
#[derive(Clone, Copy, Default)]
pub struct Team<'c> {
    others: Option<&'c dyn Communicator<Cpu>>,
}

impl<'c> Team<'c> {
    /// The ranks of a communicator. One rank is the same as no communicator, bit for bit.
    #[allow(dead_code)] // by the program of one process
    pub fn of(communicator: &'c dyn Communicator<Cpu>) -> Self {
        Self { others: (communicator.ranks() > 1).then_some(communicator) }
    }

    pub fn rank(self) -> usize {
        self.others.map_or(0, Communicator::rank)
    }

    pub fn ranks(self) -> usize {
        self.others.map_or(1, Communicator::ranks)
    }

    /// This rank's of so many things; ranks have as many as each other, or one more.
    pub fn share(self, count: usize) -> Range<usize> {
        let start = |rank: usize| count * rank / self.ranks();
        start(self.rank())..start(self.rank() + 1)
    }

    /// The lists of all ranks, in the order of the ranks.
    pub fn all_lists(self, own: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
        if self.others.is_none() {
            return Ok(own);
        }
        // Each list after its length; of every rank as much as the longest has.
        let words = own
            .iter()
            .flat_map(|list| std::iter::once(list.len() as u32).chain(list.iter().copied()))
            .collect::<Vec<_>>();
        let lengths = self.exchange(&[u32::try_from(words.len())?])?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut padded = words;
        padded.resize(longest, 0);
        let all = self.exchange(&padded)?;
        let mut lists = Vec::new();
        for (words, length) in all.chunks(longest.max(1)).zip(lengths) {
            let mut rest = &words[..length as usize];
            while let [length, list @ ..] = rest {
                let (list, others) = list.split_at(*length as usize);
                lists.push(list.to_vec());
                rest = others;
            }
        }
        Ok(lists)
    }

    /// Numbers of all ranks, `[P, n]`.
    fn all_numbers<const N: usize>(self, own: [f64; N]) -> Result<Vec<[f64; N]>> {
        let words = own.iter().flat_map(|number| [number.to_bits() as u32, (number.to_bits() >> 32) as u32]).collect();
        let number = |words: &[u32]| f64::from_bits(u64::from(words[0]) | u64::from(words[1]) << 32);
        let lists = self.all_lists(vec![words])?;
        Ok(lists.iter().map(|words| std::array::from_fn(|index| number(&words[2 * index..]))).collect())
    }

    /// What the ranks' numbers add up to.
    pub fn sum<const N: usize>(self, own: [f64; N]) -> Result<[f64; N]> {
        let all = self.all_numbers(own)?;
        Ok(std::array::from_fn(|index| all.iter().map(|numbers| numbers[index]).sum()))
    }

    /// The largest of the ranks' numbers: of their seconds.
    pub fn largest(self, own: f64) -> Result<f64> {
        Ok(self.all_numbers([own])?.into_iter().map(|[number]| number).fold(own, f64::max))
    }

    /// Adds up each parameter's gradient over ranks, in f32.
    pub fn sum_gradients(self, parameters: &[(String, Var)], gradients: &mut GradStore) -> Result<()> {
        let Some(communicator) = self.others else { return Ok(()) };
        for (name, parameter) in parameters {
            let gradient =
                gradients.remove(parameter).with_context(|| format!("no gradient reached the parameter `{name}`"))?;
            let mut numbers = gradient.flatten_all()?.to_vec1::<f32>()?;
            communicator.sum(&Cpu::default(), &mut numbers, &mut || Ok(()))?;
            gradients.insert(parameter, Tensor::from_vec(numbers, gradient.shape(), gradient.device())?);
        }
        Ok(())
    }

    /// That all ranks have the same parameters, bit for bit.
    pub fn check_same(self, what: &str, model: &Llama) -> Result<()> {
        if self.others.is_none() {
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        for (_, tensor) in model.parameters() {
            for number in tensor.flatten_all()?.to_vec1::<f32>()? {
                hasher.write_u32(number.to_bits());
            }
        }
        let own = hasher.finish();
        let all = self.all_lists(vec![vec![own as u32, (own >> 32) as u32]])?;
        ensure!(all.iter().all(|other| *other == all[0]), "ranks have another {what} than each other");
        Ok(())
    }

    fn exchange(self, words: &[u32]) -> Result<Vec<u32>> {
        let Some(communicator) = self.others else { return Ok(words.to_vec()) };
        communicator.exchange(words)?.context("the ranks' communicator exchanges no words between hosts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::Group;
    use crate::sampling::{Completion, Prompt};
    use crate::tiny_model;
    use crate::training::{Policy, Step, Trainer};
    use candle_core::Device;
    use exo_kernels::ranks::Threads;
    use exo_kernels::{Betas, LogitOptions, Objective};

    /// What each rank makes of it, on a thread of its own.
    fn on_ranks<R: Send>(ranks: usize, run: impl Fn(Team<'_>) -> Result<R> + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let run = &run;
            let ranks = Threads::new(ranks).expect("few").into_iter();
            let ranks = ranks.map(|own| scope.spawn(move || run(Team::of(&own)))).collect::<Vec<_>>();
            ranks.into_iter().map(|rank| rank.join().expect("no panic").expect("no error")).collect()
        })
    }

    /// Three groups of unlike completions and rewards.
    fn groups() -> Vec<Group> {
        let group = |group: u32| Group {
            prompt: Prompt { text: String::new(), tokens: vec![65 + group, 66] },
            completions: (0..4)
                .map(|index| {
                    let tokens = (0..=index + group).map(|token| 70 + (token * 7 + index * 3) % 20).collect::<Vec<_>>();
                    let log_probs = tokens.iter().map(|token| -4.0 - (token % 5) as f32 * 0.3).collect();
                    Completion { prompt: group as usize, tokens, log_probs }
                })
                .collect(),
            rewards: (0..4).map(|index| ((index + group) % 4) as f32 * 0.4).collect(),
        };
        (0..3).map(group).collect()
    }

    /// One step of the same policy, and the parameters after it.
    fn step(team: Team<'_>) -> Result<(Step, Vec<f32>)> {
        let policy = Policy::copy_of(&tiny_model::random(&tiny_model::config(), 3, &Device::Cpu)?)?;
        let mut trainer = Trainer {
            policy: &policy,
            optimizer: policy.optimizer(1e-3)?,
            objective: Objective::exo(Betas { policy: 0.5, reward: 0.5 })?,
            logit_options: LogitOptions::default(),
            learning_rate: 1e-3,
            largest_gradient: 1e3,
            materialize_logits: false,
            steps: 1,
            team,
        };
        let groups = groups();
        let step = trainer.step(0, &groups.iter().collect::<Vec<_>>())?;
        let mut parameters = Vec::new();
        for (_, tensor) in policy.model.parameters() {
            parameters.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        }
        team.check_same("policy", &policy.model)?;
        Ok((step, parameters))
    }

    #[test]
    fn ranks_make_the_step_of_one_up_to_rounding() -> Result<()> {
        let (alone, _) = step(Team::default())?;
        assert!(alone.gradient_norm > 1e-2, "a gradient that is more than rounding: {}", alone.gradient_norm);
        // Groups are shared out as 1 + 2, 1 + 1 + 1.
        for ranks in [1, 2, 3] {
            let found = on_ranks(ranks, step);
            for (of_rank, parameters) in &found {
                let bits = |parameters: &[f32]| parameters.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
                assert!(bits(parameters) == bits(&found[0].1), "ranks have the same bits");
                let pairs = [
                    (of_rank.loss, alone.loss),
                    (of_rank.gradient_norm, alone.gradient_norm),
                    (of_rank.accuracy, alone.accuracy),
                    (of_rank.effective_sample_size, alone.effective_sample_size),
                    (of_rank.mean_log_ratio, alone.mean_log_ratio),
                    (of_rank.batch_reward, alone.batch_reward),
                ];
                for (found, expected) in pairs {
                    // f32 through a model of two layers: a wrong weight or a group too many is off by a tenth and more.
                    assert!((found - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{found} is not {expected}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_list_comes_to_every_rank_in_order() {
        let lists = |rank: usize| (0..=rank).map(|list| vec![rank as u32; 3 * list + rank % 2]).collect::<Vec<_>>();
        let expected = (0..4).flat_map(lists).collect::<Vec<_>>();
        for found in on_ranks(4, |team| team.all_lists(lists(team.rank()))) {
            assert_eq!(found, expected);
        }
        assert!(on_ranks(3, |team| team.all_lists(Vec::new())).iter().all(Vec::is_empty));
        assert_eq!(on_ranks(3, |team| team.sum([team.rank() as f64, 0.5])), [[3.0, 1.5]; 3]);
    }

    #[test]
    fn shares_are_everything_once() {
        for ranks in 1..5 {
            let shares = on_ranks(ranks, |team| Ok(team.share(7)));
            assert_eq!(shares.into_iter().flatten().collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
        }
    }
}
