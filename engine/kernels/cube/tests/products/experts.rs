use cube_kernels::{Arithmetic, Buffer, Client, Format, experts};

use crate::common;
use crate::weights::{Random, Weights};

struct Case {
    up: Weights,
    down: Weights,
    top_k: usize,
}

/// Tokens with their experts.
struct Tokens {
    v: Vec<f32>,
    ids: Vec<i32>,
    weights: Vec<f32>,
}

impl Case {
    fn random(
        client: &Client,
        random: &mut Random,
        format: Format,
        [e, i, l]: [usize; 3],
        top_k: usize,
    ) -> Self {
        Self {
            up: Weights::random(client, random, format, [e, i, l]),
            down: Weights::random(client, random, format, [e, l, i]),
            top_k,
        }
    }

    /// Distinct experts for each token.
    fn tokens(&self, random: &mut Random, t: usize) -> Tokens {
        let mut tokens = Tokens {
            v: random.values(t * self.up.matrix.k),
            ids: Vec::new(),
            weights: random.values(t * self.top_k),
        };
        for _ in 0..t {
            let mut all: Vec<i32> = (0..self.up.matrix.experts as i32).collect();
            for _ in 0..self.top_k {
                tokens
                    .ids
                    .push(all.swap_remove(random.bits() as usize % all.len()));
            }
        }
        tokens
    }

    fn run(&self, client: &Client, tokens: &Tokens) -> Vec<f32> {
        let t = tokens.ids.len() / self.top_k;
        let out = Buffer::upload(client, &vec![f32::NAN; t * self.up.matrix.k]);
        experts(
            client,
            &Buffer::upload(client, &tokens.v),
            t,
            &self.up.matrix,
            &self.down.matrix,
            &Buffer::upload(client, &tokens.ids),
            &Buffer::upload(client, &tokens.weights),
            self.top_k,
            Arithmetic::F32,
            &out,
        );
        out.read(client)
    }

    fn check(&self, tokens: &Tokens, out: &[f32]) {
        let (l, i) = (self.up.matrix.k, self.up.matrix.n);
        for (token, out) in out.chunks(l).enumerate() {
            let v = &tokens.v[token * l..][..l];
            let mut expected = vec![0.0; l];
            let mut magnitude = vec![0.0; l];
            for pair in token * self.top_k..(token + 1) * self.top_k {
                let Some(expert) = usize::try_from(tokens.ids[pair])
                    .ok()
                    .filter(|expert| *expert < self.up.matrix.experts)
                else {
                    continue;
                };
                let dot = |row: usize| -> f64 {
                    let row = self.up.row(expert, row);
                    v.iter().zip(row).map(|(&v, w)| f64::from(v) * w).sum()
                };
                let hidden: Vec<f64> = (0..i).map(|row| dot(row).max(0.0).powi(2)).collect();
                for column in 0..l {
                    for (h, w) in hidden.iter().zip(self.down.row(expert, column)) {
                        let term = f64::from(tokens.weights[pair]) * h * w;
                        expected[column] += term;
                        magnitude[column] += term.abs();
                    }
                }
            }
            for column in 0..l {
                let (value, expected) = (f64::from(out[column]), expected[column]);
                assert!(
                    (value - expected).abs() <= 1e-5 * magnitude[column],
                    "{:?}: {value} for {expected} at token {token}, column {column}",
                    self.up.matrix.format
                );
            }
        }
    }
}

#[test]
fn experts_are_right_alone_and_grouped() {
    let Some(client) = common::client() else {
        return;
    };
    let mut random = Random::new(4);
    for format in [Format::Bf16, Format::Fp8, Format::Nvfp4] {
        let case = Case::random(&client, &mut random, format, [5, 48, 32], 3);
        for t in [1, 13] {
            let tokens = case.tokens(&mut random, t);
            case.check(&tokens, &case.run(&client, &tokens));
        }
    }
}

/// Where devices share out the experts, most of a token's are elsewhere: ids below and past those here.
#[test]
fn experts_that_are_elsewhere_are_skipped() {
    let Some(client) = common::client() else {
        return;
    };
    let mut random = Random::new(6);
    for format in [Format::Bf16, Format::Nvfp4] {
        let case = Case::random(&client, &mut random, format, [5, 48, 32], 3);
        for t in [1, 13] {
            let mut tokens = case.tokens(&mut random, t);
            for (at, id) in tokens.ids.iter_mut().enumerate() {
                match at % 4 {
                    0 => *id -= 5,
                    1 => *id += 5,
                    _ => {}
                }
            }
            // One token has none of its experts here.
            tokens.ids[..3].copy_from_slice(&[-1, 5, 9]);
            let out = case.run(&client, &tokens);
            assert_eq!(out[..32], [0.0; 32]);
            case.check(&tokens, &out);
        }
    }
}

/// The paths for few and for many pairs, whatever company a token has, give it the same bits.
#[test]
fn a_token_does_not_see_its_batch() {
    let Some(client) = common::client() else {
        return;
    };
    let mut random = Random::new(5);
    let case = Case::random(&client, &mut random, Format::Nvfp4, [9, 176, 64], 4);
    let (l, top_k) = (64, case.top_k);
    let mut tokens = case.tokens(&mut random, 21);
    // One expert that everybody meets: more than a tile of them.
    for ids in tokens.ids.chunks_mut(top_k) {
        if !ids.contains(&7) {
            ids[1] = 7;
        }
    }
    let alone: Vec<f32> = (0..21)
        .flat_map(|token| {
            case.run(
                &client,
                &Tokens {
                    v: tokens.v[token * l..][..l].to_vec(),
                    ids: tokens.ids[token * top_k..][..top_k].to_vec(),
                    weights: tokens.weights[token * top_k..][..top_k].to_vec(),
                },
            )
        })
        .collect();
    for t in [2, 21] {
        let batch = case.run(
            &client,
            &Tokens {
                v: tokens.v[..t * l].to_vec(),
                ids: tokens.ids[..t * top_k].to_vec(),
                weights: tokens.weights[..t * top_k].to_vec(),
            },
        );
        for (at, (batch, alone)) in batch.iter().zip(&alone).enumerate() {
            assert_eq!(
                batch.to_bits(),
                alone.to_bits(),
                "{batch} in {t}, {alone} alone at {at}"
            );
        }
    }
}
