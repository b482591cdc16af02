//! safetensors files whose tensors are known before their contents.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::output::{OutputFile, OutputFolder};
use crate::error::EngineError;

/// Bytes of tensors in a file, unless one module alone has more.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

impl Entry {
    fn num_bytes(&self) -> u64 {
        let elements: usize = self.shape.iter().product();
        (elements * self.dtype.bitsize() / 8) as u64
    }
}

/// Open files with their headers written.
pub(super) struct Shards {
    files: Vec<(String, OutputFile)>,
    /// File, offset and length of every tensor.
    places: BTreeMap<String, Place>,
}

#[derive(Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    len: u64,
}

impl Shards {
    /// Tensors of one group share a file.
    pub(super) fn create(
        groups: impl Iterator<Item = Vec<Entry>>,
        output: &mut OutputFolder,
    ) -> Result<Self, EngineError> {
        let shards = split(groups, MAX_SHARD_BYTES);
        let mut made = Self {
            files: Vec::new(),
            places: BTreeMap::new(),
        };
        let count = shards.len();
        for (number, mut entries) in shards.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            // Wide elements first: every tensor is aligned to its own.
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
            let header = header(&entries);
            let file = output.file(&name)?;
            file.write_at(0, &header)?;
            let mut offset = header.len() as u64;
            for entry in entries {
                let len = entry.num_bytes();
                let place = Place {
                    file: number,
                    offset,
                    len,
                };
                made.places.insert(entry.name, place);
                offset += len;
            }
            made.files.push((name, file));
        }
        Ok(made)
    }

    /// Writes part of a tensor.
    pub(super) fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<(), EngineError> {
        let place = self.places[name];
        assert!(
            at + bytes.len() as u64 <= place.len,
            "{name} has {} bytes",
            place.len
        );
        self.files[place.file].1.write_at(place.offset + at, bytes)
    }

    /// Waits for the disk, and writes the index where there are several files. How many there are.
    pub(super) fn finish(&mut self, output: &mut OutputFolder) -> Result<usize, EngineError> {
        let mut names = Vec::new();
        for (name, file) in self.files.drain(..) {
            file.finish()?;
            names.push(name);
        }
        if names.len() > 1 {
            let weight_map: Map<String, Value> = self
                .places
                .iter()
                .map(|(tensor, place)| (tensor.clone(), json!(names[place.file])))
                .collect();
            let index = json!({
                "metadata": {"total_size": self.num_bytes()},
                "weight_map": weight_map,
            });
            output.write(
                "model.safetensors.index.json",
                format!("{index:#}\n").as_bytes(),
            )?;
        }
        Ok(names.len())
    }

    /// Of all tensors.
    pub(super) fn num_bytes(&self) -> u64 {
        self.places.values().map(|place| place.len).sum()
    }
}

/// Groups in their order, as many to a shard as fit.
fn split(groups: impl Iterator<Item = Vec<Entry>>, max_bytes: u64) -> Vec<Vec<Entry>> {
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut filled = 0;
    for group in groups {
        let bytes: u64 = group.iter().map(Entry::num_bytes).sum();
        if filled > 0 && filled + bytes > max_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("there is a first").extend(group);
    }
    shards
}

/// The length and the JSON, padded so that the data begins on eight bytes.
fn header(entries: &[Entry]) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut begin = 0;
    for entry in entries {
        let end = begin + entry.num_bytes();
        let claim = json!({
            "dtype": entry.dtype.to_string(),
            "shape": entry.shape,
            "data_offsets": [begin, end],
        });
        map.insert(entry.name.clone(), claim);
        begin = end;
    }
    let mut json = Value::Object(map).to_string();
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json.bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, dtype: Dtype, len: usize) -> Entry {
        Entry {
            name: name.into(),
            dtype,
            shape: vec![len],
        }
    }

    #[test]
    fn groups_stay_together_and_shards_stay_small() {
        let groups = [10, 20, 30, 200, 5]
            .map(|len| vec![entry("a", Dtype::U8, len), entry("b", Dtype::U8, len)]);
        let sizes: Vec<u64> = split(groups.into_iter(), 100)
            .iter()
            .map(|shard| shard.iter().map(Entry::num_bytes).sum())
            .collect();
        assert_eq!(sizes, [60, 60, 400, 10]);
    }

    #[test]
    fn what_is_written_is_a_checkpoint() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let mut output = OutputFolder::create(&path).expect("there is none yet");
        let entries = vec![entry("small", Dtype::U8, 3), entry("wide", Dtype::F32, 1)];
        let mut shards = Shards::create([entries].into_iter(), &mut output).expect("room");
        shards.write("small", 1, &[8, 9]).expect("room");
        shards.write("small", 0, &[7]).expect("room");
        shards.write("wide", 0, &[1, 2, 3, 4]).expect("room");
        assert_eq!(shards.finish(&mut output).expect("room"), 1);
        output.keep();
        let checkpoint = crate::checkpoint::Checkpoint::open(&path).expect("it is one");
        let tensors = checkpoint.into_tensors();
        assert_eq!(tensors["small"].data[..], [7, 8, 9]);
        assert_eq!(tensors["wide"].data[..], [1, 2, 3, 4]);
        // A matrix that begins on its own alignment need not be copied to be read.
        assert!(tensors["wide"].data.as_ptr().addr().is_multiple_of(4));
    }
}
