//! What a device can do at most, measured where the kernels run, and how often they launch.

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;

use crate::{
    Arithmetic, KvPool, KvTensor, Layout, Matrix, RowLayout, bandwidth, linear, paged_attention,
    route, team,
};

/// Bytes of the array that is copied: beyond every cache.
const COPIED_BYTES: usize = 256 << 20;
/// A product that takes this long is large enough.
const LONG_ENOUGH: Duration = Duration::from_millis(40);
/// Rows of the products: a chunk of a prompt.
const NUM_TOKENS: usize = 2048;

/// Bytes per second that move between memory and the device's arithmetic: read by all threads on a
/// processor, read and written by a copy elsewhere. Takes about a second.
pub fn measure_bandwidth(device: &Device) -> f64 {
    if route::is_cpu(device) {
        return bandwidth::measure_read_bandwidth(team::num_threads()) * 1e9;
    }
    let count = COPIED_BYTES / size_of::<f32>();
    let from: Tensor<1> = Tensor::zeros([count], (device, DType::F32));
    let copy = || wait(from.clone().add_scalar(1.0));
    copy();
    let best = (0..5).map(|_| timed(copy)).min().expect("five rounds");
    (2 * COPIED_BYTES) as f64 / best.as_secs_f64()
}

/// Operations per second of a product of a long chunk with a bf16 matrix, the best of growing
/// sizes: ours, and on a GPU the tensor library's, whichever is faster. Takes about a second.
pub fn measure_matrix_rate(device: &Device, arithmetic: Arithmetic) -> f64 {
    let mut best = 0.0_f64;
    for size in [512, 1024, 2048, 4096, 8192] {
        let num_tokens = NUM_TOKENS.min(size);
        let x = noise([num_tokens, size], DType::F32, device);
        let weight = Matrix::Plain(noise([size, size], DType::BF16, device));
        let ours =
            || wait(linear(x.clone(), &weight, None, arithmetic).reshape([num_tokens * size]));
        let mut time = shortest(ours);
        // Lavapipe cannot run the library's products.
        if cfg!(all(feature = "cuda", not(feature = "vulkan"))) && !route::is_cpu(device) {
            let x = noise([num_tokens, size], DType::BF16, device);
            let weight = noise([size, size], DType::BF16, device);
            let library = || {
                let product = x.clone().matmul(weight.clone());
                wait(product.reshape([num_tokens * size]));
            };
            time = time.min(shortest(library));
        }
        best = best.max((2 * num_tokens * size * size) as f64 / time.as_secs_f64());
        if time > LONG_ENOUGH {
            break;
        }
    }
    best
}

/// Seconds that attention of one layer takes for the last `num_tokens` tokens of one sequence over
/// `context` positions before them, cached in the arithmetic's own type.
pub fn measure_attention(
    device: &Device,
    arithmetic: Arithmetic,
    [heads, kv_heads, head_dim]: [usize; 3],
    block_size: usize,
    (num_tokens, context): (usize, usize),
) -> f64 {
    let dtype = match arithmetic {
        Arithmetic::F32 => DType::F32,
        Arithmetic::Bf16 | Arithmetic::Bf16AnyOrder => DType::BF16,
    };
    let num_blocks = (context + num_tokens).div_ceil(block_size);
    let side = || {
        let rows = noise(
            [num_blocks * block_size, kv_heads * head_dim],
            dtype,
            device,
        );
        KvTensor::Float(rows.reshape([num_blocks, block_size, kv_heads, head_dim]))
    };
    let pool = KvPool {
        keys: side(),
        values: side(),
    };
    let row = RowLayout {
        tokens: 0..num_tokens,
        start: context,
        // Neighbours in a table are seldom neighbours in memory.
        blocks: (0..num_blocks as u32).rev().collect(),
        ..RowLayout::default()
    };
    let layout = Layout::new(vec![row], block_size);
    let q = noise([num_tokens, heads * head_dim], DType::F32, device);
    let attend = || {
        let out = paged_attention(q.clone(), &pool, heads, arithmetic, &layout);
        wait(out.reshape([num_tokens * heads * head_dim]));
    };
    shortest(attend).as_secs_f64()
}

/// Runs `f` and counts the kernels that it launches, on whatever device; `None` where nothing is
/// launched because this build has processors only.
pub fn count_launches<R>(f: impl FnOnce() -> R) -> (R, Option<u64>) {
    #[cfg(feature = "cube")]
    {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering};

        use cubecl::logging::{LaunchObservation, LaunchObserver};

        struct Counter(AtomicU64);
        impl LaunchObserver for Counter {
            fn launched(&self, _kernel: &'static str) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let counter = Arc::new(Counter(AtomicU64::new(0)));
        let observation = LaunchObservation::new(Arc::clone(&counter) as Arc<dyn LaunchObserver>);
        let result = f();
        drop(observation);
        (result, Some(counter.0.load(Ordering::Relaxed)))
    }
    #[cfg(not(feature = "cube"))]
    (f(), None)
}

/// The first run compiles and allocates.
pub(crate) fn shortest(f: impl Fn()) -> Duration {
    f();
    (0..3).map(|_| timed(&f)).min().expect("three rounds")
}

fn timed(f: impl Fn()) -> Duration {
    let begin = Instant::now();
    f();
    begin.elapsed()
}

/// Until the work behind a tensor is done: reads a number of it.
pub(crate) fn wait(tensor: Tensor<1>) {
    std::hint::black_box(tensor.narrow(0, 0, 1).into_data());
}

/// Numbers without a pattern: products of zeros are faster on some devices.
pub(crate) fn noise(shape: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
    let count = shape[0] * shape[1];
    let number = |at: usize| {
        let bits = (at as u32).wrapping_mul(2_654_435_761);
        (bits >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    let data = if dtype == DType::BF16 {
        let numbers: Vec<bf16> = (0..count).map(|at| bf16::from_f32(number(at))).collect();
        TensorData::new(numbers, shape)
    } else {
        TensorData::new((0..count).map(number).collect::<Vec<f32>>(), shape)
    };
    Tensor::from_data(data, (device, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_launches_nothing() {
        let (seven, launches) = count_launches(|| {
            let x = noise([2, 32], DType::F32, &Device::flex());
            let weight = Matrix::Plain(noise([4, 32], DType::BF16, &Device::flex()));
            linear(x, &weight, None, Arithmetic::F32).dims()[0] + 5
        });
        assert_eq!(seven, 7);
        assert!(launches.is_none_or(|count| count == 0), "{launches:?}");
    }
}
