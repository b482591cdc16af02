//! Attention on tensor cores, its very text on the processor, against softmax in f64, and against
//! itself cut otherwise.

use std::collections::BTreeMap;

use cube_kernels::KvFormat;
use cube_kernels::tensor_core::attention::{AttentionShape, StepShape, plan};
use cube_kernels::tensor_core::plan::{Plan, Role};
use emulated::Emulator;
use emulated::weights::{Random, to_bf16};

mod emulated;

const FP8: KvFormat = KvFormat::Fp8 {
    k_scale: 0.01,
    v_scale: 0.02,
};

fn shape(format: KvFormat, [heads, kv_heads, head_dim, block_size]: [usize; 4]) -> AttentionShape {
    AttentionShape {
        format,
        heads,
        kv_heads,
        head_dim,
        block_size,
    }
}

/// A part of a sequence: which, from where, how many tokens.
type Part = (usize, usize, usize);

/// Sequences and the pools that hold all of their positions; every other number there is NaN.
struct Cache {
    shape: AttentionShape,
    blocks: Vec<Vec<u32>>,
    /// Of each sequence and position, and of keys and values what is stored, without scales.
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Cache {
    fn new(shape: AttentionShape, lengths: &[usize], seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let block_size = shape.block_size;
        let num_blocks = |len: &usize| len.div_ceil(block_size);
        let total = 1 + lengths.iter().map(num_blocks).sum::<usize>();
        // Blocks of all sequences lie across one another, from the last to the first.
        let mut free: Vec<u32> = (1..total as u32).collect();
        for at in (1..free.len()).rev() {
            free.swap(at, random.below(at as u32 + 1) as usize);
        }
        let width = shape.kv_heads * shape.head_dim;
        let bytes = if shape.format == KvFormat::Bf16 { 2 } else { 1 };
        let pool = vec![0xff; total * block_size * width * bytes];
        let mut cache = Self {
            shape,
            blocks: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            keys: pool.clone(),
            values: pool,
        };
        for len in lengths {
            let blocks: Vec<u32> = free.drain(..num_blocks(len)).collect();
            let q = random.values(len * shape.heads * shape.head_dim);
            cache.q.push(q.iter().map(|x| x * 3.0).collect());
            let (mut k, mut v) = (Vec::new(), Vec::new());
            for position in 0..*len {
                let slot =
                    blocks[position / block_size] as usize * block_size + position % block_size;
                for at in 0..width {
                    let at = (slot * width + at) * bytes;
                    k.push(store(&mut cache.keys[at..at + bytes], random));
                    v.push(store(&mut cache.values[at..at + bytes], random));
                }
            }
            cache.blocks.push(blocks);
            cache.k.push(k);
            cache.v.push(v);
        }
        cache
    }

    /// What a step of these parts launches, single tokens first.
    fn plan(&self, parts: &[Part], scratch: usize) -> Plan {
        let step = StepShape {
            num_tokens: parts.iter().map(|part| part.2).sum(),
            num_rows: parts.len(),
            num_single_rows: parts.iter().take_while(|part| part.2 == 1).count(),
            max_row_tokens: parts.iter().map(|part| part.2).max().unwrap_or(0),
            max_context: parts.iter().map(|part| part.1 + part.2).max().unwrap_or(0),
            table_stride: self.stride(),
        };
        plan(&self.shape, step, scratch)
    }

    fn stride(&self) -> usize {
        self.blocks.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// One result per part.
    fn run(&self, emulator: &Emulator, parts: &[Part], scratch: usize, seed: u32) -> Vec<Vec<f32>> {
        let width = self.shape.heads * self.shape.head_dim;
        let mut q = Vec::<f32>::new();
        let (mut rows, mut positions, mut ends) = (vec![], vec![], vec![0_u32]);
        let mut tables = vec![0_u32; parts.len() * self.stride()];
        for (row, &(of, start, len)) in parts.iter().enumerate() {
            q.extend(&self.q[of][start * width..(start + len) * width]);
            rows.extend(vec![row as u32; len]);
            positions.extend((start..start + len).map(|position| position as u32));
            ends.push(rows.len() as u32);
            let blocks = &self.blocks[of];
            tables[row * self.stride()..][..blocks.len()].copy_from_slice(blocks);
        }
        let words = |words: &[u32]| bytemuck::cast_slice(words).to_vec();
        let mut buffers = BTreeMap::from([
            (Role::X, bytemuck::cast_slice(&q).to_vec()),
            (Role::Keys, self.keys.clone()),
            (Role::Values, self.values.clone()),
            (Role::TokenRows, words(&rows)),
            (Role::TokenPositions, words(&positions)),
            (Role::RowTokens, words(&ends)),
            (Role::Tables, words(&tables)),
            (Role::Out, vec![0xff; q.len() * 4]),
        ]);
        emulator.carry_out(&self.plan(parts, scratch), &mut buffers, seed);
        let all: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[&Role::Out]);
        let mut at = 0;
        let mut take = |len: usize| {
            at += len * width;
            all[at - len * width..at].to_vec()
        };
        parts.iter().map(|part| take(part.2)).collect()
    }

    /// What one position of a sequence should give; `round` where the kernel rounds to bf16.
    fn expected(&self, of: usize, position: usize, round: fn(f64) -> f64) -> Vec<f64> {
        let AttentionShape {
            format,
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let [k_scale, v_scale] = match format {
            KvFormat::Fp8 { k_scale, v_scale } => [k_scale, v_scale].map(f64::from),
            _ => [1.0; 2],
        };
        let q_scale = k_scale * std::f64::consts::LOG2_E / (head_dim as f64).sqrt();
        let mut result = Vec::new();
        for head in 0..heads {
            let q = &self.q[of][(position * heads + head) * head_dim..][..head_dim];
            let q: Vec<f64> = q.iter().map(|&x| round(f64::from(x) * q_scale)).collect();
            let at = |key: usize| (key * kv_heads + head / (heads / kv_heads)) * head_dim;
            let score = |key: usize| -> f64 {
                let k = &self.k[of][at(key)..][..head_dim];
                q.iter().zip(k).map(|(q, k)| q * k).sum()
            };
            let scores: Vec<f64> = (0..=position).map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp2()).collect();
            let mass: f64 = weights.iter().sum();
            result.extend((0..head_dim).map(|d| {
                let value = |key: usize| weights[key] * self.v[of][at(key) + d];
                (0..=position).map(value).sum::<f64>() / mass * v_scale
            }));
        }
        result
    }

    /// Every token of the parts against what it should be.
    fn check(&self, parts: &[Part], results: &[Vec<f32>]) {
        let width = self.shape.heads * self.shape.head_dim;
        let [mut rounded, mut whole] = [Error::default(); 2];
        for (&(of, start, len), result) in parts.iter().zip(results) {
            for token in 0..len {
                let got = &result[token * width..][..width];
                rounded.add(got, &self.expected(of, start + token, bf16));
                whole.add(got, &self.expected(of, start + token, |x| x));
            }
        }
        let [rounded, whole] = [rounded, whole].map(Error::relative);
        println!(
            "{:?}: errors {rounded:.1e}, without roundings {whole:.1e}",
            self.shape
        );
        // What is left: a weight of a value is rounded after it was added to the sum of weights.
        assert!(rounded < 3e-3, "{:?} {parts:?}: {rounded}", self.shape);
        assert!(whole < 1e-2, "{:?} {parts:?}: {whole}", self.shape);
    }
}

/// Draws a number, stores it, and says what it is.
fn store(bytes: &mut [u8], random: &mut Random) -> f64 {
    if let [low, high] = bytes {
        let half = ((random.signed() * 2.0).to_bits() >> 16) as u16;
        [*low, *high] = half.to_le_bytes();
        f64::from(f32::from_bits(u32::from(half) << 16))
    } else {
        // Every code but the two for NaN.
        let code = (random.below(127) | random.below(2) << 7) as u8;
        bytes[0] = code;
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
        let magnitude = if exponent == 0 {
            fraction * 2_f64.powi(-6)
        } else {
            (1.0 + fraction) * 2_f64.powi(exponent - 7)
        };
        if code & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }
}

fn bf16(x: f64) -> f64 {
    to_bf16(x as f32)
}

/// Root of the mean square of the errors, in that of the wanted values.
#[derive(Clone, Copy, Default)]
struct Error {
    errors: f64,
    squares: f64,
}

impl Error {
    fn add(&mut self, got: &[f32], want: &[f64]) {
        for (&got, &want) in got.iter().zip(want) {
            assert!(!got.is_nan(), "NaN for {want}");
            self.errors += (f64::from(got) - want).powi(2);
            self.squares += want * want;
        }
    }

