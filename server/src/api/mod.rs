//! One file per endpoint, and what they share.
//!
//! | File | Holds |
//! |---|---|
//! | `chat`, `completions`, `models`, `utility` | an endpoint each: what it reads, how it answers |
//! | `responses`, `anthropic` | the two that are no chat: items and events, content blocks |
//! | `mapping` | from another API's body to the chat form, and errors back |
//! | `hosted` | tools that only a provider's servers can run |
//! | `sealed` | thoughts in fields that clients hand back unread |
//! | `flavour` | whose manners a route has |
//! | `flavours/` | a provider each: how its bodies map to chat, what it says beside the answer |
//! | `prices` | what tokens cost |
//! | `fields` | reading JSON with errors that name the path |
//! | `params`, `thinking`, `messages`, `tools` | parameters, reasoning settings, the history, what may be called |
//! | `prompt` | text to ids, away from the threads that serve sockets |
//! | `breakpoints` | where in a prompt blocks end that its client wants cached |
//! | `generation` | all prompts and choices of a request, in flight |
//! | `choice`, `calls` | one choice: tokens in; text, calls and log-probabilities out |
//! | `stream` | a generation as events |
//! | `debug` | what the prefix cache holds, for operators |
//! | `priority` | whom a request goes before |
//! | `render` | the prompt and parameters of a request that is not run |
//! | `openapi` | `/openapi.json`: the routes and their bodies, for programs and people |
//! | `types`, `extras` | what goes over the wire, and what of it on request |

pub mod anthropic;
mod breakpoints;
pub mod calls;
pub mod chat;
pub mod choice;
pub mod completions;
pub mod debug;
pub mod extras;
pub mod fields;
pub mod flavour;
pub mod flavours;
pub mod generation;
pub mod hosted;
pub mod mapping;
pub mod messages;
pub mod models;
pub mod openapi;
pub mod params;
pub mod prices;
pub mod priority;
pub mod prompt;
pub mod render;
pub mod responses;
pub mod sealed;
pub mod stream;
pub mod thinking;
pub mod tools;
pub mod types;
pub mod utility;
