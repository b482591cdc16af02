//! Words are cleared, copied and gathered, and their neighbours stay.

use cube_kernels::{Buffer, Columns, RowMoves, copy_rows, copy_words, gather_rows, zero_words};

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

#[test]
fn parts_of_rows_find_their_places() {
    let Some(client) = common::client() else {
        return;
    };
    // `(rows, stride, first column)` of both, and the width.
    for (from, to, width, moves) in [
        ((5, 8, 4), (6, 12, 8), 4, vec![(4, 0), (1, 5), (1, 3)]),
        ((5, 7, 2), (3, 5, 0), 5, vec![(0, 2), (3, 0)]),
        ((4, 300, 0), (4, 300, 0), 300, vec![(3, 3), (2, 0)]),
        ((2, 3, 1), (2, 3, 1), 1, vec![]),
    ] {
        let floats =
            |len: usize| -> Vec<f32> { words(len).into_iter().map(|word| word as f32).collect() };
        let source = floats(from.0 * from.1);
        let mut expect: Vec<f32> = floats(to.0 * to.1).iter().map(|x| -x).collect();
        let [a, b] = [&source, &expect].map(|values| Buffer::upload(&client, values));
        let columns = |buffer, (_, stride, first): (usize, usize, usize)| Columns {
            buffer,
            stride,
            first,
        };
        let uploaded = RowMoves::upload(&client, &moves);
        copy_rows(
            &client,
            columns(&a, from),
            columns(&b, to),
            width,
            &uploaded,
        );
        for (x, y) in moves {
            let values = &source[x * from.1 + from.2..][..width];
            expect[y * to.1 + to.2..][..width].copy_from_slice(values);
        }
        assert_eq!(b.read::<f32>(&client), expect, "{from:?} {to:?}");
        assert_eq!(a.read::<f32>(&client), source);
    }
}
