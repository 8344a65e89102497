//! The reward of a completion: how positive VADER finds its words, from −1 to 1.
//!
//! VADER is a lexicon with rules for negation and emphasis: a fixed function of the text, as the oracle classifier is
//! in the paper's controlled-generation experiment, but one that needs no weights.

use vader_sentiment::SentimentIntensityAnalyzer;

pub struct Reward {
    analyzer: SentimentIntensityAnalyzer<'static>,
}

impl Reward {
    pub fn new() -> Self {
        Self { analyzer: SentimentIntensityAnalyzer::new() }
    }

    /// Only the completion is read: the prompt is the same for a whole group and cancels in the softmax.
    pub fn score(&self, completion: &str) -> f32 {
        let text = completion.trim();
        if text.is_empty() {
            return 0.0;
        }
        let compound = self.analyzer.polarity_scores(text)["compound"] as f32;
        if compound.is_finite() { compound } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::Reward;

    #[test]
    fn praise_is_above_and_blame_below_zero() {
        let reward = Reward::new();
        assert!(reward.score(" a wonderful, charming film.") > 0.5);
        assert!(reward.score(" a boring and terrible mess.") < -0.5);
        assert!(reward.score(" not good at all.") < 0.0);
        assert!(reward.score(" shown in the evening.").abs() < 1e-6);
    }

    #[test]
    fn what_a_model_may_say_has_a_finite_reward() {
        let reward = Reward::new();
        let words = [
            "good", "bad", "not", "never", "so", "this", "but", "very", "kind", "of", "least", "at", "!", "\u{fffd}",
            "😀",
        ];
        let mut state = 7usize;
        for length in 0..200 {
            let text = (0..length % 9)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    words[(state >> 33) % words.len()]
                })
                .collect::<Vec<_>>();
            let score = reward.score(&text.join(" "));
            assert!((-1.0..=1.0).contains(&score), "{text:?} has the reward {score}");
        }
    }
}
