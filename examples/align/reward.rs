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
