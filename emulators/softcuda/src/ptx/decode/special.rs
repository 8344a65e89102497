//! Special registers whose value a thread cannot see changing.

/// A special register whose value a thread cannot see changing: filled in when a frame is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// `%tid`, axis 0 to 2.
    Thread(u8),
    /// `%ntid`.
    Threads(u8),
    /// `%ctaid`.
    Block(u8),
    /// `%nctaid`.
    Blocks(u8),
    /// `%clusterid`.
    Cluster(u8),
    /// `%nclusterid`.
    Clusters(u8),
    /// `%cluster_ctaid`.
    ClusterBlock(u8),
    /// `%cluster_nctaid`.
    ClusterBlocks(u8),
    /// `%cluster_ctarank`.
    ClusterRank,
    /// `%cluster_nctarank`.
    ClusterSize,
    /// `%is_explicit_cluster`: a predicate in PTX, 0 or 1 here.
    ExplicitCluster,
    /// `%laneid`.
    Lane,
    /// `%warpid`.
    Warp,
    /// `%nwarpid`.
    Warps,
    /// `%smid`.
    Multiprocessor,
    /// `%nsmid`.
    Multiprocessors,
    /// `%gridid`.
    Grid,
    /// `%lanemask_eq` (0), `_le` (1), `_lt` (2), `_ge` (3), `_gt` (4).
    LaneMask(u8),
    /// `%dynamic_smem_size`.
    DynamicShared,
    /// `%aggr_smem_size`: with what the system keeps.
    AggregateShared,
    /// `%total_smem_size`: static and dynamic.
    TotalShared,
    /// `%reserved_smem_offset_begin`, `_end`, `_cap`: the system's part of shared memory.
    ReservedShared(ReservedShared),
    /// `%current_graph_exec`: 0, since no graph is launched from a device.
    GraphExecution,
    /// `%envreg`, 0 to 31: 1 and 2 are the high and low half of the address of a cooperative grid's workspace.
    Environment(u8),
}

/// What is asked about the part of a block's shared memory that the system keeps for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReservedShared {
    /// Where it begins.
    Begin,
    /// Where it ends.
    End,
    /// How many bytes it has.
    Bytes,
    /// `%reserved_smem_offset_0`, `_1`: a place in it. Cooperative groups of several warps meet at place 1.
    Place(u8),
}

/// Special registers by name; the vector ones have `.x`, `.y`, `.z` after it.
const SPECIALS: &[(&str, Special)] = &[
    ("%cluster_ctarank", Special::ClusterRank),
    ("%cluster_nctarank", Special::ClusterSize),
    ("%is_explicit_cluster", Special::ExplicitCluster),
    ("%laneid", Special::Lane),
    ("%warpid", Special::Warp),
    ("%nwarpid", Special::Warps),
    ("%smid", Special::Multiprocessor),
    ("%nsmid", Special::Multiprocessors),
    ("%gridid", Special::Grid),
    ("%lanemask_eq", Special::LaneMask(0)),
    ("%lanemask_le", Special::LaneMask(1)),
    ("%lanemask_lt", Special::LaneMask(2)),
    ("%lanemask_ge", Special::LaneMask(3)),
    ("%lanemask_gt", Special::LaneMask(4)),
    ("%dynamic_smem_size", Special::DynamicShared),
    ("%total_smem_size", Special::TotalShared),
    ("%aggr_smem_size", Special::AggregateShared),
    ("%reserved_smem_offset_begin", Special::ReservedShared(ReservedShared::Begin)),
    ("%reserved_smem_offset_end", Special::ReservedShared(ReservedShared::End)),
    ("%reserved_smem_offset_cap", Special::ReservedShared(ReservedShared::Bytes)),
    ("%reserved_smem_offset_0", Special::ReservedShared(ReservedShared::Place(0))),
    ("%reserved_smem_offset_1", Special::ReservedShared(ReservedShared::Place(1))),
    ("%current_graph_exec", Special::GraphExecution),
];

/// A special register's value along an axis.
type OnAxis = fn(u8) -> Special;

/// Special registers with an axis, by their stem.
const AXIS_SPECIALS: &[(&str, OnAxis)] = &[
    ("%tid", Special::Thread),
    ("%ntid", Special::Threads),
    ("%ctaid", Special::Block),
    ("%nctaid", Special::Blocks),
    ("%clusterid", Special::Cluster),
    ("%nclusterid", Special::Clusters),
    ("%cluster_ctaid", Special::ClusterBlock),
    ("%cluster_nctaid", Special::ClusterBlocks),
];

/// The special register of this name.
pub(super) fn special(name: &str) -> Option<Special> {
    if let Some(number) = name.strip_prefix("%envreg") {
        return number.parse().ok().filter(|number| *number < 32).map(Special::Environment);
    }
    if let Some((stem, axis)) = name.rsplit_once('.') {
        let axis = ["x", "y", "z"].iter().position(|letter| *letter == axis)?;
        return AXIS_SPECIALS.iter().find(|row| row.0 == stem).map(|row| (row.1)(axis as u8));
    }
    SPECIALS.iter().find(|row| row.0 == name).map(|row| row.1)
}
