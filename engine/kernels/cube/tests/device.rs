//! There is a Vulkan device to test on, and it moves bytes.

use cube_kernels::{Buffer, RowIndex, StepIndex};

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
    let step = StepIndex::decode(&client, 4, 3, 16);
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

trait MapBits {
    fn map_bits(&self) -> Vec<u32>;
}

impl<T: AsRef<[f32]>> MapBits for T {
    fn map_bits(&self) -> Vec<u32> {
        self.as_ref().iter().map(|value| value.to_bits()).collect()
    }
}
