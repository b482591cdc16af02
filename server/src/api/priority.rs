//! Whom a request goes before: those who wait for a place, and those who must yield theirs when memory
//! is short.
//!
//! Anybody may ask for it, as with the APIs that have `service_tier`, and what it can do is bounded: a
//! level makes up for 256 steps of waiting (some seconds), and there are a few, so whoever has waited
//! long enough goes before everybody who comes later. A gateway that sells priority sets the header,
//! which wins over the body.

use http::HeaderMap;

use crate::api::fields::Fields;
use crate::error::ApiError;

/// A whole number, higher goes first.
pub(crate) const HEADER: &str = "x-request-priority";

/// Either way.
pub(crate) const MOST: i8 = 8;
/// Of the tiers that cost more, and with the other sign of the one that costs less.
const TIER: i8 = 4;

/// What `service_tier` and vLLM's `priority`, where lower goes first, ask for; the latter wins. `None`:
/// nothing, so what the key's terms say.
pub(crate) fn of_body(fields: &Fields<'_>) -> Result<Option<i8>, ApiError> {
    let tier = fields.word(
        "service_tier",
        &["auto", "default", "flex", "scale", "priority", "fast"],
    )?;
    let tier = match tier {
        None | Some("auto") => None,
        Some("priority" | "fast") => Some(TIER),
        Some("flex") => Some(-TIER),
        Some(_) => Some(0),
    };
    let most = i128::from(MOST);
    let given = fields.int("priority", i64::MIN.into()..=i64::MAX.into())?;
    let given = given.map(|given| -given.clamp(-most, most) as i8);
    Ok(given.or(tier))
}

/// What the header asks for, if it is there.
pub(crate) fn of_header(headers: &HeaderMap) -> Result<Option<i8>, ApiError> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let number = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match number {
        Some(number) if (-MOST..=MOST).contains(&number) => Ok(Some(number)),
        _ => Err(ApiError::invalid_value(
            HEADER,
            format!("must be a whole number from -{MOST} to {MOST}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn bodies() {
        let read = |body: &Value| {
            let body = body.as_object().expect("an object");
            of_body(&Fields::root(body))
        };
        for silent in [
            json!({}),
            json!({"service_tier": null}),
            json!({"service_tier": "auto"}),
        ] {
            assert_eq!(read(&silent).ok(), Some(None), "{silent:?}");
        }
        let check = |body: Value, expect: Option<i8>| {
            assert_eq!(read(&body).ok().flatten(), expect, "{body:?}");
        };
        check(json!({"service_tier": "default"}), Some(0));
        check(json!({"service_tier": "priority"}), Some(4));
        check(json!({"service_tier": "fast"}), Some(4));
        check(json!({"service_tier": "flex"}), Some(-4));
        check(json!({"service_tier": "gold"}), None);
        check(json!({"priority": 3}), Some(-3));
        check(json!({"priority": -1_000_000}), Some(8));
        check(json!({"priority": i64::MAX}), Some(-8));
        check(json!({"priority": 0, "service_tier": "flex"}), Some(0));
        check(json!({"priority": 1.5}), None);
        check(json!({"priority": "high"}), None);
    }

    #[test]
    fn headers() {
        let check = |value: &'static str, expect: Option<i8>| {
            let value = http::HeaderValue::from_static(value);
            let headers = [(http::HeaderName::from_static(HEADER), value)];
            let got = of_header(&headers.into_iter().collect());
            assert_eq!(got.ok(), expect.map(Some));
        };
        check("3", Some(3));
        check("-8", Some(-8));
        check("+2", Some(2));
        check(" 0 ", Some(0));
        for bad in ["", "9", "-9", "high", "1.5", "3,4"] {
            check(bad, None);
        }
        assert_eq!(of_header(&HeaderMap::new()).ok(), Some(None));
    }
}
