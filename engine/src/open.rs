//! From a configuration to a running engine, in two steps: [`Engine::open`] checks everything that
//! can be checked without reading weights, [`Opened::start`] loads them on the engine's thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use bytes::Bytes;
use kernels::{Arithmetic, Format, KvFormat};
use scheduler::{
    DraftCost, Drafting, RowMasks, Runner, SchedulerConfig, SchedulerOutput, StepResult, StepTime,
};

use crate::buckets::{decode_buckets, prompt_lens, recorded_buckets, recorded_draft_buckets};
use crate::cache::{DeviceCache, KvScales};
use crate::checkpoint::Checkpoint;
use crate::config::{DtypeChoice, EngineConfig, KvDtypeChoice, ModelSource, StateDtypeChoice};
use crate::decode::DecodeGraphs;
use crate::device;
use crate::draft_costs::{DraftBlock, Routing, draft_costs};
use crate::engine_core::{LoadProgress, spawn};
use crate::error::EngineError;
use crate::footprint::Footprint;
use crate::handle::{EngineHandle, EngineInfo};
use crate::memory::{self, FreeMemory, MAX_MODEL_LEN, MemoryPlan};
use crate::model::config::{Quantization, StateDtype};
use crate::model::load::Loader;
use crate::model::nemotron_h::NemotronH;
use crate::model::readahead::ReadAhead;
use crate::model::shard::{Share, Split};
use crate::model::weights::{self, Inventory, ModelWeights, fnv1a};
use crate::model::{LayerKind, ModelConfig};
use crate::model_runner::{ModelRunner, WarmUp};
use crate::parallel::{AllReduce, Meeting, OverDevices, ParallelRunner, Peers};
use crate::read_out::logits_at_once;
use crate::sampler;
use crate::shapes;
use crate::workbench::{self, Workbench};

/// The way in.
pub struct Engine;

/// How much slower prompts may make a step on a processor, unless told otherwise: three quarters of the
/// time are theirs then, and a stream that wrote ten words a second writes two or three.
const CPU_SLOWDOWN: u32 = 4;

/// A model whose files are known to be good and whose memory is planned; no weight is read yet.
pub struct Opened {
    config: EngineConfig,
    model: ModelConfig,
    weights: ModelWeights,
    /// `None`: one rank has it all.
    split: Option<Split>,
    /// Where those lie that are in files.
    stored: Vec<Bytes>,
    plan: MemoryPlan,
    kv_format: KvFormat,
    /// Per attention layer.
    kv_scales: Vec<KvScales>,
    /// Where prompts are cut, if that is to change no bit.
    grid: Option<u32>,
    is_cpu: bool,
    /// Of drafts, where only time matters.
    synthetic_acceptance: Option<f64>,
    info: EngineInfo,
}

