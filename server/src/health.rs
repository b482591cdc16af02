//! Alive, and ready for work. Two questions: a process that loads or drains is alive and not ready;
//! one whose engine hangs or has failed should be restarted.

use std::time::Instant;

use engine::EngineStatus;
use http::StatusCode;
use serde_json::json;

use crate::error::ApiError;
use crate::router::json_response;
use crate::state::{AppState, Response};

/// Why new work is refused right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// Weights are on their way.
    Loading {
        /// Percent of the bytes, 0 to 100.
        percent: u64,
    },
    /// The model runs for the first time.
    WarmingUp,
    /// Work waits and nothing is computed, or weights load and none comes.
    Stalled,
    /// A stop signal has come.
    Draining,
    /// The engine has ended.
    Failed,
}

impl NotReady {
    /// `None`: new work is welcome.
    pub fn of(state: &AppState) -> Option<Self> {
        match state.engine.status() {
            EngineStatus::Failed(_) => Some(Self::Failed),
            _ if state.is_draining() => Some(Self::Draining),
            _ if is_stalled(state) => Some(Self::Stalled),
            EngineStatus::Ready => None,
            EngineStatus::WarmingUp { .. } => Some(Self::WarmingUp),
            EngineStatus::Loading {
                loaded_bytes,
                total_bytes,
            } => Some(Self::Loading {
                percent: loaded_bytes * 100 / total_bytes.max(1),
            }),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Loading { .. } => "loading",
            Self::WarmingUp => "warming_up",
            Self::Stalled => "stalled",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

impl From<NotReady> for ApiError {
    fn from(why: NotReady) -> Self {
        let message = match why {
            NotReady::Loading { percent } => {
                format!("the model is still loading ({percent} %)")
            }
            NotReady::WarmingUp => "the model is loaded and warms up".to_owned(),
            NotReady::Stalled => "the engine gives no sign of life".to_owned(),
            NotReady::Draining => "the server is shutting down".to_owned(),
            NotReady::Failed => "the engine has failed; the server is about to restart".to_owned(),
        };
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            "not_ready",
            message,
        )
        .retry_after(RETRY_AFTER_SECONDS)
    }
}

/// Long enough for another replica to be picked, short enough for a small model to have loaded.
const RETRY_AFTER_SECONDS: u32 = 2;

/// `/health`: should this process be left alone?
pub(crate) fn health(state: &AppState) -> Response {
    let Some(what) = ailment(state) else {
        return json_response(StatusCode::OK, &json!({"status": "ok"}));
    };
    json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": what}))
}

/// What `/health` says, as a truth value.
pub(crate) fn is_well(state: &AppState) -> bool {
    ailment(state).is_none()
}

fn ailment(state: &AppState) -> Option<&'static str> {
    match state.engine.status() {
        EngineStatus::Failed(_) => Some("failed"),
        _ => is_stalled(state).then_some("stalled"),
    }
}

/// Work waits or runs, or weights load, and nothing came of it for too long. Every layer of a step and
/// every piece of a weight is a sign of life, so what is slow is none of this.
fn is_stalled(state: &AppState) -> bool {
    // Asked for before the age: see `still_for`.
    let limit = if state.engine.status().is_on_its_way() {
        state.config.load_timeout
    } else {
        state.config.stall_timeout
    };
    state.engine.still_for().is_some_and(|age| age > limit)
}

/// `/ready`: should it get new work?
pub(crate) fn ready(state: &AppState) -> Response {
    let Some(why) = NotReady::of(state) else {
        let level = state.admission.level(&state.engine, Instant::now());
        let body = json!({"status": "ready", "level": level.number()});
        return json_response(StatusCode::OK, &body);
    };
    let mut body = json!({"status": "not_ready", "reason": why.reason()});
    if let NotReady::Loading { percent } = why {
        body["percent"] = percent.into();
    }
    json_response(StatusCode::SERVICE_UNAVAILABLE, &body)
}
