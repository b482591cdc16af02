//! Cross-origin rules, so that a page in a browser may call the API.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt as _, Empty};

use crate::state::Response;

const HEADERS: &str = "authorization, content-type, x-api-key, x-request-id";
const EXPOSED: &str = "x-request-id, request-id, openai-processing-ms, retry-after, retry-after-ms, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// 204 for `OPTIONS` on a known path: which methods and headers a page may use, for a day.
pub(crate) fn preflight(methods: &'static str, request: &HeaderMap) -> Response {
    let mut response = http::Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(methods),
    );
    // SDKs send headers of their own invention, and `*` does not cover `authorization`: what the page
    // asks for is granted.
    let asked = request
        .get(ACCESS_CONTROL_REQUEST_HEADERS)
        .filter(|asked| is_header_list(asked.as_bytes()))
        .cloned()
        .unwrap_or(HeaderValue::from_static(HEADERS));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// Names the origins that may read the answer: `*`, or the asking one if it is listed.
pub(crate) fn allow_origin(allowed: &[String], request: &HeaderMap, response: &mut HeaderMap) {
    let any = allowed.iter().any(|origin| origin == "*");
    if !any {
        // A cache must not hand one origin's answer to another.
        response.append(VARY, HeaderValue::from_static("origin"));
    }
    let grant = match request.get(ORIGIN) {
        Some(_) if any => Some(HeaderValue::from_static("*")),
        Some(origin)
            if allowed
                .iter()
                .any(|one| one.as_bytes() == origin.as_bytes()) =>
        {
            Some(origin.clone())
        }
        // A preflight without an origin keeps its `*` only if all origins are allowed.
        None if any => return,
        _ => None,
    };
    match grant {
        Some(origin) => {
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            response.insert(
                ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static(EXPOSED),
            );
        }
        None => {
            response.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
        }
    }
}

fn is_header_list(bytes: &[u8]) -> bool {
    bytes.len() <= 2048
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_, ".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(allowed: &[&str], origin: Option<&'static str>) -> Option<String> {
        let allowed: Vec<_> = allowed.iter().map(|one| (*one).to_owned()).collect();
        let mut request = HeaderMap::new();
        if let Some(origin) = origin {
            request.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        let mut response = preflight("GET", &request).headers().clone();
        allow_origin(&allowed, &request, &mut response);
        response
            .get(ACCESS_CONTROL_ALLOW_ORIGIN)
            .map(|value| value.to_str().expect("ASCII").to_owned())
    }

    #[test]
    fn origins_are_granted_as_listed() {
        assert_eq!(
            grant(&["*"], Some("https://a.example")).as_deref(),
            Some("*")
        );
        assert_eq!(grant(&["*"], None).as_deref(), Some("*"));
        let listed = &["https://a.example", "https://b.example"];
        let b = "https://b.example";
        assert_eq!(grant(listed, Some(b)).as_deref(), Some(b));
        assert_eq!(grant(listed, Some("https://c.example")), None);
        assert_eq!(grant(listed, None), None);
    }

    #[test]
    fn only_header_names_are_echoed() {
        assert!(is_header_list(b"Authorization, x-stainless-lang"));
        assert!(!is_header_list(b"a\"b"));
        assert!(!is_header_list(&[b'a'; 2049]));
    }
}
