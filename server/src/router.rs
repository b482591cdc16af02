//! The route table, and what every answer has in common: errors, request ids, CORS, one log line.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Body as _;
use hyper::body::Incoming;
use matchit::Router as Paths;
use percent_encoding::percent_decode_str;
use tokio::time::timeout_at;

use crate::admission::deadline::Deadline;
use crate::admission::{self, Arrival, Cause, Tenant};
use crate::api::flavour::Flavour;
use crate::api::flavours::{cloudflare, openrouter};
use crate::api::{
    anthropic, chat, completions, debug, models, openapi, priority, render, responses, utility,
};
use crate::connection::RequestMark;
use crate::cors;
use crate::error::ApiError;
use crate::flight;
use crate::health::{self, NotReady};
use crate::in_flight::{InFlight, Tracked};
use crate::metrics::{self, Metrics};
use crate::playground;
use crate::request_body;
use crate::request_id;
use crate::state::{AppState, RequestContext, Response};
use crate::traces::Traces;

/// One line per endpoint. `GET` implies `HEAD`.
const ROUTES: &[(&str, Endpoint, Flavour)] = {
    use Endpoint as E;
    use Flavour as F;
    &[
        ("/", E::Playground, F::OpenAi),
        ("/playground/{id}", E::PlaygroundFile, F::OpenAi),
        ("/openapi.json", E::OpenApi, F::OpenAi),
        ("/v1/chat/completions", E::Chat, F::OpenAi),
        ("/v1/completions", E::Completions, F::OpenAi),
        ("/v1/responses", E::Responses, F::OpenAi),
        ("/v1/responses/{id}", E::StoredResponse, F::OpenAi),
        ("/v1/messages", E::Messages, F::Anthropic),
        ("/v1/messages/count_tokens", E::CountTokens, F::Anthropic),
        ("/v1/models", E::Models, F::OpenAi),
        ("/v1/models/{*id}", E::Model, F::OpenAi),
        ("/v1/embeddings", E::Embeddings, F::OpenAi),
        ("/v1/chat/completions/render", E::RenderChat, F::OpenAi),
        ("/v1/completions/render", E::RenderCompletions, F::OpenAi),
        ("/v1/openai/chat/completions", E::Chat, F::DeepInfra),
        ("/v1/openai/completions", E::Completions, F::DeepInfra),
        ("/v1/openai/models", E::Models, F::DeepInfra),
        ("/v1/openai/embeddings", E::Embeddings, F::DeepInfra),
        ("/api/v1/chat/completions", E::Chat, F::OpenRouter),
        ("/api/v1/completions", E::Completions, F::OpenRouter),
        ("/api/v1/models", E::Models, F::OpenRouter),
        ("/api/v1/generation", E::Receipt, F::OpenRouter),
        ("/api/v1/embeddings", E::Embeddings, F::OpenRouter),
        ("/ai/run/{*model}", E::Run, F::Cloudflare),
        (
            "/client/v4/accounts/{account}/ai/run/{*model}",
            E::Run,
            F::CloudflareRest,
        ),
        (
            "/client/v4/accounts/{account}/ai/v1/chat/completions",
            E::Chat,
            F::OpenAi,
        ),
        ("/nvidia/v1/chat/completions", E::Chat, F::Nvidia),
        ("/nvidia/v1/completions", E::Completions, F::Nvidia),
        ("/nvidia/v1/models", E::Models, F::Nvidia),
        ("/tokenize", E::Tokenize, F::OpenAi),
        ("/detokenize", E::Detokenize, F::OpenAi),
        ("/health", E::Health, F::OpenAi),
        ("/ready", E::Ready, F::OpenAi),
        ("/metrics", E::Metrics, F::OpenAi),
        ("/debug/cache", E::DebugCache, F::OpenAi),
        ("/debug/flight", E::DebugFlight, F::OpenAi),
    ]
};

/// The label of requests that match no route.
const UNMATCHED: &str = "unmatched";

/// The patterns that requests are counted under.
pub fn route_labels() -> impl Iterator<Item = &'static str> {
    ROUTES
        .iter()
        .map(|(pattern, ..)| *pattern)
        .chain([UNMATCHED])
}