impl Engine {
    /// Checks the configuration, `config.json` and every tensor's header, and plans the memory.
    /// Takes milliseconds, whatever the size of the model.
    ///
    /// # Errors
    /// [`EngineError::Config`] names the key, [`EngineError::Checkpoint`] the file and tensor,
    /// [`EngineError::Memory`] the bytes, [`EngineError::Device`] the device,
    /// [`EngineError::Option`] an option out of its range.
    pub fn open(mut config: EngineConfig) -> Result<Opened, EngineError> {
        check_options(&config)?;
        // Only whether it is there; tensors are made on the engine's thread.
        let num_ranks = config.tensor_parallel_size;
        let devices = device::resolve_ranks(config.device, num_ranks)?;
        let (text, path) = config_text(&config.source)?;
        let mut model = ModelConfig::parse(&text, &path)?;
        if let ModelSource::Folder(folder) | ModelSource::Dummy { folder, .. } = &config.source {
            model.quantization.read_beside(folder)?;
        }
        if let Some(mix) = config.dummy_mix {
            model.quantization = Quantization::of_dummies(mix);
        }
        let (mut weights, inventory) = match &config.source {
            ModelSource::Folder(folder) => weights::locate(&model, Checkpoint::open(folder)?)?,
            ModelSource::Embedded { weights, .. } => weights::locate(
                &model,
                Checkpoint::from_bytes(weights, Path::new("embedded weights"))?,
            )?,
            ModelSource::Dummy { seed, .. } => weights::invent(&model, *seed)?,
        };
        let state_dtype =
            choose_state_dtype(config.mamba_ssm_cache_dtype, &mut model, &devices[0])?;
        let grid = grid(&config, &devices[0])?;
        config.max_drafts = num_drafts(&config, weights.draft.is_some(), grid)?;
        if config.max_drafts == 0 {
            (weights.draft, model.mtp_layers) = (None, None);
        }
        let draft_bytes = weights.draft.as_ref().map_or(0, |draft| draft.num_bytes());
        let weight_bytes = inventory.num_bytes + draft_bytes;
        let split = (num_ranks > 1).then_some(Split {
            num_ranks,
            experts: config.expert_parallel,
        });
        if let Some(split) = split {
            split.check(&model)?;
        }
        let is_bf16 = 2 * inventory.num_bf16_bytes > inventory.num_bytes;
        let dtype = resolve_dtype(config.dtype, is_bf16, &devices[0]);
        config.dtype = dtype;
        let has_fp8_cache = model.quantization.has_fp8_cache();
        let kv_format = resolve_kv_format(config.kv_cache_dtype, has_fp8_cache, dtype);
        let kv_scales = weights.kv_scales()?;
        let host_memory = memory::available();
        if config.host_cache_bytes > host_memory {
            return Err(EngineError::Memory(format!(
                "{} of host cache memory were granted, this machine has {} available",
                memory::bytes(config.host_cache_bytes),
                memory::bytes(host_memory)
            )));
        }
        let [max_rows, max_drafts] = [config.max_num_seqs, config.max_drafts].map(|n| n as usize);
        let plan_for = |rank: usize, model: &ModelConfig, weights: u64| {
            let at_once = logits_at_once(&devices[rank], max_rows, max_rows * max_drafts);
            let workspace = memory::workspace(model, config.max_num_batched_tokens, at_once)
                + library_bytes(&config, dtype, model, &devices[rank]);
            let fraction = config.memory_fraction;
            let own = device::memory(config.device, rank, &devices[rank])?;
            let free = if let Some(memory) = own {
                FreeMemory::of_device(memory, fraction, weights, workspace)
            } else {
                // The host's memory is this very memory.
                let available = host_memory.saturating_sub(config.host_cache_bytes);
                let available = available / num_ranks as u64;
                FreeMemory::of_cpu(available, fraction, weights, workspace)
            };
            let is_dummy = matches!(config.source, ModelSource::Dummy { .. });
            // Files may stay where they are as long as they are only mapped.
            if (is_dummy || free.is_device) && free.weights > free.available {
                return Err(EngineError::Memory(format!(
                    "weights take {}, {} are available",
                    memory::bytes(free.weights),
                    memory::bytes(free.available)
                )));
            }
            memory::plan(&config, model, kv_format.num_bytes() as u64, free)
        };
        let (plan, rank_weight_bytes) = match split {
            None => (plan_for(0, &model, weight_bytes)?, weight_bytes),
            Some(split) => (0..num_ranks)
                .map(|rank| {
                    let share = split.share(rank, &model, &weights)?;
                    let bytes = share.weights.num_bytes();
                    let plan = plan_for(rank, &share.config, bytes);
                    Ok((plan.map_err(|error| error.of_rank(rank, num_ranks))?, bytes))
                })
                .reduce(|one, other| {
                    let ((one, one_bytes), (other, other_bytes)) = (one?, other?);
                    Ok((one.smallest(&other), one_bytes.max(other_bytes)))
                })
                .expect("there is a rank")?,
        };
        let device_name = describe(&devices, split);
        let dtype_name = dtype.to_string();
        let arithmetic = [dtype_name.as_str(), kv_format.name(), state_dtype.name()];
        let info = EngineInfo {
            fingerprint: fingerprint(&text, &inventory, &device_name, arithmetic),
            vocab_size: model.vocab_size as u32,
            max_model_len: plan.max_model_len,
            max_num_seqs: plan.max_num_seqs,
            num_parameters: inventory.num_parameters,
            weight_bytes,
            block_size: plan.cache.block_size,
            num_blocks: plan.cache.num_blocks - 1,
            num_slots: plan.cache.num_slots - 1,
            num_ranks,
            rank_weight_bytes,
            block_bytes: plan.block_bytes,
            slot_bytes: plan.slot_bytes,
            num_host_blocks: plan.cache.num_host_blocks,
            num_host_slots: plan.cache.num_host_slots,
            workspace_bytes: plan.workspace,
            reserve_bytes: plan.reserve,
            max_drafts: config.max_drafts,
            device: device_name,
            dtype: dtype_name,
            kv_cache_dtype: kv_format.name(),
            mamba_ssm_cache_dtype: state_dtype.name(),
        };
        Ok(Opened {
            config,
            model,
            weights,
            split,
            stored: inventory.stored,
            plan,
            kv_format,
            kv_scales,
            grid,
            is_cpu: device::is_cpu(&devices[0]),
            synthetic_acceptance: None,
            info,
        })
    }
}

