//! `/v1/responses`: items instead of messages, events with names, answers that are remembered.
//!
//! | File | Holds |
//! |---|---|
//! | `request` | a body as a chat form |
//! | `input`, `tools` | its items and its tools |
//! | `output` | what the model says, as items and events |
//! | `view` | the response object and the stream around it |
//! | `store` | answers by id, in bounded memory |

mod input;
mod output;
mod request;
mod store;
mod tools;
mod view;

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full};
use serde_json::json;

use super::fields::parse_object;
use super::models::json;
use super::{mapping, prompt, stream};
use crate::error::ApiError;
use crate::state::{RequestContext, Response};

use request::ResponsesRequest;
use view::ResponsesView;

pub use store::ResponseStore;

/// Answers a generating request.
pub async fn create(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let (state, key) = (Arc::clone(&ctx.state), ctx.key());
    let request =
        prompt::off_thread(move || ResponsesRequest::read(&parse_object(&body)?, &state, key));
    let ResponsesRequest { chat, paths, shape } = request.await?;
    let (request, generation) = mapping::start(&ctx, chat, &paths).await?;
    let view = ResponsesView::new(&ctx, &request, shape);
    if request.params.stream {
        return Ok(stream::respond(&ctx, generation, view));
    }
    view.answer(generation).await
}

/// A stored response.
pub fn get(ctx: &RequestContext, id: &str) -> Result<Response, ApiError> {
    let stored = ctx.state.responses.get(id, ctx.key());
    let text = stored.ok_or_else(|| not_found(id))?.object.clone();
    let mut response = http::Response::new(Full::from(text).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

/// Forgets a stored response.
pub fn delete(ctx: &RequestContext, id: &str) -> Result<Response, ApiError> {
    if !ctx.state.responses.remove(id, ctx.key()) {
        return Err(not_found(id));
    }
    Ok(json(
        &json!({"id": id, "object": "response", "deleted": true}),
    ))
}

fn not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(100).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        "invalid_request_error",
        "not_found",
        format!("no response '{shown}' is stored"),
    )
}
