//! What the linear stage refuses, and that a refused call writes nothing. Each call has one thing wrong.

use exo_kernels::backend::{
    Head, LinearGradients, Matrix, MatrixMut, RowGradients, RowLosses, SavedRows, Targets, TokenLogProbs, View,
};
use exo_kernels::{Error, LogitOptions, Result, RowLoss, SoftmaxState};
use support::backend::{TestBackend, download, on_every_backend, upload};

on_every_backend!(
    matrices_and_heads_that_do_not_fit_are_refused,
    what_does_not_fit_a_forward_pass_is_refused_and_writes_nothing,
    what_does_not_fit_a_backward_pass_is_refused_and_writes_nothing,
    what_does_not_fit_a_row_loss_is_refused_and_writes_nothing,
);

const N: usize = 3;
const H: usize = 4;
const V: usize = 6;

/// Hidden states, weight and bias in the backend's memory, and states and numbers of N rows.
struct Operands<B: TestBackend> {
    backend: B,
    hidden: B::Buffer<f32>,
    weight: B::Buffer<f32>,
    bias: B::Buffer<f32>,
    ids: B::Buffer<i64>,
    states: B::Buffer<SoftmaxState>,
    ones: B::Buffer<f32>,
}

impl<B: TestBackend> Operands<B> {
    fn new(backend: &B) -> Self {
        Self {
            backend: backend.clone(),
            hidden: upload(backend, &[0.5; N * H]),
            weight: upload(backend, &[0.25; V * H]),
            bias: upload(backend, &[0.0; V]),
            ids: upload(backend, &[0, 1, 2, 3]),
            states: upload(backend, &[SoftmaxState { r: 1.0, s: 1.0 }; N]),
            ones: upload(backend, &[1.0; N]),
        }
    }

    fn hidden(&self, columns: usize) -> Matrix<'_, f32, B::Memory> {
        Matrix::new(self.backend.view(&self.hidden, N * H), columns).expect("rows")
    }

    fn head(&self) -> Head<'_, f32, B::Memory> {
        let weight = Matrix::new(self.backend.view(&self.weight, V * H), H).expect("rows");
        Head::new(weight).and_then(|head| head.with_bias(self.backend.view(&self.bias, V))).expect("a head")
    }

    fn targets(&self, count: usize) -> Targets<'_, B::Memory> {
        Targets::I64(self.backend.view(&self.ids, count))
    }
}

fn assert_untouched<B: TestBackend>(backend: &B, buffers: &[(&B::Buffer<f32>, usize)]) {
    for (buffer, length) in buffers {
        assert!(download(backend, *buffer, *length).iter().all(|number| *number == 9.0), "a refused call has written");
    }
}

fn matrices_and_heads_that_do_not_fit_are_refused<B: TestBackend>(backend: &B) {
    let operands = Operands::new(backend);
    let hidden = || backend.view(&operands.hidden, N * H);
    let matrix = |columns| Matrix::<f32, B::Memory>::new(hidden(), columns);
    let strided = |rows, columns, stride| Matrix::<f32, B::Memory>::strided(hidden(), rows, columns, stride);
    assert!(matches!(matrix(5), Err(Error::Shape { elements: 12, columns: 5, .. })));
    assert!(matches!(matrix(0), Err(Error::Shape { columns: 0, .. })));
    assert!(matches!(strided(3, 4, 3), Err(Error::Shape { row_stride: 3, .. })));
    assert!(matches!(strided(4, 4, 4), Err(Error::Shape { rows: Some(4), .. })));
    assert!(matches!(strided(usize::MAX, 4, usize::MAX), Err(Error::Shape { .. })));
    let no_rows = Matrix::<f32, B::Memory>::new(backend.view(&operands.weight, 0), H).expect("no rows");
    assert!(matches!(Head::new(no_rows), Err(Error::Vocabulary { vocab: 0 })));
    assert!(matches!(
        operands.head().with_bias(backend.view(&operands.bias, 5)),
        Err(Error::Length { what: "bias", given: 5, expected: 6 })
    ));
}

