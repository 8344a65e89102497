//! Launches as data: tables looked up by the type of the logits, the vocabulary and the compute capability, which say which
//! file's kernels are launched and in what shape.
//!
//! None of the shapes changes a bit of the results, so they may be changed by measurement alone (an architecture's own file may:
//! `docs/numerics.md`): `benches/tuning.rs` times
//! the alternatives on a GPU and prints rows and constants as they stand here (`docs/gpu.md`). What stands in them now follows
//! from counts (registers, launch bounds); nothing has been measured on a GPU yet. Threads of a block are in `kernels.rs` and in
//! the kernels' `__launch_bounds__`.

use crate::cuda::row_sharing::RowSharing;
use crate::element::Dtype;
use std::ops::RangeInclusive;

/// Columns of a slice: the unit in which a row is reduced, whoever reduces it. As in `kernels/include/logits.cuh`.
pub(super) const SLICE: usize = 32_768;

/// What ranks are told that slices are.
const _: () = assert!(SLICE == crate::data::shard::SLICE);

/// Columns of a unit of the linear stage, which chunks are multiples of. As in `kernels/linear/fold.cu`.
pub(super) const LINEAR_UNIT: usize = 512;

/// Logits that the linear stage makes at once: 2²⁶, in f32 256 MiB. So many rows and columns that the products run at full
/// speed, and that the hidden states' gradient, read and written once for each chunk of columns, costs little next to them.
pub(super) const LINEAR_LOGITS: usize = 1 << 26;

/// Rows of a chunk of columns at most: [`LINEAR_LOGITS`] are then 8192 columns of them.
pub(super) const LINEAR_ROWS: usize = 8192;

/// Bytes of logits in f32 that a row loss holds at once where the head is trained: 2048 rows of 128256 columns. Each chunk of
/// rows reads and writes all of the weight's gradient, which takes thousands of rows to be cheap.
pub(super) const LINEAR_ROW_BYTES: usize = 1 << 30;

/// Rows of a product of constant shape ([`super::LinearChunks::batch_invariant`]): enough that a product is bound by its
/// operations and not by reading the weight, whose rows it takes from memory once for each chunk (2·256 operations for each of
/// its numbers), and that one row alone costs little.
pub(super) const LINEAR_INVARIANT_ROWS: usize = 256;

/// Columns of a block of the backward kernel. As in `kernels/linear/gradient.cu`.
pub(super) const LINEAR_BLOCK_COLUMNS: usize = 8192;

/// Major and minor, as in 9.0.
pub(super) type Capability = (u32, u32);

/// What a launch is looked up by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) dtype: Dtype,
    pub(super) vocab: usize,
    pub(super) capability: Capability,
}

/// The launches of one family of kernels: one file for every architecture, and what architectures have of their own.
pub(super) struct Table<E: 'static> {
    /// The file for every architecture.
    pub(super) file: &'static str,
    /// The first row that fits a key, and whose file there is, counts: those of an architecture's own files (`sm90a/…`) stand
    /// before the others, and of one file what was measured before what was counted.
    pub(super) rows: &'static [Row<E>],
    /// For keys that no row fits: devices that are newer than the table.
    pub(super) otherwise: E,
}

/// Which keys an entry is for.
pub(super) struct Row<E> {
    /// The file, below `kernels/`, whose kernels are launched.
    pub(super) file: &'static str,
    pub(super) dtypes: &'static [Dtype],
    pub(super) vocab: RangeInclusive<usize>,
    pub(super) capability: RangeInclusive<Capability>,
    pub(super) entry: E,
}

impl<E> Row<E> {
    fn fits(&self, key: Key) -> bool {
        self.dtypes.contains(&key.dtype) && self.vocab.contains(&key.vocab) && self.capability.contains(&key.capability)
    }
}

impl<E> Table<E> {
    /// The file and the entry for a launch. `has`: whether a file's kernels are built, and for this device.
    pub(super) fn choose(&self, key: Key, has: impl Fn(&str) -> bool) -> (&'static str, &E) {
        let row = self.rows.iter().find(|row| row.fits(key) && has(row.file));
        row.map_or((self.file, &self.otherwise), |row| (row.file, &row.entry))
    }
}

const EVERY_DTYPE: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];

/// What machine code has been made for, and looked at (`scripts/kernel-report`).
const COUNTED: RangeInclusive<Capability> = (8, 0)..=(12, 1);

