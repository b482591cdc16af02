//! Runs the scheduler's plans on the model.

mod batch;
mod cache;
mod checkpoint;
mod config;
mod device;
mod engine_core;
mod error;
mod handle;
mod layers;
mod machine;
mod memory;
pub mod model;
mod model_runner;
mod noise;
mod open;
mod sampler;

pub use config::{DtypeChoice, EngineConfig, ModelSource};
pub use device::DeviceChoice;
pub use engine_core::{LoadProgress, spawn};
pub use error::EngineError;
pub use handle::{
    EngineHandle, EngineInfo, EngineStats, EngineStatus, RequestStream, StreamEvent, SubmitError,
};
pub use machine::Machine;
pub use memory::MAX_MODEL_LEN;
pub use model::ModelConfig;
pub use open::{Engine, Opened};
