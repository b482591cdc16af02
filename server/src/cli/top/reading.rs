//! What two scrapes say together.

use std::collections::VecDeque;
use std::time::Duration;

use super::exposition::{Buckets, Exposition};

/// Looks that are remembered.
const MAX_HISTORY: usize = 240;

/// What an operator wants to know now. Rates and quantiles are of the time between two scrapes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) model: String,
    /// Version, device and arithmetic.
    pub(super) build: String,
    pub(super) running: Option<f64>,
    pub(super) waiting: Option<f64>,
    /// Tokens and requests per second.
    pub(super) generation_rate: Option<f64>,
    pub(super) prompt_rate: Option<f64>,
    pub(super) request_rate: Option<f64>,
    /// Share of prompt tokens that needed no computing: lately, and in all.
    pub(super) cached_lately: Option<f64>,
    pub(super) cached: Option<f64>,
    pub(super) time_to_first_token: Latency,
    pub(super) inter_token: Latency,
    pub(super) queue: Latency,
    pub(super) whole: Latency,
    pub(super) blocks: Option<Pool>,
    pub(super) slots: Option<Pool>,
    /// Why hits were not longer, in all.
    pub(super) misses: Vec<(String, f64)>,
    /// Drafts and how many came true, lately or else in all.
    pub(super) drafts: Option<(f64, f64)>,
    /// Drafts that came true by position, in all.
    pub(super) accepted_by_position: Vec<(String, f64)>,
    pub(super) preemptions: Option<f64>,
    pub(super) evictions: Option<f64>,
    /// Answers by the first digit of their status, in all.
    pub(super) answers: Vec<(String, f64)>,
    pub(super) cancelled: Option<f64>,
    pub(super) heartbeat_age: Option<f64>,
}

/// Quantiles in seconds; `None` where nothing came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latency {
    pub(super) p50: Option<f64>,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
}

/// Something there is so much of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pool {
    pub(super) used: f64,
    /// Kept for reuse.
    pub(super) cached: f64,
    pub(super) total: f64,
}

/// What is drawn as a line.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Tokens per second.
    pub(super) generation: VecDeque<u64>,
    pub(super) waiting: VecDeque<u64>,
}

impl History {
    pub(super) fn note(&mut self, reading: &Reading) {
        for (line, value) in [
            (&mut self.generation, reading.generation_rate),
            (&mut self.waiting, reading.waiting),
        ] {
            line.push_back(value.unwrap_or(0.0).round() as u64);
            if line.len() > MAX_HISTORY {
                line.pop_front();
            }
        }
    }
}

impl Reading {
    /// `before` was seen so long ago; without it there are no rates, and quantiles are of all time.
    pub(super) fn new(now: &Exposition, before: Option<(&Exposition, Duration)>) -> Self {
        let look = Look { now, before };
        let latency = |names: [&str; 2]| look.latency(names);
        let prompt = ["nemoserve_prompt_tokens_total", "vllm:prompt_tokens_total"];
        let hits = [
            "nemoserve_cached_prompt_tokens_total",
            "vllm:prefix_cache_hits_total",
        ];
        let drafts = [
            "nemoserve_draft_tokens_total",
            "vllm:spec_decode_num_draft_tokens_total",
        ];
        let accepted = [
            "nemoserve_accepted_draft_tokens_total",
            "vllm:spec_decode_num_accepted_tokens_total",
        ];
        let share = |part: Option<f64>, whole: Option<f64>| match (part, whole) {
            (Some(part), Some(whole)) if whole > 0.0 => Some(part / whole),
            _ => None,
        };
        let lately = (look.rise(drafts), look.rise(accepted));
        let drafted = match lately {
            (Some(drafts), Some(accepted)) if drafts > 0.0 => Some((drafts, accepted)),
            _ => look.any(drafts).zip(look.any(accepted)),
        };
        Self {
            model: look.model(),
            build: look.build(),
            running: look.any(["nemoserve_requests_running", "vllm:num_requests_running"]),
            waiting: look.any(["nemoserve_requests_waiting", "vllm:num_requests_waiting"]),
            generation_rate: look.rate([
                "nemoserve_generation_tokens_total",
                "vllm:generation_tokens_total",
            ]),
            prompt_rate: look.rate(prompt),
            request_rate: look.rate(["nemoserve_requests_total", "vllm:request_success_total"]),
            cached_lately: share(look.rise(hits), look.rise(prompt)),
            cached: share(look.any(hits), look.any(prompt)),
            time_to_first_token: latency([
                "nemoserve_time_to_first_token_seconds",
                "vllm:time_to_first_token_seconds",
            ]),
            inter_token: latency([
                "nemoserve_inter_token_latency_seconds",
                "vllm:inter_token_latency_seconds",
            ]),
            queue: latency([
                "nemoserve_request_queue_time_seconds",
                "vllm:request_queue_time_seconds",
            ]),
            whole: latency([
                "nemoserve_request_duration_seconds",
                "vllm:e2e_request_latency_seconds",
            ]),
            blocks: look.blocks(),
            slots: look.pool("nemoserve_state_slots"),
            misses: now.by("nemoserve_prefix_cache_misses_total", "reason"),
            drafts: drafted.filter(|(drafts, _)| *drafts > 0.0),
            accepted_by_position: now.by(
                "nemoserve_accepted_draft_tokens_by_position_total",
                "position",
            ),
            preemptions: look.any(["nemoserve_preemptions_total", "vllm:num_preemptions_total"]),
            evictions: now.sum("nemoserve_prefix_cache_evictions_total", &[]),
            answers: look.answers(),
            cancelled: now.sum("nemoserve_requests_cancelled_total", &[]),
            heartbeat_age: now.sum("nemoserve_engine_heartbeat_age_seconds", &[]),
        }
    }
}

