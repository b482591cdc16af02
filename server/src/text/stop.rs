//! Strings that end a text, found while it streams.
//!
//! Matching is over bytes, with one Knuth-Morris-Pratt automaton per string: linear in the text,
//! and at any time it knows how long a tail of the text might still become a match.

use std::sync::Arc;

/// What to look for; shared by all choices of a request.
#[derive(Clone, Debug, Default)]
pub struct StopStrings(Arc<[Needle]>);

/// A stop string that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopMatch {
    /// The text ends before this byte.
    pub start: usize,
    /// Which string, by its place among those given.
    pub index: usize,
}

#[derive(Debug)]
struct Needle {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of `bytes` that ends its first `n` bytes.
    fallback: Vec<u32>,
}

/// The state of looking for [`StopStrings`] in one text.
#[derive(Debug)]
pub struct StopMatcher {
    needles: StopStrings,
    /// Per needle, how much of it ends the text.
    matched: Vec<u32>,
    num_seen: usize,
}

impl StopStrings {
    /// Strings must not be empty.
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Self {
        Self(strings.iter().map(|s| Needle::new(s.as_ref())).collect())
    }

    /// The strings.
    pub fn to_strings(&self) -> Vec<String> {
        let text = |needle: &Needle| String::from_utf8_lossy(&needle.bytes).into_owned();
        self.0.iter().map(text).collect()
    }

    /// The string given at this place.
    pub fn get(&self, index: usize) -> &str {
        std::str::from_utf8(&self.0[index].bytes).expect("made from a string")
    }

    /// Whether nothing can match.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl StopMatcher {
    /// At the start of a text.
    pub fn new(needles: StopStrings) -> Self {
        let matched = vec![0; needles.0.len()];
        Self {
            needles,
            matched,
            num_seen: 0,
        }
    }

    /// Reads on, one token at a time. Of several matches that one token completes, the one that
    /// starts first counts, and of those the shortest.
    pub fn push(&mut self, bytes: &[u8]) -> Option<StopMatch> {
        let mut earliest: Option<(usize, usize, usize)> = None;
        let needles = self.needles.0.iter().zip(&mut self.matched);
        for (index, (needle, matched)) in needles.enumerate() {
            for (i, &byte) in bytes.iter().enumerate() {
                *matched = needle.step(*matched, byte);
                if *matched as usize == needle.bytes.len() {
                    let start = self.num_seen + i + 1 - needle.bytes.len();
                    let found = (start, needle.bytes.len(), index);
                    earliest = Some(earliest.map_or(found, |other| other.min(found)));
                }
            }
        }
        self.num_seen += bytes.len();
        earliest.map(|(start, _, index)| StopMatch { start, index })
    }

    /// Reads on where nothing may match yet.
    pub fn skip(&mut self, bytes: &[u8]) {
        self.num_seen += bytes.len();
        self.matched.fill(0);
    }

    /// Text before this byte cannot be part of a match any more.
    pub fn safe_end(&self) -> usize {
        self.num_seen - self.matched.iter().max().map_or(0, |held| *held as usize)
    }
}

impl Needle {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes().to_vec();
        assert!(!bytes.is_empty(), "an empty stop string matches everywhere");
        let mut needle = Self {
            fallback: vec![0; bytes.len() + 1],
            bytes,
        };
        for n in 1..needle.bytes.len() {
            needle.fallback[n + 1] = needle.step(needle.fallback[n], needle.bytes[n]);
        }
        needle
    }

    /// How much is matched after one more byte.
    fn step(&self, mut matched: u32, byte: u8) -> u32 {
        loop {
            if self.bytes.get(matched as usize) == Some(&byte) {
                return matched + 1;
            }
            if matched == 0 {
                return 0;
            }
            matched = self.fallback[matched as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `tokens`; returns what is emitted and whether a stop was found.
    fn run(stops: &[&str], tokens: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(StopStrings::new(stops));
        let (text, mut emitted) = (tokens.concat(), 0);
        for token in tokens {
            if let Some(StopMatch { start, .. }) = matcher.push(token.as_bytes()) {
                assert!(start >= emitted, "emitted part of a match");
                return (text[..start].into(), true);
            }
            assert!(matcher.safe_end() >= emitted, "what is safe stays safe");
            emitted = matcher.safe_end();
        }
        (text, false)
    }

    #[test]
    fn ends_before_the_earliest_match() {
        let check = |stops: &[&str], tokens: &[&str], expect: &str| {
            assert_eq!(run(stops, tokens).0, expect, "{stops:?} in {tokens:?}");
        };
        check(&["b"], &["abc"], "a");
        check(&["abc"], &["a", "b", "c", "d"], "");
        check(&["END"], &["x E", "N", "D y"], "x ");
        check(&["END"], &["x E", "N", "d y"], "x ENd y");
        check(&["aab"], &["a", "a", "a", "b"], "a");
        check(&["aabaaa"], &["aabaa", "baaa"], "aab");
        check(&["c", "bcd"], &["abcd"], "a");
        check(&["bc", "c"], &["a", "b", "c"], "a");
        check(&["\n\n"], &["a\n", "\nb"], "a");
        check(&["é"], &["caf", "é!"], "caf");
    }

    #[test]
    fn holds_back_only_what_may_match() {
        let mut matcher = StopMatcher::new(StopStrings::new(&["stop", "op"]));
        matcher.push(b"xsto");
        assert_eq!(matcher.safe_end(), 1);
        matcher.push(b"-");
        assert_eq!(matcher.safe_end(), 5);
    }

    #[test]
    fn nothing_matches_in_what_is_skipped() {
        let mut matcher = StopMatcher::new(StopStrings::new(&["ab"]));
        matcher.skip(b"aba");
        assert_eq!(matcher.push(b"b"), None);
        let found = StopMatch { start: 4, index: 0 };
        assert_eq!(matcher.push(b"ab"), Some(found));
    }

    #[test]
    fn tells_which_string_was_found() {
        let check = |stops: &[&str], text: &str, expect: &str| {
            let stops = StopStrings::new(stops);
            let found = StopMatcher::new(stops.clone()).push(text.as_bytes());
            assert_eq!(stops.get(found.unwrap().index), expect, "{text}");
        };
        check(&["b", "a"], "xab", "a");
        check(&["cd", "bcd"], "abcd", "bcd");
        check(&["ab", "a"], "ab", "a");
        check(&["é", "z"], "zé", "z");
    }

    proptest! {
        #[test]
        fn agrees_with_search(
            text in "[ab]{0,40}",
            stops in prop::collection::vec("[ab]{1,5}", 1..4),
            cuts in prop::collection::vec(1usize..5, 0..40),
        ) {
            let mut tokens = Vec::new();
            let mut rest = text.as_str();
            for cut in cuts {
                let (token, tail) = rest.split_at(cut.min(rest.len()));
                tokens.push(token);
                rest = tail;
            }
            tokens.push(rest);
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            // The first token by whose end some stop has occurred; there the leftmost start.
            let mut seen = 0;
            let expect = tokens.iter().find_map(|token| {
                seen += token.len();
                stops.iter().filter_map(|stop| text[..seen].find(stop)).min()
            });
            let (emitted, stopped) = run(&stops, &tokens);
            prop_assert_eq!(stopped, expect.is_some());
            prop_assert_eq!(emitted, &text[..expect.unwrap_or(text.len())]);
        }
    }
}
