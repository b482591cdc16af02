//! The same bits whatever else is in the step and however a prompt is cut: on every instruction
//! set, for every operation that mixes more than one number.

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor, TensorData};
use kernels::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    with_f32(tensor, |values| {
        values.iter().map(|x| x.to_bits()).collect()
    })
}

fn tokens(tensor: &Tensor<2>, range: std::ops::Range<usize>) -> Tensor<2> {
    tensor.clone().narrow(0, range.start, range.len())
}

/// `op` over all tokens gives what it gives over the pieces before and after each cut.
fn check_cuts(x: &Tensor<2>, cuts: &[usize], op: impl Fn(Tensor<2>) -> Tensor<2>) {
    let [num_tokens, _] = x.dims();
    for isa in Isa::available() {
        with_isa(isa, || {
            let whole = bits(&op(x.clone()));
            let mut pieces = Vec::new();
            for piece in pieces_of(num_tokens, cuts) {
                pieces.extend(bits(&op(tokens(x, piece))));
            }
            assert!(
                whole == pieces,
                "{isa:?}, {num_tokens} tokens cut at {cuts:?}"
            );
        });
    }
}

fn pieces_of(len: usize, cuts: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut borders: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).collect();
    borders.extend([0, len]);
    borders.sort_unstable();
    borders.dedup();
    borders.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Plain(FloatDType),
    Fp8,
    Nvfp4,
}

const STORED: [Stored; 5] = [
    Stored::Plain(FloatDType::F32),
    Stored::Plain(FloatDType::F16),
    Stored::Plain(FloatDType::BF16),
    Stored::Fp8,
    Stored::Nvfp4,
];

fn stored() -> impl Strategy<Value = Stored> {
    prop::sample::select(STORED.to_vec())
}

impl Stored {
    /// A width that rows may have.
    fn width(self, width: usize) -> usize {
        match self {
            Self::Nvfp4 => width.next_multiple_of(NVFP4_BLOCK),
            _ => width,
        }
    }

    /// Random numbers.
    fn matrix(self, [n, k]: [usize; 2]) -> Matrix {
        let scale = || Tensor::full([1], 0.01, &Device::flex());
        match self {
            Self::Plain(dtype) => Matrix::Plain(random([n, k]).cast(dtype)),
            Self::Fp8 => Matrix::Fp8 {
                codes: random_codes([n, k], 0xf7),
                scale: scale(),
            },
            Self::Nvfp4 => Matrix::Nvfp4 {
                codes: random_codes([n, k / 2], 0xff),
                block_scales: random_codes([n, k / NVFP4_BLOCK], 0x77),
                scale: scale(),
            },
        }
    }

    fn experts(self, count: usize, shape: [usize; 2]) -> ExpertMatrices {
        ExpertMatrices::PerExpert((0..count).map(|_| self.matrix(shape)).collect())
    }
}

/// Bytes of which only the bits of `mask` may be set, so that none is E4M3's NaN.
fn random_codes<const D: usize>(shape: [usize; D], mask: u8) -> Tensor<D, Int> {
    let numbers = random([shape.iter().product()]);
    let codes: Vec<u8> = with_f32(&numbers, |numbers| {
        let code = |x: &f32| (x * 1e6) as i32 as u8 & mask;
        numbers.iter().map(code).collect()
    });
    let device = Device::flex();
    Tensor::from_data(TensorData::new(codes, shape), (&device, DType::U8))
}

fn arithmetic() -> impl Strategy<Value = Arithmetic> {
    prop::sample::select(vec![Arithmetic::F32, Arithmetic::Bf16])
}

fn kv_format() -> impl Strategy<Value = KvFormat> {
    prop::sample::select(vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8])
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..4)
        .prop_map(|cuts| cuts.iter().map(|cut| cut.index(1000)).collect())
}

