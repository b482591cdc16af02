//! What became of each request, and of all together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Tokens are counted by time in pieces of this length.
pub(super) const PIECE: Duration = Duration::from_millis(100);

/// What a request must keep to be worth anything to its client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Objectives {
    pub(super) ttft_ms: Option<f64>,
    pub(super) itl_ms: Option<f64>,
}

/// One request, in time.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    /// When it should have been sent, from the beginning of the run.
    pub(super) due: Duration,
    /// How much later it was: the generator's own fault.
    late: Duration,
    /// From when it was due.
    pub(super) ttft: Duration,
    /// From when it was due to the last token.
    pub(super) total: Duration,
    pub(super) num_tokens: u64,
    prompt_tokens: u64,
    /// Where the server tells.
    cached_tokens: Option<u64>,
}

/// Sees every token of a run.
pub(super) struct Recorder {
    begin: Instant,
    heard: Mutex<Heard>,
}

struct Heard {
    /// Between tokens, in microseconds; 0 between those that came together.
    gaps: Histogram<u64>,
    /// Tokens in each piece of time.
    pieces: Vec<u64>,
}

/// Times one request.
pub(super) struct Clock<'a> {
    due: Instant,
    sent: Instant,
    first: Option<Instant>,
    last: Instant,
    timing: Timing,
    recorder: &'a Recorder,
}

/// A whole run.
pub(super) struct Outcomes {
    pub(super) timings: Vec<Timing>,
    /// Why requests failed, and how many for that reason.
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) gaps: Histogram<u64>,
    pub(super) pieces: Vec<u64>,
    pub(super) elapsed: Duration,
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are few enough")
}

