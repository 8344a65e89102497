//! Operands: the ends of every range, and random ones, among them pairs that cancel and products that fall near a tie.

use super::exact::Format;

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of `0..1`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A bit pattern of the format: any, or (as often) one between 2^-6 and 2^6 with few bits set, for cancellation
    /// and ties.
    pub(crate) fn number(&mut self, format: Format) -> u64 {
        let bits = self.bits();
        let all = format.sign() | (format.sign() - 1);
        if bits >> 63 == 0 {
            return self.bits() & all;
        }
        let exponent = (format.one() >> format.fraction_bits) - 6 + (bits >> 8) % 12;
        let mut fraction = self.bits() & ((1 << format.fraction_bits) - 1);
        if bits >> 62 & 1 == 0 {
            fraction &= self.bits() & self.bits();
        }
        exponent << format.fraction_bits | fraction | if bits & 1 == 0 { 0 } else { format.sign() }
    }
}

/// Bit patterns of both signs at which something changes.
pub(crate) fn special(format: Format) -> Vec<u64> {
    let unit = 1 << format.fraction_bits;
    let one = format.one();
    let infinity = format.infinity();
    let magnitudes = [
        0,
        1,
        2,
        unit / 2,
        unit - 1,
        unit,
        unit + 1,
        2 * unit,
        one - unit - 1,
        one - unit,
        one - 1,
        one,
        one + 1,
        one + unit / 2,
        one + unit / 2 + 1,
        one + unit,
        // About the square root of the least number, and of the greatest: products at the ends of the range.
        one / 2 + 5,
        one + (infinity - one) / 2 + 7,
        infinity - unit,
        infinity - 2,
        infinity - 1,
        infinity,
        // A signalling NaN, one with a payload, the canonical one.
        infinity + 1,
        infinity + unit / 2 + 3,
        format.nan,
    ];
    magnitudes.iter().flat_map(|magnitude| [*magnitude, magnitude | format.sign()]).collect()
}

/// All pairs of special operands, and `count` random ones.
pub(crate) fn pairs(format: Format, count: usize, random: &mut Random) -> [Vec<u64>; 2] {
    let special = special(format);
    let mut columns = [Vec::new(), Vec::new()];
    for a in &special {
        for b in &special {
            columns[0].push(*a);
            columns[1].push(*b);
        }
    }
    for _ in 0..count {
        let a = random.number(format);
        // Half of them differ from the other operand in few places: sums that cancel.
        let b = if random.bits() & 1 == 0 { random.number(format) } else { a ^ format.sign() ^ (random.bits() & 7) };
        columns[0].push(a);
        columns[1].push(b);
    }
    columns
}

/// Triples of special operands, and `count` random ones; in half of these the third is near minus the product of the
/// others.
pub(crate) fn triples(format: Format, count: usize, random: &mut Random) -> [Vec<u64>; 3] {
    let special = special(format);
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    let mut push = |row: [u64; 3]| row.iter().zip(&mut columns).for_each(|(value, column)| column.push(*value));
    for (index, a) in special.iter().enumerate() {
        for b in special.iter().skip(index % 2).step_by(2) {
            for c in special.iter().skip(index / 2 % 3).step_by(3) {
                push([*a, *b, *c]);
            }
        }
    }
    for _ in 0..count {
        let (a, b) = (random.number(format), random.number(format));
        let c = if random.bits() & 1 == 0 {
            random.number(format)
        } else {
            // The exponents add up, and the leading bits of the product are about those of the sum of the patterns.
            let magnitude = |bits: u64| bits & (format.sign() - 1);
            let about = (magnitude(a) + magnitude(b)).saturating_sub(format.one()) & (format.sign() - 1);
            let places = random.bits() % 30;
            let shifted = about.saturating_sub(places << format.fraction_bits);
            shifted | ((a ^ b ^ if places < 5 { format.sign() } else { random.bits() }) & format.sign())
        };
        push([a, b, c]);
    }
    columns
}
