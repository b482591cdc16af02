//! Server-sent events: framing and the streaming body.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use crate::api::flavour::Flavour;
use crate::error::ApiError;
use crate::state::Response;

/// The last event of every stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// A comment that keeps proxies from closing a silent stream.
pub fn keep_alive(flavour: Flavour) -> &'static [u8] {
    match flavour {
        Flavour::OpenRouter => b": OPENROUTER PROCESSING\n\n",
        _ => b": keep-alive\n\n",
    }
}

/// Opens an event whose data the caller writes, as one line.
pub fn begin(frame: &mut Vec<u8>) {
    frame.extend_from_slice(b"data: ");
}

/// Opens an event that says what it is; its data is written as after [`begin`].
pub fn begin_named(name: &str, frame: &mut Vec<u8>) {
    frame.extend_from_slice(b"event: ");
    frame.extend_from_slice(name.as_bytes());
    frame.push(b'\n');
    begin(frame);
}

/// Ends an event.
pub fn end(frame: &mut Vec<u8>) {
    frame.extend_from_slice(b"\n\n");
}

/// What a stream says when it cannot go on.
pub fn error(error: &ApiError, flavour: Flavour, request_id: &str, frame: &mut Vec<u8>) {
    begin(frame);
    // Cloudflare's streams have no envelope, so their errors have none either.
    let flavour = match flavour {
        Flavour::Cloudflare | Flavour::CloudflareRest => Flavour::OpenAi,
        other => other,
    };
    frame.extend_from_slice(error.body(flavour, request_id).to_string().as_bytes());
    end(frame);
}

/// 200 with a body of events; the headers go out at once.
pub fn response(frames: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let frames = frames.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
