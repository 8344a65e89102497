//! What makes softcuda strict: happens-before between threads (`clock`, `known`, `flags`) and the race state of memory
//! (`shadow`).

pub mod clock;
pub mod flags;
mod known;
pub mod shadow;
