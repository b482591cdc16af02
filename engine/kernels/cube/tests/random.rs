//! Random weights: the bits that plain loops draw, and neighbours that stay.

use cube_kernels::{Buffer, RandomForm, fill_random};
use half::bf16;

mod common;

/// The same text as the engine's host generator.
fn mix(key: u64, counter: u64) -> u64 {
    let weyl = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(counter + 1);
    let mut z = key.wrapping_add(weyl);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn drawn(len: usize, seed: u64, piece_bytes: usize) -> Vec<u8> {
    let per_piece = (piece_bytes / 8) as u64;
    let eights = (0..len.div_ceil(2) as u64)
        .map(|at| mix(mix(seed, at / per_piece), at % per_piece).to_le_bytes());
    eights.flatten().take(4 * len).collect()
}

fn formed(bytes: &[u8], form: RandomForm) -> Vec<u8> {
    let each = |f: fn(u8) -> u8| bytes.iter().map(|byte| f(*byte)).collect();
    match form {
        RandomForm::Bytes => bytes.to_vec(),
        RandomForm::E4m3 => each(|byte| if byte & 0x7f == 0x7f { byte - 1 } else { byte }),
        RandomForm::OneToTwo => each(|byte| 0x38 + byte % 8),
        RandomForm::Bf16 { step } => bytes
            .chunks_exact(2)
            .flat_map(|pair| {
                let level = f32::from(i16::from_le_bytes([pair[0], pair[1]]));
                bf16::from_f32((level + 0.5) * step).to_le_bytes()
            })
            .collect(),
    }
}

#[test]
fn bits_are_those_of_plain_loops() {
    let Some(client) = common::client() else {
        return;
    };
    let forms = [
        RandomForm::Bytes,
        RandomForm::E4m3,
        RandomForm::OneToTwo,
        RandomForm::Bf16 { step: 3.1e-6 },
    ];
    // Odd, even, nothing, over several pieces, more than a grid's units.
    for (len, at, count) in [
        (64, 3, 41),
        (64, 64, 0),
        (64, 0, 64),
        (5000, 8, 4990),
        (4_300_000, 1, 4_299_999),
    ] {
        for form in forms {
            let old: Vec<u32> = (0..len as u32).collect();
            let buffer = Buffer::upload(&client, &old);
            let seed = 0xfedc_ba98_7654_3210;
            fill_random(&client, &buffer, (at, count), seed, 1 << 12, form);
            let got = buffer.read::<u32>(&client);
            let bytes = formed(&drawn(count, seed, 1 << 12), form);
            let expect = bytes.chunks_exact(4).map(|word| {
                let word: [u8; 4] = word.try_into().expect("chunks of 4");
                u32::from_le_bytes(word)
            });
            assert!(expect.eq(got[at..at + count].iter().copied()), "{form:?}");
            assert_eq!(got[..at], old[..at]);
            assert_eq!(got[at + count..], old[at + count..]);
        }
    }
}
