//! Random changes to PTX text that leave most of it valid, and a pool of instructions to put together at random.

use proptest::prelude::*;
use proptest::sample::Index;
use std::fmt::Write;

/// One change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    kind: Kind,
    place: Index,
    from: Index,
    number: i64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Modifier,
    DropModifier,
    AddModifier,
    Register,
    Number,
    Word,
    DropLine,
    MoveLine,
    DoubleLine,
    InsertLine,
}

const KINDS: &[Kind] = &[
    Kind::Modifier,
    Kind::Modifier,
    Kind::DropModifier,
    Kind::AddModifier,
    Kind::Register,
    Kind::Register,
    Kind::Number,
    Kind::Number,
    Kind::Word,
    Kind::Word,
    Kind::DropLine,
    Kind::MoveLine,
    Kind::DoubleLine,
    Kind::InsertLine,
    Kind::InsertLine,
];

impl Arbitrary for Change {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        (prop::sample::select(KINDS), any::<Index>(), any::<Index>(), number())
            .prop_map(|(kind, place, from, number)| Self { kind, place, from, number })
            .boxed()
    }
}

/// So many changes.
pub(crate) fn changes(number: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(any::<Change>(), number)
}

/// Numbers at which arithmetic has its corners.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![
        0..70_i64,
        -40..0_i64,
        (0..64_u32, -2..3_i64).prop_map(|(bit, more)| (1_i64 << bit).wrapping_add(more)),
        any::<i64>(),
        any::<i32>().prop_map(i64::from),
    ]
}

/// Words after a dot.
#[rustfmt::skip]
const MODIFIERS: &[&str] = &[
    ".u8", ".u16", ".u32", ".u64", ".s8", ".s16", ".s32", ".s64", ".b8", ".b16", ".b32", ".b64", ".b128", ".f16", ".f16x2", ".bf16", ".bf16x2",
    ".f32", ".f64", ".f32x2", ".tf32", ".pred", ".e4m3x2", ".e5m2x2", ".v2", ".v4", ".v8", ".x1", ".x2", ".x4", ".trans", ".m8n8", ".sync", ".aligned",
    ".global", ".shared", ".local", ".param", ".const", ".shared::cluster", ".shared::cta", ".to", ".nc", ".volatile", ".relaxed", ".acquire",
    ".release", ".acq_rel", ".weak", ".cta", ".cluster", ".gpu", ".sys", ".ca", ".cg", ".cs", ".lo", ".hi", ".wide", ".sat", ".ftz", ".rn", ".rz",
    ".rm", ".rp", ".rni", ".rzi", ".rmi", ".rpi", ".approx", ".full", ".cc", ".and", ".or", ".xor", ".popc", ".add", ".min", ".max", ".inc", ".dec",
    ".exch", ".cas", ".up", ".down", ".bfly", ".idx", ".all", ".any", ".uni", ".ballot", ".arrive", ".wait", ".red", ".init", ".expect_tx",
    ".test_wait", ".try_wait", ".parity", ".noinc", ".commit_group", ".wait_group", ".wait_all", ".bulk", ".multicast::cluster", ".NaN", ".abs", ".l",
    ".r", ".clamp", ".wrap", ".shiftamt", ".eq", ".ne", ".lt", ".ge", ".ltu", ".num", ".nan", ".warp", ".cluster", ".arrive_drop", ".noftz", ".rc8",
    ".b4e", ".f4e", ".ecl", ".relu", ".xorsign", ".satfinite", ".visible", ".extern", ".align", ".func", ".entry", ".reg", ".maxntid", ".read",
];

/// What may stand before an instruction.
pub(crate) const GUARDS: &[&str] = &["", "", "", "@%p1 ", "@!%p2 ", "L0: ", "L1: "];

/// Makes the changes one after the other.
pub(crate) fn change(text: &str, changes: &[Change]) -> String {
    changes.iter().fold(text.to_owned(), |text, change| change.apply(&text))
}

impl Change {
    fn apply(&self, text: &str) -> String {
        match self.kind {
            Kind::DropLine | Kind::MoveLine | Kind::DoubleLine | Kind::InsertLine => self.change_lines(text),
            _ => self.change_tokens(text),
        }
    }

