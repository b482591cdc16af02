//! A piece of device memory.
#![allow(unsafe_code)]

use bytemuck::{AnyBitPattern, NoUninit};
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::BufferArg;
use cubecl::server::Handle;

/// `len` elements of a type that its kernels know: f32 or u32 unless said otherwise. Clones share
/// the memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    handle: Handle,
    len: usize,
}

impl Buffer {
    /// Views a handle as `len` elements of `size` bytes each.
    ///
    /// # Panics
    /// If the handle's memory is smaller.
    pub fn new(handle: Handle, len: usize, size: usize) -> Self {
        assert!(
            handle.size_in_used() >= (len * size) as u64,
            "{len} elements of {size} bytes in {} bytes",
            handle.size_in_used()
        );
        Self { handle, len }
    }

    /// Memory with whatever was in it.
    pub fn empty<T>(client: &Client, len: usize) -> Self {
        let handle = client.empty(len.max(1) * size_of::<T>());
        Self { handle, len }
    }

    /// Values from the host.
    pub fn upload<T: NoUninit>(client: &Client, values: &[T]) -> Self {
        if values.is_empty() {
            return Self::empty::<T>(client, 0);
        }
        Self {
            handle: client.create_from_slice(bytemuck::cast_slice(values)),
            len: values.len(),
        }
    }

    /// Other values in its place, at the same address.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn write<T: NoUninit>(&self, client: &Client, values: &[T]) {
        assert_eq!(values.len(), self.len, "values of a buffer");
        if !values.is_empty() {
            let bytes = bytemuck::cast_slice(values).to_vec();
            client.write(&self.handle, Bytes::from_bytes_vec(bytes));
        }
    }

    /// Values to the host; waits for the kernels that write them.
    ///
    /// # Panics
    /// If the device failed: every later read would too.
    pub fn read<T: AnyBitPattern + NoUninit>(&self, client: &Client) -> Vec<T> {
        let bytes = client
            .read_one(self.handle.clone())
            .unwrap_or_else(|error| panic!("the device failed: {error:?}"));
        bytes[..self.len * size_of::<T>()]
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }

    /// Waits for the kernels that write it, reading all of it.
    ///
    /// # Errors
    /// The device refused one of them, or failed.
    pub(crate) fn try_wait(&self, client: &Client) -> Result<(), String> {
        let read = client.read_one(self.handle.clone());
        read.map(drop).map_err(|error| format!("{error:?}"))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` elements of 4 bytes from the `first` on, in the same memory.
    ///
    /// # Panics
    /// If they are not all there.
    pub(crate) fn part(&self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len, "{first} + {len} of {}", self.len);
        let behind = (self.len - first - len) * 4;
        let handle = self.handle.clone();
        Self {
            handle: handle
                .offset_start(first as u64 * 4)
                .offset_end(behind as u64),
            len,
        }
    }

    /// The memory behind it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// As a kernel's argument.
    pub(crate) fn arg(&self) -> BufferArg {
        self.vectors(1)
    }

    /// As a kernel's argument of vectors of `lanes` elements.
    ///
    /// # Panics
    /// If a vector is left incomplete.
    pub(crate) fn vectors(&self, lanes: usize) -> BufferArg {
        assert_eq!(self.len % lanes, 0, "{} in vectors of {lanes}", self.len);
        // SAFETY: `new` and the other constructors hold the length against the handle's size.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len / lanes) }
    }
}
