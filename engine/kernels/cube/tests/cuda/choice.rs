//! Which kernels make a product, by the number of its rows: in [`Arithmetic::Bf16`] nothing but the
//! matrix and the device may decide between kernels whose bits differ.

use cube_kernels::tensor_core::choice::{Way, choosing, forced};
use cube_kernels::{Arithmetic, Client, Epilogue, Format};

use crate::products::matrix;
use crate::{floats, recorder, words};

/// What makes the sums of a product, as far as bits can tell: the tiles of `mma.sync` have one order
/// (`tests/tensor_linear.rs` and `tests/tensor_experts.rs` hold them to that).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sums {
    /// Not on tensor cores.
    Skinny,
    Mma,
    Wgmma,
    Library,
}

/// Those of what was launched last. CubeCL's own kernels beside written ones only group pairs.
fn sums(client: &Client) -> Vec<Sums> {
    let launches = recorder::launches(client);
    assert!(!launches.is_empty(), "something makes the sums");
    if launches.iter().any(|launch| launch.is_call) {
        return vec![Sums::Library];
    }
    let names = launches.iter().filter_map(|launch| {
        let text = launch.text.as_ref().expect("kernels have text");
        text.split("#define ENTRY ").nth(1)?.lines().next()
    });
    let mut all: Vec<Sums> = names
        .filter(|name| name.contains("linear") || name.contains("experts"))
        .map(|name| {
            if name.contains("wgmma") {
                Sums::Wgmma
            } else {
                Sums::Mma
            }
        })
        .collect();
    if all.is_empty() {
        all.push(Sums::Skinny);
    }
    all.dedup();
    all
}

fn linear(
    client: &Client,
    arithmetic: Arithmetic,
    format: Format,
    k: usize,
    t: usize,
) -> Vec<Sums> {
    let n = 18_560;
    let w = matrix(client, format, 1, n, k);
    let (x, out) = (floats(client, t * k), floats(client, t * n));
    cube_kernels::linear(client, &x, t, &w, None, arithmetic, Epilogue::None, &out);
    sums(client)
}

/// Few experts, so that some hundred tokens fill large tiles.
fn experts(client: &Client, arithmetic: Arithmetic, t: usize) -> Vec<Sums> {
    let (top_k, num_experts, latent, width) = (4, 16, 1024, 2688);
    let up = matrix(client, Format::Nvfp4, num_experts, width, latent);
    let down = matrix(client, Format::Nvfp4, num_experts, latent, width);
    let (x, out) = (floats(client, t * latent), floats(client, t * latent));
    let (ids, weights) = (words(client, t * top_k), floats(client, t * top_k));
    cube_kernels::experts(
        client, &x, t, &up, &down, &ids, &weights, top_k, arithmetic, &out,
    );
    sums(client)
}

#[test]
fn the_number_of_rows_decides_nothing_unless_any_order_will_do() {
    let _turn = recorder::turn();
    for arch in [80, 90, 100] {
        let client = recorder::client(arch);
        let is_hopper = arch == 90;
        // Every number where there is a choice, some where there is none.
        for t in (1..=300).step_by(if is_hopper { 1 } else { 23 }) {
            for format in [Format::Bf16, Format::Fp8, Format::Nvfp4] {
                let fixed = linear(&client, Arithmetic::Bf16, format, 4096, t);
                assert_eq!(fixed, [Sums::Mma], "{t} rows of {format:?} on {arch}");
                let free = linear(&client, Arithmetic::Bf16AnyOrder, format, 4096, t);
                let want = if is_hopper && t > 64 {
                    Sums::Wgmma
                } else {
                    Sums::Mma
                };
                assert_eq!(free, [want], "{t} rows of {format:?} on {arch}");
            }
        }
        for t in [1, 2, 8, 40, 64, 100, 220, 300] {
            let fixed = experts(&client, Arithmetic::Bf16, t);
            assert_eq!(fixed, [Sums::Mma], "{t} tokens on {arch}");
            let free = experts(&client, Arithmetic::Bf16AnyOrder, t);
            // Tiles of more than 64 pairs: 5/4 of the mean.
            let want = if is_hopper && 5 * 4 * t / (4 * 16) > 64 {
                Sums::Wgmma
            } else {
                Sums::Mma
            };
            assert_eq!(free, [want], "{t} tokens on {arch}");
        }
        // Rows that are no whole copies, and full precision, are skinny's for any number.
        for t in [1, 7, 8, 9, 65, 300] {
            let odd = linear(&client, Arithmetic::Bf16AnyOrder, Format::Bf16, 4100, t);
            assert_eq!(odd, [Sums::Skinny], "{t} odd rows on {arch}");
            let wide = linear(&client, Arithmetic::F32, Format::Bf16, 4096, t);
            assert_eq!(wide, [Sums::Skinny], "{t} wide rows on {arch}");
        }
    }
}

#[test]
fn another_way_is_taken_by_large_products_in_any_order_alone() {
    let _turn = recorder::turn();
    let client = recorder::client(100);
    let by = |arithmetic, t| {
        forced(Way::Library, || {
            linear(&client, arithmetic, Format::Fp8, 4096, t)
        })
    };
    assert_eq!(by(Arithmetic::Bf16AnyOrder, 300), [Sums::Library]);
    assert_eq!(by(Arithmetic::Bf16AnyOrder, 64), [Sums::Mma]);
    assert_eq!(by(Arithmetic::Bf16, 300), [Sums::Mma]);
    // What nobody offers is not tried; nor does anything but the first way serve if no trial ends, as on
    // this device, which computes nothing. A matrix of its own: all devices share choices.
    let tried = choosing(|| linear(&client, Arithmetic::Bf16AnyOrder, Format::Fp8, 8192, 300));
    assert_eq!(tried, [Sums::Mma]);
}
