//! `/v1/chat/completions`.

use bytes::Bytes;

use crate::error::ApiError;
use crate::state::{RequestContext, Response};

/// Answers a generating request.
pub async fn create(ctx: RequestContext, _body: Bytes) -> Result<Response, ApiError> {
    Err(super::not_served(ctx.route))
}