impl Opened {
    /// What will run: sizes, limits, fingerprint.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// The model's configuration.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Starts the engine's thread, which loads the weights and then serves. Returns at once; see
    /// [`EngineHandle::status`] for the progress of loading. Dropping every handle ends the thread.
    pub fn start(self) -> Result<EngineHandle, EngineError> {
        let scheduler = self.scheduler_config();
        let cache = self.plan.cache.clone();
        let vocab_size = self.info.vocab_size;
        spawn(scheduler, cache, vocab_size, |progress| self.load(progress))
    }

    /// Loads the weights on the calling thread and hands out the runner without an engine around
    /// it: for whoever plans by hand.
    pub fn into_runner(self) -> Result<impl Runner<Error = EngineError>, EngineError> {
        self.load(LoadProgress::unwatched())
    }

    /// Loads the weights on the calling thread, to be measured there.
    pub fn into_workbench(self) -> Result<Workbench, EngineError> {
        self.into_workbench_accepting(None)
    }

    /// The same, where that share of drafts comes true, as a seeded coin says, whatever they and the
    /// weights are worth: for dummies, whose drafts never do. Nothing that serves does this.
    pub fn into_workbench_accepting(
        mut self,
        share: Option<f64>,
    ) -> Result<Workbench, EngineError> {
        self.synthetic_acceptance = share;
        let device = device::resolve(self.config.device)?;
        let arithmetic = self.arithmetic(&device);
        let (config, cache) = (self.scheduler_config(), self.plan.cache.clone());
        let footprint = self.footprint();
        let is_whole = self.split.is_none();
        let runner = Box::new(self.into_runner()?);
        Workbench::new(
            (config, cache),
            runner,
            (device, arithmetic),
            is_whole,
            footprint,
        )
    }

    /// Seconds that the attention layers take together for the last `num_tokens` tokens of a sequence
    /// over `context` positions before them; loads nothing. FP8 caches are timed as the arithmetic's
    /// own type.
    pub fn time_attention(&self, num_tokens: usize, context: usize) -> Result<f64, EngineError> {
        let Some(heads) = &self.model.attention else {
            return Ok(0.0);
        };
        let device = device::resolve(self.config.device)?;
        kernels::set_num_threads(self.config.threads.unwrap_or_else(device::num_cores));
        let shape = [heads.num_heads, heads.num_kv_heads, heads.head_dim];
        let (arithmetic, block_size) = (self.arithmetic(&device), self.config.block_size as usize);
        workbench::guarded(|| {
            let tokens = (num_tokens, context);
            let layer = kernels::measure_attention(&device, arithmetic, shape, block_size, tokens);
            Ok(layer * self.model.num_layers(LayerKind::Attention) as f64)
        })
    }

    /// What a step will read and compute.
    pub fn footprint(&self) -> Footprint {
        let draft = self.weights.draft.as_ref();
        let draft_bytes = draft.map_or(0, |draft| draft.num_bytes());
        let per_token = self.plan.block_bytes / u64::from(self.plan.cache.block_size);
        Footprint::new(
            &self.model,
            &self.weights,
            self.info.weight_bytes - draft_bytes,
            // What a step reads and writes of a slot; the rest is for drafts.
            memory::slot_bytes(&self.model, 0),
            per_token,
        )
    }

    fn scheduler_config(&self) -> SchedulerConfig {
        SchedulerConfig {
            max_num_batched_tokens: self.config.max_num_batched_tokens,
            max_num_seqs: self.plan.max_num_seqs,
            max_queue: self.config.max_queue,
            max_model_len: self.plan.max_model_len,
            grid: self.grid,
            max_drafts: self.config.max_drafts,
            draft_costs: self.draft_costs(),
            max_slowdown: self.max_slowdown(),
            context_cost: self.context_cost(),
        }
    }

