//! Which key was shown. How long finding out takes depends on no key's content: what was shown is hashed
//! once, and every hash is compared in full.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::tenant::Tenant;
use crate::error::ApiError;

/// SHA-256 of a key.
pub type Hash = [u8; 32];

/// Of a key.
pub fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

/// As the key file has it.
pub fn to_hex(hash: &Hash) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in hash {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
    }
    text
}

/// All keys of one moment.
#[derive(Debug, Default)]
pub(crate) struct KeyRing {
    /// By the key's hash.
    pub(crate) keys: Vec<(Hash, Arc<Tenant>)>,
}

impl KeyRing {
    /// Whose key was shown, as `Authorization: Bearer K` or `x-api-key: K`.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, ApiError> {
        let shown =
            bearer(headers).or_else(|| headers.get("x-api-key").map(http::HeaderValue::as_bytes));
        let Some(shown) = shown else {
            return Err(refusal(
                "no API key was given: send `Authorization: Bearer KEY`",
            ));
        };
        let hashes = self.keys.iter().map(|(hash, _)| hash);
        let Some(index) = position(hashes, &hash(shown)) else {
            return Err(refusal("the API key is not known here"));
        };
        let tenant = &self.keys[index].1;
        if !tenant.terms().enabled {
            return Err(refusal("the API key is disabled"));
        }
        Ok(Arc::clone(tenant))
    }
}

/// Where `wanted` is; all of `hashes` are looked at.
fn position<'a>(hashes: impl Iterator<Item = &'a Hash>, wanted: &Hash) -> Option<usize> {
    // 0 is none.
    let found = hashes.zip(1_u64..).fold(0, |found, (hash, i)| {
        u64::conditional_select(&found, &i, hash.ct_eq(wanted))
    });
    found.checked_sub(1).map(|index| index as usize)
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
    use crate::admission::key_file::Terms;

    fn ring(keys: &[&str]) -> KeyRing {
        let tenant = |i: u32| Arc::new(Tenant::new(i, None, Terms::default()));
        let keys = keys.iter().zip(1..);
        KeyRing {
            keys: keys
                .map(|(key, i)| (hash(key.as_bytes()), tenant(i)))
                .collect(),
        }
    }

    fn check(headers: &[(&'static str, &'static str)], enters: bool) {
        let map = headers
            .iter()
            .map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, http::HeaderValue::from_static(value))
            })
            .collect();
        let outcome = ring(&["first", "second key"]).find(&map);
        assert_eq!(outcome.is_ok(), enters, "{headers:?}");
        if let Err(error) = outcome {
            assert_eq!(error.status, StatusCode::UNAUTHORIZED);
        }
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
        let keys = ["a", "b", "c"];
        for (key, number) in keys.iter().zip(1..) {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().expect("a header value"));
            let tenant = ring(&keys).find(&headers).expect("it is known");
            assert_eq!(tenant.number(), number);
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

    #[test]
    fn every_hash_is_looked_at_wherever_the_right_one_is() {
        let hashes = [b"a", b"b", b"c", b"d"].map(|key| hash(key));
        for wanted in [b"a", b"b", b"d", b"x"] {
            let mut num_seen = 0;
            let seen = hashes.iter().inspect(|_| num_seen += 1);
            let found = position(seen, &hash(wanted));
            assert_eq!(found.is_some(), wanted != b"x");
            assert_eq!(num_seen, hashes.len());
        }
    }

    #[test]
    fn hashes_are_those_of_everybody_else() {
        // `printf %s test | sha256sum`
        let expect = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(to_hex(&hash(b"test")), expect);
    }
}
