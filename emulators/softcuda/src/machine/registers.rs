//! The registers of one warp: a row of 32 lanes per 32-bit register, so that an instruction is a loop over an array.
//!
//! 8-, 16- and 32-bit registers take one row (upper bits zero), 64-bit registers two, 128-bit registers four (the low
//! 64 bits of the lanes, then the high ones). Predicates are one bit per lane. Immediate operands and the special
//! registers that a thread cannot see changing are ordinary registers that are filled in when a frame is entered: an
//! instruction never asks what kind its operand is.

use super::undefined::Undefined;
use bytemuck::{Pod, Zeroable};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// The width of a register's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// One row: up to 32 bits a lane.
    Word,
    /// Two rows: 64 bits a lane.
    Long,
    /// Four rows: 128 bits a lane.
    Wide,
}

impl Width {
    /// The storage for a value of so many bits.
    pub fn of_bits(bits: u32) -> Self {
        match bits {
            0..=32 => Self::Word,
            33..=64 => Self::Long,
            _ => Self::Wide,
        }
    }

    /// Rows taken.
    pub fn rows(self) -> u32 {
        match self {
            Self::Word => 1,
            Self::Long => 2,
            Self::Wide => 4,
        }
    }
}

/// A register, relative to the frame of the running function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg {
    /// Its first row.
    pub row: u32,
    /// Its storage.
    pub width: Width,
}

/// A predicate register, relative to the frame of the running function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pred(pub u32);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Row([u32; LANES]);

/// The register file of a warp. Every method counts rows from the current frame.
#[derive(Default)]
pub struct Registers {
    rows: Vec<Row>,
    predicates: Vec<u32>,
    /// First row and first predicate of the running function.
    frame: (usize, usize),
    /// The carry flag of `.cc` instructions, one bit per lane.
    pub carry: u32,
    /// Lanes that hold what nobody wrote; `None`: there are none.
    pub(super) undefined: Option<Box<Undefined>>,
}

impl Registers {
    /// Makes the rows and predicates of a frame current, growing the file as needed.
    pub fn enter(&mut self, frame: (usize, usize), rows: usize, predicates: usize) {
        self.frame = frame;
        if self.rows.len() < frame.0 + rows {
            self.rows.resize(frame.0 + rows, Row::zeroed());
        }
        if self.predicates.len() < frame.1 + predicates {
            self.predicates.resize(frame.1 + predicates, 0);
        }
    }

    /// First row and first predicate of the running function.
    pub(super) fn frame(&self) -> (usize, usize) {
        self.frame
    }

    /// Whether any lane holds what nobody wrote.
    #[inline(always)]
    pub fn has_undefined(&self) -> bool {
        self.undefined.is_some()
    }

    /// The 32 lanes of a word register.
    #[inline(always)]
    pub fn word(&self, reg: Reg) -> [u32; LANES] {
        debug_assert_eq!(reg.width, Width::Word);
        self.rows[self.frame.0 + reg.row as usize].0
    }

    /// The 32 lanes of a long register.
    #[inline(always)]
    pub fn long(&self, reg: Reg) -> [u64; LANES] {
        debug_assert_eq!(reg.width, Width::Long);
        let first = self.frame.0 + reg.row as usize;
        bytemuck::cast([self.rows[first].0, self.rows[first + 1].0])
    }

    /// The 32 lanes of a word or long register as 64 bits, zero-extended.
    pub fn extended(&self, reg: Reg) -> [u64; LANES] {
        match reg.width {
            Width::Word => self.word(reg).map(u64::from),
            Width::Long => self.long(reg),
            Width::Wide => self.wide(reg).map(|lane| lane as u64),
        }
    }

    /// The 32 lanes of a wide register.
    pub fn wide(&self, reg: Reg) -> [u128; LANES] {
        let low = self.long(Reg { row: reg.row, width: Width::Long });
        let high = self.long(Reg { row: reg.row + 2, width: Width::Long });
        std::array::from_fn(|lane| u128::from(low[lane]) | u128::from(high[lane]) << 64)
    }

    /// Writes the lanes of `active` of a word register.
    #[inline(always)]
    pub fn set_word(&mut self, reg: Reg, active: u32, value: &[u32; LANES]) {
        debug_assert_eq!(reg.width, Width::Word);
        let row = &mut self.rows[self.frame.0 + reg.row as usize].0;
        if active == u32::MAX {
            *row = *value;
        } else {
            for lane in 0..LANES {
                row[lane] = if active >> lane & 1 == 1 { value[lane] } else { row[lane] };
            }
        }
    }

    /// Writes the lanes of `active` of a long register.
    #[inline(always)]
    pub fn set_long(&mut self, reg: Reg, active: u32, value: &[u64; LANES]) {
        debug_assert_eq!(reg.width, Width::Long);
        let first = self.frame.0 + reg.row as usize;
        let rows: &mut [[u64; LANES / 2]] = bytemuck::cast_slice_mut(&mut self.rows[first..first + 2]);
        if active == u32::MAX {
            rows.copy_from_slice(bytemuck::cast_slice(value));
            return;
        }
        for (half, row) in rows.iter_mut().enumerate() {
            for index in 0..LANES / 2 {
                let lane = half * (LANES / 2) + index;
                row[index] = if active >> lane & 1 == 1 { value[lane] } else { row[index] };
            }
        }
    }

    /// Writes the lanes of `active` of a wide register.
    pub fn set_wide(&mut self, reg: Reg, active: u32, value: &[u128; LANES]) {
        self.set_long(Reg { row: reg.row, width: Width::Long }, active, &value.map(|lane| lane as u64));
        self.set_long(Reg { row: reg.row + 2, width: Width::Long }, active, &value.map(|lane| (lane >> 64) as u64));
    }

    /// Writes the lanes of `active` of a word or long register, cut to its width.
    pub fn set_extended(&mut self, reg: Reg, active: u32, value: &[u64; LANES]) {
        match reg.width {
            Width::Word => self.set_word(reg, active, &value.map(|lane| lane as u32)),
            Width::Long => self.set_long(reg, active, value),
            Width::Wide => self.set_wide(reg, active, &value.map(u128::from)),
        }
    }

    /// One bit per lane.
    #[inline(always)]
    pub fn predicate(&self, predicate: Pred) -> u32 {
        self.predicates[self.frame.1 + predicate.0 as usize]
    }

    /// Writes the bits of `active`.
    #[inline(always)]
    pub fn set_predicate(&mut self, predicate: Pred, active: u32, bits: u32) {
        let word = &mut self.predicates[self.frame.1 + predicate.0 as usize];
        *word = *word & !active | bits & active;
    }
}
