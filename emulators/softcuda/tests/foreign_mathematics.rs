//! The device's mathematics library within the errors that the programming guide states for it.

mod support;

use cudarc::driver::PushKernelArg;
use support::device::{Device, shape};
use support::random::Random;
use support::rounding::ulps_f32;

/// erf by its series of positive terms: 2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return 1f64.copysign(x);
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// The value of a function, and its error in units in the last place by the programming guide's table.
type Row = (&'static str, fn(f64) -> f64, u64);

#[test]
fn f32_functions() {
    // Zero: correctly rounded.
    let rows: [Row; 16] = [
        ("expf", f64::exp, 2),
        ("exp2f", f64::exp2, 2),
        ("logf", |x| x.abs().ln(), 1),
        ("log1pf", |x| x.abs().ln_1p(), 1),
        ("sqrtf", |x| x.abs().sqrt(), 0),
        ("rsqrtf", |x| 1.0 / x.abs().sqrt(), 2),
        ("reciprocal", |x| 1.0 / x, 0),
        ("sinf", f64::sin, 2),
        ("cosf", f64::cos, 2),
        ("tanhf", f64::tanh, 2),
        ("erff", erf, 2),
        ("expm1f", f64::exp_m1, 1),
        ("division", |x| x / 3.0, 0),
        ("fmodf", |x| x % f64::from(0.7f32), 0),
        ("cbrtf", f64::cbrt, 1),
        ("powf", |x| x.abs().powf(1.5), 4),
    ];
    let mut random = Random::new(36);
    let mut values = random.reals(2000, -20.0, 20.0);
    values.extend(random.reals(500, -1.0, 1.0));
    values.extend(random.reals(200, -1e6, 1e6));
    values.extend((0..300).map(|_| (random.real(-1.0, 1.0) * 2f64.powi(random.integer(-40, 20))) as f32));
    values.extend([0.0, 1.0, -1.0, 0.5, 2.0, 100.0, -100.0]);
    let out = computed::<f32>("functions_f32", &values, rows.len());
    for (index, &x) in values.iter().enumerate() {
        for (row, (name, function, ulps)) in rows.iter().enumerate() {
            let (got, exact) = (out[row * values.len() + index], function(f64::from(x)));
            let off = ulps_f32(got, exact);
            assert!(off <= *ulps, "{name}({x:e}) = {got:e}, not {exact:e}: off by {off} units");
        }
    }
}

#[test]
fn f32_fast_functions() {
    let values = Random::new(37).reals(4000, -3.125, 3.125);
    let out = computed::<f32>("fast_functions_f32", &values, 8);
    for (index, &x) in values.iter().enumerate() {
        let wide = f64::from(x);
        let unit = |value: f64| 2f64.powi(value.abs().log2().floor().max(-126.0) as i32 - 23);
        // Between a half and two the logarithms' error is absolute.
        let near_one = (0.5..=2.0).contains(&wide.abs());
        let log2_error = if near_one { 2f64.powi(-22) } else { 2.0 * unit(wide.abs().log2()) };
        let power = wide.abs().powf(1.5);
        // exp2f(1.5 log2 |x|): the error of the logarithm and of the product in the exponent, and 2 units of
        // ex2.approx.
        let exponent_error = 1.5 * log2_error + unit(1.5 * wide.abs().log2()) / 2.0;
        let rows: [(&str, f64, f64); 8] = [
            ("__expf", wide.exp(), (2.0 + (1.173 * wide.abs()).floor()) * unit(wide.exp())),
            ("__logf", wide.abs().ln(), if near_one { 2f64.powf(-21.41) } else { 3.0 * unit(wide.abs().ln()) }),
            ("__log2f", wide.abs().log2(), log2_error),
            ("__sinf", wide.sin(), 2f64.powf(-21.41)),
            ("__cosf", wide.cos(), 2f64.powf(-21.19)),
            ("__fdividef", 1.0 / wide, 2.0 * unit(1.0 / wide)),
            ("__powf", power, 3.0 * unit(power) + power * exponent_error),
            ("tanh.approx", wide.tanh(), wide.tanh().abs() * 2f64.powi(-11)),
        ];
        for (row, (name, exact, bound)) in rows.into_iter().enumerate() {
            let got = out[row * values.len() + index];
            assert!((f64::from(got) - exact).abs() <= bound, "{name}({x:e}) = {got:e}, not {exact:e} +- {bound:e}");
        }
    }
}

#[test]
fn f64_functions() {
    // The host's own functions are within one unit: added to the guide's.
    let rows: [Row; 8] = [
        ("exp", f64::exp, 2),
        ("log", |x| x.abs().ln(), 2),
        ("sqrt", |x| x.abs().sqrt(), 0),
        ("reciprocal", |x| 1.0 / x, 0),
        ("sin", f64::sin, 3),
        ("tanh", f64::tanh, 2),
        ("division", |x| x / 3.0, 0),
        ("rint", f64::round_ties_even, 0),
    ];
    let mut random = Random::new(38);
    let mut values: Vec<f64> = (0..1000).map(|_| random.real(-30.0, 30.0)).collect();
    values.extend((0..500).map(|_| random.real(-1.0, 1.0) * 2f64.powi(random.integer(-300, 300))));
    let out = computed::<f64>("functions_f64", &values, rows.len());
    for (index, &x) in values.iter().enumerate() {
        for (row, (name, function, ulps)) in rows.iter().enumerate() {
            let (got, exact) = (out[row * values.len() + index], function(x));
            // Neighbours of one sign have neighbouring bits.
            let off = (got.to_bits() as i64).abs_diff(exact.to_bits() as i64);
            assert!(got == exact || off <= *ulps, "{name}({x:e}) = {got:e}, not {exact:e}: off by {off} units");
        }
    }
}

/// Runs a kernel of (values, out, count) and gives its rows.
fn computed<T>(kernel: &str, values: &[T], rows: usize) -> Vec<T>
where
    T: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits,
{
    let device = Device::new();
    let kernel = device.kernel("mathematics", kernel);
    let on_device = device.upload(values);
    let mut out = device.zeros::<T>(rows * values.len());
    let count = values.len() as u32;
    device.run(&kernel, shape(count.div_ceil(128), 128), |arguments| {
        arguments.arg(&on_device).arg(&mut out).arg(&count);
    });
    device.download(&out)
}

#[test]
fn integers() {
    let device = Device::new();
    let kernel = device.kernel("mathematics", "integers");
    let mut random = Random::new(39);
    // Of every length, both signs; the right one never zero.
    let mut number = || (random.bits() as i64) >> random.integer(0, 62);
    let left: Vec<i64> = (0..2000).map(|_| number()).collect();
    let right: Vec<i64> = (0..2000).map(|_| number() | 1).collect();
    let (on_left, on_right) = (device.upload(&left), device.upload(&right));
    let mut out = device.zeros::<i64>(24 * left.len());
    let count = left.len() as u32;
    device.run(&kernel, shape(count.div_ceil(96), 96), |arguments| {
        arguments.arg(&on_left).arg(&on_right).arg(&mut out).arg(&count);
    });
    let out = device.download(&out);
    for (index, (&a, &b)) in left.iter().zip(&right).enumerate() {
        for (row, expected) in integer_rows(a, b).into_iter().enumerate() {
            assert_eq!(out[row * left.len() + index], expected, "row {row} of {a:#x}, {b:#x}");
        }
    }
}

/// The rows of the kernel `integers` for one pair.
fn integer_rows(a: i64, b: i64) -> [i64; 24] {
    let (narrow_a, narrow_b) = (a as i32, b as i32);
    let (plain_a, plain_b) = (a as u32, b as u32);
    let bytes = |value: u32| value.to_le_bytes();
    let permuted = {
        let both = [bytes(plain_a), bytes(plain_b)].concat();
        let selected: [u8; 4] = std::array::from_fn(|at| both[(plain_b >> (4 * at) & 7) as usize]);
        u32::from_le_bytes(selected)
    };
    let funnel = u64::from(plain_b) << 32 | u64::from(plain_a);
    let signed_dot: i32 =
        (0..4).map(|at| i32::from(bytes(plain_a)[at] as i8) * i32::from(bytes(plain_b)[at] as i8)).sum();
    let plain_dot: u32 = (0..4).map(|at| u32::from(bytes(plain_a)[at]) * u32::from(bytes(plain_b)[at])).sum();
    let saturated: [u8; 4] = std::array::from_fn(|at| bytes(plain_a)[at].saturating_add(bytes(plain_b)[at]));
    [
        a.wrapping_div(b),
        a.wrapping_rem(b),
        i64::from(narrow_a.wrapping_div(if narrow_b == 0 { 1 } else { narrow_b })),
        i64::from(plain_a % if plain_b == 0 { 1 } else { plain_b }),
        ((i128::from(a) * i128::from(b)) >> 64) as i64,
        (i64::from(narrow_a) * i64::from(narrow_b)) >> 32,
        ((u64::from(plain_a) * u64::from(plain_b)) >> 32) as i64,
        i64::from(plain_a.leading_zeros()),
        i64::from(a.leading_zeros()),
        i64::from(plain_a.count_ones()),
        i64::from(a.count_ones()),
        i64::from(plain_a.reverse_bits()),
        if a == 0 { 0 } else { i64::from(a.trailing_zeros()) + 1 },
        i64::from(permuted),
        (funnel << (plain_a & 31) >> 32) as u32 as i64,
        (funnel >> (plain_b & 31)) as u32 as i64,
        i64::from(signed_dot + 7),
        i64::from(plain_dot + 7),
        i64::from(plain_a.abs_diff(plain_b).wrapping_add(5)),
        i64::from(u32::from_le_bytes(saturated)),
        a >> (b & 63),
        a << (b & 63),
        i64::from(((i64::from(narrow_a) + i64::from(narrow_b)) >> 1) as i32),
        i64::from(a as i16) * i64::from(b as i16),
    ]
}
