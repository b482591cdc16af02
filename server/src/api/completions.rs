//! `/v1/completions`: no template, no thinking, ids used as given.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::choice::{Choice, ChoiceOptions, Delta, Finish};
use super::extras::ExtraFields;
use super::fields::{Fields, parse_object};
use super::flavours;
use super::generation::{Generation, GenerationOptions, PromptRequest};
use super::models::json;
use super::params::{Loaded, Params, Route};
use super::prompt;
use super::stream::{self, Chunks, Head};
use super::types::{PromptScores, TextChoice, TextLogprobs};
use crate::admission;
use crate::error::ApiError;
use crate::sse;
use crate::state::{RequestContext, Response};

/// Answers a generating request.
pub async fn create(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let request = read(&ctx, body).await?;
    let mut generation = start(&ctx, &request)?;
    let view = TextView::new(&ctx, request);
    if view.stream {
        return Ok(stream::respond(&ctx, generation, view));
    }
    generation.finish().await?;
    Ok(view.answer(&mut generation))
}

/// What was sent, in any flavour.
pub async fn read(ctx: &RequestContext, body: Bytes) -> Result<CompletionRequest, ApiError> {
    let ctx = ctx.clone();
    prompt::off_thread(move || {
        let body = parse_object(&body)?;
        let body = flavours::completion_body(body, &ctx.state, ctx.flavour)?;
        CompletionRequest::read(&body, &ctx)
    })
    .await
}

/// A completion request, checked.
pub struct CompletionRequest {
    /// What chat has too.
    pub params: Params,
    /// As ids.
    pub prompts: Vec<Arc<[u32]>>,
    echo: bool,
    /// Alternatives per token; `None`: no log-probabilities.
    logprobs: Option<u32>,
    /// Choices made per prompt, of which the likeliest are returned.
    best_of: u32,
}

impl CompletionRequest {
    fn read(body: &serde_json::Map<String, Value>, ctx: &RequestContext) -> Result<Self, ApiError> {
        let (fields, state) = (Fields::root(body), &ctx.state);
        let mut params = Params::read(&fields, Route::Completions, &Loaded::of(state))?;
        admission::check_body(ctx, &params.model, params.priority)?;
        if fields
            .string("suffix")?
            .is_some_and(|text| !text.is_empty())
        {
            let message = "this model does not fill in the middle";
            return Err(ApiError::unsupported(fields.path("suffix"), message));
        }
        let best_of = best_of(&fields, &params)?;
        let logprobs = fields.int("logprobs", 0..=5)?.map(|k| k as u32);
        let echo = fields.bool("echo")?.unwrap_or(false);
        params.sampling.logprobs = logprobs;
        if best_of > params.num_choices {
            // Candidates are ranked by their log-probabilities.
            params.sampling.logprobs = Some(logprobs.unwrap_or(0));
        }
        if echo && let Some(top) = logprobs {
            let own = params.prompt_logprobs.unwrap_or(0);
            params.sampling.prompt_logprobs = Some(own.max(top));
        }
        Ok(Self {
            prompts: prompt::read_prompts(state, &fields)?,
            params,
            echo,
            logprobs,
            best_of,
        })
    }
}

fn best_of(fields: &Fields<'_>, params: &Params) -> Result<u32, ApiError> {
    let Some(best_of) = fields.int("best_of", 1..=20)? else {
        return Ok(params.num_choices);
    };
    let path = fields.path("best_of");
    let best_of = best_of as u32;
    if best_of < params.num_choices {
        let message = format!(
            "must be at least 'n' ({}), is {best_of}",
            params.num_choices
        );
        return Err(ApiError::invalid_value(path, message));
    }
    if params.stream && best_of > 1 {
        return Err(ApiError::invalid_value(path, "cannot be streamed"));
    }
    Ok(best_of)
}

fn start(ctx: &RequestContext, request: &CompletionRequest) -> Result<Generation, ApiError> {
    let params = &request.params;
    let mut prompts = Vec::with_capacity(request.prompts.len());
    for ids in &request.prompts {
        let mut sampling = params.sampling.clone();
        sampling.max_tokens = params.max_tokens_after(ids.len(), &ctx.state.info, "prompt")?;
        prompts.push(PromptRequest {
            ids: Arc::clone(ids),
            sampling: Arc::new(sampling),
            guide: None,
            breakpoints: Vec::new(),
        });
    }
    let options = GenerationOptions {
        num_choices: request.best_of,
        cache_salt: Arc::clone(&params.cache_salt),
        priority: params.priority,
        echo: request.echo,
        param: "prompt",
        thinking: None,
        choice: ChoiceOptions {
            tokenizer: ctx.state.tokenizer.clone(),
            stop: params.stop.clone(),
            min_tokens: params.sampling.min_tokens,
            logprobs: params.sampling.logprobs.is_some(),
            force_nonempty_content: false,
            calls: None,
        },
    };
    Generation::start(ctx.clone(), prompts, &options)
}

