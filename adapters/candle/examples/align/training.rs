//! The alignment loop: packed hidden states of a few groups, this crate's loss, `AdamW`.

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use exo_kernels::{Batch, LogitOptions, LossOptions, Objective, Reduction, Reference};
use exo_kernels_candle::{linear_preference_loss, preference_loss};
use serde::Serialize;

use crate::groups::Group;
use crate::llama::Llama;
use crate::scoring;
use crate::team::Team;

/// Share of the steps over which the learning rate rises to its full value.
const WARM_UP: f64 = 0.15;

/// A model whose parameters an optimiser may change. It owns copies: the model that it came from stays as it is.
pub struct Policy {
    pub model: Llama,
    parameters: Vec<(String, Var)>,
}

impl Policy {
    pub fn copy_of(model: &Llama) -> Result<Self> {
        let mut tensors = model.parameters().into_iter();
        let mut parameters = Vec::new();
        let model = Llama::new(&model.config, |name, _| {
            let (_, tensor) = tensors.next().expect("the same configuration");
            let parameter = Var::from_tensor(&tensor.copy()?)?;
            parameters.push((name.to_owned(), parameter.clone()));
            Ok(parameter.as_tensor().clone())
        })?;
        Ok(Self { model, parameters })
    }

    pub fn optimizer(&self, learning_rate: f64) -> Result<AdamW> {
        let settings = ParamsAdamW { lr: learning_rate, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
        let variables = self.parameters.iter().map(|(_, variable)| variable.clone());
        Ok(AdamW::new(variables.collect(), settings)?)
    }

    /// The norm of the whole gradient. An operation that lost its gradient silently is caught here: every parameter of
    /// this model takes part in every loss, so each must have one.
    pub fn gradient_norm(&self, gradients: &GradStore) -> Result<f64> {
        let mut sum = 0.0;
        for (name, parameter) in &self.parameters {
            let gradient =
                gradients.get(parameter).with_context(|| format!("no gradient reached the parameter `{name}`"))?;
            let square = gradient.sqr()?.sum_all()?.to_dtype(DType::F64)?;
            sum += square.to_scalar::<f64>()?;
        }
        ensure!(
            sum.is_finite(),
            "the gradient is not finite (its squared norm is {sum}); try a smaller --learning-rate"
        );
        Ok(sum.sqrt())
    }

    /// Scales the gradient to the norm `largest` if it is longer. `norm` is what [`Self::gradient_norm`] gave.
    pub fn clip(&self, gradients: &mut GradStore, norm: f64, largest: f64) -> Result<()> {
        if norm <= largest {
            return Ok(());
        }
        for (_, parameter) in &self.parameters {
            if let Some(gradient) = gradients.remove(parameter) {
                gradients.insert(parameter, (gradient * (largest / norm))?);
            }
        }
        Ok(())
    }
}

/// What one gradient step saw. All but the gradient's norm are of the loss's report, before the step.
#[derive(Clone, Serialize)]
pub struct Step {
    #[serde(rename = "step")]
    pub number: usize,
    pub loss: f64,
    /// Mean reward of the step's completions, which the frozen model wrote: the level, not the progress.
    pub batch_reward: f64,
    /// Share of the groups whose likeliest completion under the policy's distribution p has the largest reward.
    pub accuracy: f64,
    /// 1 / Σ p², averaged over the groups: K when the policy has not moved, 1 when one completion takes all.
    pub effective_sample_size: f64,
    /// Mean of `log π − log π_ref` over the step's completions.
    pub mean_log_ratio: f64,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub seconds: f64,
}

pub struct Trainer<'a> {
    pub policy: &'a Policy,
    pub optimizer: AdamW,
    pub objective: Objective,
    pub logit_options: LogitOptions,
    pub learning_rate: f64,
    pub largest_gradient: f64,
    /// Whether the logits are made as a tensor, for comparison.
    pub materialize_logits: bool,
    pub steps: usize,
    /// Who shares the work: each rank goes through some groups of a step.
    pub team: Team<'a>,
}

