//! safetensors shards, memory-mapped, every header checked before any weight is touched.
//!
//! A file is 8 bytes of header length, a JSON header, then the data. A header is believed only if
//! its tensors tile the data exactly: no hole, no overlap, no byte too many or too few. The JSON is
//! read here rather than by the `safetensors` crate because that one collects names into a map,
//! where the second of two equal names wins silently, and its errors do not name the tensor.
//!
//! Weights stay in the page cache: a [`StoredTensor`] is a slice of the mapping.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use safetensors::tensor::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};

use crate::error::EngineError;

/// The format's own limit on headers.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// An index of 200,000 tensors is below 30 MB.
const MAX_INDEX_BYTES: u64 = 256 << 20;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a model by name, none read yet.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, StoredTensor>,
    /// The file that errors about the checkpoint as a whole name.
    path: PathBuf,
}

/// One tensor where it lies.
#[derive(Clone)]
pub(crate) struct StoredTensor {
    /// The shard.
    pub(crate) path: std::sync::Arc<Path>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Bytes,
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

impl Checkpoint {
    /// Maps the shards of a model folder and checks their headers.
    pub(crate) fn open(folder: &Path) -> Result<Self, EngineError> {
        let root = Root::of(folder)?;
        let single = folder.join(SINGLE);
        let index = folder.join(INDEX);
        if single.symlink_metadata().is_ok() {
            let data = map(&root.resolve(&single)?, &single)?;
            Self::from_bytes(&data, &single)
        } else if index.symlink_metadata().is_ok() {
            Self::open_sharded(folder, &root, index)
        } else {
            Err(fail(
                folder,
                format!("neither {SINGLE} nor {INDEX} is in this folder"),
            ))
        }
    }

    /// A single-file checkpoint that is already in memory; `path` is what errors name.
    pub(crate) fn from_bytes(data: &Bytes, path: &Path) -> Result<Self, EngineError> {
        Ok(Self {
            tensors: read_shard(data, path)?.into_iter().collect(),
            path: path.to_owned(),
        })
    }

    fn open_sharded(folder: &Path, root: &Root, index: PathBuf) -> Result<Self, EngineError> {
        let weight_map = read_index(&root.resolve(&index)?, &index)?;
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            if !is_plain_relative(shard) {
                return Err(fail(
                    &index,
                    format!("tensor {tensor:?} lies in {shard:?}, which leaves the folder"),
                ));
            }
            *shards.entry(shard).or_default() += 1;
        }
        let mut tensors = BTreeMap::new();
        for shard in shards.into_keys() {
            let path = folder.join(shard);
            for (name, tensor) in read_shard(&map(&root.resolve(&path)?, &path)?, &path)? {
                match weight_map.get(&name) {
                    Some(home) if home == shard => {}
                    Some(home) => {
                        let what = format!("tensor {name:?} is here, the index says {home}");
                        return Err(fail(&path, what));
                    }
                    None => {
                        return Err(fail(&path, format!("tensor {name:?} is not in the index")));
                    }
                }
                tensors.insert(name, tensor);
            }
        }
        if let Some((name, shard)) = weight_map
            .iter()
            .find(|(name, _)| !tensors.contains_key(*name))
        {
            return Err(fail(
                &folder.join(shard),
                format!("tensor {name:?} is missing, the index says it is here"),
            ));
        }
        Ok(Self {
            tensors,
            path: index,
        })
    }

    /// The single file, or the index.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names and places, in the order of names.
    pub(crate) fn into_tensors(self) -> BTreeMap<String, StoredTensor> {
        self.tensors
    }
}

/// Where symbolic links may lead.
pub(crate) struct Root {
    folder: PathBuf,
}

impl Root {
    /// The model folder. In the hub's cache layout, `MODEL/snapshots/REVISION`, files link to
    /// `MODEL/blobs`, so the root is `MODEL`.
    pub(crate) fn of(folder: &Path) -> Result<Self, EngineError> {
        let canonical = folder.canonicalize().map_err(|source| EngineError::Io {
            path: folder.to_owned(),
            source,
        })?;
        let in_cache = canonical
            .parent()
            .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))
            .and_then(Path::parent);
        Ok(Self {
            folder: in_cache.unwrap_or(&canonical).to_owned(),
        })
    }

    /// Follows links and refuses to leave.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf, EngineError> {
        let canonical = path.canonicalize().map_err(|source| EngineError::Io {
            path: path.to_owned(),
            source,
        })?;
        if !canonical.starts_with(&self.folder) {
            let to = canonical.display();
            return Err(fail(
                path,
                format!("leads out of the model folder, to {to}"),
            ));
        }
        Ok(canonical)
    }
}

