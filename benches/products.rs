//! The linear stage's matrix products alone, on one thread: `cargo bench --bench products`.
//!
//! Ids are `products/product/types by what/shape`: of tiles of 256 rows × 512 columns, by this crate's kernels and, of f32,
//! by the crate `gemm` with AVX-512 where the processor has it. `peak` is the most that the processor can do: independent
//! multiply-adds in registers, of f32 and of bf16 pairs. Bytes stand for operations. Nothing is asserted of times.

// The module is private to the crate: it is compiled into this bench, with the paths that it uses; its tests, too, where a bench
// is compiled as a test.
#[path = "../src/cpu/linear/product/mod.rs"]
#[allow(dead_code, unused_imports)]
mod product;
#[path = "support/stopwatch.rs"]
mod stopwatch;

mod cpu {
    pub(crate) use exo_kernels::cpu::InstructionSet;
}

#[cfg(test)]
mod reference {
    #[allow(unused_imports)]
    pub(crate) use exo_kernels::reference::bounds;
}

mod element {
    pub(crate) use exo_kernels::{Dtype, Element};
}

use criterion::Criterion;
use exo_kernels::Element;
use exo_kernels::cpu::InstructionSet;
use gemm::{Parallelism, gemm};
use half::{bf16, f16};
use product::{Block, ProductScratch, Products, Sums};
use rayon::ThreadPool;

const ROWS: usize = 256;
const COLUMNS: usize = 512;
/// H.
const HIDDEN_SIZES: [usize; 2] = [576, 2048];

/// Numbers in ±1 that look random.
fn numbers<T: Element>(count: usize) -> Vec<T> {
    (0..count).map(|i| T::from_f32(((i * 7919 + i / 31) % 2048) as f32 / 1024.0 - 1.0)).collect()
}

struct Bench<'c> {
    criterion: &'c mut Criterion,
    pool: ThreadPool,
}

