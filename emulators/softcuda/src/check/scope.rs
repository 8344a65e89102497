//! Scopes: whom a strong operation can synchronise with (PTX ISA, "Memory Consistency Model", "Scope").

/// The scope of a strong operation or of a fence, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryScope {
    /// `.cta`: the threads of the block.
    Block = 1,
    /// `.cluster`: those of the cluster; without clusters a block is one of its own.
    Cluster = 2,
    /// `.gpu`, which `membar` calls `.gl`.
    Device = 3,
    /// `.sys`, the scope of `.volatile` too. No thread here is beyond the device.
    System = 4,
}

impl MemoryScope {
    /// The scope with this spelling (without the dot).
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "cta" => Self::Block,
            "cluster" => Self::Cluster,
            "gpu" | "gl" => Self::Device,
            "sys" => Self::System,
            _ => return None,
        })
    }
}

/// `fence` and `membar`, as far as they order the memory of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Not `.release`: strong reads before it acquire.
    pub acquires: bool,
    /// Not `.acquire`: strong writes after it release.
    pub releases: bool,
    /// With whom.
    pub scope: MemoryScope,
}

impl Fence {
    /// `fence.acq_rel` and `fence.sc` of a scope.
    pub fn of(scope: MemoryScope) -> Self {
        Self { acquires: true, releases: true, scope }
    }
}
