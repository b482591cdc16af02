//! What a service manager is told, if one asked to be (`NOTIFY_SOCKET`): that the model is ready, that
//! it is still on its way, that the engine is alive, that it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use engine::EngineStatus;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::health;
use crate::state::AppState;

/// How often it is told anything.
const INTERVAL: Duration = Duration::from_secs(1);
/// While weights load, the manager's own limit for starting moves on with each report.
const EXTENSION: Duration = Duration::from_secs(30);

/// Reports for as long as the process serves.
pub(crate) async fn follow(state: Arc<AppState>) -> Infallible {
    // A ping at half of what the manager waits for.
    let patience = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let every = patience.map_or(INTERVAL, |patience| patience.min(INTERVAL));
    let mut tick = interval(every.max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_ready, mut is_stopping) = (false, false);
    loop {
        tick.tick().await;
        if state.is_draining() && !is_stopping {
            is_stopping = true;
            tell(&[
                NotifyState::Stopping,
                NotifyState::Status("running requests finish, no new work"),
            ]);
        }
        match state.engine.status() {
            EngineStatus::Ready if !is_ready => {
                is_ready = true;
                tell(&[NotifyState::Ready, NotifyState::Status("ready")]);
            }
            EngineStatus::Loading {
                loaded_bytes,
                total_bytes,
            } => on_its_way(&format!(
                "loading: {} % of the weights",
                loaded_bytes * 100 / total_bytes.max(1)
            )),
            EngineStatus::WarmingUp {
                num_done,
                num_total,
            } => on_its_way(&format!("warming up: {num_done} of {num_total} shapes")),
            EngineStatus::Ready | EngineStatus::Failed(_) => {}
        }
        // Whoever is not well goes without, and the manager draws its conclusion.
        if patience.is_some() && health::is_well(&state) {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Calls `again`, which reads anew what files say.
pub fn reload(state: &AppState, again: impl FnOnce()) {
    if state.engine.status() != EngineStatus::Ready {
        // Whoever is not ready says nothing of being ready again.
        return again();
    }
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
    }
    again();
    tell(&[NotifyState::Ready]);
}

fn on_its_way(status: &str) {
    let micros = u32::try_from(EXTENSION.as_micros()).expect("half a minute fits");
    tell(&[
        NotifyState::ExtendTimeoutUsec(micros),
        NotifyState::Status(status),
    ]);
}

/// Nobody asked: nothing happens.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
