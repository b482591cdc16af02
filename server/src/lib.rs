//! The front end: speaks HTTP and text, knows no tensor.
//!
//! # The map
//!
//! | File | Holds |
//! |---|---|
//! | `args` | flags, `NEMOSERVE_*` and the configuration file; sole reader of the environment |
//! | `config` | arguments and model folder to each crate's validated configuration |
//! | `state` | [`AppState`](state::AppState): what every request may see |
//! | `http` | [`serve`]: accept loop, limits, graceful drain |
//! | `transport/` | ports, unix sockets, TLS, proxies: all below HTTP |
//! | `connection` | what HTTP reads and writes: idle, slow, stuck or gone |
//! | `watchdog` | ends a process whose engine hangs |
//! | `systemd` | what a service manager is told |
//! | `router` | the route table, one line per endpoint; what all answers have in common |
//! | `request_body`, `request_id`, `cors` | bounded bodies, `x-request-id`, cross-origin rules |
//! | `in_flight` | one request to its last byte: counted, timed, logged |
//! | `grammars` | the compiler of grammars for the loaded model's tokens |
//! | `error` | `ApiError` to status and body |
//! | `sse` | framing and the streaming body |
//! | `timeline`, `traces/` | what a generation went through; spans of it to a collector |
//! | `flight` | the recording of the scheduler's plans, to a client or a file |
//! | `metrics`, `health` | every metric's name and help; alive and ready |
//! | `receipts` | what recent generations used |
//! | `admission/` | who may enter, on what terms, and what is given up when it is crowded |
//! | `api/` | one file per endpoint |
//! | `chat/` | the family: how to talk |
//! | `text/` | tokens to text and back |
//! | `demo/` | the embedded demo model |
//! | `playground/` | the web page at `/` |
//! | `kv_events` | what the cache can be hit with, for routers |
//! | `startup`, `logging` | what a person sees while it starts and runs |
//! | `log_writer` | the log's own thread, so that nobody waits for its reader |
//! | `cli/` | the other commands |
//!
//! # What this crate does not know
//!
//! Tensors, devices, blocks and slots: it hands token ids to an [`engine::EngineHandle`] and reads
//! token ids back. It decides nothing about the order of work.

pub mod admission;
pub mod api;
pub mod args;
pub mod chat;
pub mod cli;
pub mod config;
mod connection;
mod cors;
pub mod demo;
pub mod error;
pub mod flight;
pub mod grammars;
pub mod health;
pub mod http;
mod in_flight;
pub mod kv_events;
pub mod log_writer;
pub mod logging;
pub mod metrics;
mod playground;
pub mod receipts;
mod request_body;
mod request_id;
pub mod router;
pub mod sse;
pub mod startup;
pub mod state;
pub mod systemd;
pub mod text;
pub mod timeline;
pub mod traces;
pub mod transport;
pub mod watchdog;

pub use crate::http::serve;
