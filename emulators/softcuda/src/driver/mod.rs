//! The driver library: the `cu*` functions that cudarc calls, one file for each kind of object.
//!
//! `state` holds every object, `work` the streams' queues; the other modules are the entry points over them. Handles
//! are keys of tables, so that a stale or invented handle is an error and never a memory access.

mod calls;
mod context;
mod control;
mod device;
mod entry;
mod error;
mod event;
mod function;
mod graph;
mod graph_node;
mod host_memory;
mod host_work;
mod launch;
mod library;
mod limits;
mod link;
mod memory;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod procedure;
mod product;
mod set;
mod state;
mod stream;
mod transfer;
mod unsupported;
mod work;
