//! All prompts and choices of one HTTP request, in flight.
//!
//! Dropping it drops the engine's streams, which aborts what still runs.

mod settle;

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use constraint::Guide;
use engine::{EngineStatus, RequestStream, StreamEvent, SubmitError};
use futures_util::stream::{BoxStream, SelectAll, StreamExt as _, unfold};
use http::StatusCode;
use scheduler::{
    AdmissionError, FinishReason, Request, RequestOutput, SamplingParams, TokenLogprobs,
};
use tokio::time::{Sleep, sleep_until};

use super::choice::{Choice, ChoiceOptions, Finish, TokenText, token_text};
use super::types::{PromptScore, PromptScores, Usage};
use crate::admission::{self, Cause};
use crate::error::ApiError;
use crate::state::RequestContext;
use crate::text::Detokenizer;

/// What is asked of the engine for one prompt.
pub struct PromptRequest {
    /// The prompt.
    pub ids: Arc<[u32]>,
    /// Parameters, `max_tokens` included.
    pub sampling: Arc<SamplingParams>,
    /// What its choices must obey.
    pub guide: Option<Arc<Guide>>,
    /// Lengths of prefixes that its client wants cached, beside those at which messages begin.
    pub breakpoints: Vec<u32>,
}

/// How all choices of a request are made.
pub struct GenerationOptions {
    /// Choices per prompt, candidates included.
    pub num_choices: u32,
    /// Prefix hits only among equal salts.
    pub cache_salt: Arc<str>,
    /// Higher goes first, unless a header says otherwise; `None`: what the key's terms say.
    pub priority: Option<i8>,
    /// Whether answers begin with their prompt.
    pub echo: bool,
    /// The parameter that a refused prompt is blamed on.
    pub param: &'static str,
    /// What choices are made with.
    pub choice: ChoiceOptions,
    /// Makes the first state of reasoning; `None` without chat.
    pub thinking: Option<ThinkingStart>,
}

/// Where reasoning starts.
#[derive(Clone, Copy, Debug)]
pub struct ThinkingStart {
    /// The prompt ends inside a thought.
    pub open: bool,
    /// The model may open one itself.
    pub allowed: bool,
}

/// The request in flight.
#[expect(
    clippy::struct_excessive_bools,
    reason = "how it was asked for, and how it ended"
)]
pub struct Generation {
    ctx: RequestContext,
    events: SelectAll<BoxStream<'static, (usize, Option<StreamEvent>)>>,
    prompts: Vec<Prompt>,
    choices: Vec<Choice>,
    num_choices: usize,
    echo: bool,
    /// Whether there is a conversation.
    chat: bool,
    /// Outputs that came before their prompt's scores.
    early: VecDeque<(usize, RequestOutput)>,
    drained: Pin<Box<dyn Future<Output = ()> + Send>>,
    timeout: Option<Pin<Box<Sleep>>>,
    num_unfinished: usize,
    num_accepted_drafts: u64,
    num_rejected_drafts: u64,
    submitted: Instant,
    /// When each prompt's waiting was over.
    begun: Vec<Arc<OnceLock<Instant>>>,
    sampling: Option<Arc<SamplingParams>>,
    last_token: Vec<Option<Instant>>,
    first_token: Option<Instant>,
    streamed: bool,
    /// Why it ended; of several choices the last one's.
    finish: Option<Finish>,
    failed: bool,
    settled: bool,
}

struct Prompt {
    ids: Arc<[u32]>,
    /// Whether its scores were asked for; they come with the first output of choice 0.
    scored: bool,
    logprobs: Option<Vec<TokenLogprobs>>,
    num_cached: u32,
    /// Whether an output has come.
    started: bool,
}

