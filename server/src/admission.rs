//! Who may enter. Keys are here; the queue's limit is the engine's.

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::error::ApiError;

/// Lets a request in if no keys are configured or it shows one of them, as `Authorization: Bearer K`
/// or `x-api-key: K`, and says which. How long this takes depends on no key's content.
pub(crate) fn authenticate(
    keys: &[String],
    headers: &HeaderMap,
) -> Result<Option<usize>, ApiError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let shown =
        bearer(headers).or_else(|| headers.get("x-api-key").map(http::HeaderValue::as_bytes));
    let Some(shown) = shown else {
        return Err(refusal(
            "no API key was given: send `Authorization: Bearer KEY`",
        ));
    };
    // 0 is none; every key is looked at.
    let found = keys.iter().zip(1_u64..).fold(0, |found, (key, i)| {
        u64::conditional_select(&found, &i, key.as_bytes().ct_eq(shown))
    });
    match found.checked_sub(1) {
        Some(index) => Ok(Some(index as usize)),
        None => Err(refusal("the API key is not known here")),
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
        assert_eq!(authenticate(&[], &map), Ok(None), "no keys: off");
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
    fn keys_are_told_apart() {
        let keys = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        for (i, key) in keys.iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().expect("a header value"));
            assert_eq!(authenticate(&keys, &headers), Ok(Some(i)));
        }
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
