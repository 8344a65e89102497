//! Matrix products, for a stand-in of cuBLAS: work of a stream as a kernel is, captured, delayed and checked like one.

use super::entry::{In, entry_points};
use super::launch::reported;
use super::state::{Handle, state};
use super::work::{node, submit};
use crate::product::Product;
use std::sync::{Arc, PoisonError};

entry_points! {
    fn softcuda_product(stream: Handle, product: In<Product>) {
        let product = product.get()?;
        let (stream, machine) = {
            let mut state = state();
            (state.stream(stream)?, state.machine())
        };
        let run = move || {
            let report = machine.read().unwrap_or_else(PoisonError::into_inner).product(&product);
            reported(&report)
        };
        submit(stream, node::KERNEL, Arc::new(run)).map(drop)
    }
}
