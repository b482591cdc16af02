//! `--api-key-file`: who may enter, and on what terms.
//!
//! ```toml
//! [[key]]
//! name = "team-a"                # in logs and metrics: letters, digits and ._-
//! sha256 = "9f86d081…"           # of the key; a list while a key is being replaced
//! requests-per-minute = 600      # whatever follows is optional
//! tokens-per-minute = 200000
//! max-concurrency = 16
//! max-queue = 8
//! max-queued-tokens = 100000
//! max-slots = 32
//! budget-tokens = 100000000
//! priority = 0
//! max-priority = 4
//! weight = 2
//! models = ["nvidia/nemotron-3-super-120b-a12b"]
//! cache-salt = "team-a"
//! operator = false
//! enabled = true
//! ```
//!
//! The file has no key in it, and no message about it repeats what it says but names and numbers.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::key_ring::{Hash, hash};
use crate::api::priority::MOST as MOST_PRIORITY;

/// Entries at most: each is compared with every request's key.
const MAX_KEYS: usize = 4096;
/// A key file is text that somebody wrote; a larger one is something else.
const MAX_BYTES: u64 = 8 << 20;

/// What holds for one key. `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Requests in a minute.
    pub requests_per_minute: Option<u64>,
    /// Prompt and generated tokens in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub max_concurrency: Option<u64>,
    /// Requests at once that have no token yet.
    pub max_queue: Option<u64>,
    /// Prompt tokens of those.
    pub max_queued_tokens: Option<u64>,
    /// Choices at once, each of which takes a state slot.
    pub max_slots: Option<u64>,
    /// Prompt and generated tokens since the process started.
    pub budget_tokens: Option<u64>,
    /// Of requests that say nothing.
    pub priority: i8,
    /// Whatever they say.
    pub max_priority: i8,
    /// Share of the machine while others want it too.
    pub weight: u16,
    /// Names of the model that it may use; `None`: all.
    pub models: Option<Vec<String>>,
    /// Keys of one salt share cached prefixes. `None`: what a client gives is all there is.
    pub cache_salt: Option<String>,
    /// Whether it sees what tells of others: `/debug/cache`, `/debug/flight`.
    pub operator: bool,
    /// Whether it opens the door.
    pub enabled: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            tokens_per_minute: None,
            max_concurrency: None,
            max_queue: None,
            max_queued_tokens: None,
            max_slots: None,
            budget_tokens: None,
            priority: 0,
            max_priority: MOST_PRIORITY,
            weight: 1,
            models: None,
            cache_salt: None,
            operator: true,
            enabled: true,
        }
    }
}

/// One key, or several that are one client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// Of the client.
    pub name: String,
    /// Any of these.
    pub hashes: Vec<Hash>,
    /// On what terms.
    pub terms: Terms,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: OneOrMore,
    enabled: Option<bool>,
    requests_per_minute: Option<u64>,
    tokens_per_minute: Option<u64>,
    max_concurrency: Option<u64>,
    max_queue: Option<u64>,
    max_queued_tokens: Option<u64>,
    max_slots: Option<u64>,
    budget_tokens: Option<u64>,
    priority: Option<i8>,
    max_priority: Option<i8>,
    weight: Option<u16>,
    models: Option<Vec<String>>,
    cache_salt: Option<String>,
    operator: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Reads and checks the file.
