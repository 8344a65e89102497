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
        type Entered = ();

        fn enter(&self) -> Result<()> {
            Ok(())
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

        fn check_targets(&self, targets: &Targets<'_>, rows: usize, vocab: usize) -> Result<()> {
            targets.check(rows, vocab)
        }

        fn check_reference(&self, reference: &Reference<'_>, targets: &Targets<'_>, batch: &Batch) -> Result<()> {
            crate::stage::log_ratio::check_reference(self, reference, batch)?;
            crate::stage::log_ratio::check_targets(self, targets, batch.rows())?;
            crate::stage::log_ratio::check_finite_reference(reference, targets, batch)
        }

        fn row_summary(
            &self,
            rows: &crate::backend::ScoredLogProbs<'_, Host>,
            batch: &Batch,
        ) -> Result<crate::backend::RowSummary> {
            rows.check(self, batch)?;
            Ok(crate::backend::RowSummary::of(rows, batch))
        }
    };
}

pub(crate) use {host_memory, host_place};
