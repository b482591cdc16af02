//! The norms.

use crate::{Entry, floats};

/// Tokens of a decode step.
const T: usize = 64;

const EPS: f32 = 1e-5;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry::new("rms_norm_4096", |client| {
        let [x, out] = [(); 2].map(|()| floats(client, T * 4096));
        cube_kernels::rms_norm(client, &x, T, 4096, &floats(client, 4096), EPS, &out);
    }),
    Entry::new("add_rms_norm_4096", |client| {
        let [residual, x, sum, out] = [(); 4].map(|()| floats(client, T * 4096));
        let weight = floats(client, 4096);
        cube_kernels::add_rms_norm(client, &residual, &x, T, 4096, &weight, EPS, &sum, &out);
    }),
    Entry::new("gated_group_norm_8x1024", |client| {
        let [y, out] = [(); 2].map(|()| floats(client, T * 8192));
        let (projected, weight) = (floats(client, T * 18_560), floats(client, 8192));
        cube_kernels::gated_group_norm(
            client, &y, T, &projected, 18_560, &weight, 8192, 8, EPS, &out,
        );
    }),
    Entry::new("add_4096", |client| {
        let [a, b, out] = [(); 3].map(|()| floats(client, T * 4096));
        cube_kernels::add(client, &a, &b, &out);
    }),
];
