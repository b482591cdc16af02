//! Runs the scheduler's plans on the model.

mod checkpoint;
mod config;
mod device;
mod engine_core;
mod error;
mod handle;
mod memory;
pub mod model;
mod open;

pub use config::{DtypeChoice, EngineConfig, ModelSource};
pub use device::DeviceChoice;
pub use engine_core::{LoadProgress, spawn};
pub use error::EngineError;
pub use handle::{
    EngineHandle, EngineInfo, EngineStats, EngineStatus, RequestStream, StreamEvent, SubmitError,
};
pub use memory::MAX_MODEL_LEN;
pub use model::ModelConfig;
pub use open::{Engine, Opened};
