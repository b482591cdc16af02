//! States copied on the way through a row, and rows with drafts: the same bits as one token after the
//! other, on every instruction set, by the references and on a Vulkan device.

use burn::tensor::{DType, Device, Distribution, Tensor};
use kernels::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

/// Most tokens of a row with drafts.
const MAX_RING: usize = 5;

/// The padding slot, the sequence's, a stranger's, and those of copies.
const SEQUENCE: usize = 1;
const STRANGER: usize = 2;
const COPIES: usize = 3;
const NUM_SLOTS: usize = 7;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn nan<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    on(Tensor::full(shape, f32::NAN, &Device::flex()), device)
}

fn on<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    stored(tensor, DType::F32, device)
}

fn stored<const D: usize>(tensor: Tensor<D>, dtype: DType, device: &Device) -> Tensor<D> {
    let data = tensor.into_data().convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    with_f32(tensor, |values| {
        values.iter().map(|x| x.to_bits()).collect()
    })
}

/// A mixer and the inputs of a sequence.
struct Mixer {
    device: Device,
    /// Of the recurrent states.
    dtype: DType,
    shape: MambaShape,
    weight: Tensor<3>,
    bias: Tensor<1>,
    a: Tensor<1>,
    d: Tensor<1>,
    dt_bias: Tensor<1>,
    /// `[len, projected]`.
    inputs: Tensor<2>,
}

/// One step of the sequence, from where it is.
#[derive(Clone, Debug)]
enum Turn {
    /// Absorbs so many tokens, and copies its state after some of them.
    Plain { len: usize, saves: Vec<usize> },
    /// Runs so many tokens, of which the first few will turn out right.
    Drafts { len: usize, num_right: usize },
    /// Goes on in a copy of the slot.
    Move,
}

impl Mixer {
    fn new(device: &Device, dtype: DType, shape: MambaShape, len: usize) -> Self {
        let heads = || on(random([shape.heads]), device);
        Self {
            device: device.clone(),
            dtype,
            shape,
            weight: on(random([shape.conv_dim(), 1, shape.conv_kernel]), device),
            bias: on(random([shape.conv_dim()]), device),
            a: on(random([shape.heads]).exp().neg(), device),
            d: heads(),
            dt_bias: heads(),
            inputs: random([len, shape.projected()]),
        }
    }

    /// All NaN but for the slots of the two sequences.
    fn pool(&self) -> StatePool {
        let MambaShape {
            heads,
            head_dim,
            state,
            conv_kernel,
            ..
        } = self.shape;
        let device = &self.device;
        let pool = StatePool {
            conv: nan([NUM_SLOTS, self.shape.conv_dim(), conv_kernel - 1], device),
            ssm: stored(
                nan([NUM_SLOTS, heads, head_dim, state], &Device::flex()),
                self.dtype,
                device,
            ),
            ring: Some(nan([NUM_SLOTS, MAX_RING, self.shape.ring()], device)),
        };
        zero_slot(zero_slot(pool, SEQUENCE), STRANGER)
    }

    fn step(&self, inputs: Tensor<2>, pool: StatePool, layout: &Layout) -> (Tensor<2>, StatePool) {
        let inputs = &on(inputs, &self.device);
        let bias = Some(&self.bias);
        conv_and_scan(
            inputs,
            &self.weight,
            bias,
            &ScanParameters {
                a: &self.a,
                d: &self.d,
                dt_bias: &self.dt_bias,
                time_step_limit: None,
                seed: 3,
            },
            pool,
            &self.shape,
            layout,
            Arithmetic::F32,
        )
    }

