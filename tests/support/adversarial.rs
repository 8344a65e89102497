//! Rows of logits that have broken other systems, with the target each is asked about.

use exo_kernels::Element;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One row.
#[derive(Debug, Clone)]
pub struct Row<T> {
    pub name: &'static str,
    pub logits: Vec<T>,
    pub target: usize,
}

/// One row of every kind at this vocabulary. The logits are rounded to `T`; values that f16 cannot hold are left out
/// there.
pub fn adversarial<T: Element>(vocab: usize, seed: u64) -> Vec<Row<T>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut rows = Vec::new();
    let mut push = |name: &'static str, values: Vec<f32>, target: usize| {
        let logits: Vec<T> = values.iter().map(|&value| T::from_f32(value)).collect();
        let representable =
            values.iter().zip(&logits).all(|(value, logit)| value.is_finite() == logit.to_f32().is_finite());
        if representable {
            rows.push(Row { name, logits, target });
        }
    };
    let mut uniform =
        |low: f32, high: f32| -> Vec<f32> { (0..vocab).map(|_| random.random_range(low..high)).collect() };
    let last = vocab - 1;
    let middle = vocab / 2;

    push("uniform", uniform(-10.0, 10.0), middle);
    push("all equal", vec![1.5; vocab], last);
    push("all zero", vec![0.0; vocab], 0);
    push("large offset", uniform(2990.0, 3010.0), middle);
    push("large negative offset", uniform(-3010.0, -2990.0), last);
    push("wide", uniform(-300.0, 300.0), 0);
    push("tiny differences", uniform(1.0, 1.001), last);
    // Softmax state: the maximum grows by a little in every chunk.
    push("ascending", (0..vocab).map(|j| j as f32 * 20.0 / vocab as f32).collect(), middle);
    push("descending", (0..vocab).map(|j| -(j as f32) * 20.0 / vocab as f32).collect(), middle);
    for (name, gap) in
        [("peaked at the target, 12", 12.0f32), ("peaked at the target, 17", 17.0), ("peaked at the target, 60", 60.0)]
    {
        // Around a gap of 17 every other term is less than half a unit roundoff of the largest.
        let mut values = uniform(-0.5, 0.5);
        values[middle] = gap;
        push(name, values, middle);
    }
    let mut values = uniform(-0.5, 0.5);
    values[0] = 30.0;
    push("peaked elsewhere", values, last);

    let mut values = uniform(-5.0, 5.0);
    for value in values.iter_mut().take(vocab * 3 / 4) {
        *value = f32::NEG_INFINITY;
    }
    push("leading -inf", values, last);
    let mut values = vec![f32::NEG_INFINITY; vocab];
    values[last] = 2.0;
    push("one finite logit, the target", values, last);
    if vocab > 1 {
        let mut values = uniform(-5.0, 5.0);
        values[middle] = f32::NEG_INFINITY;
        push("target -inf", values, middle);
        let mut values = vec![f32::MIN; vocab];
        values[0] = 1.0;
        values[last] = 0.0;
        push("masked with the lowest f32", values, 0);
    }
    push("subnormal", uniform(-1e-40, 1e-40), middle);
    push("large", uniform(-6e4, 6e4), middle);
    rows
}
