//! The oracle of these tests, `support/rounding.rs`, against the host's own roundings.

mod support;

use support::random::Random;
use support::rounding::{Direction, F32, fused, round};

/// Against the host's own conversion to f32, which rounds to nearest even, for values over and beyond its range.
#[test]
fn nearest_even_is_the_hosts_conversion() {
    let mut random = Random::new(1);
    for _ in 0..100_000 {
        let value = random.real(-2.0, 2.0) * 2f64.powi(random.integer(-160, 130));
        assert_eq!(round(value, F32, Direction::NearestEven), f64::from(value as f32), "{value:e}");
    }
}

/// Against the host's fused multiply-add of f32.
#[test]
fn fused_then_rounded_is_the_hosts_fma() {
    let mut random = Random::new(2);
    let mut operand = |range: i32| (random.real(-2.0, 2.0) * 2f64.powi(random.integer(-range, range))) as f32;
    for _ in 0..100_000 {
        let (a, b, c) = (operand(20), operand(20), operand(60));
        let expected = a.mul_add(b, c);
        let got = round(fused(f64::from(a), f64::from(b), f64::from(c)), F32, Direction::NearestEven);
        assert_eq!(got, f64::from(expected), "{a:e} * {b:e} + {c:e}");
    }
}
