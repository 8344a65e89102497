//! CUDA as a [`Backend`]: which function does which verb.

use crate::backend::{Backend, Number, Place, ReadResults, ScoredLogProbs, StageResults, StepBuffers};
use crate::cuda::context::CurrentContext;
use crate::cuda::driver::is_capturing;
use crate::cuda::memory::{Use, copy_on_device, download};
use crate::cuda::{
    Cuda, Device, DeviceBatch, DeviceRewards, GatheredRows, Grown, Head, Hidden, LinearGradients, LinearOutputs,
    LinearParts, LogRatioOutputs, Matrix, MatrixMut, ObjectiveOutputs, PartialRow, Reference, RewardBuffers, Rewards,
    RowGradients, RowLogProbs, RowLosses, SavedLinear, SavedRows, Targets, TokenLogProbs, UnitSums, View, ViewMut,
    linear, log_ratio, objective, partial_row, step, token_log_prob,
};
use crate::data::batch::Batch;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::options::{LogRatio, LogitOptions, Reduction};
use crate::stage::linear::check_operands;
use crate::stage::log_ratio::{check_reference, check_targets};
use crate::stage::row_loss::RowLoss;
use cudarc::driver::sys::CUresult;
use std::borrow::Cow;
use std::sync::Arc;

impl Place for Cuda {
    type Memory = Device;

    fn check_place<T: Number>(&self, what: &'static str, view: &View<'_, T>) -> Result<()> {
        self.check_context(what, view.context())
    }

    fn check_place_mut<T: Number>(&self, what: &'static str, view: &ViewMut<'_, T>) -> Result<()> {
        self.check_context(what, view.context())
    }
}

impl Backend for Cuda {
    type Buffer<T: Number> = Grown<T>;
    type Batch = DeviceBatch;
    type Rewards<'a> = Rewards<'a>;
    type RewardBuffers = RewardBuffers;
    type Ordered<'a> = Option<Use<'a>>;
    type PartialRow = PartialRow;
    type Entered = CurrentContext;

    fn enter(&self) -> Result<CurrentContext> {
        CurrentContext::enter(self.stream.context())
    }

