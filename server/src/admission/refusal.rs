//! Why a request did not get in, as a label and as an answer.

use std::time::Duration;

use http::StatusCode;

use super::key_file::Terms;
use crate::error::ApiError;

/// Why; a label, so there are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The key's requests in a minute.
    Requests,
    /// The key's tokens in a minute.
    Tokens,
    /// The key's requests at once.
    Concurrency,
    /// The key's choices at once.
    Slots,
    /// The key's tokens for good.
    Budget,
    /// Requests that wait, the key's or everybody's.
    Queue,
    /// Prompt tokens that wait, the key's or everybody's.
    QueuedTokens,
    /// The key may not use this name of the model.
    Model,
    /// It is too crowded for a request of this priority.
    Overload,
    /// The time it had is over.
    Deadline,
    /// Loading, stopping or broken.
    NotReady,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Requests,
        Self::Tokens,
        Self::Concurrency,
        Self::Slots,
        Self::Budget,
        Self::Queue,
        Self::QueuedTokens,
        Self::Model,
        Self::Overload,
        Self::Deadline,
        Self::NotReady,
    ];

    /// As metrics have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
            Self::Slots => "slots",
            Self::Budget => "budget",
            Self::Queue => "queue",
            Self::QueuedTokens => "queued_tokens",
            Self::Model => "model",
            Self::Overload => "overload",
            Self::Deadline => "deadline",
            Self::NotReady => "not_ready",
        }
    }
}

/// A polite no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) cause: Cause,
    /// When it is worth asking again.
    pub(crate) retry_in: Duration,
    pub(crate) message: String,
}

/// Somebody's answer will have ended by then.
const A_MOMENT: Duration = Duration::from_secs(1);
/// The crowd will have thinned by then, or another replica been found.
const A_WHILE: Duration = Duration::from_secs(5);
/// Somebody has to raise the budget first.
const AN_HOUR: Duration = Duration::from_hours(1);

impl Refusal {
    fn new(cause: Cause, retry_in: Duration, message: impl Into<String>) -> Self {
        Self {
            cause,
            retry_in,
            message: message.into(),
        }
    }

    pub(crate) fn rate(cause: Cause, per_minute: u64, wait: Duration) -> Self {
        let what = cause.label();
        Self::new(
            cause,
            wait,
            format!(
                "this key may have {per_minute} {what} a minute; the next in {} ms",
                wait.as_millis()
            ),
        )
    }

    pub(crate) fn at_once(cause: Cause, max: u64) -> Self {
        let what = match cause {
            Cause::Slots => "choices at once",
            Cause::Queue => "requests that wait",
            Cause::QueuedTokens => "prompt tokens that wait",
            _ => "requests at once",
        };
        Self::new(cause, A_MOMENT, format!("this key may have {max} {what}"))
    }

    pub(crate) fn budget(terms: &Terms) -> Self {
        let budget = terms.budget_tokens.unwrap_or(0);
        Self::new(
            Cause::Budget,
            AN_HOUR,
            format!("this key's budget of {budget} tokens is used up"),
        )
    }

    pub(crate) fn queue_full(max: u64) -> Self {
        Self::new(
            Cause::Queue,
            A_MOMENT,
            format!("the queue is full: {max} requests may wait"),
        )
    }

    pub(crate) fn share_full(queued: u64, room: u64) -> Self {
        Self::new(
            Cause::Queue,
            A_MOMENT,
            format!(
                "this key has {queued} requests in the queue; the room for {room} more is left to other keys"
            ),
        )
    }

    pub(crate) fn too_many_queued_tokens(max: u64) -> Self {
        Self::new(
            Cause::QueuedTokens,
            A_MOMENT,
            format!("the queue is full: {max} prompt tokens may wait"),
        )
    }

    pub(crate) fn crowded(level: u8) -> Self {
        let message = match level {
            3 => "the server is overloaded and takes no new requests",
            2 => "the server is overloaded and takes requests of high priority only",
            _ => "the server is busy and takes no requests of low priority",
        };
        Self::new(Cause::Overload, A_WHILE, message)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let Refusal {
            cause,
            retry_in,
            message,
        } = refusal;
        let (status, kind, code) = match cause {
            Cause::Overload => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "overloaded",
            ),
            Cause::Budget => (
                StatusCode::TOO_MANY_REQUESTS,
                "insufficient_quota",
                "insufficient_quota",
            ),
            _ => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "rate_limit_exceeded",
            ),
        };
        Self::new(status, kind, code, message).retry_in(retry_in)
    }
}