/// A launch of the forward pass of the token log-probs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenLogProb {
    /// Blocks that a multiprocessor holds at once of the kernel without softcap and entropy, for rows that start at 16 bytes.
    pub(super) plain_blocks: usize,
    /// The same of all others.
    pub(super) other_blocks: usize,
    /// When blocks share a row.
    pub(super) sharing: RowSharing,
}

impl TokenLogProb {
    /// Slices of a row that one block walks. `plain`: as in [`Self::plain_blocks`].
    pub(super) fn slices_per_block(&self, rows: usize, slices: usize, multiprocessors: usize, plain: bool) -> usize {
        let blocks = if plain { self.plain_blocks } else { self.other_blocks };
        let whole = self.sharing.walks_whole_rows(rows, multiprocessors, blocks);
        if whole { slices } else { self.sharing.shared_slices.clamp(1, slices) }
    }
}

/// Of 65536 registers, 256 threads of 35 to 40 leave room for six blocks and of 51 to 64 for four, on every architecture
/// of [`COUNTED`] and for every type; the launch bounds promise as much of any other. A multiprocessor has 1536 threads or
/// more. One slice to a block: few rows are to use all of the device.
///
/// When rows are whole follows from the wave model (`wave_model.rs`), here for an H200, and for whatever is not in the table.
pub(super) const OF_LAUNCH_BOUNDS: TokenLogProb = with_sharing(3, 175, 1);

const fn with_sharing(waves: usize, filling_percent: usize, shared_slices: usize) -> TokenLogProb {
    let sharing = RowSharing { waves, filling_percent, shared_slices };
    TokenLogProb { plain_blocks: 6, other_blocks: 4, sharing }
}

/// 54 GB/s to a multiprocessor where 9.0 has 25 to 36: more blocks fill the memory's bandwidth, and what a block that is not
/// alone with its row waits for at its end is a larger part of its time.
const OF_10: TokenLogProb = with_sharing(2, 200, 1);

/// Of rows of two slices one is soon as long as what sharing them waits for.
const OF_TWO_SLICES: TokenLogProb = with_sharing(1, 110, 1);

/// 19 GB/s to a multiprocessor (8.0), or 6 to 11.
const OF_NARROW_MEMORY: TokenLogProb = with_sharing(3, 75, 1);

const FORWARD: &str = "token_log_prob";

/// 10.x has arithmetic of pairs and takes too few exponentials for 16-bit logits (`kernels/include/packed_terms.cuh`). Not
/// 12.x: it takes the pairs' instructions apart, so that the loop of bf16 logits has 7.3 instructions for each logit in place
/// of 5.0 (`scripts/kernel-report`'s count of the file compiled for it). The backward pass has no such file: it writes as much as it
/// reads, so it takes its exponentials half as fast, and the memory bounds it.
const FORWARD_PACKED: &str = "sm100/token_log_prob";

/// Columns of rows of so many slices.
const ONE_SLICE: RangeInclusive<usize> = 1..=SLICE;
const TWO_SLICES: RangeInclusive<usize> = SLICE + 1..=2 * SLICE;
const MORE_SLICES: RangeInclusive<usize> = 2 * SLICE + 1..=usize::MAX;

const ON_10: RangeInclusive<Capability> = (10, 0)..=(10, 3);

/// Of any type.
const fn row(
    file: &'static str,
    vocab: RangeInclusive<usize>,
    capability: RangeInclusive<Capability>,
    entry: TokenLogProb,
) -> Row<TokenLogProb> {
    Row { file, dtypes: EVERY_DTYPE, vocab, capability, entry }
}

/// `kernels/token_log_prob.cu`.
pub(super) static TOKEN_LOG_PROB: Table<TokenLogProb> = Table {
    file: FORWARD,
    rows: &[
        row(FORWARD_PACKED, ONE_SLICE, ON_10, OF_LAUNCH_BOUNDS),
        row(FORWARD_PACKED, TWO_SLICES, ON_10, OF_TWO_SLICES),
        row(FORWARD_PACKED, MORE_SLICES, ON_10, OF_10),
        // Nothing to share.
        row(FORWARD, ONE_SLICE, COUNTED, OF_LAUNCH_BOUNDS),
        row(FORWARD, TWO_SLICES, COUNTED, OF_TWO_SLICES),
        row(FORWARD, MORE_SLICES, (8, 0)..=(8, 9), OF_NARROW_MEMORY),
        row(FORWARD, MORE_SLICES, (9, 0)..=(9, 0), OF_LAUNCH_BOUNDS),
        row(FORWARD, MORE_SLICES, ON_10, OF_10),
        row(FORWARD, MORE_SLICES, (12, 0)..=(12, 1), OF_NARROW_MEMORY),
    ],
    otherwise: OF_LAUNCH_BOUNDS,
};

