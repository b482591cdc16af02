//! Which parts whom, on shapes; that the parts compute the whole is `tests/tests/parallel.rs`.

use std::path::Path;

use super::*;
use crate::model::weights::{self, Source};

fn model(changes: &[(&str, &str)]) -> ModelConfig {
    let mut text = String::from(
        r#"{"model_type": "nemotron_h", "hybrid_override_pattern": "ME*-",
            "hidden_size": 32, "vocab_size": 100, "max_position_embeddings": 100,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4,
            "mamba_num_heads": 16, "mamba_head_dim": 4, "n_groups": 8, "ssm_state_size": 8,
            "n_routed_experts": 10, "num_experts_per_tok": 2, "moe_intermediate_size": 192,
            "moe_latent_size": 24, "moe_shared_expert_intermediate_size": 20,
            "intermediate_size": 48, "mlp_bias": true, "use_bias": true}"#,
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    ModelConfig::parse(&text, Path::new("config.json")).expect("a good configuration")
}

fn split(num_ranks: usize, experts: bool) -> Split {
    Split { num_ranks, experts }
}

/// `model/config` allows what `check` refuses.
#[track_caller]
fn check_refused(changes: &[(&str, &str)], split: Split, expect: &[&str]) {
    let error = split
        .check(&model(changes))
        .expect_err("it does not divide");
    let text = error.to_string();
    let flag = format!("--tensor-parallel-size {}", split.num_ranks);
    for part in expect.iter().copied().chain([flag.as_str()]) {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn what_does_not_divide_is_refused_with_its_numbers() {
    for ranks in [2, 4, 8] {
        for experts in [false, true] {
            split(ranks, experts)
                .check(&model(&[]))
                .expect("it divides");
        }
    }
    check_refused(&[], split(3, false), &["8 groups", "16 heads"]);
    check_refused(&[], split(16, false), &["8 groups", "16 heads"]);
    let heads = ("\"num_attention_heads\": 8", "\"num_attention_heads\": 6");
    check_refused(&[heads], split(4, false), &["6 query heads"]);
    // Rank 0 would have two query heads of one key head and one of another.
    let uneven = [
        heads,
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
    ];
    check_refused(&uneven, split(2, false), &["6 query heads", "3 key heads"]);
    let shared = ("intermediate_size\": 20", "intermediate_size\": 7");
    check_refused(
        &[shared],
        split(8, true),
        &["7 channels of a shared expert"],
    );
    let few = ("\"n_routed_experts\": 10", "\"n_routed_experts\": 4");
    check_refused(&[few], split(8, true), &["4 experts"]);
    split(8, false)
        .check(&model(&[few]))
        .expect("their width is split");
    let narrow = (
        "\"moe_intermediate_size\": 192",
        "\"moe_intermediate_size\": 6",
    );
    check_refused(&[narrow], split(8, false), &["6 channels of an expert"]);
    let dense = ("\"intermediate_size\": 48", "\"intermediate_size\": 3");
    check_refused(&[dense], split(4, false), &["3 channels of an MLP"]);
    let words = ("\"vocab_size\": 100", "\"vocab_size\": 5");
    check_refused(&[words], split(8, false), &["5 tokens"]);
}

/// Key heads of every rank: split while there are enough, then kept by several.
#[test]
fn key_heads_are_split_and_then_replicated() {
    let check = |heads, kv_heads, ranks, expect: &[Range<usize>]| {
        let config = AttentionConfig {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: 4,
        };
        let got: Option<Vec<_>> = (0..ranks)
            .map(|rank| split(ranks, false).of(rank).kv_heads(&config))
            .collect();
        assert_eq!(got.as_deref(), Some(expect), "{heads} {kv_heads} {ranks}");
    };
    check(32, 2, 2, &[0..1, 1..2]);
    check(32, 2, 4, &[0..1, 0..1, 1..2, 1..2]);
    let eight = [0, 0, 0, 0, 1, 1, 1, 1].map(|head| head..head + 1);
    check(32, 2, 8, &eight);
    check(32, 8, 2, &[0..4, 4..8]);
    // Three ranks of two key heads: the middle one keeps both.
    check(6, 2, 3, &[0..1, 0..2, 1..2]);
    check(8, 8, 4, &[0..2, 2..4, 4..6, 6..8]);
    check(4, 1, 4, &[0..1, 0..1, 0..1, 0..1]);
}

#[test]
fn widths_split_at_whole_groups_of_scales() {
    let parts = |width, ranks| -> Vec<Range<usize>> {
        (0..ranks)
            .map(|rank| split(ranks, false).of(rank).part(width))
            .collect()
    };
    // Super's experts: 84 units of 32 over 8 ranks.
    let experts = parts(2688, 8);
    assert!(experts.iter().all(|part| part.start % 32 == 0));
    assert!(experts.iter().all(|part| [320, 352].contains(&part.len())));
    // Nano's, of 58 units of 32.
    assert!(parts(1856, 8).iter().all(|part| part.start % 32 == 0));
    // Too few for 32, too few for 16, and no multiple.
    assert_eq!(parts(64, 4), [0..16, 16..32, 32..48, 48..64]);
    assert_eq!(parts(48, 4), [0..12, 12..24, 24..36, 36..48]);
    assert_eq!(parts(7, 3), [0..2, 2..4, 4..7]);
    for (width, ranks) in [(2688, 8), (1856, 8), (7, 3), (131_072, 8), (100, 6)] {
        let parts = parts(width, ranks);
        assert_eq!((parts[0].start, parts[ranks - 1].end), (0, width));
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(parts.iter().all(|part| !part.is_empty()));
    }
}

/// A share has the tensors that its configuration describes, as any model does; all shares together
/// have every element once, and those more often that are replicated.
#[test]
fn shares_are_models() {
    for changes in [
        &[][..],
        &[("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 8")],
    ] {
        let model = model(changes);
        let (weights, _) = weights::invent(&model, 1).expect("it is plain");
        for ranks in [2, 4, 8] {
            for experts in [false, true] {
                let split = split(ranks, experts);
                split.check(&model).expect("it divides");
                let shares: Vec<Share> = (0..ranks)
                    .map(|rank| {
                        split
                            .share(rank, &model, &weights)
                            .expect("nothing is packed")
                    })
                    .collect();
                for share in &shares {
                    check_share(share, &model);
                }
                let sum = |count: fn(&Share) -> usize| shares.iter().map(count).sum::<usize>();
                assert_eq!(sum(|share| share.vocabulary.len()), model.vocab_size);
                assert_eq!(sum(|share| mlp(share).up.weight.dims()[0]), 48);
                let biases = shares.iter().filter(|share| mlp(share).down.bias.is_some());
                assert_eq!(biases.count(), 1, "added once");
                if experts {
                    assert_eq!(sum(|share| moe(share).up.num_experts()), 10);
                    let mut next = 0;
                    for share in &shares {
                        assert_eq!(moe(share).first_expert, next);
                        next += moe(share).up.num_experts();
                    }
                }
            }
        }
    }
}

fn moe(share: &Share) -> &MoeWeights {
    match &share.weights.layers[1].mixer {
        MixerWeights::Moe(moe) => moe,
        _ => panic!("the second layer"),
    }
}

fn mlp(share: &Share) -> &MlpWeights {
    match &share.weights.layers[3].mixer {
        MixerWeights::Mlp(mlp) => mlp,
        _ => panic!("the fourth layer"),
    }
}

fn check_share(share: &Share, whole: &ModelConfig) {
    let config = &share.config;
    let (described, _) = weights::invent(config, 1).expect("it is plain");
    let moe_of = |weights: &ModelWeights| match &weights.layers[1].mixer {
        MixerWeights::Moe(moe) => (moe.up.num_rows(), moe.gate.shape.clone()),
        _ => panic!("the second layer"),
    };
    assert_eq!(moe_of(&share.weights), moe_of(&described));
    for (share, described) in share.weights.layers.iter().zip(&described.layers) {
        match (&share.mixer, &described.mixer) {
            (MixerWeights::Mamba(share), MixerWeights::Mamba(described)) => {
                let shapes = |weights: &MambaWeights| {
                    [
                        &weights.conv_weight,
                        &weights.a_log,
                        &weights.d,
                        &weights.dt_bias,
                        &weights.norm,
                    ]
                    .map(|weight| weight.shape.clone())
                };
                let products = |weights: &MambaWeights| {
                    [&weights.in_proj, &weights.out_proj].map(|linear| linear.weight.dims())
                };
                assert_eq!(products(share), products(described));
                assert_eq!(shapes(share), shapes(described));
            }
            (MixerWeights::Attention(share), MixerWeights::Attention(described)) => {
                let shapes = |weights: &AttentionWeights| {
                    [
                        &weights.query,
                        &weights.key,
                        &weights.value,
                        &weights.output,
                    ]
                    .map(MatrixWeight::dims)
                };
                assert_eq!(shapes(share), shapes(described));
            }
            (MixerWeights::Mlp(share), MixerWeights::Mlp(described)) => {
                assert_eq!(share.up.weight.dims(), described.up.weight.dims());
                assert_eq!(share.down.weight.dims(), described.down.weight.dims());
            }
            _ => {}
        }
    }
    assert_eq!(config.vocab_size, whole.vocab_size);
    let head = share.weights.head.as_ref().expect("each has its part");
    assert_eq!(head.dims(), [share.vocabulary.len(), whole.hidden_size]);
}

/// In the order of the projection's rows: z, x, B, C, dt.
#[test]
fn the_input_projection_is_cut_in_all_its_parts() {
    let model = model(&[]);
    let (weights, _) = weights::invent(&model, 1).expect("it is plain");
    let share = split(4, false)
        .share(1, &model, &weights)
        .expect("nothing is packed");
    let MixerWeights::Mamba(mamba) = &share.weights.layers[0].mixer else {
        panic!("the first layer");
    };
    // 64 channels, 8 groups of 8 columns, 16 heads; a quarter of each, the second.
    let MatrixWeight::Plain(in_proj) = &mamba.in_proj.weight else {
        panic!("nothing is packed");
    };
    let Source::Cut(cut) = &in_proj.source else {
        panic!("several parts are a cut");
    };
    let expect = [16..32, 80..96, 144..160, 208..224, 260..264];
    assert_eq!(cut.ranges(), expect);
    let Source::Cut(cut) = &mamba.conv_weight.source else {
        panic!("several parts are a cut");
    };
    assert_eq!(cut.ranges(), [16..32, 80..96, 144..160]);
}
