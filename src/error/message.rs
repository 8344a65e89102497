//! What an error says: the numbers that were given and the ones that were expected.

use crate::error::Error;
use crate::operand::Operand;
use std::fmt;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.clone() {
            Error::Length { what, given, expected } => {
                write!(f, "{what}: {given} elements given, {expected} expected")
            }
            Error::Shape { columns: 0, .. } => write!(f, "matrix: 0 columns given, at least 1 expected"),
            Error::Shape { elements, rows: Some(rows), columns, row_stride } => write!(
                f,
                "matrix: {elements} elements given, which cannot hold {rows} rows of {columns} columns at a row stride of {row_stride}"
            ),
            Error::Shape { elements, rows: None, columns, .. } => {
                write!(f, "matrix: {elements} elements given, which is no multiple of {columns} columns")
            }
            Error::Vocabulary { vocab } => {
                write!(f, "vocabulary: {vocab} columns given, 1 to {} expected", i32::MAX)
            }
            Error::OffsetsStart { what, first: Some(first) } => {
                write!(f, "{what}: the first offset is {first}, 0 expected")
            }
            Error::OffsetsStart { what, first: None } => {
                write!(f, "{what}: no offset given, at least the first, 0, expected")
            }
            Error::OffsetsOrder { what, index, previous, given } => {
                write!(f, "{what}: offset {index} is {given}, at least {previous} (the one before it) expected")
            }
            Error::OffsetsEnd { what, last, expected } => {
                write!(f, "{what}: the last offset is {last}, {expected} expected")
            }
            Error::OffsetRange { what, index } => {
                write!(f, "{what}: entry {index} is negative or too large")
            }
            Error::Memory { elements } => write!(f, "buffer: no memory for {elements} elements"),
            Error::EmptyGroup { group } => write!(f, "group {group}: 0 sequences given, at least 1 expected"),
            Error::Parameter { name, given, expected } => {
                // Extremes in powers of ten, not in hundreds of zeros.
                let size = given.abs();
                if size != 0.0 && !(1e-5..1e16).contains(&size) && size.is_finite() {
                    write!(f, "{name}: {given:e} given, {expected} expected")
                } else {
                    write!(f, "{name}: {given} given, {expected} expected")
                }
            }
            Error::Target { row, target, vocab } => write!(
                f,
                "target of row {row}: {target} given, 0 to {} or a negative id (not scored) expected",
                vocab.saturating_sub(1)
            ),
            Error::ShardStart { start, vocab } => {
                write!(f, "shard: first column {start} given, 0 to {} expected", vocab.saturating_sub(1))
            }
            Error::PartOfVocabulary { start, columns, vocab } => write!(
                f,
                "logits: columns {start}..{} of a vocabulary given, all {vocab} expected; ranks that hold parts of it merge \
                 their partial rows",
                start + columns
            ),
            Error::Rank { rank, reason } => write!(f, "rank {rank}: {reason}"),
            Error::RanksDisagree { what, rank, given, other, expected } => {
                write!(f, "{what}: {given} given by rank {rank}, {expected} expected, by rank {other}")
            }
            Error::OpenGroup { group } => {
                write!(f, "group {group} has more sequences on another rank: ranks of groups expected")
            }
            Error::UnitGradientsNotKept => f.write_str(
                "the gradient of hidden states over ranks needs the unit gradients of their forward pass (LinearKept::UnitGradients), of \
                 as many scored rows",
            ),
            Error::Engine { engine, call, reason } => write!(f, "{engine}: {call} failed: {reason}"),
            Error::TokenRange { sequence, start, end, length } => write!(
                f,
                "scored tokens of sequence {sequence}: {start}..{end} given, a range within 1..{length} expected \
                 (the first token has no row before it)"
            ),
            Error::NotFinite { what, sequence, value } => {
                write!(f, "{what} of sequence {sequence}: {value} given, a finite number expected")
            }
            Error::ZeroTarget { sequence } => write!(
                f,
                "target probability of sequence {sequence}: 0 given, a positive one expected for this divergence \
                 (and at least one in every group)"
            ),
            Error::PairsOnly { group, size } => {
                write!(
                    f,
                    "group {group}: {size} sequences given, at most 2 expected for the official preference target"
                )
            }
            Error::NonFiniteRow { row, count } => write!(
                f,
                "row {row}: its logits hold NaN or +inf, or only -inf, or the largest is beyond 2^30 in base 2, so its log-prob is NaN \
                 ({count} such rows)"
            ),
            Error::RowInput { what, row, given, largest } => {
                write!(f, "{what} of row {row}: {given} given, a number of at most {largest:e} in size expected")
            }
            Error::DeviceRowInput { row, count } => write!(
                f,
                "row {row}: its weight, advantage or old log-prob is not finite, or so large that the loss does not fit f32; \
                 the row has no loss and no gradient ({count} such rows)"
            ),
            Error::WithheldRows { row, count } => write!(
                f,
                "row {row}: it has no softmax, or its upstream gradient is not finite, and is left out of the gradients that are \
                 added to ({count} such rows)"
            ),
            Error::EntropiesNotKept => {
                write!(
                    f,
                    "entropy gradient given, or sums of entropies asked for, but no entropies of the forward pass"
                )
            }
            Error::NoForward => write!(f, "no forward pass has been made yet"),
            Error::OtherStep { given, last: Some(last) } => {
                write!(f, "step of forward pass {given} given, that of the loss's last one, {last}, expected")
            }
            Error::OtherStep { given, last: None } => write!(
                f,
                "step of forward pass {given} given, but the loss has no forward pass that it could be of: it is another \
                 loss's, or an option was set since"
            ),
            Error::OtherInputs { forward, backward } => write!(
                f,
                "{} given to the backward pass, {} (as in its forward pass) expected; Step::with_moved_inputs allows the \
                 same numbers elsewhere",
                placed(backward),
                placed(forward)
            ),
            Error::InstructionSet { name } => write!(f, "instruction set: this processor has no {name}"),
            Error::NoDriver => write!(
                f,
                "no CUDA driver was found (libcuda.so.1): install the NVIDIA driver, or put its folder into LD_LIBRARY_PATH"
            ),
            Error::KernelsNotBuilt => write!(
                f,
                "exo-kernels was built without its CUDA kernels, because its build found no CUDA compiler (nvcc): install the CUDA \
                 toolkit, put nvcc into PATH or name it in NVCC (or its toolkit in CUDA_HOME), run `cargo clean -p exo-kernels`, \
                 and build again"
            ),
            Error::ScoredRows { beyond } => {
                write!(f, "scored rows: {beyond} more than the number given with the hidden states")
            }
            Error::NoCublas => write!(
                f,
                "no cuBLAS was found (libcublas.so): it is part of the CUDA toolkit, whose library folder must be among those \
                 that are searched (LD_LIBRARY_PATH)"
            ),
            Error::NoNccl => write!(
                f,
                "no NCCL was found (libnccl.so.2): it is a package of its own (libnccl2, or nvidia-nccl of PyPI), whose library folder \
                 must be among those that are searched (LD_LIBRARY_PATH)"
            ),
            Error::GradientType { given, head } => {
                write!(
                    f,
                    "linear stage: elements of type {given:?} given, {head:?} (the head's) or, for a gradient of the head, F32 expected"
                )
            }
            Error::Device { what, given, expected } if given == expected => {
                write!(
                    f,
                    "{what}: in another context of device {given} given, in that of the backend's stream expected"
                )
            }
            Error::Device { what, given, expected } => {
                write!(f, "{what}: on device {given} given, on device {expected}, the backend's, expected")
            }
            Error::BlockSize { kernel, given, expected } => {
                write!(f, "kernel {kernel}: blocks of {given} threads given by the driver, of {expected} expected")
            }
            Error::KernelsRefused { code, message, nvcc, oldest_driver, driver, capability: (major, minor) } => {
                let (cuda_major, cuda_minor) = (driver / 1000, driver % 1000 / 10);
                write!(
                    f,
                    "the driver, for CUDA {cuda_major}.{cuda_minor}, refused the kernels (cuModuleLoadData failed with {code}: \
                     {message}). They were compiled by nvcc {}, which needs an NVIDIA driver of {} or newer, for devices of compute \
                     capability 8.0 or later; this one is of {major}.{minor}. Update the driver, or build with the nvcc of an older CUDA \
                     toolkit (name it in NVCC)",
                    nvcc.unwrap_or("of an unknown version"),
                    oldest_driver.unwrap_or("its own version of CUDA"),
                )
            }
            Error::Cuda { call, code, message } => write!(f, "{call} failed with {code}: {message}"),
            Error::DeviceTarget { row, count, vocab } => write!(
                f,
                "target of row {row}: 0 to {} or a negative id (not scored) expected ({count} such rows)",
                vocab.saturating_sub(1)
            ),
        }
    }
}

/// An operand of a pass in words.
fn placed(operand: Option<Operand>) -> String {
    match operand {
        Some(Operand { what, address, row_stride: 0 }) => format!("{what} at {address:#x}"),
        Some(Operand { what, address, row_stride }) => format!("{what} at {address:#x} with row stride {row_stride}"),
        None => "no such operand".to_owned(),
    }
}
