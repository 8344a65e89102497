//! Which registers an instruction reads and writes, whatever it does: noted while its operands are decoded.

/// A register or predicate of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A register, by its first row.
    Register(u32),
    /// A predicate.
    Predicate(u32),
}

/// The registers of an instruction; its guard is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    /// Values that it reads.
    pub sources: Vec<Slot>,
    /// Addresses that it goes to.
    pub addresses: Vec<Slot>,
    /// What it writes.
    pub destinations: Vec<Slot>,
}
