//! What a head whose rows lie on several ranks costs on CUDA, counted by softcuda: launches and products of each rank, and that
//! nothing is allocated after the first step of a shape.

use crate::linear_counts::counters;
use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::LinearChunks;
use exo_kernels::{Element, LogitOptions};
use half::{bf16, f16};
use softcuda::report::LaunchReport;
use support::backend::{self, HeadRanks, Layout};
use support::linear::{ALL, Case, Wanted};

/// N, H, V, and where the second rank begins.
const SHAPE: (usize, usize, usize, usize) = (24, 64, 1700, 900);

fn names(launches: &[LaunchReport]) -> Vec<String> {
    launches.iter().map(|launch| launch.kernel.clone()).collect()
}

fn products(launches: &[LaunchReport]) -> usize {
    launches.iter().filter(|launch| launch.kernel == "cublasGemmEx").count()
}

#[test]
fn launches_and_products_of_a_rank_are_those_of_the_plan() {
    fn check<T: Element + DeviceRepr>(name: &str) {
        let Some((_turn, control)) = counters() else { return };
        let (n, h, v, border) = SHAPE;
        let cuda = backend::cuda();
        cuda.set_linear_chunks(LinearChunks::default());
        let case = Case::<T, T>::random(n, h, v, true, 1);
        let layout = Layout { padding: 12, ..Layout::new(&[0, border]) };
        let mut ranks = HeadRanks::new(&cuda, &case, &layout, None);
        let (options, bits) = (LogitOptions::default(), 8 * size_of::<T>());
        let of_name = |kernel: &str| format!("{kernel}_{name}");
        let of_parts = |keeps: bool| {
            let mut plan =
                vec!["linear_scored_rows".to_owned(), of_name("linear_bias"), "linear_empty_parts".to_owned()];
            plan.extend([format!("linear_gather_{bits}"), "cublasGemmEx".to_owned(), "linear_log_prob".to_owned()]);
            if keeps {
                plan.extend([of_name("linear_exponentials"), "cublasGemmEx".to_owned(), "linear_unit_sums".to_owned()]);
            }
            plan
        };
        for keeps in [false, true] {
            control.take_launches();
            let found = ranks.forward(&options, false, keeps);
            let mut plan = [of_parts(keeps), of_parts(keeps), vec!["merge_rows".to_owned()]].concat();
            for _ in 0..if keeps { 2 } else { 0 } {
                plan.extend(["linear_scored_rows".to_owned(), of_name("linear_unit_share")]);
            }
            assert_eq!(names(&control.take_launches()), plan, "kept: {keeps}");
            if !keeps {
                continue;
            }
            // Of two ranks: the table of `LinearKept`.
            let (g, frozen) = (vec![-0.5_f32; n], Wanted { weight: false, bias: false, ..ALL });
            for (units, wanted, expected) in
                [(None, frozen, 2), (None, ALL, 3), (Some(()), frozen, 0), (Some(()), ALL, 2)]
            {
                let units = units.map(|()| found.units());
                control.take_launches();
                ranks.backward::<T>(&options, &found.forward, units.as_deref(), (&g, None), wanted);
                assert_eq!(products(&control.take_launches()), 2 * expected, "{wanted:?}, kept: {}", units.is_some());
            }
        }
    }
    check::<bf16>("bf16");
    check::<f16>("f16");
    check::<f32>("f32");
}

#[test]
fn nothing_is_allocated_after_the_first_step() {
    let Some((_turn, control)) = counters() else { return };
    let (n, h, v, border) = SHAPE;
    let cuda = backend::cuda();
    cuda.set_linear_chunks(LinearChunks::default());
    let case = Case::<bf16, bf16>::random(n, h, v, true, 1);
    let options = LogitOptions::default();
    let step = || {
        // New ones: what they take is given back when the step is over.
        let mut ranks = HeadRanks::new(&cuda, &case, &Layout::new(&[0, border]), None);
        let found = ranks.forward(&options, true, true);
        ranks.backward::<f32>(&options, &found.forward, Some(&found.units()), (&vec![0.5; n], None), ALL);
    };
    step();
    let in_use = control.memory_in_use();
    for _ in 0..2 {
        step();
        assert_eq!(control.memory_in_use(), in_use, "memory grows from step to step");
    }
}
