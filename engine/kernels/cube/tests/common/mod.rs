//! The device that kernels are tested on.

use cube_kernels::{Buffer, Client};
use cubecl::Device;

/// The first Vulkan device, on a processor if need be (lavapipe); `None`, said loudly, where the
/// machine has none and `NEMOSERVE_REQUIRE_VULKAN` does not insist.
pub(crate) fn client() -> Option<Client> {
    let client = Device::enumerate_all()
        .into_iter()
        .find(|device| matches!(device, Device::Wgpu(_)))
        .map(|device| device.client())
        // Without Vulkan it may be OpenGL, which cannot say how wide its planes are.
        .filter(|client| {
            let hardware = &client.properties().hardware;
            hardware.plane_size_min == hardware.plane_size_max
        });
    if client.is_none() {
        assert!(
            std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
            "no Vulkan device: install mesa-vulkan-drivers"
        );
        eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers to run the GPU kernels)");
    }
    client
}

/// Random numbers from a seed.
#[allow(dead_code)] // Not every test draws.
pub(crate) struct Numbers(u64);

#[allow(dead_code)] // As above.
impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    /// Splitmix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `len` numbers, uniform in `-scale..scale`.
    pub(crate) fn vector(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len)
            .map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale)
            .collect()
    }

    /// The numbers `0..len` in some order.
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for at in (1..len).rev() {
            order.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
        order
    }
}

/// Memory full of NaN, so that a value nobody wrote is noticed.
#[allow(dead_code)] // Not every test has float outputs.
pub(crate) fn poisoned(client: &Client, len: usize) -> Buffer {
    Buffer::upload(client, &vec![f32::NAN; len])
}

/// # Panics
/// Unless every `|got - want| / (1 + |want|)` is within `tolerance`; a NaN is not, unless it is
/// wanted.
#[allow(dead_code)] // Not every test compares.
pub(crate) fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let mut worst = (0.0, 0);
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs() / (1.0 + want.abs());
        assert_eq!(
            got.is_nan(),
            want.is_nan(),
            "{what}: {got} for {want} at {at}"
        );
        if error > worst.0 {
            worst = (error, at);
        }
    }
    let (error, at) = worst;
    println!("{what}: error {error:.1e}");
    assert!(
        error <= tolerance,
        "{what}: {} for {} at {at}, off by {error:.1e}",
        got[at],
        want[at]
    );
}
