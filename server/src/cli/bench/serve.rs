//! Requests as clients send them: so many streams at once, or so many a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use engine::{EngineHandle, StreamEvent};
use http::Method;
use http_body_util::BodyExt as _;
use scheduler::{Request, SamplingParams, TenantId};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::report::Report;
use super::samples::{Numbers, Samples};
use super::{BenchError, open, prompt, report};
use crate::args::BenchServeArgs;
use crate::cli::client::{Lines, Server};

/// Ids that every vocabulary has and no tokenizer gives a meaning of its own.
const FOREIGN_VOCAB: u32 = 900;

/// Who answers.
enum Target {
    Engine {
        handle: EngineHandle,
        vocab_size: u32,
    },
    Url {
        server: Box<Server>,
        model: String,
    },
}

/// One request, in time.
#[derive(Default)]
struct Timing {
    ttft: Duration,
    /// Between tokens; nothing between those that came together.
    gaps: Vec<Duration>,
    num_tokens: u64,
}

pub(super) fn run(args: BenchServeArgs) -> Result<Report, BenchError> {
    check(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Failed(error.to_string()))?;
    let (target, mut report) = match &args.url {
        Some(url) => {
            let fail = BenchError::Failed;
            let server = Server::new(url, args.key.clone()).map_err(fail)?;
            let model = runtime.block_on(server.first_model()).map_err(fail)?;
            let mut report = Report::new("serve");
            report.about("url", server.base());
            report.about("model", model.clone());
            report.about_load();
            (
                Target::Url {
                    server: Box::new(server),
                    model,
                },
                report,
            )
        }
        None => start(&args, &runtime)?,
    };
    report.about("input_tokens", args.input_len);
    report.about("output_tokens", args.output_len);
    report.about("reused_share", args.reuse);
    let row = runtime.block_on(measure(Arc::new(target), args))?;
    report.row(row);
    Ok(report)
}

fn check(args: &BenchServeArgs) -> Result<(), BenchError> {
    let wrong = |what: &str| Err(BenchError::Usage(what.into()));
    if args.streams == 0 || args.requests == 0 || args.output_len == 0 {
        return wrong("--streams, --requests and --output-len are at least 1");
    }
    if args.input_len < 2 {
        return wrong("--input-len is at least 2");
    }
    if !(0.0..1.0).contains(&args.reuse) {
        return wrong("--reuse is a share from 0 to less than 1");
    }
    if args
        .rate
        .is_some_and(|rate| !(rate > 0.0 && rate.is_finite()))
    {
        return wrong("--rate is a positive number of requests per second");
    }
    Ok(())
}

fn start(
    args: &BenchServeArgs,
    runtime: &tokio::runtime::Runtime,
) -> Result<(Target, Report), BenchError> {
    let mut serve = args.serve.clone();
    serve.max_num_seqs.get_or_insert(args.streams);
    serve
        .max_model_len
        .get_or_insert(args.input_len + args.output_len);
    let opened = open(&serve)?;
    let report = report("serve", &opened, &serve);
    let vocab_size = opened.info().vocab_size;
    let handle = opened.start()?;
    let ready = runtime.block_on(handle.ready());
    ready.map_err(|error| BenchError::Failed(error.to_string()))?;
    Ok((Target::Engine { handle, vocab_size }, report))
}

