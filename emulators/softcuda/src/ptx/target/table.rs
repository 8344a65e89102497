//! Which targets have which instructions, since which version of the PTX ISA: as ptxas 13.0 says it
//! (`tests/ptx_targets.rs` asks it row by row), and the "Target ISA Notes" of the PTX ISA.
//!
//! A row begins with the opcode, or several: `ld|st`, or `*` for any. Then come words that the instruction must have,
//! one of those between bars; `!word`: it must not have it; `#4`: it has so many operands. All rows that fit an
//! instruction apply to it. Instructions that every target since sm_30 has are not listed, nor those that are refused
//! anyway.

use super::{Least, Row};
use Least::{Sm, Special};

/// Any target: only the version counts.
const ANY: Least = Sm(0);

/// Blackwell's data-centre family.
const FAMILY_100: Least = Special { alone: &[], families: &[100] };

/// Instructions.
#[rustfmt::skip]
pub const FORMS: &[Row] = &[
    // Words with the same meaning in many instructions.
    ("* cluster", Sm(90), (7, 8)),
    ("* shared::cluster", Sm(90), (7, 8)),
    ("* shared::cta !async", ANY, (7, 8)),
    ("* param::entry|param::func", ANY, (8, 3)),
    ("* L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate", Sm(70), (7, 4)),
    ("* L2::64B|L2::128B", Sm(75), (7, 4)),
    ("* L2::256B", Sm(80), (7, 4)),
    ("* L2::cache_hint", Sm(80), (7, 4)),
    ("* bf16|bf16x2", Sm(80), (7, 0)),
    ("* b128", Sm(70), (8, 3)),
    ("* sys b128", Sm(70), (8, 4)),
    // Memory.
    ("ld|st weak|relaxed|acquire|release", Sm(70), (6, 0)),
    ("ld|st mmio", Sm(70), (8, 2)),
    ("ld nc", Sm(32), (0, 0)),
    ("ld|st v8 b32|u32|s32|f32", Sm(100), (8, 8)),
    ("ld|st v4 b64|u64|s64|f64", Sm(100), (8, 8)),
    ("cvta|isspacep param|param::entry", Sm(70), (7, 7)),
    ("mapa|getctarank", Sm(90), (7, 8)),
    ("createpolicy|applypriority|discard", Sm(80), (7, 4)),
    ("prefetch L2::evict_last|L2::evict_normal", Sm(80), (7, 4)),
    ("prefetch tensormap", Sm(90), (8, 0)),
    // Atomics.
    ("atom|red cta|gpu|sys", Sm(60), (0, 0)),
    ("atom|red relaxed|acquire|release|acq_rel", Sm(70), (6, 0)),
    ("atom|red min|max|and|or|xor u64|s64|b64", Sm(32), (0, 0)),
    ("atom|red add f64", Sm(60), (0, 0)),
    ("atom|red add f16x2", Sm(60), (6, 2)),
    ("atom|red add f16", Sm(70), (6, 3)),
    ("atom|red bf16|bf16x2", Sm(90), (7, 8)),
    ("atom|red min|max f16|f16x2|bf16|bf16x2", Sm(90), (8, 1)),
    ("atom|red v2|v4|v8", Sm(90), (8, 1)),
    ("atom cas b16", Sm(70), (6, 3)),
    ("atom b128", Sm(90), (8, 3)),
    ("red|st async", Sm(90), (8, 1)),
    // Floating point.
    ("add|sub|mul|fma f16|f16x2", Sm(53), (0, 0)),
    ("neg f16|f16x2", Sm(53), (6, 0)),
    ("abs f16|f16x2", Sm(53), (6, 5)),
    ("add|sub|mul bf16|bf16x2", Sm(90), (7, 8)),
    ("fma relu", Sm(80), (7, 0)),
    ("add|sub|mul|fma f32x2", Sm(100), (8, 6)),
    ("add|sub|fma f32 f16|bf16", Sm(100), (8, 6)),
    ("min|max f16|f16x2", Sm(80), (7, 0)),
    ("min|max NaN", Sm(80), (7, 0)),
    ("min|max xorsign", Sm(86), (7, 2)),
    ("min|max f32 #4", Sm(100), (8, 8)),
    ("tanh", Sm(75), (7, 0)),
    ("ex2 f16|f16x2", Sm(75), (7, 0)),
    ("ex2|tanh bf16|bf16x2", Sm(90), (7, 8)),
    ("set|setp f16|f16x2", Sm(53), (0, 0)),
    ("set f16|f16x2 u16|s16|s32|u32", Sm(53), (6, 5)),
    ("set|setp bf16|bf16x2", Sm(90), (7, 8)),
    // Conversions.
    ("cvt f16x2|bf16x2 f32", Sm(80), (7, 0)),
    ("cvt relu", Sm(80), (7, 0)),
    ("cvt satfinite f16|f16x2|bf16|bf16x2|tf32 f32", Sm(70), (8, 1)),
    ("cvt bf16 !f32", Sm(90), (7, 8)),
    ("cvt f32 bf16 !rn !rz", Sm(80), (7, 1)),
    ("cvt tf32", Sm(80), (7, 0)),
    ("cvt tf32 rn|rz", Sm(90), (7, 8)),
    ("cvt tf32 rn|rz satfinite", Sm(100), (8, 6)),
    ("cvt e4m3x2|e5m2x2", Sm(89), (7, 8)),
    ("cvt pack", Sm(72), (6, 5)),
    ("cvt pack u4|s4|u2|s2", Sm(75), (6, 5)),
    // Integers.
    ("add|min|max u16x2|s16x2", Sm(90), (8, 0)),
    ("min|max relu", Sm(90), (8, 0)),
    ("dp4a|dp2a", Sm(61), (0, 0)),
    ("vadd2|vsub2|vavrg2|vabsdiff2|vmin2|vmax2|vadd4|vsub4|vavrg4|vabsdiff4|vmin4|vmax4", Sm(30), (0, 0)),
    ("shf", Sm(32), (0, 0)),
    ("lop3", Sm(50), (0, 0)),
    ("lop3 or|and", Sm(70), (8, 2)),
    ("szext|bmsk", Sm(70), (7, 6)),
    ("fns", Sm(30), (6, 0)),
    // Warps, barriers, fences.
    ("shfl|vote sync", Sm(30), (6, 0)),
    ("match", Sm(70), (6, 0)),
    ("redux", Sm(80), (7, 0)),
    ("redux f32", FAMILY_100, (8, 6)),
    ("elect", Sm(90), (8, 0)),
    ("activemask", Sm(30), (6, 2)),
    ("bar warp", Sm(30), (6, 0)),
    ("barrier", Sm(30), (6, 0)),
    ("bar|barrier cta", ANY, (7, 8)),
    ("barrier cluster relaxed|release|acquire", Sm(90), (8, 0)),
    ("fence", Sm(70), (6, 0)),
    ("fence proxy", Sm(70), (7, 5)),
    ("membar proxy", Sm(60), (7, 5)),
    ("fence proxy async|async::generic", Sm(90), (8, 0)),
    ("fence mbarrier_init", Sm(90), (8, 0)),
    ("fence sync_restrict::shared::cta|sync_restrict::shared::cluster", Sm(90), (8, 6)),
    ("nanosleep", Sm(70), (6, 2)),
    ("griddepcontrol", Sm(90), (7, 8)),
    ("setmaxnreg", Special { alone: &[90], families: &[100, 110, 120] }, (8, 0)),
    // Asynchronous copies and mbarrier.
    ("cp async", Sm(80), (7, 0)),
    ("cp async bulk", Sm(90), (8, 0)),
    ("cp mbarrier shared::cta", Sm(80), (7, 8)),
    ("cp bulk shared::cta mbarrier::complete_tx::bytes !shared::cluster", Sm(90), (8, 6)),
    ("mbarrier", Sm(80), (7, 0)),
    ("mbarrier parity", Sm(80), (7, 1)),
    ("mbarrier acquire|release", Sm(80), (8, 0)),
    ("mbarrier arrive|arrive_drop !noComplete !expect_tx #3", Sm(90), (7, 8)),
    ("mbarrier try_wait", Sm(90), (7, 8)),
    ("mbarrier expect_tx|complete_tx|cluster|shared::cluster", Sm(90), (8, 0)),
    ("mbarrier arrive|arrive_drop|test_wait|try_wait relaxed", Sm(90), (8, 6)),
    // Matrices.
    ("ldmatrix", Sm(75), (6, 5)),
    ("movmatrix", Sm(75), (7, 8)),
    ("stmatrix", Sm(90), (7, 8)),
    ("mma", Sm(70), (6, 4)),
    ("mma m16n8k8|m8n8k16", Sm(75), (6, 5)),
    ("mma m16n8k16|m16n8k32", Sm(80), (7, 0)),
    ("mma bf16|tf32|f64", Sm(80), (7, 0)),
    ("mma m16n8k4|m16n8k8|m16n8k16 f64", Sm(90), (7, 8)),
    ("mma e4m3|e5m2", Sm(89), (8, 4)),
    ("mma e4m3|e5m2 m16n8k16", Sm(89), (8, 7)),
    ("mma e4m3|e5m2 f16", Sm(89), (8, 7)),
    ("wmma", Sm(70), (6, 3)),
    ("wmma s8|u8|s32", Sm(72), (6, 3)),
    ("wmma bf16|tf32|f64", Sm(80), (7, 0)),
];

