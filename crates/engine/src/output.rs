//! From the bytes of tokens to the text of an answer: characters and stop sequences may lie across tokens' borders.
//!
//! Pure. What may yet become part of a character or of a stop sequence is held back; everything else goes out at once.

/// What came out of a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The answer goes on with this text, which may be empty.
    Text(String),
    /// A stop sequence was met: the answer ends with this text, before the sequence.
    Stopped(String),
}

/// The text of one answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    stops: Vec<String>,
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// What may be the beginning of a stop sequence.
    held: String,
    /// Which stop sequence was met.
    met: usize,
}

impl Output {
    /// Empty stop sequences are met by nothing.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            bytes: Vec::new(),
            held: String::new(),
            met: 0,
        }
    }

    /// The number of the stop sequence that was met, once one was.
    pub(crate) fn met(&self) -> usize {
        self.met
    }

    pub(crate) fn push(&mut self, piece: &[u8]) -> Pushed {
        self.bytes.extend_from_slice(piece);
        let text = take_characters(&mut self.bytes);
        self.held.push_str(&text);
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let first = stops
            .filter_map(|(number, stop)| self.held.find(stop).map(|at| (at, number)))
            .min();
        if let Some((at, number)) = first {
            self.met = number;
            self.bytes.clear();
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Pushed::Stopped(text);
        }
        let hold = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        Pushed::Text(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, now that nothing follows. A character that never came whole is U+FFFD.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.bytes)));
        text
    }
}

/// Takes all whole characters; what is not UTF-8 becomes U+FFFD, what may become a character stays.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        match std::str::from_utf8(rest) {
            Ok(whole) => {
                text.push_str(whole);
                at = bytes.len();
                break;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&rest[..valid]));
                at += valid;
                match error.error_len() {
                    Some(length) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        at += length;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..at);
    text
}

/// The length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = text.char_indices().map(|(at, _)| at);
    starts
        .filter(|at| text.len() - at < stop.len())
        .find(|at| stop.starts_with(&text[*at..]))
        .map_or(0, |at| text.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(output: &mut Output, pieces: &[&[u8]]) -> (String, bool) {
        let mut text = String::new();
        for piece in pieces {
            match output.push(piece) {
                Pushed::Text(more) => text.push_str(&more),
                Pushed::Stopped(more) => {
                    text.push_str(&more);
                    return (text, true);
                }
            }
        }
        text.push_str(&output.finish());
        (text, false)
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut output = Output::new(Vec::new());
        let bytes = "né€🦀".as_bytes();
        for byte in &bytes[..bytes.len() - 1] {
            let Pushed::Text(text) = output.push(&[*byte]) else {
                panic!("there is no stop sequence")
            };
            assert!(!text.contains(char::REPLACEMENT_CHARACTER));
        }
        assert_eq!(output.push(&bytes[bytes.len() - 1..]), Pushed::Text("🦀".into()));
        assert_eq!(output.finish(), "");
    }

    #[test]
    fn what_is_not_utf8_is_replaced_and_stops_nothing() {
        let mut output = Output::new(vec!["END".into()]);
        let (text, stopped) = all(&mut output, &[b"a\xff", b"b\xf0\x9f", b"c", b"EN", b"D more"]);
        assert_eq!((text.as_str(), stopped), ("a\u{fffd}b\u{fffd}c", true));
        let mut output = Output::new(Vec::new());
        assert_eq!(all(&mut output, &[b"x\xe2\x82"]).0, "x\u{fffd}");
    }

    #[test]
    fn the_first_stop_sequence_wins_and_is_not_shown() {
        let mut output = Output::new(vec!["\n\n".into(), "User:".into(), String::new()]);
        let (text, stopped) = all(&mut output, &[b"hi", b"\n", b"U", b"ser", b": no", b"\n\n"]);
        assert_eq!((text.as_str(), stopped), ("hi\n", true));
        assert_eq!(output.met(), 1);
    }

    proptest! {
        #[test]
        fn cutting_a_text_into_tokens_changes_nothing(
            text in "[ab€🦀]{0,24}",
            stops in prop::collection::vec("[ab€]{1,4}", 0..3),
            cuts in prop::collection::vec(0usize..64, 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let whole = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
            let (cut, stopped) = all(&mut Output::new(stops.clone()), &pieces);
            prop_assert_eq!(stopped, whole.is_some());
            // A piece may complete two stop sequences at once; the first in the text is the one that counts, unless an
            // earlier piece had completed another.
            if whole.is_none() {
                prop_assert_eq!(cut, text);
            } else {
                prop_assert!(text.starts_with(&cut));
                prop_assert!(stops.iter().any(|stop| text[cut.len()..].starts_with(stop.as_str())));
            }
        }
    }
}
