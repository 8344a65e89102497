//! Where the variables in shared memory lie.

use crate::ptx::syntax::{Error, Statement, Variable};
use crate::ptx::types::Space;

/// Shared memory of one kernel, or of all device functions together.
#[derive(Clone, Debug)]
pub(super) struct SharedLayout {
    /// Where the next variable may begin.
    pub(super) end: u32,
    align: u32,
    most: u32,
}

impl SharedLayout {
    /// Nothing yet, from an address on.
    pub(super) fn new(start: u32) -> Self {
        Self { end: start, align: 16, most: 0 }
    }

    /// Places a variable; its address.
    ///
    /// # Errors
    /// More than any device has.
    pub(super) fn place(&mut self, variable: &Variable) -> Result<u64, Error> {
        let align = variable.align.max(1);
        self.align = self.align.max(align);
        let offset = self.end.next_multiple_of(align);
        let bytes = u32::try_from(variable.bytes()).unwrap_or(u32::MAX);
        self.end = offset.saturating_add(bytes);
        self.most = self.most.max(self.end);
        if self.end > 1 << 20 {
            return Err(Error::new(
                variable.line,
                format!("{}: more shared memory than any device has", variable.name),
            ));
        }
        Ok(u64::from(offset))
    }
}

/// Places the shared variables that a body declares.
///
/// # Errors
/// As [`SharedLayout::place`].
pub(super) fn place_inner(body: &[Statement], layout: &mut SharedLayout) -> Result<(), Error> {
    for statement in body {
        match statement {
            Statement::Variable(variable) if variable.space == Space::Shared => {
                layout.place(variable)?;
            }
            Statement::Scope(inner) => place_inner(inner, layout)?,
            _ => {}
        }
    }
    Ok(())
}
