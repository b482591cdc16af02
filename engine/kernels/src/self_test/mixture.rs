//! Cases of the mixture of experts.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::compare::{TOLERANCE, outcome};
use super::inputs::{Numbers, upload, wide};
use super::packed::Packed;
use super::{Outcome, Shapes, oracle};
use crate::{Arithmetic, ExpertMatrices, Routing};

/// Choice and weights of the router. Inputs are small binary fractions, so that logits are exact,
/// ties are real ties and the choice must agree to the last id.
pub fn router(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, k, experts) = (shapes.num_tokens(), shapes.hidden, shapes.num_experts);
    let coarse = |numbers: &mut Numbers, len: usize| -> Vec<f32> {
        (0..len)
            .map(|_| (numbers.below(5) as f32 - 2.0) / 8.0)
            .collect()
    };
    let x = coarse(numbers, m * k);
    let gate = coarse(numbers, experts * k);
    let bias: Vec<f32> = (0..experts)
        .map(|_| numbers.below(4) as f32 / 64.0)
        .collect();
    let logits = oracle::linear(&wide(&x), &wide(&gate), None, k, Arithmetic::F32);
    let (mut want_ids, mut want_weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks_exact(experts) {
        let (ids, weights) = oracle::choose(logits, &wide(&bias), &shapes.router);
        want_ids.extend(ids);
        want_weights.extend(weights);
    }
    let routing = crate::router_topk(
        &upload(&x, [m, k], DType::F32, device),
        &upload(&gate, [experts, k], shapes.weights, device),
        &upload(&bias, [experts], DType::F32, device),
        &shapes.router,
    );
    let ids = routing
        .ids
        .try_to_vec_as::<i32>()
        .expect("ids read back as i32");
    let mut outcome = outcome("router_topk", &routing.weights, &want_weights, TOLERANCE);
    let keys = |token: usize, id: i32| {
        let logit = logits[token * experts + id as usize];
        1.0 / (1.0 + (-logit).exp()) + f64::from(bias[id as usize])
    };
    let top_k = shapes.router.top_k;
    let agree = ids.len() == want_ids.len()
        && ids
            .iter()
            .zip(&want_ids)
            .enumerate()
            .all(|(at, (&got, &want))| {
                let in_range = (0..experts as i32).contains(&got);
                in_range
                    && (got == want || too_close(keys(at / top_k, got), keys(at / top_k, want)))
            });
    if !agree {
        outcome.max_error = f64::INFINITY;
    }
    outcome
}

/// Whether f32 may put two different keys in either order. Equal ones it may not: the lower id wins.
fn too_close(a: f64, b: f64) -> bool {
    a != b && (a - b).abs() < 4.0 * f64::from(f32::EPSILON)
}

/// The routed experts, their weights in one buffer or apart by turns of the seed. Some tokens also
/// choose experts that are not here, an id below and one above, which must be skipped.
pub fn experts(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, experts, top_k) = (shapes.num_tokens(), shapes.num_experts, shapes.router.top_k);
    let (k, n) = (shapes.expert_hidden, shapes.expert_intermediate);
    let v = numbers.vector(m * k, 1.0, DType::F32);
    let ups: Vec<Packed> = (0..experts).map(|_| shapes.matrix(numbers, n, k)).collect();
    let downs: Vec<Packed> = (0..experts).map(|_| shapes.matrix(numbers, k, n)).collect();
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for _ in 0..m {
        ids.extend(
            numbers.permutation(experts + 2)[..top_k]
                .iter()
                .map(|&id| id as i32 - 1),
        );
        weights.extend(numbers.vector(top_k, 1.0, DType::F32));
    }

    let mut want = vec![0.0; m * k];
    for (token, want) in want.chunks_exact_mut(k).enumerate() {
        let v = wide(&v[token * k..][..k]);
        for choice in token * top_k..(token + 1) * top_k {
            let Some(expert) = usize::try_from(ids[choice])
                .ok()
                .filter(|expert| *expert < experts)
            else {
                continue;
            };
            let hidden = oracle::linear(&v, &ups[expert].wide(), None, k, shapes.arithmetic);
            let hidden = oracle::relu2(&hidden);
            let out = oracle::linear(&hidden, &downs[expert].wide(), None, n, shapes.arithmetic);
            for (want, out) in want.iter_mut().zip(out) {
                *want += f64::from(weights[choice]) * out;
            }
        }
    }

    let matrices = |each: &[Packed]| {
        // A GPU has them in one buffer always.
        if shapes.seed.is_multiple_of(2) || crate::is_gpu(device) {
            Packed::upload_all(each, shapes.weights, device)
        } else {
            ExpertMatrices::PerExpert(
                each.iter()
                    .map(|one| one.upload(shapes.weights, device))
                    .collect(),
            )
        }
    };
    let routing = Routing {
        ids: Tensor::<2, Int>::from_data(TensorData::new(ids, [m, top_k]), device),
        weights: upload(&weights, [m, top_k], DType::F32, device),
    };
    let got = crate::moe_experts(
        upload(&v, [m, k], DType::F32, device),
        &matrices(&ups),
        &matrices(&downs),
        &routing,
        shapes.arithmetic,
    );
    outcome("moe_experts", &got, &want, shapes.inner_tolerance())
}
