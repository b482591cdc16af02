//! What a failure of a device's own code means.
//!
//! Burn and CubeCL report much by panics: of the thread that called them, or of the device's own
//! thread, of which the caller then hears only that it is gone. Their texts are all there is to go by.

use std::any::Any;
use std::collections::VecDeque;
use std::error::Error;
use std::panic;
use std::sync::Once;

use parking_lot::Mutex;

use crate::device;
use crate::error::{Cause, EngineError};

/// Of a message of one line.
const MAX_CHARS: usize = 500;
/// Panics of other threads that are remembered.
const MAX_HEARD: usize = 8;

/// The text of panics, the latest last.
static HEARD: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// What the engine was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Load,
    WarmUp,
    Step,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Load => "while the weights were loaded",
            Self::WarmUp => "while the model warmed up",
            Self::Step => "while a step ran",
        }
    }
}

/// From now on, remembers the panics of all threads, besides what was done with them before.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let mut heard = HEARD.lock();
            if heard.len() == MAX_HEARD {
                heard.pop_front();
            }
            heard.push_back(message(info.payload()));
            drop(heard);
            before(info);
        }));
    });
}

/// What a runner's error means.
pub(crate) fn of_error<E: Error + Send + Sync + 'static>(phase: Phase, error: E) -> EngineError {
    let error: Box<dyn Error + Send + Sync> = Box::new(error);
    match error.downcast::<EngineError>() {
        Ok(error) => *error,
        Err(error) => judge(phase, &error.to_string())
            .unwrap_or_else(|| EngineError::Step(format!("{error} {}", phase.name()))),
    }
}

/// What a panic of the engine's thread means.
pub(crate) fn of_panic(phase: Phase, payload: &(dyn Any + Send)) -> EngineError {
    let text = message(payload);
    let own = judge(phase, &text);
    let others = || {
        let heard = HEARD.lock();
        let mut latest_first = heard.iter().rev();
        latest_first.find_map(|text| judge(phase, text))
    };
    own.or_else(|| says_only_that_a_thread_is_gone(&text).then(others)?)
        .unwrap_or(EngineError::Panicked(text))
}

fn judge(phase: Phase, text: &str) -> Option<EngineError> {
    let cause = device::cause_of(text)?;
    let line = first_line(text);
    let phase = phase.name();
    Some(match cause {
        Cause::Memory => EngineError::Memory(format!("out of memory {phase}: {line}")),
        Cause::Device => EngineError::Device(format!("the device cannot be used: {line}")),
        _ => EngineError::Fault(format!("the device failed {phase}: {line}")),
    })
}

/// Backtraces and kernel sources follow in some messages.
fn first_line(text: &str) -> String {
    let cut = ["Backtrace", "[Source]", "stack backtrace", "\n   0:"];
    let end = cut.iter().filter_map(|mark| text.find(mark)).min();
    let text = &text[..end.unwrap_or(text.len())];
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_CHARS) {
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

fn says_only_that_a_thread_is_gone(text: &str) -> bool {
    ["RecvError", "SendError", "isconnected"]
        .iter()
        .any(|word| text.contains(word))
}

fn message(payload: &dyn Any) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| {
            payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
        })
        .unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, cause: Cause, says: &str) {
        let error = of_panic(Phase::Step, &text.to_owned());
        assert_eq!(error.cause(), cause, "{error}");
        let line = error.to_string();
        assert!(line.contains(says) && !line.contains('\n'), "{line}");
    }

    #[test]
    fn texts_of_the_libraries_are_understood() {
        check(
            "out of device memory allocating 4096 bytes\n   0: std::backtrace",
            Cause::Memory,
            "out of memory while a step ran: out of device memory allocating 4096 bytes",
        );
        check(
            "The device is poisoned\nCaused by:\n  a launch failed\nBacktrace:\n  0: x",
            Cause::Fault,
            "the device failed while a step ran: The device is poisoned Caused by: a launch failed",
        );
        check("Parent device is lost", Cause::Fault, "lost");
        check(
            "index out of bounds: 3 of 2",
            Cause::Engine,
            "index out of bounds",
        );
    }

    #[test]
    fn a_typed_error_keeps_its_type() {
        let error = of_error(Phase::Load, EngineError::Memory("nothing left".into()));
        assert!(matches!(error, EngineError::Memory(text) if text == "nothing left"));
    }
}