fn what_does_not_fit_a_forward_pass_is_refused_and_writes_nothing<B: TestBackend>(backend: &B) {
    let operands = Operands::new(backend);
    let mut log_probs = upload(backend, &[9.0_f32; N + 1]);
    let mut states = upload(backend, &[SoftmaxState { r: 9.0, s: 9.0 }; N + 1]);
    let mut entropies = upload(backend, &[9.0_f32; N + 1]);
    let mut forward = |columns: usize, targets: Targets<'_, B::Memory>, outputs: [usize; 3]| {
        let outputs = TokenLogProbs {
            log_probs: backend.view_mut(&mut log_probs, outputs[0]),
            states: backend.view_mut(&mut states, outputs[1]),
            entropies: Some(backend.view_mut(&mut entropies, outputs[2])),
        };
        let (hidden, head) = (operands.hidden(columns), operands.head());
        backend.linear_token_log_probs(&hidden, &head, targets, &LogitOptions::default(), outputs)
    };
    let refused = |result: Result<()>, what: &str, given: usize, expected: usize| match result {
        Err(Error::Length { what: of, given: is, expected: should }) => {
            assert_eq!((of, is, should), (what, given, expected));
        }
        other => panic!("{what}: {other:?}"),
    };
    // Four hidden states of three elements.
    refused(forward(3, operands.targets(4), [4; 3]), "hidden size", 3, 4);
    refused(forward(H, operands.targets(2), [3; 3]), "targets", 2, 3);
    refused(forward(H, operands.targets(3), [2, 3, 3]), "log-probs", 2, 3);
    refused(forward(H, operands.targets(3), [3, 2, 3]), "softmax states", 2, 3);
    refused(forward(H, operands.targets(3), [3, 3, 2]), "entropies", 2, 3);
    if B::SEES_NUMBERS {
        let ids = upload(backend, &[0_i64, 6, 1]);
        let result = forward(H, Targets::I64(backend.view(&ids, N)), [3; 3]);
        assert!(matches!(result, Err(Error::Target { row: 1, target: 6, vocab: 6 })), "{result:?}");
    }
    assert_untouched(backend, &[(&log_probs, N + 1), (&entropies, N + 1)]);
    assert!(download(backend, &states, N + 1).iter().all(|state| *state == SoftmaxState { r: 9.0, s: 9.0 }));
}

/// What a backward pass is given: lengths, and the columns of gradients.
#[derive(Clone, Copy)]
struct Given {
    gradients_of_rows: usize,
    entropy_gradients: bool,
    hidden_rows: usize,
    hidden_columns: usize,
    weight_rows: usize,
    weight_columns: usize,
    bias: usize,
}

