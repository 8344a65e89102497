//! Shifts, bit fields and searches for bits: against the manual's loops over single bits.

mod samples;

use samples::{all, amounts, check, cut, number, refused, samples, taken, width};

#[test]
fn shifts_stop_at_the_width() {
    for bits in [16, 32, 64] {
        let rows = all(&[samples(bits, 12), amounts(bits)]);
        let unsigned = |row: &[u64]| if row[1] >= u64::from(bits) { 0 } else { row[0] >> row[1] };
        let b = format!("b{bits}");
        check(&format!("shl.b{bits}"), &b, &[&b, "u32"], &rows, |row| {
            if row[1] >= u64::from(bits) { 0 } else { cut(i128::from(row[0]) << row[1], bits) }
        });
        check(&format!("shr.b{bits}"), &b, &[&b, "u32"], &rows, unsigned);
        check(&format!("shr.u{bits}"), &b, &[&b, "u32"], &rows, unsigned);
        check(&format!("shr.s{bits}"), &b, &[&b, "u32"], &rows, |row| {
            cut(number(row[0], &format!("s{bits}")) >> row[1].min(100), bits)
        });
    }
}

#[test]
fn funnel_shifts_by_every_amount() {
    let words = samples(32, 6);
    let counts: Vec<u64> = (0..=65).chain([128, 255, 256, 1 << 31, 0xffff_ffff]).collect();
    let rows = all(&[words.clone(), words, counts]);
    for (mode, amount) in [("clamp", (|c| c.min(32)) as fn(u64) -> u64), ("wrap", |c| c & 31)] {
        check(&format!("shf.l.{mode}.b32"), "b32", &["b32"; 3], &rows, |row| {
            let n = amount(row[2]);
            (u128::from(row[1]) << n | u128::from(row[0]) >> (32 - n)) as u64 & 0xffff_ffff
        });
        check(&format!("shf.r.{mode}.b32"), "b32", &["b32"; 3], &rows, |row| {
            let n = amount(row[2]);
            (u128::from(row[1]) << (32 - n) | u128::from(row[0]) >> n) as u64 & 0xffff_ffff
        });
    }
}

fn bit(value: u64, place: u64) -> u64 {
    value >> place & 1
}

#[test]
fn fields_are_extracted_bit_by_bit() {
    for ty in ["u32", "s32", "u64", "s64"] {
        let bits = width(ty);
        let top = u64::from(bits) - 1;
        let ends = vec![
            0,
            1,
            1 << top,
            u64::MAX >> (64 - bits),
            0x1234_5678_9abc_def0 & (u64::MAX >> (64 - bits)),
            5 << (top - 8),
        ];
        let places: Vec<u64> = (0..=top + 3).chain([127, 128, 255, 256, 259, 0xffff_ff07]).collect();
        let rows = all(&[ends, places.clone(), places]);
        check(&format!("bfe.{ty}"), ty, &[ty, "u32", "u32"], &rows, |row| {
            let [a, position, length] = [row[0], row[1] & 0xff, row[2] & 0xff];
            let sign = if ty.starts_with('u') || length == 0 { 0 } else { bit(a, (position + length - 1).min(top)) };
            (0..=top).fold(0, |field, i| {
                let value = if i < length && position + i <= top { bit(a, position + i) } else { sign };
                field | value << i
            })
        });
    }
}

#[test]
fn fields_are_inserted_bit_by_bit() {
    for ty in ["b32", "b64"] {
        let bits = width(ty);
        let top = u64::from(bits) - 1;
        let mask = u64::MAX >> (64 - bits);
        let words = vec![0, mask, 0x1234_5678_9abc_def0 & mask, 0x0f0f_5a5a_33cc_9669 & mask];
        let places: Vec<u64> = (0..=top + 3).chain([127, 255, 256, 259]).collect();
        let rows = all(&[words.clone(), words, places.clone(), places]);
        check(&format!("bfi.{ty}"), ty, &[ty, ty, "u32", "u32"], &rows, |row| {
            let [position, length] = [row[2] & 0xff, row[3] & 0xff];
            (0..length)
                .take_while(|i| position + i <= top)
                .fold(row[1], |word, i| word & !(1 << (position + i)) | bit(row[0], i) << (position + i))
        });
    }
}

#[test]
fn numbers_are_extended_from_a_bit() {
    let widths: Vec<u64> = (0..=70).chain([255, 1 << 31, 0xffff_ffff]).collect();
    let rows = all(&[samples(32, 12), widths]);
    for mode in ["clamp", "wrap"] {
        for ty in ["u32", "s32"] {
            check(&format!("szext.{mode}.{ty}"), ty, &[ty, "u32"], &rows, |row| {
                let [a, b] = [row[0], row[1]];
                let low = b & 31;
                let too_large = b >= 32 && mode == "clamp";
                let mask = if too_large { 0 } else { 0xffff_ffff << low & 0xffff_ffff };
                let sign = if low == 0 || too_large || ty == "u32" { 0 } else { bit(a, low - 1) };
                a & !mask | if sign == 1 { mask } else { 0 }
            });
        }
    }
}