    fn max_slowdown(&self) -> Option<u32> {
        let of_device = if self.is_cpu { CPU_SLOWDOWN } else { 0 };
        let times = self.config.max_decode_slowdown.unwrap_or(of_device);
        (times > 0).then_some(times)
    }

    /// By operations, of which attention's are no dearer than others.
    fn context_cost(&self) -> u32 {
        let Footprint {
            flops_per_token,
            attention_flops,
            ..
        } = self.footprint();
        let positions = flops_per_token.checked_div(attention_flops);
        positions.map_or(0, |positions| positions.clamp(1, u32::MAX.into()) as u32)
    }

    /// What the scheduler weighs drafts by; nothing if their number is fixed.
    fn draft_costs(&self) -> Vec<DraftCost> {
        let (true, Some(draft)) = (self.config.adaptive_drafts, &self.weights.draft) else {
            return Vec::new();
        };
        let head_bytes = match &self.weights.head {
            Some(head) => head.num_bytes(),
            None => self.weights.embedding.num_bytes(),
        };
        let routed_bytes = draft.experts.up.num_bytes() + draft.experts.down.num_bytes();
        let block = DraftBlock {
            dense_bytes: draft.num_bytes() - routed_bytes + head_bytes,
            routed_bytes,
        };
        let moe = self.model.moe.as_ref();
        let routing = Routing {
            num_experts: moe.map_or(0, |moe| moe.num_experts),
            num_chosen: moe.map_or(0, |moe| moe.num_experts_per_token),
        };
        let max_rows = self.plan.max_num_seqs;
        draft_costs(&self.footprint(), block, routing, self.is_cpu, max_rows)
    }

    fn arithmetic(&self, device: &Device) -> Arithmetic {
        match self.config.dtype {
            DtypeChoice::Bf16 if !self.config.deterministic && may_reorder(device) => {
                Arithmetic::Bf16AnyOrder
            }
            DtypeChoice::Bf16 => Arithmetic::Bf16,
            _ => Arithmetic::F32,
        }
    }

    fn load(self, progress: LoadProgress) -> Result<Ranks, EngineError> {
        let num_threads = self.config.threads.unwrap_or_else(device::num_cores);
        if let Some(folder) = &self.config.kernel_cache {
            device::keep_kernels(folder);
        }
        let _ahead = ReadAhead::start(&self.stored);
        let Some(split) = self.split else {
            kernels::set_num_threads(num_threads);
            let device = device::resolve(self.config.device)?;
            let all = (&self.model, &self.weights);
            let runner = self.build(all, &device, num_threads, progress, None);
            return Ok(Ranks::One(Box::new(runner)));
        };
        let num_ranks = split.num_ranks;
        let devices = device::resolve_ranks(self.config.device, num_ranks)?;
        let all_reduce: Arc<dyn AllReduce> = if device::is_cpu(&devices[0]) {
            Arc::new(Meeting::new(num_ranks))
        } else {
            Arc::new(OverDevices::new(devices.clone())?)
        };
        let between = Arc::clone(&all_reduce);
        ParallelRunner::start(num_ranks, all_reduce, progress, move |rank, progress| {
            let num_threads = (num_threads / num_ranks).max(1);
            kernels::set_num_threads_here(num_threads);
            let Share {
                config,
                weights,
                vocabulary,
            } = split.share(rank, &self.model, &self.weights)?;
            let peers = Peers {
                all_reduce: Arc::clone(&between),
                rank,
                vocabulary,
            };
            let part = (&config, &weights);
            let device = &devices[rank];
            let runner = self.build(part, device, num_threads, progress, Some(peers));
            Ok(if rank == 0 { runner } else { runner.silent() })
        })
        .map(Ranks::Many)
    }

    /// Loads one rank's share, or all there is.
    fn build(
        &self,
        (model, weights): (&ModelConfig, &ModelWeights),
        device: &Device,
        num_threads: usize,
        progress: LoadProgress,
        peers: Option<Peers>,
    ) -> ModelRunner {
        let arithmetic = self.arithmetic(device);
        let mut loader = Loader::new(
            device.clone(),
            arithmetic,
            num_threads,
            progress,
            weights.num_bytes(),
        );
        loader.draft_arithmetic = kernels::fast_arithmetic(device, arithmetic);
        // A recorded step would have to hold what ranks say to each other.
        let graphs = peers
            .is_none()
            .then(|| DecodeGraphs::new(device, self.plan.max_num_seqs, self.config.max_drafts));
        let loaded = NemotronH::load(weights, model, peers, &mut loader);
        let kv_scales = &self.kv_scales;
        let cache = DeviceCache::new(
            model,
            &self.plan.cache,
            self.config.max_drafts,
            self.kv_format,
            kv_scales,
            device,
        );
        ModelRunner::new(loaded, cache, self.warm_ups(device, arithmetic), graphs)
            .accepting(self.synthetic_acceptance)
    }

