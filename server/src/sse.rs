//! Server-sent events: framing and the streaming body.
