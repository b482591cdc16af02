//! Random weights.

use cube_kernels::{Client, RandomForm, fill_random};

use crate::{Entry, words};

pub(crate) const ENTRIES: &[Entry] = &[
    Entry::new("fill_random_bytes", |client| {
        fill(client, RandomForm::Bytes);
    }),
    Entry::new("fill_random_e4m3", |client| fill(client, RandomForm::E4m3)),
    Entry::new("fill_random_one_to_two", |client| {
        fill(client, RandomForm::OneToTwo);
    }),
    Entry::new("fill_random_bf16", |client| {
        fill(client, RandomForm::Bf16 { step: 1e-5 });
    }),
];

/// A matrix of 18560 x 4096 in pieces of a megabyte.
fn fill(client: &Client, form: RandomForm) {
    let len = 18_560 * 4096 / 2;
    fill_random(client, &words(client, len), (0, len), 1, 1 << 20, form);
}