fn fail(path: &Path, what: impl Into<String>) -> EngineError {
    EngineError::Checkpoint {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// A relative path of ordinary names.
fn is_plain_relative(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

fn map(path: &Path, shown: &Path) -> Result<Bytes, EngineError> {
    let io = |source| EngineError::Io {
        path: shown.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(fail(shown, "is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(fail(shown, "is empty"));
    }
    // SAFETY: the mapping is private and read-only, and nothing here writes to the file. Another
    // process that truncates it while we serve would make reads fault, which ends this process
    // as any failing disk would; one that rewrites it changes weights, never Rust invariants,
    // because every bit pattern is a valid number and headers are not read again.
    #[allow(unsafe_code)]
    let mapping = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    Ok(Bytes::from_owner(mapping))
}

/// `weight_map` of an index: tensor to shard.
fn read_index(path: &Path, shown: &Path) -> Result<BTreeMap<String, String>, EngineError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Entries<String>,
    }
    let io = |source| EngineError::Io {
        path: shown.to_owned(),
        source,
    };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_INDEX_BYTES {
        return Err(fail(shown, format!("{len} bytes is no index")));
    }
    let text = std::fs::read(path).map_err(io)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| fail(shown, format!("not an index: {error}")))?;
    let mut map = BTreeMap::new();
    for (name, shard) in index.weight_map.0 {
        if map.insert(name.clone(), shard).is_some() {
            return Err(fail(shown, format!("tensor {name:?} is listed twice")));
        }
    }
    if map.is_empty() {
        return Err(fail(shown, "lists no tensors"));
    }
    Ok(map)
}

/// What a header says of one tensor, unchecked.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Where a tensor lies in the data of its shard.
struct Extent {
    dtype: Dtype,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
}

/// Checks a shard's header against its bytes.
fn read_shard(file: &Bytes, path: &Path) -> Result<Vec<(String, StoredTensor)>, EngineError> {
    let fail = |what: String| fail(path, what);
    let header = header_bytes(file).map_err(&fail)?;
    let data = file.slice(8 + header.len()..);
    let extents = parse_header(header).map_err(&fail)?;
    let shared_path: std::sync::Arc<Path> = path.into();
    let mut tensors = Vec::with_capacity(extents.len());
    // |-- tensor --|-- tensor --|-- the next must begin here
    //                           covered
    let mut covered = 0;
    let mut previous = String::new();
    for (name, extent) in extents {
        let Extent {
            dtype,
            shape,
            begin,
            end,
        } = extent;
        if begin < covered {
            return Err(fail(format!(
                "tensor {name:?} begins at {begin}, inside {previous:?}, which ends at {covered}"
            )));
        }
        if begin > covered {
            return Err(fail(format!(
                "nothing owns the bytes {covered}..{begin} before tensor {name:?}"
            )));
        }
        if end > data.len() as u64 {
            return Err(fail(format!(
                "truncated: tensor {name:?} ends at {end}, the data at {}",
                data.len()
            )));
        }
        covered = end;
        previous.clone_from(&name);
        tensors.push((
            name,
            StoredTensor {
                path: shared_path.clone(),
                dtype,
                shape,
                data: data.slice(begin as usize..end as usize),
            },
        ));
    }
    if covered != data.len() as u64 {
        return Err(fail(format!(
            "{} bytes follow the last tensor",
            data.len() as u64 - covered
        )));
    }
    Ok(tensors)
}

fn header_bytes(file: &[u8]) -> Result<&[u8], String> {
    if file.starts_with(b"version https://git-lfs") {
        return Err("is a Git LFS pointer; fetch the file itself with `git lfs pull`".into());
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("{} bytes cannot hold a header", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        return Err(format!(
            "the header claims {length} bytes, the format allows {MAX_HEADER_BYTES}"
        ));
    }
    rest.get(..length as usize).ok_or_else(|| {
        format!(
            "truncated: the header claims {length} bytes, {} follow",
            rest.len()
        )
    })
}

/// Tensors in the order of their offsets, names unique, each as long as its shape says.
fn parse_header(header: &[u8]) -> Result<Vec<(String, Extent)>, String> {
    let text = std::str::from_utf8(header).map_err(|error| format!("header: {error}"))?;
    let Entries::<serde_json::Value>(entries) =
        serde_json::from_str(text).map_err(|error| format!("header: {error}"))?;
    let mut extents: Vec<(String, Extent)> = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name == "__metadata__" {
            continue;
        }
        let extent = Claim::deserialize(value)
            .map_err(|error| error.to_string())
            .and_then(|claim| measure(&claim))
            .map_err(|what| format!("tensor {name:?}: {what}"))?;
        extents.push((name, extent));
    }
    extents.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(pair) = extents.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("tensor {:?} is listed twice", pair[0].0));
    }
    // Stable, and by both ends: an empty tensor sorts before the one that begins where it lies.
    extents.sort_by_key(|(_, extent)| (extent.begin, extent.end));
    Ok(extents)
}

