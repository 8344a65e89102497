//! Fatbins as nvcc 13.0 writes them, in every compression, and damaged ones.
//!
//! The files in `data` are of one kernel,
//! `extern "C" __global__ void scale(float *y, const float *x, float a, unsigned n)`, made by
//! `nvcc --fatbin -gencode arch=compute_A,code=compute_A` with A = 75, 90, 90a, 100f and `--compress-mode` as in the
//! name; `scale_machine_code` has `code=sm_90` alone, `scale_both` has that and `compute_80`.

use proptest::prelude::*;
use softcuda::fatbin::{FatbinError, image_length, ptx};
use softcuda::ptx::parse;

const NONE: &[u8] = include_bytes!("data/scale_none.fatbin");
const SPEED: &[u8] = include_bytes!("data/scale_speed.fatbin");
const BALANCE: &[u8] = include_bytes!("data/scale_balance.fatbin");
const SIZE: &[u8] = include_bytes!("data/scale_size.fatbin");
const MACHINE_CODE: &[u8] = include_bytes!("data/scale_machine_code.fatbin");
const BOTH: &[u8] = include_bytes!("data/scale_both.fatbin");

const MODES: [(&str, &[u8]); 4] = [("none", NONE), ("speed", SPEED), ("balance", BALANCE), ("size", SIZE)];

const TEXT: &str = ".version 9.0\n.target sm_90\n.address_size 64\n";

#[test]
fn every_compression_gives_the_same_text() {
    let plain = ptx(NONE, (9, 0)).unwrap();
    for (mode, image) in MODES {
        let text = ptx(image, (9, 0)).unwrap();
        assert_eq!(text, plain, "{mode}");
        let module = parse(&text).unwrap();
        assert_eq!((module.version, module.functions.len()), ((9, 0), 1), "{mode}");
        assert_eq!((module.functions[0].name.as_str(), module.functions[0].parameters.len()), ("scale", 4), "{mode}");
    }
}

#[test]
fn the_highest_target_that_the_device_has_is_taken() {
    // A target without a suffix runs on every later device, `a` on its own alone, `f` on the same major number.
    let expected = [
        ((7, 5), "sm_75"),
        ((8, 9), "sm_75"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_100f"),
        ((10, 3), "sm_100f"),
        ((12, 0), "sm_90"),
    ];
    for (mode, image) in MODES {
        for (device, target) in expected {
            let text = ptx(image, device).unwrap();
            assert_eq!(parse(&text).unwrap().target, target, "{mode}, {device:?}");
        }
    }
}

#[test]
fn machine_code_is_passed_over() {
    assert_eq!(parse(&ptx(BOTH, (9, 0)).unwrap()).unwrap().target, "sm_80");
    assert_eq!(ptx(MACHINE_CODE, (9, 0)), Err(FatbinError::NoPtx));
    // An ELF header's first 16 bytes.
    let mut cubin = b"\x7fELF\x02\x01\x01A\x08".to_vec();
    cubin.resize(16, 0);
    assert_eq!(ptx(&cubin, (9, 0)), Err(FatbinError::Cubin));
    let length = image_length(&cubin).unwrap();
    assert_eq!(ptx(&cubin[..length], (9, 0)), Err(FatbinError::Cubin));
}

#[test]
fn a_device_below_all_targets_is_told_what_there_is() {
    let error = ptx(SIZE, (7, 0)).unwrap_err();
    let targets = ["sm_75", "sm_90", "sm_90a", "sm_100f"].map(str::to_owned).to_vec();
    assert_eq!(error, FatbinError::OtherDevices { device: (7, 0), targets });
    assert!(error.to_string().contains("sm_75, sm_90, sm_90a, sm_100f"), "{error}");
}

#[test]
fn the_length_is_known_from_sixteen_bytes() {
    for (mode, image) in MODES {
        assert_eq!(image_length(&image[..16]), Some(image.len()), "{mode}");
        // What lies behind a pointer goes on.
        let mut longer = image.to_vec();
        longer.extend([0xa5; 40]);
        assert_eq!(ptx(&longer, (9, 0)), ptx(image, (9, 0)), "{mode}");
    }
    assert_eq!(image_length(&TEXT.as_bytes()[..16]), None);
}

#[test]
fn text_ends_at_its_nul_if_it_has_one() {
    assert_eq!(ptx(TEXT.as_bytes(), (9, 0)).as_deref(), Ok(TEXT));
    let mut terminated = TEXT.as_bytes().to_vec();
    terminated.extend(b"\0garbage\xff");
    assert_eq!(ptx(&terminated, (9, 0)).as_deref(), Ok(TEXT));
    // A comment in Latin-1 is no reason to refuse a kernel.
    let mut comment = b"// fa\xe7ade\n".to_vec();
    comment.extend(TEXT.as_bytes());
    assert!(parse(&ptx(&comment, (9, 0)).unwrap()).is_ok());
}

#[test]
fn what_is_no_module_is_refused() {
    assert_eq!(ptx(b"", (9, 0)), Err(FatbinError::Unknown));
    assert_eq!(ptx(b"#include <cuda.h>", (9, 0)), Err(FatbinError::Unknown));
    // The structure around a pointer that host compilers write.
    let wrapper = [0xb1, 0x43, 0x62, 0x46, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ptx(&wrapper, (9, 0)), Err(FatbinError::Unknown));
}

#[test]
fn truncated_fatbins_are_damaged() {
    for (mode, image) in MODES {
        for length in 4..image.len() {
            let result = ptx(&image[..length], (9, 0));
            assert!(matches!(result, Err(FatbinError::Damaged(_))), "{mode}, {length} bytes: {result:?}");
        }
    }
}

#[test]
fn sizes_that_cannot_be_are_refused_before_memory_is_taken() {
    // Bytes 56 to 63 of an entry's header say how much there is uncompressed; the first entry is at 16.
    for image in [SPEED, BALANCE, SIZE] {
        for size in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
            let mut changed = image.to_vec();
            changed[16 + 56..16 + 64].copy_from_slice(&u64::to_le_bytes(size));
            assert!(matches!(ptx(&changed, (7, 5)), Err(FatbinError::Damaged(_))), "{size}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic(
        mode in 0..MODES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut image = MODES[mode].1.to_vec();
        for (place, byte) in changes {
            let place = place.index(image.len());
            image[place] = byte;
        }
        let _ = image_length(&image);
        let _ = ptx(&image, (9, 0));
    }

    #[test]
    fn random_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let mut image = bytes;
        if magic && image.len() >= 4 {
            image[..4].copy_from_slice(&0xba55_ed50_u32.to_le_bytes());
        }
        let _ = image_length(&image);
        let _ = ptx(&image, (9, 0));
    }
}