    fn change_lines(&self, text: &str) -> String {
        let mut lines: Vec<&str> = text.lines().collect();
        // The three lines of the header stay: without them nothing is left to look at.
        let first = lines.len().min(3);
        if lines.len() <= first {
            return text.to_owned();
        }
        let place = first + self.place.index(lines.len() - first);
        let other = first + self.from.index(lines.len() - first);
        match self.kind {
            Kind::DropLine => drop(lines.remove(place)),
            Kind::MoveLine => lines.swap(place, other),
            Kind::DoubleLine => lines.insert(other, lines[place]),
            _ => lines.insert(place, LINES[self.from.index(LINES.len())]),
        }
        lines.join("\n")
    }

    fn change_tokens(&self, text: &str) -> String {
        let mut tokens = tokens(text);
        let is_wanted = |token: &str| {
            let starts = |test: fn(&char) -> bool| token.chars().next().is_some_and(|first| test(&first));
            match self.kind {
                Kind::Modifier | Kind::DropModifier | Kind::AddModifier => token.starts_with('.') && token.len() > 1,
                Kind::Register => token.starts_with('%') && token.ends_with(|last: char| last.is_ascii_digit()),
                Kind::Number => starts(char::is_ascii_digit),
                _ => starts(|first| first.is_ascii_alphabetic() || *first == '%'),
            }
        };
        let places: Vec<usize> = (0..tokens.len()).filter(|place| is_wanted(tokens[*place])).collect();
        if places.is_empty() {
            return text.to_owned();
        }
        let place = places[self.place.index(places.len())];
        let other = tokens[places[self.from.index(places.len())]];
        let replacement = match self.kind {
            Kind::Modifier => MODIFIERS[self.from.index(MODIFIERS.len())].to_owned(),
            Kind::DropModifier => String::new(),
            Kind::AddModifier => format!("{}{}", tokens[place], MODIFIERS[self.from.index(MODIFIERS.len())]),
            Kind::Register => {
                let stem = tokens[place].trim_end_matches(|last: char| last.is_ascii_digit());
                format!("{stem}{}", self.number.unsigned_abs() % 8)
            }
            Kind::Number => self.number.to_string(),
            _ => other.to_owned(),
        };
        tokens[place] = &replacement;
        tokens.concat()
    }
}

/// Words with what belongs to them (`.global`, `%rd1`, `0x10`), and every other character by itself.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | ':');
        let length = if is_word(first) || matches!(first, '.' | '%') {
            let after = first.len_utf8();
            after + rest[after..].find(|c| !is_word(c)).unwrap_or(rest.len() - after)
        } else {
            first.len_utf8()
        };
        found.push(&rest[..length]);
        rest = &rest[length..];
    }
    found
}

/// A kernel of these instructions with their guards: registers hold numbers, addresses of global (`%rd1`, `%rd2`),
/// shared (`%r2`) and local (`%rd3`) memory, and the labels `L0` to `L3` stand somewhere.
pub(crate) fn lines_kernel(lines: &[(&str, &str)]) -> String {
    let mut body = String::new();
    let mut placed = [false; 2];
    for (index, (line, guard)) in lines.iter().enumerate() {
        let label = guard.strip_prefix('L').and_then(|rest| rest[..1].parse::<usize>().ok());
        let guard = match label {
            // A label stands once.
            Some(label) if std::mem::replace(&mut placed[label], true) => "",
            _ => guard,
        };
        let _ = writeln!(body, "    {guard}{line}");
        if index == lines.len() / 2 {
            body.push_str("L2:\n");
        }
    }
    for label in (0..2).filter(|label| !placed[*label]) {
        let _ = writeln!(body, "L{label}:");
    }
    PROLOGUE.replace("BODY", &body)
}

