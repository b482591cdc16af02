//! The block against float64, on every fixture that has one.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use kernels::{Arithmetic, Isa, KvFormat, Layout, RowLayout};
use safetensors::SafeTensors;
use scheduler::CacheConfig;

use super::{Asked, FIRST_PAIR, Pairs};
use crate::cache::DeviceCache;
use crate::checkpoint::Checkpoint;
use crate::engine_core::LoadProgress;
use crate::model::ModelConfig;
use crate::model::load::Loader;
use crate::model::nemotron_h::NemotronH;
use crate::model::weights;

/// On any logit.
const TOLERANCE: f32 = 1e-3;
const BLOCK_SIZE: usize = 4;
const NUM_BLOCKS: u32 = 30;

/// A model with its draft block, and memory for one sequence.
struct Bench {
    model: NemotronH,
    cache: DeviceCache,
    device: Device,
}

/// One prompt of a fixture and what float64 makes of it.
struct Expected {
    ids: Vec<u32>,
    first: u32,
    /// At every position of the prompt.
    logits: Vec<Vec<f32>>,
    /// Of guesses, each the best of the row before.
    chain: Vec<Vec<f32>>,
}

fn folder(fixture: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    fixtures.join(fixture)
}

fn expected(fixture: &str) -> Vec<Expected> {
    let bytes = std::fs::read(folder(fixture).join("expected.safetensors")).expect("committed");
    let file = SafeTensors::deserialize(&bytes).expect("the generator wrote it");
    let words = |name: String| -> (Vec<u32>, usize) {
        let tensor = file.tensor(&name).expect("fixtures with a block have it");
        let words = tensor.data().chunks_exact(4);
        let words = words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
        (
            words.collect(),
            *tensor.shape().last().expect("it has a shape"),
        )
    };
    let rows = |name: String| -> Vec<Vec<f32>> {
        let (words, width) = words(name);
        let floats: Vec<f32> = words.into_iter().map(f32::from_bits).collect();
        floats.chunks_exact(width).map(<[f32]>::to_vec).collect()
    };
    let prompt = |len: usize| Expected {
        ids: words(format!("prompt{len}.ids")).0,
        first: words(format!("prompt{len}.greedy_ids")).0[0],
        logits: rows(format!("prompt{len}.draft_logits")),
        chain: rows(format!("prompt{len}.draft_chain_logits")),
    };
    [1, 3, 17, 70].map(prompt).into()
}

/// The blocks of the one sequence, against the grain.
fn row(tokens: std::ops::Range<usize>, start: usize) -> RowLayout {
    RowLayout {
        tokens,
        start,
        slot: 1,
        blocks: (1..NUM_BLOCKS).rev().collect(),
        ..RowLayout::default()
    }
}

fn layout(rows: Vec<RowLayout>) -> Layout {
    Layout::new(rows, BLOCK_SIZE).seen_from(FIRST_PAIR)
}

impl Bench {
    fn open(fixture: &str) -> Self {
        let device = Device::flex();
        let folder = folder(fixture);
        let path = folder.join("config.json");
        let text = ModelConfig::read_text(&path).expect("it is committed");
        let mut config = ModelConfig::parse(&text, &path).expect("it is good");
        config
            .quantization
            .read_beside(&folder)
            .expect("it is good");
        let checkpoint = Checkpoint::open(&folder).expect("it is committed");
        let (weights, _) = weights::locate(&config, checkpoint).expect("it is whole");
        let progress = LoadProgress::unwatched();
        let mut loader = Loader::new(device.clone(), Arithmetic::F32, 1, progress, 0);
        let model = NemotronH::load(&weights, &config, None, &mut loader);
        let cache = CacheConfig {
            block_size: BLOCK_SIZE as u32,
            num_blocks: NUM_BLOCKS,
            num_slots: 2,
            num_host_slots: 0,
            num_host_blocks: 0,
        };
        let scales = weights.kv_scales().expect("they are positive");
        let cache = DeviceCache::new(&config, &cache, 1, KvFormat::F32, &scales, &device);
        Self {
            model,
            cache,
            device,
        }
    }

