//! `/v1/messages` and `/v1/messages/count_tokens`: content blocks instead of messages and calls.
//!
//! | File | Holds |
//! |---|---|
//! | `request` | a body as a chat form |
//! | `messages` | its history |
//! | `view` | what the model says, as blocks and events |

mod messages;
mod request;
mod view;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::fields::parse_object;
use super::models::json;
use super::{chat, mapping, prompt, stream};
use crate::error::ApiError;
use crate::state::{RequestContext, Response};

use request::MessagesRequest;
use view::MessagesView;

/// Answers a generating request.
pub async fn create(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let MessagesRequest {
        chat,
        paths,
        omit_thinking,
    } = read(&ctx, body, false).await?;
    let (request, generation) = mapping::start(&ctx, chat, &paths).await?;
    let view = MessagesView::new(&ctx, &request, omit_thinking);
    if request.params.stream {
        return Ok(stream::respond(&ctx, generation, view));
    }
    view.answer(generation).await
}

/// How long the prompt of a request would be.
pub async fn count_tokens(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let MessagesRequest { chat, paths, .. } = read(&ctx, body, true).await?;
    let prepared = chat::prepare(&ctx, move || Ok(chat)).await;
    let (_, prompt) = prepared.map_err(|error| paths.translate(error))?;
    Ok(json(&json!({"input_tokens": prompt.ids.len()})))
}

async fn read(
    ctx: &RequestContext,
    body: Bytes,
    only_counts: bool,
) -> Result<MessagesRequest, ApiError> {
    let state = Arc::clone(&ctx.state);
    prompt::off_thread(move || {
        MessagesRequest::read(&parse_object(&body)?, &state.metrics, only_counts)
    })
    .await
}