fn what_does_not_fit_a_backward_pass_is_refused_and_writes_nothing<B: TestBackend>(backend: &B) {
    const FITS: Given = Given {
        gradients_of_rows: N,
        entropy_gradients: false,
        hidden_rows: N,
        hidden_columns: H,
        weight_rows: V,
        weight_columns: H,
        bias: V,
    };
    let operands = Operands::new(backend);
    let mut of_hidden = upload(backend, &[9.0_f32; N * H]);
    let mut of_weight = upload(backend, &[9.0_f32; V * H]);
    let mut of_bias = upload(backend, &[9.0_f32; V]);
    let mut backward = |given: Given| {
        let (hidden_length, weight_length) =
            (given.hidden_rows * given.hidden_columns, given.weight_rows * given.weight_columns);
        let of_hidden = MatrixMut::new(backend.view_mut(&mut of_hidden, hidden_length), given.hidden_columns);
        let of_weight = MatrixMut::new(backend.view_mut(&mut of_weight, weight_length), given.weight_columns);
        let gradients = LinearGradients::new(Some(of_hidden.expect("rows")), Some(of_weight.expect("rows")))
            .with_bias(backend.view_mut(&mut of_bias, given.bias));
        let saved = SavedRows { states: backend.view(&operands.states, N), entropies: None };
        let upstream = RowGradients::PerRow {
            log_probs: backend.view(&operands.ones, given.gradients_of_rows),
            entropies: given.entropy_gradients.then(|| backend.view(&operands.ones, N)),
        };
        let (hidden, head, options) = (operands.hidden(H), operands.head(), LogitOptions::default());
        let targets = operands.targets(N);
        backend.linear_token_log_probs_backward(&hidden, &head, targets, &options, &saved, &upstream, gradients)
    };
    for (given, what, is, expected) in [
        (Given { gradients_of_rows: 2, ..FITS }, "log-prob gradients", 2, 3),
        (Given { hidden_rows: 2, ..FITS }, "rows of the hidden gradient", 2, 3),
        (Given { hidden_rows: 6, hidden_columns: 2, ..FITS }, "rows of the hidden gradient", 6, 3),
        (Given { hidden_columns: 3, ..FITS }, "columns of the hidden gradient", 3, 4),
        (Given { weight_rows: 5, ..FITS }, "rows of the weight gradient", 5, 6),
        (Given { weight_columns: 3, ..FITS }, "columns of the weight gradient", 3, 4),
        (Given { bias: 5, ..FITS }, "bias gradient", 5, 6),
    ] {
        let refused = backward(given);
        assert_eq!(refused, Err(Error::Length { what, given: is, expected }));
    }
    assert_eq!(backward(Given { entropy_gradients: true, ..FITS }), Err(Error::EntropiesNotKept));
    assert_untouched(backend, &[(&of_hidden, N * H), (&of_weight, V * H), (&of_bias, V)]);
}

fn what_does_not_fit_a_row_loss_is_refused_and_writes_nothing<B: TestBackend>(backend: &B) {
    let operands = Operands::new(backend);
    let mut log_probs = upload(backend, &[9.0_f32; N]);
    let mut losses = upload(backend, &[9.0_f32; N]);
    let mut of_hidden = upload(backend, &[9.0_f32; N * H]);
    let mut row_loss = |loss: RowLoss<View<'_, B, f32>>, length: usize| {
        let outputs =
            RowLosses { log_probs: backend.view_mut(&mut log_probs, N), losses: backend.view_mut(&mut losses, length) };
        let gradient = MatrixMut::new(backend.view_mut(&mut of_hidden, N * H), H).expect("rows");
        let gradients = LinearGradients::<_, f32, _>::new(Some(gradient), None);
        let (hidden, head, options) = (operands.hidden(H), operands.head(), LogitOptions::default());
        backend.linear_row_loss(&hidden, &head, operands.targets(N), &options, &loss, outputs, gradients)
    };
    let ones = |length: usize| backend.view(&operands.ones, length);
    let refused = |what| Err(Error::Length { what, given: 2, expected: 3 });
    assert_eq!(row_loss(RowLoss::Weighted { weights: ones(2) }, N), refused("row weights"));
    assert_eq!(row_loss(RowLoss::Weighted { weights: ones(N) }, 2), refused("row losses"));
    for (low, high, log_ratio_limit) in [
        (-0.1, 0.2, 20.0),
        (1.1, 0.2, 20.0),
        (0.2, -0.1, 20.0),
        (f32::NAN, 0.2, 20.0),
        (0.2, f32::NAN, 20.0),
        (0.2, 0.2, 0.0),
        (0.2, 0.2, -20.0),
        (0.2, 0.2, 88.1),
        (0.2, 0.2, f32::INFINITY),
        (0.2, 0.2, f32::NAN),
    ] {
        let (weights, advantages, old_log_probs) = (ones(N), ones(N), ones(N));
        let loss = RowLoss::ClippedRatio { weights, advantages, old_log_probs, low, high, log_ratio_limit };
        assert!(matches!(row_loss(loss, N), Err(Error::Parameter { .. })), "{low} {high} {log_ratio_limit}");
    }
    assert_untouched(backend, &[(&log_probs, N), (&losses, N), (&of_hidden, N * H)]);
}
