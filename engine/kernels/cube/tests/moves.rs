//! Words are cleared, copied and gathered, and their neighbours stay.

use cube_kernels::{Buffer, copy_words, gather_rows, zero_words};

mod common;

/// Distinct words.
fn words(len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| i.wrapping_mul(0x9e37_79b9) | 1)
        .collect()
}

#[test]
fn ranges_are_cleared() {
    let Some(client) = common::client() else {
        return;
    };
    // Aligned and not, nothing, everything, and more than a grid's units.
    for (len, at, count) in [
        (64, 16, 32),
        (64, 3, 7),
        (61, 8, 4),
        (64, 10, 0),
        (64, 64, 0),
        (64, 0, 64),
        (2_200_001, 5, 2_199_990),
    ] {
        let mut expect = words(len);
        let buffer = Buffer::upload(&client, &expect);
        zero_words(&client, &buffer, at, count);
        expect[at..at + count].fill(0);
        assert_eq!(buffer.read::<u32>(&client), expect, "{len} {at} {count}");
    }
}

#[test]
fn ranges_are_copied_in_place() {
    let Some(client) = common::client() else {
        return;
    };
    for (len, from, to, count) in [
        (64, 0, 32, 32),
        (64, 32, 0, 32),
        (64, 3, 40, 11),
        (63, 4, 8, 4),
        (64, 64, 0, 0),
        (4_500_000, 2_250_000, 0, 2_250_000),
    ] {
        let mut expect = words(len);
        let buffer = Buffer::upload(&client, &expect);
        copy_words(&client, &buffer, from, to, count);
        expect.copy_within(from..from + count, to);
        assert_eq!(buffer.read::<u32>(&client), expect, "{len} {from} {to}");
    }
}

#[test]
fn rows_are_gathered() {
    let Some(client) = common::client() else {
        return;
    };
    for (t, h, positions) in [
        (5, 8, vec![4_u32, 0, 0, 3]),
        (3, 7, vec![2, 1]),
        (1, 1, vec![0]),
        (9, 300, vec![]),
    ] {
        let x: Vec<f32> = words(t * h).into_iter().map(|word| word as f32).collect();
        let p = positions.len();
        let out = Buffer::upload(&client, &vec![f32::NAN; p * h]);
        gather_rows(
            &client,
            &Buffer::upload(&client, &x),
            h,
            &Buffer::upload(&client, &positions),
            p,
            &out,
        );
        let expect: Vec<f32> = positions
            .iter()
            .flat_map(|&row| x[row as usize * h..][..h].to_vec())
            .collect();
        assert_eq!(out.read::<f32>(&client), expect, "{t} {h}");
    }
}

#[test]
#[should_panic(expected = "overlap")]
fn overlapping_copies_are_refused() {
    let Some(client) = common::client() else {
        panic!("ranges overlap, and there is no device to ask");
    };
    copy_words(&client, &Buffer::upload(&client, &words(16)), 0, 3, 4);
}