impl Trainer<'_> {
    /// Step number `step`, counted from 0, on `groups`, of which this rank goes through its share.
    pub fn step(&mut self, step: usize, groups: &[&Group]) -> Result<Step> {
        let started = std::time::Instant::now();
        let mut sequences = Vec::new();
        let mut reference = Vec::new();
        let mut rewards = Vec::new();
        let mut group_offsets = vec![0];
        let own = &groups[self.team.share(groups.len())];
        for group in own {
            for completion in &group.completions {
                sequences.push((group.prompt.tokens.as_slice(), completion.tokens.as_slice()));
                reference.extend_from_slice(&completion.log_probs);
            }
            rewards.extend_from_slice(&group.rewards);
            group_offsets.push(sequences.len());
        }
        let scored = scoring::score(&self.policy.model, &sequences)?;
        let batch = Batch::new(&scored.offsets, &group_offsets)?;
        let mut options = LossOptions::from(self.objective).with_logits(self.logit_options);
        if self.team.ranks() > 1 {
            // So that the ranks' gradients add up to that of the mean over all groups.
            options = options.with_reduction(Reduction::Normalizer(groups.len() as f64))?;
        }
        let (head, reference) = (self.policy.model.head(), Reference::PerToken(&reference));
        let (hidden, targets) = (&scored.hidden, &scored.targets);
        let (loss, report) = if self.materialize_logits {
            let logits = hidden.matmul(&head.t()?)?;
            preference_loss(&logits, targets, &batch, reference, &rewards, options)?
        } else {
            linear_preference_loss(hidden, head, None, targets, &batch, reference, &rewards, options)?
        };
        let report = report.check()?;
        let learning_rate = self.learning_rate_at(step);
        let gradient_norm = self.descend(&loss, learning_rate)?;
        let [loss, accuracy, effective_sample_size, mean_log_ratio] = if self.team.ranks() > 1 {
            // Means over this rank's groups and completions, of which each has K.
            let weight = own.len() as f64 / groups.len() as f64;
            let of_groups = [report.accuracy, report.effective_sample_size, report.mean_log_ratio];
            let [accuracy, size, log_ratio] = of_groups.map(|mean| weight * mean);
            self.team.sum([report.loss, accuracy, size, log_ratio])?
        } else {
            [report.loss, report.accuracy, report.effective_sample_size, report.mean_log_ratio]
        };
        let rewards = groups.iter().flat_map(|group| &group.rewards).copied().map(f64::from).collect::<Vec<_>>();
        Ok(Step {
            number: step + 1,
            loss,
            batch_reward: crate::evaluation::mean_and_error(&rewards).0,
            accuracy,
            effective_sample_size,
            mean_log_ratio,
            gradient_norm,
            learning_rate,
            seconds: self.team.largest(started.elapsed().as_secs_f64())?,
        })
    }

    fn descend(&mut self, loss: &Tensor, learning_rate: f64) -> Result<f64> {
        let mut gradients = loss.backward()?;
        self.team.sum_gradients(&self.policy.parameters, &mut gradients)?;
        let norm = self.policy.gradient_norm(&gradients)?;
        self.policy.clip(&mut gradients, norm, self.largest_gradient)?;
        self.optimizer.set_learning_rate(learning_rate);
        self.optimizer.step(&gradients)?;
        Ok(norm)
    }

    /// A cosine from the full rate to 0, as in the official code, but after a short linear warm-up: `AdamW`'s first
    /// steps have the length of the rate whatever the gradient, and few steps need a high rate.
    fn learning_rate_at(&self, step: usize) -> f64 {
        let done = step as f64 / self.steps as f64;
        let warm_up = ((done + 1.0 / self.steps as f64) / WARM_UP).min(1.0);
        self.learning_rate * warm_up * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}
