//! `/tokenize` and `/detokenize`.

use bytes::Bytes;

use crate::error::ApiError;
use crate::state::{RequestContext, Response};

/// Text or messages to token ids.
pub async fn tokenize(ctx: RequestContext, _body: Bytes) -> Result<Response, ApiError> {
    Err(super::not_served(ctx.route))
}

/// Token ids to text.
pub async fn detokenize(ctx: RequestContext, _body: Bytes) -> Result<Response, ApiError> {
    Err(super::not_served(ctx.route))
}
