//! How long prompts and answers are: always so long, drawn evenly, or as somebody's were.

use std::path::Path;

use serde::Deserialize;

use crate::args::BenchServeArgs;
use crate::cli::bench::samples::Numbers;

/// Tokens of each request.
#[derive(Debug)]
pub(super) enum Lengths {
    Drawn {
        input: Range,
        output: Range,
    },
    /// In order, over and over.
    Listed(Vec<Pair>),
}

/// From the first to the second, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    low: u32,
    high: u32,
}

/// One request. The names are those of published traces of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Pair {
    #[serde(rename = "input_length", alias = "input_len", alias = "prompt_tokens")]
    pub(super) input: u32,
    #[serde(
        rename = "output_length",
        alias = "output_len",
        alias = "completion_tokens"
    )]
    pub(super) output: u32,
}

impl Lengths {
    pub(super) fn new(args: &BenchServeArgs) -> Result<Self, String> {
        if let Some(path) = &args.dataset {
            return Self::read(path).map_err(|why| format!("--dataset {}: {why}", path.display()));
        }
        Ok(Self::Drawn {
            input: Range::new("--input-len", &args.input_len, 2)?,
            output: Range::new("--output-len", &args.output_len, 1)?,
        })
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let mut pairs = Vec::new();
        for (at, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let pair: Pair =
                serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1))?;
            if pair.input < 2 || pair.output < 1 {
                return Err(format!(
                    "line {}: at least 2 tokens in and 1 out, not {} and {}",
                    at + 1,
                    pair.input,
                    pair.output
                ));
            }
            pairs.push(pair);
        }
        if pairs.is_empty() {
            return Err("names no request".into());
        }
        Ok(Self::Listed(pairs))
    }

    /// Of one request.
    pub(super) fn of(&self, request: u32, numbers: &mut Numbers) -> Pair {
        match self {
            Self::Drawn { input, output } => Pair {
                input: input.draw(numbers),
                output: output.draw(numbers),
            },
            Self::Listed(pairs) => pairs[request as usize % pairs.len()],
        }
    }

    /// Tokens of the longest request.
    pub(super) fn longest(&self) -> u32 {
        match self {
            Self::Drawn { input, output } => input.high.saturating_add(output.high),
            Self::Listed(pairs) => {
                let sums = pairs
                    .iter()
                    .map(|pair| pair.input.saturating_add(pair.output));
                sums.max().expect("there is one")
            }
        }
    }
}

impl Range {
    fn new(flag: &str, text: &str, least: u32) -> Result<Self, String> {
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        match (low.parse(), high.parse()) {
            (Ok(low), Ok(high)) if least <= low && low <= high => Ok(Self { low, high }),
            _ => Err(format!(
                "{flag} {text} is neither a number from {least} on nor LOW..HIGH"
            )),
        }
    }

    fn draw(self, numbers: &mut Numbers) -> u32 {
        let span = u64::from(self.high - self.low) + 1;
        self.low + (numbers.draw() % span) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_kept() {
        let read = |text| Range::new("--x", text, 2);
        assert_eq!(read("7"), Ok(Range { low: 7, high: 7 }));
        assert_eq!(read("2..9"), Ok(Range { low: 2, high: 9 }));
        for text in ["", "1", "x", "9..2", "2..", "-1..3", "1..3", "2..3..4"] {
            assert!(read(text).is_err_and(|why| why.contains("--x")), "{text}");
        }
        let mut numbers = Numbers::new(3);
        let drawn: Vec<u32> = (0..200)
            .map(|_| Range { low: 2, high: 5 }.draw(&mut numbers))
            .collect();
        for value in 2..=5 {
            assert!(drawn.contains(&value), "{value} never came");
        }
        assert!(drawn.iter().all(|value| (2..=5).contains(value)));
    }

    #[test]
    fn a_trace_is_read_line_by_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("trace.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("writable");
            Lengths::read(&path)
        };
        let text = "{\"timestamp\": 27, \"input_length\": 6, \"output_length\": 3, \"hash_ids\": [1]}\n\n\
                    {\"prompt_tokens\": 9, \"completion_tokens\": 2}\n";
        let lengths = read(text).expect("it is sound");
        let mut numbers = Numbers::new(0);
        let inputs: Vec<u32> = (0..3)
            .map(|at| lengths.of(at, &mut numbers).input)
            .collect();
        assert_eq!((inputs, lengths.longest()), (vec![6, 9, 6], 11));
        for (text, says) in [
            ("", "no request"),
            ("{\"input_length\": 6}", "line 1"),
            ("\n{\"input_length\": 1, \"output_length\": 1}", "line 2"),
        ] {
            assert!(read(text).expect_err(text).contains(says), "{text}");
        }
    }
}