/// Patterns, what answers them, whose manners they have.
pub(crate) fn routes() -> impl Iterator<Item = (&'static str, Endpoint, Flavour)> {
    ROUTES.iter().copied()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Playground,
    PlaygroundFile,
    OpenApi,
    Chat,
    Completions,
    /// The model is in the path.
    Run,
    RenderChat,
    RenderCompletions,
    Responses,
    StoredResponse,
    Messages,
    CountTokens,
    Receipt,
    Models,
    Model,
    Embeddings,
    Tokenize,
    Detokenize,
    Health,
    Ready,
    Metrics,
    DebugCache,
    DebugFlight,
}

impl Endpoint {
    /// Whether it answers `method`, which is not `HEAD`.
    pub(crate) fn serves(self, method: &Method) -> bool {
        self.allow().split(", ").any(|one| one == method.as_str())
    }

    /// What goes into an `Allow` header.
    fn allow(self) -> &'static str {
        match self {
            Self::Playground
            | Self::PlaygroundFile
            | Self::OpenApi
            | Self::Models
            | Self::Model
            | Self::Receipt
            | Self::Health
            | Self::Ready
            | Self::Metrics
            | Self::DebugCache
            | Self::DebugFlight => "GET, HEAD, OPTIONS",
            Self::Chat
            | Self::Completions
            | Self::Run
            | Self::RenderChat
            | Self::RenderCompletions
            | Self::Responses
            | Self::Messages
            | Self::CountTokens
            | Self::Embeddings
            | Self::Tokenize
            | Self::Detokenize => "POST, OPTIONS",
            Self::StoredResponse => "GET, HEAD, DELETE, OPTIONS",
        }
    }

    /// Needs the engine, so it waits for weights and is refused while draining.
    pub(crate) fn generates(self) -> bool {
        matches!(
            self,
            Self::Chat | Self::Completions | Self::Run | Self::Responses | Self::Messages
        )
    }

    /// Takes a place among those at work: it renders or counts a prompt, whether it is then run or not.
    pub(crate) fn works(self) -> bool {
        let renders = matches!(
            self,
            Self::RenderChat
                | Self::RenderCompletions
                | Self::CountTokens
                | Self::Tokenize
                | Self::Detokenize
        );
        renders || self.generates()
    }

    /// Probes and scrapers need no key, nor do the page, which asks for one, and the document, which says
    /// how to show it. What the cache holds tells at which lengths others part, so that needs one.
    pub(crate) fn is_operational(self) -> bool {
        matches!(
            self,
            Self::Health | Self::Ready | Self::Metrics | Self::OpenApi
        ) || self.is_playground()
    }

    /// Tells of what others do, so it takes an operator's key, where there are keys.
    pub(crate) fn is_for_operators(self) -> bool {
        matches!(self, Self::DebugCache | Self::DebugFlight)
    }

    /// Gone under `--no-playground`.
    pub(crate) fn is_playground(self) -> bool {
        matches!(self, Self::Playground | Self::PlaygroundFile)
    }
}

/// Finds the endpoint and answers; one per process.
pub(crate) struct Router {
    paths: Paths<&'static (&'static str, Endpoint, Flavour)>,
    state: Arc<AppState>,
    traces: Arc<Traces>,
}

impl Router {
    pub(crate) fn new(state: Arc<AppState>, traces: Arc<Traces>) -> Self {
        let mut paths = Paths::new();
        let playground = state.config.playground;
        for route in ROUTES {
            if route.1.is_playground() && !playground {
                continue;
            }
            paths
                .insert(route.0, route)
                .expect("the route table has no conflicts");
        }
        Self {
            paths,
            state,
            traces,
        }
    }