/// How a generation looks as completions.
struct TextView {
    head: Head,
    stream: bool,
    logprobs: Option<u32>,
    extras: ExtraFields,
    num_choices: usize,
    best_of: usize,
}

impl TextView {
    fn new(ctx: &RequestContext, request: CompletionRequest) -> Self {
        let params = request.params;
        Self {
            extras: ExtraFields::of(&params, ctx.flavour),
            head: Head {
                include_usage: params.include_usage || ctx.flavour.always_counts(),
                ..Head::new(ctx, "cmpl-", "text_completion", params.model)
            },
            stream: params.stream,
            logprobs: request.logprobs,
            num_choices: params.num_choices as usize,
            best_of: request.best_of as usize,
        }
    }

    fn answer(&self, generation: &mut Generation) -> Response {
        let deltas: Vec<Delta> = generation.choices().iter_mut().map(Choice::take).collect();
        let chosen: Vec<usize> = (0..deltas.len())
            .step_by(self.best_of)
            .flat_map(|first| {
                let ranked = rank(&deltas[first..first + self.best_of]);
                ranked
                    .into_iter()
                    .take(self.num_choices)
                    .map(move |i| first + i)
            })
            .collect();
        let scores: Vec<Option<PromptScores>> = chosen
            .iter()
            .map(|i| self.extras.scores(generation, *i))
            .collect();
        let choices: Vec<TextChoice<'_>> = chosen
            .iter()
            .zip(&scores)
            .enumerate()
            .map(|(index, (&i, scores))| TextChoice {
                index,
                text: &deltas[i].content,
                logprobs: self.logprobs(&deltas[i]),
                finish_reason: deltas[i].finish.map(Finish::as_str),
                extras: self
                    .extras
                    .whole(generation.prompt_of(i), &deltas[i], scores.as_ref()),
            })
            .collect();
        json(&self.head.answer(&choices, &generation.usage()))
    }

    fn logprobs<'a>(&self, delta: &'a Delta) -> Option<TextLogprobs<'a>> {
        self.logprobs.map(|top| TextLogprobs {
            entries: &delta.entries,
            with_top: top > 0,
        })
    }
}

/// Candidates by log-probability per token, the likeliest first; equal ones in their order.
fn rank(candidates: &[Delta]) -> Vec<usize> {
    let mean = |delta: &Delta| {
        let sum: f64 = delta
            .entries
            .iter()
            .filter_map(|entry| entry.logprob)
            .map(f64::from)
            .sum();
        sum / delta.entries.len().max(1) as f64
    };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| mean(&candidates[*b]).total_cmp(&mean(&candidates[*a])));
    order
}

impl Chunks for TextView {
    fn open(&mut self, generation: &mut Generation, frame: &mut Vec<u8>) {
        for index in 0..generation.choices().len() {
            // An echo without scores is known at once.
            let delta = generation.choices()[index].take();
            let choice = TextChoice {
                index,
                text: &delta.content,
                logprobs: None,
                finish_reason: None,
                extras: self.extras.opening(generation.prompt_of(index)),
            };
            self.head.chunk(choice, frame);
        }
    }

    fn update(&mut self, generation: &mut Generation, index: usize, frame: &mut Vec<u8>) {
        let delta = generation.choices()[index].take();
        let mut extras = self.extras.chunks(&delta);
        let mut chunk = |text, logprobs, finish: Option<Finish>, extras| {
            let choice = TextChoice {
                index,
                text,
                logprobs,
                finish_reason: finish.map(Finish::as_str),
                extras,
            };
            self.head.chunk(choice, frame);
        };
        if !delta.content.is_empty() || !delta.entries.is_empty() {
            chunk(&delta.content, self.logprobs(&delta), None, extras.chunk());
        }
        let scores = delta
            .finish
            .and_then(|_| self.extras.scores(generation, index));
        if let Some(extras) = extras.last(delta.finish, scores.as_ref()) {
            chunk("", None, delta.finish, extras);
        }
    }

    fn close(
        &mut self,
        generation: &mut Generation,
        error: Option<&ApiError>,
        frame: &mut Vec<u8>,
    ) {
        self.head.close(generation, error, frame);
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::keep_alive(self.head.flavour)
    }
}
