//! Bodies of requests: bounded in bytes and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use crate::error::ApiError;
use crate::state::ServerConfig;

/// How much of a refused body is read and thrown away, and for how long. A client that is still
/// sending when the connection closes never sees why; most bodies end within this.
const DISCARD_BYTES: u64 = 256 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// Reads all of it. A declared length over the limit is refused before a byte is read, so that a
/// client that waits for `100 Continue` sends nothing.
pub(crate) async fn read(mut body: Incoming, config: &ServerConfig) -> Result<Bytes, ApiError> {
    let max = config.max_body_bytes;
    if body.size_hint().lower() > max as u64 {
        discard(body);
        return Err(too_large(max));
    }
    match timeout(config.body_timeout, collect(&mut body, max)).await {
        Ok(Ok(Some(whole))) => Ok(whole),
        Ok(Ok(None)) => {
            discard(body);
            Err(too_large(max))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(
            "invalid_body",
            None,
            format!("the body could not be read: {error}"),
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "request_timeout",
            format!(
                "the body did not arrive within {} s",
                config.body_timeout.as_secs_f32()
            ),
        )),
    }
}

/// `None`: it is longer than `max`, and what follows was not read.
async fn collect(body: &mut Incoming, max: usize) -> hyper::Result<Option<Bytes>> {
    // What a client declares is believed only so far.
    let expected = body.size_hint().lower().min(1 << 20) as usize;
    let mut whole = BytesMut::with_capacity(expected);
    while let Some(frame) = body.frame().await {
        // Trailers mean nothing here.
        if let Some(data) = frame?.data_ref() {
            if whole.len() + data.len() > max {
                return Ok(None);
            }
            whole.extend_from_slice(data);
        }
    }
    Ok(Some(whole.freeze()))
}

/// Reads on in the background and keeps nothing, so that the answer is not lost to a reset.
pub(crate) fn discard(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(timeout(DISCARD_TIME, async move {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(len) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }));
}

fn too_large(max: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "invalid_request_error",
        "request_too_large",
        format!("the body is larger than {max} bytes"),
    )
}
