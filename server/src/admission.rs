//! Who may enter. Keys are here; the queue's limit is the engine's.

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use subtle::{Choice, ConstantTimeEq as _};

use crate::error::ApiError;

/// Lets a request in if no keys are configured or it shows one of them, as `Authorization: Bearer K`
/// or `x-api-key: K`. How long this takes depends on no key's content.
pub(crate) fn authenticate(keys: &[String], headers: &HeaderMap) -> Result<(), ApiError> {
    if keys.is_empty() {
        return Ok(());
    }
    let shown =
        bearer(headers).or_else(|| headers.get("x-api-key").map(http::HeaderValue::as_bytes));
    let Some(shown) = shown else {
        return Err(refusal(
            "no API key was given: send `Authorization: Bearer KEY`",
        ));
    };
    let known = keys.iter().fold(Choice::from(0), |known, key| {
        known | key.as_bytes().ct_eq(shown)
    });
    if known.into() {
        Ok(())
    } else {
        Err(refusal("the API key is not known here"))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("bearer".len())?;
    let rest = key.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer") && rest.len() < key.len()).then_some(rest)
}

fn refusal(message: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "authentication_error",
        "invalid_api_key",
        message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &'static str)], enters: bool) {
        let map = headers
            .iter()
            .map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, http::HeaderValue::from_static(value))
            })
            .collect();
        let keys = ["first".to_owned(), "second key".to_owned()];
        let outcome = authenticate(&keys, &map);
        assert_eq!(outcome.is_ok(), enters, "{headers:?}");
        if let Err(error) = outcome {
            assert_eq!(error.status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(authenticate(&[], &map), Ok(()), "no keys: off");
    }

    #[test]
    fn keys_open_the_door() {
        check(&[("authorization", "Bearer first")], true);
        check(&[("authorization", "bEaReR  first")], true);
        check(&[("authorization", "Bearer second key")], true);
        check(&[("x-api-key", "first")], true);
        // A proxy's own scheme does not hide the client's key.
        check(
            &[("authorization", "Basic abc"), ("x-api-key", "first")],
            true,
        );
    }

    #[test]
    fn everything_else_stays_out() {
        check(&[], false);
        check(&[("authorization", "Bearer")], false);
        check(&[("authorization", "Bearer ")], false);
        check(&[("authorization", "Bearerfirst")], false);
        check(&[("authorization", "first")], false);
        check(&[("authorization", "Bearer firs")], false);
        check(&[("authorization", "Bearer firstx")], false);
        check(&[("authorization", "Bearer First")], false);
        check(&[("x-api-key", "")], false);
        check(
            &[("authorization", "Bearer wrong"), ("x-api-key", "first")],
            false,
        );
    }
}
