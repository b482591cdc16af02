//! Convolution and recurrence in one launch: the bits of the two, which have tests of their own.

use cube_kernels::{
    Arithmetic, Buffer, Client, MambaShape, RowIndex, ScanParameters, StateFormat, causal_conv1d,
    conv_and_update, ssm_scan,
};

use crate::common::{self, Numbers, poisoned};
use crate::halves;
use crate::scan::bits;
use crate::states::{self, SMALL};

struct Inputs {
    shape: MambaShape,
    projected: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    conv: Vec<f32>,
    ssm: Vec<f32>,
    constants: [Vec<f32>; 3],
    limit: Option<(f32, f32)>,
    state: StateFormat,
}

impl Inputs {
    fn new(shape: MambaShape, rows: &[RowIndex], slots: usize, numbers: &mut Numbers) -> Self {
        let (channels, kernel) = (shape.conv_dim(), shape.conv_kernel);
        Self {
            shape,
            projected: numbers.vector(rows.len() * shape.projected(), 2.0),
            weight: numbers.vector(channels * kernel, 1.0),
            bias: (kernel != 2).then(|| numbers.vector(channels, 1.0)),
            conv: states::pool(rows, slots, channels * (kernel - 1), numbers),
            ssm: states::pool(rows, slots, shape.inner() * shape.state, numbers),
            constants: [-0.5, 1.0, 2.0].map(|scale| {
                let values = numbers.vector(shape.heads, 1.0);
                values.iter().map(|value| value.abs() * scale).collect()
            }),
            limit: (kernel == 5).then_some((0.1, 1.5)),
            state: StateFormat::F32,
        }
    }

    /// y, both pools and what is left in the arrivals.
    fn run(&self, client: &Client, rows: &[RowIndex], is_fused: bool) -> [Vec<u32>; 4] {
        let upload = |values: &[f32]| Buffer::upload(client, values);
        let shape = &self.shape;
        let step = states::index(client, rows);
        let [a, d, dt_bias] = [0, 1, 2].map(|at| upload(&self.constants[at]));
        let parameters = ScanParameters {
            a: &a,
            d: &d,
            dt_bias: &dt_bias,
            time_step_limit: self.limit,
            state: self.state,
        };
        let (projected, weight) = (upload(&self.projected), upload(&self.weight));
        let bias = self.bias.as_deref().map(upload);
        let conv = upload(&self.conv);
        let ssm = halves::upload(client, &self.ssm, self.state);
        let out = poisoned(client, rows.len() * shape.inner());
        if is_fused {
            conv_and_update(
                client,
                &projected,
                &weight,
                bias.as_ref(),
                &conv,
                &parameters,
                &ssm,
                shape,
                &step,
                &out,
            );
        } else {
            let xbc = poisoned(client, rows.len() * shape.conv_dim());
            causal_conv1d(
                client,
                &projected,
                &weight,
                bias.as_ref(),
                &conv,
                shape,
                &step,
                &xbc,
            );
            ssm_scan(
                client,
                &xbc,
                &projected,
                &parameters,
                &ssm,
                shape,
                &step,
                Arithmetic::F32,
                &out,
            );
        }
        [
            bits(&out.read::<f32>(client)),
            bits(&conv.read::<f32>(client)),
            bits(&halves::read(client, &ssm, self.state)),
            step.arrivals(client, shape.groups).read(client),
        ]
    }
}

#[test]
fn one_launch_is_the_two() {
    let Some(client) = common::client() else {
        return;
    };
    // Two cubes a head and three heads a group; channels, columns and windows that fill nothing.
    let shapes = [
        SMALL,
        MambaShape {
            heads: 3,
            head_dim: 80,
            groups: 1,
            conv_kernel: 2,
            ..SMALL
        },
        MambaShape {
            heads: 4,
            head_dim: 5,
            groups: 4,
            state: 18,
            conv_kernel: 5,
        },
    ];
    for (at, shape) in shapes.into_iter().enumerate() {
        for num_rows in [1, 5] {
            let numbers = &mut Numbers::new((10 * at + num_rows) as u64);
            let (rows, slots) = states::rows(&vec![1; num_rows], numbers);
            let mut inputs = Inputs::new(shape, &rows, slots, numbers);
            // A shape whose rows are no whole words of halves keeps f32.
            let takes_halves = shape.inner().is_multiple_of(2);
            if takes_halves && num_rows > 1 {
                halves::to_halves(&mut inputs.ssm);
                inputs.state = StateFormat::F16 { seed: 5 };
            }
            let want = inputs.run(&client, &rows, false);
            let got = inputs.run(&client, &rows, true);
            for (name, (got, want)) in ["y", "conv", "ssm", "arrivals"]
                .iter()
                .zip(got.iter().zip(&want))
            {
                assert!(got == want, "{name} of {num_rows} rows, {shape:?}");
            }
        }
    }
}