impl Generation {
    /// Submits every prompt.
    pub fn start(
        ctx: RequestContext,
        requests: Vec<PromptRequest>,
        options: &GenerationOptions,
    ) -> Result<Self, ApiError> {
        let state = Arc::clone(&ctx.state);
        let num_tokens = requests
            .iter()
            .map(|request| request.ids.len() as u64)
            .sum();
        let num_choices = requests.len() as u64 * u64::from(options.num_choices);
        admission::begin(&ctx, num_tokens, num_choices)?;
        let cache_salt = ctx.tenant.salt(&options.cache_salt);
        let mut events = SelectAll::new();
        let mut prompts = Vec::with_capacity(requests.len());
        let (submitted, mut begun) = (Instant::now(), Vec::with_capacity(requests.len()));
        let asked = requests
            .first()
            .map(|request| Arc::clone(&request.sampling));
        for (
            i,
            PromptRequest {
                ids,
                sampling,
                guide,
                breakpoints,
            },
        ) in requests.into_iter().enumerate()
        {
            let scored = sampling.prompt_logprobs.is_some();
            let mut boundaries = breakpoints;
            if let Some(tokenizer) = &state.tokenizer {
                boundaries.extend(tokenizer.turns(&ids));
            }
            boundaries.sort_unstable();
            boundaries.dedup();
            let request = Request {
                id: state.engine.next_request_id(),
                prompt: Arc::clone(&ids),
                sampling,
                num_choices: options.num_choices,
                cache_salt: Arc::clone(&cache_salt),
                boundaries: boundaries.into(),
                priority: ctx.tenant.priority(ctx.priority.or(options.priority)),
                tenant: ctx.tenant.id(),
                tenant_weight: ctx.tenant.terms().weight,
            };
            let stream = state.engine.submit(request, guide).map_err(|error| {
                if matches!(
                    error,
                    SubmitError::Admission(AdmissionError::QueueFull { .. })
                ) {
                    admission::count_shed(&ctx, Cause::Queue);
                }
                refused(error, options.param, state.info.max_model_len)
            })?;
            prompts.push(Prompt {
                ids,
                scored,
                logprobs: None,
                num_cached: 0,
                started: false,
            });
            begun.push(stream.begun());
            events.push(events_of(i, stream));
        }
        if let Some(ticket) = &ctx.ticket {
            ticket.submitted(&begun);
        }
        let mut choices = Vec::new();
        for prompt in &prompts {
            for _ in 0..options.num_choices {
                let splitter = match (&options.choice.tokenizer, options.thinking) {
                    (Some(tokenizer), Some(start)) => Some(crate::chat::ReasoningSplitter::new(
                        tokenizer,
                        start.open,
                        start.allowed,
                    )),
                    _ => None,
                };
                let mut choice = Choice::new(options.choice.clone(), &prompt.ids, splitter);
                if options.echo && !prompt.scored {
                    choice.echo(&prompt.ids, &[]);
                }
                choices.push(choice);
            }
        }
        Ok(Self {
            events,
            prompts,
            num_unfinished: choices.len(),
            num_accepted_drafts: 0,
            num_rejected_drafts: 0,
            submitted,
            begun,
            sampling: asked,
            last_token: vec![None; choices.len()],
            choices,
            num_choices: options.num_choices as usize,
            echo: options.echo,
            chat: options.thinking.is_some(),
            early: VecDeque::new(),
            drained: Box::pin(state.drain_deadline()),
            timeout: ctx
                .deadline
                .map(|deadline| Box::pin(sleep_until(deadline.at))),
            first_token: None,
            streamed: false,
            finish: None,
            failed: false,
            settled: false,
            ctx,
        })
    }