///
/// # Errors
/// It cannot be read or says something that makes no sense; the message names file and entry, and never
/// quotes what may be a key.
pub fn read(path: &Path) -> Result<Vec<KeyEntry>, String> {
    let fail = |what: String| format!("{}: {what}", path.display());
    let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if size.len() > MAX_BYTES {
        return Err(fail(format!(
            "{} bytes, at most {MAX_BYTES} are read",
            size.len()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    parse(&text).map_err(fail)
}

pub(crate) fn parse(text: &str) -> Result<Vec<KeyEntry>, String> {
    let file: File = toml::from_str(text).map_err(|error| located(&error, text))?;
    if file.key.is_empty() {
        return Err("it has no [[key]], so nobody could enter".into());
    }
    if file.key.len() > MAX_KEYS {
        return Err(format!(
            "it has {} keys, at most {MAX_KEYS} are served",
            file.key.len()
        ));
    }
    let mut entries: Vec<KeyEntry> = Vec::with_capacity(file.key.len());
    let mut names = HashMap::new();
    let mut owners = HashMap::new();
    for (i, entry) in file.key.into_iter().enumerate() {
        let entry = entry.check(i + 1)?;
        if let Some(first) = names.insert(entry.name.clone(), i + 1) {
            return Err(format!(
                "key {}: the name {:?} is that of key {first}",
                i + 1,
                entry.name
            ));
        }
        for hash in &entry.hashes {
            if let Some(owner) = owners.insert(*hash, entry.name.clone()) {
                return Err(format!(
                    "{}: one of its keys is one of {owner}'s",
                    entry.name
                ));
            }
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Where the mistake is and what it is, without the line itself.
fn located(error: &toml::de::Error, text: &str) -> String {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text.as_bytes()[..start];
    let line = before.split(|byte| *byte == b'\n').count() - 1;
    // The parser quotes strings where it expected something else.
    let message = error.message();
    let message = message.split('"').step_by(2).collect::<Vec<_>>().join("…");
    format!("line {}: {}", line + 1, message.trim())
}

impl Entry {
    fn check(self, number: usize) -> Result<KeyEntry, String> {
        if !is_word(&self.name) {
            return Err(format!(
                "key {number}: `name` must have 1 to 64 letters, digits, '.', '_' or '-'"
            ));
        }
        let name = self.name;
        let fail = |what: &str| Err(format!("{name}: {what}"));
        let texts = match self.sha256 {
            OneOrMore::One(text) => vec![text],
            OneOrMore::More(texts) => texts,
        };
        if texts.is_empty() {
            return fail("`sha256` lists nothing");
        }
        let hashes: Option<Vec<Hash>> = texts.iter().map(|text| from_hex(text)).collect();
        let Some(hashes) = hashes else {
            return fail("`sha256` must be 64 hexadecimal digits, as `nemoserve key` prints them");
        };
        if hashes.contains(&hash(b"")) {
            return fail("`sha256` is that of an empty key, which would let everybody in");
        }
        for (field, limit) in [
            ("requests-per-minute", self.requests_per_minute),
            ("tokens-per-minute", self.tokens_per_minute),
            ("max-concurrency", self.max_concurrency),
            ("max-queue", self.max_queue),
            ("max-queued-tokens", self.max_queued_tokens),
            ("max-slots", self.max_slots),
            ("budget-tokens", self.budget_tokens),
            ("weight", self.weight.map(u64::from)),
        ] {
            if limit == Some(0) {
                return fail(&format!(
                    "`{field}` is 0, at least 1 is needed; `enabled = false` shuts a key out"
                ));
            }
        }
        let max_priority = self.max_priority.unwrap_or(MOST_PRIORITY);
        let priority = self.priority.unwrap_or(max_priority.min(0));
        // The default follows the cap, so a wrong cap is named first.
        for (field, value) in [("max-priority", max_priority), ("priority", priority)] {
            if !(-MOST_PRIORITY..=MOST_PRIORITY).contains(&value) {
                return fail(&format!(
                    "`{field}` is {value}, must be -{MOST_PRIORITY} to {MOST_PRIORITY}"
                ));
            }
        }
        if priority > max_priority {
            return fail(&format!(
                "`priority` is {priority} and `max-priority` {max_priority}"
            ));
        }
        if self.models.as_ref().is_some_and(Vec::is_empty) {
            return fail("`models` lists nothing, so it could use none");
        }
        // Its own pool, unless it is to share one.
        let cache_salt = self.cache_salt.unwrap_or_else(|| name.clone());
        if !cache_salt.is_empty() && !is_word(&cache_salt) {
            return fail(
                "`cache-salt` must have at most 64 letters, digits, '.', '_' or '-'; none: the common pool",
            );
        }
        let terms = Terms {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            max_concurrency: self.max_concurrency,
            max_queue: self.max_queue,
            max_queued_tokens: self.max_queued_tokens,
            max_slots: self.max_slots,
            budget_tokens: self.budget_tokens,
            priority,
            max_priority,
            weight: self.weight.unwrap_or(1),
            models: self.models,
            cache_salt: Some(cache_salt),
            operator: self.operator.unwrap_or(false),
            enabled: self.enabled.unwrap_or(true),
        };
        Ok(KeyEntry {
            name,
            hashes,
            terms,
        })
    }
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn from_hex(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::key_ring::to_hex;

    fn entry(name: &str, key: &str, more: &str) -> String {
        let sha256 = to_hex(&hash(key.as_bytes()));
        format!("[[key]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{more}\n")
    }

    #[test]
    fn a_short_entry_has_no_limits_and_a_pool_of_its_own() {
        let entries = parse(&entry("a.b_c-1", "k", "")).expect("valid");
        let expect = KeyEntry {
            name: "a.b_c-1".into(),
            hashes: vec![hash(b"k")],
            terms: Terms {
                cache_salt: Some("a.b_c-1".into()),
                operator: false,
                ..Terms::default()
            },
        };
        assert_eq!(entries, [expect]);
    }

    #[test]
    fn every_field_is_read() {
        let more = "enabled = false\nrequests-per-minute = 1\ntokens-per-minute = 2\n\
            max-concurrency = 3\nmax-queue = 4\nmax-queued-tokens = 5\nmax-slots = 6\n\
            budget-tokens = 7\npriority = -2\nmax-priority = 2\nweight = 8\nmodels = [\"m\"]\n\
            cache-salt = \"\"\noperator = true\n";
        let entries = parse(&entry("a", "k", more)).expect("valid");
        let expect = Terms {
            requests_per_minute: Some(1),
            tokens_per_minute: Some(2),
            max_concurrency: Some(3),
            max_queue: Some(4),
            max_queued_tokens: Some(5),
            max_slots: Some(6),
            budget_tokens: Some(7),
            priority: -2,
            max_priority: 2,
            weight: 8,
            models: Some(vec!["m".into()]),
            cache_salt: Some(String::new()),
            operator: true,
            enabled: false,
        };
        assert_eq!(entries[0].terms, expect);
        let capped = parse(&entry("a", "k", "max-priority = -3")).expect("valid");
        assert_eq!(capped[0].terms.priority, -3);
        let both = [to_hex(&hash(b"old")), to_hex(&hash(b"new"))];
        let text = format!("[[key]]\nname = \"a\"\nsha256 = {both:?}\n");
        let entries = parse(&text).expect("valid");
        assert_eq!(entries[0].hashes, [hash(b"old"), hash(b"new")]);
    }

    #[test]
    fn the_example_is_a_key_file_that_lets_nobody_in() {
        let example = include_str!("../../../deploy/keys.example.toml");
        let entries = parse(example).expect("it is valid");
        assert!(entries.len() > 1);
        assert!(entries.iter().all(|entry| !entry.terms.enabled));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, says: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.contains(says), "{error} says nothing of {says}");
        };
        check("", "no [[key]]");
        check("[[keys]]\nname = \"a\"", "`keys`");
        check("key = 5", "line 1");
        check("[[key]]\nname = \"a\"", "sha256");
        check("[[key]]\nname = \"a\"\nsha256 = 5", "line ");
        check("[[key]]\nname = \"a\"\nsha256 = []", "lists nothing");
        check("[[key]]\nname = \"a\"\nsha256 = \"abc\"", "64 hexadecimal");
        check(&entry("a", "", ""), "empty key");
        for name in ["", "a b", "ä", "a/b", "a\\n", &"x".repeat(65)] {
            check(&entry(name, "k", ""), "key 1: `name`");
        }
        check(
            &(entry("a", "k", "") + &entry("a", "l", "")),
            "that of key 1",
        );
        check(&(entry("a", "k", "") + &entry("b", "k", "")), "a's");
        for (more, says) in [
            ("requests-per-minute = 0", "`requests-per-minute` is 0"),
            ("tokens-per-minute = -1", "line 4"),
            ("max-slots = \"many\"", "line 4"),
            ("weight = 0", "`weight` is 0"),
            ("weight = 65536", "line 4"),
            ("priority = 9", "`priority` is 9"),
            ("max-priority = -9", "`max-priority` is -9"),
            ("priority = 3\nmax-priority = 2", "`priority` is 3 and"),
            ("models = []", "`models`"),
            ("cache-salt = \"a/b\"", "`cache-salt`"),
            ("rpm = 5", "`rpm`"),
        ] {
            check(&entry("a", "k", more), says);
        }
        let many: String = (0..=MAX_KEYS)
            .map(|i| entry(&format!("n{i}"), &format!("k{i}"), ""))
            .collect();
        check(&many, "4097 keys");
    }

    #[test]
    fn a_key_written_where_its_hash_belongs_is_not_repeated() {
        let secret = "nsk-not-for-logs";
        for text in [
            format!("[[key]]\nname = \"a\"\nsha256 = \"{secret}\""),
            format!("[[key]]\nname = \"a\"\nkey = \"{secret}\""),
            format!("[[key]]\nname = \"a\"\nsha256 = \"x\"\nweight = \"{secret}\""),
            format!("[[key]]\nname = \"{secret} {secret}\"\nsha256 = \"x\""),
            format!("[[key]]\nname = \"a\" {secret}"),
            format!("key = \"{secret}\""),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(!error.contains(secret), "{error}");
        }
    }
}
