//! The backends under test: every verb of [`exo_kernels::Backend`], called over host memory, so that a contract's test is
//! written once and run for each.
//!
//! `on_every_backend!(one, another);` makes tests `cpu::one`, `cuda::one`, `specification::one` of functions that take a backend.

mod calls;
mod linear;
mod linear_shards;
mod loss;
mod shards;

use crate::device;
use crate::linear::{Case, Wanted};
use exo_kernels::cpu::InstructionSet;
use exo_kernels::cuda::{Cuda, Status};
use exo_kernels::reference::ReferenceBackend;
use exo_kernels::reference::bounds::Arithmetic;
use exo_kernels::{
    Backend, Batch, Cpu, Element, LinearKept, LogRatio, LogitOptions, LossOptions, Objective, Reduction, Reference,
    Result, Rewards, RowLoss,
};

pub use crate::backend::calls::{BackwardInputs, ForwardBuffers, Groups, Upstream, download, place, place_mut, upload};
pub use crate::backend::linear::{Outcome, Placed};
pub use crate::backend::linear_shards::{HeadRanks, OfRanks};
pub use crate::backend::loss::HostLoss;
pub use crate::backend::shards::{Layout, of_rank};
pub use crate::host_rows::{Forward, Rows};

/// What the tests must know of a backend besides its verbs.
pub trait TestBackend: Backend {
    /// What its bounds are derived from.
    const ARITHMETIC: Arithmetic;

    /// The same of the linear stage, which has kernels of its own.
    const LINEAR_ARITHMETIC: Arithmetic = Self::ARITHMETIC;

    /// Whether it sees the numbers of its operands before it writes anything, and refuses them.
    const SEES_NUMBERS: bool = true;

    /// Whether ranks of whole slices give the bits of one call: plain loops add up in another order.
    const KEEPS_BITS_OF_RANKS: bool = true;

    /// A message's name for it.
    fn name(&self) -> String;

    /// What there is of it on this machine: the instruction sets of a processor.
    fn variants(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    /// The size of a test: a processor's, or one that interpreters and plain loops have time for.
    fn pick<N>(fast: N, slow: N) -> N;

    /// What it has counted in its calls; the counts are clear again then.
    ///
    /// # Errors
    /// What was found.
    fn found(&self) -> Result<()> {
        Ok(())
    }

    /// So many columns at once in the linear stage, and as many bytes of rows, where that can be set.
    fn set_chunks(&self, _columns: usize, _row_bytes: usize) {}

    /// Whether an element of a matrix product has bits of its own, whatever the product's other rows and columns: those of
    /// cuBLAS need not.
    fn products_are_elementwise(&self) -> bool {
        true
    }

    /// Whether it has counted nothing, not even what is no error of its calls.
    fn has_counted_nothing(&self) -> bool {
        true
    }

    /// What the device says of a fault, where it can.
    fn fault(&self) -> Option<String> {
        None
    }

    // The verbs over host memory; written once, for every backend.

    fn try_forward<T: Element>(&self, rows: &Rows<T>, options: &LogitOptions, entropies: bool) -> Result<Forward> {
        calls::try_forward(self, rows, options, entropies)
    }

    fn forward<T: Element>(&self, rows: &Rows<T>, options: &LogitOptions, entropies: bool) -> Forward {
        self.try_forward(rows, options, entropies).expect("forward")
    }

    /// The whole buffer after the backward pass: the logits', overwritten, or a gradient's, which held the logits.
    fn try_backward<T: Element>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        in_place: bool,
    ) -> Result<Vec<T>> {
        calls::try_backward(self, rows, options, forward, upstream, in_place)
    }

