//! Keys and values arrive at their positions, rounded as the format says.

use common::Numbers;
use cube_kernels::{Buffer, Client, KvFormat, RowIndex, StepIndex, cache_write};

mod common;

const FP8: KvFormat = KvFormat::Fp8 {
    k_scale: 0.5,
    v_scale: 3.0,
};

/// A pool's bytes: what a step writes, over poison.
fn write(
    client: &Client,
    k: &[f32],
    v: &[f32],
    format: KvFormat,
    [num_blocks, block_size, kv_heads, head_dim]: [usize; 4],
    rows: &[RowIndex],
) -> [Vec<u8>; 2] {
    let bits = match format {
        KvFormat::F32 => 32,
        KvFormat::Bf16 => 16,
        KvFormat::Fp8 { .. } => 8,
    };
    let words = num_blocks * block_size * kv_heads * head_dim * bits / 32;
    let poison = vec![0xdead_beef_u32; words];
    let pools = [(); 2].map(|()| Buffer::upload(client, &poison));
    let step = StepIndex::upload(client, rows, block_size);
    let [k, v] = [k, v].map(|side| Buffer::upload(client, side));
    cache_write(
        client, &k, &v, &pools[0], &pools[1], format, kv_heads, head_dim, &step,
    );
    pools.map(|pool| bytemuck::pod_collect_to_vec(&pool.read::<u32>(client)))
}

/// The nearest of all codes, by looking at each; ties to the even one.
fn e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let number = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3), f64::from(code & 7));
        match exponent {
            0 => fraction / 8.0 * 2_f64.powi(-6),
            _ => (1.0 + fraction / 8.0) * 2_f64.powi(exponent - 7),
        }
    };
    let distance = |code: u8| (f64::from(x.abs()).min(448.0) - number(code)).abs();
    let nearest = (0..0x7f_u8)
        .min_by(|&a, &b| {
            distance(a)
                .total_cmp(&distance(b))
                .then((a & 1).cmp(&(b & 1)))
        })
        .unwrap();
    nearest | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// The bytes of a number in a format; NaN compares as one.
fn stored(x: f32, format: KvFormat, side: usize) -> Vec<u8> {
    match format {
        KvFormat::F32 => x.to_le_bytes().to_vec(),
        KvFormat::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        KvFormat::Fp8 { k_scale, v_scale } => vec![e4m3(x / [k_scale, v_scale][side])],
    }
}

#[test]
fn tokens_land_in_their_blocks() {
    let Some(client) = common::client() else {
        return;
    };
    let mut numbers = Numbers::new(3);
    for (format, shape) in [
        (KvFormat::F32, [6, 4, 1, 3]),
        (KvFormat::F32, [6, 32, 2, 16]),
        (KvFormat::Bf16, [6, 4, 2, 6]),
        (KvFormat::Bf16, [6, 16, 2, 128]),
        (FP8, [6, 4, 3, 4]),
        (FP8, [6, 8, 2, 64]),
    ] {
        let [num_blocks, block_size, kv_heads, head_dim] = shape;
        let row = |start, num_tokens, blocks: [u32; 3]| RowIndex {
            num_tokens,
            start,
            slot: 1,
            blocks: blocks.to_vec(),
        };
        let rows = [
            row(block_size + 1, 1, [3, 1, 0]),
            row(1, 2 * block_size, [5, 2, 4]),
        ];
        let width = kv_heads * head_dim;
        let num_tokens = rows.iter().map(|row| row.num_tokens).sum::<usize>();
        let sides = [2.0, 900.0].map(|scale| numbers.vector(num_tokens * width, scale));
        let pools = write(&client, &sides[0], &sides[1], format, shape, &rows);
        for (side, pool) in pools.iter().enumerate() {
            let each = pool.len() / (num_blocks * block_size * width);
            let poison = 0xdead_beef_u32.to_le_bytes();
            let mut expect: Vec<u8> = poison.iter().copied().cycle().take(pool.len()).collect();
            let mut token = 0;
            for row in &rows {
                for position in row.start..row.start + row.num_tokens {
                    let block = row.blocks[position / block_size] as usize;
                    let slot = block * block_size + position % block_size;
                    for i in 0..width {
                        let bytes = stored(sides[side][token * width + i], format, side);
                        expect[(slot * width + i) * each..][..each].copy_from_slice(&bytes);
                    }
                    token += 1;
                }
            }
            assert!(*pool == expect, "{format:?} {shape:?} side {side}");
        }
    }
}

#[test]
fn every_kind_of_number_is_rounded() {
    let Some(client) = common::client() else {
        return;
    };
    let mut numbers: Vec<f32> = vec![0.0, -0.0, 1e-30, f32::MAX, f32::INFINITY, -f32::INFINITY];
    // Every code of E4M3, the middle between neighbours, and a hair to either side of it.
    for code in 0..0x7e_u8 {
        let number = |code: u8| match code >> 3 {
            0 => f32::from(code & 7) / 512.0,
            exponent => (1.0 + f32::from(code & 7) / 8.0) * 2_f32.powi(i32::from(exponent) - 7),
        };
        let middle = f32::midpoint(number(code), number(code + 1));
        numbers.extend([number(code), -middle, middle.next_up(), middle.next_down()]);
    }
    numbers.extend([449.0, 463.9, 464.1, -1e9, 1.003_906_2, 1.011_718_8]);
    numbers.resize(numbers.len().next_multiple_of(4), 1.0);
    let head_dim = numbers.len();
    let row = [RowIndex {
        num_tokens: 1,
        start: 0,
        slot: 1,
        blocks: vec![0],
    }];
    for format in [
        KvFormat::Bf16,
        KvFormat::Fp8 {
            k_scale: 1.0,
            v_scale: 2.0,
        },
    ] {
        let shape = [1, 1, 1, head_dim];
        let pools = write(&client, &numbers, &numbers, format, shape, &row);
        for (side, pool) in pools.iter().enumerate() {
            let each = pool.len() / head_dim;
            for (x, bytes) in numbers.iter().zip(pool.chunks(each)) {
                assert_eq!(bytes, stored(*x, format, side), "{x:e} {format:?}");
            }
        }
        let nan = vec![f32::from_bits(0x7f80_0001); 4];
        let pools = write(&client, &nan, &nan, format, [1, 1, 1, 4], &row);
        for pool in pools {
            let is_nan = |bytes: &[u8]| match bytes {
                [code] => code & 0x7f == 0x7f,
                [low, high] => half::bf16::from_le_bytes([*low, *high]).is_nan(),
                _ => unreachable!(),
            };
            assert!(pool.chunks(pool.len() / 4).all(is_nan), "{format:?}");
        }
    }
}