    fn relative(self) -> f64 {
        (self.errors / self.squares).sqrt()
    }
}

fn compile(test: &str, plans: &[Plan]) -> Option<Emulator> {
    let launches = plans.iter().flat_map(|plan| &plan.launches);
    let texts = launches.map(|launch| (launch.text.name.clone(), launch.text.source()));
    let texts: BTreeMap<_, _> = texts.collect();
    Emulator::new(test, &texts.into_iter().collect::<Vec<_>>())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Walks, and splits of blocks of one warp and of several, singles and rows of different lengths.
fn check_shape(test: &str, shape: AttentionShape) {
    let cache = Cache::new(shape, &[150, 70, 9, 67], 3);
    let steps: [(&[Part], usize); 3] = [
        (
            &[(0, 149, 1), (2, 0, 1), (3, 64, 1), (1, 3, 67), (2, 4, 5)],
            usize::MAX,
        ),
        (&[(1, 64, 1), (3, 0, 67), (0, 130, 2)], 0),
        // All in the first split: nothing to put together.
        (&[(2, 8, 1), (0, 0, 64)], usize::MAX),
    ];
    let plans = steps.map(|(parts, scratch)| cache.plan(parts, scratch));
    let Some(emulator) = compile(test, &plans) else {
        return;
    };
    for (at, (parts, scratch)) in steps.into_iter().enumerate() {
        let results = cache.run(&emulator, parts, scratch, at as u32);
        cache.check(parts, &results);
    }
}

#[test]
fn groups_of_sixteen_are_right() {
    for (name, format) in [("bf16", KvFormat::Bf16), ("fp8", FP8)] {
        let shape = shape(format, [32, 2, 128, 32]);
        check_shape(&format!("tensor_attention_{name}"), shape);
    }
}

#[test]
fn other_shapes_are_right() {
    // Several tokens in a warp, small and odd blocks, heads of 64, one query head a kv head.
    check_shape(
        "tensor_attention_4_64",
        shape(KvFormat::Bf16, [8, 2, 64, 4]),
    );
    check_shape("tensor_attention_8_64_fp8", shape(FP8, [8, 1, 64, 24]));
    check_shape("tensor_attention_1_128_fp8", shape(FP8, [2, 2, 128, 7]));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let fits = |format, shape_| shape(format, shape_).fits();
    assert!(fits(FP8, [32, 2, 128, 32]));
    assert!(!fits(KvFormat::F32, [32, 2, 128, 32]));
    assert!(!fits(KvFormat::Bf16, [10, 2, 128, 32]));
    assert!(!fits(KvFormat::Bf16, [32, 1, 128, 32]));
    assert!(!fits(KvFormat::Bf16, [32, 2, 96, 32]));
}

/// Into the splits of 256, the last of them with several tiles.
#[test]
fn long_contexts_agree_in_every_way() {
    let len = 2048 + 256 + 100;
    let shape = shape(KvFormat::Bf16, [16, 1, 64, 32]);
    let cache = Cache::new(shape, &[len], 5);
    let chunk: &[Part] = &[(0, len - 6, 6)];
    let single: &[Part] = &[(0, len - 1, 1)];
    let plans = [
        (chunk, 0),
        (chunk, usize::MAX),
        (single, 0),
        (single, usize::MAX),
    ]
    .map(|(parts, scratch)| cache.plan(parts, scratch));
    let Some(emulator) = compile("tensor_attention_long", &plans) else {
        return;
    };
    let walked = cache.run(&emulator, chunk, 0, 1);
    cache.check(chunk, &walked);
    let split = cache.run(&emulator, chunk, usize::MAX, 2);
    assert_eq!(bits(&split[0]), bits(&walked[0]), "splits");
    let last = &walked[0][5 * 16 * 64..];
    for scratch in [0, usize::MAX] {
        let alone = cache.run(&emulator, single, scratch, 3);
        assert_eq!(bits(&alone[0]), bits(last), "alone");
    }
}

#[test]
fn a_token_is_the_same_bits_in_any_company() {
    for (name, shape) in [
        ("16", shape(KvFormat::Bf16, [16, 1, 64, 16])),
        ("8", shape(FP8, [16, 2, 64, 8])),
    ] {
        let lengths = [150, 75, 9];
        let cache = Cache::new(shape, &lengths, 21);
        let width = shape.heads * shape.head_dim;
        let whole: Vec<Part> = lengths
            .iter()
            .enumerate()
            .map(|(of, &len)| (of, 0, len))
            .collect();
        let steps: [&[Part]; 5] = [
            // Token by token, together; chunks of odd lengths; single tokens before them.
            &[(0, 149, 1), (1, 74, 1), (2, 8, 1)],
            &[(0, 64, 1), (1, 63, 1), (2, 0, 1)],
            &[(0, 3, 61), (1, 0, 75)],
            &[(2, 4, 1), (0, 70, 80), (1, 40, 2)],
            &[(0, 127, 3), (1, 1, 6)],
        ];
        // The last has room for a token at a time.
        let scratches = [0, usize::MAX, 16 * 3 * 66 * 4];
        let mut plans: Vec<Plan> = whole.iter().map(|part| cache.plan(&[*part], 0)).collect();
        for parts in steps {
            plans.extend(scratches.map(|scratch| cache.plan(parts, scratch)));
        }
        let Some(emulator) = compile(&format!("tensor_attention_company_{name}"), &plans) else {
            return;
        };
        let alone: Vec<Vec<f32>> = whole
            .iter()
            .map(|part| cache.run(&emulator, &[*part], 0, 1).remove(0))
            .collect();
        for (seed, parts) in steps.into_iter().enumerate() {
            for scratch in scratches {
                let results = cache.run(&emulator, parts, scratch, seed as u32);
                for (&(of, start, len), result) in parts.iter().zip(&results) {
                    let want = &alone[of][start * width..(start + len) * width];
                    assert_eq!(bits(result), bits(want), "{parts:?} {scratch}");
                }
            }
        }
    }
}

/// A NaN in the cache is seen by the tokens from its own on, and by no other row.
#[test]
fn a_nan_stays_with_those_who_see_it() {
    for (name, format) in [("bf16", KvFormat::Bf16), ("fp8", FP8)] {
        for is_value in [false, true] {
            let shape = shape(format, [16, 1, 64, 4]);
            let mut cache = Cache::new(shape, &[40, 40], 2);
            let position = 20;
            let bytes = if format == KvFormat::Bf16 { 2 } else { 1 };
            let slot = cache.blocks[0][position / 4] as usize * 4 + position % 4;
            let pool = if is_value {
                &mut cache.values
            } else {
                &mut cache.keys
            };
            pool[slot * 64 * bytes..][..bytes].fill(0x7f | 0x80);
            let parts: &[Part] = &[(0, 0, 40), (1, 0, 40)];
            let plans = [cache.plan(parts, 0)];
            let Some(emulator) = compile(&format!("tensor_attention_nan_{name}"), &plans) else {
                return;
            };
            let results = cache.run(&emulator, parts, 0, 4);
            let has_nan = |result: &[f32], token: usize| {
                result[token * 16 * 64..][..16 * 64]
                    .iter()
                    .any(|x| x.is_nan())
            };
            for token in 0..40 {
                assert_eq!(
                    has_nan(&results[0], token),
                    token >= position,
                    "{token} {is_value}"
                );
                assert!(!has_nan(&results[1], token), "the other row at {token}");
            }
        }
    }
}
