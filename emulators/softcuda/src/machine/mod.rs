//! The machine: registers, memory, scheduling, execution.

pub mod block;
pub mod device;
pub mod execute;
mod flow;
pub mod launch;
mod meet;
pub mod memory;
mod print;
pub mod product;
pub mod program;
pub mod registers;
pub mod run;
mod shared_layout;
pub mod snippet;
pub mod step;
pub mod stuck;
pub mod system;
pub mod team;
pub mod undefined;
pub mod warp;
pub mod window;
