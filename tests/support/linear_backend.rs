//! The linear stage of the backends behind one interface over host memory: a contract's test is written once, generic, and
//! run for each.
//!
//! `on_every_linear_backend!(one, another);` makes tests `cpu::one`, `cuda::one`, ... of functions that take a backend.

pub use crate::on_every_linear_backend;

use crate::linear::{Case, Gradients, Wanted};
use exo_kernels::{
    Cpu, Element, Error, LinearGradients, LogitOptions, MatrixMut, RowGradients, RowLoss, RowLosses, SavedRows,
    SoftmaxState, TokenLogProbs,
};

/// A type of hidden states, on every backend there is.
pub trait TestElement: Element + cudarc::driver::DeviceRepr {}
impl<T: Element + cudarc::driver::DeviceRepr> TestElement for T {}

/// What a call wrote, and what was found wrong: by the call itself, or by the device when its status was read. Outputs are
/// poisoned with `f32::MAX` before, gradients as [`Wanted`] says.
#[derive(Debug)]
pub struct Outcome<T, G> {
    pub log_probs: Vec<f32>,
    /// Of a row loss.
    pub losses: Vec<f32>,
    pub gradients: Gradients<T, G>,
    pub found: Result<(), Error>,
}

/// A backend's linear stage.
pub trait LinearBackend {
    /// Whether numbers of the rows are on the host, so that the call itself refuses them.
    fn on_host(&self) -> bool;

    fn row_loss<T: TestElement, G: TestElement>(
        &self,
        case: &Case<T, T>,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> Outcome<T, G>;

    /// Forward, and backward with these gradients of log-probs and entropies.
    fn two_passes<T: TestElement, G: TestElement>(
        &self,
        case: &Case<T, T>,
        options: &LogitOptions,
        upstream: (&[f32], Option<&[f32]>),
        wanted: Wanted,
    ) -> Outcome<T, G>;
}

#[macro_export]
macro_rules! on_every_linear_backend {
    ($($test:ident),* $(,)?) => {
        mod cpu {
            $(#[test]
            fn $test() {
                super::$test(&exo_kernels::Cpu::default());
            })*
        }

        mod cuda {
            $(#[test]
            fn $test() {
                super::$test(&$crate::linear_device::cuda());
            })*
        }
    };
}
impl<T: TestElement, G: TestElement> Gradients<T, G> {
    fn poisoned(case: &Case<T, T>, wanted: Wanted) -> Self {
        let before = wanted.accumulate.map_or(G::NAN, G::from_f32);
        Self {
            hidden: vec![T::NAN; case.rows * case.hidden_size],
            weight: vec![before; case.vocab * case.hidden_size],
            bias: vec![before; case.vocab],
        }
    }

    fn views(&mut self, columns: usize, wanted: Wanted) -> LinearGradients<'_, T, G> {
        let hidden = wanted.hidden.then(|| MatrixMut::new(&mut self.hidden, columns).expect("rows"));
        let weight = wanted.weight.then(|| MatrixMut::new(&mut self.weight, columns).expect("rows"));
        let gradients = LinearGradients::new(hidden, weight);
        let gradients = if wanted.bias { gradients.with_bias(&mut self.bias) } else { gradients };
        if wanted.accumulate.is_some() { gradients.accumulating() } else { gradients }
    }
}

impl LinearBackend for Cpu {
    fn on_host(&self) -> bool {
        true
    }

    fn row_loss<T: TestElement, G: TestElement>(
        &self,
        case: &Case<T, T>,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> Outcome<T, G> {
        let mut gradients = Gradients::poisoned(case, wanted);
        let (mut log_probs, mut losses) = (vec![f32::MAX; case.rows], vec![f32::MAX; case.rows]);
        let outputs = RowLosses { log_probs: &mut log_probs, losses: &mut losses };
        let views = gradients.views(case.hidden_size, wanted);
        let found = self.linear_row_loss(case.hidden(), &case.head(), &case.targets, options, loss, outputs, views);
        Outcome { log_probs, losses, gradients, found }
    }

    fn two_passes<T: TestElement, G: TestElement>(
        &self,
        case: &Case<T, T>,
        options: &LogitOptions,
        (of_log_probs, of_entropies): (&[f32], Option<&[f32]>),
        wanted: Wanted,
    ) -> Outcome<T, G> {
        let (hidden, head, targets) = (case.hidden(), case.head(), &case.targets);
        let (mut log_probs, mut entropies) = (vec![f32::MAX; case.rows], vec![f32::MAX; case.rows]);
        let mut states = vec![SoftmaxState::default(); case.rows];
        let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: Some(&mut entropies) };
        self.linear_token_log_probs(hidden, &head, targets, options, outputs).expect("forward");
        let mut gradients = Gradients::poisoned(case, wanted);
        let saved = SavedRows { states: &states, entropies: Some(&entropies) };
        let upstream = RowGradients { log_probs: of_log_probs, entropies: of_entropies };
        let views = gradients.views(case.hidden_size, wanted);
        let found = self.linear_token_log_probs_backward(hidden, &head, targets, options, saved, upstream, views);
        Outcome { log_probs, losses: Vec::new(), gradients, found }
    }
}

impl LinearBackend for exo_kernels::cuda::Cuda {
    fn on_host(&self) -> bool {
        false
    }

    fn row_loss<T: TestElement, G: TestElement>(
        &self,
        case: &Case<T, T>,
        options: &LogitOptions,
        loss: RowLoss<&[f32]>,
        wanted: Wanted,
    ) -> Outcome<T, G> {
        let (log_probs, losses, gradients) =
            crate::linear_device::OnDevice::new(self, case).row_loss(options, loss, wanted);
        Outcome { log_probs, losses, gradients, found: found(self) }
    }

    fn two_passes<T: TestElement, G: TestElement>(
        &self,
        case: &Case<T, T>,
        options: &LogitOptions,
        upstream: (&[f32], Option<&[f32]>),
        wanted: Wanted,
    ) -> Outcome<T, G> {
        let on_device = crate::linear_device::OnDevice::new(self, case);
        let forward = on_device.forward(options, true);
        let gradients = on_device.backward(options, &forward, upstream, wanted);
        Outcome { log_probs: forward.log_probs, losses: Vec::new(), gradients, found: found(self) }
    }
}

/// What the status says; it is clear again then.
fn found(cuda: &exo_kernels::cuda::Cuda) -> Result<(), Error> {
    let found = cuda.status().map(drop);
    cuda.clear_status().expect("cleared");
    found
}