const PROLOGUE: &str = r".version 9.0
.target sm_100a
.address_size 64
.global .align 16 .b8 variable[64];
.const .align 4 .u32 constant[4] = {1, 2, 3, 4};
.extern .shared .align 16 .b8 dynamic[];
.func (.param .b32 result) twice(.param .b32 number)
{
    .reg .b32 %r<3>;
    ld.param.b32 %r1, [number];
    add.u32 %r2, %r1, %r1;
    st.param.b32 [result], %r2;
    ret;
}
.visible .entry fuzz(.param .u64 a, .param .u64 b, .param .u32 n, .param .align 8 .b8 structure[24])
{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    .reg .f32 %f<8>;
    .reg .f64 %fd<8>;
    .reg .b128 %q<8>;
    .shared .align 16 .b8 tile[2048];
    .shared .align 8 .b64 gate;
    .local .align 16 .b8 stack[64];
    .param .b32 in;
    .param .b32 out;
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u32 %r3, [n];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 4;
    mov.u32 %r4, tile;
    add.u32 %r2, %r2, %r4;
    mov.u64 %rd3, stack;
    cvt.u64.u32 %rd4, %r1;
    mul.wide.u32 %rd5, %r1, 16;
    add.s64 %rd1, %rd1, %rd5;
    setp.lt.u32 %p1, %r1, 16;
    setp.lt.u32 %p2, %r1, %r3;
    cvt.rn.f32.u32 %f1, %r1;
    cvt.rn.f64.u32 %fd1, %r1;
    cvt.u16.u32 %h1, %r1;
    mov.b128 %q1, {%rd1, %rd2};
TABLE: .branchtargets L0, L1, L2;
BODY
    ret;
}
";

