//! What this machine has, for people who choose models by it.

use burn::tensor::Device;
use kernels::self_test::{Outcome, Shapes, self_test};
use kernels::{Arithmetic, Format};

use crate::error::EngineError;
use crate::model::ModelConfig;
use crate::{DeviceChoice, device, memory, shapes, workbench};

/// How matrices may be stored.
const FORMATS: [(Format, &str); 3] = [
    (Format::Plain, "bf16"),
    (Format::Fp8, "fp8"),
    (Format::Nvfp4, "nvfp4"),
];

/// One round of the self-test.
#[derive(Clone, Debug, PartialEq)]
pub struct TestedPart {
    /// For people: shapes and format.
    pub name: String,
    /// How far each operation was off.
    pub outcomes: Vec<Outcome>,
}

impl TestedPart {
    /// Whether everything may be used.
    pub fn is_ok(&self) -> bool {
        self.outcomes.iter().all(Outcome::is_ok)
    }
}

/// A product of many tokens with one of a model's matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedProduct {
    /// The first of the model's matrices with this shape.
    pub matrix: &'static str,
    /// Tokens, outputs and inputs.
    pub shape: [usize; 3],
    /// Seconds by way; `None` where the device or this build does not have it.
    pub ways: Vec<(&'static str, Option<f64>)>,
}

/// Products, and what they are held against.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedProducts {
    /// Operations per second of the best product of any size.
    pub matrix_rate: f64,
    /// One after the other.
    pub products: Vec<TimedProduct>,
    /// The vendor's library, as [`Machine::product_library`] has it.
    pub library: Option<String>,
}

/// Facts that decide what can be served, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Threads that run at once.
    pub num_cores: usize,
    /// Instruction set that the CPU kernels will use.
    pub isa: &'static str,
    /// Bytes that this process may still take, page cache included.
    pub available_memory: u64,
    /// Accelerators that this build can use; `None`: it was built without their support.
    pub num_accelerators: Option<usize>,
}

impl Machine {
    /// Looks; measures nothing.
    pub fn survey() -> Self {
        Self {
            num_cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: kernels::isa().name(),
            available_memory: memory::available(),
            num_accelerators: device::num_accelerators(),
        }
    }

    /// Whether this build and this machine have such a device.
    pub fn has_device(device: DeviceChoice) -> bool {
        device::resolve(device).is_ok()
    }

    /// Runs every kernel on a device against plain loops in f64, once for every weight format, and at a
    /// model's own matrices if there is one. Small shapes take about a second on a CPU, a large
    /// model's minutes: the loops that judge are plain. Equal seeds draw equal inputs.
    ///
    /// What does not fit a quarter of the free memory is tested smaller: fewer experts, fewer rows of
    /// a matrix.
    pub fn self_test(
        &self,
        choice: DeviceChoice,
        model: Option<&ModelConfig>,
        seed: u64,
    ) -> Result<Vec<TestedPart>, EngineError> {
        let device = device::resolve(choice)?;
        let budget = self.available_memory / 4;
        let base = match model {
            None => Shapes::default(),
            Some(model) => shapes::of_model(model, budget),
        };
        workbench::guarded(|| {
            let mut parts = Vec::new();
            for (format, name) in FORMATS {
                let shapes = Shapes {
                    format,
                    seed,
                    ..base.clone()
                };
                parts.push(TestedPart {
                    name: format!("every operation, {name} weights"),
                    outcomes: self_test(&device, &shapes),
                });
                for (matrix, n, k) in model.map_or_else(Vec::new, shapes::matrices) {
                    // As numbers, as f64 in the loops, and as stored.
                    let n = n.min((budget / (16 * k as u64)) as usize).max(1);
                    let shapes = Shapes {
                        intermediate: n,
                        hidden: k,
                        ..shapes.clone()
                    };
                    kernels::self_test::poison(&device);
                    parts.push(TestedPart {
                        name: format!("{matrix} {n} x {k}, {name}"),
                        outcomes: vec![kernels::self_test::product(&device, &shapes)],
                    });
                }
            }
            Ok(parts)
        })
    }

    /// The library that large products on a device may go to: its name and version, or why there is none.
    /// `None` where there is nothing to look for.
    pub fn product_library(choice: DeviceChoice) -> Option<String> {
        let device = device::resolve(choice).ok()?;
        workbench::guarded(|| Ok(describe_library(&device))).ok()?
    }

    /// Times the products of a prompt's tokens with a model's matrices of bf16, by every way that the
    /// device has. The head is left out: it sees a prompt's last token alone.
    pub fn time_products(
        choice: DeviceChoice,
        model: &ModelConfig,
        num_tokens: &[usize],
    ) -> Result<TimedProducts, EngineError> {
        let device = device::resolve(choice)?;
        workbench::guarded(|| {
            let matrix_rate = kernels::measure_matrix_rate(&device, Arithmetic::Bf16);
            let mut products = Vec::new();
            for (matrix, n, k) in shapes::matrices(model) {
                let many = num_tokens.iter().filter(|_| matrix != "lm_head");
                products.extend(many.map(|t| TimedProduct {
                    matrix,
                    shape: [*t, n, k],
                    ways: kernels::time_products(&device, [*t, n, k]),
                }));
            }
            Ok(TimedProducts {
                matrix_rate,
                products,
                library: describe_library(&device),
            })
        })
    }

    /// Bytes per second that all cores together read from memory. Decoding one stream reads all
    /// active weights once per token, so this bounds its speed. Takes about a second.
    pub fn measure_bandwidth(&self) -> f64 {
        kernels::measure_read_bandwidth(self.num_cores) * 1e9
    }
}

fn describe_library(device: &Device) -> Option<String> {
    kernels::product_library(device).map(|found| match found {
        Ok(name) => name.to_owned(),
        Err(why) => format!("no cuBLASLt, which may be faster ({why})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_what_it_needs_to_run_this() {
        let machine = Machine::survey();
        assert!(machine.num_cores > 0 && machine.available_memory > 0);
    }

    #[test]
    fn a_processor_looks_for_no_library() {
        assert_eq!(Machine::product_library(DeviceChoice::Cpu), None);
    }

    #[test]
    fn the_kernels_pass_on_the_cpu() {
        let parts = Machine::survey().self_test(DeviceChoice::Cpu, None, 1);
        let parts = parts.expect("every machine has a CPU");
        assert_eq!(parts.len(), 3);
        assert!(
            parts
                .iter()
                .all(|part| part.outcomes.len() > 10 && part.is_ok())
        );
    }

    #[test]
    fn the_kernels_pass_at_the_shapes_of_a_model() {
        let text = r#"{"model_type": "nemotron_h", "hybrid_override_pattern": "M*E-",
            "hidden_size": 64, "vocab_size": 50, "max_position_embeddings": 100,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16,
            "n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
            "moe_latent_size": 32, "moe_shared_expert_intermediate_size": 96,
            "n_shared_experts": 1, "intermediate_size": 80}"#;
        let model = ModelConfig::parse(text, "config.json".as_ref()).expect("it is good");
        let parts = Machine::survey().self_test(DeviceChoice::Cpu, Some(&model), 7);
        let parts = parts.expect("every machine has a CPU");
        // All operations, and seven shapes of matrices, in three formats.
        assert_eq!(parts.len(), 3 * 8, "{parts:#?}");
        for part in parts {
            assert!(part.is_ok(), "{part:#?}");
        }
    }
}