    /// The outputs of each token, and the states after so many of them, one token at a time.
    fn one_by_one(&self) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
        let mut pool = self.pool();
        let mut outputs = Vec::new();
        let mut states = vec![state_of(&pool, SEQUENCE)];
        for token in 0..self.inputs.dims()[0] {
            let mut row = row(0..1, SEQUENCE);
            row.start = token;
            let layout = Layout::new(vec![row], 1);
            let (y, after) = self.step(self.inputs.clone().narrow(0, token, 1), pool, &layout);
            pool = after;
            outputs.push(bits(&y));
            states.push(state_of(&pool, SEQUENCE));
        }
        (outputs, states)
    }

    /// Takes the sequence through the turns, beside a stranger that drafts without end.
    fn check(&self, turns: &[Turn], how: &str) -> TestCaseResult {
        let (outputs, states) = self.one_by_one();
        let mut pool = self.pool();
        let (mut at, mut num_pending) = (0, 0);
        let mut strangers_pending = 0;
        for turn in turns {
            let left = outputs.len() - at;
            let (len, num_right, saves) = match turn {
                Turn::Move => {
                    // By way of a slot that holds something else.
                    pool = copy_slot(copy_slot(pool, SEQUENCE, 0), 0, SEQUENCE);
                    continue;
                }
                Turn::Plain { len, saves } => {
                    let len = (*len).min(left);
                    (len, len, saves.as_slice())
                }
                Turn::Drafts { len, num_right } => (*len, (*num_right).min(left), &[][..]),
            };
            if num_right == 0 {
                break;
            }
            let mut inputs = self.inputs.clone().narrow(0, at, num_right);
            if len > num_right {
                let wrong = random([len - num_right, self.shape.projected()]);
                inputs = Tensor::cat(vec![inputs, wrong], 0);
            }
            let mut ours = row(2..2 + len, SEQUENCE);
            ours.start = at;
            ours.num_pending = num_pending;
            ours.num_drafts = match turn {
                Turn::Drafts { .. } => len - 1,
                _ => 0,
            };
            let mut counts: Vec<usize> = saves.iter().map(|save| 1 + save % len).collect();
            counts.sort_unstable();
            ours.saves = counts
                .iter()
                .enumerate()
                .map(|(copy, &num_tokens)| StateSave {
                    num_tokens,
                    slot: COPIES + copy,
                })
                .collect();
            let mut strangers = row(0..2, STRANGER);
            strangers.start = 2;
            strangers.num_drafts = 1;
            strangers.num_pending = strangers_pending;
            strangers_pending = (strangers_pending + 1) % 3;

            let layout = Layout::new(vec![strangers, ours.clone()], 1);
            let before = state_of(&pool, SEQUENCE);
            let inputs = Tensor::cat(vec![random([2, self.shape.projected()]), inputs], 0);
            let (y, after) = self.step(inputs, pool, &layout);
            pool = after;
            prop_assert_eq!(y.dims()[0], len + 2);
            for token in 0..num_right {
                let got = bits(&y.clone().narrow(0, 2 + token, 1));
                prop_assert!(
                    got == outputs[at + token],
                    "{how}: token {token} of {turn:?}"
                );
            }
            for save in &ours.saves {
                let got = state_of(&pool, save.slot);
                prop_assert!(got == states[at + save.num_tokens], "{how}: {save:?}");
            }
            let got = state_of(&pool, SEQUENCE);
            if ours.is_absorbed() {
                (at, num_pending) = (at + len, 0);
                prop_assert!(got == states[at], "{how}: the state after {turn:?}");
            } else {
                prop_assert!(
                    got == states[at],
                    "{how}: drafts changed the state: {turn:?}"
                );
                prop_assert!(
                    num_pending > 0 || got == before,
                    "{how}: nothing was pending"
                );
                (at, num_pending) = (at + num_right, num_right);
            }
        }
        // Nobody has seen a slot that is not in any row.
        let unused = state_of(&pool, NUM_SLOTS - 1);
        prop_assert!(unused.iter().all(|x| f32::from_bits(*x).is_nan()));
        Ok(())
    }
}

fn row(tokens: std::ops::Range<usize>, slot: usize) -> RowLayout {
    RowLayout {
        tokens,
        slot,
        ..RowLayout::default()
    }
}

