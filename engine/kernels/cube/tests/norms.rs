//! The norms against f64 loops.

use cube_kernels::{Buffer, add, add_rms_norm, gated_group_norm, rms_norm};

mod common;

use common::{Numbers, assert_near, poisoned};

const EPS: f32 = 1e-5;

/// Of sums of some thousand terms in f32.
const TOLERANCE: f64 = 1e-5;

/// `v / sqrt(mean(v^2) + eps) * weight`.
fn norm(v: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64;
    let root = (mean + f64::from(EPS)).sqrt();
    v.iter()
        .zip(weight)
        .map(|(v, &w)| v / root * f64::from(w))
        .collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn rms_norm_is_the_formula() {
    let Some(client) = common::client() else {
        return;
    };
    // Whole vectors and not, less than a plane, more than a cube takes at once.
    for (t, h) in [(1, 4), (3, 7), (5, 64), (2, 258), (3, 516), (1, 1024)] {
        let numbers = &mut Numbers::new(h as u64);
        let x = numbers.vector(t * h, 3.0);
        let weight = numbers.vector(h, 1.0);
        let out = poisoned(&client, t * h);
        let upload = |values: &[f32]| Buffer::upload(&client, values);
        rms_norm(&client, &upload(&x), t, h, &upload(&weight), EPS, &out);
        let want: Vec<f64> = x.chunks(h).flat_map(|x| norm(&wide(x), &weight)).collect();
        assert_near(&out.read(&client), &want, TOLERANCE, &format!("{t} x {h}"));
    }
}

#[test]
fn a_small_row_keeps_its_eps() {
    let Some(client) = common::client() else {
        return;
    };
    let h = 32;
    let x: Vec<f32> = Numbers::new(1).vector(h, 1e-3);
    let weight = vec![1.0; h];
    let out = poisoned(&client, h);
    let upload = |values: &[f32]| Buffer::upload(&client, values);
    rms_norm(&client, &upload(&x), 1, h, &upload(&weight), EPS, &out);
    let want = norm(&wide(&x), &weight);
    assert_near(&out.read(&client), &want, TOLERANCE, "small");
}

#[test]
fn a_nan_stays_in_its_row() {
    let Some(client) = common::client() else {
        return;
    };
    let (t, h) = (3, 64);
    let mut x = Numbers::new(2).vector(t * h, 1.0);
    let weight = vec![1.0; h];
    let upload = |values: &[f32]| Buffer::upload(&client, values);
    let clean = poisoned(&client, t * h);
    rms_norm(&client, &upload(&x), t, h, &upload(&weight), EPS, &clean);
    x[h + 5] = f32::NAN;
    let out = poisoned(&client, t * h);
    rms_norm(&client, &upload(&x), t, h, &upload(&weight), EPS, &out);
    let (clean, out): (Vec<f32>, Vec<f32>) = (clean.read(&client), out.read(&client));
    assert_eq!(out[..h], clean[..h]);
    assert!(out[h..2 * h].iter().all(|value| value.is_nan()));
    assert_eq!(out[2 * h..], clean[2 * h..]);
}

#[test]
fn add_rms_norm_gives_sum_and_norm() {
    let Some(client) = common::client() else {
        return;
    };
    for (t, h) in [(1, 8), (4, 90), (2, 516), (2, 1024)] {
        let numbers = &mut Numbers::new(h as u64);
        let residual = numbers.vector(t * h, 3.0);
        let x = numbers.vector(t * h, 1.0);
        let weight = numbers.vector(h, 1.0);
        let (sum, out) = (poisoned(&client, t * h), poisoned(&client, t * h));
        let upload = |values: &[f32]| Buffer::upload(&client, values);
        add_rms_norm(
            &client,
            &upload(&residual),
            &upload(&x),
            t,
            h,
            &upload(&weight),
            EPS,
            &sum,
            &out,
        );
        let want: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
        assert_eq!(sum.read::<f32>(&client), want, "sum of {t} x {h}");
        let want: Vec<f64> = want
            .chunks(h)
            .flat_map(|x| norm(&wide(x), &weight))
            .collect();
        assert_near(&out.read(&client), &want, TOLERANCE, &format!("{t} x {h}"));
    }
}

#[test]
fn gates_come_before_the_group_norm() {
    let Some(client) = common::client() else {
        return;
    };
    // Rows of the projection that are whole vectors and not.
    for (t, inner, groups, width) in [
        (3, 12, 3, 17),
        (2, 64, 2, 96),
        (2, 160, 2, 322),
        (1, 1024, 2, 2320),
    ] {
        let numbers = &mut Numbers::new(inner as u64);
        let y = numbers.vector(t * inner, 2.0);
        let mut projected = numbers.vector(t * width, 20.0);
        // What lies behind the gates is none of this kernel's business.
        for row in projected.chunks_mut(width) {
            row[inner..].fill(f32::NAN);
        }
        let weight = numbers.vector(inner, 1.0);
        let out = poisoned(&client, t * inner);
        let upload = |values: &[f32]| Buffer::upload(&client, values);
        gated_group_norm(
            &client,
            &upload(&y),
            t,
            &upload(&projected),
            width,
            &upload(&weight),
            inner,
            groups,
            EPS,
            &out,
        );
        let len = inner / groups;
        let mut want = Vec::new();
        for token in 0..t {
            for group in 0..groups {
                let v: Vec<f64> = (group * len..(group + 1) * len)
                    .map(|c| {
                        let z = f64::from(projected[token * width + c]);
                        f64::from(y[token * inner + c]) * z / (1.0 + (-z).exp())
                    })
                    .collect();
                want.extend(norm(&v, &weight[group * len..]));
            }
        }
        let name = format!("{t} x {inner} in {groups}");
        assert_near(&out.read(&client), &want, TOLERANCE, &name);
    }
}

#[test]
fn a_row_is_the_same_in_any_company() {
    let Some(client) = common::client() else {
        return;
    };
    let (t, h) = (5, 516);
    let numbers = &mut Numbers::new(3);
    let (x, weight) = (numbers.vector(t * h, 1.0), numbers.vector(h, 1.0));
    let upload = |values: &[f32]| Buffer::upload(&client, values);
    let weight = upload(&weight);
    let together = poisoned(&client, t * h);
    rms_norm(&client, &upload(&x), t, h, &weight, EPS, &together);
    let together: Vec<f32> = together.read(&client);
    for (row, want) in x.chunks(h).zip(together.chunks(h)) {
        let alone = poisoned(&client, h);
        rms_norm(&client, &upload(row), 1, h, &weight, EPS, &alone);
        assert_eq!(alone.read::<f32>(&client), want);
    }
}

#[test]
fn add_adds() {
    let Some(client) = common::client() else {
        return;
    };
    for len in [0, 1, 6, 4096, 5000] {
        let numbers = &mut Numbers::new(len as u64);
        let (a, b) = (numbers.vector(len, 1.0), numbers.vector(len, 1.0));
        let out = poisoned(&client, len);
        let upload = |values: &[f32]| Buffer::upload(&client, values);
        add(&client, &upload(&a), &upload(&b), &out);
        let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(out.read::<f32>(&client), want);
    }
}