#[test]
fn masks_of_every_place_and_width() {
    let places: Vec<u64> = (0..=66).chain([255, 1 << 31, 0xffff_ffff]).collect();
    let rows = all(&[places.clone(), places]);
    for mode in ["clamp", "wrap"] {
        check(&format!("bmsk.{mode}.b32"), "b32", &["b32", "b32"], &rows, |row| {
            let clamped = mode == "clamp";
            let [a, b] = [row[0] & 31, row[1] & 31];
            let mut below_start = 0xffff_ffff << a & 0xffff_ffff;
            let mut below_end = if a + b >= 32 { 0 } else { 0xffff_ffff << (a + b) & 0xffff_ffff };
            if clamped && row[0] >= 32 {
                below_start = 0;
            }
            if clamped && row[1] >= 32 {
                below_end = 0;
            }
            below_start & !below_end
        });
    }
}

#[test]
fn bits_are_counted_and_reversed() {
    for ty in ["b32", "b64"] {
        let bits = u64::from(width(ty));
        let single = (0..bits).map(|place| 1 << place);
        let values: Vec<u64> = samples(bits as u32, 100).into_iter().chain(single).collect();
        let rows = all(&[values]);
        check(&format!("popc.{ty}"), "u32", &[ty], &rows, |row| (0..bits).map(|place| bit(row[0], place)).sum());
        check(&format!("clz.{ty}"), "u32", &[ty], &rows, |row| {
            (0..bits).take_while(|place| bit(row[0], bits - 1 - place) == 0).count() as u64
        });
        check(&format!("brev.{ty}"), ty, &[ty], &rows, |row| {
            (0..bits).fold(0, |word, place| word | bit(row[0], place) << (bits - 1 - place))
        });
    }
}

#[test]
fn the_first_bit_that_is_not_the_sign() {
    for ty in ["u32", "s32", "u64", "s64"] {
        let bits = width(ty);
        let top = u64::from(bits) - 1;
        let mask = u64::MAX >> (64 - bits);
        let single = (0..=top).flat_map(|place| [1u64 << place, !(1u64 << place) & mask]);
        let rows = all(&[samples(bits, 100).into_iter().chain(single).collect()]);
        let find = |row: &[u64]| {
            let a = if ty.starts_with('s') && bit(row[0], top) == 1 { !row[0] & mask } else { row[0] };
            (0..=top).rev().find(|place| bit(a, *place) == 1)
        };
        check(&format!("bfind.{ty}"), "u32", &[ty], &rows, |row| find(row).unwrap_or(0xffff_ffff));
        check(&format!("bfind.shiftamt.{ty}"), "u32", &[ty], &rows, |row| {
            find(row).map_or(0xffff_ffff, |place| top - place)
        });
    }
}

#[test]
fn the_nth_bit() {
    let counts: Vec<u64> = (-34..=34).map(|n: i128| cut(n, 32)).chain([0x7fff_ffff, 0x8000_0000]).collect();
    let masks = vec![0, 1, 0x8000_0000, 0xffff_ffff, 0x8421_0ff1, 0x5555_5555, 0x0000_8000];
    let rows = all(&[masks, (0..32).collect(), counts]);
    check("fns.b32", "b32", &["b32"; 3], &rows, |row| {
        let (mask, base, offset) = (row[0], number(row[1], "s32"), number(row[2], "s32"));
        if offset == 0 {
            return if bit(mask, row[1]) == 1 { row[1] } else { 0xffff_ffff };
        }
        let (mut place, mut count) = (base, offset.abs() - 1);
        while (0..32).contains(&place) {
            if bit(mask, place as u64) == 1 {
                if count == 0 {
                    return place as u64;
                }
                count -= 1;
            }
            place += offset.signum();
        }
        0xffff_ffff
    });
}

#[test]
fn what_the_manual_does_not_have_is_refused() {
    for instruction in [
        "shl.u32 r0, r1, r2;",
        "shl.b16 h0, h1, h2;",
        "shl.b64 d0, d1, d2;",
        "shl.b8 c0, c1, r2;",
        "shr.f32 f0, f1, r2;",
        "shf.l.b32 r0, r1, r2, r3;",
        "shf.l.wrap.b64 d0, d1, d2, r3;",
        "shf.wrap.b32 r0, r1, r2, r3;",
        "bfe.b32 r0, r1, r2, r3;",
        "bfe.u16 h0, h1, r2, r3;",
        "bfe.u64 d0, d1, d2, r3;",
        "bfi.u32 r0, r1, r2, r3, r4;",
        "bfi.b32 r0, r1, r2, r3;",
        "szext.s32 r0, r1, r2;",
        "szext.clamp.b32 r0, r1, r2;",
        "bmsk.b32 r0, r1, r2;",
        "bmsk.clamp.u32 r0, r1, r2;",
        "popc.b16 r0, h1;",
        "popc.b64 d0, d1;",
        "popc.u32 r0, r1;",
        "clz.b64 d0, d1;",
        "brev.b16 h0, h1;",
        "bfind.b32 r0, r1;",
        "bfind.u64 d0, d1;",
        "fns.b64 d0, d1, r2, r3;",
    ] {
        refused(instruction);
    }
    taken("shl.b32 r0, f1, 3;");
    taken("fns.b32 r0, r1, r2, -1;");
}
