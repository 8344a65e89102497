#![doc = include_str!("../README.md")]

pub mod host_work;
pub mod library;
pub mod product;
