//! Attention over the paged cache against softmax in f64, and against itself cut otherwise.

use common::{Numbers, assert_near, poisoned};
use cube_kernels::{
    Arithmetic, Buffer, Client, KvFormat, RowIndex, StepIndex, cache_write, paged_attention,
    paged_attention_within,
};

mod common;

const FP8: KvFormat = KvFormat::Fp8 {
    k_scale: 0.01,
    v_scale: 0.02,
};

/// A model's heads and its pools.
struct Cache {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    format: KvFormat,
    keys: Buffer,
    values: Buffer,
}

/// A sequence on the host: queries, keys and values of each of its positions.
struct Sequence {
    blocks: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    /// Sequences of these lengths, in blocks that lie across one another, and pools full of NaN.
    fn new(
        client: &Client,
        [heads, kv_heads, head_dim, block_size]: [usize; 4],
        format: KvFormat,
        lengths: &[usize],
        seed: u64,
    ) -> (Self, Vec<Sequence>) {
        let mut numbers = Numbers::new(seed);
        let num_blocks = |len: &usize| len.div_ceil(block_size);
        let total: usize = 1 + lengths.iter().map(num_blocks).sum::<usize>();
        let mut free = numbers.permutation(total);
        free.retain(|&block| block != 0);
        let sequences = lengths
            .iter()
            .map(|len| Sequence {
                blocks: free.drain(..num_blocks(len)).map(|b| b as u32).collect(),
                q: numbers.vector(len * heads * head_dim, 3.0),
                k: numbers.vector(len * kv_heads * head_dim, 2.0),
                v: numbers.vector(len * kv_heads * head_dim, 2.0),
            })
            .collect();
        let bits = match format {
            KvFormat::F32 => 32,
            KvFormat::Bf16 => 16,
            KvFormat::Fp8 { .. } => 8,
        };
        let words = total * block_size * kv_heads * head_dim * bits / 32;
        // NaN in every format.
        let [keys, values] = [(); 2].map(|()| Buffer::upload(client, &vec![u32::MAX; words]));
        let cache = Self {
            heads,
            kv_heads,
            head_dim,
            block_size,
            format,
            keys,
            values,
        };
        (cache, sequences)
    }

    /// Writes and attends for parts `start..start + len` of sequences in one step; one result per
    /// part.
    fn step(
        &self,
        client: &Client,
        sequences: &[Sequence],
        parts: &[(usize, usize, usize)],
        scratch: Option<usize>,
    ) -> Vec<Vec<f32>> {
        let rows: Vec<RowIndex> = parts
            .iter()
            .map(|&(of, start, num_tokens)| RowIndex {
                num_tokens,
                start,
                slot: of + 1,
                blocks: sequences[of].blocks.clone(),
            })
            .collect();
        let step = StepIndex::upload(client, &rows, self.block_size);
        let gather = |side: fn(&Sequence) -> &[f32], width: usize| {
            let values: Vec<f32> = parts
                .iter()
                .flat_map(|&(of, start, len)| {
                    side(&sequences[of])[start * width..(start + len) * width].to_vec()
                })
                .collect();
            Buffer::upload(client, &values)
        };
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        let q = gather(|sequence| &sequence.q, self.heads * head_dim);
        let k = gather(|sequence| &sequence.k, kv_heads * head_dim);
        let v = gather(|sequence| &sequence.v, kv_heads * head_dim);
        let (keys, values) = (&self.keys, &self.values);
        cache_write(
            client,
            &k,
            &v,
            keys,
            values,
            self.format,
            kv_heads,
            head_dim,
            &step,
        );
        let out = poisoned(client, q.len());
        if let Some(scratch) = scratch {
            let shape = [self.heads, kv_heads, head_dim];
            paged_attention_within(
                client,
                &q,
                [keys, values],
                self.format,
                shape,
                Arithmetic::F32,
                &step,
                scratch,
                &out,
            );
        } else {
            paged_attention(
                client,
                &q,
                keys,
                values,
                self.format,
                self.heads,
                kv_heads,
                head_dim,
                Arithmetic::F32,
                &step,
                &out,
            );
        }
        let all: Vec<f32> = out.read(client);
        let width = self.heads * head_dim;
        let mut at = 0;
        parts
            .iter()
            .map(|&(_, _, len)| {
                at += len * width;
                all[at - len * width..at].to_vec()
            })
            .collect()
    }

    /// What one position should give, from the numbers as stored.
    fn expected(&self, sequence: &Sequence, position: usize) -> Vec<f64> {
        let (heads, head_dim) = (self.heads, self.head_dim);
        let width = self.kv_heads * head_dim;
        let [k_scale, v_scale] = match self.format {
            KvFormat::Fp8 { k_scale, v_scale } => [k_scale, v_scale],
            _ => [1.0; 2],
        };
        let stored = |x: f32, scale: f32| match self.format {
            KvFormat::F32 => f64::from(x),
            KvFormat::Bf16 => f64::from(half::bf16::from_f32(x)),
            KvFormat::Fp8 { .. } => e4m3(f64::from(x / scale)) * f64::from(scale),
        };
        let mut result = Vec::new();
        for head in 0..heads {
            let q = &sequence.q[(position * heads + head) * head_dim..][..head_dim];
            let of =
                |at: usize, d: usize| at * width + head / (heads / self.kv_heads) * head_dim + d;
            let scores: Vec<f64> = (0..=position)
                .map(|at| {
                    let dot = |d| f64::from(q[d]) * stored(sequence.k[of(at, d)], k_scale);
                    (0..head_dim).map(dot).sum::<f64>() / (head_dim as f64).sqrt()
                })
                .collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let mass: f64 = weights.iter().sum();
            result.extend((0..head_dim).map(|d| {
                let value = |at: usize| weights[at] * stored(sequence.v[of(at, d)], v_scale);
                (0..=position).map(value).sum::<f64>() / mass
            }));
        }
        result
    }
}