    /// Waits for news of some choice and returns its index; `None` once all have ended. Dropping
    /// the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<usize>, ApiError> {
        let news = self.advance().await;
        self.failed |= news.is_err();
        news
    }

    async fn advance(&mut self) -> Result<Option<usize>, ApiError> {
        while self.num_unfinished > 0 {
            if let Some((prompt, output)) = self.next_early() {
                if let Some(index) = self.take_output(prompt, output)? {
                    return Ok(Some(index));
                }
                continue;
            }
            let event = tokio::select! {
                biased;
                // First: a model that always has news would keep it from being looked at.
                () = elapsed(&mut self.timeout) => return Err(self.too_late()),
                event = self.events.next() => event,
                () = &mut self.drained => return Err(shutting_down(&self.ctx)),
            };
            let (prompt, output) = match event {
                Some((prompt, Some(StreamEvent::Output(output)))) => (prompt, output),
                Some((_, Some(StreamEvent::Failed(why)))) => return Err(ApiError::internal(why)),
                Some((prompt, None)) if !self.has_unfinished(prompt) => continue,
                Some((_, None)) | None => {
                    return Err(ApiError::internal("the engine ended this request"));
                }
            };
            if let Some(index) = self.take_output(prompt, output)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// It ends for a reason that is not the engine's.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    fn too_late(&self) -> ApiError {
        admission::count_shed(&self.ctx, Cause::Deadline);
        let deadline = self.ctx.deadline.expect("its timer ran");
        deadline.exceeded()
    }

    /// Runs to the end.
    pub async fn finish(&mut self) -> Result<(), ApiError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// All choices, by prompt and within it.
    pub fn choices(&mut self) -> &mut [Choice] {
        &mut self.choices
    }

    /// The prompt that a choice answers.
    pub fn prompt_of(&self, choice: usize) -> &Arc<[u32]> {
        &self.prompts[choice / self.num_choices].ids
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        let sum = |count: fn(&Choice) -> u64| self.choices.iter().map(count).sum();
        self.priced(Usage {
            prompt: self.prompts.iter().map(|p| p.ids.len() as u64).sum(),
            cached: self.prompts.iter().map(|p| u64::from(p.num_cached)).sum(),
            completion: sum(Choice::num_tokens),
            reasoning: sum(Choice::num_reasoning_tokens),
            accepted_drafts: self.num_accepted_drafts,
            rejected_drafts: self.num_rejected_drafts,
            cost: None,
        })
    }

    /// What was counted. Once a request is complete that is its [`usage`](Self::usage); of one that
    /// failed or was left it is what the machine did until then.
    pub fn counted(&self) -> Usage {
        self.priced(Usage {
            reasoning: self.choices.iter().map(Choice::num_reasoning_tokens).sum(),
            accepted_drafts: self.num_accepted_drafts,
            rejected_drafts: self.num_rejected_drafts,
            ..self.ctx.counted()
        })
    }

    fn priced(&self, mut usage: Usage) -> Usage {
        let prices = &self.ctx.state.config.prices;
        usage.cost = prices.field(self.ctx.flavour, &usage);
        usage
    }

    /// The scores of a choice's prompt, once they are known.
    pub fn prompt_scores(&self, choice: usize) -> Option<PromptScores> {
        let prompt = &self.prompts[choice / self.num_choices];
        let logprobs = prompt.logprobs.as_ref()?;
        let tokenizer = self.ctx.state.tokenizer.as_deref();
        let mut detokenizer = Detokenizer::default();
        let mut scores = Vec::with_capacity(prompt.ids.len());
        for (i, &id) in prompt.ids.iter().enumerate() {
            let known = i.checked_sub(1).and_then(|i| logprobs.get(i));
            scores.push(known.map(|known| {
                let decoded = |id| token_text(tokenizer, &detokenizer, id);
                candidates(known, &|id| TokenText::lossy(&decoded(id)).into_owned())
            }));
            if let Some(tokenizer) = tokenizer {
                detokenizer.push(tokenizer, id);
            }
        }
        Some(PromptScores(scores))
    }

    fn has_unfinished(&self, prompt: usize) -> bool {
        let first = prompt * self.num_choices;
        self.choices[first..first + self.num_choices]
            .iter()
            .any(|choice| !choice.is_finished())
    }

    fn next_early(&mut self) -> Option<(usize, RequestOutput)> {
        let scored = |(prompt, _): &(usize, _)| self.prompts[*prompt].logprobs.is_some();
        let at = self.early.iter().position(scored)?;
        self.early.remove(at)
    }

    /// Applies an output; the index of its choice, or `None` if it tells nothing.
    fn take_output(
        &mut self,
        prompt_index: usize,
        output: RequestOutput,
    ) -> Result<Option<usize>, ApiError> {
        let index = prompt_index * self.num_choices + output.choice as usize;
        if self.choices[index].is_finished() {
            return Ok(None);
        }
        if !self.begin(prompt_index, &output) {
            self.early.push_back((prompt_index, output));
            return Ok(None);
        }
        self.num_accepted_drafts += u64::from(output.num_accepted_drafts);
        self.num_rejected_drafts += u64::from(output.num_rejected_drafts);
        let (id, choice_index) = (output.request, output.choice);
        let choice = &mut self.choices[index];
        let before = choice.num_tokens();
        let end_id = match output.finish {
            Some(FinishReason::Stop(id)) => Some(id),
            _ => None,
        };
        let mut stopped = false;
        for (i, &token) in output.tokens.iter().enumerate() {
            let ends = i + 1 == output.tokens.len() && end_id == Some(token);
            if choice.push(token, output.logprobs.get(i), ends) {
                stopped = true;
                break;
            }
        }
        let num_new = choice.num_tokens() - before;
        self.observe(index, num_new);
        let choice = &mut self.choices[index];
        match output.finish {
            _ if stopped => {}
            None => {}
            Some(FinishReason::Stop(_)) => choice.finish(Finish::Stop),
            Some(FinishReason::Length) => choice.finish(Finish::Length),
            Some(FinishReason::Aborted) => {
                return Err(ApiError::internal("the request was aborted"));
            }
            Some(FinishReason::Fault(fault)) => {
                self.ctx.state.metrics.count_fault();
                return Err(ApiError::internal(format!("the model failed: {fault:?}")));
            }
        }
        let finished = choice.is_finished();
        if stopped && output.finish.is_none() {
            self.ctx.state.engine.finish_choice(id, choice_index);
        }
        if finished {
            self.num_unfinished -= 1;
            let reason = match output.finish {
                Some(FinishReason::Length) if !stopped => "length",
                _ => "stop",
            };
            self.finish = self.choices[index].ended();
            self.ctx.state.metrics.count_finished(reason);
        }
        Ok(Some(index))
    }

    /// Notes what comes with the first output of a prompt. False if this one must wait for that.
    fn begin(&mut self, prompt_index: usize, output: &RequestOutput) -> bool {
        let first = prompt_index * self.num_choices;
        let prompt = &mut self.prompts[prompt_index];
        if output.choice == 0 && !prompt.started {
            prompt.started = true;
            prompt.num_cached = output.num_cached_tokens;
            self.ctx
                .count_prompt(prompt.ids.len() as u64, output.num_cached_tokens.into());
            if prompt.scored {
                prompt.logprobs = Some(output.prompt_logprobs.clone());
                if self.echo {
                    for choice in &mut self.choices[first..first + self.num_choices] {
                        choice.echo(&prompt.ids, &output.prompt_logprobs);
                    }
                }
            }
        }
        !prompt.scored || prompt.logprobs.is_some()
    }

    fn observe(&mut self, index: usize, num_new: u64) {
        if num_new == 0 {
            return;
        }
        let now = Instant::now();
        let metrics = &self.ctx.state.metrics;
        if self
            .first_token
            .replace(self.first_token.unwrap_or(now))
            .is_none()
        {
            metrics.observe_ttft(now - self.ctx.received);
            if let Some(ticket) = &self.ctx.ticket {
                ticket.started();
            }
        }
        if let Some(last) = self.last_token[index].replace(now) {
            let gap = (now - last) / num_new as u32;
            for _ in 0..num_new {
                metrics.observe_inter_token(gap);
            }
        }
        self.ctx.count_generated(num_new);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.settle();
        tracing::debug!(
            request_id = &*self.ctx.request_id,
            generated = self.ctx.tokens.generated.load(Ordering::Relaxed),
            unfinished = self.num_unfinished,
            "generation over"
        );
    }
}