    /// Steps to run before the first request. A processor compiles nothing: there one token wakes the
    /// threads and shows that the model runs. A GPU compiles a kernel for each number of rows, and for
    /// each kind of draw and for rows with drafts; where steps are recorded, those of longer contexts
    /// are too. Where large products have several ways, prompts of every length that has a choice of its own
    /// are for choosing; where drafts are weighed, steps with and without are timed.
    fn warm_ups(&self, device: &Device, arithmetic: Arithmetic) -> Vec<WarmUp> {
        if !self.config.warm_up {
            return Vec::new();
        }
        let step = |num_rows| WarmUp {
            num_rows,
            len: 1,
            ..WarmUp::default()
        };
        let with_drafts = |num_rows, num_drafts| WarmUp {
            len: 1 + num_drafts,
            drafting: Drafting {
                num_drafts,
                max_drafts: num_drafts,
                ..Drafting::default()
            },
            ..step(num_rows)
        };
        let max_drafts = self.config.max_drafts;
        let drafts = |num_rows| (max_drafts > 0).then(|| with_drafts(num_rows, max_drafts));
        let max_num_seqs = self.plan.max_num_seqs;
        // Ranks run the same steps, and each has a clock of its own: theirs are timed in service.
        let weighs_drafts = max_drafts > 0 && self.config.adaptive_drafts && self.split.is_none();
        let timed = decode_buckets(max_num_seqs)
            .into_iter()
            .filter(|_| weighs_drafts)
            .flat_map(|num_rows| [step(num_rows), with_drafts(num_rows, 1)])
            .map(|warm_up| WarmUp {
                is_timed: true,
                drafting: after_drafts(warm_up.drafting),
                ..warm_up
            });
        if device::is_cpu(device) {
            return [step(1)]
                .into_iter()
                .chain(drafts(1))
                .chain(timed)
                .collect();
        }
        let longest = self.config.max_num_batched_tokens;
        let prompts = prompt_lens(longest, arithmetic == Arithmetic::Bf16AnyOrder);
        let prompts = prompts.into_iter().map(|len| WarmUp { len, ..step(1) });
        let draws = sampler::usual_draws().map(|params| WarmUp { params, ..step(1) });
        let block_size = self.config.block_size;
        let max_blocks = self.plan.max_model_len.div_ceil(block_size) as usize;
        let recordings = recorded_buckets(max_num_seqs, max_blocks).into_iter();
        let drafted = recorded_draft_buckets(max_num_seqs, max_drafts).into_iter();
        decode_buckets(max_num_seqs)
            .into_iter()
            .flat_map(|num_rows| [step(num_rows)].into_iter().chain(drafts(num_rows)))
            .chain(prompts)
            .chain(draws)
            .chain(recordings.map(|(num_rows, num_blocks)| WarmUp {
                num_blocks,
                is_recording: true,
                ..step(num_rows)
            }))
            .chain(drafted.map(|(num_rows, depth)| WarmUp {
                is_recording: true,
                ..with_drafts(num_rows, depth)
            }))
            .chain(timed)
            .collect()
    }
}

/// As it is behind a step whose drafts all came true: they are to be absorbed.
fn after_drafts(drafting: Drafting) -> Drafting {
    match drafting.num_drafts {
        0 => drafting,
        num_drafts => Drafting {
            num_pending: 1 + num_drafts,
            is_drafted: true,
            ..drafting
        },
    }
}

/// One rank on the engine's own thread, or several on theirs.
enum Ranks {
    One(Box<ModelRunner>),
    Many(ParallelRunner),
}

impl Runner for Ranks {
    type Error = EngineError;

