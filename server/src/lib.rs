//! The front end: speaks HTTP and text, knows no tensor.
//!
//! # The map
//!
//! | File | Holds |
//! |---|---|
//! | `args` | flags, `NEMOSERVE_*` and the configuration file; sole reader of the environment |
//! | `config` | arguments and model folder to each crate's validated configuration |
//! | `state` | [`AppState`](state::AppState): what every request may see |
//! | `http` | accept loop, limits, graceful drain |
//! | `router` | the route table, one line per endpoint |
//! | `error` | `ApiError` to status and body |
//! | `sse` | framing and the streaming body |
//! | `metrics`, `health` | every metric's name and help; alive and ready |
//! | `admission` | who may enter: keys |
//! | `api/` | one file per endpoint |
//! | `chat/` | the family: how to talk |
//! | `text/` | tokens to text and back |
//! | `demo/` | the embedded demo model |
//! | `startup`, `logging` | what a person sees while it starts and runs |
//! | `cli/` | the other commands |
//!
//! # What this crate does not know
//!
//! Tensors, devices, blocks and slots: it hands token ids to an [`engine::EngineHandle`] and reads
//! token ids back. It decides nothing about the order of work.

pub mod api;
pub mod chat;
pub mod error;
pub mod metrics;
pub mod sse;
pub mod state;
pub mod text;
