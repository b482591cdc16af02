//! Prefix caches of hybrid models, policy against policy, on traces of conversations.
//!
//! | file | is |
//! |---|---|
//! | `workload` | what clients send: sessions of turns, from a seed |
//! | `tree` | prompts as paths; snapshots on them, and the memory that they and their KV take |
//! | `peers` | no cache, block-aligned checkpoints, plain LRU, Marconi, and what hindsight could do |
//! | `ours` | the real scheduler over the real caches |
//! | `report` | tables and a plot |
//!
//! The device is one H200 that serves Super: a state of 162 MiB, 4 KiB of KV a token, prompts computed
//! at 20,000 tokens/s. Requests are served one after the other in order of arrival, so that a policy is
//! judged by what it keeps and by nothing else; time to first token is that of a queue before one
//! server which only computes prompts.
//!
//! `cargo bench -p nemoserve-benches-pure --bench prefix_cache -- [--svg FILE]`

mod ours;
mod peers;
mod report;
mod tree;
mod workload;

use workload::{Request, Workload};

/// Bytes of a state, KV of a token, and of both together that the caches may hold.
const STATE_BYTES: u64 = 162 << 20;
const TOKEN_BYTES: u64 = 4 << 10;
const CACHE_BYTES: u64 = 56 << 30;
/// Prompt tokens computed in a second.
const PREFILL_RATE: f64 = 20_000.0;

/// What one policy made of one workload.
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    /// Prompt tokens that needed no computing, per request.
    pub(crate) hits: Vec<u32>,
}

impl Outcome {
    /// Share of all prompt tokens.
    pub(crate) fn hit_rate(&self, requests: &[Request]) -> f64 {
        let total: u64 = requests.iter().map(|r| u64::from(r.prompt_len())).sum();
        let hits: u64 = self.hits.iter().map(|hit| u64::from(*hit)).sum();
        hits as f64 / total as f64
    }

    /// Times to first token in seconds, ascending: waiting for those before, then one's own prompt.
    pub(crate) fn times_to_first_token(&self, requests: &[Request]) -> Vec<f64> {
        let mut free_at = 0.0_f64;
        let mut times: Vec<f64> = requests
            .iter()
            .zip(&self.hits)
            .map(|(request, hit)| {
                let computed = f64::from(request.prompt_len() - hit);
                free_at = free_at.max(request.arrival) + computed / PREFILL_RATE;
                free_at - request.arrival
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut svg = None;
    let mut only = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--svg" => svg = arguments.next(),
            "--only" => only = arguments.next(),
            // `cargo bench` adds flags of its own.
            _ => {}
        }
    }
    let mut rows = Vec::new();
    for Workload { name, requests } in workload::all() {
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let mut outcomes = peers::all(&requests);
        let at = outcomes.len() - 2;
        outcomes.insert(at, ours::serve(&requests));
        report::print(name, &requests, &outcomes);
        rows.push(report::Row::new(name, &requests, &outcomes));
    }
    if let Some(path) = svg {
        std::fs::write(&path, report::svg(&rows)).expect("the plot can be written");
        println!("plot: {path}");
    }
}