/// Resolves then; never if there is no such time.
async fn elapsed(timeout: &mut Option<Pin<Box<Sleep>>>) {
    match timeout {
        Some(timeout) => timeout.await,
        None => pending().await,
    }
}

fn events_of(
    prompt: usize,
    stream: RequestStream,
) -> BoxStream<'static, (usize, Option<StreamEvent>)> {
    unfold(Some(stream), move |stream| async move {
        let mut stream = stream?;
        let event = stream.next().await;
        let rest = event.is_some().then_some(stream);
        Some(((prompt, event), rest))
    })
    .boxed()
}

/// The token itself first, then the alternatives that are others.
fn candidates(known: &TokenLogprobs, decoded: &dyn Fn(u32) -> String) -> Vec<PromptScore> {
    let rank = known.top.iter().position(|(id, _)| *id == known.token);
    let mut scores = vec![PromptScore {
        id: known.token,
        logprob: known.logprob,
        rank: rank.map(|rank| rank as u32 + 1),
        decoded_token: decoded(known.token),
    }];
    for (rank, (id, logprob)) in known.top.iter().enumerate() {
        if *id != known.token {
            scores.push(PromptScore {
                id: *id,
                logprob: *logprob,
                rank: Some(rank as u32 + 1),
                decoded_token: decoded(*id),
            });
        }
    }
    scores
}

fn refused(error: SubmitError, param: &str, window: u32) -> ApiError {
    let unavailable = |message: String| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            "not_ready",
            message,
        )
        .retry_after(5)
    };
    match error {
        SubmitError::Empty | SubmitError::TokenOutOfRange { .. } => {
            ApiError::invalid_value(param, error.to_string())
        }
        SubmitError::NotReady | SubmitError::Failed(_) => unavailable(error.to_string()),
        SubmitError::Admission(why @ AdmissionError::QueueFull { .. }) => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "rate_limit_exceeded",
            why.to_string(),
        )
        .retry_after(1),
        SubmitError::Admission(
            why @ (AdmissionError::PromptTooLong { .. } | AdmissionError::NeverFits { .. }),
        ) => ApiError::context_length(param, window, &format!("However, {why}.")),
    }
}

/// By a stop signal, or because the engine hangs and cannot say so itself.
fn shutting_down(ctx: &RequestContext) -> ApiError {
    if let EngineStatus::Failed(why) = ctx.state.engine.status() {
        return ApiError::internal(why.to_string());
    }
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "server_error",
        "not_ready",
        "the server is shutting down",
    )
    .retry_after(5)
}
