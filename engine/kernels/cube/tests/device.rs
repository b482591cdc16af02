//! There is a Vulkan device to test on, and it moves bytes.

use cube_kernels::{Buffer, Columns, RowIndex, RowMoves, StepIndex, copy_rows};

mod common;

#[test]
fn buffers_come_back() {
    let Some(client) = common::client() else {
        return;
    };
    let values = [1.0_f32, f32::NAN, -0.0, 3e38];
    let back: Vec<f32> = Buffer::upload(&client, &values).read(&client);
    assert_eq!(back.map_bits(), values.map_bits());
}

#[test]
fn rows_are_indexed() {
    let Some(client) = common::client() else {
        return;
    };
    let rows = [
        RowIndex {
            num_tokens: 1,
            start: 4,
            slot: 2,
            blocks: vec![7, 3],
        },
        RowIndex {
            num_tokens: 3,
            start: 0,
            slot: 1,
            blocks: vec![5],
        },
    ];
    let step = StepIndex::upload(&client, &rows, 4);
    let read = |buffer: &Buffer| -> Vec<u32> { buffer.read(&client) };
    assert_eq!(read(&step.token_rows), [0, 1, 1, 1]);
    assert_eq!(read(&step.token_positions), [4, 0, 1, 2]);
    assert_eq!(read(&step.row_tokens), [0, 1, 4]);
    assert_eq!(read(&step.row_starts), [4, 0]);
    assert_eq!(read(&step.row_slots), [2, 1]);
    assert_eq!(read(&step.tables), [7, 3, 5, 0]);
    assert_eq!((step.max_context, step.max_row_tokens), (5, 3));
}

#[test]
fn decode_rows_change_in_place() {
    let Some(client) = common::client() else {
        return;
    };
    let step = StepIndex::fixed(&client, 4, 1, 3, 16);
    assert_eq!((step.num_tokens, step.max_context), (4, 48));
    let row = |start, slot, blocks: &[u32]| RowIndex {
        num_tokens: 1,
        start,
        slot,
        blocks: blocks.to_vec(),
    };
    step.rewrite(&client, vec![row(33, 2, &[9, 4, 1]), row(5, 7, &[3])]);
    let read = |buffer: &Buffer| -> Vec<u32> { buffer.read(&client) };
    assert_eq!(read(&step.token_rows), [0, 1, 2, 3]);
    assert_eq!(read(&step.row_tokens), [0, 1, 2, 3, 4]);
    assert_eq!(read(&step.token_positions), [33, 5, 0, 0]);
    assert_eq!(read(&step.row_slots), [2, 7, 0, 0]);
    assert_eq!(read(&step.tables), [9, 4, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    // A shorter batch leaves nothing of the longer one behind.
    step.rewrite(&client, vec![row(0, 1, &[8])]);
    assert_eq!(read(&step.row_starts), [0, 0, 0, 0]);
    assert_eq!(read(&step.row_slots), [1, 0, 0, 0]);
    assert_eq!(read(&step.tables), [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn rows_of_several_tokens_change_in_place() {
    let Some(client) = common::client() else {
        return;
    };
    let row = |num_tokens, start, slot, blocks: &[u32]| RowIndex {
        num_tokens,
        start,
        slot,
        blocks: blocks.to_vec(),
    };
    let step = StepIndex::fixed(&client, 3, 2, 2, 4).seen_from(1);
    assert_eq!((step.num_tokens, step.num_single_rows), (6, 0));
    step.rewrite(&client, vec![row(2, 3, 2, &[9, 4])]);
    let read = |buffer: &Buffer| -> Vec<u32> { buffer.read(&client) };
    assert_eq!(read(&step.token_rows), [0, 0, 1, 1, 2, 2]);
    // Padding lies where there is something to look at.
    assert_eq!(read(&step.token_positions), [3, 4, 1, 2, 1, 2]);
    assert_eq!(read(&step.row_slots), [2, 0, 0]);
    assert_eq!(read(&step.tables), [9, 4, 0, 0, 0, 0]);

    let some = StepIndex::fixed_some(&client, 2, 5);
    assert_eq!((some.num_tokens, some.max_row_tokens), (10, 5));
    some.rewrite_some(&client, &[row(3, 7, 1, &[]), row(5, 2, 4, &[])], &[1, 5]);
    assert_eq!(read(&some.row_tokens), [0, 3, 8]);
    assert_eq!(read(&some.row_starts), [7, 2]);
    assert_eq!(read(&some.row_slots), [1, 4]);
    let absorbed = some.row_absorbed.as_ref().expect("not all need be");
    assert_eq!(read(absorbed), [1, 5]);
}

#[test]
fn moves_change_in_place() {
    let Some(client) = common::client() else {
        return;
    };
    let from = Buffer::upload(&client, &[0.0_f32, 1.0, 2.0, 3.0]);
    let moves = RowMoves::fixed(&client, 3, [4, 5]);
    let check = |pairs: &[(usize, usize)], expect: [f32; 5]| {
        moves.rewrite(&client, pairs, (0, 4));
        let to = Buffer::upload(&client, &[9.0_f32; 5]);
        let column = |buffer| Columns {
            buffer,
            stride: 1,
            first: 0,
        };
        copy_rows(&client, column(&from), column(&to), 1, &moves);
        assert_eq!(to.read::<f32>(&client), expect);
    };
    check(&[(3, 0), (1, 2)], [3.0, 9.0, 1.0, 9.0, 0.0]);
    check(&[(2, 1), (2, 0), (1, 3)], [2.0, 2.0, 9.0, 1.0, 9.0]);
    check(&[], [9.0, 9.0, 9.0, 9.0, 0.0]);
}

trait MapBits {
    fn map_bits(&self) -> Vec<u32>;
}

impl<T: AsRef<[f32]>> MapBits for T {
    fn map_bits(&self) -> Vec<u32> {
        self.as_ref().iter().map(|value| value.to_bits()).collect()
    }
}