#[cfg(test)]
mod test {
    use super::*;
    use crate::backend::Backend;
    use crate::cuda::context::Kept;
    use crate::cuda::kernels::{IMAGES, Image, Kernels};
    use crate::cuda::{Cuda, Matrix, TokenLogProbs};
    use crate::{LogitOptions, SoftmaxState};
    use cudarc::driver::CudaContext;
    use half::bf16;
    use std::sync::Arc;

    /// With the most threads of a multiprocessor.
    const DEVICES: [(Capability, usize); 9] = [
        ((8, 0), 2048),
        ((8, 6), 1536),
        ((8, 7), 1536),
        ((8, 9), 1536),
        ((9, 0), 2048),
        ((10, 0), 2048),
        ((10, 3), 2048),
        ((12, 0), 1536),
        ((12, 1), 1536),
    ];

    const VOCABULARIES: [usize; 8] = [1, 2, 1000, SLICE - 1, SLICE, SLICE + 1, 151_936, 65_535 * SLICE];

    fn keys() -> impl Iterator<Item = (Key, usize)> {
        DEVICES.into_iter().flat_map(|(capability, threads)| {
            let of = move |dtype| VOCABULARIES.map(move |vocab| (Key { dtype, vocab, capability }, threads));
            EVERY_DTYPE.iter().flat_map(move |&dtype| of(dtype))
        })
    }

    /// What must hold for every family of kernels.
    fn check_table<E: PartialEq + std::fmt::Debug>(table: &Table<E>, valid: impl Fn(&E, Key, usize) -> bool) {
        for (key, threads) in keys() {
            let fitting: Vec<&Row<E>> = table.rows.iter().filter(|row| row.fits(key)).collect();
            for row in &fitting {
                assert!(valid(&row.entry, key, threads), "{key:?}: {:?}", row.entry);
            }
            // With and without what architectures have of their own.
            assert_eq!(table.choose(key, |_| true), (fitting[0].file, &fitting[0].entry));
            let common = fitting.iter().find(|row| row.file == table.file).expect("a row of the file for all");
            assert_eq!(table.choose(key, |file| file == table.file), (table.file, &common.entry));
        }
        for row in table.rows {
            let mut keys = keys().map(|(key, _)| key).filter(|key| row.fits(*key));
            let counts = |key| table.rows.iter().find(|other| other.file == row.file && other.fits(key));
            assert!(
                keys.any(|key| std::ptr::eq(counts(key).expect("itself"), row)),
                "rows before hide {:?}",
                row.entry
            );
        }
        let newer = Key { dtype: Dtype::Bf16, vocab: 1, capability: (99, 0) };
        let (file, entry) = table.choose(newer, |_| true);
        assert!(file == table.file && valid(entry, newer, 1536), "{entry:?}");
    }

    #[test]
    fn every_combination_has_one_valid_entry() {
        check_table(&TOKEN_LOG_PROB, |entry, _, threads| {
            let blocks = [entry.plain_blocks, entry.other_blocks];
            entry.sharing.shared_slices >= 1 && blocks.iter().all(|&blocks| blocks >= 1 && blocks * 256 <= threads)
        });
    }

