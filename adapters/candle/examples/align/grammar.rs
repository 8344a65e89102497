//! Review-like sentences for the tiny model, with positive, negative and neutral words in equal measure.
//!
//! An opening such as `The pacing of this comedy` is the prompt, the rest of the sentence the completion. With 10
//! subjects and 8 kinds of film there are 80 openings; those whose two indices agree in a fixed pattern are held out.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const SUBJECTS: [&str; 10] =
    ["acting", "plot", "music", "ending", "dialogue", "camera", "pacing", "script", "opening", "cast"];
const KINDS: [&str; 8] = ["comedy", "thriller", "western", "romance", "musical", "epic", "remake", "sequel"];
const POSITIVE: [&str; 8] = ["great", "superb", "lovely", "brilliant", "charming", "wonderful", "funny", "perfect"];
const NEGATIVE: [&str; 8] = ["bad", "boring", "awful", "terrible", "dreadful", "annoying", "poor", "horrible"];
const NEUTRAL: [&str; 8] = ["long", "slow", "loud", "quiet", "modern", "simple", "short", "plain"];

/// Openings for training and held-out openings: 64 and 16.
pub fn openings() -> (Vec<String>, Vec<String>) {
    let mut training = Vec::new();
    let mut held_out = Vec::new();
    for (row, subject) in SUBJECTS.iter().enumerate() {
        for (column, kind) in KINDS.iter().enumerate() {
            let opening = format!("The {subject} of this {kind}");
            if (row + column) % 5 == 4 {
                held_out.push(opening);
            } else {
                training.push(opening);
            }
        }
    }
    (training, held_out)
}

/// What the grammar may say after an opening, with the line feed that ends it.
pub fn completion(random: &mut StdRng) -> String {
    let first = adjective(random);
    match random.random_range(0..3) {
        0 => format!(" is {first}.\n"),
        1 => format!(" is {first} and {}.\n", adjective(random)),
        _ => format!(" is so {first}, it feels {}.\n", adjective(random)),
    }
}

fn adjective(random: &mut StdRng) -> &'static str {
    let words = [&POSITIVE, &NEGATIVE, &NEUTRAL];
    let words = words.choose(random).expect("three lists");
    words.choose(random).expect("eight words")
}

#[cfg(test)]
mod tests {
    use super::openings;

    #[test]
    fn no_held_out_opening_is_trained_on() {
        let (training, held_out) = openings();
        assert_eq!((training.len(), held_out.len()), (64, 16));
        assert!(held_out.iter().all(|opening| !training.contains(opening)));
    }
}
