//! Contracts of the linear stage: what its bits depend on, what is frozen and accumulated, and what bad input gets.

mod cpu;
mod cuda;