/// Special registers, by their stem.
pub const REGISTERS: &[Row] = &[
    ("%is_explicit_cluster", Sm(90), (7, 8)),
    ("%clusterid", Sm(90), (7, 8)),
    ("%nclusterid", Sm(90), (7, 8)),
    ("%cluster_ctaid", Sm(90), (7, 8)),
    ("%cluster_nctaid", Sm(90), (7, 8)),
    ("%cluster_ctarank", Sm(90), (7, 8)),
    ("%cluster_nctarank", Sm(90), (7, 8)),
    ("%aggr_smem_size", Sm(90), (8, 1)),
    ("%current_graph_exec", Sm(50), (8, 0)),
    ("%reserved_smem_offset_begin", Sm(80), (7, 6)),
    ("%reserved_smem_offset_end", Sm(80), (7, 6)),
    ("%reserved_smem_offset_cap", Sm(80), (7, 6)),
    ("%reserved_smem_offset_0", Sm(80), (7, 6)),
    ("%reserved_smem_offset_1", Sm(80), (7, 6)),
];

/// Directives of a kernel, without the dot.
pub const DIRECTIVES: &[Row] =
    &[("reqnctapercluster", Sm(90), (7, 8)), ("explicitcluster", Sm(90), (7, 8)), ("maxclusterrank", Sm(90), (7, 8))];
