//! What is no conversion, or not a supported one, is refused by name.

use softcuda::machine::snippet::Snippet;

const REGISTERS: &str =
    ".reg .b16 h0, h1; .reg .b32 r0, r1, r2; .reg .b64 l0, l1; .reg .f32 f0, f1; .reg .f64 d0, d1; .reg .b8 b0;";

/// The instruction and a word that the error must have. ptxas 13.0 refuses all of them for sm_90a too.
const REFUSED: &[(&str, &str)] = &[
    ("cvt.rn.f64.f32 d0, f0", "rounding"),
    ("cvt.rn.f32.f16 f0, h0", "rounding"),
    ("cvt.rn.f32.f32 f0, f1", "rounding"),
    ("cvt.f16.f32 h0, f0", "rounding"),
    ("cvt.f32.s32 f0, r0", "rounding"),
    ("cvt.s32.f32 r0, f0", "rounding"),
    ("cvt.rn.s32.f32 r0, f0", "rounding"),
    ("cvt.rzi.f32.s32 f0, r0", "rounding"),
    ("cvt.rn.u64.u32 l0, r0", "rounding"),
    ("cvt.rni.f32.f64 f0, d0", "rounding"),
    ("cvt.rni.f64.f32 d0, f0", "rounding"),
    ("cvt.rni.f32.f16 f0, h0", "rounding"),
    ("cvt.sat.s32.s16 r0, h0", "sat"),
    ("cvt.sat.s64.u32 l0, r0", "sat"),
    ("cvt.sat.bf16.bf16 h0, h1", "sat"),
    ("cvt.rn.sat.bf16.s32 h0, r0", "sat"),
    ("cvt.rn.sat.bf16.f32 h0, f0", "sat"),
    ("cvt.sat.f32.bf16 f0, h0", "sat"),
    ("cvt.rn.e4m3x2.f32 h0, f0, f1", "satfinite"),
    ("cvt.rn.satfinite.e5m2x2.bf16x2 h0, r0", "bf16x2"),
    ("cvt.rn.bf16x2.e5m2x2 r0, h0", "e5m2x2"),
    ("cvt.f16x2.e5m2x2 r0, h0", "rounding"),
    ("cvt.rn.ftz.bf16x2.f32 r0, f0, f1", "ftz"),
    ("cvt.rn.sat.f16x2.f32 r0, f0, f1", "sat"),
    ("cvt.rn.relu.f16.f64 h0, d0", "relu"),
    ("cvt.rn.ftz.relu.f16.f32 h0, f0", "relu"),
    ("cvt.rzi.sat.s32.bf16 r0, h0", "sat"),
    ("cvt.rm.bf16x2.f32 r0, f0, f1", "rounding"),
    ("cvt.u8.u64 l0, r0", "r0"),
    ("cvt.u32.u32 h0, l0", "h0"),
    ("cvt.u32.u32 f0, r0", "f0"),
    ("cvt.u32.u32 r0, f0", "f0"),
    ("cvt.rna.tf32.f32 f0, f1", "f0"),
    ("cvt.rn.f32.f64 h0, d0", "h0"),
    ("cvt.rn.bf16x2.f32 r0, f0", "operands"),
    ("cvt.u64.u32 l0", "operands"),
    ("cvt.u32 l0, r0", "type"),
    ("cvt.pack.u8.s32.b32 r0, r1, r2, r0", "sat"),
    ("cvt.pack.sat.u8.s32 r0, r1, r2", "b32"),
    ("cvt.pack.sat.u16.s32 r0, r1, r2, r0", "operands"),
    ("cvt.rn.unknown.f16.f32 h0, f0", "unknown"),
    ("cvt.rs.f16x2.f32 r0, f0, f1, r1", "rs"),
    ("cvt.rn.satfinite.e2m1x2.f32 b0, f0, f1", "e2m1x2"),
    ("cvt.rz.satfinite.ue8m0x2.f32 h0, f0, f1", "ue8m0x2"),
];

#[test]
fn other_conversions_are_refused() {
    for (instruction, word) in REFUSED {
        match Snippet::new(&format!("{REGISTERS} {instruction};")) {
            Ok(_) => panic!("{instruction} is accepted"),
            Err(error) => assert!(error.message.contains(word), "{instruction}: {error} does not name {word}"),
        }
    }
}