    /// Hidden states of a prompt.
    fn hidden(&mut self, ids: &[u32]) -> Tensor<2> {
        let plain = Layout::new(vec![row(0..ids.len(), 0)], BLOCK_SIZE);
        self.model
            .forward(&ids.to_vec().into(), &plain, &mut self.cache)
    }

    /// The block's own hidden states at all of the pairs from `start` on, or at none.
    fn draft(
        &mut self,
        ids: &[u32],
        hidden: Tensor<2>,
        start: usize,
        places: &[usize],
    ) -> Option<Tensor<2>> {
        let asked = places.iter().enumerate();
        let asked = asked.map(|(nth, place)| row(nth..nth + 1, start + place));
        let looking = layout(asked.collect());
        let places: Vec<u32> = places.iter().map(|at| *at as u32).collect();
        let asked = Asked {
            places: Some(&places.into()),
            layout: &looking,
        };
        let pairs = layout(vec![row(0..ids.len(), start)]);
        let pairs = Pairs {
            tokens: self.model.embed(&ids.to_vec().into()),
            hidden,
            layout: &pairs,
        };
        self.model.draft(pairs, &asked, &mut self.cache)
    }

    fn check(&self, what: &str, own: &Tensor<2>, expect: &[Vec<f32>]) {
        let places: Vec<usize> = (0..expect.len()).collect();
        let logits = self.model.logits(own, &places);
        kernels::with_f32(&logits, |logits| {
            let expect: Vec<f32> = expect.iter().flatten().copied().collect();
            assert_eq!(logits.len(), expect.len(), "{what}");
            for (at, (got, expect)) in logits.iter().zip(expect).enumerate() {
                let off = (got - expect).abs();
                assert!(
                    off <= TOLERANCE,
                    "{what}: {at}: {got} is {off:.1e} from {expect}"
                );
            }
        });
    }
}

fn best(logits: &[f32]) -> u32 {
    let at = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    at.expect("a vocabulary has tokens") as u32
}

fn check(fixture: &str) {
    let mut bench = Bench::open(fixture);
    for expected in expected(fixture) {
        let len = expected.ids.len();
        let what = format!("{fixture}, prompt of {len}");
        let tokens = [&expected.ids[1..], &[expected.first]].concat();
        bench
            .cache
            .apply(&[scheduler::StateOp::ZeroSlot(scheduler::SlotId(1))]);
        let hidden = bench.hidden(&expected.ids);
        // What lies where no pair is hurts nobody.
        let nan = Tensor::full([1, hidden.dims()[1]], f32::NAN, &bench.device);
        assert!(bench.draft(&[0], nan, 0, &[]).is_none());

        let all: Vec<usize> = (0..len).collect();
        let own = bench.draft(&tokens, hidden.clone(), FIRST_PAIR, &all);
        let own = own.expect("all are asked");
        bench.check(&what, &own, &expected.logits);

        // A prompt in two parts, of which only the last pair is asked, and guesses behind it.
        let half = len / 2;
        if half > 0 {
            let begin = hidden.clone().narrow(0, 0, half);
            let none = bench.draft(&tokens[..half], begin, FIRST_PAIR, &[]);
            assert!(none.is_none());
        }
        let end = hidden.narrow(0, half, len - half);
        let last = [len - half - 1];
        let mut own = bench.draft(&tokens[half..], end, FIRST_PAIR + half, &last);
        for (depth, expect) in expected.chain.iter().enumerate() {
            let hidden = own.take().expect("it is asked");
            bench.check(
                &format!("{what}, guess {depth}"),
                &hidden,
                std::slice::from_ref(expect),
            );
            let position = FIRST_PAIR + len + depth;
            own = bench.draft(&[best(expect)], hidden, position, &[0]);
        }
    }
}

#[test]
fn answers_as_float64_does() {
    for fixture in ["super", "super-fp8", "super-nvfp4", "ultra"] {
        for isa in Isa::available() {
            kernels::with_isa(isa, || check(fixture));
        }
    }
}