/// Rounded to four bits of fraction, at least steps of 2^-9, at most 448.
fn e4m3(x: f64) -> f64 {
    let step = 2_f64.powi((x.abs().log2().floor() as i32).max(-6) - 3);
    ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

#[test]
fn every_format_and_shape_agrees() {
    let Some(client) = common::client() else {
        return;
    };
    for (shape, format, len) in [
        // Super's, then heads that do not fill a tile or a vector, and more than fill a tile.
        ([32, 2, 128, 32], KvFormat::Bf16, 100),
        ([32, 2, 128, 32], FP8, 70),
        ([3, 3, 7, 4], KvFormat::F32, 67),
        ([10, 2, 6, 16], KvFormat::Bf16, 67),
        ([80, 1, 8, 16], KvFormat::F32, 20),
    ] {
        let (cache, sequences) = Cache::new(&client, shape, format, &[len], 11);
        let first = len / 2;
        let what = format!("{shape:?} {format:?}");
        let chunk = cache.step(&client, &sequences, &[(0, 0, first)], None);
        for position in [0, first / 3, first - 1] {
            let width = shape[0] * shape[2];
            let got = &chunk[0][position * width..][..width];
            assert_near(got, &cache.expected(&sequences[0], position), 3e-6, &what);
        }
        // Positions that nothing attends for must be in the cache all the same.
        if first + 1 < len {
            cache.step(&client, &sequences, &[(0, first, len - 1 - first)], None);
        }
        let single = cache.step(&client, &sequences, &[(0, len - 1, 1)], None);
        assert_near(
            &single[0],
            &cache.expected(&sequences[0], len - 1),
            3e-6,
            &what,
        );
    }
}

#[test]
fn long_contexts_agree_in_every_way() {
    let Some(client) = common::client() else {
        return;
    };
    // Into the splits of 256.
    let len = 2048 + 256 + 40;
    let shape = [4, 1, 16, 32];
    let (cache, sequences) = Cache::new(&client, shape, KvFormat::Bf16, &[len], 5);
    cache.step(&client, &sequences, &[(0, 0, len - 4)], None);
    for (start, num_tokens) in [(len - 4, 3), (len - 1, 1)] {
        let parts = [(0, start, num_tokens)];
        let usual = cache.step(&client, &sequences, &parts, None);
        for scratch in [0, usize::MAX] {
            let other = cache.step(&client, &sequences, &parts, Some(scratch));
            assert_eq!(bits(&usual[0]), bits(&other[0]), "{start} {scratch:?}");
        }
        let want: Vec<f64> = (start..start + num_tokens)
            .flat_map(|position| cache.expected(&sequences[0], position))
            .collect();
        assert_near(&usual[0], &want, 3e-6, "long");
    }
}

#[test]
fn a_token_is_the_same_bits_in_any_company() {
    let Some(client) = common::client() else {
        return;
    };
    for (shape, format) in [([16, 1, 32, 16], KvFormat::Bf16), ([10, 2, 8, 4], FP8)] {
        let lengths = [150, 75, 9];
        let (cache, sequences) = Cache::new(&client, shape, format, &lengths, 21);
        // Each alone, its prompt in one piece.
        let alone: Vec<Vec<f32>> = lengths
            .iter()
            .enumerate()
            .map(|(of, &len)| {
                cache
                    .step(&client, &sequences, &[(of, 0, len)], None)
                    .remove(0)
            })
            .collect();
        let width = shape[0] * shape[2];
        let check = |parts: &[(usize, usize, usize)], scratch| {
            let results = cache.step(&client, &sequences, parts, scratch);
            for (&(of, start, len), result) in parts.iter().zip(&results) {
                let want = &alone[of][start * width..(start + len) * width];
                assert_eq!(
                    bits(result),
                    bits(want),
                    "{shape:?} {format:?} {parts:?} {scratch:?}"
                );
            }
        };
        // The last has room for one token at a time in one shape, for a few in the other.
        for scratch in [None, Some(0), Some(usize::MAX), Some(7000)] {
            // Token by token, together; chunks of odd lengths; single tokens before and after.
            check(&[(0, 149, 1), (1, 74, 1), (2, 8, 1)], scratch);
            check(&[(0, 64, 1), (1, 63, 1), (2, 0, 1)], scratch);
            check(&[(0, 3, 61), (1, 0, 75)], scratch);
            check(&[(2, 4, 1), (0, 70, 80), (1, 40, 1)], scratch);
        }
    }
}

#[test]
fn a_nan_stays_with_those_who_see_it() {
    let Some(client) = common::client() else {
        return;
    };
    let shape = [4, 2, 8, 4];
    let (cache, mut sequences) = Cache::new(&client, shape, KvFormat::F32, &[40, 40], 2);
    // A value of position 20, and a query of position 3.
    sequences[0].v[20 * 16] = f32::NAN;
    sequences[0].q[3 * 32] = f32::NAN;
    let results = cache.step(&client, &sequences, &[(0, 0, 40), (1, 0, 40)], None);
    let width = 32;
    let has_nan =
        |row: &[f32], position: usize| row[position * width..][..width].iter().any(|x| x.is_nan());
    for position in 0..40 {
        let expect = position == 3 || position >= 20;
        assert_eq!(
            has_nan(&results[0], position),
            expect,
            "position {position}"
        );
        assert!(
            !has_nan(&results[1], position),
            "the other row at {position}"
        );
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
