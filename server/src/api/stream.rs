//! A generation as server-sent events.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::unfold;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use super::flavour::Flavour;
use super::flavours::openrouter;
use super::generation::Generation;
use super::types::{Envelope, Usage, UsageField};
use crate::error::ApiError;
use crate::router::our_bug;
use crate::sse;
use crate::state::{AppState, RequestContext, Response};

/// Bytes after which a frame goes out even if more news waits.
const FULL_FRAME: usize = 16 << 10;

/// What all answers and chunks of one request have in common.
pub struct Head {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Of whole answers, and of chunks.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// As requested.
    pub model: String,
    /// Chat only.
    pub service_tier: Option<&'static str>,
    /// Build, weights and configuration.
    pub fingerprint: String,
    /// Whether a stream ends with usage.
    pub include_usage: bool,
    /// Whose error bodies a stream that fails ends with.
    pub flavour: Flavour,
    /// For those error bodies.
    pub request_id: Arc<str>,
}

/// Writes the events of one flavour.
pub trait Chunks: Send + 'static {
    /// Before the first token.
    fn open(&mut self, generation: &mut Generation, frame: &mut Vec<u8>);
    /// News of one choice.
    fn update(&mut self, generation: &mut Generation, choice: usize, frame: &mut Vec<u8>);
    /// The last bytes, after the last token or because of an error.
    fn close(&mut self, generation: &mut Generation, error: Option<&ApiError>, frame: &mut Vec<u8>);
    /// What breaks a silence that has grown too long.
    fn keep_alive(&self) -> &'static [u8] {
        sse::keep_alive(Flavour::OpenAi)
    }
}

impl Head {
    /// For a request that was just admitted.
    pub fn new(ctx: &RequestContext, prefix: &str, object: &'static str, model: String) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let id = super::params::unique_id(prefix);
        ctx.name_generation(&id, &model);
        Self {
            id,
            object,
            created: now.map_or(0, |since| since.as_secs()),
            model,
            service_tier: None,
            fingerprint: ctx.state.info.fingerprint.clone(),
            include_usage: false,
            flavour: ctx.flavour,
            request_id: Arc::clone(&ctx.request_id),
        }
    }

    /// A whole answer.
    pub fn answer<'a, C>(&'a self, choices: &'a [C], usage: &'a Usage) -> Envelope<'a, C> {
        self.envelope(choices, UsageField::Counts(usage))
    }

    /// Writes one chunk.
    pub fn chunk<C: Serialize>(&self, choice: C, frame: &mut Vec<u8>) {
        // OpenRouter's own clients refuse a `null` here.
        let nulls = self.include_usage && self.flavour != Flavour::OpenRouter;
        let usage = if nulls {
            UsageField::Null
        } else {
            UsageField::Absent
        };
        write(&self.envelope(&[choice], usage), frame);
    }

    /// Ends a stream: with usage if it was asked for, or with what went wrong.
    pub fn close(
        &self,
        generation: &mut Generation,
        error: Option<&ApiError>,
        frame: &mut Vec<u8>,
    ) {
        if let (Some(error), Flavour::OpenRouter) = (error, self.flavour) {
            write(&openrouter::failure(self, error, generation), frame);
        } else if let Some(error) = error {
            sse::error(error, self.flavour, &self.request_id, frame);
        } else if self.include_usage {
            let usage = generation.usage();
            write(&self.envelope::<()>(&[], UsageField::Counts(&usage)), frame);
        }
        frame.extend_from_slice(sse::DONE);
    }

    fn envelope<'a, C>(&'a self, choices: &'a [C], usage: UsageField<'a>) -> Envelope<'a, C> {
        Envelope {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model,
            provider: (self.flavour == Flavour::OpenRouter).then_some(openrouter::PROVIDER),
            system_fingerprint: &self.fingerprint,
            service_tier: self.service_tier,
            choices,
            usage,
        }
    }
}

/// Answers with a stream; its headers go out at once.
pub fn respond<C: Chunks>(ctx: &RequestContext, mut generation: Generation, chunks: C) -> Response {
    generation.streams();
    let silence = ctx.state.config.sse_keepalive;
    let body = Body {
        generation,
        chunks,
        state: Arc::clone(&ctx.state),
        request_id: Arc::clone(&ctx.request_id),
        part: Part::Opening,
        silence,
        keep_alive: Box::pin(sleep(silence)),
    };
    sse::response(unfold(body, |mut body| async move {
        let frame = AssertUnwindSafe(body.frame()).catch_unwind().await;
        let frame = frame.unwrap_or_else(|_| Some(body.break_off()))?;
        Some((frame, body))
    }))
}

/// How far the body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Opening,
    Running,
    Over,
}

struct Body<C> {
    generation: Generation,
    chunks: C,
    state: Arc<AppState>,
    request_id: Arc<str>,
    part: Part,
    silence: Duration,
    keep_alive: Pin<Box<Sleep>>,
}

impl<C: Chunks> Body<C> {
    /// The next bytes to send; `None` after the last.
    async fn frame(&mut self) -> Option<Bytes> {
        let mut frame = Vec::with_capacity(512);
        match self.part {
            Part::Opening => {
                self.part = Part::Running;
                self.chunks.open(&mut self.generation, &mut frame);
            }
            Part::Running => {
                while frame.is_empty() {
                    self.run(&mut frame).await;
                }
            }
            Part::Over => return None,
        }
        self.keep_alive
            .as_mut()
            .reset(Instant::now() + self.silence);
        Some(frame.into())
    }

    /// Waits for news or for silence to grow too long.
    async fn run(&mut self, frame: &mut Vec<u8>) {
        let news = tokio::select! {
            biased;
            news = self.generation.next() => news,
            () = &mut self.keep_alive => return frame.extend_from_slice(self.chunks.keep_alive()),
        };
        let mut news = Some(news);
        // What came in the same step goes out together.
        while let Some(outcome) = news {
            match outcome {
                Ok(Some(choice)) => self.chunks.update(&mut self.generation, choice, frame),
                Ok(None) => return self.close(None, frame),
                Err(error) => return self.close(Some(&error), frame),
            }
            if frame.len() >= FULL_FRAME {
                return;
            }
            news = self.generation.next().now_or_never();
        }
    }

    /// A panic is our bug and this client's alone, who is told as of any error. What was not sent yet is lost.
    /// If not even that can be written, the panic goes on and the answer is broken off.
    fn break_off(&mut self) -> Bytes {
        let error = our_bug(&self.request_id, &self.state.metrics);
        self.generation.fail();
        let mut frame = Vec::new();
        self.close(Some(&error), &mut frame);
        frame.into()
    }

    fn close(&mut self, error: Option<&ApiError>, frame: &mut Vec<u8>) {
        self.part = Part::Over;
        // Before the client knows that it is over, so that whoever asks next finds it counted.
        self.generation.settle();
        if let Some(error) = error {
            let request_id = &*self.request_id;
            tracing::warn!(request_id, error = error.message, "a stream failed");
        }
        self.chunks.close(&mut self.generation, error, frame);
    }
}

fn write<T: Serialize>(chunk: &T, frame: &mut Vec<u8>) {
    sse::begin(frame);
    serde_json::to_writer(&mut *frame, chunk).expect("our own types are JSON");
    sse::end(frame);
}