impl Bench<'_> {
    fn time(&mut self, product: &str, by: &str, shape: &str, flops: usize, routine: &mut (dyn FnMut() + Send)) {
        let mut group = stopwatch::group(self.criterion, "products");
        stopwatch::time(&mut group, &self.pool, (product, by, shape), flops, routine);
        group.finish();
    }

    /// The three products of the stage.
    fn stage<T: Element, W: Element>(&mut self, set: InstructionSet, types: &str, size: usize) {
        let products = Products::new(set, T::DTYPE, W::DTYPE);
        let (hidden, weight) = (numbers::<T>(ROWS * size), numbers::<W>(COLUMNS * size));
        let gradient = numbers::<f32>(ROWS * COLUMNS);
        let hidden = Block { data: &hidden, rows: ROWS, columns: size, stride: size };
        let weight = Block { data: &weight, rows: COLUMNS, columns: size, stride: size };
        let gradient = Block { data: &gradient, rows: ROWS, columns: COLUMNS, stride: COLUMNS };
        let mut scratch = ProductScratch::default();
        let (by, shape, flops) = (format!("{types} {}", set.name()), size.to_string(), 2 * ROWS * COLUMNS * size);
        let mut out = vec![0.0; ROWS.max(COLUMNS) * size.max(COLUMNS)];
        self.time("logits", &by, &shape, flops, &mut || {
            products.logits(hidden, weight, Sums { data: &mut out, stride: COLUMNS, add: false }, &mut scratch);
        });
        self.time("hidden", &by, &shape, flops, &mut || {
            products.hidden(gradient, weight, Sums { data: &mut out, stride: size, add: true }, &mut scratch);
        });
        self.time("weight", &by, &shape, flops, &mut || {
            products.weight(gradient, hidden, Sums { data: &mut out, stride: size, add: true }, &mut scratch);
        });
    }

    /// The products' shapes by `gemm`, of f32.
    fn gemm(&mut self, size: usize) {
        let (hidden, weight) = (numbers::<f32>(ROWS * size), numbers::<f32>(COLUMNS * size));
        let gradient = numbers::<f32>(ROWS * COLUMNS);
        let mut out = vec![0.0; ROWS.max(COLUMNS) * size.max(COLUMNS)];
        let (hidden, weight, gradient) = ((&hidden[..], size, 1), (&weight[..], size, 1), (&gradient[..], COLUMNS, 1));
        let transposed = |(data, row, column): (_, usize, usize)| (data, column, row);
        let products = [
            ("logits", [ROWS, COLUMNS, size], hidden, transposed(weight)),
            ("hidden", [ROWS, size, COLUMNS], gradient, weight),
            ("weight", [COLUMNS, size, ROWS], transposed(gradient), hidden),
        ];
        for (name, [rows, columns, depth], left, right) in products {
            self.time(name, "f32 gemm", &size.to_string(), 2 * ROWS * COLUMNS * size, &mut || {
                // SAFETY: the buffers have the sizes of the shapes, and `out` is not shared.
                unsafe {
                    gemm(
                        rows,
                        columns,
                        depth,
                        out.as_mut_ptr(),
                        1,
                        columns as isize,
                        true,
                        left.0.as_ptr(),
                        left.2 as isize,
                        left.1 as isize,
                        right.0.as_ptr(),
                        right.2 as isize,
                        right.1 as isize,
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        Parallelism::None,
                    );
                }
            });
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use core::arch::x86_64::{
        __m256, __m512, __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_ps,
    };
    use std::hint::black_box;

    /// Multiply-adds in flight.
    const CHAINS: usize = 12;
    pub(super) const STEPS: usize = 1 << 14;
    pub(super) const F32_AVX512: usize = STEPS * CHAINS * 32;
    pub(super) const F32_AVX2: usize = STEPS * CHAINS * 16;
    pub(super) const PAIRS: usize = STEPS * CHAINS * 64;

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512() -> [__m512; CHAINS] {
        let (mut sums, x) = ([_mm512_set1_ps(1.0); CHAINS], black_box(_mm512_set1_ps(0.5)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        sums
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2() -> [__m256; CHAINS] {
        let (mut sums, x) = ([_mm256_set1_ps(1.0); CHAINS], black_box(_mm256_set1_ps(0.5)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        sums
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn pairs() -> [__m512; CHAINS] {
        // SAFETY: 512 bits each.
        let x: __m512bh = unsafe { core::mem::transmute(black_box(_mm512_set1_ps(0.5))) };
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
fn peaks(bench: &mut Bench<'_>) {
    use std::hint::black_box;
    if InstructionSet::Avx512Bf16.is_available() {
        // SAFETY: the processor has the instructions.
        bench.time("peak", "bf16 pairs", "avx512bf16", peak::PAIRS, &mut || _ = black_box(unsafe { peak::pairs() }));
    }
    if InstructionSet::Avx512.is_available() {
        // SAFETY: as above.
        bench.time("peak", "f32", "avx512", peak::F32_AVX512, &mut || _ = black_box(unsafe { peak::f32_avx512() }));
    }
    if InstructionSet::Avx2.is_available() {
        // SAFETY: as above.
        bench.time("peak", "f32", "avx2", peak::F32_AVX2, &mut || _ = black_box(unsafe { peak::f32_avx2() }));
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut bench = Bench { criterion: &mut criterion, pool };
    #[cfg(target_arch = "x86_64")]
    peaks(&mut bench);
    for size in HIDDEN_SIZES {
        bench.gemm(size);
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            if set == InstructionSet::Avx512Bf16 {
                bench.stage::<bf16, bf16>(set, "bf16", size);
                continue;
            }
            bench.stage::<f32, f32>(set, "f32", size);
            bench.stage::<bf16, bf16>(set, "bf16", size);
            bench.stage::<f16, f16>(set, "f16", size);
        }
    }
    criterion.final_summary();
}
