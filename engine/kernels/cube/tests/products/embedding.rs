use cube_kernels::{Buffer, embedding};

use crate::common;
use crate::weights::{FORMATS, Random, Weights};

#[test]
fn rows_are_gathered_in_every_format() {
    let Some(client) = common::client() else {
        return;
    };
    let mut random = Random::new(1);
    for format in FORMATS {
        for [n, k] in [[5, 16], [3, 1056], [7, 48]] {
            let table = Weights::random(&client, &mut random, format, [1, n, k]);
            let ids = [n as u32 - 1, 0, 2, 2];
            let out = Buffer::upload(&client, &vec![f32::NAN; ids.len() * k]);
            let id_buffer = Buffer::upload(&client, &ids);
            embedding(&client, &table.matrix, &id_buffer, ids.len(), &out);
            let out: Vec<f32> = out.read(&client);
            for (token, &id) in ids.iter().enumerate() {
                let expected = table.row(0, id as usize);
                for (at, &expected) in expected.iter().enumerate() {
                    let value = f64::from(out[token * k + at]);
                    assert!(
                        (value - expected).abs() <= 2e-7 * expected.abs(),
                        "{format:?} {n}x{k}: {value} for {expected} in row {id}, column {at}"
                    );
                }
            }
        }
    }
}
