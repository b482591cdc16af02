//! Until when an answer is of use: `x-request-timeout-ms` and `--request-timeout`, whichever is sooner,
//! from the request's headers on, by a clock that nobody sets.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::error::ApiError;

/// Milliseconds.
pub(crate) const HEADER: &str = "x-request-timeout-ms";

/// A day.
pub(crate) const MAX_MS: u64 = 86_400_000;

/// When a request is over, and how long it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Then.
    pub at: Instant,
    /// Since it came.
    pub after: Duration,
}

impl Deadline {
    /// What the headers ask for and the operator allows.
    pub(crate) fn of(
        headers: &HeaderMap,
        most: Option<Duration>,
        received: std::time::Instant,
    ) -> Result<Option<Self>, ApiError> {
        let asked = of_header(headers)?;
        let after = [asked, most].into_iter().flatten().min();
        Ok(after.map(|after| Self {
            at: Instant::from_std(received) + after,
            after,
        }))
    }

    /// What a client is told, before the first byte as a status and later as the last event.
    pub(crate) fn exceeded(self) -> ApiError {
        ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout_error",
            "deadline_exceeded",
            format!(
                "the answer was not complete within {} ms",
                self.after.as_millis()
            ),
        )
    }
}

fn of_header(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let number = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match number {
        Some(ms) if (1..=MAX_MS).contains(&ms) => Ok(Some(Duration::from_millis(ms))),
        _ => Err(ApiError::invalid_value(
            HEADER,
            format!("must be a whole number of milliseconds from 1 to {MAX_MS}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let value = http::HeaderValue::from_str(value).expect("a header value");
        [(http::HeaderName::from_static(HEADER), value)]
            .into_iter()
            .collect()
    }

    #[test]
    fn the_sooner_one_holds() {
        let received = std::time::Instant::now();
        let check = |asked: Option<&str>, most_ms: Option<u64>, expect_ms: Option<u64>| {
            let headers = asked.map(headers).unwrap_or_default();
            let most = most_ms.map(Duration::from_millis);
            let got = Deadline::of(&headers, most, received).expect("valid");
            let after = got.map(|deadline| deadline.after.as_millis() as u64);
            assert_eq!(after, expect_ms);
            let at = expect_ms.map(|ms| Instant::from_std(received) + Duration::from_millis(ms));
            assert_eq!(got.map(|deadline| deadline.at), at);
        };
        check(None, None, None);
        check(Some("5"), None, Some(5));
        check(None, Some(7), Some(7));
        check(Some("5"), Some(7), Some(5));
        check(Some("9"), Some(7), Some(7));
        check(Some("86400000"), None, Some(MAX_MS));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let received = std::time::Instant::now();
        for bad in [
            "",
            "0",
            "-1",
            "1.5",
            "1e3",
            "86400001",
            "99999999999999999999",
            "soon",
            "5 5",
        ] {
            let error = Deadline::of(&headers(bad), None, received).expect_err(bad);
            assert_eq!(error.param.as_deref(), Some(HEADER), "{bad}");
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
    }
}