    /// The kernels promise the blocks that the entries count on.
    #[test]
    fn entries_are_what_the_launch_bounds_promise() {
        let source = include_str!("../../kernels/token_log_prob.cu");
        let kernels = source.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.strip_suffix(')'));
        let mut seen = 0;
        for kernel in kernels {
            let parts: Vec<&str> = kernel.split(", ").collect();
            let [name, _, softcap, entropy, aligned, blocks] = parts[..] else { panic!("{kernel}") };
            let blocks: usize = blocks.parse().expect("a number of blocks");
            let plain = aligned == "true";
            assert!(!plain || [softcap, entropy] == ["false", "false"], "{name}: who would launch it?");
            for (key, _) in keys() {
                // Of whichever file: all are made of this source.
                for row in TOKEN_LOG_PROB.rows.iter().filter(|row| row.fits(key)) {
                    let counted = if plain { row.entry.plain_blocks } else { row.entry.other_blocks };
                    assert_eq!(counted, blocks, "{name} of {} on {key:?}", row.file);
                }
            }
            seen += 1;
        }
        assert_eq!(seen, 15, "kernels");
    }

    /// Of the kernel that is launched, and never more slices than there are.
    #[test]
    fn slices_are_shared_out_until_rows_fill_the_device() {
        let shared = |entry: TokenLogProb, rows, plain| entry.slices_per_block(rows, 4, 132, plain);
        // 3 waves are 2376 and 1584 rows; 1.75 blocks of each multiprocessor 231.
        assert_eq!(
            [230, 231, 792, 793, 1023, 2200, 2376, 2377].map(|rows| shared(OF_LAUNCH_BOUNDS, rows, true)),
            [1, 4, 4, 1, 4, 4, 4, 4]
        );
        assert_eq!([528, 529, 1583, 1584, 1585].map(|rows| shared(OF_LAUNCH_BOUNDS, rows, false)), [4, 1, 4, 4, 4]);
        let entry = |shared_slices| with(RowSharing { shared_slices, ..RowSharing::ALWAYS });
        assert_eq!([0, 1, 3, 9].map(|slices| shared(entry(slices), 1, true)), [1, 1, 3, 4]);
        assert_eq!([1, 792, 100_000].map(|rows| shared(entry(1), rows, true)), [1, 1, 1]);
        assert_eq!([1, 792, 100_000].map(|rows| shared(with(RowSharing::NEVER), rows, true)), [4, 4, 4]);
    }

    const fn with(sharing: RowSharing) -> TokenLogProb {
        TokenLogProb { sharing, ..OF_LAUNCH_BOUNDS }
    }

    const fn walking(shared_slices: usize) -> Table<TokenLogProb> {
        Table { file: FORWARD, rows: &[], otherwise: with(RowSharing { shared_slices, ..RowSharing::ALWAYS }) }
    }

    /// Pairs on 10.x, whatever the logits, and nowhere else.
    #[test]
    fn pairs_are_for_the_architecture_that_has_them() {
        for (key, _) in keys() {
            let (file, _) = TOKEN_LOG_PROB.choose(key, |_| true);
            assert_eq!(file == FORWARD_PACKED, key.capability.0 == 10, "{key:?}: {file}");
        }
    }

    /// The same rows with one, two, three and all slices to a block.
    #[test]
    fn entries_change_no_bit() {
        static TABLES: [Table<TokenLogProb>; 4] = [walking(1), walking(2), walking(3), walking(usize::MAX)];
        softcuda::install().expect("softcuda can be loaded where there is no driver");
        let stream = CudaContext::new(0).expect("device 0").new_stream().expect("a stream");
        let mut cuda = Cuda::new(&stream).expect("the kernels load");
        let (rows, vocab) = (3, 4 * SLICE + 1001);
        let logits: Vec<bf16> =
            (0..rows * vocab).map(|i| bf16::from_f32(((i * 7919) % 1013) as f32 * 0.02 - 9.0)).collect();
        let logits = stream.clone_htod(&logits).expect("upload");
        let targets = stream.clone_htod(&[5_u32, 131_072, 40_000]).expect("upload");
        let options = LogitOptions::default();
        let mut forward = |table: &'static Table<TokenLogProb>, with_entropies: bool| {
            cuda.token_log_prob_tuning = table;
            let mut log_probs = stream.clone_htod(&vec![f32::MAX; rows]).expect("upload");
            let mut states = stream.clone_htod(&vec![SoftmaxState::default(); rows]).expect("upload");
            let mut entropies = stream.clone_htod(&vec![f32::MAX; rows]).expect("upload");
            let outputs = TokenLogProbs {
                log_probs: log_probs.as_view_mut().into(),
                states: states.as_view_mut().into(),
                entropies: with_entropies.then(|| entropies.as_view_mut().into()),
            };
            let view = Matrix::new(logits.as_view().into(), vocab).expect("rows");
            cuda.token_log_probs(&view, &targets, &options, outputs).expect("forward");
            let mut bits: Vec<u32> = Vec::new();
            bits.extend(stream.clone_dtoh(&log_probs).expect("download").iter().map(|value| value.to_bits()));
            bits.extend(stream.clone_dtoh(&entropies).expect("download").iter().map(|value| value.to_bits()));
            let states = stream.clone_dtoh(&states).expect("download");
            bits.extend(states.iter().flat_map(|state| [state.r.to_bits(), state.s.to_bits()]));
            bits
        };
        for with_entropies in [false, true] {
            let expected = forward(&TABLES[0], with_entropies);
            assert!(f32::from_bits(expected[0]) < 0.0, "something was computed");
            for table in &TABLES[1..] {
                assert_eq!(forward(table, with_entropies), expected, "{:?}", table.otherwise);
            }
        }
    }

    /// A kernel of 9.0's own, which writes 1 where a log-prob would be.
    const OWN: Image = Image {
        file: "sm90a/token_log_prob",
        only: Some(((9, 0), (9, 0))),
        bytes: b"
.version 8.0
.target sm_90a
.address_size 64
.visible .entry token_log_prob_f32(.param .align 8 .b8 arguments[112])
.maxntid 256, 1, 1
{
    .reg .pred %p;
    .reg .b32 %thread, %row;
    .reg .b64 %log_probs, %offset;
    mov.u32 %thread, %tid.x;
    setp.ne.u32 %p, %thread, 0;
    @%p ret;
    ld.param.u64 %log_probs, [arguments+16];
    mov.u32 %row, %ctaid.x;
    mul.wide.u32 %offset, %row, 4;
    add.s64 %log_probs, %log_probs, %offset;
    st.f32 [%log_probs], 0f3F800000;
    ret;
}
\0",
    };

    /// What the tables are with such a file.
    static WITH_OWN: Table<TokenLogProb> = Table {
        file: FORWARD,
        rows: &[
            Row {
                file: OWN.file,
                dtypes: EVERY_DTYPE,
                vocab: 1..=usize::MAX,
                capability: (9, 0)..=(9, 0),
                entry: OF_LAUNCH_BOUNDS,
            },
            Row {
                file: FORWARD,
                dtypes: EVERY_DTYPE,
                vocab: 1..=usize::MAX,
                capability: COUNTED,
                entry: OF_LAUNCH_BOUNDS,
            },
        ],
        otherwise: OF_LAUNCH_BOUNDS,
    };

    /// The log-prob of one row with these images.
    fn log_prob(context: &Arc<CudaContext>, images: Vec<Image>) -> f32 {
        let stream = context.new_stream().expect("a stream");
        let mut cuda = Cuda::new(&stream).expect("the kernels load");
        cuda.kernels = Arc::new(Kept::new(Kernels::load(context, images.leak()).expect("the kernels load")));
        cuda.token_log_prob_tuning = &WITH_OWN;
        let logits = stream.clone_htod(&[0.5_f32; 40]).expect("upload");
        let targets = stream.clone_htod(&[7_u32]).expect("upload");
        let mut log_probs = stream.clone_htod(&[f32::MAX]).expect("upload");
        let mut states = stream.clone_htod(&[SoftmaxState::default()]).expect("upload");
        let outputs =
            TokenLogProbs { log_probs: (&mut log_probs).into(), states: (&mut states).into(), entropies: None };
        let view = Matrix::new(logits.as_view().into(), 40).expect("rows");
        cuda.token_log_probs(&view, &targets, &LogitOptions::default(), outputs).expect("forward");
        stream.clone_dtoh(&log_probs).expect("download")[0]
    }

    /// On 9.0 its own kernel where it was built; the one for every architecture where it was not, and on other devices,
    /// which cannot even load it. A process for each: what softcuda is belongs to the process.
    #[test]
    fn an_architecture_s_own_kernel_runs_there_and_nowhere_else() {
        const VARIABLE: &str = "EXO_KERNELS_TEST_CAPABILITY";
        check_table(&WITH_OWN, |_, _, _| true);
        let Ok(number) = std::env::var(VARIABLE) else {
            for number in ["90", "100", "120"] {
                let name = "cuda::tuning::test::an_architecture_s_own_kernel_runs_there_and_nowhere_else";
                let mut child = std::process::Command::new(std::env::current_exe().expect("this test"));
                let output = child.args([name, "--exact"]).env(VARIABLE, number).output().expect("this test runs");
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success() && said.contains("1 passed"), "{number}: {said}");
            }
            return;
        };
        let number: u32 = number.parse().expect("a capability");
        softcuda::install_always().expect("softcuda can be loaded");
        let settings = softcuda::Settings { compute_capability: (number / 10, number % 10), ..Default::default() };
        softcuda::control().expect("softcuda").configure(&settings);
        let context = CudaContext::new(0).expect("device 0");
        let expected = -(40.0_f32.ln());
        let close = |found: f32| (found - expected).abs() < 1e-5;
        assert!(close(log_prob(&context, IMAGES.to_vec())), "not built: the kernel for all");
        let found = log_prob(&context, IMAGES.iter().copied().chain([OWN]).collect());
        assert!(if number == 90 { found == 1.0 } else { close(found) }, "{number}: {found}");
    }
}
