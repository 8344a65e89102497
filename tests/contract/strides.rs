//! Strides up to `usize::MAX`: that of a single row leads nowhere, so that any is accepted and makes no difference; with more
//! rows one that leaves the buffer is refused, whatever overflows.

use exo_kernels::{
    Backend, Cpu, Element, Error, Head, LinearGradients, LogitOptions, Matrix, MatrixMut, RowGradients, RowLoss,
    RowLosses, SavedRows, SoftmaxState, TokenLogProbs,
};
use half::{bf16, f16};

const HUGE: [usize; 6] = [1 << 31, 1 << 54, 1 << 55, 1 << 62, usize::MAX - 1, usize::MAX];

#[test]
fn a_row_of_logits() {
    fn check<T: Element + PartialEq>() {
        let (cpu, options) = (Cpu::default(), LogitOptions::default());
        let data: Vec<T> = (0..700).map(|i| T::from_f32((i % 13) as f32 * 0.2)).collect();
        let run = |stride: usize| {
            let logits = Matrix::strided(&data, 1, 700, stride).expect("one row");
            let (mut log_probs, mut states) = ([0.0], [SoftmaxState::default()]);
            let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
            cpu.token_log_probs(&logits, &[3_i64], &options, outputs).expect("forward");
            let saved = SavedRows { states: &states, entropies: None };
            let upstream = RowGradients::PerRow { log_probs: &[1.0], entropies: None };
            let (mut gradient, mut in_place) = (vec![T::NAN; 700], data.clone());
            let into = MatrixMut::strided(&mut gradient, 1, 700, stride).expect("one row");
            cpu.token_log_probs_backward(&logits, &[3_i64], &options, &saved, &upstream, into).expect("backward");
            let into = MatrixMut::strided(&mut in_place, 1, 700, stride).expect("one row");
            cpu.token_log_probs_backward_in_place(into, &[3_i64], &options, &saved, &upstream).expect("in place");
            (log_probs, states, gradient, in_place)
        };
        for stride in HUGE {
            assert_eq!(run(stride), run(700), "{stride}");
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}

/// Every matrix of the linear stage: N = 1 for the hidden states and their gradient, V = 1 for the weight and its.
#[test]
fn a_row_of_a_matrix() {
    fn check<T: Element, G: Element>(rows: usize, vocab: usize) {
        const H: usize = 20;
        let (cpu, options) = (Cpu::default(), LogitOptions::default());
        let numbers = |count: usize| -> Vec<T> { (0..count).map(|i| T::from_f32((i % 7) as f32 * 0.1)).collect() };
        let (hidden, weight) = (numbers(rows * H), numbers(vocab * H));
        let targets = vec![0_i64; rows];
        let g = vec![1.0; rows];
        let run = |stride: usize, accumulate: bool| {
            let of = |rows: usize| if rows > 1 { H } else { stride };
            let matrix = Matrix::strided(&hidden, rows, H, of(rows)).expect("rows");
            let head = Head::new(Matrix::strided(&weight, vocab, H, of(vocab)).expect("rows")).expect("a head");
            let (mut log_probs, mut states) = (vec![0.0; rows], vec![SoftmaxState::default(); rows]);
            let outputs = TokenLogProbs { log_probs: &mut log_probs, states: &mut states, entropies: None };
            cpu.linear_token_log_probs(&matrix, &head, &targets, &options, outputs).expect("forward");
            let mut all = log_probs.clone();
            for one_pass in [false, true] {
                let mut of_hidden = vec![T::NAN; rows * H];
                let mut of_weight = vec![G::from_f32(1.0); vocab * H];
                let gradients = LinearGradients::new(
                    Some(MatrixMut::strided(&mut of_hidden, rows, H, of(rows)).expect("rows")),
                    Some(MatrixMut::strided(&mut of_weight, vocab, H, of(vocab)).expect("rows")),
                );
                let gradients = if accumulate { gradients.accumulating() } else { gradients };
                if one_pass {
                    let (mut log_probs, mut losses) = (vec![0.0; rows], vec![0.0; rows]);
                    let outputs = RowLosses { log_probs: &mut log_probs, losses: &mut losses };
                    let loss = RowLoss::Weighted { weights: g.as_slice() };
                    cpu.linear_row_loss(&matrix, &head, &targets, &options, &loss, outputs, gradients)
                } else {
                    let saved = SavedRows { states: &states, entropies: None };
                    let upstream = RowGradients::PerRow { log_probs: &g, entropies: None };
                    cpu.linear_token_log_probs_backward(&matrix, &head, &targets, &options, saved, &upstream, gradients)
                }
                .expect("backward");
                all.extend(of_hidden.iter().map(|number| number.to_f32()));
                all.extend(of_weight.iter().map(|number| number.to_f32()));
            }
            all
        };
        for accumulate in [false, true] {
            let expected = run(H, accumulate);
            assert!(expected.iter().all(|number| number.is_finite()));
            for stride in HUGE {
                assert_eq!(run(stride, accumulate), expected, "{stride}");
            }
        }
    }
    for (rows, vocab) in [(1, 1), (1, 600), (3, 1), (0, 1)] {
        check::<f32, f32>(rows, vocab);
        check::<bf16, bf16>(rows, vocab);
        check::<f16, f32>(rows, vocab);
    }
}

#[test]
fn no_rows_and_rows_that_leave_the_buffer() {
    let mut data = [0.0_f32; 20];
    for stride in HUGE {
        assert!(Matrix::strided(&data, 0, 5, stride).is_ok_and(|matrix| matrix.row(0).is_empty()));
        assert!(Matrix::strided(&data[..0], 0, stride, stride).is_ok());
        assert!(MatrixMut::strided(&mut data, 0, 5, stride).is_ok());
        for rows in [2, 3, 1 << 40, usize::MAX] {
            let refused = Error::Shape { elements: 20, rows: Some(rows), columns: 5, row_stride: stride };
            assert_eq!(Matrix::strided(&data, rows, 5, stride).unwrap_err(), refused);
            assert_eq!(MatrixMut::strided(&mut data, rows, 5, stride).unwrap_err(), refused);
        }
        // A row longer than the buffer, and one that is longer than its stride.
        assert!(Matrix::strided(&data, 1, 21, stride).is_err());
        assert!(Matrix::strided(&data, 1, 5, 4).is_err());
    }
}

mod cuda {
    use super::HUGE;
    use exo_kernels::cuda::raw::{self, LinearGradientsAt, LinearInputs, MatrixAt, RowLossesAt, Targets};
    use exo_kernels::cuda::{Head, Hidden, LinearGradients, Matrix, MatrixMut, RowLosses};
    use exo_kernels::{Backend, Dtype, Error, LogitOptions, RowLoss};
    use support::device::{self, download, upload};

    #[test]
    fn a_row_of_a_matrix() {
        let cuda = support::backend::cuda();
        let hidden = upload(&cuda, &[0.5_f32; 20]);
        let targets = upload(&cuda, &[0_i64]);
        let ones = upload(&cuda, &[1.0_f32]);
        for stride in HUGE {
            let (mut of_hidden, mut of_weight) = (upload(&cuda, &[f32::NAN; 20]), upload(&cuda, &[1.0_f32; 20]));
            let (mut log_probs, mut losses) = (upload(&cuda, &[9.0_f32]), upload(&cuda, &[9.0_f32]));
            let matrix = Matrix::strided(hidden.as_view().into(), 1, 20, stride).expect("one row");
            let head =
                Head::new(Matrix::strided(hidden.as_view().into(), 1, 20, stride).expect("one row")).expect("a head");
            let gradients = LinearGradients::new(
                Some(MatrixMut::strided(of_hidden.as_view_mut().into(), 1, 20, stride).expect("one row")),
                Some(MatrixMut::strided(of_weight.as_view_mut().into(), 1, 20, stride).expect("one row")),
            );
            let outputs = RowLosses { log_probs: log_probs.as_view_mut().into(), losses: losses.as_view_mut().into() };
            let loss = RowLoss::Weighted { weights: ones.as_view().into() };
            let (hidden, targets, options) = (Hidden::new(&matrix), targets.as_view(), LogitOptions::default());
            cuda.linear_row_loss(hidden, &head, targets, &options, &loss, outputs, gradients.accumulating())
                .expect("a pass");
            assert_eq!(download(&cuda, &log_probs), [0.0], "{stride}");
            assert_eq!((download(&cuda, &of_hidden), download(&cuda, &of_weight)), (vec![0.0; 20], vec![1.0; 20]));
        }
    }

    /// Offsets in bytes that are no i64: refused before anything is launched. The addresses are never used.
    #[test]
    fn addresses_that_overflow() {
        let cuda = device::cuda();
        let (rows, vocab, options) = (i32::MAX as usize, 1000, LogitOptions::default());
        for (dtype, row_stride) in [(Dtype::F32, 1 << 31), (Dtype::Bf16, 1 << 32), (Dtype::F16, usize::MAX)] {
            let logits = MatrixAt { address: 16, rows, columns: vocab, row_stride, dtype };
            let outputs = raw::ForwardOutputs { log_probs: 16, states: 16, entropies: 0 };
            // SAFETY: a shape that cannot be is refused.
            let refused = unsafe { raw::token_log_probs(&cuda, logits, Targets::I64(16), &options, outputs) };
            assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
        }
        let matrix = |rows, columns| MatrixAt { address: 16, rows, columns, row_stride: columns, dtype: Dtype::F32 };
        let hidden = matrix(rows, i32::MAX as usize);
        let weight = matrix(1, i32::MAX as usize);
        let inputs = LinearInputs { hidden, weight, bias: 0, targets: Targets::I64(16), scored_rows: None };
        let gradients =
            LinearGradientsAt { hidden: None, weight: None, bias: 0, bias_dtype: Dtype::F32, accumulate: false };
        let outputs = RowLossesAt { losses: 16, log_probs: 16 };
        let loss = RowLoss::Weighted { weights: 16 };
        // SAFETY: as above.
        let refused = unsafe { raw::linear_row_loss(&cuda, &inputs, &options, &loss, outputs, &gradients) };
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    }
}