    fn warm_up(&mut self, tell: &mut dyn FnMut(u32, u32)) -> Result<(), EngineError> {
        match self {
            Self::One(runner) => runner.warm_up(tell),
            Self::Many(runner) => runner.warm_up(tell),
        }
    }

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        match self {
            Self::One(runner) => runner.submit(plan),
            Self::Many(runner) => runner.submit(plan),
        }
    }

    fn collect(&mut self, masks: &[RowMasks]) -> Result<StepResult, EngineError> {
        match self {
            Self::One(runner) => runner.collect(masks),
            Self::Many(runner) => runner.collect(masks),
        }
    }

    fn times(&mut self) -> Vec<StepTime> {
        match self {
            Self::One(runner) => runner.times(),
            Self::Many(runner) => runner.times(),
        }
    }
}

/// Devices, for people and for the fingerprint: sums over more ranks are other sums.
fn describe(devices: &[Device], split: Option<Split>) -> String {
    let name = device::name(&devices[0]);
    match split {
        None => name,
        Some(Split { num_ranks, experts }) => {
            let what = if experts { ", whole experts" } else { "" };
            format!("{num_ranks} ranks from {name} on{what}")
        }
    }
}

/// What a vendor's library takes for large products, where they may go to one.
fn library_bytes(
    config: &EngineConfig,
    dtype: DtypeChoice,
    model: &ModelConfig,
    device: &Device,
) -> u64 {
    if config.deterministic || dtype != DtypeChoice::Bf16 {
        return 0;
    }
    let matrices = shapes::matrices(model).into_iter();
    let dims: Vec<[usize; 2]> = matrices.map(|(_, n, k)| [n, k]).collect();
    kernels::library_bytes(device, !model.quantization.is_silent(), &dims)
}

/// Whether products of many rows may go ways of their own. They do once these have been held against
/// plain loops on this very device: takes a second or two, where there are any.
fn may_reorder(device: &Device) -> bool {
    for way in kernels::reordering_ways(device) {
        let formats = [Format::Plain, Format::Fp8, Format::Nvfp4].into_iter();
        let mut outcomes =
            formats.flat_map(|format| kernels::self_test::reordered(device, way, format, 1));
        if let Some(wrong) = outcomes.find(|outcome| !outcome.is_ok()) {
            tracing::warn!(
                way = way.name(),
                operation = wrong.operation,
                error = wrong.max_error,
                "large products are wrong on this device by one way, others serve"
            );
            kernels::refuse_way(way);
        }
    }
    kernels::can_reorder(device)
}

/// The grid of a deterministic engine. The CPU computes a token in one way however its prompt is cut.
fn grid(config: &EngineConfig, device: &Device) -> Result<Option<u32>, EngineError> {
    if !config.deterministic || device::is_cpu(device) {
        return Ok(None);
    }
    let (grid, budget) = (kernels::SCAN_CHUNK, config.max_num_batched_tokens);
    if budget < grid {
        return Err(EngineError::Option {
            option: "max-num-batched-tokens",
            value: budget.into(),
            min: grid.into(),
            max: 65_536,
        });
    }
    Ok(Some(grid))
}

/// How many drafts there can be. Who asked for a number gets it or a refusal.
fn num_drafts(
    config: &EngineConfig,
    has_block: bool,
    grid: Option<u32>,
) -> Result<u32, EngineError> {
    let why = if !has_block {
        "the checkpoint has no draft block"
    } else if grid.is_some() {
        "with --deterministic this device computes every token of an answer alone"
    } else {
        return Ok(config.max_drafts);
    };
    if config.adaptive_drafts || config.max_drafts == 0 {
        return Ok(0);
    }
    Err(EngineError::Drafts {
        asked: config.max_drafts,
        why,
    })
}

fn check_options(config: &EngineConfig) -> Result<(), EngineError> {
    let in_range = |option: &'static str, value: u64, range: std::ops::RangeInclusive<u64>| {
        if range.contains(&value) {
            return Ok(());
        }
        Err(EngineError::Option {
            option,
            value,
            min: *range.start(),
            max: *range.end(),
        })
    };
    if let Some(len) = config.max_model_len {
        in_range("max-model-len", len.into(), 1..=MAX_MODEL_LEN.into())?;
    }
    if let Some(times @ 1..) = config.max_decode_slowdown {
        in_range("max-decode-slowdown", times.into(), 2..=1000)?;
    }
    if let Some(threads) = config.threads {
        in_range("threads", threads as u64, 1..=1024)?;
    }
    in_range(
        "tensor-parallel-size",
        config.tensor_parallel_size as u64,
        1..=64,
    )?;
    if config.expert_parallel {
        // Of one rank's experts there is nothing to share out.
        in_range(
            "tensor-parallel-size",
            config.tensor_parallel_size as u64,
            2..=64,
        )?;
    }
    in_range("max-num-seqs", config.max_num_seqs.into(), 1..=4096)?;
    in_range(
        "max-num-batched-tokens",
        config.max_num_batched_tokens.into(),
        config.max_num_seqs.into()..=65_536,
    )?;
    in_range("block-size", config.block_size.into(), 1..=1024)?;
    in_range(
        "speculative-tokens",
        config.max_drafts.into(),
        0..=kernels::MAX_DRAFTS.into(),
    )?;
    in_range("max-queue", config.max_queue.into(), 1..=1_000_000)
}

