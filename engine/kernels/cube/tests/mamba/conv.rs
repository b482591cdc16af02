//! The convolution.

use cube_kernels::{Buffer, Client, MambaShape, RowIndex, causal_conv1d};

use crate::common::{self, Numbers, assert_near, poisoned};
use crate::states::{self, SMALL};

const TOLERANCE: f64 = 1e-6;

/// Everything but the step.
struct Case {
    shape: MambaShape,
    projected: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    pool: Vec<f32>,
}

impl Case {
    fn new(
        shape: MambaShape,
        rows: &[RowIndex],
        num_slots: usize,
        has_bias: bool,
        numbers: &mut Numbers,
    ) -> Self {
        let tokens: usize = rows.iter().map(|row| row.num_tokens).sum();
        let (channels, kernel) = (shape.conv_dim(), shape.conv_kernel);
        let mut projected = numbers.vector(tokens * shape.projected(), 2.0);
        // The gates and dt are none of the convolution's business.
        for row in projected.chunks_mut(shape.projected()) {
            row[..shape.inner()].fill(f32::NAN);
            row[shape.inner() + channels..].fill(f32::NAN);
        }
        Self {
            shape,
            projected,
            weight: numbers.vector(channels * kernel, 1.0),
            bias: has_bias.then(|| numbers.vector(channels, 1.0)),
            pool: states::pool(rows, num_slots, channels * (kernel - 1), numbers),
        }
    }

    /// The formula: what is convolved, and the pool after it.
    fn want(&self, rows: &[RowIndex]) -> (Vec<f64>, Vec<f32>) {
        let (channels, kernel) = (self.shape.conv_dim(), self.shape.conv_kernel);
        let (first, stride) = (self.shape.inner(), self.shape.projected());
        let mut out = vec![f64::NAN; self.projected.len() / stride * channels];
        let mut pool = self.pool.clone();
        for (row, tokens) in rows.iter().zip(states::spans(rows)) {
            for channel in 0..channels {
                let state = &mut pool[(row.slot * channels + channel) * (kernel - 1)..];
                let state = &mut state[..kernel - 1];
                let mut window = state.to_vec();
                for token in tokens.clone() {
                    window.push(self.projected[token * stride + first + channel]);
                    let mut sum = self
                        .bias
                        .as_ref()
                        .map_or(0.0, |bias| f64::from(bias[channel]));
                    for (&value, &tap) in window
                        .iter()
                        .rev()
                        .zip(self.weight[channel * kernel..][..kernel].iter().rev())
                    {
                        sum += f64::from(value) * f64::from(tap);
                    }
                    out[token * channels + channel] = sum / (1.0 + (-sum).exp());
                }
                state.copy_from_slice(&window[window.len() - (kernel - 1)..]);
            }
        }
        (out, pool)
    }

    /// The kernel: as above.
    fn got(&self, client: &Client, rows: &[RowIndex]) -> (Vec<f32>, Vec<f32>) {
        let upload = |values: &[f32]| Buffer::upload(client, values);
        let step = states::index(client, rows);
        let pool = upload(&self.pool);
        let out = poisoned(client, step.num_tokens * self.shape.conv_dim());
        causal_conv1d(
            client,
            &upload(&self.projected),
            &upload(&self.weight),
            self.bias.as_deref().map(upload).as_ref(),
            &pool,
            &self.shape,
            &step,
            &out,
        );
        (out.read(client), pool.read(client))
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_convolution_is_the_formula() {
    let Some(client) = common::client() else {
        return;
    };
    // Rows shorter than the window, longer than a tile, and tiles that begin inside the first
    // tokens of a row; windows of one tap to five.
    let steps: &[&[usize]] = &[
        &[1],
        &[1, 1, 1],
        &[2, 1, 16, 3],
        &[17],
        &[7, 1, 40, 2, 3],
        &[22, 1, 1, 2],
    ];
    for (at, lengths) in steps.iter().enumerate() {
        for kernel in [4, 1, 2, 5] {
            let numbers = &mut Numbers::new((at * 10 + kernel) as u64);
            let shape = MambaShape {
                conv_kernel: kernel,
                ..SMALL
            };
            let (rows, num_slots) = states::rows(lengths, numbers);
            let case = Case::new(shape, &rows, num_slots, kernel != 2, numbers);
            let (want, want_pool) = case.want(&rows);
            let (got, got_pool) = case.got(&client, &rows);
            let name = format!("{lengths:?}, window {kernel}");
            assert_near(&got, &want, TOLERANCE, &name);
            assert_eq!(bits(&got_pool), bits(&want_pool), "{name}: state");
        }
    }
}

#[test]
fn neither_cut_nor_company_is_seen() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(7);
    let (rows, num_slots) = states::rows(&[5, 21, 1], numbers);
    let case = Case::new(SMALL, &rows, num_slots, true, numbers);
    let (whole, whole_pool) = case.got(&client, &rows);
    // The second row alone, in two pieces: first a long one, then a short one, and so on.
    for cut in [1, 2, 3, 18, 20] {
        let (stride, channels) = (SMALL.projected(), SMALL.conv_dim());
        let mut part = Case {
            shape: SMALL,
            projected: Vec::new(),
            weight: case.weight.clone(),
            bias: case.bias.clone(),
            pool: case.pool.clone(),
        };
        let mut together = Vec::new();
        for (from, to) in [(0, cut), (cut, 21)] {
            part.projected = case.projected[(5 + from) * stride..(5 + to) * stride].to_vec();
            let row = RowIndex {
                num_tokens: to - from,
                start: rows[1].start + from,
                ..rows[1].clone()
            };
            let (out, pool) = part.got(&client, &[row]);
            together.extend(out);
            part.pool = pool;
        }
        let row = &whole[5 * channels..26 * channels];
        assert_eq!(bits(&together), bits(row), "cut at {cut}");
        let len = channels * 3;
        let slot = rows[1].slot * len..(rows[1].slot + 1) * len;
        assert_eq!(part.pool[slot.clone()], whole_pool[slot], "cut at {cut}");
    }
}
