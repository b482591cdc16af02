//! The names of the family's tensors, with their shapes, and what a dummy puts in their place.

use super::finder::Finder;
use super::{
    AttentionWeights, DraftWeights, ExpertWeights, Init, LayerWeights, LinearWeights, MambaWeights,
    MatrixWeight, MixerWeights, MlpWeights, ModelWeights, MoeWeights, Weight,
};
use crate::error::EngineError;
use crate::model::config::{LayerKind, ModelConfig};

impl Finder {
    pub(super) fn model(&mut self, config: &ModelConfig) -> Result<ModelWeights, EngineError> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let depth = config.layers.len();
        let embedding = self.take("embeddings.weight", &[vocab, hidden], Init::unit())?;
        let mut mlp_sizes = config.mlp_sizes.iter().copied();
        let layers = config
            .layers
            .iter()
            .enumerate()
            .map(|(at, kind)| {
                let place = Place {
                    name: format!("layers.{at}"),
                    depth,
                    mlp_size: if *kind == LayerKind::Mlp {
                        mlp_sizes.next().expect("one size per dense layer")
                    } else {
                        0
                    },
                };
                self.layer(config, *kind, &place)
            })
            .collect::<Result<_, _>>()?;
        let norm = self.take("norm_f.weight", &[hidden], Init::Constant(1.0))?;
        let head = if config.tie_word_embeddings {
            self.discard("lm_head.weight");
            None
        } else {
            Some(self.matrix("lm_head", [vocab, hidden], Init::fan_in(hidden))?)
        };
        let draft = if config.mtp_layers.is_some() && self.has_draft() {
            Some(Box::new(self.draft(config)?))
        } else {
            None
        };
        Ok(ModelWeights {
            embedding,
            layers,
            norm,
            head,
            draft,
        })
    }

    fn layer(
        &mut self,
        config: &ModelConfig,
        kind: LayerKind,
        place: &Place,
    ) -> Result<LayerWeights, EngineError> {
        let name = &place.name;
        let norm = self.norm(&format!("{name}.norm"), config.hidden_size)?;
        let mixer = match kind {
            LayerKind::Mamba => MixerWeights::Mamba(Box::new(self.mamba(config, place)?)),
            LayerKind::Attention => MixerWeights::Attention(self.attention(config, place)?),
            LayerKind::Moe => MixerWeights::Moe(Box::new(self.moe(config, place)?)),
            LayerKind::Mlp => MixerWeights::Mlp(self.mlp(
                &format!("{name}.mixer"),
                config,
                place.mlp_size,
                place,
            )?),
        };
        Ok(LayerWeights { norm, mixer })
    }

    fn mamba(&mut self, config: &ModelConfig, place: &Place) -> Result<MambaWeights, EngineError> {
        let mamba = config.mamba.as_ref().expect("the stack has Mamba layers");
        let mixer = format!("{}.mixer", place.name);
        let (hidden, inner) = (config.hidden_size, mamba.inner_size());
        let (conv_dim, taps) = (mamba.conv_dim(), mamba.conv_kernel);
        let heads = [mamba.num_heads];
        Ok(MambaWeights {
            in_proj: self.linear(
                &format!("{mixer}.in_proj"),
                [mamba.projected_size(), hidden],
                mamba.proj_bias,
                Init::fan_in(hidden),
            )?,
            conv_weight: self.take(
                &format!("{mixer}.conv1d.weight"),
                &[conv_dim, 1, taps],
                Init::fan_in(taps),
            )?,
            conv_bias: if mamba.conv_bias {
                let name = format!("{mixer}.conv1d.bias");
                Some(self.take(&name, &[conv_dim], Init::bias())?)
            } else {
                None
            },
            a_log: self.take(&format!("{mixer}.A_log"), &heads, Init::DecayRate)?,
            d: self.take(&format!("{mixer}.D"), &heads, Init::Constant(1.0))?,
            dt_bias: self.take(&format!("{mixer}.dt_bias"), &heads, Init::TimeStep)?,
            norm: self.norm(&format!("{mixer}.norm"), inner)?,
            out_proj: self.linear(
                &format!("{mixer}.out_proj"),
                [hidden, inner],
                mamba.proj_bias,
                place.output(inner),
            )?,
        })
    }

    fn attention(
        &mut self,
        config: &ModelConfig,
        place: &Place,
    ) -> Result<AttentionWeights, EngineError> {
        let attention = config
            .attention
            .as_ref()
            .expect("the stack has attention layers");
        let mixer = format!("{}.mixer", place.name);
        let hidden = config.hidden_size;
        let queries = attention.num_heads * attention.head_dim;
        let keys = attention.num_kv_heads * attention.head_dim;
        let mut project = |name: &str, shape: [usize; 2], init| {
            self.matrix(&format!("{mixer}.{name}_proj"), shape, init)
        };
        Ok(AttentionWeights {
            query: project("q", [queries, hidden], Init::fan_in(hidden))?,
            key: project("k", [keys, hidden], Init::fan_in(hidden))?,
            value: project("v", [keys, hidden], Init::fan_in(hidden))?,
            output: project("o", [hidden, queries], place.output(queries))?,
            k_scale: self.scale(&format!("{mixer}.k_proj.k_scale"))?,
            v_scale: self.scale(&format!("{mixer}.v_proj.v_scale"))?,
        })
    }

    fn moe(&mut self, config: &ModelConfig, place: &Place) -> Result<MoeWeights, EngineError> {
        let moe = config.moe.as_ref().expect("the stack has expert layers");
        let mixer = format!("{}.mixer", place.name);
        let hidden = config.hidden_size;
        let width = moe.latent_size.unwrap_or(hidden);
        let experts = moe.num_experts;
        let latent = match moe.latent_size {
            None => None,
            Some(latent) => {
                let into = format!("{mixer}.fc1_latent_proj");
                let out = format!("{mixer}.fc2_latent_proj");
                let bias = config.mlp_bias;
                Some((
                    self.linear(&into, [latent, hidden], bias, Init::fan_in(hidden))?,
                    self.linear(&out, [hidden, latent], bias, place.output(latent))?,
                ))
            }
        };
        Ok(MoeWeights {
            gate: self.take(
                &format!("{mixer}.gate.weight"),
                &[experts, hidden],
                Init::fan_in(hidden),
            )?,
            correction_bias: self.take(
                &format!("{mixer}.gate.e_score_correction_bias"),
                &[experts],
                Init::Constant(0.0),
            )?,
            first_expert: 0,
            latent,
            up: self.experts(
                &mixer,
                "up_proj",
                experts,
                [moe.expert_size, width],
                Init::fan_in(width),
            )?,
            down: self.experts(
                &mixer,
                "down_proj",
                experts,
                [width, moe.expert_size],
                Init::fan_in(moe.expert_size),
            )?,
            shared: match moe.shared_size {
                None => None,
                Some(size) => {
                    Some(self.mlp(&format!("{mixer}.shared_experts"), config, size, place)?)
                }
            },
        })
    }

    fn experts(
        &mut self,
        mixer: &str,
        name: &str,
        count: usize,
        shape: [usize; 2],
        init: Init,
    ) -> Result<ExpertWeights, EngineError> {
        let fused = format!("{mixer}.experts.{name}");
        if self.has(&fused) {
            let shape = [count, shape[0], shape[1]];
            return Ok(ExpertWeights::Fused(self.take(&fused, &shape, init)?));
        }
        (0..count)
            .map(|expert| {
                let module = format!("{mixer}.experts.{expert}.{name}");
                self.matrix(&module, shape, init)
            })
            .collect::<Result<_, _>>()
            .map(ExpertWeights::PerExpert)
    }

    fn mlp(
        &mut self,
        name: &str,
        config: &ModelConfig,
        size: usize,
        place: &Place,
    ) -> Result<MlpWeights, EngineError> {
        let hidden = config.hidden_size;
        let bias = config.mlp_bias;
        Ok(MlpWeights {
            up: self.linear(
                &format!("{name}.up_proj"),
                [size, hidden],
                bias,
                Init::fan_in(hidden),
            )?,
            down: self.linear(
                &format!("{name}.down_proj"),
                [hidden, size],
                bias,
                place.output(size),
            )?,
        })
    }

    /// The draft block: an attention layer and one of experts. Its bytes do not count: who does not
    /// draft does not load it.
    fn draft(&mut self, config: &ModelConfig) -> Result<DraftWeights, EngineError> {
        let main = (self.inventory.num_bytes, self.inventory.num_bf16_bytes);
        let hidden = config.hidden_size;
        let place = |at: usize| Place {
            name: format!("mtp.layers.{at}"),
            depth: 2,
            mlp_size: 0,
        };
        let projection = "mtp.layers.0.eh_proj.weight";
        let weights = DraftWeights {
            token_norm: self.norm("mtp.layers.0.enorm", hidden)?,
            hidden_norm: self.norm("mtp.layers.0.hnorm", hidden)?,
            projection: MatrixWeight::Plain(self.take(
                projection,
                &[hidden, 2 * hidden],
                Init::fan_in(2 * hidden),
            )?),
            attention_norm: self.norm("mtp.layers.0.norm", hidden)?,
            attention: self.attention(config, &place(0))?,
            experts_norm: self.norm("mtp.layers.1.norm", hidden)?,
            experts: self.moe(config, &place(1))?,
            norm: self.norm("mtp.layers.1.final_layernorm", hidden)?,
        };
        (self.inventory.num_bytes, self.inventory.num_bf16_bytes) = main;
        Ok(weights)
    }

    fn norm(&mut self, name: &str, size: usize) -> Result<Weight, EngineError> {
        self.take(&format!("{name}.weight"), &[size], Init::Constant(1.0))
    }

    fn linear(
        &mut self,
        name: &str,
        shape: [usize; 2],
        has_bias: bool,
        init: Init,
    ) -> Result<LinearWeights, EngineError> {
        Ok(LinearWeights {
            weight: self.matrix(name, shape, init)?,
            bias: if has_bias {
                let bias = format!("{name}.bias");
                Some(self.take(&bias, &shape[..1], Init::bias())?)
            } else {
                None
            },
        })
    }
}

/// Where a layer stands.
struct Place {
    name: String,
    /// Layers that add to the same residual stream.
    depth: usize,
    /// Inner width of a dense layer.
    mlp_size: usize,
}

impl Place {
    /// For a matrix that writes to the residual stream: all of them together add about one unit of
    /// variance.
    fn output(&self, fan_in: usize) -> Init {
        Init::Random {
            std: ((fan_in * self.depth) as f32).powf(-0.5),
        }
    }
}

impl Init {
    fn unit() -> Self {
        Self::Random { std: 1.0 }
    }

    /// Small, and not nothing: a bias that is lost, or added by every rank, shows.
    fn bias() -> Self {
        Self::Random { std: 0.05 }
    }

    /// Unit variance in, unit variance out.
    fn fan_in(size: usize) -> Self {
        Self::Random {
            std: (size as f32).powf(-0.5),
        }
    }
}
