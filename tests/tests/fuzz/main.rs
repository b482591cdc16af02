//! Mutated inputs against the front end for some seconds, with what must hold for any input at all.
//!
//! No instrumented build: Burn would be compiled once more for it. What an answer looks like (status,
//! error code, parameter, kinds of events) stands in for coverage: an input that brings something new
//! joins the corpus and is mutated further.
//!
//! | variable | is |
//! |---|---|
//! | `FUZZ_SECONDS` | in all, shared among the targets; default 4 |
//! | `FUZZ_SEED` | of the first target; default 1 |
//! | `FUZZ_TARGET` | only this one |
//!
//! `cargo test --workspace --test fuzz` runs them; `FUZZ_SECONDS=1500 FUZZ_SEED=$RANDOM` is a long run.
//! A finding prints its input and fails.

mod answers;
mod bodies;
mod client;
mod mutate;
mod stops;
mod turns;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nemoserve::serve;
use nemoserve_tests::front_end::{self, Size};
use scheduler::Runner;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::mutate::Rng;

/// Small, so that a request for everything is soon over.
const SIZE: Size = Size {
    max_model_len: 512,
    max_num_seqs: 128,
    num_blocks: 1 << 13,
};

/// Something to fuzz.
trait Target {
    /// A new input, or a known one changed.
    fn input(&mut self, rng: &mut Rng) -> Vec<u8>;
    /// Tries it. The signature says what kind of thing happened; the error, what must never happen.
    fn run(&mut self, input: &[u8]) -> Result<String, String>;
    /// It brought something new.
    fn keep(&mut self, input: Vec<u8>);
}

type Make = fn(&Runtime) -> Box<dyn Target>;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_) => default,
    };
    let (seconds, seed) = (number("FUZZ_SECONDS", 4), number("FUZZ_SEED", 1));
    let only = std::env::var("FUZZ_TARGET").ok();
    let runtime = Runtime::new().expect("a runtime starts");
    let targets: [(&str, Make); 4] = [
        ("bodies", |runtime| Box::new(bodies::Bodies::new(runtime))),
        ("answers", |runtime| {
            Box::new(answers::Answers::new(runtime))
        }),
        ("turns", |runtime| Box::new(turns::Turns::new(runtime))),
        ("stops", |_| Box::new(stops::Stops)),
    ];
    let targets: Vec<_> = targets
        .into_iter()
        .filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name))
        .collect();
    assert!(!targets.is_empty(), "no such target: {only:?}");
    let each = Duration::from_secs(seconds) / targets.len() as u32;
    let mut failed = 0;
    for (i, (name, make)) in targets.iter().enumerate() {
        let mut target = make(&runtime);
        let seed = seed.wrapping_add(i as u64);
        if let Err(finding) = fuzz(name, target.as_mut(), each, seed) {
            println!("FAILED fuzz {name}, seed {seed}: {finding}");
            failed += 1;
        }
    }
    runtime.shutdown_background();
    if failed > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn fuzz(name: &str, target: &mut dyn Target, time: Duration, seed: u64) -> Result<(), String> {
    let mut rng = Rng(seed);
    let mut seen = HashSet::new();
    let (mut num_inputs, end) = (0_u64, Instant::now() + time);
    while Instant::now() < end {
        let input = target.input(&mut rng);
        num_inputs += 1;
        match target.run(&input) {
            Ok(signature) => {
                if seen.insert(signature) {
                    target.keep(input);
                }
            }
            Err(what) => {
                let input = String::from_utf8_lossy(&input).into_owned();
                return Err(format!(
                    "input {num_inputs}: {what}\n{input}\nas Rust: {input:?}"
                ));
            }
        }
    }
    assert!(num_inputs > 0, "no time for {name}");
    println!(
        "ok     fuzz {name}, seed {seed}: {num_inputs} inputs, {} kinds of answers",
        seen.len()
    );
    Ok(())
}

/// The front end on some port, until the process ends.
fn server<R: Runner + Send + 'static>(
    runtime: &Runtime,
    runner: impl FnOnce(u32) -> R,
) -> SocketAddr {
    let state = Arc::new(front_end::state(SIZE, runner));
    runtime.block_on(async {
        state.engine.ready().await.expect("nothing to load");
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(serve(listener, state, std::future::pending()));
        address
    })
}
