//! Openings of film reviews, written for this project; a language model continues them.
//!
//! Each is short and breaks off where the verdict comes, so that the first few tokens of a completion decide its
//! reward: what a few minutes on a CPU can learn from. The held-out ones are never trained on.

pub const TRAINING: [&str; 64] = [
    "I thought this film was",
    "The story of this movie is",
    "The lead actor is",
    "For me the film was",
    "The first half hour is",
    "My impression of this movie was",
    "The dialogue is",
    "We all agreed that the film was",
    "The camera work is",
    "The villain of this film is",
    "I have to say that this movie is",
    "The music throughout is",
    "As a comedy, this film is",
    "The whole evening felt",
    "The screenplay is",
    "The costumes look",
    "As a thriller, this movie is",
    "The director's new film is",
    "The plot of the film is",
    "The supporting cast is",
    "Watching this movie was",
    "The romance in this film is",
    "The jokes are",
    "The opening scene is",
    "My sister thinks this film is",
    "The editing of this movie is",
    "Honestly, the film was",
    "The special effects are",
    "As a western, this film is",
    "The young actress is",
    "The pacing is",
    "The message of this movie is",
    "The sets look",
    "I left the cinema feeling",
    "The action scenes are",
    "This remake is",
    "The hero of the story is",
    "In short, this movie is",
    "The film's last act is",
    "The voice of the narrator is",
    "The child actors are",
    "To my surprise, the film was",
    "The documentary is",
    "The writing in this film is",
    "Everyone around me found the movie",
    "The lighting is",
    "The two leads are",
    "As a family film, this is",
    "The middle of the movie is",
    "The premise of this film is",
    "The songs are",
    "After an hour the film became",
    "The sound of this movie is",
    "Seen again, the film is",
    "The fight at the end is",
    "The animation is",
    "As a drama, this movie is",
    "The trailer made it look",
    "The title role is",
    "The characters are",
    "Compared with the book, the film is",
    "The film's humour is",
    "In one word, this movie is",
    "The scenes at sea are",
];

pub const HELD_OUT: [&str; 24] = [
    "The acting in this film is",
    "I found the movie",
    "The soundtrack is",
    "The ending of this film is",
    "All in all, the movie was",
    "The script is",
    "My brother said the film was",
    "This horror film is",
    "The atmosphere of this movie is",
    "The sequel is",
    "The love story is",
    "The main character is",
    "The scenes in the mountains are",
    "The photography is",
    "As a musical, this film is",
    "The performance of the old man is",
    "To be fair, the film is",
    "The second half of the movie is",
    "This science fiction film is",
    "The chemistry of the couple is",
    "The whole family thought it was",
    "The direction is",
    "The film's tone is",
    "Looking back, the movie was",
];

#[cfg(test)]
mod tests {
    use super::{HELD_OUT, TRAINING};

    #[test]
    fn prompts_are_distinct_and_the_held_out_ones_are_held_out() {
        let mut all = TRAINING.iter().chain(&HELD_OUT).collect::<Vec<_>>();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), TRAINING.len() + HELD_OUT.len());
    }
}
