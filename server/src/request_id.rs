//! `x-request-id`: the client's if it is well-formed, else ours.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderValue};

/// Two requests may carry the same client-given id; nothing but logs and the header depends on it.
pub(crate) fn accept_or_make(headers: &HeaderMap) -> Arc<str> {
    headers
        .get("x-request-id")
        .and_then(|value| value.to_str().ok())
        .filter(|id| is_well_formed(id))
        .map_or_else(make, Arc::from)
}

/// The header's value.
pub(crate) fn header(id: &str) -> HeaderValue {
    HeaderValue::from_str(id).expect("well-formed ids are ASCII letters, digits and ._-")
}

fn is_well_formed(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Unique within the process by its counter and, in all likelihood, between processes by keys that
/// the standard library draws from the system's entropy.
pub(crate) fn make() -> Arc<str> {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let noise = KEYS.hash_one(n);
    format!("req_{noise:016x}{n:08x}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(id: &[u8]) -> Arc<str> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(id).expect("a header value");
        headers.insert("x-request-id", value);
        accept_or_make(&headers)
    }

    #[test]
    fn well_formed_ids_are_kept() {
        for id in ["a", "trace-1.2_3", &"x".repeat(128)] {
            assert_eq!(&*given(id.as_bytes()), id);
        }
    }

    #[test]
    fn others_are_replaced_by_distinct_ones() {
        let mut seen = std::collections::HashSet::new();
        for id in [&b""[..], b"a b", b"a\tb", &[b'x'; 129], b"\xff", b"a/b"] {
            let made = given(id);
            assert!(made.starts_with("req_") && is_well_formed(&made), "{made}");
            assert!(seen.insert(made));
        }
    }
}
