//! The commands beside `serve`.

pub mod chat;
pub mod doctor;
