//! Calls of the driver's functions, counted by name.

mod driver_support;

use cudarc::driver::{CudaContext, result, sys};
use driver_support::alone;
use softcuda::Settings;
use std::collections::BTreeMap;

fn counted(names: &[(&str, u64)]) -> BTreeMap<String, u64> {
    names.iter().map(|&(name, calls)| (name.to_owned(), calls)).collect()
}

#[test]
fn every_call_counts_under_its_name() {
    let alone = alone(&Settings::default());
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let slice = stream.alloc_zeros::<u32>(4).unwrap();
    alone.control.take_calls();
    assert!(alone.control.take_calls().is_empty(), "asking is no call");

    let event = stream.context().new_event(None).unwrap();
    let bound = ("cuCtxGetCurrent", 1);
    assert_eq!(alone.control.take_calls(), counted(&[bound, ("cuEventCreate", 1)]));
    for _ in 0..3 {
        event.record(&stream).unwrap();
    }
    assert_eq!(alone.control.take_calls(), counted(&[("cuCtxGetCurrent", 3), ("cuEventRecord", 3)]));

    // A call that is refused is one too; from another thread, all the same.
    let address = std::thread::spawn(|| {
        let mut address = 0;
        // SAFETY: a place for the answer.
        let refused = unsafe { sys::cuMemAlloc_v2(&raw mut address, 0) };
        assert!(refused.result().is_err());
        address
    });
    assert_eq!(address.join().unwrap(), 0);
    assert_eq!(alone.control.take_calls(), counted(&[("cuMemAlloc_v2", 1)]));

    // SAFETY: a live stream.
    unsafe { result::stream::synchronize(stream.cu_stream()) }.unwrap();
    alone.control.reset();
    assert!(alone.control.take_calls().is_empty());
    drop(slice);
}
