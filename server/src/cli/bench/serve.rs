//! Requests as clients send them: so many streams at once, or so many a second.

mod html;
mod lengths;
mod outcome;
mod plot;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use self::html::Run;
use self::lengths::Lengths;
use self::outcome::{Objectives, Outcomes, Recorder, Timing};
use self::target::{Dialect, Target};
use super::report::Report;
use super::samples::Numbers;
use super::{BenchError, open, report};
use crate::args::BenchServeArgs;
use crate::cli::client::Server;

/// Why requests failed, of each run.
const MAX_REASONS: usize = 8;

type Answers = Vec<Result<Timing, String>>;

pub(super) fn run(args: &BenchServeArgs) -> Result<Report, BenchError> {
    check(args)?;
    let lengths = Arc::new(Lengths::new(args).map_err(BenchError::Usage)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Failed(error.to_string()))?;
    let (target, mut report) = match &args.url {
        Some(url) => reach(url, args, &runtime)?,
        None => start(args, &lengths, &runtime)?,
    };
    // A server that was asked before remembers: only who wants the same prompts again gets them.
    let seed = args.serve.seed.unwrap_or_else(|| match target {
        Target::Engine { .. } => 0,
        Target::Url { .. } => now(),
    });
    if let Some(path) = &args.dataset {
        report.about("dataset", path.display().to_string());
    } else {
        report.about("input_tokens", args.input_len.clone());
        report.about("output_tokens", args.output_len.clone());
    }
    report.about("turns", args.turns);
    report.about("reused_share", args.reuse);
    report.about("seed", seed);
    let objectives = Objectives {
        ttft_ms: args.slo_ttft_ms,
        itl_ms: args.slo_itl_ms,
    };
    if let Some(ms) = objectives.ttft_ms {
        report.about("slo_ttft_ms", ms);
    }
    if let Some(ms) = objectives.itl_ms {
        report.about("slo_itl_ms", ms);
    }
    let rates: Vec<Option<f64>> = match &args.rate[..] {
        [] => vec![None],
        rates => rates.iter().copied().map(Some).collect(),
    };
    let target = Arc::new(target);
    let mut runs = Vec::new();
    for (number, rate) in rates.into_iter().enumerate() {
        let load = Load {
            args: args.clone(),
            lengths: Arc::clone(&lengths),
            rate,
            salt: seed.wrapping_add((number as u64) << 56),
        };
        let outcomes = runtime.block_on(measure(&target, Arc::new(load)))?;
        let load = json!({
            "streams": rate.is_none().then_some(args.streams),
            "rate_per_s": rate,
        });
        report.row(outcomes.row(&load, objectives));
        for (why, num) in outcomes.failures.iter().take(MAX_REASONS) {
            report.note(format!("{num} failed: {why}"));
        }
        runs.push(Run { rate, outcomes });
    }
    if let Some(path) = &args.html {
        let page = html::page(&report, &runs, objectives);
        let written = std::fs::write(path, page);
        written
            .map_err(|error| BenchError::Failed(format!("--html {}: {error}", path.display())))?;
    }
    Ok(report)
}

