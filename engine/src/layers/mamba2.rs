//! `M`: Mamba-2. A projection into gate, convolution input and time step; the convolution; the
//! recurrence; the gate before a grouped norm; a projection out.

use burn::tensor::Tensor;
use kernels::{Arithmetic, Layout, MambaShape, ScanParameters};

use super::linear::Linear;
use super::norm::Norm;
use crate::cache::DeviceCache;
use crate::model::config::MambaConfig;
use crate::model::load::Loader;
use crate::model::weights::MambaWeights;

/// One mixer; its states live in the cache.
pub(crate) struct Mamba2 {
    in_proj: Linear,
    conv_weight: Tensor<3>,
    conv_bias: Option<Tensor<1>>,
    /// `-exp(A_log)`, f32 `[heads]`.
    a: Tensor<1>,
    d: Tensor<1>,
    dt_bias: Tensor<1>,
    norm: Norm,
    out_proj: Linear,
    time_step_limit: Option<(f32, f32)>,
    shape: MambaShape,
    arithmetic: Arithmetic,
    /// Which of the cache's Mamba layers this is.
    index: usize,
}

impl Mamba2 {
    pub(crate) fn load(
        weights: &MambaWeights,
        config: &MambaConfig,
        eps: f32,
        index: usize,
        loader: &mut Loader,
    ) -> Self {
        Self {
            in_proj: Linear::load(&weights.in_proj, loader),
            conv_weight: loader.small(&weights.conv_weight),
            conv_bias: weights.conv_bias.as_ref().map(|bias| loader.small(bias)),
            a: loader.vector(&weights.a_log, |a_log| -a_log.exp()),
            d: loader.vector(&weights.d, |d| d),
            dt_bias: loader.vector(&weights.dt_bias, |bias| bias),
            norm: Norm::load(&weights.norm, eps, loader),
            out_proj: Linear::load(&weights.out_proj, loader),
            time_step_limit: config.time_step_limit,
            shape: shape(config),
            arithmetic: loader.arithmetic,
            index,
        }
    }

    /// `[T, H]` to `[T, H]`; every row's state moves on by its tokens.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        cache: &mut DeviceCache,
        layout: &Layout,
    ) -> Tensor<2> {
        let projected = self.in_proj.forward(x);
        let y = cache.with_states(self.index, |pool| {
            kernels::conv_and_scan(
                &projected,
                &self.conv_weight,
                self.conv_bias.as_ref(),
                &ScanParameters {
                    a: &self.a,
                    d: &self.d,
                    dt_bias: &self.dt_bias,
                    time_step_limit: self.time_step_limit,
                    seed: self.index as u32,
                },
                pool,
                &self.shape,
                layout,
                self.arithmetic,
            )
        });
        self.out_proj
            .forward(self.norm.gated(y, &projected, self.shape.groups))
    }
}

pub(crate) fn shape(config: &MambaConfig) -> MambaShape {
    MambaShape {
        heads: config.num_heads,
        head_dim: config.head_dim,
        groups: config.num_groups,
        state: config.state_size,
        conv_kernel: config.conv_kernel,
    }
}
