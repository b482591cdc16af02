//! What can be wrong with a request, as status and body.

use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http_body_util::{BodyExt as _, Full};

use crate::api::fields::type_name;
use crate::api::flavour::Flavour;
use crate::api::flavours::{cloudflare, openrouter};
use crate::state::Response;

/// Beyond a year nobody waits.
const MAX_RETRY_MS: u128 = 365 * 86_400_000;

/// An error in the shape that OpenAI's clients read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.code`.
    pub code: &'static str,
    /// Path of the parameter at fault.
    pub param: Option<String>,
    /// For people.
    pub message: String,
    /// When it is worth asking again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// 400 for a parameter outside its range; the message says what it must be.
    pub fn invalid_value(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("'{param}' {message}");
        Self::bad_request("invalid_value", Some(param), message)
    }

    /// 400 for a parameter of the wrong JSON type.
    pub fn invalid_type(param: impl Into<String>, expected: &str, got: &serde_json::Value) -> Self {
        let param = param.into();
        let got = type_name(got);
        let message = format!("'{param}' must be {expected}, is {got}");
        Self::bad_request("invalid_type", Some(param), message)
    }

    /// 400 for something that this server does not do (yet).
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request("unsupported_parameter", Some(param.into()), message)
    }

    /// 400 for a prompt, or prompt and output, beyond the context window. Clients match the words
    /// about the maximum.
    pub fn context_length(param: &str, max: u32, detail: &str) -> Self {
        let message = format!("This model's maximum context length is {max} tokens. {detail}");
        Self::bad_request("context_length_exceeded", Some(param.to_owned()), message)
    }

    /// 500: ours or the machine's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "server_error", "internal_error", message)
    }

    /// 400.
    pub fn bad_request(
        code: &'static str,
        param: Option<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            param,
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                code,
                message,
            )
        }
    }

    /// Any status, without `param` and `Retry-After`.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            code,
            param: None,
            message: message.into(),
            retry_after: None,
        }
    }

    /// With `Retry-After` in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(Duration::from_secs(seconds.into()));
        self
    }

    /// With `Retry-After` and `retry-after-ms`.
    #[must_use]
    pub fn retry_in(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The body, in the words of the flavour's own clients.
    pub fn body(&self, flavour: Flavour, request_id: &str) -> serde_json::Value {
        match flavour {
            Flavour::Anthropic => self.anthropic_body(request_id),
            Flavour::OpenAi | Flavour::DeepInfra | Flavour::Nvidia => self.openai_body(),
            Flavour::OpenRouter => openrouter::error(self),
            Flavour::Cloudflare | Flavour::CloudflareRest => cloudflare::error(self),
        }
    }

    /// `{"error":{message,type,param,code}}`.
    fn openai_body(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    /// `{"type":"error","error":{type,message},"request_id"}`. It has no place for the parameter, so
    /// the message names it.
    fn anthropic_body(&self, request_id: &str) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        let message = if self.code == "context_length_exceeded" {
            // Clients that speak this dialect match these words instead, to compact and retry.
            format!("prompt is too long: {}", self.message)
        } else {
            self.naming_message()
        };
        serde_json::json!({
            "type": "error",
            "error": {"type": kind, "message": message},
            "request_id": request_id,
        })
    }

    /// The message with the parameter's name in it, for bodies that have no other place for it.
    pub fn naming_message(&self) -> String {
        match &self.param {
            Some(param) if !self.message.contains(&format!("'{param}'")) => {
                format!("'{param}': {}", self.message)
            }
            _ => self.message.clone(),
        }
    }

    /// The status, as the flavour's own clients know it.
    fn status(&self, flavour: Flavour) -> StatusCode {
        match (flavour, self.status) {
            (Flavour::Anthropic, StatusCode::SERVICE_UNAVAILABLE) => {
                StatusCode::from_u16(529).expect("three digits")
            }
            (Flavour::Cloudflare | Flavour::CloudflareRest, _) => cloudflare::status(self),
            (_, status) => status,
        }
    }

    /// Status, headers and body.
    pub fn into_response(self, flavour: Flavour, request_id: &str) -> Response {
        let body = self.body(flavour, request_id).to_string();
        let mut response = http::Response::new(Full::from(body).boxed_unsync());
        *response.status_mut() = self.status(flavour);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        if let Some(wait) = self.retry_after {
            // At least a moment, and never sooner than it is of use.
            let ms = wait.as_nanos().div_ceil(1_000_000).clamp(1, MAX_RETRY_MS) as u64;
            headers.insert(RETRY_AFTER, ms.div_ceil(1000).into());
            headers.insert("retry-after-ms", ms.into());
        }
        if self.code == "insufficient_quota" {
            // The SDKs would try again, and no waiting helps.
            headers.insert("x-should-retry", http::HeaderValue::from_static("false"));
        }
        response
    }
}
