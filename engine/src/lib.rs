//! Runs the scheduler's plans on the model.

mod engine_core;
mod error;
mod handle;

pub use engine_core::{LoadProgress, spawn};
pub use error::EngineError;
pub use handle::{
    EngineHandle, EngineInfo, EngineStats, EngineStatus, RequestStream, StreamEvent, SubmitError,
};
