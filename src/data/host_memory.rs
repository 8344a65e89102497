//! The half of [`Backend`](crate::Backend) that has to do with memory, for backends on the host: buffers are `Vec`s, and
//! nothing has to be brought anywhere.

/// The place of a backend on the host: every slice can be used.
macro_rules! host_place {
    ($backend:ty) => {
        impl crate::data::memory::Place for $backend {
            type Memory = Host;

            fn check_place<T: Number>(&self, _: &'static str, _: &&[T]) -> Result<()> {
                Ok(())
            }

            fn check_place_mut<T: Number>(&self, _: &'static str, _: &&mut [T]) -> Result<()> {
                Ok(())
            }
        }
    };
}

/// The associated types and the memory verbs of a backend on the host.
macro_rules! host_memory {
    () => {
        type Buffer<T: Number> = Vec<T>;
        type Batch = Batch;
        type Rewards<'a> = Rewards<'a>;
        type RewardBuffers = ();
        type Ordered<'a> = ();
        type Entered = ();

        fn enter(&self) -> Result<()> {
            Ok(())
        }

        fn ordered<'a, T: Number>(&'a self, view: &'a &[T]) -> (&'a [T], ()) {
            (*view, ())
        }

        fn ordered_mut<'a, T: Number>(
            &'a self,
            view: &'a mut crate::backend::ViewMut<'_, Self, T>,
        ) -> (&'a mut [T], ()) {
            (view, ())
        }

        fn counting_apart(self) -> Self {
            self
        }

        fn check_memory_of(&self, _: &'static str, _: &Self) -> Result<()> {
            Ok(())
        }

        fn reserve<T: Number>(&self, buffer: &mut Vec<T>, length: usize) -> Result<()> {
            let more = length.saturating_sub(buffer.len());
            buffer.try_reserve(more).map_err(|_| crate::Error::Memory { elements: length })?;
            buffer.resize(length.max(buffer.len()), T::default());
            Ok(())
        }

        fn view<'a, T: Number>(&self, buffer: &'a Vec<T>, length: usize) -> &'a [T] {
            &buffer[..length.min(buffer.len())]
        }

        fn view_mut<'a, T: Number>(&self, buffer: &'a mut Vec<T>, length: usize) -> &'a mut [T] {
            let length = length.min(buffer.len());
            &mut buffer[..length]
        }

        fn upload<T: Number>(&self, numbers: &[T], buffer: &mut Vec<T>) -> Result<()> {
            self.copy(&numbers, buffer)
        }

        fn copy<T: Number>(&self, from: &&[T], buffer: &mut Vec<T>) -> Result<()> {
            buffer.clear();
            buffer.extend_from_slice(from);
            Ok(())
        }

        fn read<'a, T: Number>(&self, view: &crate::backend::View<'a, Self, T>) -> Result<std::borrow::Cow<'a, [T]>> {
            Ok(std::borrow::Cow::Borrowed(view))
        }

        fn place_batch(&self, batch: &Batch, placed: &mut Batch) -> Result<()> {
            placed.become_same(batch);
            Ok(())
        }

        fn check_rewards(&self, objective: &Objective, rewards: &Rewards<'_>, batch: &Batch) -> Result<()> {
            crate::stage::objective::check_rewards(objective, rewards, batch)
        }

        fn check_step(&self, _: &Rewards<'_>, _: bool) -> Result<()> {
            Ok(())
        }

        fn clear_counts(&self) -> Result<()> {
            Ok(())
        }

        fn bring_rewards<'a>(&self, rewards: &'a Rewards<'_>, (): &'a mut ()) -> Result<Rewards<'a>> {
            Ok(rewards.borrowed())
        }

        fn reserve_step(
            &self,
            buffers: &mut crate::backend::StepBuffers<Self>,
            sequences: usize,
            groups: usize,
            entropy: bool,
        ) -> Result<()> {
            self.reserve(&mut buffers.group_losses, groups)?;
            self.reserve(&mut buffers.log_ratios, sequences)?;
            self.reserve(&mut buffers.statistics, groups)?;
            self.reserve(&mut buffers.entropy_sums, if entropy { sequences } else { 0 })?;
            self.reserve(&mut buffers.scored_rows, sequences)
        }

        fn has_proposal(rewards: &Rewards<'_>) -> bool {
            rewards.proposal.is_some()
        }

        fn begin_step<'a>(&self, rewards: &'a Rewards<'_>, (): &'a mut ()) -> Result<Rewards<'a>> {
            Ok(rewards.borrowed())
        }

        fn check_targets(&self, targets: &Targets<'_>, rows: usize, vocab: usize) -> Result<()> {
            targets.check(rows, vocab)
        }

        fn check_reference(&self, reference: &Reference<'_>, targets: &Targets<'_>, batch: &Batch) -> Result<()> {
            crate::stage::log_ratio::check_reference(self, reference, batch)?;
            crate::stage::log_ratio::check_targets(self, targets, batch.rows())?;
            crate::stage::log_ratio::check_finite_reference(reference, targets, batch)
        }

        fn read_results<'a>(
            &self,
            rows: &crate::backend::ScoredLogProbs<'a, Host>,
            results: &crate::backend::StageResults<'a, Host>,
            batch: &Batch,
        ) -> Result<crate::backend::ReadResults<'a>> {
            rows.check(self, batch)?;
            results.check(self, batch)?;
            Ok(crate::backend::ReadResults {
                rows: crate::backend::RowSummary::of_rows(rows.log_probs, &rows.targets)
                    .with_sequences(rows.scored_rows, rows.entropy_sums),
                log_ratios: results.log_ratios.into(),
                group_losses: results.group_losses.into(),
                statistics: results.statistics.into(),
            })
        }
    };
}

pub(crate) use {host_memory, host_place};
