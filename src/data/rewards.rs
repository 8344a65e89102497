//! Rewards, or log-probabilities of a given target distribution: one number per sequence.

/// Numbers in either float type, read as f64.
#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// What the target distribution is made from, one number per sequence: rewards, or log q for
/// [`Target::Distribution`](crate::Target::Distribution).
///
/// Made from a slice, array or `Vec` of `f32` or `f64`.
#[derive(Debug, Clone, Copy)]
pub struct Rewards<'a> {
    values: Values<'a>,
    pub(crate) proposal: Option<&'a [f64]>,
}

impl<'a> Rewards<'a> {
    /// Corrects for completions that were not sampled from the reference policy but from a proposal μ.
    ///
    /// `offsets`, one per sequence, are c = log π_ref(y) − log μ(y). They are added to both logits, β_π·S and the
    /// target's: then p and q are the self-normalised importance weights under μ. They carry no
    /// gradient.
    #[must_use]
    pub fn with_proposal(self, offsets: &'a [f64]) -> Self {
        Rewards { proposal: Some(offsets), ..self }
    }

    pub(crate) fn len(&self) -> usize {
        match self.values {
            Values::F32(values) => values.len(),
            Values::F64(values) => values.len(),
        }
    }

    pub(crate) fn value(&self, sequence: usize) -> f64 {
        match self.values {
            Values::F32(values) => f64::from(values[sequence]),
            Values::F64(values) => values[sequence],
        }
    }

    /// Whether there are proposal offsets.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_proposal(&self) -> bool {
        self.proposal.is_some()
    }

    /// c of a sequence; 0 without a proposal.
    pub(crate) fn offset(&self, sequence: usize) -> f64 {
        self.proposal.map_or(0.0, |offsets| offsets[sequence])
    }
}

macro_rules! rewards_from {
    ($($number:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a [$number]> for Rewards<'a> {
            fn from(values: &'a [$number]) -> Self {
                Rewards { values: Values::$variant(values), proposal: None }
            }
        }

        impl<'a> From<&'a Vec<$number>> for Rewards<'a> {
            fn from(values: &'a Vec<$number>) -> Self {
                Rewards::from(values.as_slice())
            }
        }

        impl<'a, const S: usize> From<&'a [$number; S]> for Rewards<'a> {
            fn from(values: &'a [$number; S]) -> Self {
                Rewards::from(values.as_slice())
            }
        }
    )*};
}

rewards_from!(f32 => F32, f64 => F64);
