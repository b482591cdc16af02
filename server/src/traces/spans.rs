//! The spans of one request, by the semantic conventions for HTTP and for generative AI.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{Method, StatusCode};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use crate::state::RequestContext;
use crate::timeline::Timeline;

/// A request that is over.
pub(crate) struct Exchange<'a> {
    pub(crate) ctx: &'a RequestContext,
    pub(crate) method: &'a Method,
    pub(crate) status: StatusCode,
    /// Its client left before the end.
    pub(crate) cancelled: bool,
}

/// Makes them all and returns the server's.
pub(super) fn make(tracer: &SdkTracer, caller: &Context, exchange: &Exchange<'_>) -> SpanContext {
    let clock = Clock::now();
    let ctx = exchange.ctx;
    let method = known(exchange.method);
    let mut server = tracer
        .span_builder(format!("{method} {}", ctx.route))
        .with_kind(SpanKind::Server)
        .with_start_time(clock.time(ctx.received))
        .with_attributes(of_http(exchange, method))
        .start_with_context(tracer, caller);
    let context = server.span_context().clone();
    if !server.is_recording() {
        return context;
    }
    let timeline = ctx.timeline.get();
    if let Some(timeline) = timeline {
        server.set_attributes(of_generation(ctx, timeline));
        let parent = Context::new().with_remote_span_context(context.clone());
        for (name, begin, end, attributes) in stages(timeline) {
            let mut stage = tracer
                .span_builder(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(clock.time(begin))
                .with_attributes(attributes)
                .start_with_context(tracer, &parent);
            stage.end_with_timestamp(clock.time(end));
        }
    }
    let failed = timeline.is_some_and(|timeline| timeline.finishes.contains(&"error"));
    if exchange.status.is_server_error() {
        server.set_attribute(attribute("error.type", exchange.status.as_str().to_owned()));
        server.set_status(Status::error(""));
    } else if failed {
        // Its stream had begun, so the status was out.
        server.set_attribute(attribute("error.type", "generation_failed"));
        server.set_status(Status::error(""));
    }
    server.end_with_timestamp(clock.time(clock.instant));
    context
}

/// Methods are the client's own words; names of spans come from a closed set.
fn known(method: &Method) -> &'static str {
    [
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ]
    .into_iter()
    .find(|name| *name == method.as_str())
    .unwrap_or("_OTHER")
}

fn attribute(key: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(key, value)
}

fn number(key: &'static str, value: u64) -> KeyValue {
    attribute(key, i64::try_from(value).unwrap_or(i64::MAX))
}

fn of_http(exchange: &Exchange<'_>, method: &'static str) -> Vec<KeyValue> {
    let ctx = exchange.ctx;
    let mut attributes = vec![
        attribute("http.request.method", method),
        attribute("http.route", ctx.route),
        number("http.response.status_code", exchange.status.as_u16().into()),
        attribute("url.scheme", "http"),
        attribute("nemoserve.request_id", Arc::clone(&ctx.request_id)),
    ];
    if exchange.cancelled {
        attributes.push(attribute("nemoserve.cancelled", true));
    }
    attributes
}

fn of_generation(ctx: &RequestContext, timeline: &Timeline) -> Vec<KeyValue> {
    let operation = if timeline.chat {
        "chat"
    } else {
        "text_completion"
    };
    let finishes = timeline.finishes.iter();
    let finishes: Vec<StringValue> = finishes.map(|finish| (*finish).into()).collect();
    let usage = &timeline.usage;
    let mut attributes = vec![
        attribute("gen_ai.operation.name", operation),
        attribute("gen_ai.provider.name", "nemoserve"),
        attribute("gen_ai.response.model", ctx.state.models.ids[0].clone()),
        attribute(
            "gen_ai.response.finish_reasons",
            Value::Array(Array::from(finishes)),
        ),
        number("gen_ai.usage.input_tokens", usage.prompt),
        number("gen_ai.usage.output_tokens", usage.completion),
        number("gen_ai.usage.cache_read.input_tokens", usage.cached),
        number("gen_ai.request.choice.count", timeline.num_choices as u64),
        attribute("gen_ai.request.stream", timeline.streamed),
    ];
    // Only names that the server answers to get this far.
    if let Some(name) = ctx.generation.get() {
        attributes.push(attribute("gen_ai.request.model", Arc::clone(&name.model)));
        attributes.push(attribute("gen_ai.response.id", Arc::clone(&name.id)));
    }
    if let Some(sampling) = &timeline.sampling {
        let share = |value: f32| f64::from(value);
        attributes.extend([
            number("gen_ai.request.max_tokens", sampling.max_tokens.into()),
            attribute("gen_ai.request.temperature", share(sampling.temperature)),
            attribute("gen_ai.request.top_p", share(sampling.top_p)),
            attribute(
                "gen_ai.request.frequency_penalty",
                share(sampling.frequency_penalty),
            ),
            attribute(
                "gen_ai.request.presence_penalty",
                share(sampling.presence_penalty),
            ),
        ]);
        if sampling.top_k > 0 {
            attributes.push(number("gen_ai.request.top_k", sampling.top_k.into()));
        }
    }
    attributes
}

type Stage = (&'static str, Instant, Instant, Vec<KeyValue>);

/// As far as it came. Whoever left early waited until then.
fn stages(timeline: &Timeline) -> Vec<Stage> {
    let usage = &timeline.usage;
    let mut stages = Vec::new();
    let Some(begun) = timeline.begun else {
        stages.push(("queue", timeline.submitted, Instant::now(), Vec::new()));
        return stages;
    };
    stages.push(("queue", timeline.submitted, begun, Vec::new()));
    let reading = vec![
        number("gen_ai.usage.input_tokens", usage.prompt),
        number("gen_ai.usage.cache_read.input_tokens", usage.cached),
    ];
    let read = timeline.first_token;
    stages.push(("prefill", begun, read.unwrap_or_else(Instant::now), reading));
    if let (Some(first), Some(last)) = (read, timeline.last_token) {
        let writing = vec![
            number("gen_ai.usage.output_tokens", usage.completion),
            number("nemoserve.drafts.accepted", usage.accepted_drafts),
            number("nemoserve.drafts.rejected", usage.rejected_drafts),
        ];
        stages.push(("decode", first, last, writing));
    }
    stages
}

/// Two clocks read at once: what was measured with one is told by the other.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: SystemTime::now(),
        }
    }

    fn time(&self, instant: Instant) -> SystemTime {
        match self.instant.checked_duration_since(instant) {
            Some(ago) => self.time - ago,
            None => self.time + (instant - self.instant),
        }
    }
}
