//! The stop matcher against looking again from the start after every token.

use nemoserve::text::{StopMatch, StopMatcher, StopStrings};

use crate::Target;
use crate::mutate::Rng;

/// An input is needles and tokens, a line each, needles first and an empty line between.
pub(crate) struct Stops;

impl Target for Stops {
    fn input(&mut self, rng: &mut Rng) -> Vec<u8> {
        // Few letters, so that much matches nearly.
        let word = |rng: &mut Rng, max: usize| -> String {
            let num = 1 + rng.below(max);
            (0..num)
                .map(|_| *rng.pick(&['a', 'b', 'é', '🦀']))
                .collect()
        };
        let num_needles = 1 + rng.below(4);
        let needles: Vec<_> = (0..num_needles).map(|_| word(rng, 6)).collect();
        let num_tokens = 1 + rng.below(12);
        let tokens: Vec<_> = (0..num_tokens).map(|_| word(rng, 4)).collect();
        // Tokens may hold parts of characters.
        let cut = if rng.one_in(2) { "cut" } else { "whole" };
        [needles.join("\n"), tokens.join("\n"), cut.into()]
            .join("\n\n")
            .into_bytes()
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let input = std::str::from_utf8(input).expect("made above");
        let mut parts = input
            .split("\n\n")
            .map(|part| part.split('\n').collect::<Vec<_>>());
        let mut part = || parts.next().expect("three parts");
        let (needles, tokens, cut) = (part(), part(), part());
        let tokens: Vec<&[u8]> = match cut[0] {
            "cut" => tokens
                .iter()
                .flat_map(|token| token.as_bytes().chunks(3))
                .collect(),
            _ => tokens.iter().map(|token| token.as_bytes()).collect(),
        };
        let mut matcher = StopMatcher::new(StopStrings::new(&needles));
        let mut text = Vec::new();
        for token in tokens {
            text.extend_from_slice(token);
            let (found, expected) = (matcher.push(token), first(&needles, &text));
            if found != expected {
                return Err(format!("{found:?}, not {expected:?} in {text:?}"));
            }
            if let Some(StopMatch { start, index }) = found {
                return Ok(format!("{start} {index}"));
            }
            let held = needles
                .iter()
                .map(|needle| held(needle.as_bytes(), &text))
                .max();
            let safe = text.len() - held.unwrap_or(0);
            if matcher.safe_end() != safe {
                return Err(format!(
                    "safe to {}, not {safe}: {text:?}",
                    matcher.safe_end()
                ));
            }
        }
        Ok("none".into())
    }

    fn keep(&mut self, _: Vec<u8>) {}
}

fn first(needles: &[&str], text: &[u8]) -> Option<StopMatch> {
    let starts = |needle: &str| {
        text.windows(needle.len())
            .position(|w| w == needle.as_bytes())
    };
    let found = needles
        .iter()
        .enumerate()
        .filter_map(|(index, needle)| Some((starts(needle)?, needle.len(), index)));
    found
        .min()
        .map(|(start, _, index)| StopMatch { start, index })
}

/// How much of the end of `text` begins `needle`.
fn held(needle: &[u8], text: &[u8]) -> usize {
    let longest = needle.len().min(text.len() + 1) - 1;
    (0..=longest)
        .rev()
        .find(|n| text.ends_with(&needle[..*n]))
        .unwrap_or(0)
}