    /// Answers any request. Never fails: what goes wrong is an answer too.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        mark: RequestMark,
    ) -> http::Response<Tracked> {
        let received = Instant::now();
        let method = request.method().clone();
        let is_http1 = request.version() < Version::HTTP_2;
        let headers = request.headers().clone();
        let path = request.uri().path().to_owned();
        let request_id = request_id::accept_or_make(&headers);
        let matched = self.paths.at(&path).ok();
        let (route, endpoint, flavour) =
            matched
                .as_ref()
                .map_or((UNMATCHED, None, Flavour::of_unknown(&path)), |found| {
                    let (pattern, endpoint, flavour) = **found.value;
                    (pattern, Some(endpoint), flavour)
                });
        let flavour = match flavour {
            Flavour::OpenAi if route.starts_with("/v1/") => self.state.config.v1_flavour,
            other => other,
        };
        let params = matched.as_ref().map(|found| &found.params);
        let id = params.and_then(|params| params.get("id").or(params.get("model")));
        let generation = Arc::default();
        let ctx = RequestContext {
            state: Arc::clone(&self.state),
            request_id: Arc::clone(&request_id),
            route,
            flavour,
            query: request.uri().query().map(Arc::from),
            tenant: Arc::clone(self.state.admission.anybody()),
            ticket: None,
            deadline: None,
            priority: None,
            received,
            tokens: Arc::default(),
            generation: Arc::clone(&generation),
            timeline: Arc::default(),
        };
        let generates = endpoint.is_some_and(Endpoint::generates);
        let is_traced = endpoint.is_some_and(|endpoint| !endpoint.is_operational());
        let trace = self.traces.begin(&headers, is_traced);
        let mut in_flight = InFlight::new(ctx.clone(), method.clone(), generates, (mark, trace));

        let mut tenant = None;
        let answer = async {
            match endpoint {
                None => {
                    discard(request);
                    Err(unknown_path(&method, &path))
                }
                Some(endpoint) => {
                    let ended = self.dispatch(endpoint, ctx, id, request, &mut tenant);
                    ended.await
                }
            }
        };
        let mut response = contained(answer, &request_id, &self.state.metrics)
            .await
            .unwrap_or_else(|error| error.into_response(flavour, &request_id));

        if let (Flavour::OpenRouter, Some(name)) = (flavour, generation.get())
            && let Ok(id) = HeaderValue::from_str(&name.id)
        {
            response.headers_mut().insert("x-generation-id", id);
        }
        let draining = self.state.is_draining();
        let out = response.headers_mut();
        out.insert("x-request-id", request_id::header(&request_id));
        if flavour == Flavour::Anthropic {
            out.insert("request-id", request_id::header(&request_id));
        }
        if endpoint.is_some_and(|endpoint| !endpoint.is_operational()) {
            let ms = received.elapsed().as_millis() as u64;
            out.insert("openai-processing-ms", ms.into());
        }
        if let Some(tenant) = &tenant {
            if endpoint.is_some_and(Endpoint::works) {
                tenant.tell_limits(out, Instant::now());
            }
            in_flight.belongs_to(tenant);
        }
        cors::allow_origin(&self.state.config.cors_origins, &headers, out);
        if let (Some(endpoint), StatusCode::METHOD_NOT_ALLOWED) = (endpoint, response.status()) {
            let allow = HeaderValue::from_static(endpoint.allow());
            response.headers_mut().insert(ALLOW, allow);
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        // An unread body cannot be told from the next request's head; and who drains wants no next.
        let body_was_refused = response.status() == StatusCode::PAYLOAD_TOO_LARGE;
        if is_http1 && (draining || body_was_refused) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if method == Method::HEAD {
            response = without_body(response);
        }
        in_flight.headers_are_out(response.status());
        response.map(|body| Tracked::new(body, in_flight))
    }

    async fn dispatch(
        &self,
        endpoint: Endpoint,
        mut ctx: RequestContext,
        id: Option<&str>,
        request: Request<Incoming>,
        tenant: &mut Option<Arc<Tenant>>,
    ) -> Result<Response, ApiError> {
        let (parts, body) = request.into_parts();
        let asked = if parts.method == Method::HEAD {
            Method::GET
        } else {
            parts.method
        };
        if asked == Method::OPTIONS {
            return Ok(cors::preflight(endpoint.allow(), &parts.headers));
        }
        if !endpoint.serves(&asked) {
            request_body::discard(body);
            return Err(wrong_method(&asked, endpoint, ctx.route));
        }
        let num_bytes = body.size_hint().lower();
        if let Err(refusal) = self.let_in(endpoint, &mut ctx, &parts.headers, num_bytes, tenant) {
            let metrics = &self.state.metrics.admission;
            metrics.observe_refusal(ctx.received.elapsed());
            request_body::discard(body);
            return Err(refusal);
        }
        let Some(deadline) = ctx.deadline else {
            return self.run(endpoint, ctx, id, &asked, body).await;
        };
        let late = ctx.clone();
        let answer = self.run(endpoint, ctx, id, &asked, body);
        timeout_at(deadline.at, answer).await.unwrap_or_else(|_| {
            admission::count_shed(&late, Cause::Deadline);
            Err(deadline.exceeded())
        })
    }

    /// All that is decided before a byte of the body is read.
    fn let_in(
        &self,
        endpoint: Endpoint,
        ctx: &mut RequestContext,
        headers: &HeaderMap,
        num_bytes: u64,
        tenant: &mut Option<Arc<Tenant>>,
    ) -> Result<(), ApiError> {
        if endpoint.is_operational() {
            return Ok(());
        }
        let state = &self.state;
        ctx.tenant = state.admission.authenticate(headers)?;
        *tenant = Some(Arc::clone(&ctx.tenant));
        if endpoint.is_for_operators() && !ctx.tenant.terms().operator {
            return Err(operators_only());
        }
        if endpoint.generates() {
            if let Some(why) = NotReady::of(state) {
                admission::count_shed(ctx, Cause::NotReady);
                return Err(why.into());
            }
            ctx.priority = priority::of_header(headers)?;
        }
        if endpoint.works() {
            ctx.deadline = Deadline::of(headers, state.config.request_timeout, ctx.received)?;
            let arrival = Arrival {
                num_bytes,
                priority: ctx.priority,
                generates: endpoint.generates(),
            };
            let ticket = state
                .admission
                .enter(state, &ctx.tenant, &arrival, Instant::now())
                .map_err(|refusal| admission::shed(ctx, refusal))?;
            state.metrics.admission.count_entry(ctx.tenant.name());
            ctx.ticket = Some(Arc::new(ticket));
        }
        Ok(())
    }

    /// Reads the body and answers.
    async fn run(
        &self,
        endpoint: Endpoint,
        ctx: RequestContext,
        id: Option<&str>,
        asked: &Method,
        body: Incoming,
    ) -> Result<Response, ApiError> {
        let body = request_body::read(body, &self.state.config).await?;
        if let Some(ticket) = &ctx.ticket {
            // Not everybody declares how much is coming.
            let tokens = admission::estimated_tokens(body.len());
            ticket
                .wait(tokens, Instant::now())
                .map_err(|refusal| admission::shed(&ctx, refusal))?;
        }
        match endpoint {
            Endpoint::Playground => Ok(playground::page()),
            Endpoint::PlaygroundFile => {
                let name = id.expect("the pattern has an id");
                playground::file(name).ok_or_else(|| unknown_path(asked, name))
            }
            Endpoint::OpenApi => Ok(openapi::document()),
            Endpoint::Chat => chat::create(ctx, body).await,
            Endpoint::Completions => completions::create(ctx, body).await,
            Endpoint::Run => {
                let model = id.expect("the pattern has a model");
                let model = percent_decode_str(model).decode_utf8_lossy();
                cloudflare::run(ctx, &model, body).await
            }
            Endpoint::RenderChat => render::chat(ctx, body).await,
            Endpoint::RenderCompletions => render::completions(ctx, body).await,
            Endpoint::Receipt => openrouter::generation(&ctx),
            Endpoint::Responses => responses::create(ctx, body).await,
            Endpoint::StoredResponse => {
                let id = id.expect("the pattern has an id");
                let id = percent_decode_str(id).decode_utf8_lossy();
                if *asked == Method::DELETE {
                    responses::delete(&ctx, &id)
                } else {
                    responses::get(&ctx, &id)
                }
            }
            Endpoint::Messages => anthropic::create(ctx, body).await,
            Endpoint::CountTokens => anthropic::count_tokens(ctx, body).await,
            Endpoint::Tokenize => utility::tokenize(ctx, body).await,
            Endpoint::Detokenize => utility::detokenize(ctx, body).await,
            Endpoint::Embeddings => Err(no_embeddings()),
            Endpoint::Models => models::list(&ctx),
            Endpoint::Model => {
                let id = id.expect("the pattern has an id");
                models::get(&ctx, &percent_decode_str(id).decode_utf8_lossy())
            }
            Endpoint::Health => Ok(health::health(&self.state)),
            Endpoint::Ready => Ok(health::ready(&self.state)),
            Endpoint::Metrics => Ok(scrape(&self.state)),
            Endpoint::DebugCache => debug::cache(&ctx).await,
            Endpoint::DebugFlight => flight::answer(&ctx),
        }
    }
}

