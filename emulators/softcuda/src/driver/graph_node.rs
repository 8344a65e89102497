//! Nodes that are added to a graph by hand: kernels, and empty ones. A node can only depend on nodes that are there, so
//! the order of adding is one that respects every dependency.

use super::entry::{In, Out, Outcome, entry_points};
use super::error::Code;
use super::launch::{Shape, prepare};
use super::state::{Handle, Node, State, state};
use super::work::{Work, node};
use std::sync::Arc;

/// `CUDA_KERNEL_NODE_PARAMS_v2`; the first version ends before `kernel`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Parameters {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    pointers: In<u64>,
    extra: In<u64>,
}

/// What a kernel node runs.
fn kernel(state: &mut State, parameters: &Parameters) -> Outcome<Work> {
    let Parameters { function, grid, block, dynamic_shared, pointers, extra } = *parameters;
    let shape = Shape { grid, block, dynamic_shared, stream: 0, cluster: None, cooperative: false };
    prepare(state, function, &shape, pointers, extra)
}

/// Adds a node after others, which must be the graph's own.
fn add(graph: Handle, dependencies: (In<Handle>, usize), kind: u32, work: Work, state: &mut State) -> Outcome<Handle> {
    let after = if dependencies.1 == 0 { Vec::new() } else { dependencies.0.list(dependencies.1)? };
    let handle = state.handle();
    let graph = state.graphs.get_mut(&graph).ok_or(Code::INVALID_VALUE)?;
    if after.iter().any(|dependency| graph.nodes.iter().all(|node| node.handle != *dependency)) {
        return Err(Code::INVALID_VALUE);
    }
    graph.nodes.push(Node { kind, handle, work });
    Ok(handle)
}

fn add_kernel(
    added: Out<Handle>,
    graph: Handle,
    dependencies: (In<Handle>, usize),
    parameters: In<Parameters>,
) -> Outcome {
    added.check()?;
    let mut state = state();
    state.current()?;
    let work = kernel(&mut state, &parameters.get()?)?;
    added.put(add(graph, dependencies, node::KERNEL, work, &mut state)?)
}

/// Gives a kernel node other parameters, in a graph or in an executable one.
fn set_kernel(executable: Option<Handle>, changed: Handle, parameters: In<Parameters>) -> Outcome {
    let mut state = state();
    let work = kernel(&mut state, &parameters.get()?)?;
    let graphs = match executable {
        Some(executable) => vec![state.executables.get_mut(&executable).ok_or(Code::INVALID_VALUE)?],
        None => state.graphs.values_mut().collect(),
    };
    let entry = graphs.into_iter().flat_map(|graph| &mut graph.nodes).find(|entry| entry.handle == changed);
    let entry = entry.filter(|entry| entry.kind == node::KERNEL).ok_or(Code::INVALID_VALUE)?;
    entry.work = work;
    Ok(())
}

entry_points! {
    fn cuGraphAddKernelNode_v2(
        added: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: In<Parameters>,
    ) {
        add_kernel(added, graph, (dependencies, count), parameters)
    }
    fn cuGraphAddKernelNode(
        added: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: In<Parameters>,
    ) {
        add_kernel(added, graph, (dependencies, count), parameters)
    }
    fn cuGraphAddEmptyNode(added: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize) {
        added.check()?;
        let mut state = state();
        state.check_initialised()?;
        added.put(add(graph, (dependencies, count), node::EMPTY, Arc::new(|| Ok(())), &mut state)?)
    }
    fn cuGraphKernelNodeSetParams_v2(node: Handle, parameters: In<Parameters>) {
        set_kernel(None, node, parameters)
    }
    fn cuGraphKernelNodeSetParams(node: Handle, parameters: In<Parameters>) {
        set_kernel(None, node, parameters)
    }
    fn cuGraphExecKernelNodeSetParams_v2(executable: Handle, node: Handle, parameters: In<Parameters>) {
        set_kernel(Some(executable), node, parameters)
    }
    fn cuGraphExecKernelNodeSetParams(executable: Handle, node: Handle, parameters: In<Parameters>) {
        set_kernel(Some(executable), node, parameters)
    }
}
