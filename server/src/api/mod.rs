//! One file per endpoint.

pub mod chat;
pub mod completions;
pub mod models;
pub mod params;
pub mod utility;

use crate::error::ApiError;

/// What routes answer until they are served.
fn not_served(route: &str) -> ApiError {
    ApiError::new(
        http::StatusCode::NOT_FOUND,
        "invalid_request_error",
        "not_found",
        format!("{route} is not served"),
    )
}