/// Not `saturating_record`, which keeps a histogram as narrow as it is.
fn note(times: &mut Histogram<u64>, micros: u64, num: u64) {
    times
        .record_n(micros, num)
        .expect("a histogram of microseconds grows to any time that passes");
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

impl Recorder {
    pub(super) fn new() -> Self {
        let heard = Heard {
            gaps: histogram(),
            pieces: Vec::new(),
        };
        Self {
            begin: Instant::now(),
            heard: Mutex::new(heard),
        }
    }

    fn hear(&self, gap: Option<Duration>, num_tokens: u64) {
        let piece = self.begin.elapsed().as_nanos() / PIECE.as_nanos();
        let piece = piece as usize;
        let mut heard = self.heard.lock();
        // The first has no gap before it; what came together came at once.
        if let Some(gap) = gap {
            note(&mut heard.gaps, micros(gap), 1);
        }
        if num_tokens > 1 {
            note(&mut heard.gaps, 0, num_tokens - 1);
        }
        if heard.pieces.len() <= piece {
            heard.pieces.resize(piece + 1, 0);
        }
        heard.pieces[piece] += num_tokens;
    }

    /// Ends the run.
    pub(super) fn finish(self, answers: Vec<Result<Timing, String>>) -> Outcomes {
        let elapsed = self.begin.elapsed();
        let Heard { gaps, pieces } = self.heard.into_inner();
        let mut failures = BTreeMap::new();
        let mut timings = Vec::new();
        for answer in answers {
            match answer {
                Ok(timing) => timings.push(timing),
                Err(why) => *failures.entry(why).or_default() += 1,
            }
        }
        Outcomes {
            timings,
            failures,
            gaps,
            pieces,
            elapsed,
        }
    }
}

impl<'a> Clock<'a> {
    /// Runs from when the request is due; it is sent now.
    pub(super) fn new(due: Instant, recorder: &'a Recorder) -> Self {
        let sent = Instant::now();
        Self {
            due,
            sent,
            first: None,
            last: due,
            timing: Timing::default(),
            recorder,
        }
    }

    /// So many tokens came together.
    pub(super) fn hear(&mut self, num_tokens: u64) {
        if num_tokens == 0 {
            return;
        }
        let now = Instant::now();
        let gap = self.first.map(|_| now - self.last);
        self.recorder.hear(gap, num_tokens);
        self.first.get_or_insert(now);
        self.last = now;
        self.timing.num_tokens += num_tokens;
    }

    /// What the server says there was, which is more to be believed than what could be told apart.
    pub(super) fn count(&mut self, prompt: u64, completion: u64, cached: Option<u64>) {
        self.timing.prompt_tokens = prompt;
        self.timing.cached_tokens = cached;
        self.timing.num_tokens = completion;
    }

    pub(super) fn stop(mut self) -> Timing {
        // Tokens that have no text of their own are not heard over a wire; the end is.
        if self.first.is_none() {
            let counted = self.timing.num_tokens;
            self.hear(1);
            self.timing.num_tokens = counted.max(1);
        }
        let first = self.first.expect("just heard");
        Timing {
            due: self.due.saturating_duration_since(self.recorder.begin),
            late: self.sent.saturating_duration_since(self.due),
            ttft: first.saturating_duration_since(self.due),
            total: self.last.saturating_duration_since(self.due),
            ..self.timing
        }
    }
}

impl Timing {
    /// The mean time between its tokens; `None` of one alone.
    fn mean_gap(&self) -> Option<Duration> {
        let num_gaps = self.num_tokens.checked_sub(1).filter(|num| *num > 0)?;
        let after_first = self.total.saturating_sub(self.ttft);
        Some(after_first.div_f64(num_gaps as f64))
    }

    pub(super) fn is_good(&self, objectives: Objectives) -> bool {
        let keeps = |time: Duration, ms: Option<f64>| {
            ms.is_none_or(|most| time.as_secs_f64() * 1e3 <= most)
        };
        keeps(self.ttft, objectives.ttft_ms)
            && self
                .mean_gap()
                .is_none_or(|gap| keeps(gap, objectives.itl_ms))
    }
}

impl Outcomes {
    fn of(&self, time: impl Fn(&Timing) -> Duration) -> Histogram<u64> {
        let mut all = histogram();
        for timing in &self.timings {
            note(&mut all, micros(time(timing)), 1);
        }
        all
    }

    pub(super) fn ttfts(&self) -> Histogram<u64> {
        self.of(|timing| timing.ttft)
    }

    /// The row of the report.
    pub(super) fn row(&self, load: &Value, objectives: Objectives) -> Value {
        let seconds = self.elapsed.as_secs_f64();
        let sum = |of: fn(&Timing) -> u64| self.timings.iter().map(of).sum::<u64>();
        let (ttft, total) = (self.ttfts(), self.of(|timing| timing.total));
        let num_tokens = sum(|timing| timing.num_tokens);
        let prompt_tokens = sum(|timing| timing.prompt_tokens);
        let cached: Option<u64> = self.timings.iter().map(|timing| timing.cached_tokens).sum();
        let cached = cached.filter(|_| prompt_tokens > 0);
        let num_failed: u64 = self.failures.values().sum();
        let num_all = self.timings.len() as u64 + num_failed;
        let has_objectives = objectives.ttft_ms.or(objectives.itl_ms).is_some();
        let good = self
            .timings
            .iter()
            .filter(|timing| timing.is_good(objectives));
        let num_good = has_objectives.then_some(good.count());
        let mut row = load.clone();
        let rest = json!({
            "requests": self.timings.len(),
            "failed": num_failed,
            "tokens": num_tokens,
            "seconds": seconds,
            "tokens_per_s": num_tokens as f64 / seconds,
            "input_tokens_per_s": prompt_tokens as f64 / seconds,
            "requests_per_s": self.timings.len() as f64 / seconds,
            "cached_share": cached.map(|cached| cached as f64 / prompt_tokens as f64),
            "ttft_ms_p50": percentile(&ttft, 0.5),
            "ttft_ms_p90": percentile(&ttft, 0.9),
            "ttft_ms_p99": percentile(&ttft, 0.99),
            "itl_ms_p50": percentile(&self.gaps, 0.5),
            "itl_ms_p90": percentile(&self.gaps, 0.9),
            "itl_ms_p99": percentile(&self.gaps, 0.99),
            "total_ms_p50": percentile(&total, 0.5),
            "total_ms_p99": percentile(&total, 0.99),
            "sent_late_ms_p99": percentile(&self.of(|timing| timing.late), 0.99),
            "good_share": num_good.map(|good| good as f64 / num_all as f64),
            "good_per_s": num_good.map(|good| good as f64 / seconds),
        });
        let (Value::Object(row_fields), Value::Object(rest)) = (&mut row, rest) else {
            unreachable!("rows are objects");
        };
        row_fields.extend(rest);
        row
    }
}

/// In milliseconds; `None` of none.
pub(super) fn percentile(times: &Histogram<u64>, quantile: f64) -> Option<f64> {
    (!times.is_empty()).then(|| times.value_at_quantile(quantile) as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(ttft_ms: u64, total_ms: u64, num_tokens: u64) -> Timing {
        Timing {
            ttft: Duration::from_millis(ttft_ms),
            total: Duration::from_millis(total_ms),
            num_tokens,
            ..Timing::default()
        }
    }

    #[test]
    fn a_token_has_a_first_or_a_gap() {
        let recorder = Recorder::new();
        let mut clock = Clock::new(Instant::now(), &recorder);
        for num_tokens in [0, 1, 0, 3, 1] {
            clock.hear(num_tokens);
        }
        assert_eq!(clock.stop().num_tokens, 5);
        let mut clock = Clock::new(Instant::now(), &recorder);
        clock.hear(3);
        clock.stop();
        let outcomes = recorder.finish(Vec::new());
        assert_eq!(outcomes.gaps.len(), 4 + 2);
        assert_eq!(outcomes.pieces.iter().sum::<u64>(), 8);
    }

    #[test]
    fn what_the_server_counts_is_believed() {
        let recorder = Recorder::new();
        let mut clock = Clock::new(Instant::now(), &recorder);
        clock.hear(1);
        clock.count(10, 7, Some(4));
        assert_eq!(clock.stop().num_tokens, 7);
        // An answer of tokens without text.
        let mut clock = Clock::new(Instant::now(), &recorder);
        clock.count(10, 2, None);
        assert_eq!(clock.stop().num_tokens, 2);
    }

    #[test]
    fn good_requests_keep_both_objectives() {
        let both = Objectives {
            ttft_ms: Some(100.0),
            itl_ms: Some(10.0),
        };
        for (timing, expect) in [
            (timing(100, 190, 10), true),
            (timing(101, 150, 10), false),
            (timing(50, 150, 10), false),
            (timing(100, 100, 1), true),
        ] {
            assert_eq!(timing.is_good(both), expect, "{timing:?}");
            assert!(timing.is_good(Objectives::default()));
        }
    }

    #[test]
    fn failures_are_counted_and_are_not_good() {
        let mut answers = vec![Ok(timing(10, 20, 2)), Ok(timing(500, 600, 2))];
        answers.extend(vec![Err("429".to_owned()); 2]);
        let outcomes = Recorder::new().finish(answers);
        let objectives = Objectives {
            ttft_ms: Some(100.0),
            itl_ms: None,
        };
        let row = outcomes.row(&json!({"rate_per_s": 2.0}), objectives);
        assert_eq!(row["rate_per_s"], 2.0);
        assert_eq!((&row["requests"], &row["failed"]), (&json!(2), &json!(2)));
        assert_eq!(row["good_share"], 0.25);
        assert_eq!(outcomes.failures["429"], 2);
        let ttft = row["ttft_ms_p99"].as_f64().expect("there is one");
        assert!((499.0..501.0).contains(&ttft), "{ttft}");
        let row = outcomes.row(&json!({}), Objectives::default());
        assert!(row["good_share"].is_null() && row["itl_ms_p50"].is_null());
    }
}
