//! Memory: allocation, copies in every direction, memset, views, pinned and managed memory, pools.

mod driver_support;

use cudarc::driver::sys::{self, CUresult::*};
use cudarc::driver::{CudaContext, DevicePtr, result};
use driver_support::{alone, assert_error};
use softcuda::Settings;
use std::ptr::null_mut;

fn ramp(count: u32) -> Vec<u32> {
    (0..count).map(|index| index.wrapping_mul(0x9e37_79b9)).collect()
}

#[test]
fn copies_come_back_as_they_went() {
    let alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    for stream in [context.default_stream(), context.per_thread_stream(), context.new_stream().unwrap()] {
        for count in [1, 2, 255, 256, 257, 100_003] {
            let data = ramp(count);
            let first = stream.clone_htod(&data).unwrap();
            let second = stream.clone_dtod(&first).unwrap();
            assert_eq!(stream.clone_dtoh(&second).unwrap(), data);
        }
    }
    assert_eq!(alone.control.memory_in_use(), 0);
}

#[test]
fn views_copy_their_part() {
    let _alone = alone(&Settings::default());
    let stream = CudaContext::new(0).unwrap().default_stream();
    let data = ramp(1000);
    let mut device = stream.clone_htod(&data).unwrap();
    assert_eq!(stream.clone_dtoh(&device.slice(13..517)).unwrap(), data[13..517]);
    stream.memset_zeros(&mut device.slice_mut(100..200)).unwrap();
    stream.memcpy_htod(&[7u32; 10], &mut device.slice_mut(990..)).unwrap();
    let mut expected = data;
    expected[100..200].fill(0);
    expected[990..].fill(7);
    assert_eq!(stream.clone_dtoh(&device).unwrap(), expected);
    let (head, tail) = device.split_at(500);
    assert_eq!(stream.clone_dtoh(&head).unwrap(), expected[..500]);
    assert_eq!(stream.clone_dtoh(&tail).unwrap(), expected[500..]);
}

#[test]
fn memsets_repeat_values_of_one_two_and_four_bytes() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let device = stream.alloc_zeros::<u8>(64).unwrap();
    let (address, _guard) = device.device_ptr(&stream);
    let read = || stream.clone_dtoh(&device).unwrap();
    // SAFETY: all within the allocation.
    unsafe {
        sys::cuMemsetD8_v2(address + 1, 0xab, 3).result().unwrap();
        sys::cuMemsetD16_v2(address + 4, 0x1234, 2).result().unwrap();
        sys::cuMemsetD32_v2(address + 8, 0x89ab_cdef, 2).result().unwrap();
        assert_eq!(
            read()[..17],
            [0, 0xab, 0xab, 0xab, 0x34, 0x12, 0x34, 0x12, 0xef, 0xcd, 0xab, 0x89, 0xef, 0xcd, 0xab, 0x89, 0]
        );
        sys::cuMemsetD2D8_v2(address, 16, 1, 4, 4).result().unwrap();
        let rows = read();
        for row in 0..4 {
            assert_eq!(rows[row * 16..][..4], [1; 4]);
            assert_eq!(rows[row * 16 + 12..][..4], if row == 0 { [0xef, 0xcd, 0xab, 0x89] } else { [0; 4] });
        }
    }
}

#[test]
fn rectangles_copy_between_host_and_device() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let host = ramp(24);
    let device = stream.alloc_zeros::<u32>(64).unwrap();
    let (address, _guard) = device.device_ptr(&stream);
    // Columns 1 to 4 of rows 1 to 3 of a host matrix of 6 columns, to columns 2 to 5 of a device matrix of 8 columns.
    let mut copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 4,
        srcY: 1,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: host.as_ptr().cast(),
        srcDevice: 0,
        srcArray: null_mut(),
        srcPitch: 24,
        dstXInBytes: 8,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: null_mut(),
        dstDevice: address,
        dstArray: null_mut(),
        dstPitch: 32,
        WidthInBytes: 16,
        Height: 3,
    };
    // SAFETY: the rectangles lie in the two matrices.
    unsafe { sys::cuMemcpy2D_v2(&raw const copy).result().unwrap() };
    let mut expected = vec![0; 64];
    for row in 0..3 {
        expected[row * 8 + 2..][..4].copy_from_slice(&host[(row + 1) * 6 + 1..][..4]);
    }
    assert_eq!(stream.clone_dtoh(&device).unwrap(), expected);
    // A pitch that is shorter than the row.
    copy.dstPitch = 20;
    // SAFETY: refused.
    assert_eq!(unsafe { sys::cuMemcpy2D_v2(&raw const copy) }, CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn unified_copies_find_out_the_direction() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let data = ramp(100);
    let device = stream.alloc_zeros::<u32>(100).unwrap();
    let (address, _guard) = device.device_ptr(&stream);
    let mut back = vec![0u32; 100];
    // SAFETY: all have 400 bytes.
    unsafe {
        sys::cuMemcpy(address, data.as_ptr() as u64, 400).result().unwrap();
        sys::cuMemcpyAsync(back.as_mut_ptr() as u64, address, 400, null_mut()).result().unwrap();
    }
    assert_eq!(back, data);
}

#[test]
fn pinned_memory_is_reached_by_the_host_and_by_copies() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(1000).unwrap() };
    pinned.as_mut_slice().unwrap().copy_from_slice(&ramp(1000));
    let device = stream.clone_htod(&pinned).unwrap();
    assert_eq!(stream.clone_dtoh(&device).unwrap(), ramp(1000));
    let pointer = pinned.as_ptr().unwrap();
    let mut address = 0;
    let mut flags = 0;
    // SAFETY: places for the results.
    unsafe {
        sys::cuMemHostGetDevicePointer_v2(&raw mut address, pointer.cast_mut().cast(), 0).result().unwrap();
        sys::cuMemHostGetFlags(&raw mut flags, pointer.cast_mut().cast()).result().unwrap();
    }
    assert_eq!(address, pointer as u64);
    assert_eq!(flags & sys::CU_MEMHOSTALLOC_DEVICEMAP, sys::CU_MEMHOSTALLOC_DEVICEMAP);
}

