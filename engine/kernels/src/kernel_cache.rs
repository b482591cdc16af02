//! Compiled kernels on disk, so that the second start of a server compiles none.
//!
//! One file per kernel, named after a hash of all that it was compiled from. A file is written beside
//! its place and renamed into it, so a reader sees all of it or nothing, whoever else writes. One that
//! is short, long, damaged or of another make is no error: the kernel is compiled again and the file
//! replaced. So is a folder that cannot be written to, which is why a store has no result.

use std::fs;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cubecl::hash::{StableHash, StableHasher};

/// Says what the file is and how its header is laid out.
const MAGIC: [u8; 8] = *b"nemokrn1";
/// Magic, key, bytes of the module, hash of the module.
const HEADER_BYTES: usize = 8 + 16 + 8 + 16;
/// No kernel is nearly as large; a damaged length must not become an allocation.
const MAX_BYTES: u64 = 256 << 20;

/// A folder of compiled kernels.
#[derive(Debug)]
pub struct KernelFolder {
    folder: PathBuf,
}

impl KernelFolder {
    /// Kernels in this folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made: then nothing would ever be kept.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The module that was compiled from exactly this, if it is there and whole.
    pub fn lookup(&self, key: &[&[u8]]) -> Option<Vec<u8>> {
        let key = hash(key);
        let path = self.path(key);
        let len = fs::metadata(&path).ok()?.len();
        if len > MAX_BYTES {
            return None;
        }
        let mut file = fs::read(path).ok()?;
        let (header, module) = file.split_at_checked(HEADER_BYTES)?;
        if header != self::header(key, module) {
            return None;
        }
        file.drain(..HEADER_BYTES);
        Some(file)
    }

    /// Keeps a module, if the folder lets it.
    pub fn store(&self, key: &[&[u8]], module: &[u8]) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = hash(key);
        let part = NEXT.fetch_add(1, Ordering::Relaxed);
        let beside = format!("{key:032x}.{}.{part}.part", std::process::id());
        let beside = self.folder.join(beside);
        let whole = [&header(key, module)[..], module].concat();
        if fs::write(&beside, whole).is_err() || fs::rename(&beside, self.path(key)).is_err() {
            // Half a file on a full disk, which nobody would read.
            fs::remove_file(&beside).ok();
        }
    }

    fn path(&self, key: StableHash) -> PathBuf {
        self.folder.join(format!("{key:032x}.kernel"))
    }
}

#[cfg(feature = "cuda")]
impl cubecl_cuda::KernelCache for KernelFolder {
    fn lookup(&self, key: &[&[u8]]) -> Option<Vec<u8>> {
        Self::lookup(self, key)
    }

    fn store(&self, key: &[&[u8]], module: &[u8]) {
        Self::store(self, key, module);
    }
}

/// Of parts in their order; where one ends and the next begins counts.
fn hash(parts: &[&[u8]]) -> StableHash {
    let mut hasher = StableHasher::new();
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finalize()
}

fn header(key: StableHash, module: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..24].copy_from_slice(&key.to_le_bytes());
    header[24..32].copy_from_slice(&(module.len() as u64).to_le_bytes());
    header[32..].copy_from_slice(&hash(&[module]).to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [&[u8]; 2] = [b"__global__ void f();", b"--gpu-architecture=sm_90a"];

    /// A folder that vanishes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("kernel-cache-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn open(&self) -> KernelFolder {
            KernelFolder::open(&self.0).expect("a folder of our own")
        }

        fn files(&self) -> Vec<PathBuf> {
            let files = fs::read_dir(&self.0).expect("it was made");
            files.map(|file| file.expect("readable").path()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn what_was_stored_is_found_by_the_next_process() {
        let folder = Folder::new("found");
        let module: Vec<u8> = (0..10_000_u32).map(|at| (at * at) as u8).collect();
        assert_eq!(folder.open().lookup(&KEY), None);
        folder.open().store(&KEY, &module);
        assert_eq!(folder.open().lookup(&KEY), Some(module));
        folder.open().store(&KEY, b"newer");
        assert_eq!(folder.open().lookup(&KEY), Some(b"newer".to_vec()));
        assert_eq!(folder.files().len(), 1, "nothing is left beside it");
    }

    #[test]
    fn another_source_option_or_cut_is_another_kernel() {
        let folder = Folder::new("keys");
        let kernels = folder.open();
        kernels.store(&KEY, b"module");
        let [source, option] = KEY;
        let joined = [source, option].concat();
        for key in [
            &[source][..],
            &[option, source],
            &[source, b"--gpu-architecture=sm_80"],
            &[&joined],
            &[&joined, b""],
        ] {
            assert_eq!(kernels.lookup(key), None);
        }
    }

    #[test]
    fn a_damaged_file_is_a_miss_and_is_replaced() {
        let folder = Folder::new("damaged");
        let kernels = folder.open();
        let module = vec![7_u8; 1000];
        kernels.store(&KEY, &module);
        let path = folder.files().pop().expect("just stored");
        let whole = fs::read(&path).expect("readable");
        // Every byte counts: magic, key, length, hash, module.
        for at in (0..HEADER_BYTES).chain([HEADER_BYTES, 500, whole.len() - 1]) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).expect("writable");
            assert_eq!(kernels.lookup(&KEY), None, "byte {at}");
        }
        for len in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1] {
            fs::write(&path, &whole[..len]).expect("writable");
            assert_eq!(kernels.lookup(&KEY), None, "{len} bytes");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).expect("writable");
        assert_eq!(kernels.lookup(&KEY), None, "a byte too many");
        // One kernel under the name of another.
        let other: [&[u8]; 1] = [b"another"];
        fs::write(kernels.path(hash(&other)), &whole).expect("writable");
        assert_eq!(kernels.lookup(&other), None);

        kernels.store(&KEY, &module);
        assert_eq!(kernels.lookup(&KEY), Some(module));
    }

    #[test]
    fn readers_see_whole_modules_while_many_write() {
        let folder = Folder::new("writers");
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let kernels = folder.open();
                scope.spawn(move || {
                    for _ in 0..50 {
                        kernels.store(&KEY, &vec![writer; 50_000]);
                    }
                });
            }
            let kernels = folder.open();
            for _ in 0..200 {
                if let Some(module) = kernels.lookup(&KEY) {
                    assert_eq!(module.len(), 50_000);
                    assert!(module.iter().all(|byte| *byte == module[0]));
                }
            }
        });
        assert!(folder.open().lookup(&KEY).is_some());
        assert_eq!(folder.files().len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_keeps_nothing() {
        let folder = Folder::new("unwritable");
        let kernels = folder.open();
        // Who runs tests as root may write anywhere, but not where there is no folder.
        fs::remove_dir(&folder.0).expect("empty");
        fs::write(&folder.0, b"a file").expect("writable");
        kernels.store(&KEY, b"module");
        assert_eq!(kernels.lookup(&KEY), None);
        assert!(KernelFolder::open(&folder.0).is_err());
        fs::remove_file(&folder.0).expect("ours");

        // A folder where the file would be.
        let kernels = folder.open();
        fs::create_dir(kernels.path(hash(&KEY))).expect("writable");
        kernels.store(&KEY, b"module");
        assert_eq!(kernels.lookup(&KEY), None);
        assert_eq!(folder.files().len(), 1, "nothing is left beside it");
    }
}
