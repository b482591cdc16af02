//! Reads mapped weights before the loader comes to them, by several threads and in the order of the
//! files: a page touched by one thread at a time waits for the disk once per fault, and a disk that
//! answers many at once is left idle.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;

/// Threads that wait for the disk; they need no core of their own for that.
const NUM_READERS: usize = 8;
/// What one thread reads in a row. Whole pages.
pub(crate) const PIECE_BYTES: usize = 4 << 20;
/// Below this, threads take longer to begin than the loader takes to read.
const MIN_BYTES: usize = 64 << 20;
/// Stride at which pages are touched.
const PAGE_BYTES: usize = 4096;

/// Reads until everything has been touched, or until it is dropped.
pub(crate) struct ReadAhead {
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    /// Begins with what comes first in its file.
    pub(crate) fn start(tensors: &[Bytes]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let num_bytes: usize = tensors.iter().map(Bytes::len).sum();
        let mut readers = Vec::new();
        if num_bytes >= MIN_BYTES {
            let pieces: Arc<[Bytes]> = pieces(tensors).into();
            let next = Arc::new(AtomicUsize::new(0));
            for at in 0..NUM_READERS {
                let (stop, pieces, next) = (stop.clone(), pieces.clone(), next.clone());
                let read = move || {
                    while !stop.load(Ordering::Relaxed)
                        && let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        touch(piece);
                    }
                };
                let name = format!("readahead-{at}");
                // Who gets no thread reads later, by itself.
                readers.extend(std::thread::Builder::new().name(name).spawn(read));
            }
        }
        Self { stop, readers }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does nothing that can fail");
        }
    }
}

/// Reads a byte of every page.
pub(crate) fn touch(bytes: &[u8]) {
    let pages = bytes.iter().step_by(PAGE_BYTES);
    black_box(pages.fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
}

/// All bytes in the order of their addresses, which within a file is the order of the file.
fn pieces(tensors: &[Bytes]) -> Vec<Bytes> {
    let mut tensors: Vec<&Bytes> = tensors.iter().collect();
    tensors.sort_by_key(|tensor| tensor.as_ptr());
    let cut = |tensor: &Bytes| -> Vec<Bytes> {
        let starts = (0..tensor.len()).step_by(PIECE_BYTES);
        let piece = |at: usize| tensor.slice(at..tensor.len().min(at + PIECE_BYTES));
        starts.map(piece).collect()
    };
    tensors.into_iter().flat_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_piece_in_order() {
        let file = Bytes::from(
            (0..3 * PIECE_BYTES + 17)
                .map(|at| at as u8)
                .collect::<Vec<u8>>(),
        );
        let cut = PIECE_BYTES + 5;
        let pieces = pieces(&[file.slice(cut..), file.slice(..cut)]);
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        assert_eq!(pieces.concat(), file);
    }

    #[test]
    fn it_ends_when_it_is_dropped() {
        let zeros = Bytes::from(vec![0_u8; 2 * MIN_BYTES]);
        let ahead = ReadAhead::start(std::slice::from_ref(&zeros));
        assert_eq!(ahead.readers.len(), NUM_READERS);
        drop(ahead);
        let few = ReadAhead::start(&[zeros.slice(..100)]);
        assert!(few.readers.is_empty(), "not worth a thread");
    }
}
