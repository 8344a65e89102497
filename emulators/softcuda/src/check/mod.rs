//! What makes softcuda strict: happens-before between threads (`clock`, `epoch`, `rows`, `known`, `scope`, `flags`) and
//! the race state of memory (`shadow`, `accessor`).

mod accessor;
pub mod clock;
mod epoch;
pub mod flags;
mod known;
mod rows;
pub mod scope;
pub mod shadow;