/// A panic in a handler is our bug and this client's alone.
async fn contained(
    answer: impl Future<Output = Result<Response, ApiError>>,
    request_id: &str,
    metrics: &Metrics,
) -> Result<Response, ApiError> {
    AssertUnwindSafe(answer)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(our_bug(request_id, metrics)))
}

/// A JSON body with its type.
pub(crate) fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    full_response(status, "application/json", body.to_string())
}

fn full_response(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = http::Response::new(Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn scrape(state: &AppState) -> Response {
    state.admission.observe(state);
    let text = state.metrics.render(&state.engine);
    full_response(StatusCode::OK, metrics::CONTENT_TYPE, text)
}

/// The same headers, `content-length` included, and nothing else.
fn without_body(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(CONTENT_LENGTH, length.into());
    }
    http::Response::from_parts(parts, Empty::<Bytes>::new().boxed_unsync())
}

fn discard(request: Request<Incoming>) {
    request_body::discard(request.into_body());
}

fn unknown_path(method: &Method, path: &str) -> ApiError {
    // A path may be megabytes of somebody's mistake; its beginning tells which.
    let shown: String = path.chars().take(100).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        "invalid_request_error",
        "not_found",
        format!("{method} {shown}: no such path"),
    )
}

fn wrong_method(asked: &Method, endpoint: Endpoint, route: &str) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request_error",
        "method_not_allowed",
        format!("{asked} is not for {route}: use {}", endpoint.allow()),
    )
}

