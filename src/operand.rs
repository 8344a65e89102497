//! What a pass reads, told by where it lies.

/// Where one operand of a forward pass lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Which: logits, hidden states, weight or bias.
    pub what: &'static str,
    /// Address of the first element, in the memory of the backend.
    pub address: u64,
    /// Elements from the start of one row to the start of the next; 0 where there is one row only.
    pub row_stride: usize,
}

impl Operand {
    /// An operand of `rows` rows. Where there is no row, or one, the address or the stride mean nothing.
    pub(crate) fn new(what: &'static str, address: u64, rows: usize, row_stride: usize) -> Self {
        Self { what, address: if rows == 0 { 0 } else { address }, row_stride: if rows > 1 { row_stride } else { 0 } }
    }
}