async fn measure(target: Arc<Target>, args: BenchServeArgs) -> Result<Value, BenchError> {
    let args = Arc::new(args);
    let fail = BenchError::Failed;
    // Conversations so far: computed and kept before the clock starts.
    if args.num_reused() > 0 {
        let mut known = JoinSet::new();
        for stream in 0..args.streams {
            let (target, args) = (Arc::clone(&target), Arc::clone(&args));
            known.spawn(async move {
                let mut prompt = target.prompt(stream.into(), args.num_reused());
                prompt.push(0);
                target.ask(prompt, 1, Instant::now()).await
            });
        }
        for outcome in known.join_all().await {
            outcome.map_err(fail)?;
        }
    }
    let begin = Instant::now();
    let timings = match args.rate {
        None => closed_loop(&target, &args).await,
        Some(rate) => open_loop(&target, &args, rate).await,
    };
    let elapsed = begin.elapsed().as_secs_f64();
    let timings = timings.map_err(fail)?;
    let (mut ttft, mut gaps) = (Samples::default(), Samples::default());
    let mut num_tokens = 0;
    for timing in &timings {
        ttft.add_ms(timing.ttft);
        gaps.extend(timing.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3));
        num_tokens += timing.num_tokens;
    }
    Ok(json!({
        "streams": args.rate.is_none().then_some(args.streams),
        "rate_per_s": args.rate,
        "requests": timings.len(),
        "tokens": num_tokens,
        "seconds": elapsed,
        "tokens_per_s": num_tokens as f64 / elapsed,
        "input_tokens_per_s": timings.len() as f64 * f64::from(args.input_len) / elapsed,
        "ttft_ms_p50": ttft.percentile(50.0),
        "ttft_ms_p90": ttft.percentile(90.0),
        "ttft_ms_p99": ttft.percentile(99.0),
        "itl_ms_p50": gaps.percentile(50.0),
        "itl_ms_p90": gaps.percentile(90.0),
        "itl_ms_p99": gaps.percentile(99.0),
    }))
}

/// Every stream asks again as soon as it has its answer.
async fn closed_loop(
    target: &Arc<Target>,
    args: &Arc<BenchServeArgs>,
) -> Result<Vec<Timing>, String> {
    let num_asked = Arc::new(AtomicU32::new(0));
    let mut streams = JoinSet::new();
    for stream in 0..args.streams {
        let (target, args) = (Arc::clone(target), Arc::clone(args));
        let num_asked = Arc::clone(&num_asked);
        streams.spawn(async move {
            let mut timings = Vec::new();
            loop {
                let request = num_asked.fetch_add(1, Ordering::Relaxed);
                if request >= args.requests {
                    return Ok(timings);
                }
                let prompt = target.turn(&args, stream, request);
                timings.push(target.ask(prompt, args.output_len, Instant::now()).await?);
            }
        });
    }
    let timings: Result<Vec<Vec<Timing>>, String> = streams.join_all().await.into_iter().collect();
    Ok(timings?.into_iter().flatten().collect())
}

/// Requests come when they come, whether or not others have been answered; time runs from when one
/// was due.
async fn open_loop(
    target: &Arc<Target>,
    args: &Arc<BenchServeArgs>,
    rate: f64,
) -> Result<Vec<Timing>, String> {
    let mut numbers = Numbers::new(args.serve.seed.unwrap_or(0));
    let mut due = Instant::now();
    let mut requests = JoinSet::new();
    for request in 0..args.requests {
        due += numbers.wait(rate);
        tokio::time::sleep_until(due.into()).await;
        let (target, args) = (Arc::clone(target), Arc::clone(args));
        requests.spawn(async move {
            let prompt = target.turn(&args, request % args.streams, request);
            target.ask(prompt, args.output_len, due).await
        });
    }
    requests.join_all().await.into_iter().collect()
}

impl BenchServeArgs {
    /// Tokens of a prompt that its conversation has seen.
    fn num_reused(&self) -> u32 {
        (f64::from(self.input_len) * self.reuse) as u32
    }
}

impl Target {
    fn prompt(&self, salt: u64, len: u32) -> Vec<u32> {
        match self {
            Self::Engine { vocab_size, .. } => prompt(salt, len, *vocab_size),
            Self::Url { .. } => prompt(salt, len, FOREIGN_VOCAB),
        }
    }