fn operators_only() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "permission_error",
        "operators_only",
        "this tells of others: the key needs `operator = true`",
    )
}

fn no_embeddings() -> ApiError {
    ApiError::bad_request(
        "unsupported_model",
        Some("model".into()),
        "this model generates text; it has no embeddings to give",
    )
}

/// Counts and logs a panic that ended one request and nothing else, and words it for the client.
pub(crate) fn our_bug(request_id: &str, metrics: &Metrics) -> ApiError {
    metrics.count_panic();
    tracing::error!(
        request_id,
        "a panic has ended this request, and nothing else"
    );
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "server_error",
        "internal_error",
        format!("the server has a bug; its log tells more under {request_id}"),
    )
}

#[cfg(test)]
mod tests {
    use engine::EngineInfo;

    use super::*;

    fn buggy() -> impl Future<Output = Result<Response, ApiError>> {
        std::future::poll_fn(|_| panic!("a bug in it"))
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_an_answer() {
        let metrics = Metrics::new("m", &EngineInfo::default(), route_labels());
        let refused = contained(buggy(), "req_7", &metrics).await;
        let refused = refused.expect_err("an error");
        assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(refused.message.contains("req_7"), "{}", refused.message);
        assert!(
            !refused.message.contains("a bug in it"),
            "{}",
            refused.message
        );
    }

    #[test]
    fn ids_may_hold_slashes() {
        let mut paths = Paths::new();
        for (pattern, endpoint, _) in ROUTES {
            paths
                .insert(*pattern, *endpoint)
                .expect("the table has no conflicts");
        }
        for (path, endpoint, id) in [
            ("/v1/models", Endpoint::Models, None),
            ("/v1/models/a", Endpoint::Model, Some("a")),
            (
                "/v1/models/@cf/nvidia/x",
                Endpoint::Model,
                Some("@cf/nvidia/x"),
            ),
            ("/v1/models/nvidia%2Fx", Endpoint::Model, Some("nvidia%2Fx")),
            ("/v1/responses", Endpoint::Responses, None),
            (
                "/v1/responses/resp_1",
                Endpoint::StoredResponse,
                Some("resp_1"),
            ),
        ] {
            let found = paths.at(path).expect(path);
            assert_eq!(
                (*found.value, found.params.get("id")),
                (endpoint, id),
                "{path}"
            );
        }
        for path in [
            "//",
            "",
            "/v1",
            "/v1/models/",
            "/V1/models",
            "/v1/responses/",
        ] {
            assert!(paths.at(path).is_err(), "{path}");
        }
    }
}
