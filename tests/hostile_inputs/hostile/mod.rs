//! Calls of the public API with hostile arguments, as functions of a script of choices.
//!
//! A *walk* makes one call (or a chain of calls, such as forward and backward) whose every argument comes from
//! [`Choices`]. It decides by itself, from the documentation alone, whether the call must be refused, and asserts
//! 1. that it is refused exactly then, and returns,
//! 2. that a refused call has written nothing: outputs are filled with sentinels and compared bit for bit,
//! 3. that an accepted call has written nothing but its outputs, and there finite numbers, or those that README's table
//!    "What bad input gets" promises.
//!
//! Whoever makes the script decides what is tried: `tests/hostile_inputs` every single deviation from the usual, pairs
//! of them and random ones; the fuzz target in `fuzz/` whatever libFuzzer makes of bytes.

#![allow(dead_code, reason = "the fuzz target uses less of it than the tests")]
#![allow(clippy::single_match_else, reason = "refused and accepted are judged side by side")]

pub(crate) mod choices;
pub(crate) mod constructors;
pub(crate) mod guarded;
pub(crate) mod linear;
pub(crate) mod linear_case;
pub(crate) mod linear_shards;
pub(crate) mod log_ratio;
pub(crate) mod memory;
pub(crate) mod numbers;
pub(crate) mod objective;
pub(crate) mod partial_row;
pub(crate) mod preference_loss;
pub(crate) mod ranked;
pub(crate) mod row_loss;
pub(crate) mod rows;
pub(crate) mod settings;
pub(crate) mod token_log_prob;

pub(crate) use choices::{Choices, Script};

use exo_kernels::Cpu;
use exo_kernels::reference::ReferenceBackend;

/// One walk, by name.
pub(crate) type Walk = (&'static str, fn(&mut Choices<'_>));

/// Every walk of the host's API.
pub(crate) const WALKS: [Walk; 30] = [
    ("batches", constructors::batches),
    ("targets", constructors::targets),
    ("views", constructors::views),
    ("settings", constructors::settings),
    ("token_log_probs", token_log_prob::walk::<Cpu>),
    ("log_ratios", log_ratio::walk::<Cpu>),
    ("objective", objective::walk::<Cpu>),
    ("linear_token_log_probs", linear::walk::<Cpu>),
    ("linear_row_loss", row_loss::walk::<Cpu>),
    ("preference_loss", preference_loss::from_logits::<Cpu>),
    ("linear_preference_loss", preference_loss::from_hidden_states::<Cpu>),
    ("steps", preference_loss::steps),
    ("memory", memory::of_host::<Cpu>),
    ("reference token_log_probs", token_log_prob::walk::<ReferenceBackend>),
    ("reference log_ratios", log_ratio::walk::<ReferenceBackend>),
    ("reference objective", objective::walk::<ReferenceBackend>),
    ("reference linear_token_log_probs", linear::walk::<ReferenceBackend>),
    ("reference linear_row_loss", row_loss::walk::<ReferenceBackend>),
    ("reference preference_loss", preference_loss::from_logits::<ReferenceBackend>),
    ("reference linear_preference_loss", preference_loss::from_hidden_states::<ReferenceBackend>),
    // Behind the others: the first byte of a seed of the corpus is a walk's place.
    ("shards", partial_row::shards),
    ("partial_rows", partial_row::walk::<Cpu>),
    ("reference partial_rows", partial_row::walk::<ReferenceBackend>),
    ("one rank", partial_row::one_rank),
    ("linear_shards", linear_shards::walk::<Cpu>),
    ("reference linear_shards", linear_shards::walk::<ReferenceBackend>),
    ("ranked", ranked::of_host::<Cpu>),
    ("reference ranked", ranked::of_host::<ReferenceBackend>),
    ("sums over ranks", ranked::sums),
    ("open groups", ranked::open_groups),
];

/// Reads bytes as a sequence of calls: a byte that says which walk, then that walk's choices.
pub(crate) fn interpret(bytes: &[u8]) {
    /// Beyond these the bytes say nothing new about single calls.
    const MOST_CALLS: usize = 8;
    let mut choices = Choices::new(Script::Bytes(bytes));
    for _ in 0..MOST_CALLS {
        if choices.is_exhausted() {
            return;
        }
        let (_, walk) = WALKS[choices.choose(WALKS.len())];
        walk(&mut choices);
    }
}