    /// What a conversation says next: all that is known, and something new.
    fn turn(&self, args: &BenchServeArgs, stream: u32, request: u32) -> Vec<u32> {
        let mut prompt = self.prompt(stream.into(), args.num_reused());
        let salt = (1 << 32) + u64::from(request);
        prompt.extend(self.prompt(salt, args.input_len - args.num_reused()));
        prompt
    }

    async fn ask(&self, prompt: Vec<u32>, num_tokens: u32, due: Instant) -> Result<Timing, String> {
        let mut clock = Clock::new(due);
        match self {
            Self::Engine { handle, .. } => {
                let request = Request {
                    id: handle.next_request_id(),
                    prompt: prompt.into(),
                    sampling: Arc::new(SamplingParams {
                        max_tokens: num_tokens,
                        ..SamplingParams::default()
                    }),
                    num_choices: 1,
                    cache_salt: "".into(),
                    boundaries: Arc::default(),
                    priority: 0,
                    tenant: TenantId::default(),
                    tenant_weight: 1,
                };
                let stream = handle.submit(request, None);
                let mut stream = stream.map_err(|error| error.to_string())?;
                while let Some(event) = stream.next().await {
                    match event {
                        StreamEvent::Output(output) => clock.hear(output.tokens.len() as u64),
                        StreamEvent::Failed(why) => return Err(why),
                    }
                }
            }
            Self::Url { server, model } => {
                let body = json!({
                    "model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0,
                    "ignore_eos": true, "stream": true,
                });
                let sent = server.send(Method::POST, "/v1/completions", body.to_string());
                let mut response = sent.await?;
                let mut lines = Lines::default();
                while let Some(frame) = response.frame().await {
                    let frame = frame.map_err(|error| format!("the stream broke off: {error}"))?;
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    for event in lines.push(&data) {
                        clock.hear(num_texts(&event)?);
                    }
                }
            }
        }
        // Tokens that have no text of their own are not heard over a wire; the end is.
        if clock.timing.num_tokens == 0 {
            clock.hear(1);
        }
        Ok(clock.timing)
    }
}

/// Texts in an event of a stream of completions: as good as tokens, as far as times go.
fn num_texts(event: &str) -> Result<u64, String> {
    let Ok(event) = serde_json::from_str::<Value>(event) else {
        // The stream's end is no JSON.
        return Ok(0);
    };
    if let Some(message) = event["error"]["message"].as_str() {
        return Err(message.to_owned());
    }
    let text = event["choices"][0]["text"].as_str().unwrap_or("");
    Ok(u64::from(!text.is_empty()))
}

struct Clock {
    last: Instant,
    timing: Timing,
}

impl Clock {
    fn new(due: Instant) -> Self {
        Self {
            last: due,
            timing: Timing::default(),
        }
    }

    fn hear(&mut self, num_tokens: u64) {
        if num_tokens == 0 {
            return;
        }
        let since = self.last.elapsed();
        self.last += since;
        if self.timing.num_tokens == 0 {
            self.timing.ttft = since;
        } else {
            self.timing.gaps.push(since);
        }
        // What came together came at once.
        let together = num_tokens.saturating_sub(1) as usize;
        self.timing.gaps.extend(vec![Duration::ZERO; together]);
        self.timing.num_tokens += num_tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_first_or_a_gap() {
        let mut clock = Clock::new(Instant::now());
        for num_tokens in [0, 1, 0, 3, 1] {
            clock.hear(num_tokens);
        }
        assert_eq!((clock.timing.num_tokens, clock.timing.gaps.len()), (5, 4));
    }

    #[test]
    fn events_are_read() {
        assert_eq!(num_texts("[DONE]"), Ok(0));
        assert_eq!(num_texts(r#"{"choices":[{"text":"a"}]}"#), Ok(1));
        assert_eq!(num_texts(r#"{"choices":[{"text":""}]}"#), Ok(0));
        assert_eq!(
            num_texts(r#"{"error":{"message":"no"}}"#),
            Err("no".to_owned())
        );
    }
}