fn check(args: &BenchServeArgs) -> Result<(), BenchError> {
    let wrong = |what: &str| Err(BenchError::Usage(what.into()));
    if args.streams == 0 || args.requests == 0 || args.turns == 0 {
        return wrong("--streams, --requests and --turns are at least 1");
    }
    if !(0.0..1.0).contains(&args.reuse) {
        return wrong("--reuse is a share from 0 to less than 1");
    }
    if args.reuse > 0.0 && (args.turns > 1 || args.chat) {
        return wrong("--reuse stands for turns: it goes with neither --turns nor --chat");
    }
    if (args.chat || args.plain) && args.url.is_none() {
        return wrong("--chat and --plain are about how a server is asked: they want --url");
    }
    let is_positive = |number: &f64| *number > 0.0 && number.is_finite();
    if !args.rate.iter().all(is_positive) {
        return wrong("--rate is a positive number of requests per second");
    }
    if !args
        .slo_ttft_ms
        .iter()
        .chain(&args.slo_itl_ms)
        .all(is_positive)
    {
        return wrong("--slo-ttft-ms and --slo-itl-ms are positive");
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

fn reach(
    url: &str,
    args: &BenchServeArgs,
    runtime: &Runtime,
) -> Result<(Target, Report), BenchError> {
    let fail = BenchError::Failed;
    let server = Server::new(url, args.key.clone(), args.cacert.as_deref()).map_err(fail)?;
    let mut names = args.serve.served_model_name.iter().flatten();
    let model = match names.next() {
        Some(name) => name.clone(),
        None => runtime.block_on(server.first_model()).map_err(fail)?,
    };
    let mut report = Report::new("serve");
    report.about("url", server.base());
    report.about("model", model.clone());
    report.about_load();
    let target = Target::Url {
        server: Box::new(server),
        model,
        dialect: Dialect {
            chat: args.chat,
            plain: args.plain,
        },
    };
    Ok((target, report))
}

fn start(
    args: &BenchServeArgs,
    lengths: &Lengths,
    runtime: &Runtime,
) -> Result<(Target, Report), BenchError> {
    let mut serve = args.serve.clone();
    serve.max_num_seqs.get_or_insert(args.streams);
    let longest = lengths.longest().saturating_mul(args.turns);
    serve.max_model_len.get_or_insert(longest);
    let opened = open(&serve)?;
    let report = report("serve", &opened, &serve);
    let vocab_size = opened.info().vocab_size;
    let handle = opened.start()?;
    let ready = runtime.block_on(handle.ready());
    ready.map_err(|error| BenchError::Failed(error.to_string()))?;
    Ok((Target::Engine { handle, vocab_size }, report))
}

/// What one run sends.
struct Load {
    args: BenchServeArgs,
    lengths: Arc<Lengths>,
    /// Conversations per second; `None`: as fast as they are answered.
    rate: Option<f64>,
    salt: u64,
}

async fn measure(target: &Arc<Target>, load: Arc<Load>) -> Result<Outcomes, BenchError> {
    if load.args.reuse > 0.0 {
        load.tell_histories(target)
            .await
            .map_err(BenchError::Failed)?;
    }
    let recorder = Arc::new(Recorder::new());
    let answers = match load.rate {
        None => closed_loop(target, &load, &recorder).await,
        Some(rate) => open_loop(target, &load, &recorder, rate).await,
    };
    let recorder = Arc::into_inner(recorder).expect("all who were asked have answered");
    let outcomes = recorder.finish(answers);
    match outcomes.failures.keys().next() {
        Some(why) if outcomes.timings.is_empty() => Err(BenchError::Failed(why.clone())),
        _ => Ok(outcomes),
    }
}

/// Every stream goes on as soon as it has its answer.
async fn closed_loop(target: &Arc<Target>, load: &Arc<Load>, recorder: &Arc<Recorder>) -> Answers {
    let num_asked = Arc::new(AtomicU32::new(0));
    let mut streams = JoinSet::new();
    for stream in 0..load.args.streams {
        let (target, load) = (Arc::clone(target), Arc::clone(load));
        let (num_asked, recorder) = (Arc::clone(&num_asked), Arc::clone(recorder));
        streams.spawn(async move {
            let mut answers = Vec::new();
            loop {
                let first = num_asked.fetch_add(load.args.turns, Ordering::Relaxed);
                if first >= load.args.requests {
                    return answers;
                }
                let due = Instant::now();
                answers.extend(load.converse(&target, &recorder, stream, first, due).await);
            }
        });
    }
    streams.join_all().await.into_iter().flatten().collect()
}

/// Conversations begin when they do, whether or not others have been answered; time runs from when one
/// was due.
async fn open_loop(
    target: &Arc<Target>,
    load: &Arc<Load>,
    recorder: &Arc<Recorder>,
    rate: f64,
) -> Answers {
    let mut numbers = Numbers::new(load.salt);
    let mut due = Instant::now();
    let mut conversations = JoinSet::new();
    for conversation in 0..load.args.requests.div_ceil(load.args.turns) {
        due += numbers.wait(rate);
        tokio::time::sleep_until(due.into()).await;
        let (target, load) = (Arc::clone(target), Arc::clone(load));
        let recorder = Arc::clone(recorder);
        conversations.spawn(async move {
            let stream = conversation % load.args.streams;
            let first = conversation * load.args.turns;
            load.converse(&target, &recorder, stream, first, due).await
        });
    }
    let answers = conversations.join_all().await;
    answers.into_iter().flatten().collect()
}

impl Load {
    /// One conversation, from request `first` on, to its last turn or the first that fails.
    async fn converse(
        &self,
        target: &Target,
        recorder: &Recorder,
        stream: u32,
        first: u32,
        mut due: Instant,
    ) -> Answers {
        let mut answers = Vec::new();
        let mut said = target.nothing();
        let end = self
            .args
            .requests
            .min(first.saturating_add(self.args.turns));
        for request in first..end {
            let mut numbers = self.numbers(1, request);
            let pair = self.lengths.of(request, &mut numbers);
            let known = self.num_reused(pair.input);
            if known > 0 {
                target.say(&mut said, self.numbers(0, stream).draw(), known);
            }
            target.say(&mut said, numbers.draw(), pair.input - known);
            let answer = target.ask(&mut said, pair.output, due, recorder).await;
            let is_over = answer.is_err();
            answers.push(answer);
            if is_over {
                return answers;
            }
            due = Instant::now();
        }
        answers
    }

    /// What conversations begin with, computed and kept before the clock starts.
    async fn tell_histories(&self, target: &Arc<Target>) -> Result<(), String> {
        let longest = (0..self.args.requests).map(|request| {
            self.lengths
                .of(request, &mut self.numbers(1, request))
                .input
        });
        let longest = self.num_reused(longest.max().unwrap_or(0));
        let mut known = JoinSet::new();
        for stream in 0..self.args.streams {
            let target = Arc::clone(target);
            let salt = self.numbers(0, stream).draw();
            known.spawn(async move {
                let mut said = target.nothing();
                target.say(&mut said, salt, longest);
                target.say(&mut said, salt.wrapping_add(1), 1);
                let unheard = Recorder::new();
                target.ask(&mut said, 1, Instant::now(), &unheard).await
            });
        }
        let answers: Result<Vec<Timing>, String> = known.join_all().await.into_iter().collect();
        answers.map(|_| ())
    }

    /// Tokens of a prompt that its conversation has seen.
    fn num_reused(&self, input: u32) -> u32 {
        (f64::from(input) * self.args.reuse) as u32
    }

    /// Of a stream (kind 0) or a request (kind 1) of this run, and of no other.
    fn numbers(&self, kind: u64, index: u32) -> Numbers {
        let place = (kind << 32) + u64::from(index);
        Numbers::new(Numbers::new(self.salt ^ place.rotate_left(16)).draw())
    }
}

/// In whole pieces, as plots want it.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// A rate as the key of a series.
fn name_of(rate: Option<f64>) -> String {
    rate.map_or_else(|| "closed loop".into(), |rate| format!("{rate} per s"))
}

/// For a page: what a row says under a key.
fn number_in(row: &serde_json::Map<String, Value>, key: &str) -> Option<f64> {
    row.get(key).and_then(Value::as_f64)
}