#[test]
fn registered_memory_is_pinned_until_it_is_unregistered() {
    let _alone = alone(&Settings::default());
    let _context = CudaContext::new(0).unwrap();
    let mut data = ramp(1000);
    let pointer = data.as_mut_ptr().cast();
    let mut kind = 0u32;
    // SAFETY: the memory lives to the end of the test.
    unsafe {
        sys::cuMemHostRegister_v2(pointer, 4000, 0).result().unwrap();
        assert_eq!(sys::cuMemHostRegister_v2(pointer, 4000, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, pointer as u64).result().unwrap();
        assert_eq!(kind, sys::CUmemorytype::CU_MEMORYTYPE_HOST as u32);
        sys::cuMemHostUnregister(pointer).result().unwrap();
        assert_eq!(sys::cuMemHostUnregister(pointer), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        // Memory that is not there.
        assert_eq!(
            sys::cuMemHostRegister_v2(std::ptr::without_provenance_mut(4096), 4000, 0),
            CUDA_ERROR_INVALID_VALUE
        );
    }
}

#[test]
fn managed_memory_is_the_hosts_and_the_devices() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    // SAFETY: written before it is read.
    let mut managed = unsafe { context.alloc_unified::<u32>(100, true).unwrap() };
    managed.as_mut_slice().unwrap().copy_from_slice(&ramp(100));
    let stream = context.default_stream();
    let copy = stream.clone_dtod(&managed).unwrap();
    assert_eq!(stream.clone_dtoh(&copy).unwrap(), ramp(100));
}

#[test]
fn pointers_tell_what_they_are() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let device = stream.alloc_zeros::<u32>(100).unwrap();
    let (address, _guard) = device.device_ptr(&stream);
    let (mut owner, mut start, mut bytes, mut ordinal) = (0u64, 0u64, 0u64, -1i32);
    let mut attributes = [
        sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT,
        sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
        sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
    ];
    let mut places =
        [(&raw mut owner).cast(), (&raw mut start).cast(), (&raw mut bytes).cast(), (&raw mut ordinal).cast()];
    // SAFETY: four attributes and a place for each.
    unsafe {
        sys::cuPointerGetAttributes(4, attributes.as_mut_ptr(), places.as_mut_ptr(), address + 200).result().unwrap();
        let (mut base, mut size) = (0, 0);
        sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, address + 399).result().unwrap();
        assert_eq!((base, size), (address, 400));
        assert_eq!(sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, address + 400), CUDA_ERROR_NOT_FOUND);
    }
    assert_eq!((owner, start, bytes, ordinal), (context.cu_ctx() as u64, address, 400, 0));
}

#[test]
fn memory_runs_out_where_the_settings_say() {
    let _alone = alone(&Settings { memory_bytes: 10_000, ..Settings::default() });
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let held = stream.alloc_zeros::<u8>(6000).unwrap();
    assert_error(stream.alloc_zeros::<u8>(4001), CUDA_ERROR_OUT_OF_MEMORY);
    drop(stream.alloc_zeros::<u8>(4000).unwrap());
    drop(held);
    stream.alloc_zeros::<u8>(10_000).unwrap();
}

#[test]
fn memory_that_waits_to_be_freed_is_found_when_it_is_needed() {
    let _alone = alone(&Settings { memory_bytes: 10_000, delay_streams: true, ..Settings::default() });
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    drop(stream.alloc_zeros::<u8>(10_000).unwrap());
    stream.alloc_zeros::<u8>(10_000).unwrap();
}

#[test]
fn pools_count_what_they_gave() {
    let _alone = alone(&Settings::default());
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    // SAFETY: the pool lives as long as it is used.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).unwrap();
        let used = || {
            let mut bytes = 0u64;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).unwrap();
            bytes
        };
        let before = used();
        let held = stream.alloc_zeros::<u8>(4096).unwrap();
        assert_eq!(used(), before + 4096);
        drop(held);
        assert_eq!(used(), before);
        assert_error(result::mem_pool::destroy(pool), CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn threads_share_the_device() {
    let alone = alone(&Settings::default());
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            std::thread::spawn(move || {
                let context = CudaContext::new(0).unwrap();
                let stream = context.new_stream().unwrap();
                for round in 0..50u32 {
                    let data: Vec<u32> = (0..500).map(|index| index * 8 + thread + round).collect();
                    let device = stream.clone_htod(&data).unwrap();
                    assert_eq!(stream.clone_dtoh(&device).unwrap(), data);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(alone.control.memory_in_use(), 0);
}

#[test]
fn memory_that_waits_to_be_freed_is_out_of_reach() {
    let _alone = alone(&Settings { delay_streams: true, ..Settings::default() });
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let mut address = 0;
    // SAFETY: a place for the result; the host's side has 16 bytes.
    unsafe {
        sys::cuMemAlloc_v2(&raw mut address, 16).result().unwrap();
        sys::cuMemFreeAsync(address, stream.cu_stream()).result().unwrap();
        assert_eq!(sys::cuMemcpyHtoD_v2(address, [0u8; 16].as_ptr().cast(), 16), CUDA_ERROR_INVALID_VALUE);
    }
    stream.synchronize().unwrap();
}