fn state_of(pool: &StatePool, slot: usize) -> Vec<u32> {
    let mut all = bits(&pool.conv.clone().narrow(0, slot, 1));
    all.extend(bits(&pool.ssm.clone().narrow(0, slot, 1)));
    all
}

fn shapes() -> impl Strategy<Value = MambaShape> {
    (1_usize..3, 1_usize..3, 1_usize..10, 1_usize..40, 1_usize..6).prop_map(
        |(groups, heads_per_group, head_dim, state, conv_kernel)| MambaShape {
            heads: groups * heads_per_group,
            head_dim,
            groups,
            state,
            conv_kernel,
        },
    )
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let drafts = (2..=MAX_RING)
        .prop_flat_map(|len| (Just(len), 1..=len))
        .prop_map(|(len, num_right)| Turn::Drafts { len, num_right });
    let turn = prop_oneof![
        (1_usize..20, prop::collection::vec(any::<usize>(), 0..3))
            .prop_map(|(len, saves)| Turn::Plain { len, saves }),
        drafts.clone(),
        drafts,
        Just(Turn::Move),
    ];
    prop::collection::vec(turn, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_turns_are_one_token_after_the_other(
        shape in shapes(),
        turns in turns(),
        len in 1_usize..60,
        is_half in any::<bool>(),
    ) {
        let dtype = if is_half { DType::F16 } else { DType::F32 };
        let mixer = Mixer::new(&Device::flex(), dtype, shape, len);
        for isa in Isa::available() {
            with_isa(isa, || mixer.check(&turns, isa.name()))?;
        }
        with_reference(|| mixer.check(&turns, "reference"))?;
    }
}

/// Turns that meet every kind of neighbour.
fn each_kind() -> [Turn; 6] {
    let plain = |len, saves: &[usize]| Turn::Plain {
        len,
        saves: saves.to_vec(),
    };
    let drafts = |len, num_right| Turn::Drafts { len, num_right };
    [
        drafts(5, 3),
        plain(11, &[4, 10]),
        drafts(4, 4),
        drafts(2, 1),
        plain(1, &[0]),
        plain(21, &[3, 16]),
    ]
}

/// As any GPU would, if on a processor.
#[cfg(feature = "vulkan")]
#[test]
fn a_vulkan_device_does_the_same() {
    use burn::tensor::{DeviceKind, DeviceType};
    if Device::enumerate(DeviceType::Vulkan).is_empty() {
        assert!(
            std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
            "no Vulkan device: install mesa-vulkan-drivers"
        );
        eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers)");
        return;
    }
    let device = Device::vulkan(DeviceKind::DefaultDevice);
    let shape = MambaShape {
        heads: 4,
        head_dim: 16,
        groups: 2,
        state: 32,
        conv_kernel: 4,
    };
    let mixer = Mixer::new(&device, DType::F32, shape, 44);
    mixer.check(&each_kind(), "vulkan").expect("the same bits");
    let halves = Mixer::new(&device, DType::F16, shape, 44);
    halves
        .check(&each_kind(), "vulkan, in halves")
        .expect("the same bits");
    let turns = [
        Turn::Plain {
            len: 3,
            saves: Vec::new(),
        },
        Turn::Drafts {
            len: 3,
            num_right: 2,
        },
        Turn::Move,
        Turn::Plain {
            len: 19,
            saves: vec![18, 18],
        },
        Turn::Drafts {
            len: 5,
            num_right: 1,
        },
        Turn::Plain {
            len: 2,
            saves: vec![0, 1],
        },
    ];
    mixer.check(&turns, "vulkan").expect("the same bits");
}

/// Wide enough that threads share the work.
#[test]
fn threads_keep_apart() {
    let shape = MambaShape {
        heads: 16,
        head_dim: 64,
        groups: 2,
        state: 128,
        conv_kernel: 4,
    };
    for dtype in [DType::F32, DType::F16] {
        let mixer = Mixer::new(&Device::flex(), dtype, shape, 44);
        mixer.check(&each_kind(), "wide").expect("the same bits");
    }
}