const CASES: u32 = 24;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn weight_products(
        m in 1_usize..40, n in 1_usize..40, k in 1_usize..200,
        stored in stored(), arithmetic in arithmetic(), cuts in cuts(),
    ) {
        let (n, k) = (stored.width(n), stored.width(k));
        let (x, w, down) = (random([m, k]), stored.matrix([n, k]), stored.matrix([k, n]));
        let bias = random([n]);
        check_cuts(&x, &cuts, |x| linear(x, &w, Some(&bias), arithmetic));
        check_cuts(&x, &cuts, |x| mlp_relu2(x, &w, None, &down, None, arithmetic));
    }

    #[test]
    fn norms(m in 1_usize..20, width in 1_usize..100, groups in 1_usize..4, cuts in cuts()) {
        let weight = random([width]);
        check_cuts(&random([m, width]), &cuts, |x| rms_norm(x, &weight, 1e-5));
        check_cuts(&random([m, width]), &cuts, |x| {
            let (sum, normed) = add_rms_norm(x.clone(), x, &weight, 1e-5);
            Tensor::cat(vec![sum, normed], 1)
        });
        let inner = width * groups;
        let weight = random([inner]);
        check_cuts(&random([m, 2 * inner]), &cuts, |both| {
            let y = both.clone().narrow(1, inner, inner);
            gated_group_norm(y, &both, &weight, groups, 1e-5)
        });
    }

    #[test]
    fn experts(
        m in 1_usize..30, k in 1_usize..40, n in 1_usize..40,
        stored in stored(), arithmetic in arithmetic(), cuts in cuts(), seed in any::<u32>(),
    ) {
        const EXPERTS: usize = 6;
        const TOP_K: usize = 3;
        let (n, k) = (stored.width(n), stored.width(k));
        let up = stored.experts(EXPERTS, [n, k]);
        let down = stored.experts(EXPERTS, [k, n]);
        let gate = random([EXPERTS, k]);
        let bias = random([EXPERTS]).mul_scalar(f64::from(seed % 3) * 0.1);
        let shape = RouterShape {
            top_k: TOP_K, n_group: 2, topk_group: 2, norm_topk_prob: true, scaling: 2.5,
        };
        check_cuts(&random([m, k]), &cuts, |v| {
            let routing = router_topk(&v, &gate, &bias, &shape);
            moe_experts(v, &up, &down, &routing, arithmetic)
        });
    }

    #[test]
    fn attention(
        (kv_heads, group) in (1_usize..4, 1_usize..7), head_dim in 1_usize..40,
        block_size in 1_usize..80, len in 1_usize..200, format in kv_format(),
        arithmetic in arithmetic(), first in prop_oneof![Just(0), 0_usize..200],
        nan in prop::option::of(0_usize..200), cuts in cuts(),
    ) {
        let shape = (kv_heads, group, head_dim, block_size);
        let nan = nan.map(|nan| nan % len);
        check_attention(shape, len, (format, arithmetic), (first, nan), &cuts)?;
    }

    #[test]
    fn mixer(
        (groups, heads_per_group) in (1_usize..3, 1_usize..3), head_dim in 1_usize..10,
        state in 1_usize..40, conv_kernel in 1_usize..6, len in 1_usize..40, cuts in cuts(),
    ) {
        let shape = MambaShape {
            heads: groups * heads_per_group, head_dim, groups, state, conv_kernel,
        };
        check_mixer(&shape, len, &cuts)?;
    }
}

/// One side of a pool that holds nothing but NaN.
fn spoilt(shape: [usize; 4], format: KvFormat, scale: f32) -> KvTensor {
    let floats = || Tensor::<4>::full(shape, f32::NAN, &Device::flex());
    match format {
        KvFormat::F32 => KvTensor::Float(floats()),
        KvFormat::Bf16 => KvTensor::Float(floats().cast(FloatDType::BF16)),
        KvFormat::Fp8 => {
            let data = TensorData::new(vec![0x7f_u8; shape.iter().product()], shape);
            let codes = Tensor::from_data(data, (&Device::flex(), DType::U8));
            KvTensor::Fp8 { codes, scale }
        }
    }
}

