use cube_kernels::{Arithmetic, Buffer, Client, Epilogue, Format, linear};
use half::bf16;

use crate::common;
use crate::weights::{FORMATS, Random, Weights};

/// Rows and columns: one row, rows that are no multiple of anything, rows of 4, 8 and 16 bytes, one
/// chunk of columns and several.
const SHAPES: [[usize; 2]; 4] = [[1, 32], [37, 176], [6, 2208], [70, 512]];

struct Case {
    weights: Weights,
    bias: Option<Vec<f32>>,
    arithmetic: Arithmetic,
    epilogue: Epilogue,
}

impl Case {
    fn run(&self, client: &Client, x: &[f32]) -> Vec<f32> {
        let w = &self.weights.matrix;
        let t = x.len() / w.k;
        let out = Buffer::upload(client, &vec![f32::NAN; t * w.n]);
        let bias = self.bias.as_ref().map(|bias| Buffer::upload(client, bias));
        linear(
            client,
            &Buffer::upload(client, x),
            t,
            w,
            bias.as_ref(),
            self.arithmetic,
            self.epilogue,
            &out,
        );
        out.read(client)
    }

    fn check(&self, x: &[f32], out: &[f32]) {
        let w = &self.weights.matrix;
        for (at, &value) in out.iter().enumerate() {
            let (token, row) = (at / w.n, at % w.n);
            let (mut expected, mut magnitude) = (0.0, 0.0);
            for (&x, w) in x[token * w.k..][..w.k].iter().zip(self.weights.row(0, row)) {
                let x = if self.arithmetic.is_rounded() {
                    f64::from(bf16::from_f32(x))
                } else {
                    f64::from(x)
                };
                expected += x * w;
                magnitude += (x * w).abs();
            }
            if let Some(bias) = &self.bias {
                expected += f64::from(bias[row]);
                magnitude += f64::from(bias[row]).abs();
            }
            let mut tolerance = 1e-6 * magnitude;
            if self.epilogue == Epilogue::Relu2 {
                tolerance *= 2.0 * expected.max(0.0) + 2.0 * tolerance;
                expected = expected.max(0.0).powi(2);
            }
            assert!(
                (f64::from(value) - expected).abs() <= tolerance,
                "{:?} {}x{}: {value} for {expected} at token {token}, row {row}",
                w.format,
                w.n,
                w.k
            );
        }
    }
}

#[test]
fn products_are_right_in_every_format() {
    let Some(client) = common::client() else {
        return;
    };
    let mut random = Random::new(2);
    for format in FORMATS {
        for (at, [n, k]) in SHAPES.into_iter().enumerate() {
            let case = Case {
                weights: Weights::random(&client, &mut random, format, [1, n, k]),
                bias: (at % 2 == 0).then(|| random.values(n)),
                arithmetic: [Arithmetic::F32, Arithmetic::Bf16][at % 2],
                epilogue: [Epilogue::None, Epilogue::Relu2][at / 2 % 2],
            };
            let x = random.values(11 * k);
            case.check(&x, &case.run(&client, &x));
        }
    }
}

/// A batch of any size gives each of its tokens the very bits that it gets alone.
#[test]
fn a_token_does_not_see_its_batch() {
    let Some(client) = common::client() else {
        return;
    };
    let mut random = Random::new(3);
    for format in [Format::Bf16, Format::Fp8, Format::Nvfp4] {
        let [n, k] = [70, 1056];
        let case = Case {
            weights: Weights::random(&client, &mut random, format, [1, n, k]),
            bias: None,
            arithmetic: Arithmetic::F32,
            epilogue: Epilogue::None,
        };
        let x = random.values(9 * k);
        let alone: Vec<f32> = x.chunks(k).flat_map(|x| case.run(&client, x)).collect();
        for t in [3, 9] {
            let batch = case.run(&client, &x[..t * k]);
            for (at, (batch, alone)) in batch.iter().zip(&alone).enumerate() {
                assert_eq!(
                    batch.to_bits(),
                    alone.to_bits(),
                    "{format:?}: {batch} in {t}, {alone} alone at {at}"
                );
            }
        }
    }
}
