//! Rewards, or log-probabilities of a given target distribution: one number per sequence.

use crate::data::memory::{Host, Memory};

/// What the target distribution is made from, one number per sequence: rewards, or log q for
/// [`Target::Distribution`](crate::Target::Distribution).
///
/// On the host made from a slice, array or `Vec` of `f32` or `f64`, on a device from a view or a reference to a slice. On a
/// device, where a reward model leaves them, they are read as they are and checked by the kernel: what the host would have
/// refused makes its group NaN, and is an error of the report.
#[derive(Debug, Clone)]
pub struct Rewards<'a, M: Memory> {
    pub(crate) values: Values<'a, M>,
    pub(crate) proposal: Option<M::View<'a, f64>>,
}

/// Numbers in either float type, read as f64.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a, M: Memory> {
    F32(M::View<'a, f32>),
    F64(M::View<'a, f64>),
}

impl<'a, M: Memory> Rewards<'a, M> {
    /// Corrects for completions that were not sampled from the reference policy but from a proposal μ.
    ///
    /// `offsets`, one per sequence, are c = log π_ref(y) − log μ(y). They are added to both logits, β_π·S and the
    /// target's: then p and q are the self-normalised importance weights under μ. They carry no
    /// gradient.
    #[must_use]
    pub fn with_proposal(self, offsets: M::View<'a, f64>) -> Self {
        Rewards { proposal: Some(offsets), ..self }
    }
}

impl Copy for Rewards<'_, Host> {}

impl Rewards<'_, Host> {
    pub(crate) fn len(&self) -> usize {
        match self.values {
            Values::F32(values) => values.len(),
            Values::F64(values) => values.len(),
        }
    }

    /// The same, borrowed for less long.
    #[expect(clippy::needless_match, reason = "a type over any memory keeps its lifetime; slices do not")]
    pub(crate) fn borrowed(&self) -> Rewards<'_, Host> {
        let values = match self.values {
            Values::F32(values) => Values::F32(values),
            Values::F64(values) => Values::F64(values),
        };
        Rewards { values, proposal: self.proposal }
    }

    pub(crate) fn value(&self, sequence: usize) -> f64 {
        match self.values {
            Values::F32(values) => f64::from(values[sequence]),
            Values::F64(values) => values[sequence],
        }
    }

    /// c of a sequence; 0 without a proposal.
    pub(crate) fn offset(&self, sequence: usize) -> f64 {
        self.proposal.map_or(0.0, |offsets| offsets[sequence])
    }
}

macro_rules! rewards_from {
    ($($number:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a [$number]> for Rewards<'a, Host> {
            fn from(values: &'a [$number]) -> Self {
                Rewards { values: Values::$variant(values), proposal: None }
            }
        }

        impl<'a> From<&'a Vec<$number>> for Rewards<'a, Host> {
            fn from(values: &'a Vec<$number>) -> Self {
                Rewards::from(values.as_slice())
            }
        }

        impl<'a, const S: usize> From<&'a [$number; S]> for Rewards<'a, Host> {
            fn from(values: &'a [$number; S]) -> Self {
                Rewards::from(values.as_slice())
            }
        }
    )*};
}

rewards_from!(f32 => F32, f64 => F64);