/// Writes and attends one prompt in pieces, beside a stranger's row, against all at once; `nan` has a
/// value that is none.
fn check_attention(
    (kv_heads, group, head_dim, block_size): (usize, usize, usize, usize),
    len: usize,
    (format, arithmetic): (KvFormat, Arithmetic),
    (first_position, nan): (usize, Option<usize>),
    cuts: &[usize],
) -> TestCaseResult {
    let blocks = len.div_ceil(block_size);
    let heads = kv_heads * group;
    let q = random([len, heads * head_dim]);
    let (k, v) = (
        random([len, kv_heads * head_dim]),
        random([len, kv_heads * head_dim]),
    );
    let v = nan.map_or(v.clone(), |nan| {
        let spoilt = Tensor::full([1, kv_heads * head_dim], f32::NAN, &Device::flex());
        let mut parts: Vec<_> = (0..len).map(|token| tokens(&v, token..token + 1)).collect();
        parts[nan] = spoilt;
        Tensor::cat(parts, 0)
    });
    // Whoever sees nothing divides zero by zero, and NaN has many forms.
    let bits = |x: &Tensor<2>| -> Vec<u32> {
        let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
        let one = |bits| if is_nan(bits) { u32::MAX } else { bits };
        bits(x).into_iter().map(one).collect()
    };
    let pool_shape = [2 * blocks + 2, block_size, kv_heads, head_dim];
    let new_pool = || KvPool {
        keys: spoilt(pool_shape, format, 0.003),
        values: spoilt(pool_shape, format, 0.007),
    };
    let row = |tokens, start, first: usize| RowLayout {
        tokens,
        start,
        slot: 0,
        blocks: (0..blocks)
            .map(|block| (first + 2 * block) as u32)
            .collect(),
        ..RowLayout::default()
    };
    let from_first = |rows| {
        let mut layout = Layout::new(rows, block_size);
        layout.first_position = first_position;
        layout
    };
    for isa in Isa::available() {
        with_isa(isa, || {
            let layout = from_first(vec![row(0..len, 0, 1)]);
            let pool = cache_write(new_pool(), k.clone(), v.clone(), &layout);
            let whole = bits(&paged_attention(
                q.clone(),
                &pool,
                heads,
                arithmetic,
                &layout,
            ));

            let mut pool = new_pool();
            let mut pieces = Vec::new();
            for piece in pieces_of(len, cuts) {
                // A stranger's first tokens go before ours in the step.
                let strangers = piece.len() % 3;
                let beside = |x: &Tensor<2>| {
                    let ours = tokens(x, piece.clone());
                    if strangers == 0 {
                        return ours;
                    }
                    Tensor::cat(vec![tokens(x, 0..strangers).neg(), ours], 0)
                };
                let mut rows = vec![row(strangers..strangers + piece.len(), piece.start, 1)];
                if strangers > 0 {
                    rows.insert(0, row(0..strangers, 0, 2));
                }
                let layout = from_first(rows);
                pool = cache_write(pool, beside(&k), beside(&v), &layout);
                let out = paged_attention(beside(&q), &pool, heads, arithmetic, &layout);
                pieces.extend(bits(&tokens(&out, strangers..strangers + piece.len())));
            }
            prop_assert!(whole == pieces, "{isa:?} cut at {cuts:?}");
            // Who sees numbers alone gets numbers.
            let sees_nan = |token| nan.is_some_and(|nan| (first_position..=token).contains(&nan));
            for (token, out) in whole.chunks(heads * head_dim).enumerate() {
                let is_nan = out.contains(&u32::MAX);
                prop_assert_eq!(is_nan, token < first_position || sees_nan(token));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Convolution and recurrence of one prompt in pieces, beside a stranger's row, against all at
/// once: outputs and final states.
fn check_mixer(shape: &MambaShape, len: usize, cuts: &[usize]) -> TestCaseResult {
    const SLOTS: usize = 3;
    let projected = random([len, shape.projected()]);
    let weight = random([shape.conv_dim(), 1, shape.conv_kernel]);
    let (a, d, dt_bias) = (
        random([shape.heads]).exp().neg(),
        random([shape.heads]),
        random([shape.heads]),
    );
    let step = |projected: &Tensor<2>, pool, layout: &Layout| {
        let (xbc, pool) = causal_conv1d(projected, &weight, None, pool, shape, layout);
        let parameters = ScanParameters {
            a: &a,
            d: &d,
            dt_bias: &dt_bias,
            time_step_limit: None,
            seed: 3,
        };
        ssm_scan(
            xbc,
            projected,
            &parameters,
            pool,
            shape,
            layout,
            Arithmetic::F32,
        )
    };
    let new_pool = || {
        let pool = StatePool {
            conv: Tensor::full(
                [SLOTS, shape.conv_dim(), shape.conv_kernel - 1],
                f32::NAN,
                &Device::flex(),
            ),
            ssm: Tensor::full(
                [SLOTS, shape.heads, shape.head_dim, shape.state],
                f32::NAN,
                &Device::flex(),
            ),
            ring: None,
        };
        zero_slot(zero_slot(pool, 1), 2)
    };
    let row = |tokens, slot| RowLayout {
        tokens,
        slot,
        ..RowLayout::default()
    };
    let slot_bits = |pool: &StatePool| {
        let mut all = bits(&pool.conv.clone().narrow(0, 1, 1));
        all.extend(bits(&pool.ssm.clone().narrow(0, 1, 1)));
        all
    };
    for isa in Isa::available() {
        with_isa(isa, || {
            let layout = Layout::new(vec![row(0..len, 1)], 1);
            let (y, pool) = step(&projected, new_pool(), &layout);
            let (whole, whole_state) = (bits(&y), slot_bits(&pool));

            let mut pool = new_pool();
            let mut pieces = Vec::new();
            for piece in pieces_of(len, cuts) {
                let n = piece.len();
                let stranger = tokens(&projected, 0..1).neg();
                let inputs = Tensor::cat(vec![tokens(&projected, piece), stranger], 0);
                let layout = Layout::new(vec![row(0..n, 1), row(n..n + 1, 2)], 1);
                let (y, after) = step(&inputs, pool, &layout);
                pool = after;
                pieces.extend(bits(&tokens(&y, 0..n)));
            }
            prop_assert!(whole == pieces, "{isa:?} cut at {cuts:?}");
            prop_assert!(
                whole_state == slot_bits(&pool),
                "state, {isa:?} cut at {cuts:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Shapes wide enough for several threads, blocks of input rows and expert passes.
#[test]
fn wide_operations() {
    let x = random([90, 1536]);
    for stored in [Stored::Plain(FloatDType::BF16), Stored::Fp8, Stored::Nvfp4] {
        let w = stored.matrix([300, 1536]);
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            check_cuts(&x, &[1, 33, 50], |x| linear(x, &w, None, arithmetic));
        }
    }
    // Around the length of a part of K, with tails; a few rows alone are not parted.
    for k in [1023, 1024, 1025, 2100] {
        for stored in STORED {
            let k = stored.width(k);
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
                let w = stored.matrix([13, k]);
                check_cuts(&random([31, k]), &[1, 4, 28], |x| {
                    linear(x, &w, None, arithmetic)
                });
            }
        }
    }
    let gate = random([8, 64]);
    let bias = Tensor::zeros([8], &Device::flex());
    let shape = RouterShape {
        top_k: 6,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        scaling: 1.0,
    };
    // 400 tokens with 6 experts each are more rows than one pass takes.
    for stored in [Stored::Plain(FloatDType::BF16), Stored::Fp8, Stored::Nvfp4] {
        let (up, down) = (stored.experts(8, [48, 64]), stored.experts(8, [64, 48]));
        check_cuts(&random([400, 64]), &[1, 7, 200], |v| {
            let routing = router_topk(&v, &gate, &bias, &shape);
            moe_experts(v, &up, &down, &routing, Arithmetic::F32)
        });
    }
}

#[test]
fn number_of_threads_changes_nothing() {
    let x = random([7, 1024]);
    let each = STORED.map(|stored| stored.matrix([2000, 1024]));
    let q = random([1, 32 * 64]);
    let pool = KvPool {
        keys: random([40, 16, 2, 64]).into(),
        values: random([40, 16, 2, 64]).into(),
    };
    let bf16 = || random([40, 16, 2, 64]).cast(FloatDType::BF16);
    let bf16_pool = KvPool {
        keys: bf16().into(),
        values: bf16().into(),
    };
    let layout = Layout::new(
        vec![RowLayout {
            tokens: 0..1,
            start: 600,
            blocks: (0..38).collect(),
            ..RowLayout::default()
        }],
        16,
    );
    let run = |threads| {
        set_num_threads(threads);
        assert_eq!(num_threads(), threads);
        let mut all = Vec::new();
        for w in &each {
            all.extend(bits(&linear(x.clone(), w, None, Arithmetic::F32)));
        }
        for (pool, arithmetic) in [(&pool, Arithmetic::F32), (&bf16_pool, Arithmetic::Bf16)] {
            let out = paged_attention(q.clone(), pool, 32, arithmetic, &layout);
            all.extend(bits(&out));
        }
        all
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn avx2_and_avx512_agree() {
    // Both round once per multiply-add and add lanes in one order.
    if Isa::best() < Isa::Avx512 {
        return;
    }
    for stored in STORED {
        let k = stored.width(333);
        let (x, w) = (random([5, k]), stored.matrix([77, k]));
        let run = |isa| with_isa(isa, || bits(&linear(x.clone(), &w, None, Arithmetic::F32)));
        assert!(run(Isa::Avx2) == run(Isa::Avx512), "{stored:?}");
    }
}

#[test]
fn a_nan_token_spoils_only_itself() {
    let (m, k) = (5, 24);
    let mut values = vec![0.5_f32; m * k];
    values[2 * k..3 * k].fill(f32::NAN);
    let x = Tensor::<2>::from_data(TensorData::new(values, [m, k]), &Device::flex());
    let up = ExpertMatrices::Fused(random([4, 16, k]));
    let down = ExpertMatrices::Fused(random([4, k, 16]));
    let (gate, bias) = (random([4, k]), random([4]));
    let shape = RouterShape {
        top_k: 2,
        n_group: 2,
        topk_group: 1,
        norm_topk_prob: true,
        scaling: 1.0,
    };
    for isa in Isa::available() {
        with_isa(isa, || {
            let routing = router_topk(&x, &gate, &bias, &shape);
            let out = moe_experts(x.clone(), &up, &down, &routing, Arithmetic::F32);
            with_f32(&out, |out| {
                for (token, out) in out.chunks_exact(k).enumerate() {
                    assert!(
                        out.iter().all(|x| x.is_nan() == (token == 2)),
                        "{isa:?} token {token}"
                    );
                }
            });
        });
    }
}

#[test]
fn strided_inputs_are_read_in_order() {
    let x = random([6, 20]);
    let w = random([20, 9]);
    let transposed = w.clone().transpose().into();
    let strided = linear(x.clone(), &transposed, None, Arithmetic::F32);
    let packed = Tensor::<2>::from_data(w.transpose().into_data(), &Device::flex());
    assert_eq!(
        bits(&strided),
        bits(&linear(x, &packed.into(), None, Arithmetic::F32))
    );
}

#[test]
fn routing_made_elsewhere_is_understood() {
    // Ids as this backend makes them by default, not the router's own I32.
    let ids = Tensor::<2, Int>::from_ints([[1, 0], [0, 1]], &Device::flex());
    let weights = Tensor::from_floats([[1.0, 2.0], [2.0, 1.0]], &Device::flex());
    let one = Tensor::<3>::ones([2, 1, 1], &Device::flex());
    let matrices = || ExpertMatrices::Fused(one.clone());
    let v = Tensor::<2>::from_floats([[2.0], [3.0]], &Device::flex());
    let routing = Routing { ids, weights };
    let out = moe_experts(v, &matrices(), &matrices(), &routing, Arithmetic::F32);
    with_f32(&out, |out| assert_eq!(out, [12.0, 27.0]));
}

#[test]
#[should_panic(expected = "a cache tensor has one owner")]
fn a_shared_pool_is_refused() {
    let pool = KvPool {
        keys: random([2, 4, 1, 8]).into(),
        values: random([2, 4, 1, 8]).into(),
    };
    let keep = pool.clone();
    let pool = copy_block(pool, 0, 1);
    drop((pool, keep));
}

#[test]
#[should_panic(expected = "two rows share a state slot")]
fn rows_may_not_share_a_slot() {
    let shape = MambaShape {
        heads: 1,
        head_dim: 1,
        groups: 1,
        state: 1,
        conv_kernel: 2,
    };
    let pool = StatePool {
        conv: random([2, 3, 1]),
        ssm: random([2, 1, 1, 1]),
        ring: None,
    };
    let row = |tokens| RowLayout {
        tokens,
        slot: 1,
        ..RowLayout::default()
    };
    let layout = Layout::new(vec![row(0..1), row(1..2)], 1);
    let _ = causal_conv1d(
        &random([2, 5]),
        &random([3, 1, 2]),
        None,
        pool,
        &shape,
        &layout,
    );
}

#[test]
fn weights_from_shared_bytes_are_not_copied() {
    let values: Vec<f32> = (0..7).map(|x| x as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let owner = std::sync::Arc::new(bytes);
    let address = owner.as_ptr().addr();
    let weight: Tensor<2> =
        weight_from_shared(owner.clone(), 4..28, &[2, 3], DType::F32, &Device::flex());
    with_f32(&weight, |got| {
        assert_eq!(got, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        if address.is_multiple_of(4) {
            assert_eq!(got.as_ptr().addr(), address + 4);
        }
    });
    drop(weight);
    assert_eq!(std::sync::Arc::strong_count(&owner), 1, "the map is let go");

    // Misaligned bytes are copied, and right.
    let shifted: Vec<u8> = std::iter::once(0).chain(owner.iter().copied()).collect();
    let weight: Tensor<1> = weight_from_shared(
        std::sync::Arc::new(shifted),
        1..29,
        &[7],
        DType::F32,
        &Device::flex(),
    );
    with_f32(&weight, |got| assert_eq!(got, values));
}
