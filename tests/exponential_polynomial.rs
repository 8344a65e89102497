//! What `kernels/include/packed_terms.cuh` says of its polynomial of 2^f, of the coefficients as they stand there and with the roundings
//! of its steps. `tests/cuda_control/packed_terms.rs` holds the kernel to the same.

/// 2⁻²⁴.
const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// The coefficients of f⁰, f¹, f², …, as f32.
fn coefficients() -> Vec<f32> {
    let source = include_str!("../kernels/include/packed_terms.cuh");
    let list = source.split_once("COEFFICIENTS[] = {").expect("the polynomial").1.split_once('}').expect("its end").0;
    list.split(',').map(|text| text.trim().trim_end_matches('f').parse().expect("a number")).collect()
}

/// The polynomial at f: exactly, and in f32 by Horner's scheme with fused steps.
fn at(coefficients: &[f32], f: f32) -> (f64, f32) {
    let exact = coefficients.iter().rev().fold(0.0, |sum, &coefficient| sum * f64::from(f) + f64::from(coefficient));
    let rounded = coefficients.iter().rev().copied().reduce(|sum, coefficient| sum.mul_add(f, coefficient));
    (exact, rounded.expect("coefficients"))
}

#[test]
fn the_polynomial_of_powers_is_as_close_as_its_comment_says() {
    let coefficients = coefficients();
    assert_eq!((coefficients.len(), coefficients[0]), (6, 1.0));
    let (mut of_fit, mut with_roundings, mut of_last_place): (f64, f64, f64) = (0.0, 0.0, 0.0);
    // 2²² of the arguments, and those next to 0, where a sum next to 1 is rounded to twice as many digits below it as above.
    let even = (0..=1 << 22).map(|i| (f64::from(i) / f64::from(1 << 22) - 0.5) as f32);
    let next_to_zero = (0..1 << 20).flat_map(|i| {
        let f = f32::from_bits(0x3380_0000 + i * 97);
        [f.min(0.5), -f.min(0.5)]
    });
    for f in even.chain(next_to_zero) {
        let expected = f64::from(f).exp2();
        let (exact, rounded) = at(&coefficients, f);
        of_fit = of_fit.max((exact / expected - 1.0).abs());
        let error = (f64::from(rounded) - expected).abs();
        with_roundings = with_roundings.max(error / expected);
        let last_place = if expected < 1.0 { UNIT_ROUNDOFF } else { 2.0 * UNIT_ROUNDOFF };
        of_last_place = of_last_place.max(error / last_place);
    }
    let found = [of_fit / UNIT_ROUNDOFF, with_roundings / UNIT_ROUNDOFF, of_last_place];
    println!("{found:.4?}: unit roundoffs of the fit, with roundings, units in the last place");
    // Below as well: a looser comment would be wrong too. Two units in the last place are what ex2.approx may be off by.
    assert!((1.5..=1.6).contains(&found[0]) && (2.4..=2.6).contains(&found[1]), "{found:?}");
    assert!(found[2] <= 2.0, "{found:?}");
}
