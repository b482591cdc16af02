//! `E`: routed experts, behind a latent projection in the larger models, beside shared ones.

use burn::tensor::Tensor;
use kernels::RouterShape;

use super::linear::{Experts, Linear};
use super::mlp::Mlp;
use crate::model::config::MoeConfig;
use crate::model::load::Loader;
use crate::model::weights::MoeWeights;
use crate::tally;

/// Router and shared expert read the full width, routed experts the latent one.
pub(crate) struct Moe {
    gate: Tensor<2>,
    correction_bias: Tensor<1>,
    router: RouterShape,
    /// Id of the first expert that is here.
    first_expert: usize,
    latent: Option<(Linear, Linear)>,
    experts: Experts,
    shared: Option<Mlp>,
}

impl Moe {
    pub(crate) fn load(weights: &MoeWeights, config: &MoeConfig, loader: &mut Loader) -> Self {
        Self {
            gate: loader.tensor(&weights.gate),
            // Rounding it would route tokens elsewhere.
            correction_bias: loader.vector(&weights.correction_bias, |bias| bias),
            router: RouterShape {
                top_k: config.num_experts_per_token,
                n_group: config.num_groups,
                topk_group: config.num_top_groups,
                norm_topk_prob: config.norm_topk_prob,
                scaling: config.scaling,
            },
            first_expert: weights.first_expert,
            latent: weights
                .latent
                .as_ref()
                .map(|(into, out)| (Linear::load(into, loader), Linear::load(out, loader))),
            experts: Experts::load(&weights.up, &weights.down, loader),
            shared: weights
                .shared
                .as_ref()
                .map(|shared| Mlp::load(shared, loader)),
        }
    }

    /// `[T, H]` to `[T, H]`. Where only some of the experts are here, the rest of the sum is
    /// elsewhere.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let routing = kernels::router_topk(&x, &self.gate, &self.correction_bias, &self.router)
            .counted_from(self.first_expert);
        tally::note_experts(&routing.ids);
        let routed = match &self.latent {
            None => self.experts.forward(x.clone(), &routing),
            Some((into, out)) => {
                out.forward(self.experts.forward(into.forward(x.clone()), &routing))
            }
        };
        match &self.shared {
            None => routed,
            Some(shared) => routed + shared.forward(x),
        }
    }
}
