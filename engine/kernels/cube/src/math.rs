//! What several kernels compute on the way.

use cubecl::prelude::*;

/// Units of a cube where a kernel has no reason to want another number.
pub(crate) const CUBE_UNITS: usize = 256;

/// Lanes of a plane, of which [`CUBE_UNITS`] is a multiple.
///
/// # Panics
/// If the device has no planes of one width: the sums would be wrong.
pub(crate) fn lanes(client: &cubecl::client::Client) -> usize {
    let hardware = &client.properties().hardware;
    let lanes = hardware.plane_size_max as usize;
    assert!(
        lanes == hardware.plane_size_min as usize && CUBE_UNITS.is_multiple_of(lanes),
        "planes of {} to {lanes} lanes",
        hardware.plane_size_min
    );
    lanes
}

/// Indices of 64 bits where they cost nothing. They keep to one address and its offsets where
/// 32 bits, which could wrap, need an address each.
pub(crate) fn addresses(client: &cubecl::client::Client) -> AddressType {
    if client.name() == "cuda" {
        AddressType::U64
    } else {
        AddressType::U32
    }
}

/// Elements per load when rows of these lengths are read: the widest of 4, 2 and 1 that divides
/// all, so that every row begins at a whole vector.
pub(crate) fn vector_width(lengths: &[usize]) -> usize {
    [4, 2]
        .into_iter()
        .find(|width| lengths.iter().all(|len| len.is_multiple_of(*width)))
        .unwrap_or(1)
}

/// `x * sigmoid(x)`. Goes to -0 for large negative x: the exponential overflows to infinity.
#[cube]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `silu`, element by element.
#[cube]
pub(crate) fn silu_vector<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    x / (one + (-x).exp())
}

/// `ln(1 + exp(x))`, as `max(x, 0) + ln(1 + exp(-|x|))`, which neither overflows nor loses small
/// values.
///
/// The logarithm is `2 atanh(u / (2 + u))` by its series: the argument is at most 1/3, so that the
/// first term left out is below a quarter of an ulp. Devices differ in how well their own
/// logarithm treats arguments near one.
#[cube]
pub(crate) fn softplus(x: f32) -> f32 {
    let u = (-x.abs()).exp();
    let s = u / (2.0 + u);
    let q = s * s;
    let mut series = fma(q, f32::new(1.0 / 15.0), f32::new(1.0 / 13.0));
    series = fma(q, series, f32::new(1.0 / 11.0));
    series = fma(q, series, f32::new(1.0 / 9.0));
    series = fma(q, series, f32::new(1.0 / 7.0));
    series = fma(q, series, f32::new(1.0 / 5.0));
    series = fma(q, series, f32::new(1.0 / 3.0));
    series = fma(q, series, f32::new(1.0));
    let zero = f32::new(0.0);
    fma(2.0 * s, series, select(x > zero, x, zero))
}

/// The sum over a cube of `planes` whole planes, the same bits in every unit: planes first, then
/// their sums in order. Every unit must arrive.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] planes: usize) -> f32 {
    let mut total = plane_sum(value);
    if comptime!(planes > 1) {
        let mut sums = Shared::<[f32]>::new_slice(planes);
        if UNIT_POS_X == 0 {
            sums[UNIT_POS_Y as usize] = total;
        }
        sync_cube();
        total = f32::new(0.0);
        #[unroll]
        for plane in 0..planes {
            total += sums[plane];
        }
    }
    total
}
