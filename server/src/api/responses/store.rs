//! Answers that a later request may refer to, in bounded memory.

use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use serde_json::Value;

/// Bytes that an entry costs beside its text.
const OVERHEAD: u64 = 256;

/// Responses by id, and which response an output item belongs to. The least used go first.
pub struct ResponseStore {
    entries: Cache<Arc<str>, Entry, ByBytes>,
}

/// One answered request. Both texts are JSON as they went over the wire, so that their length is
/// what they cost.
#[derive(Debug)]
pub struct StoredResponse {
    /// The key that it is for; nobody else sees it.
    pub key: Option<usize>,
    /// The response object.
    pub object: String,
    /// The input's items, without those of `previous`.
    pub input: String,
    /// The response that it continued.
    pub previous: Option<Arc<str>>,
}

#[derive(Clone)]
enum Entry {
    Response(Arc<StoredResponse>),
    /// An output item of this response.
    ItemOf(Arc<str>),
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Arc<str>, Entry> for ByBytes {
    fn weight(&self, id: &Arc<str>, entry: &Entry) -> u64 {
        let text = match entry {
            Entry::Response(response) => response.object.len() + response.input.len(),
            Entry::ItemOf(_) => 0,
        };
        id.len() as u64 + text as u64 + OVERHEAD
    }
}

impl ResponseStore {
    /// Holds at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        // One shard, so that one long conversation may take all of it; and half of it for what is
        // new, since a client asks for its last response, not for its favourite one.
        let options = OptionsBuilder::new()
            .estimated_items_capacity((max_bytes / 4096) as usize)
            .weight_capacity(max_bytes)
            .hot_allocation(0.5)
            .shards(1)
            .build()
            .expect("all options are given and in range");
        let lifecycle = DefaultLifecycle::default();
        Self {
            entries: Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                lifecycle,
            ),
        }
    }

    /// Keeps an answer. `item_ids` are those of its output.
    pub fn insert(&self, id: &str, item_ids: &[String], response: StoredResponse) {
        let id: Arc<str> = id.into();
        for item in item_ids {
            let entry = Entry::ItemOf(Arc::clone(&id));
            self.entries.insert(item.as_str().into(), entry);
        }
        let entry = Entry::Response(Arc::new(response));
        self.entries.insert(id, entry);
    }

    /// A response that belongs to `key`.
    pub fn get(&self, id: &str, key: Option<usize>) -> Option<Arc<StoredResponse>> {
        match self.entries.get(id)? {
            Entry::Response(response) => (response.key == key).then_some(response),
            Entry::ItemOf(_) => None,
        }
    }

    /// An output item of a response that belongs to `key`.
    pub fn item(&self, id: &str, key: Option<usize>) -> Option<Value> {
        let Entry::ItemOf(response) = self.entries.get(id)? else {
            return None;
        };
        let items = self.get(&response, key)?.output();
        items.into_iter().find(|item| item["id"] == id)
    }

    /// Forgets a response; whether it was there.
    pub fn remove(&self, id: &str, key: Option<usize>) -> bool {
        self.get(id, key).is_some() && self.entries.remove(id).is_some()
    }

    /// The responses of a conversation, oldest first; `None` if one of them is gone.
    pub fn chain(&self, last: &str, key: Option<usize>) -> Option<Vec<Arc<StoredResponse>>> {
        let mut chain = Vec::new();
        let mut next = Some(Arc::from(last));
        while let Some(id) = next.take() {
            let response = self.get(&id, key)?;
            next.clone_from(&response.previous);
            chain.push(response);
        }
        chain.reverse();
        Some(chain)
    }
}

impl StoredResponse {
    /// What was asked, then what was answered.
    pub fn items(&self) -> Vec<Value> {
        let mut items: Vec<Value> = serde_json::from_str(&self.input).expect("we wrote it");
        items.extend(self.output());
        items
    }

    fn output(&self) -> Vec<Value> {
        let mut object: Value = serde_json::from_str(&self.object).expect("we wrote it");
        match object["output"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(text: &str, previous: Option<&str>) -> StoredResponse {
        StoredResponse {
            key: Some(1),
            object: format!(r#"{{"output":[{{"id":"msg_{text}"}}]}}"#),
            input: format!(r#"[{{"content":"{text}"}}]"#),
            previous: previous.map(Arc::from),
        }
    }

    #[test]
    fn chains_are_walked_by_their_owner() {
        let store = ResponseStore::new(1 << 20);
        store.insert("a", &["msg_a".into()], response("a", None));
        store.insert("b", &["msg_b".into()], response("b", Some("a")));
        let items: Vec<Value> = store
            .chain("b", Some(1))
            .expect("it is whole")
            .iter()
            .flat_map(|response| response.items())
            .collect();
        let ids: Vec<_> = items
            .iter()
            .filter_map(|item| item["id"].as_str())
            .collect();
        assert_eq!((items.len(), ids), (4, vec!["msg_a", "msg_b"]));
        assert_eq!(store.item("msg_a", Some(1)).expect("stored")["id"], "msg_a");
        assert!(store.chain("b", Some(2)).is_none() && store.item("msg_a", None).is_none());
        assert!(!store.remove("a", None) && store.remove("a", Some(1)));
        assert!(store.chain("b", Some(1)).is_none(), "its beginning is gone");
        assert!(store.item("msg_a", Some(1)).is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_newest_is_there() {
        let store = ResponseStore::new(1 << 20);
        let long = "x".repeat(10_000);
        for i in 0..1000 {
            store.insert(&format!("r{i}"), &[], response(&long, None));
            assert!(store.entries.weight() <= 1 << 20);
            assert!(store.get(&format!("r{i}"), Some(1)).is_some(), "{i}");
            assert!(i == 0 || store.get(&format!("r{}", i - 1), Some(1)).is_some());
        }
        let huge = "x".repeat(2 << 20);
        store.insert("huge", &[], response(&huge, None));
        assert!(store.get("huge", Some(1)).is_none());
        assert!(ResponseStore::new(0).get("r", None).is_none());
    }
}
