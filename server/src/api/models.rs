//! `/v1/models`.

use crate::error::ApiError;
use crate::state::{RequestContext, Response};

/// Names that the one loaded model answers to.
#[derive(Clone, Debug, Default)]
pub struct ModelNames {
    /// The operator's names first, then the family's; each once.
    pub ids: Vec<String>,
    /// `owned_by`.
    pub owned_by: String,
    /// `description`, where there is something to say: the demo says that it is one.
    pub description: Option<String>,
    /// Unix seconds.
    pub created: u64,
}

/// All names.
pub fn list(ctx: &RequestContext) -> Result<Response, ApiError> {
    Err(super::not_served(ctx.route))
}

/// One name; `id` is percent-decoded and may hold slashes.
pub fn get(ctx: &RequestContext, _id: &str) -> Result<Response, ApiError> {
    Err(super::not_served(ctx.route))
}
