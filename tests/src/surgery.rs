//! Breaking checkpoints on purpose: edits of safetensors headers, data and JSON files.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A safetensors file taken apart. Nothing keeps it consistent: that is the point.
pub struct Shard {
    /// Name to `{dtype, shape, data_offsets}`, `__metadata__` among them.
    pub header: Map<String, Value>,
    /// The bytes behind the header.
    pub data: Vec<u8>,
}

impl Shard {
    /// Reads a sound file.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the shard is there");
        let (length, rest) = bytes.split_first_chunk().expect("it has a length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Self {
            header: serde_json::from_slice(header).expect("the header is JSON"),
            data: data.to_vec(),
        }
    }

    /// Writes it back with whatever header it now has.
    pub fn write(&self, path: &Path) {
        let header = serde_json::to_string(&self.header).expect("a map is JSON");
        write_raw(path, header.as_bytes(), &self.data);
    }

    /// A tensor's entry.
    pub fn entry(&mut self, name: &str) -> &mut Value {
        self.header
            .get_mut(name)
            .unwrap_or_else(|| panic!("the fixture has no {name}"))
    }

    /// Its offsets.
    pub fn offsets(&mut self, name: &str) -> (usize, usize) {
        let offsets = &self.entry(name)["data_offsets"];
        let end = |i: usize| offsets[i].as_u64().expect("an offset") as usize;
        (end(0), end(1))
    }

    /// The tensor's bytes.
    pub fn bytes(&mut self, name: &str) -> &mut [u8] {
        let (begin, end) = self.offsets(name);
        &mut self.data[begin..end]
    }

    /// Takes a tensor and its bytes out and closes the gap, as a writer that never had it would.
    pub fn remove(&mut self, name: &str) -> Value {
        let (begin, end) = self.offsets(name);
        self.data.drain(begin..end);
        let taken = self.header.remove(name).expect("looked up above");
        for (_, entry) in self.header.iter_mut().filter(|(n, _)| *n != "__metadata__") {
            for offset in entry["data_offsets"].as_array_mut().expect("offsets") {
                let at = offset.as_u64().expect("an offset") as usize;
                if at >= end {
                    *offset = json!(at - (end - begin));
                }
            }
        }
        taken
    }

    /// Appends a tensor with these bytes.
    pub fn push(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let begin = self.data.len();
        self.data.extend_from_slice(bytes);
        let end = self.data.len();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
        self.header.insert(name.to_owned(), entry);
    }
}

/// A file of this header and data; the header need not be one.
pub fn write_raw(path: &Path, header: &[u8], data: &[u8]) {
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], header, data].concat()).expect("the copy is ours");
}

/// Applies `change` to a JSON file.
pub fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).expect("it is there")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("the copy is ours");
}
