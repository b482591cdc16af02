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
/// While weights load, the manager's own limit for starting moves on with each report, as long as loading
/// is well. A kernel may take longer to compile than this: how long silence may be is for `/health` to say.
const EXTENSION_MICROS: u32 = 30_000_000;

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
        let status = state.engine.status();
        let is_well = health::is_well(&state);
        if status == EngineStatus::Ready && !is_ready {
            is_ready = true;
            tell(&[NotifyState::Ready, NotifyState::Status("ready")]);
        }
        // Whoever is not well goes without more time and without a ping, and the manager draws its
        // conclusion.
        if let Some(text) = on_its_way(&status, is_well) {
            let extension = is_well.then_some(NotifyState::ExtendTimeoutUsec(EXTENSION_MICROS));
            let report = extension.into_iter().chain([NotifyState::Status(&text)]);
            tell(&report.collect::<Vec<_>>());
        }
        if patience.is_some() && is_well {
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

/// How far a model is that is not there yet; `None` for all others.
fn on_its_way(status: &EngineStatus, is_well: bool) -> Option<String> {
    let text = match status {
        EngineStatus::Loading {
            loaded_bytes,
            total_bytes,
        } => {
            let percent = loaded_bytes * 100 / (*total_bytes).max(1);
            format!("loading: {percent} % of the weights")
        }
        EngineStatus::WarmingUp {
            num_done,
            num_total,
        } => format!("warming up: {num_done} of {num_total} shapes"),
        EngineStatus::Ready | EngineStatus::Failed(_) => return None,
    };
    Some(if is_well {
        text
    } else {
        format!("{text}, and no progress")
    })
}

/// Nobody asked: nothing happens.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_told_how_far() {
        let check = |status: EngineStatus, is_well, expect: Option<&str>| {
            assert_eq!(on_its_way(&status, is_well).as_deref(), expect);
        };
        let loading = |loaded_bytes, total_bytes| EngineStatus::Loading {
            loaded_bytes,
            total_bytes,
        };
        let warming_up = EngineStatus::WarmingUp {
            num_done: 2,
            num_total: 7,
        };
        check(loading(0, 0), true, Some("loading: 0 % of the weights"));
        check(loading(1, 3), true, Some("loading: 33 % of the weights"));
        let hangs = "loading: 33 % of the weights, and no progress";
        check(loading(1, 3), false, Some(hangs));
        check(warming_up, true, Some("warming up: 2 of 7 shapes"));
        check(EngineStatus::Ready, true, None);
        check(EngineStatus::Ready, false, None);
    }
}
