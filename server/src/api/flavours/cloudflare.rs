//! Cloudflare's Workers AI: what `env.AI.run` returns, and the same in the envelope of its REST API.
//!
//! Published: `developers.cloudflare.com/workers-ai`, the model's page (input, output) and the page
//! of error codes.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::api::chat::{self, ChatView};
use crate::api::fields::{Fields, parse_object};
use crate::api::flavour::Flavour;
use crate::api::models;
use crate::api::prices::Price;
use crate::api::stream;
use crate::error::ApiError;
use crate::state::{RequestContext, Response};

/// Published: 0.50 and 1.50 USD per million tokens; cached ones have no price of their own.
pub const PRICE: Price = Price::per_million(500_000, 1_500_000, 500_000);

/// Runs the model that the path names.
pub async fn run(ctx: RequestContext, model: &str, body: Bytes) -> Result<Response, ApiError> {
    // The name in the path is checked before a body that may be anybody's.
    let mut named = Map::new();
    named.insert("model".into(), model.into());
    ctx.state.models.requested(&Fields::root(&named))?;
    if body.is_empty() {
        return Err(ApiError::bad_request(
            "missing_body",
            None,
            "Request is missing headers or body: body",
        ));
    }
    let (request, prompt) = chat::prepare(&ctx, move || {
        let mut body = to_chat(parse_object(&body)?)?;
        body.extend(named);
        Ok(body)
    })
    .await?;
    let mut generation = chat::start(&ctx, &request, &prompt)?;
    let view = ChatView::new(&ctx, request);
    if view.stream {
        return Ok(stream::respond(&ctx, generation, view));
    }
    generation.finish().await?;
    if ctx.flavour == Flavour::Cloudflare {
        return Ok(view.answer(&mut generation));
    }
    let mut text = br#"{"result":"#.to_vec();
    text.extend(view.text(&mut generation));
    text.extend_from_slice(br#","success":true,"errors":[],"messages":[]}"#);
    Ok(models::json_text(text))
}

/// A `prompt` is a user's message; `messages` win.
fn to_chat(mut body: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let fields = Fields::root(&body);
    if fields.get("messages").is_some() {
        return Ok(body);
    }
    let Some(prompt) = fields.string("prompt")? else {
        let message = "missing required parameter: 'messages' or 'prompt'";
        let param = Some(fields.path("messages"));
        return Err(ApiError::bad_request(
            "missing_required_parameter",
            param,
            message,
        ));
    };
    if prompt.is_empty() {
        let path = fields.path("prompt");
        return Err(ApiError::invalid_value(
            path,
            "must have at least one character",
        ));
    }
    let messages = json!([{"role": "user", "content": prompt}]);
    body.insert("messages".into(), messages);
    Ok(body)
}

/// A model that is not there is a bad request to Cloudflare.
pub fn status(error: &ApiError) -> StatusCode {
    match error.code {
        "model_not_found" => StatusCode::BAD_REQUEST,
        _ => error.status,
    }
}

/// `{"result":null,"success":false,"errors":[{code,message}],"messages":[]}`.
pub fn error(error: &ApiError) -> Value {
    json!({
        "result": null,
        "success": false,
        "errors": [{"code": code(error), "message": error.naming_message()}],
        "messages": [],
    })
}

/// Workers AI's codes, and those of Cloudflare's gateway for what never reaches a model.
fn code(error: &ApiError) -> u32 {
    const NO_ROUTE: u32 = 7003;
    const WRONG_METHOD: u32 = 10405;
    match (error.status, error.code) {
        (_, "model_not_found") => 5007,
        (_, "missing_body") => 3003,
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => 10000,
        (StatusCode::NOT_FOUND, _) => NO_ROUTE,
        (StatusCode::METHOD_NOT_ALLOWED, _) => WRONG_METHOD,
        (StatusCode::PAYLOAD_TOO_LARGE, _) => 3006,
        (StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT, _) => 3007,
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => 3040,
        (status, _) if status.is_server_error() => 3043,
        _ => 5006,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_code() {
        let check = |status: u16, code: &'static str, expect: (u16, u32)| {
            let given = StatusCode::from_u16(status).unwrap();
            let refusal = ApiError::new(given, "", code, "no");
            let got = (self::status(&refusal).as_u16(), self::code(&refusal));
            assert_eq!(got, expect, "{status} {code}");
        };
        check(400, "invalid_value", (400, 5006));
        check(400, "missing_body", (400, 3003));
        check(401, "invalid_api_key", (401, 10000));
        check(404, "model_not_found", (400, 5007));
        check(404, "not_found", (404, 7003));
        check(405, "method_not_allowed", (405, 10405));
        check(408, "request_timeout", (408, 3007));
        check(413, "request_too_large", (413, 3006));
        check(429, "rate_limit_exceeded", (429, 3040));
        check(504, "deadline_exceeded", (504, 3007));
        check(503, "not_ready", (503, 3040));
        check(500, "internal_error", (500, 3043));
    }

    #[test]
    fn messages_name_the_parameter() {
        let message = |param: &str, message: &str| {
            let refusal = ApiError::bad_request("invalid_value", Some(param.into()), message);
            error(&refusal)["errors"][0]["message"].clone()
        };
        assert_eq!(message("n", "must not be empty"), "'n': must not be empty");
        assert_eq!(message("top_p", "'top_p' is odd"), "'top_p' is odd");
    }
}