struct Look<'a> {
    now: &'a Exposition,
    before: Option<(&'a Exposition, Duration)>,
}

impl Look<'_> {
    /// By whichever name there is.
    fn any(&self, names: [&str; 2]) -> Option<f64> {
        names.iter().find_map(|name| self.now.sum(name, &[]))
    }

    /// How much a counter rose.
    fn rise(&self, names: [&str; 2]) -> Option<f64> {
        let (before, _) = self.before?;
        let now = self.any(names)?;
        let then = names.iter().find_map(|name| before.sum(name, &[]))?;
        // One that fell began anew.
        Some(if now >= then { now - then } else { now })
    }

    fn rate(&self, names: [&str; 2]) -> Option<f64> {
        let (_, ago) = self.before?;
        let seconds = ago.as_secs_f64();
        (seconds > 0.0).then_some(self.rise(names)? / seconds)
    }

    /// Of what came lately, or else of all there was.
    fn latency(&self, names: [&str; 2]) -> Latency {
        let of = |exposition: &Exposition| -> Option<Buckets> {
            names.iter().find_map(|name| exposition.buckets(name))
        };
        let Some(now) = of(self.now) else {
            return Latency::default();
        };
        let before = self.before.and_then(|(before, _)| of(before));
        let buckets = match before {
            Some(before) => {
                let news = now.since(&before);
                if news.total() > 0.0 { news } else { now }
            }
            None => now,
        };
        Latency {
            p50: buckets.quantile(0.5),
            p90: buckets.quantile(0.9),
            p99: buckets.quantile(0.99),
        }
    }

    fn pool(&self, name: &str) -> Option<Pool> {
        let state = |state: &str| self.now.sum(name, &[("state", state)]);
        Some(Pool {
            used: state("used")?,
            cached: state("cached")?,
            total: state("total")?,
        })
    }

    /// Other servers tell a share only.
    fn blocks(&self) -> Option<Pool> {
        self.pool("nemoserve_kv_blocks").or_else(|| {
            Some(Pool {
                used: 100.0 * self.now.sum("vllm:kv_cache_usage_perc", &[])?,
                cached: 0.0,
                total: 100.0,
            })
        })
    }

    fn model(&self) -> String {
        let name = "vllm:num_requests_running";
        let model = self.now.label(name, "model_name");
        model
            .unwrap_or("a server without a model's name")
            .to_owned()
    }

    fn build(&self) -> String {
        let part = |label| self.now.label("nemoserve_build_info", label);
        let parts = ["version", "device", "dtype"].into_iter().filter_map(part);
        parts.collect::<Vec<_>>().join(", ")
    }

    fn answers(&self) -> Vec<(String, f64)> {
        let mut sums: Vec<(String, f64)> = Vec::new();
        for (status, num) in self.now.by("nemoserve_requests_total", "status") {
            let class = format!("{}xx", &status[..status.len().min(1)]);
            match sums.iter_mut().find(|(known, _)| *known == class) {
                Some((_, sum)) => *sum += num,
                None => sums.push((class, num)),
            }
        }
        sums.sort_by(|a, b| a.0.cmp(&b.0));
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Exposition {
        Exposition::parse(text).expect("it is well-formed")
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let before =
            read("nemoserve_generation_tokens_total 100\nnemoserve_prompt_tokens_total 10\n");
        let now = read("nemoserve_generation_tokens_total 150\nnemoserve_prompt_tokens_total 4\n");
        let two_seconds = Duration::from_secs(2);
        let reading = Reading::new(&now, Some((&before, two_seconds)));
        assert_eq!(reading.generation_rate, Some(25.0));
        assert_eq!(reading.prompt_rate, Some(2.0), "it began anew");
        let first = Reading::new(&now, None);
        assert_eq!(first.generation_rate, None);
    }

    #[test]
    fn another_servers_names_will_do() {
        let now = read(
            "vllm:num_requests_running{model_name=\"m\"} 3\nvllm:kv_cache_usage_perc 0.25\n\
             vllm:prompt_tokens_total 100\nvllm:prefix_cache_hits_total 40\n",
        );
        let reading = Reading::new(&now, None);
        assert_eq!(reading.running, Some(3.0));
        assert_eq!(reading.model, "m");
        assert_eq!(reading.cached, Some(0.4));
        let blocks = reading.blocks.expect("a share");
        assert_eq!((blocks.used, blocks.total), (25.0, 100.0));
        assert_eq!(reading.slots, None);
    }

    #[test]
    fn answers_are_told_by_their_first_digit() {
        let now = read(
            "nemoserve_requests_total{route=\"/a\",status=\"200\"} 5\n\
             nemoserve_requests_total{route=\"/a\",status=\"429\"} 2\n\
             nemoserve_requests_total{route=\"/b\",status=\"404\"} 1\n",
        );
        let answers = Reading::new(&now, None).answers;
        assert_eq!(answers, [("2xx".to_owned(), 5.0), ("4xx".to_owned(), 3.0)]);
    }
}