/// The text of `config.json` and the path that its errors name.
fn config_text(source: &ModelSource) -> Result<(String, PathBuf), EngineError> {
    match source {
        ModelSource::Folder(folder) | ModelSource::Dummy { folder, .. } => {
            let path = folder.join("config.json");
            Ok((ModelConfig::read_text(&path)?, path))
        }
        ModelSource::Embedded { config, .. } => {
            let path = PathBuf::from("embedded config.json");
            let text = std::str::from_utf8(config).map_err(|error| EngineError::Config {
                path: path.clone(),
                what: error.to_string(),
            })?;
            Ok((text.to_owned(), path))
        }
    }
}

/// Auto is bf16 on a GPU, and on a CPU with dot products of it for weights that are mostly bf16: f32 is
/// no more exact there than what the model was trained in, and takes twice the time.
fn resolve_dtype(choice: DtypeChoice, is_bf16: bool, device: &Device) -> DtypeChoice {
    match choice {
        DtypeChoice::Auto if !device::is_cpu(device) => DtypeChoice::Bf16,
        DtypeChoice::Auto => {
            let is_fast = kernels::fast_arithmetic(device, Arithmetic::F32).is_rounded();
            if is_bf16 && is_fast {
                DtypeChoice::Bf16
            } else {
                DtypeChoice::F32
            }
        }
        chosen => chosen,
    }
}

/// Auto is what the checkpoint was calibrated for, else the type of the arithmetic.
fn resolve_kv_format(choice: KvDtypeChoice, is_calibrated: bool, dtype: DtypeChoice) -> KvFormat {
    match choice {
        KvDtypeChoice::Auto if is_calibrated => KvFormat::Fp8,
        KvDtypeChoice::Auto if dtype == DtypeChoice::Bf16 => KvFormat::Bf16,
        KvDtypeChoice::Auto | KvDtypeChoice::F32 => KvFormat::F32,
        KvDtypeChoice::Bf16 => KvFormat::Bf16,
        KvDtypeChoice::Fp8 => KvFormat::Fp8,
    }
}

/// What the operator wants, else what the model asks for; the model is told.
fn choose_state_dtype(
    choice: StateDtypeChoice,
    model: &mut ModelConfig,
    device: &Device,
) -> Result<StateDtype, EngineError> {
    let Some(mamba) = &mut model.mamba else {
        return Ok(StateDtype::F32);
    };
    match choice {
        StateDtypeChoice::Auto => {}
        StateDtypeChoice::F32 => mamba.state_dtype = StateDtype::F32,
        StateDtypeChoice::F16 => mamba.state_dtype = StateDtype::F16,
    }
    let widths = [mamba.state_size, mamba.inner_size()];
    if mamba.state_dtype == StateDtype::F16
        && kernels::is_gpu(device)
        && widths.iter().any(|width| !width.is_multiple_of(2))
    {
        return Err(EngineError::StateDtype { widths });
    }
    Ok(mamba.state_dtype)
}

/// The same for the same build, configuration, tensors and arithmetic; the bytes of the weights are
/// not read for it.
fn fingerprint(
    config_text: &str,
    inventory: &Inventory,
    device: &str,
    [dtype, kv_dtype, state_dtype]: [&str; 3],
) -> String {
    let parts = [
        env!("CARGO_PKG_VERSION"),
        config_text,
        &inventory.listing,
        device,
        dtype,
        kv_dtype,
        state_dtype,
    ];
    let hash = parts
        .iter()
        .fold(0, |hash, part| fnv1a(hash, part.as_bytes()));
    format!("fp_{hash:016x}")
}
