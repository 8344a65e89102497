//! What `kernels/include/logits.cuh` says of its polynomial of tanh, of the coefficients as they stand there: no kernel gives
//! the polynomial apart from its roundings.

/// 2⁻²⁴.
const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// The coefficients of y⁰, y², y⁴, … in tanh(y)/y, as f32.
fn coefficients() -> Vec<f32> {
    let source = include_str!("../kernels/include/logits.cuh");
    let begin = source.find("TanhPolynomial times(float factor) {").expect("the polynomial");
    let list = source[begin..].split_once("return {{factor,").expect("a list").1.split_once("}}").expect("its end").0;
    let number = |text: &str| text.trim().strip_prefix("factor * ")?.strip_suffix('f')?.parse().ok();
    let rest = list.split(',').map(|text| number(text).unwrap_or_else(|| panic!("{text}")));
    std::iter::once(1.0).chain(rest).collect()
}

#[test]
fn the_polynomial_of_tanh_is_as_close_as_its_comment_says() {
    let coefficients = coefficients();
    assert_eq!(coefficients.len(), 7);
    let (mut absolute, mut relative): (f64, f64) = (0.0, 0.0);
    // A little beyond 1: x/c of a logit at the cap may be rounded up.
    for i in 1..=1_000_000 {
        let y = f64::from(i) * 1e-6 * (1.0 + 1e-6);
        let sum = coefficients.iter().rev().fold(0.0, |sum, &coefficient| sum * (y * y) + f64::from(coefficient));
        let error = (sum * y - y.tanh()).abs();
        absolute = absolute.max(error);
        relative = relative.max(error / y.tanh());
    }
    let shares = [absolute / UNIT_ROUNDOFF, relative / UNIT_ROUNDOFF];
    println!("{shares:.4?} unit roundoffs");
    // Below as well: a looser comment would be wrong too.
    assert!((0.43..=0.45).contains(&shares[0]) && (1.8..=2.0).contains(&shares[1]), "{shares:?}");
    // The slope of the polynomial in y², and the coefficients without the first, which its roundings are counted with.
    let sizes: f64 = coefficients[1..].iter().map(|&coefficient| f64::from(coefficient.abs())).sum();
    assert!(sizes <= 0.55, "{sizes}");
}
