//! The front end over real sockets, with a scripted model behind it: what HTTP allows, what the
//! contract promises, who may enter, and how it ends.

mod admission;
mod deadline;
mod debug;
mod doors;
mod flight;
mod frames;
mod harness;
mod headers;
mod health;
mod http2;
mod lifecycle;
mod limits;
mod messages;
mod observability;
mod panics;
mod priority;
mod tls;
mod traces;
mod wire;