    fn ordered<'a, T: Number>(&'a self, view: &'a View<'_, T>) -> (View<'a, T>, Self::Ordered<'a>) {
        view.ordered(&self.stream)
    }

    fn ordered_mut<'a, T: Number>(&'a self, view: &'a mut ViewMut<'_, T>) -> (ViewMut<'a, T>, Self::Ordered<'a>) {
        view.ordered(&self.stream)
    }

    fn counting_apart(self) -> Self {
        Self { status: Arc::default(), scratch: Arc::default(), ..self }
    }

    fn check_memory_of(&self, what: &'static str, other: &Self) -> Result<()> {
        self.check_context(what, Some(other.stream.context()))
    }

    fn reserve<T: Number>(&self, buffer: &mut Grown<T>, length: usize) -> Result<()> {
        let _current = self.enter()?;
        buffer.reserve(&self.stream, length)
    }

    fn view<'a, T: Number>(&self, buffer: &'a Grown<T>, length: usize) -> View<'a, T> {
        buffer.view(length)
    }

    fn view_mut<'a, T: Number>(&self, buffer: &'a mut Grown<T>, length: usize) -> ViewMut<'a, T> {
        buffer.view_mut(length)
    }

    fn upload<T: Number>(&self, numbers: &[T], buffer: &mut Grown<T>) -> Result<()> {
        let _current = self.enter()?;
        buffer.upload(&self.stream, numbers)
    }

    fn copy<T: Number>(&self, from: &View<'_, T>, buffer: &mut Grown<T>) -> Result<()> {
        self.check_place("numbers to copy", from)?;
        let _current = self.enter()?;
        copy_on_device(&self.stream, from, buffer)
    }

    fn read<'a, T: Number>(&self, view: &crate::backend::View<'a, Self, T>) -> Result<Cow<'a, [T]>> {
        self.check_place("numbers to read", view)?;
        let _current = self.enter()?;
        download(&self.stream, view).map(Cow::Owned)
    }

    fn place_batch(&self, batch: &Batch, placed: &mut DeviceBatch) -> Result<()> {
        let _current = self.enter()?;
        placed.place(batch, &self.stream)
    }

    fn check_rewards(&self, objective: &Objective, rewards: &Rewards<'_>, batch: &Batch) -> Result<()> {
        rewards.check(self, objective, batch)
    }

    /// A graph would read the host's memory again when it is launched, long after a step has let go of it.
    fn check_step(&self, rewards: &Rewards<'_>, same_batch: bool) -> Result<()> {
        if same_batch && matches!(rewards, Rewards::Device(_)) {
            return Ok(());
        }
        if !is_capturing(&self.stream)? {
            return Ok(());
        }
        Err(Error::Cuda {
            call: "cuMemcpyHtoDAsync",
            code: CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED as i32,
            message: "in a capture the batch must be that of the step before, and the rewards on the device".to_owned(),
        })
    }

    fn has_proposal(rewards: &Rewards<'_>) -> bool {
        match rewards {
            Rewards::Host(rewards) => rewards.proposal.is_some(),
            Rewards::Device(rewards) => rewards.proposal.is_some(),
        }
    }

    fn clear_counts(&self) -> Result<()> {
        self.clear_status()
    }

    fn bring_rewards<'a>(&self, rewards: &'a Rewards<'_>, buffers: &'a mut RewardBuffers) -> Result<DeviceRewards<'a>> {
        let _current = self.enter()?;
        rewards.on_device(&self.stream, buffers)
    }

    fn reserve_step(
        &self,
        buffers: &mut StepBuffers<Self>,
        sequences: usize,
        groups: usize,
        entropy: bool,
    ) -> Result<()> {
        let _current = self.enter()?;
        step::reserve(self, buffers, sequences, groups, entropy)
    }

    fn begin_step<'a>(&self, rewards: &'a Rewards<'_>, buffers: &'a mut RewardBuffers) -> Result<DeviceRewards<'a>> {
        let _current = self.enter()?;
        step::begin(self, rewards, buffers)
    }

    fn check_targets(&self, targets: &Targets<'_>, rows: usize, _: usize) -> Result<()> {
        check_targets(self, targets, rows)
    }

    fn check_reference(&self, reference: &Reference<'_>, _: &Targets<'_>, batch: &Batch) -> Result<()> {
        check_reference(self, reference, batch)
    }

    fn token_log_probs<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        outputs: TokenLogProbs<'_>,
    ) -> Result<()> {
        let _current = self.enter()?;
        token_log_prob::forward(self, logits, &targets.into(), options, outputs)
    }

    fn token_log_probs_backward<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
        gradient: MatrixMut<'_, T>,
    ) -> Result<()> {
        let _current = self.enter()?;
        token_log_prob::backward(self, logits, &targets.into(), options, saved, upstream, gradient)
    }

    fn token_log_probs_backward_in_place<'i, T: Element>(
        &self,
        logits: MatrixMut<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: &SavedRows<'_>,
        upstream: &RowGradients<'_>,
    ) -> Result<()> {
        let _current = self.enter()?;
        token_log_prob::backward_in_place(self, logits, &targets.into(), options, saved, upstream)
    }

    fn partial_rows<'i, T: Element>(
        &self,
        logits: &Matrix<'_, T>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        entropy: bool,
        partial_rows: ViewMut<'_, PartialRow>,
    ) -> Result<()> {
        let _current = self.enter()?;
        partial_row::partial_rows(self, logits, &targets.into(), options, entropy, partial_rows)
    }

    fn merge_rows<'i>(
        &self,
        partial_rows: &View<'_, PartialRow>,
        ranks: usize,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        outputs: TokenLogProbs<'_>,
    ) -> Result<()> {
        let _current = self.enter()?;
        partial_row::merge_rows(self, partial_rows, ranks, &targets.into(), options, outputs)
    }

    fn log_ratios(
        &self,
        rows: &RowLogProbs<'_>,
        reference: &Reference<'_>,
        batch: &DeviceBatch,
        log_ratio: LogRatio,
        outputs: LogRatioOutputs<'_>,
    ) -> Result<()> {
        let _current = self.enter()?;
        log_ratio::log_ratios(self, rows, reference, batch, log_ratio, outputs)
    }

    fn objective(
        &self,
        objective: &Objective,
        log_ratios: &View<'_, f64>,
        batch: &DeviceBatch,
        rewards: &DeviceRewards<'_>,
        reduction: Reduction,
        outputs: ObjectiveOutputs<'_>,
    ) -> Result<()> {
        let _current = self.enter()?;
        objective::objective(self, objective, log_ratios, batch, rewards, reduction, outputs)
    }

    fn read_results<'a>(
        &self,
        rows: &ScoredLogProbs<'a, Device>,
        results: &StageResults<'a, Device>,
        batch: &Batch,
    ) -> Result<ReadResults<'a>> {
        let _current = self.enter()?;
        step::read(self, rows, results, batch)
    }

    fn check_linear<T: Element, W: Element>(
        &self,
        hidden: &Hidden<'_, '_, T>,
        head: &Head<'_, W>,
        targets: &Targets<'_>,
    ) -> Result<()> {
        let _current = self.enter()?;
        check_operands(self, hidden, head)?;
        check_targets(self, targets, hidden.states().rows())?;
        if T::DTYPE != W::DTYPE {
            return Err(Error::GradientType { given: T::DTYPE, head: W::DTYPE });
        }
        self.with_linear_scratch(|work| work.blas(&self.stream).map(drop))
    }

    /// On a device nobody sees the targets, so that it is the same check.
    fn check_linear_shard<T: Element, W: Element>(
        &self,
        hidden: &Hidden<'_, '_, T>,
        head: &Head<'_, W>,
        targets: &Targets<'_>,
        _options: &LogitOptions,
    ) -> Result<()> {
        self.check_linear(hidden, head, targets)
    }

    fn linear_token_log_probs<'m, 'd: 'm, 'i, 'o, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        outputs: impl Into<LinearOutputs<'o>>,
    ) -> Result<()> {
        let _current = self.enter()?;
        linear::log_prob::forward(self, hidden.into(), head, &targets.into(), options, outputs.into())
    }

    fn linear_token_log_probs_backward<'m, 'd: 'm, 'i, 's, T: Element, W: Element, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        saved: impl Into<SavedLinear<'s>>,
        upstream: &RowGradients<'_>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let _current = self.enter()?;
        let (hidden, targets, saved) = (hidden.into(), targets.into(), saved.into());
        linear::log_prob::backward(self, hidden, head, &targets, options, &saved, upstream, gradients)
    }

    fn linear_partial_rows<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        entropy: bool,
        outputs: LinearParts<'_, PartialRow>,
    ) -> Result<()> {
        let _current = self.enter()?;
        linear::shard::partial_rows(self, hidden.into(), head, &targets.into(), options, entropy, outputs)
    }

    fn linear_unit_gradients<'m, 'd: 'm, 'i, T: Element, W: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        gathered: &GatheredRows<'_, PartialRow>,
        unit_sums: UnitSums<'_, PartialRow>,
    ) -> Result<()> {
        let _current = self.enter()?;
        linear::shard::unit_gradients(self, hidden.into(), head, &targets.into(), options, gathered, unit_sums)
    }

    fn linear_row_loss<'m, 'd: 'm, 'i, T: Element, W: Element, G: Element>(
        &self,
        hidden: impl Into<Hidden<'m, 'd, T>>,
        head: &Head<'_, W>,
        targets: impl Into<Targets<'i>>,
        options: &LogitOptions,
        loss: &RowLoss<View<'_, f32>>,
        outputs: RowLosses<'_>,
        gradients: LinearGradients<'_, T, G>,
    ) -> Result<()> {
        let _current = self.enter()?;
        let (hidden, targets) = (hidden.into(), targets.into());
        linear::row_loss::row_loss(self, hidden, head, &targets, options, loss, outputs, gradients)
    }
}
