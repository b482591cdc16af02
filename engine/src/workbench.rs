//! A model to measure: scheduler and runner in one hand, a step at a time, on the calling thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use kernels::{Arithmetic, ProfileRow};
use scheduler::{
    AdmissionError, CacheConfig, Request, RequestId, Runner, SamplingParams, Scheduler,
    SchedulerConfig, TenantId,
};

use crate::error::EngineError;
use crate::footprint::{Footprint, StepSize};
use crate::tally;
use crate::verdict::{self, Phase};

/// A loaded model that runs a step when told to.
pub struct Workbench {
    scheduler: Scheduler,
    /// To begin anew with.
    configs: (SchedulerConfig, CacheConfig),
    /// Drafts are checked, but nobody makes them.
    only_checks: bool,
    runner: Box<dyn Runner<Error = EngineError>>,
    device: Device,
    arithmetic: Arithmetic,
    /// The model runs on this very thread, not in ranks on others.
    is_whole: bool,
    footprint: Footprint,
    num_requests: u64,
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// From the plan to the news for clients.
    pub time: Duration,
    /// How large it was.
    pub size: StepSize,
    /// Tokens drawn.
    pub num_drawn: u64,
    /// Requests that ended.
    pub num_finished: u64,
}

/// What only a step that nobody times can tell.
#[derive(Clone, Copy, Debug)]
pub struct StepCounts {
    /// Experts that some token chose, summed over layers; `None` if ranks chose them elsewhere.
    pub num_experts: Option<u64>,
    /// Kernels launched; `None` on a processor, which launches none.
    pub num_launches: Option<u64>,
    /// Bytes of logits, or of what was selected of them, read back from a device; `None` where they
    /// are read in place, or by ranks elsewhere.
    pub read_back_bytes: Option<u64>,
}

/// What the device can do at most.
#[derive(Clone, Copy, Debug)]
pub struct Roof {
    /// Read by all threads on a processor; read and written by a copy elsewhere.
    pub bytes_per_second: f64,
    /// Of a product of a long chunk.
    pub flops_per_second: f64,
}

impl Workbench {
    pub(crate) fn new(
        (config, cache): (SchedulerConfig, CacheConfig),
        mut runner: Box<dyn Runner<Error = EngineError>>,
        (device, arithmetic): (Device, Arithmetic),
        is_whole: bool,
        footprint: Footprint,
    ) -> Result<Self, EngineError> {
        runner.warm_up(&mut |_, _| {})?;
        let mut scheduler = Scheduler::new(config.clone(), cache.clone());
        scheduler.note_times(0, &runner.times());
        Ok(Self {
            scheduler,
            configs: (config, cache),
            only_checks: false,
            runner,
            device,
            arithmetic,
            is_whole,
            footprint,
            num_requests: 0,
        })
    }

    /// What a step reads and computes.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// Measures; takes some seconds.
    pub fn measure_roof(&self) -> Roof {
        Roof {
            bytes_per_second: kernels::measure_bandwidth(&self.device),
            flops_per_second: kernels::measure_matrix_rate(&self.device, self.arithmetic),
        }
    }

    /// Queues a request that draws greedily and stops at nothing.
    pub fn add(&mut self, prompt: Vec<u32>, max_tokens: u32) -> Result<(), AdmissionError> {
        self.num_requests += 1;
        self.scheduler.add(Request {
            id: RequestId(self.num_requests),
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams {
                max_tokens,
                ..SamplingParams::default()
            }),
            num_choices: 1,
            cache_salt: "".into(),
            boundaries: Arc::default(),
            priority: 0,
            tenant: TenantId::default(),
            tenant_weight: 1,
        })
    }

    /// Begins anew, with so many drafts a row, as many as were asked for at most. With `only_checks` they
    /// come from nowhere, so that a step is no more than checking them.
    pub fn draft(&mut self, num_drafts: u32, only_checks: bool) {
        let (mut config, cache) = self.configs.clone();
        config.max_drafts = num_drafts.min(config.max_drafts);
        config.draft_costs = Vec::new();
        self.scheduler = Scheduler::new(config, cache);
        self.only_checks = only_checks;
    }

    /// Ends whatever is left.
    pub fn clear(&mut self) {
        for id in 1..=self.num_requests {
            self.scheduler.abort(RequestId(id));
        }
    }

    /// Runs the next step, as the engine does; `None` if there is nothing to do.
    pub fn step(&mut self) -> Result<Option<StepReport>, EngineError> {
        let begin = Instant::now();
        let Some(mut plan) = self.scheduler.schedule() else {
            return Ok(None);
        };
        let mut wanted = Vec::new();
        if self.only_checks {
            let rows = plan.rows.iter_mut();
            wanted.extend(rows.map(|row| std::mem::take(&mut row.drafting.max_drafts)));
        }
        let size = StepSize {
            num_rows: plan.rows.len() as u64,
            num_tokens: plan.rows.iter().map(|row| row.input_ids.len() as u64).sum(),
            num_positions: plan.rows.iter().map(|row| u64::from(row.start)).sum(),
        };
        let submitted = Instant::now();
        self.runner.submit(plan)?;
        self.scheduler.prepare();
        let mut result = self.runner.collect(&[])?;
        let nanos = submitted.elapsed().as_nanos() as u64;
        self.scheduler.note_times(nanos, &self.runner.times());
        for (row, num_drafts) in result.rows.iter_mut().zip(wanted) {
            if let Ok(output) = &mut row.outcome
                && !output.tokens.is_empty()
            {
                output.drafts = vec![0; num_drafts as usize];
            }
        }
        let news = self.scheduler.update(result);
        Ok(Some(StepReport {
            time: begin.elapsed(),
            size,
            num_drawn: news.iter().map(|news| news.tokens.len() as u64).sum(),
            num_finished: news.iter().filter(|news| news.finish.is_some()).count() as u64,
        }))
    }

    /// The next step, and where its time goes: on a processor, if the model runs on this very thread.
    pub fn profiled_step(&mut self) -> Result<Option<(StepReport, Vec<ProfileRow>)>, EngineError> {
        let (step, rows) = kernels::profile(|| self.step());
        Ok(step?.map(|step| (step, rows)))
    }

    /// The next step, counted instead of timed.
    pub fn counted_step(&mut self) -> Result<Option<StepCounts>, EngineError> {
        let (((step, num_launches), read_back_bytes), num_experts) = tally::count_experts(|| {
            kernels::count_read_back(|| kernels::count_launches(|| self.step()))
        });
        // Reading choices back launches nothing.
        let is_device = !kernels::is_cpu(&self.device);
        let num_launches = num_launches.filter(|_| is_device);
        Ok(step?.map(|_| StepCounts {
            num_experts: self.is_whole.then_some(num_experts),
            num_launches,
            read_back_bytes: (is_device && self.is_whole).then_some(read_back_bytes),
        }))
    }
}

/// Runs work on a device outside of an engine's thread: a panic becomes the error that it stands for.
pub fn guarded<T>(f: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    verdict::listen();
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|panic| Err(verdict::of_panic(Phase::Step, panic.as_ref())))
}
