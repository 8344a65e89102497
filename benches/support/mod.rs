//! What the benches share: inputs, the machine's limit, and a table of how near to it a result comes.

pub(crate) mod inputs;
pub(crate) mod limit;
pub(crate) mod memory;
pub(crate) mod stopwatch;