/// A claim that agrees with itself: the bytes are those that type and shape take. Checked before
/// any two are compared, so that errors name the culprit and not its neighbour.
fn measure(claim: &Claim) -> Result<Extent, String> {
    let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        claim.dtype.as_str().into_deserializer();
    let dtype =
        Dtype::deserialize(name).map_err(|_| format!("unknown element type {:?}", claim.dtype))?;
    let bits = claim
        .shape
        .iter()
        .try_fold(dtype.bitsize() as u64, |bits, size| bits.checked_mul(*size))
        .ok_or_else(|| format!("shape {:?} overflows", claim.shape))?;
    if bits % 8 != 0 {
        return Err(format!("{} {:?} ends inside a byte", dtype, claim.shape));
    }
    let shape: Vec<usize> = claim.shape.iter().map(|size| *size as usize).collect();
    let (len, (begin, end)) = (bits / 8, claim.data_offsets);
    if end.checked_sub(begin) != Some(len) {
        return Err(format!(
            "{dtype} {shape:?} takes {len} bytes, its offsets are {begin}..{end}"
        ));
    }
    Ok(Extent {
        dtype,
        shape,
        begin,
        end,
    })
}

/// A JSON object as a list, so that repeated keys stay visible.
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("{key:?}: {error}")))?;
                    entries.push((key, value));
                }
                Ok(entries)
            }
        }
        deserializer
            .deserialize_map(List(std::marker::PhantomData))
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn write_model(path: &Path) {
        let data = [0_u8; 8];
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![2], &data)
            .expect("two floats are eight bytes");
        safetensors::serialize_to_file([("w", view)], None, path).expect("it can be written");
    }

    #[test]
    fn the_cache_layout_of_the_hub_is_followed_and_no_further() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let model = folder.path().join("models--a--b");
        let snapshot = model.join("snapshots/abc");
        fs::create_dir_all(&snapshot).expect("ours");
        fs::create_dir_all(model.join("blobs")).expect("ours");
        write_model(&model.join("blobs/123"));
        symlink("../../blobs/123", snapshot.join(SINGLE)).expect("a link");
        let tensors = Checkpoint::open(&snapshot)
            .expect("it opens")
            .into_tensors();
        assert_eq!(tensors["w"].shape, [2]);

        // Outside the model's own folder, beside it or anywhere else, nothing is followed.
        write_model(&folder.path().join("other"));
        fs::remove_file(snapshot.join(SINGLE)).expect("ours");
        symlink("../../../other", snapshot.join(SINGLE)).expect("a link");
        let error = Checkpoint::open(&snapshot).expect_err("it is refused");
        assert!(error.to_string().contains("leads out"), "{error}");

        // An ordinary folder is its own root.
        let plain = folder.path().join("plain");
        fs::create_dir(&plain).expect("ours");
        symlink("../other", plain.join(SINGLE)).expect("a link");
        let error = Checkpoint::open(&plain).expect_err("it is refused");
        assert!(error.to_string().contains("leads out"), "{error}");
        // A link to the folder itself is nobody's escape.
        let alias = folder.path().join("alias");
        symlink(&snapshot, &alias).expect("a link");
        fs::remove_file(snapshot.join(SINGLE)).expect("ours");
        symlink("../../blobs/123", snapshot.join(SINGLE)).expect("a link");
        assert!(Checkpoint::open(&alias).is_ok());
    }

    #[test]
    fn a_header_of_another_writer_is_a_header() {
        // Padded with spaces, with metadata, tensors not in the order of their data.
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},
            "empty":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        let checkpoint = Checkpoint::from_bytes(&file.into(), Path::new("x")).expect("it is sound");
        let tensors = checkpoint.into_tensors();
        assert_eq!(&tensors["a"].data[..], [1, 2, 3, 4]);
        assert_eq!(&tensors["b"].data[..], [5, 6, 7, 8]);
        assert_eq!(tensors["empty"].data.len(), 0);
    }
}
