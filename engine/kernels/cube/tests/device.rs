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

trait MapBits {
    fn map_bits(&self) -> Vec<u32>;
}

impl<T: AsRef<[f32]>> MapBits for T {
    fn map_bits(&self) -> Vec<u32> {
        self.as_ref().iter().map(|value| value.to_bits()).collect()
    }
}
