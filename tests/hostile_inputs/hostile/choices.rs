//! Where the arguments of a walk come from.

use super::numbers::{HOSTILE_F32, HOSTILE_F64, HOSTILE_SIZES};

/// What decides. Choice 0 is the usual one always: an empty script makes the calls that any trainer makes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Script<'a> {
    /// The choices at these positions (ascending) take these values; all others are usual.
    Deviations(&'a [(usize, usize)]),
    /// A byte per choice, and the bytes of a number where it is to be any; behind the end all is usual.
    Bytes(&'a [u8]),
}

/// A script that is being followed.
#[derive(Debug)]
pub(crate) struct Choices<'a> {
    script: Script<'a>,
    /// Bytes read.
    read: usize,
    /// Alternatives of each choice so far.
    pub(crate) alternatives: Vec<usize>,
    /// The public functions that were called, as `tests/hostile_inputs/inventory.rs` names them.
    pub(crate) called: Vec<String>,
}

impl<'a> Choices<'a> {
    pub(crate) fn new(script: Script<'a>) -> Self {
        Self { script, read: 0, alternatives: Vec::new(), called: Vec::new() }
    }

    /// Whether nothing but usual choices is left.
    pub(crate) fn is_exhausted(&self) -> bool {
        match self.script {
            Script::Deviations(_) => false,
            Script::Bytes(bytes) => self.read >= bytes.len(),
        }
    }

    /// Notes public functions that this walk is about to call.
    pub(crate) fn calls(&mut self, functions: &[&str]) {
        self.called.extend(functions.iter().map(ToString::to_string));
    }

    /// The same of functions of one type: `of` is the file and the type.
    pub(crate) fn calls_of(&mut self, of: &str, functions: &[&str]) {
        self.called.extend(functions.iter().map(|function| format!("{of}::{function}")));
    }

    /// A number below `alternatives`; 0 is the usual.
    pub(crate) fn choose(&mut self, alternatives: usize) -> usize {
        let position = self.alternatives.len();
        self.alternatives.push(alternatives);
        match self.script {
            Script::Deviations(deviations) => {
                deviations.iter().find(|(at, _)| *at == position).map_or(0, |(_, value)| *value)
            }
            Script::Bytes(_) => usize::from(self.byte()) % alternatives,
        }
    }

    fn byte(&mut self) -> u8 {
        let Script::Bytes(bytes) = self.script else { return 0 };
        let byte = bytes.get(self.read).copied().unwrap_or(0);
        self.read += 1;
        byte
    }

    /// `usual`, or one of `others`.
    pub(crate) fn of<T: Copy>(&mut self, usual: T, others: &[T]) -> T {
        match self.choose(others.len() + 1) {
            0 => usual,
            other => others[other - 1],
        }
    }

    pub(crate) fn yes(&mut self) -> bool {
        self.choose(2) == 1
    }

    /// A length that should be `right`.
    pub(crate) fn length(&mut self, right: usize) -> usize {
        self.of(right, &[right + 1, right.saturating_sub(1), 0, 1])
    }

    /// A size that nothing of that size is made of.
    pub(crate) fn size(&mut self, usual: usize) -> usize {
        match self.choose(HOSTILE_SIZES.len() + 3) {
            0 => usual,
            1 => usual.wrapping_add(1),
            2 => usual.wrapping_sub(1),
            other => HOSTILE_SIZES[other - 3],
        }
    }

    /// Any f32: `usual`, one of the table, or, from bytes, any bits.
    pub(crate) fn f32(&mut self, usual: f32) -> f32 {
        match self.choose(HOSTILE_F32.len() + 2) {
            0 => usual,
            1 => f32::from_le_bytes(std::array::from_fn(|_| self.byte())),
            other => HOSTILE_F32[other - 2],
        }
    }

    /// Any f64, as [`f32`](Self::f32).
    pub(crate) fn f64(&mut self, usual: f64) -> f64 {
        match self.choose(HOSTILE_F64.len() + 2) {
            0 => usual,
            1 => f64::from_le_bytes(std::array::from_fn(|_| self.byte())),
            other => HOSTILE_F64[other - 2],
        }
    }
}
