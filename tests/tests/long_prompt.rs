//! A very long prompt: the same answer from small chunks, from large ones, and beside streams, which
//! hardly notice it.
//!
//! ```sh
//! NEMOSERVE_LONG_PROMPT=1000000 cargo test --workspace --test long_prompt -- --nocapture
//! ```
//!
//! prints how long that took and what it did to the streams; the default length takes seconds. Beside
//! streams a prompt gets what they leave, hours for a million tokens: with `NEMOSERVE_LONG_PROMPT_BESIDE=N`
//! only its last N tokens are computed beside them, where each costs most, and the rest is cached.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::{DeviceChoice, Engine, EngineConfig, EngineHandle, ModelSource, StreamEvent};
use nemoserve_tests::answers::Ask;
use nemoserve_tests::tiny;
use scheduler::SamplingParams;

const VOCABULARY: u32 = 97;
const DEFAULT_LEN: u32 = 12_000;
const NUM_STREAMS: usize = 8;
/// How much slower prompts may make a step.
const SLOWDOWN: u32 = 2;
/// Of a stream that ends and begins again until the prompt is done.
const STREAM_LEN: u32 = 2000;
/// The default.
const BLOCK_SIZE: u32 = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
}

fn start(folder: &Path, prompt_len: u32, change: impl FnOnce(&mut EngineConfig)) -> EngineHandle {
    let mut config = EngineConfig {
        device: DeviceChoice::Cpu,
        max_model_len: Some(prompt_len + 100),
        max_num_seqs: NUM_STREAMS as u32 + 1,
        cache_memory_bytes: Some(1 << 30),
        ..EngineConfig::new(ModelSource::Dummy {
            folder: folder.to_owned(),
            seed: 3,
        })
    };
    change(&mut config);
    let opened = Engine::open(config).expect("the model is good");
    opened.start().expect("a thread starts")
}

fn ask(prompt: Vec<u32>, max_tokens: u32) -> Ask {
    Ask {
        prompt,
        params: SamplingParams {
            max_tokens,
            temperature: 1.0,
            seed: 5,
            logprobs: Some(0),
            ..SamplingParams::default()
        },
        ..Ask::default()
    }
}

fn prompt(len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 7) % VOCABULARY)
        .collect()
}

/// What the model says to the prompt, of which `num_cached` tokens or up to a block less are known.
async fn answer(handle: &EngineHandle, prompt_len: u32, num_cached: u32) -> (Answer, Duration) {
    let begin = Instant::now();
    let mut stream = ask(prompt(prompt_len), 8).submit(handle);
    let (mut tokens, mut logprobs, mut first) = (Vec::new(), Vec::new(), None);
    while let Some(event) = stream.next().await {
        let StreamEvent::Output(output) = event else {
            panic!("{event:?}");
        };
        let known = num_cached.saturating_sub(BLOCK_SIZE)..=num_cached;
        assert!(known.contains(&output.num_cached_tokens), "{output:?}");
        first.get_or_insert(begin.elapsed());
        tokens.extend(output.tokens);
        logprobs.extend(output.logprobs.iter().map(|of| of.logprob.to_bits()));
    }
    assert_eq!(tokens.len(), 8);
    (
        Answer { tokens, logprobs },
        first.expect("it said something"),
    )
}

/// Gaps between the tokens of a stream, which begins anew until it is told to stop.
async fn gaps(handle: EngineHandle, number: u32, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut gaps = Vec::new();
    for round in 0.. {
        let prompt = (0..20).map(|i| (i * 7 + number + round) % VOCABULARY);
        let mut stream = ask(prompt.collect(), STREAM_LEN).submit(&handle);
        let mut last = None;
        while let Some(event) = stream.next().await {
            let StreamEvent::Output(_) = event else {
                panic!("{event:?}");
            };
            gaps.extend(last.map(|last: Instant| last.elapsed()));
            last = Some(Instant::now());
            if stop.load(Ordering::Relaxed) {
                return gaps;
            }
        }
    }
    gaps
}

/// Runs the streams as long as `alongside` takes; its outcome and all their gaps, ascending.
async fn beside<T>(
    handle: &EngineHandle,
    alongside: impl Future<Output = T>,
) -> (T, Vec<Duration>) {
    let stop = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..NUM_STREAMS as u32)
        .map(|number| tokio::spawn(gaps(handle.clone(), number, Arc::clone(&stop))))
        .collect();
    let outcome = alongside.await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for stream in streams {
        all.extend(stream.await.expect("a stream does not panic"));
    }
    all.sort();
    (outcome, all)
}

/// A length in the environment.
fn length(name: &str) -> Option<u32> {
    let length = std::env::var(name).ok()?;
    Some(length.parse().expect("a number of tokens"))
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_prompt_is_the_same_in_any_chunks_and_company() {
    let len = length("NEMOSERVE_LONG_PROMPT").unwrap_or(DEFAULT_LEN);
    let beside_len = length("NEMOSERVE_LONG_PROMPT_BESIDE").unwrap_or(len);

    let folder = tiny::folder(tiny::LONG_CONTEXT);
    let folder = folder.path();

    let mut expect = None;
    for budget in [8192, 512] {
        let handle = start(folder, len, |config| config.max_num_batched_tokens = budget);
        handle.ready().await.expect("it loads");
        let (got, time) = answer(&handle, len, 0).await;
        println!("{len} tokens, {budget} a step: first token after {time:.1?}");
        let expect = expect.get_or_insert_with(|| got.clone());
        assert_eq!(*expect, got, "{budget} tokens a step");
    }

    let handle = start(folder, len, |config| {
        config.max_decode_slowdown = Some(SLOWDOWN);
    });
    handle.ready().await.expect("it loads");
    let num_cached = len.saturating_sub(beside_len);
    if num_cached > 0 {
        let mut stream = ask(prompt(num_cached), 1).submit(&handle);
        while stream.next().await.is_some() {}
    }
    let quiet = tokio::time::sleep(Duration::from_secs(2));
    let ((), alone) = beside(&handle, quiet).await;
    let ((got, time), busy) = beside(&handle, async {
        // All streams are under way.
        tokio::time::sleep(Duration::from_millis(500)).await;
        answer(&handle, len, num_cached).await
    })
    .await;
    println!(
        "beside {NUM_STREAMS} streams, {num_cached} tokens cached: first token after {time:.1?}"
    );
    for (percent, name) in [(50, "median"), (99, "p99"), (100, "longest")] {
        let (alone, busy) = (percentile(&alone, percent), percentile(&busy, percent));
        let times = busy.as_secs_f64() / alone.as_secs_f64();
        println!(
            "gap between tokens, {name}: {alone:.2?} alone, {busy:.2?} beside it, {times:.2} times"
        );
    }
    assert_eq!(expect, Some(got), "beside streams");
    // They ran all the while.
    assert!(busy.len() > 100, "{} tokens", busy.len());
}
