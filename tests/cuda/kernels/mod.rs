//! Single kernels on softcuda without a driver: all of their outputs, limits, and races where a fence is taken away. They
//! are compiled here, so nvcc is needed, and a real device is not used.

mod device;
mod last_block;
mod log_ratio;
mod objective;
mod objective_limits;