    fn backward<T: Element>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        forward: &Forward,
        upstream: Upstream<'_>,
        in_place: bool,
    ) -> Vec<T> {
        self.try_backward(rows, options, forward, upstream, in_place).expect("backward")
    }

    /// The rows whose columns lie on several ranks.
    fn try_forward_of_ranks<T: Element>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        layout: &Layout,
        entropies: bool,
    ) -> Result<Forward> {
        shards::try_forward(self, rows, options, layout, entropies)
    }

    /// The gradients of the ranks' columns.
    fn try_backward_of_ranks<T: Element>(
        &self,
        rows: &Rows<T>,
        options: &LogitOptions,
        layout: &Layout,
        (forward, upstream): (&Forward, Upstream<'_>),
        in_place: bool,
    ) -> Result<Vec<Vec<T>>> {
        shards::try_backward(self, rows, options, layout, forward, upstream, in_place)
    }

    fn host_log_ratios(
        &self,
        log_probs: &[f32],
        targets: &[i64],
        reference: Reference<'_>,
        batch: &Batch,
        log_ratio: LogRatio,
    ) -> Vec<f64> {
        calls::log_ratios(self, log_probs, targets, &reference, batch, log_ratio)
    }

    fn host_objective(
        &self,
        objective: &Objective,
        log_ratios: &[f64],
        batch: &Batch,
        rewards: Rewards<'_>,
        reduction: Reduction,
    ) -> Groups {
        calls::objective(self, objective, log_ratios, batch, &rewards, reduction)
    }

    /// Loss and d loss / d log-ratio of one group of K sequences, not reduced; `offsets` are the proposal's.
    fn one_group(
        &self,
        objective: &Objective,
        log_ratios: &[f64],
        rewards: &[f64],
        offsets: Option<&[f64]>,
    ) -> (f64, Vec<f64>) {
        let k = log_ratios.len();
        let batch = Batch::padded(k, 1, k).expect("a group of at least one");
        let rewards = Rewards::from(rewards);
        let rewards = offsets.map_or(rewards, |offsets| rewards.with_proposal(offsets));
        let groups = self.host_objective(objective, log_ratios, &batch, rewards, Reduction::Sum);
        (groups.losses[0], groups.coefficients)
    }

    fn loss(&self, options: impl Into<LossOptions>) -> HostLoss<Self> {
        HostLoss::new(self, options)
    }

    /// A loss over rows, forward and backward in one.
    fn row_loss<T: Element, W: Element, G: Element>(
        &self,
        case: &Case<T, W>,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> Outcome<T, G> {
        let ((log_probs, losses, gradients), result) = Placed::new(self, case).try_row_loss(options, loss, wanted);
        Outcome { log_probs, losses, gradients, found: result.and_then(|()| self.found()) }
    }

    /// Forward, and backward with these gradients of log-probs and entropies.
    fn two_passes<T: Element, W: Element, G: Element>(
        &self,
        case: &Case<T, W>,
        options: &LogitOptions,
        kept: LinearKept,
        upstream: Upstream<'_>,
        wanted: Wanted,
    ) -> Outcome<T, G> {
        let mut placed = Placed::new(self, case);
        placed.kept = kept;
        let forward = placed.forward(options, true);
        let gradients = placed.backward(options, &forward, upstream, wanted);
        Outcome { log_probs: forward.log_probs, losses: Vec::new(), gradients, found: self.found() }
    }
}

impl TestBackend for Cpu {
    const ARITHMETIC: Arithmetic = Arithmetic::BACKEND;

    fn name(&self) -> String {
        format!("CPU, {}", self.instruction_set().name())
    }

    fn variants(&self) -> Vec<Self> {
        let found = InstructionSet::ALL.into_iter().map(Cpu::with_instruction_set);
        found.filter_map(|cpu| cpu.inspect_err(|error| println!("NOT RUN: {error}")).ok()).collect()
    }

    fn pick<N>(fast: N, _: N) -> N {
        fast
    }
}

impl TestBackend for ReferenceBackend {
    const ARITHMETIC: Arithmetic = Arithmetic::BACKEND;
    const KEEPS_BITS_OF_RANKS: bool = false;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn pick<N>(_: N, slow: N) -> N {
        slow
    }
}

impl TestBackend for Cuda {
    const ARITHMETIC: Arithmetic = Arithmetic::CUDA;
    /// `kernels/linear/fold.cu` counts 10 additions for a term, and the rounding of its slice; f64 does not count.
    const LINEAR_ARITHMETIC: Arithmetic = Arithmetic { additions: 11.0, folded: 0.0, ..Arithmetic::CUDA };
    const SEES_NUMBERS: bool = false;

    fn name(&self) -> String {
        "CUDA".to_owned()
    }

    fn pick<N>(_: N, slow: N) -> N {
        slow
    }

    fn found(&self) -> Result<()> {
        let found = self.status().map(drop);
        self.clear_status().expect("cleared");
        found
    }

    fn has_counted_nothing(&self) -> bool {
        self.status() == Ok(Status::CLEAR)
    }

    fn set_chunks(&self, columns: usize, row_bytes: usize) {
        crate::linear::set_chunks(self, columns, row_bytes);
    }

    fn products_are_elementwise(&self) -> bool {
        let software = softcuda::control().is_some();
        if !software {
            println!("NOT RUN: cuBLAS does not promise an element's bits");
        }
        software
    }

    fn fault(&self) -> Option<String> {
        softcuda::control().and_then(|control| control.take_fault()).map(|fault| fault.to_string())
    }
}

/// A CUDA backend with cuBLAS, on a stream of its own.
pub fn cuda() -> Cuda {
    let cuda = device::cuda();
    eprintln!("cuBLAS: {:?}", softcublas::install().expect("softcublas can be loaded where softcuda is"));
    cuda
}

/// Tests of functions that take a backend, by name, for every backend: a new one is a line here.
#[macro_export]
macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        $crate::on_backend!(cpu, exo_kernels::Cpu::default(), $($test),*);
        $crate::on_backend!(cuda, $crate::backend::cuda(), $($test),*);
        $crate::on_backend!(specification, exo_kernels::reference::ReferenceBackend, $($test),*);
    };
}

/// As [`on_every_backend!`], for what is promised of backends that train and not of the specification, whose objective is
/// the textbook's form: digits next to the optimum, and the ends of f64.
#[macro_export]
macro_rules! on_every_training_backend {
    ($($test:ident),* $(,)?) => {
        $crate::on_backend!(cpu, exo_kernels::Cpu::default(), $($test),*);
        $crate::on_backend!(cuda, $crate::backend::cuda(), $($test),*);
    };
}

/// As [`on_every_backend!`], for what is promised of backends that keep their operands in the host's memory.
#[macro_export]
macro_rules! on_every_host {
    ($($test:ident),* $(,)?) => {
        $crate::on_backend!(cpu, exo_kernels::Cpu::default(), $($test),*);
        $crate::on_backend!(specification, exo_kernels::reference::ReferenceBackend, $($test),*);
    };
}

/// Tests of functions that take a backend, by name, for one backend.
#[macro_export]
macro_rules! on_backend {
    ($name:ident, $backend:expr, $($test:ident),* $(,)?) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$test(&$backend);
            })*
        }
    };
}

pub use crate::{on_backend, on_every_backend, on_every_host, on_every_training_backend};
