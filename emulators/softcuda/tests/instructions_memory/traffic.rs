//! The counters of traffic: sectors, bank conflicts, bytes, of accesses counted by hand.

use super::kernel::{Argument, Kernel, longs};
use super::registers;
use softcuda::Settings;

#[test]
fn sectors_are_counted_per_warp_access() {
    // (bytes a lane, distance of lanes in bytes, offset, lanes, sectors of 32 bytes) by hand.
    let table = [
        (1, 1, 0, 32, 1),
        (2, 2, 0, 32, 2),
        (4, 4, 0, 32, 4),
        (8, 8, 0, 32, 8),
        (16, 16, 0, 32, 16),
        (32, 32, 0, 32, 32),
        (4, 0, 0, 32, 1),
        (4, 4, 4, 32, 5),
        (4, 4, 32, 32, 4),
        (1, 1, 31, 32, 2),
        (4, 8, 0, 32, 8),
        (4, 16, 0, 32, 16),
        (4, 32, 0, 32, 32),
        (4, 128, 0, 32, 32),
        (8, 16, 8, 32, 16),
        (16, 32, 0, 32, 32),
        (16, 48, 0, 32, 32),
        (4, 4, 0, 8, 1),
        (4, 4, 0, 9, 2),
        (4, 36, 0, 8, 8),
        (4, 12, 0, 32, 12),
        (2, 34, 0, 16, 16),
    ];
    for (width, stride, offset, lanes, sectors) in table {
        let (bits, count) = if width > 16 { (32, width / 4) } else { (width * 8, 1) };
        let vector = if count == 1 { String::new() } else { format!(".v{count}") };
        let list = registers(bits, count);
        let body = format!(
            "    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p1, %r1, {lanes};
    mad.wide.u32 %rd1, %r1, {stride}, %rd1;
    mad.wide.u32 %rd2, %r1, {stride}, %rd2;
    @%p1 ld.global{vector}.b{bits} {list}, [%rd1+{offset}];
    @%p1 st.global{vector}.b{bits} [%rd2+{offset}], {list};"
        );
        let mut kernel = Kernel::with_body(
            "",
            ".param .u64 in, .param .u64 out",
            &body,
            vec![Argument::Bytes(vec![3; 8192]), Argument::Fresh(8192)],
        );
        // Two warps in two blocks make the same accesses to the same places; that they write the same is not looked at
        // here.
        kernel.grid = [2, 1, 1];
        let checks = softcuda::Checks { races: false, ..softcuda::Checks::default() };
        let counters = kernel.run_with(&Settings { checks, ..Settings::default() }).report.counters;
        let global = counters.global;
        let context = format!("{width} bytes every {stride} from {offset} by {lanes}");
        assert_eq!((global.sectors_loaded, global.sectors_stored), (2 * sectors, 2 * sectors), "{context}");
        let asked = 2 * u64::from(width * lanes);
        assert_eq!((global.bytes_loaded, global.bytes_stored), (asked, asked), "{context}");
        let distinct = if stride < width { width + stride * (lanes - 1) } else { width * lanes };
        let distinct = u64::from(distinct);
        // Each of the two warps counts its own; what its lanes share counts once.
        assert_eq!((global.warp_bytes_loaded, global.warp_bytes_stored), (2 * distinct, 2 * distinct), "{context}");
        assert_eq!((global.distinct_bytes_read, global.distinct_bytes_written), (distinct, distinct), "{context}");
    }
}

#[test]
fn bank_conflicts_are_counted_per_warp_access() {
    // (bytes a lane, distance of lanes in bytes, passes over the banks, fewest) by hand: up to 4 bytes the warp goes as
    // one, 8 bytes by halves, 16 by quarters.
    let table = [
        (4, 4, 1, 1),
        (4, 0, 1, 1),
        (4, 8, 2, 1),
        (4, 12, 1, 1),
        (4, 16, 4, 1),
        (4, 64, 16, 1),
        (4, 128, 32, 1),
        (4, 132, 1, 1),
        (4, 260, 1, 1),
        (4, 136, 2, 1),
        (1, 1, 1, 1),
        (2, 2, 1, 1),
        (1, 4, 1, 1),
        (1, 128, 32, 1),
        (8, 8, 2, 2),
        (8, 16, 4, 2),
        (8, 128, 32, 2),
        (8, 136, 2, 2),
        (16, 16, 4, 4),
        (16, 32, 8, 4),
        (16, 128, 32, 4),
        (16, 144, 4, 4),
        (16, 0, 4, 4),
    ];
    for (width, stride, passes, fewest) in table {
        let (bits, list) = (width * 8, registers(width * 8, 1));
        let fill = if width == 16 { "    mov.b128 %q4, {%rd15, %rd15};" } else { "" };
        let body = format!(
            "    .shared .align 16 .b8 tile[16384];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    mad.lo.u32 %r1, %r1, {stride}, %r2;
{fill}
    st.shared.b{bits} [%r1], {list};
    bar.warp.sync -1;
    ld.shared.b{bits} {list}, [%r1];"
        );
        let kernel = Kernel::with_body("", "", &body, vec![]);
        let shared = kernel.run().report.counters.shared;
        let context = format!("{width} bytes every {stride}");
        assert_eq!(shared.wavefronts, 2 * passes, "{context}");
        assert_eq!(shared.bank_conflicts, 2 * (passes - fewest), "{context}");
        assert_eq!(
            (shared.bytes_loaded, shared.bytes_stored),
            (32 * u64::from(width), 32 * u64::from(width)),
            "{context}"
        );
    }
}

#[test]
fn distinct_bytes_are_counted_once() {
    // 64 threads of two blocks read the same 128 bytes and 4 bytes each of their own, and write every other byte of
    // 128.
    let body = "    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    ld.global.u32 %r3, [%rd3];
    ld.global.u32 %r3, [%rd3];
    mad.lo.u32 %r4, %r2, 32, %r1;
    mad.wide.u32 %rd4, %r4, 4, %rd1;
    ld.global.u32 %r5, [%rd4+128];
    mad.wide.u32 %rd5, %r4, 2, %rd2;
    st.global.u8 [%rd5], %r3;
    st.global.u8 [%rd5], %r5;
    red.global.add.u32 [%rd2+256], 1;";
    let mut out = vec![0; 512];
    out[0] = 1;
    let arguments = vec![Argument::Bytes(vec![1; 512]), Argument::Bytes(out)];
    let mut kernel = Kernel::with_body("", ".param .u64 in, .param .u64 out", body, arguments);
    kernel.grid = [2, 1, 1];
    let ended = kernel.run();
    let global = ended.report.counters.global;
    assert_eq!(global.bytes_loaded, 64 * 12);
    assert_eq!(global.bytes_stored, 64 * 2);
    assert_eq!(global.bytes_atomic, 64 * 4);
    // What an atomic does to 4 bytes is a read and a write of them.
    assert_eq!(global.distinct_bytes_read, 128 + 256 + 4);
    assert_eq!(global.distinct_bytes_written, 64 + 4);
    assert_eq!(longs(&ended.buffers[1])[32], 64);
}