/// Instructions of every class.
#[rustfmt::skip]
pub(crate) const LINES: &[&str] = &[
    // Arithmetic.
    "add.u32 %r1, %r3, 7;", "add.s64 %rd4, %rd4, -1;", "sub.s32 %r1, %r1, %r3;", "mul.lo.s32 %r4, %r1, %r3;", "mul.hi.u64 %rd4, %rd4, %rd5;",
    "mul.wide.s16 %r5, %h1, %h2;", "mad.lo.s64 %rd5, %rd4, %rd5, %rd6;", "mad.hi.s32 %r5, %r1, %r3, %r4;", "div.s32 %r4, %r1, %r3;",
    "div.u64 %rd4, %rd4, %rd6;", "rem.s64 %rd4, %rd5, -1;", "rem.u32 %r4, %r1, %r5;", "abs.s32 %r4, -2147483648;", "neg.s64 %rd4, %rd4;",
    "min.s32 %r4, %r1, %r3;", "max.u16x2 %r4, %r1, %r3;", "popc.b32 %r4, %r1;", "clz.b64 %r4, %rd1;", "bfind.shiftamt.u32 %r4, %r1;",
    "brev.b32 %r4, %r1;", "bfe.u32 %r4, %r1, %r3, %r5;", "bfi.b64 %rd4, %rd5, %rd6, %r1, %r3;", "dp4a.s32.u32 %r4, %r1, %r2, %r3;",
    "sad.s32 %r4, %r1, %r2, %r3;", "shl.b32 %r4, %r1, %r3;", "shr.s64 %rd4, %rd5, %r3;", "shf.l.wrap.b32 %r4, %r1, %r2, %r3;",
    "prmt.b32 %r4, %r1, %r2, %r3;", "lop3.b32 %r4, %r1, %r2, %r3, 0x96;", "add.cc.u32 %r4, %r1, %r3;", "addc.cc.u32 %r5, %r1, %r3;",
    "and.b32 %r4, %r1, 31;", "not.pred %p3, %p1;", "xor.pred %p3, %p1, %p2;", "setp.lt.and.s32 %p3|%p4, %r1, %r3, !%p1;", "selp.b64 %rd4, %rd1, %rd2, %p1;",
    "slct.s32.s32 %r4, %r1, %r2, %r3;", "set.eq.u32.f32 %r4, %f1, %f2;", "mov.b64 {%r4, %r5}, %rd4;", "mov.b64 %rd4, {%r1, %r3};",
    "mov.u32 %r5, %clock;", "mov.u64 %rd7, %globaltimer;", "mov.u32 %r5, %lanemask_lt;", "mov.u32 %r5, %cluster_ctarank;",
    "add.rn.f32 %f2, %f1, 0f3F800000;", "fma.rz.ftz.f32 %f3, %f1, %f2, %f1;", "div.full.f32 %f2, %f1, %f3;", "sqrt.approx.f32 %f2, %f1;",
    "ex2.approx.ftz.f32 %f2, %f1;", "tanh.approx.f32 %f2, %f1;", "fma.rp.f64 %fd2, %fd1, %fd1, 0d3FF0000000000000;", "div.rn.f64 %fd2, %fd1, %fd3;",
    "add.f16x2 %r4, %r1, %r3;", "fma.rn.relu.bf16x2 %r4, %r1, %r3, %r5;", "max.NaN.f16 %h2, %h1, %h3;", "ex2.approx.f16 %h2, %h1;",
    "cvt.rzi.s32.f32 %r4, %f1;", "cvt.rn.bf16x2.f32 %r4, %f1, %f2;", "cvt.s64.s32 %rd4, %r1;", "cvt.sat.s8.s32 %r4, %r1;", "cvt.rn.f16.f64 %h2, %fd1;",
    "testp.finite.f32 %p3, %f1;", "copysign.f64 %fd2, %fd1, %fd3;",
    // Memory.
    "ld.global.u32 %r4, [%rd1];", "ld.global.nc.v4.u32 {%r4, %r5, %r6, %r7}, [%rd2];", "ld.global.v2.b64 {%rd5, %rd6}, [%rd1+16];",
    "ld.global.b128 %q2, [%rd1];", "ld.global.v8.b32 {%r0, %r1, %r2, %r3, %r4, %r5, %r6, %r7}, [%rd2];", "ld.global.s8 %rd6, [%rd2+3];",
    "ld.volatile.global.u16 %h2, [%rd1+2];", "ld.acquire.gpu.u32 %r4, [%rd1];", "ld.u64 %rd6, [%rd2];", "ld.const.u32 %r4, [constant+4];",
    "ld.param.u32 %r4, [structure+8];", "ld.param.v2.u64 {%rd5, %rd6}, [structure];", "st.global.u32 [%rd1], %r1;", "st.global.v2.f64 [%rd2], {%fd1, %fd2};",
    "st.release.gpu.global.u32 [%rd1], %r1;", "st.shared.u32 [%r2], %r1;", "st.shared.v4.f32 [%r2], {%f1, %f2, %f3, %f1};", "st.global.b128 [%rd1], %q1;",
    "ld.shared.u32 %r4, [%r2];", "ld.shared.u8 %r4, [tile+5];", "ld.shared.v2.u16 {%h2, %h3}, [%r2+4];", "st.shared.u64 [dynamic], %rd4;",
    "ld.shared::cluster.u32 %r4, [%r2];", "st.local.u32 [stack+4], %r1;", "ld.local.v2.u32 {%r4, %r5}, [stack];", "st.local.u64 [%rd3+8], %rd4;",
    "ld.global.u32 %r4, [variable+8];", "st.global.u8 [variable], %r1;", "cvta.to.global.u64 %rd6, %rd1;", "cvta.shared.u64 %rd6, %rd4;",
    "cvta.local.u64 %rd6, %rd3;", "isspacep.shared::cluster %p3, %rd6;", "mapa.shared::cluster.u32 %r4, %r2, %r3;", "mapa.u64 %rd6, %rd6, 1;",
    "getctarank.shared::cluster.u32 %r4, %r2;", "prefetch.global.L2 [%rd1];", "mov.u64 %rd6, variable;", "ld.u32 %r4, [%rd6];", "st.u32 [%rd6], %r4;",
    // Atomics.
    "atom.global.add.u32 %r4, [%rd2], %r1;", "red.global.add.f32 [%rd2], %f1;", "atom.shared.cas.b32 %r4, [%r2], %r1, %r3;", "atom.global.inc.u32 %r4, [%rd1], 5;",
    "atom.global.cas.b128 %q2, [%rd1], %q1, %q2;", "atom.global.exch.b64 %rd6, [%rd1], %rd4;", "red.shared.max.s32 [%r2], %r1;", "atom.add.f64 %fd2, [%rd1], %fd1;",
    "red.global.add.noftz.f16x2 [%rd1], %r1;", "atom.global.min.s64 %rd6, [%rd2], %rd4;", "red.global.add.v4.f32 [%rd1], {%f1, %f1, %f2, %f2};",
    "atom.acq_rel.gpu.global.cas.b16 %h2, [%rd1], %h1, %h3;", "red.relaxed.cluster.shared::cluster.add.u64 [%r2], %rd4;",
    // Lanes.
    "shfl.sync.bfly.b32 %r4|%p3, %r1, 1, 31, -1;", "shfl.sync.up.b32 %r4, %r1, %r3, 0, -1;", "shfl.sync.idx.b32 %r4, %r1, %r3, 0x1f1f, %r5;",
    "shfl.sync.down.b32 %r4|%p3, %r1, 16, 0x1c03, -1;", "vote.sync.ballot.b32 %r5, %p1, -1;", "vote.sync.uni.pred %p3, !%p1, -1;",
    "match.any.sync.b64 %r4, %rd4, -1;", "match.all.sync.b32 %r4|%p3, %r1, -1;", "redux.sync.add.s32 %r4, %r1, -1;", "redux.sync.max.u32 %r4, %r1, %r5;",
    "elect.sync %r4|%p3, -1;", "activemask.b32 %r5;", "bar.warp.sync -1;", "bar.warp.sync %r5;",
    // Barriers and fences.
    "bar.sync 0;", "barrier.sync 1, 64;", "bar.arrive 2, 64;", "bar.red.popc.u32 %r4, 0, %p1;", "bar.red.and.pred %p3, %r1, %p1;", "barrier.sync %r3, %r4;",
    "barrier.cluster.arrive.aligned;", "barrier.cluster.wait.aligned;", "barrier.cluster.arrive.relaxed;", "barrier.cluster.wait;", "membar.gl;",
    "fence.acq_rel.cluster;", "fence.proxy.async;",
    // Control.
    "bra L0;", "bra.uni L1;", "bra L2;", "brx.idx %r1, TABLE;", "ret;", "exit;", "trap;", "nanosleep.u32 100;",
    "st.param.b32 [in], %r1;", "ld.param.b32 %r4, [out];", "call (out), twice, (in);", "mov.u64 %rd7, twice;", "setp.eq.u32 %p1, %r4, 0;",
    // Asynchronous.
    "cp.async.ca.shared.global [%r2], [%rd1], 4;", "cp.async.cg.shared.global [%r2], [%rd1], 16, %r3;", "cp.async.ca.shared.global [%r2], [%rd2], 8, %p1;",
    "cp.async.commit_group;", "cp.async.wait_group 1;", "cp.async.wait_all;", "mbarrier.init.shared.b64 [gate], 1;", "mbarrier.init.shared.b64 [gate], %r3;",
    "mbarrier.arrive.shared.b64 %rd6, [gate];", "mbarrier.arrive.shared.b64 %rd6, [gate], %r3;", "mbarrier.arrive.expect_tx.shared.b64 %rd6, [gate], 64;",
    "mbarrier.arrive_drop.shared.b64 _, [gate];", "mbarrier.test_wait.shared.b64 %p3, [gate], %rd6;", "mbarrier.try_wait.parity.shared.b64 %p3, [gate], 0;",
    "mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [gate], %r3;", "mbarrier.expect_tx.relaxed.cta.shared.b64 [gate], %r1;",
    "mbarrier.inval.shared.b64 [gate];", "cp.async.mbarrier.arrive.shared.b64 [gate];", "cp.async.mbarrier.arrive.noinc.shared.b64 [gate];",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%rd2], 64, [gate];",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [tile], [%rd2], %r3, [gate], %h1;",
    "cp.async.bulk.global.shared::cta.bulk_group [%rd2], [tile], 64;", "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r2], [tile], 16, [gate];",
    "cp.async.bulk.commit_group;", "cp.async.bulk.wait_group 0;", "cp.async.bulk.wait_group.read 1;",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r2], %r1, [gate];",
    // Fragments.
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r2];", "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r4}, [%r2];",
    "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r2], {%r4, %r5};", "movmatrix.sync.aligned.m8n8.trans.b16 %r4, %r1;",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r4, %r5, %r6, %r7}, {%r1, %r2}, {%f4, %f5, %f6, %f7};",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0, %f1, %f2, %f3}, {%r4, %r5, %r6, %r7}, {%r1, %r2}, {%f4, %f5, %f6, %f7};",
];
