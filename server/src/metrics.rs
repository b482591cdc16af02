//! Every metric's name and help text.
//!
//! Native names begin with `nemoserve_`. [`ALIASES`] repeats those that dashboards, autoscalers and
//! load tests look for under vLLM's names, with its labels. Labels come from closed sets (route
//! patterns, status codes, finish reasons), never from a request.

mod admission;

use std::time::Duration;

use engine::{EngineHandle, EngineInfo, EngineStats, StepTokens};
use http::StatusCode;
use parking_lot::Mutex;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::admission::AdmissionMetrics;
use crate::api::hosted;
use crate::timeline::Timeline;

/// Native name, vLLM's name for the same thing.
const ALIASES: &[(&str, &str)] = &[
    ("nemoserve_requests_running", "vllm:num_requests_running"),
    ("nemoserve_requests_waiting", "vllm:num_requests_waiting"),
    ("nemoserve_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"),
    ("nemoserve_preemptions_total", "vllm:num_preemptions_total"),
    ("nemoserve_prompt_tokens_total", "vllm:prompt_tokens_total"),
    (
        "nemoserve_generation_tokens_total",
        "vllm:generation_tokens_total",
    ),
    (
        "nemoserve_prompt_tokens_total",
        "vllm:prefix_cache_queries_total",
    ),
    (
        "nemoserve_cached_prompt_tokens_total",
        "vllm:prefix_cache_hits_total",
    ),
    (
        "nemoserve_choices_finished_total",
        "vllm:request_success_total",
    ),
    (
        "nemoserve_time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds",
    ),
    (
        "nemoserve_inter_token_latency_seconds",
        "vllm:inter_token_latency_seconds",
    ),
    (
        "nemoserve_request_duration_seconds",
        "vllm:e2e_request_latency_seconds",
    ),
    (
        "nemoserve_request_queue_time_seconds",
        "vllm:request_queue_time_seconds",
    ),
    (
        "nemoserve_request_prefill_time_seconds",
        "vllm:request_prefill_time_seconds",
    ),
    (
        "nemoserve_request_decode_time_seconds",
        "vllm:request_decode_time_seconds",
    ),
    (
        "nemoserve_request_inference_time_seconds",
        "vllm:request_inference_time_seconds",
    ),
    (
        "nemoserve_request_time_per_output_token_seconds",
        "vllm:request_time_per_output_token_seconds",
    ),
    (
        "nemoserve_request_prompt_tokens",
        "vllm:request_prompt_tokens",
    ),
    (
        "nemoserve_request_generation_tokens",
        "vllm:request_generation_tokens",
    ),
    (
        "nemoserve_request_params_max_tokens",
        "vllm:request_params_max_tokens",
    ),
    ("nemoserve_request_params_n", "vllm:request_params_n"),
    ("nemoserve_step_tokens", "vllm:iteration_tokens_total"),
    (
        "nemoserve_requests_faulted_total",
        "vllm:corrupted_requests_total",
    ),
    ("nemoserve_cache_config_info", "vllm:cache_config_info"),
    (
        "nemoserve_drafted_rows_total",
        "vllm:spec_decode_num_drafts_total",
    ),
    (
        "nemoserve_draft_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
    ),
    (
        "nemoserve_accepted_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ),
    (
        "nemoserve_accepted_draft_tokens_by_position_total",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    ),
];

/// `content-type` of the exposition format.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From a cached prompt on a fast device to a long one on a slow CPU behind a queue.
const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

const INTER_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 2560.0,
];

/// Tokens of a request.
const LENGTH_BUCKETS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5,
    5e5, 1e6,
];

const CHOICES_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Numbers of the process. Each instance has its own registry, so tests do not share counts.
pub struct Metrics {
    registry: Registry,
    model_name: String,
    requests: IntCounterVec,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    cached_prompt_tokens: IntCounter,
    cancelled: IntCounter,
    hosted_tools: IntCounterVec,
    finished: IntCounterVec,
    ttft: Histogram,
    inter_token: Histogram,
    duration: Histogram,
    generations: GenerationMetrics,
    spans: SpanCounts,
    connections: IntGauge,
    failed_openings: IntCounter,
    watchdog: IntCounter,
    panics: IntCounter,
    in_flight: IntGauge,
    /// Who was let in and who was not.
    pub(crate) admission: AdmissionMetrics,
    engine: Mutex<EngineMetrics>,
}

/// What generations went through.
struct GenerationMetrics {
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    per_token: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    max_tokens: Histogram,
    choices: Histogram,
    faulted: IntCounter,
}

/// What became of spans.
#[derive(Clone, Debug)]
pub(crate) struct SpanCounts {
    pub(crate) exported: IntCounter,
    /// The queue was full.
    pub(crate) dropped_full: IntCounter,
    /// The collector did not take them.
    pub(crate) dropped_collector: IntCounter,
}

/// Copies of the engine's numbers, brought up to date by each scrape.
struct EngineMetrics {
    running: IntGauge,
    waiting: IntGauge,
    kv_usage: Gauge,
    blocks: IntGaugeVec,
    slots: IntGaugeVec,
    host_blocks: IntGaugeVec,
    host_slots: IntGaugeVec,
    swapped_out: IntCounter,
    swapped_in: IntCounter,
    preemptions: IntCounter,
    tenant_preemptions: IntCounter,
    misses: IntCounterVec,
    missed_tokens: IntCounterVec,
    evictions: IntCounter,
    steps: IntCounter,
    drafted_rows: IntCounter,
    draft_tokens: IntCounter,
    accepted_drafts: IntCounter,
    /// By position, as many as a row can have drafts.
    accepted_by_position: Vec<IntCounter>,
    heartbeat_age: Gauge,
}

impl Metrics {
    /// Registers everything. `routes` are the patterns that requests are counted under.
    pub fn new<'a>(
        model_name: &str,
        info: &EngineInfo,
        routes: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let registry = Registry::new();
        let of = Registrar(&registry);
        let requests = of.counters(
            "requests_total",
            "Requests answered, by route pattern and status; 499: the client left before the headers.",
            &["route", "status"],
        );
        for route in routes {
            requests.with_label_values(&[route, "200"]);
        }
        let finished = of.counters(
            "choices_finished_total",
            "Choices that ended, by reason.",
            &["finished_reason"],
        );
        for reason in ["stop", "length", "abort", "error"] {
            finished.with_label_values(&[reason]);
        }
        let hosted_tools = of.counters(
            "hosted_tools_skipped_total",
            "Tools that requests offered and only a provider's own servers can run, by kind.",
            &["type"],
        );
        for kind in hosted::KINDS {
            hosted_tools.with_label_values(&[kind]);
        }
        let cache_config = of.gauges(
            "cache_config_info",
            "How the cache is cut; the value is always 1.",
            &["block_size", "num_gpu_blocks", "num_slots"],
        );
        cache_config
            .with_label_values(&[
                info.block_size.to_string(),
                info.num_blocks.to_string(),
                info.num_slots.to_string(),
            ])
            .set(1);
        let build = of.gauges(
            "build_info",
            "Version, device and arithmetic of this process; the value is always 1.",
            &["version", "device", "dtype"],
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), &info.device, &info.dtype])
            .set(1);
        of.gauge(
            "max_model_len_tokens",
            "Prompt plus output of one sequence at most.",
        )
        .set(info.max_model_len.into());
        of.gauge("weight_bytes", "Weights as stored.")
            .set(info.weight_bytes as i64);
        let memory = of.gauges(
            "memory_plan_bytes",
            "What memory is for: weights, KV blocks, state slots, both again in the host's memory, a step's workspace, and what is left to others.",
            &["part"],
        );
        for (part, bytes) in [
            ("weights", info.weight_bytes),
            ("blocks", u64::from(info.num_blocks) * info.block_bytes),
            ("slots", u64::from(info.num_slots) * info.slot_bytes),
            (
                "host_blocks",
                u64::from(info.num_host_blocks) * info.block_bytes,
            ),
            (
                "host_slots",
                u64::from(info.num_host_slots) * info.slot_bytes,
            ),
            ("workspace", info.workspace_bytes),
            ("reserve", info.reserve_bytes),
        ] {
            memory.with_label_values(&[part]).set(bytes as i64);
        }
        let by_position = of.counters(
            "accepted_draft_tokens_by_position_total",
            "Drafts that came true, by their position in their row, from 0.",
            &["position"],
        );
        let engine = EngineMetrics {
            running: of.gauge("requests_running", "Choices with a live state slot."),
            waiting: of.gauge(
                "requests_waiting",
                "Choices that wait for memory, preempted ones included.",
            ),
            kv_usage: of.float_gauge(
                "kv_cache_usage_ratio",
                "Share of the KV blocks that live sequences hold, 0 to 1.",
            ),
            blocks: of.gauges(
                "kv_blocks",
                "KV blocks by state: used by live sequences, cached for reuse only, or all there are.",
                &["state"],
            ),
            slots: of.gauges(
                "state_slots",
                "Mamba state slots by state: used by live sequences, cached snapshots, or all there are.",
                &["state"],
            ),
            host_blocks: of.gauges(
                "host_kv_blocks",
                "KV blocks in the host's memory by state: cached for reuse, or all there are.",
                &["state"],
            ),
            host_slots: of.gauges(
                "host_state_slots",
                "Mamba state slots in the host's memory by state: cached snapshots, or all there are.",
                &["state"],
            ),
            swapped_out: of.counter(
                "prefix_cache_swapped_out_total",
                "Snapshots moved to the host's memory for want of room on the device.",
            ),
            swapped_in: of.counter(
                "prefix_cache_swapped_in_total",
                "Hits whose snapshot was brought back from the host's memory.",
            ),
            preemptions: of.counter(
                "preemptions_total",
                "Sequences sent back to the queue for want of memory.",
            ),
            tenant_preemptions: of.counter(
                "tenant_preemptions_total",
                "Of these, those that made room for another tenant with less than its share.",
            ),
            misses: of.counters(
                "prefix_cache_misses_total",
                "Requests whose prefix hit could have been longer, by why it was not.",
                &["reason"],
            ),
            missed_tokens: of.counters(
                "prefix_cache_missed_tokens_total",
                "Prompt tokens that a longer hit would have spared, by why there was none.",
                &["reason"],
            ),
            evictions: of.counter(
                "prefix_cache_evictions_total",
                "Snapshots given up for want of memory.",
            ),
            steps: of.counter("engine_steps_total", "Steps that the engine ran."),
            drafted_rows: of.counter(
                "drafted_rows_total",
                "Rows of a step that ran with drafts of tokens to come.",
            ),
            draft_tokens: of.counter("draft_tokens_total", "Drafts that ran."),
            accepted_drafts: of.counter(
                "accepted_draft_tokens_total",
                "Drafts that ran and came true.",
            ),
            // A family without a value would have no help text.
            accepted_by_position: (0..info.max_drafts.max(1))
                .map(|position| by_position.with_label_values(&[&position.to_string()]))
                .collect(),
            heartbeat_age: of.float_gauge(
                "engine_heartbeat_age_seconds",
                "Since anything was computed, or an idle engine last turned. Large: it hangs.",
            ),
        };
        let dropped = of.counters(
            "trace_spans_dropped_total",
            "Spans that reached no collector: its queue here was full, or it did not take them.",
            &["reason"],
        );
        Self {
            generations: GenerationMetrics::new(&of),
            spans: SpanCounts {
                exported: of.counter(
                    "trace_spans_exported_total",
                    "Spans that the trace collector took.",
                ),
                dropped_full: dropped.with_label_values(&["queue_full"]),
                dropped_collector: dropped.with_label_values(&["collector"]),
            },
            requests,
            prompt_tokens: of.counter(
                "prompt_tokens_total",
                "Prompt tokens of admitted requests, as in usage.",
            ),
            generation_tokens: of
                .counter("generation_tokens_total", "Sampled tokens, as in usage."),
            cached_prompt_tokens: of.counter(
                "cached_prompt_tokens_total",
                "Prompt tokens that needed no computing, as in usage.",
            ),
            cancelled: of.counter(
                "requests_cancelled_total",
                "Generating requests whose client left before the end.",
            ),
            hosted_tools,
            finished,
            ttft: of.histogram(
                "time_to_first_token_seconds",
                "From a generating request's headers to its first token.",
                TTFT_BUCKETS,
            ),
            inter_token: of.histogram(
                "inter_token_latency_seconds",
                "Between two tokens of one choice.",
                INTER_TOKEN_BUCKETS,
            ),
            duration: of.histogram(
                "request_duration_seconds",
                "From a generating request's headers to the last byte of its answer.",
                DURATION_BUCKETS,
            ),
            connections: of.gauge("connections_open", "Open client connections."),
            failed_openings: of.counter(
                "connections_failed_total",
                "Connections that ended before HTTP began: a failed TLS handshake or PROXY header.",
            ),
            watchdog: of.counter(
                "watchdog_trips_total",
                "Times that the engine was taken for hanging; the process ends then.",
            ),
            panics: of.counter(
                "panics_contained_total",
                "Panics that ended one request and nothing else: bugs.",
            ),
            in_flight: of.gauge(
                "http_requests_in_flight",
                "Requests whose answer is not complete, of every route.",
            ),
            admission: AdmissionMetrics::new(&of),
            engine: Mutex::new(engine),
            model_name: model_name.to_owned(),
            registry,
        }
    }

    /// From the headers of a generating request to its first token.
    pub fn observe_ttft(&self, after: Duration) {
        self.ttft.observe(after.as_secs_f64());
    }

    /// Between two tokens of one choice.
    pub fn observe_inter_token(&self, gap: Duration) {
        self.inter_token.observe(gap.as_secs_f64());
    }

    /// A choice ended, and why: one of `stop`, `length`, `abort`, `error`.
    pub fn count_finished(&self, reason: &'static str) {
        self.finished.with_label_values(&[reason]).inc();
    }

    /// What a generation went through, once it is over.
    pub(crate) fn observe_generation(&self, timeline: &Timeline) {
        self.generations.observe(timeline);
    }

    /// A generation ended because the model's numbers were none.
    pub(crate) fn count_fault(&self) {
        self.generations.faulted.inc();
    }

    pub(crate) fn spans(&self) -> SpanCounts {
        self.spans.clone()
    }

    /// A tool of this kind was offered and left out: one of [`hosted::KINDS`].
    pub fn count_hosted_tool(&self, kind: &'static str) {
        self.hosted_tools.with_label_values(&[kind]).inc();
    }

    pub(crate) fn count_prompt(&self, prompt: u64, cached: u64) {
        self.prompt_tokens.inc_by(prompt);
        self.cached_prompt_tokens.inc_by(cached);
    }

    pub(crate) fn count_generated(&self, generated: u64) {
        self.generation_tokens.inc_by(generated);
    }

    pub(crate) fn count_cancelled(&self) {
        self.cancelled.inc();
    }

    pub(crate) fn count_request(&self, route: &'static str, status: StatusCode) {
        self.requests
            .with_label_values(&[route, status.as_str()])
            .inc();
    }

    pub(crate) fn observe_duration(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn connections(&self) -> &IntGauge {
        &self.connections
    }

    pub(crate) fn count_failed_opening(&self) {
        self.failed_openings.inc();
    }

    pub(crate) fn count_watchdog(&self) {
        self.watchdog.inc();
    }

    pub(crate) fn count_panic(&self) {
        self.panics.inc();
    }

    pub(crate) fn in_flight(&self) -> &IntGauge {
        &self.in_flight
    }

    /// The exposition format, with the engine's numbers as of now.
    pub fn render(&self, engine: &EngineHandle) -> String {
        let stats = engine.stats();
        self.engine.lock().refresh(&stats);
        let mut families = self.registry.gather();
        families.push(step_tokens(&stats.step_tokens));
        let aliases: Vec<_> = ALIASES
            .iter()
            .map(|(native, alias)| {
                let family = families
                    .iter()
                    .find(|family| family.name() == *native)
                    .expect("every aliased metric is registered and has a value");
                self.alias(family.clone(), alias)
            })
            .collect();
        families.extend(aliases);
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("families from the registry are well-formed");
        String::from_utf8(text).expect("names, help and labels are UTF-8")
    }

    fn alias(&self, mut family: MetricFamily, name: &str) -> MetricFamily {
        family.set_name(name.to_owned());
        for metric in family.mut_metric() {
            let mut labels = metric.take_label();
            for (name, value) in [("engine", "0"), ("model_name", &self.model_name)] {
                let mut label = LabelPair::default();
                label.set_name(name.to_owned());
                label.set_value(value.to_owned());
                labels.push(label);
            }
            metric.set_label(labels);
        }
        family
    }
}

impl EngineMetrics {
    fn refresh(&mut self, stats: &EngineStats) {
        let s = &stats.scheduler;
        self.running.set(s.num_running.into());
        self.waiting.set(s.num_waiting.into());
        let share = f64::from(s.num_blocks_used) / f64::from(s.num_blocks.max(1));
        self.kv_usage.set(share);
        for (gauges, values) in [
            (
                &self.blocks,
                [s.num_blocks_used, s.num_blocks_cached, s.num_blocks],
            ),
            (
                &self.slots,
                [s.num_slots_used, s.num_slots_cached, s.num_slots],
            ),
        ] {
            for (state, value) in ["used", "cached", "total"].into_iter().zip(values) {
                gauges.with_label_values(&[state]).set(value.into());
            }
        }
        for (gauges, values) in [
            (
                &self.host_blocks,
                [s.num_host_blocks_cached, s.num_host_blocks],
            ),
            (
                &self.host_slots,
                [s.num_host_slots_cached, s.num_host_slots],
            ),
        ] {
            for (state, value) in ["cached", "total"].into_iter().zip(values) {
                gauges.with_label_values(&[state]).set(value.into());
            }
        }
        raise(&self.swapped_out, s.num_swapped_out);
        raise(&self.swapped_in, s.num_swapped_in);
        raise(&self.preemptions, s.num_preemptions);
        raise(&self.tenant_preemptions, s.num_tenant_preemptions);
        for (counters, by) in [
            (&self.misses, &s.misses),
            (&self.missed_tokens, &s.missed_tokens),
        ] {
            for (reason, total) in [
                ("no_blocks", by.no_blocks),
                ("no_snapshot", by.no_snapshot),
                ("evicted", by.evicted),
                ("salt", by.salt),
            ] {
                raise(&counters.with_label_values(&[reason]), total);
            }
        }
        raise(&self.evictions, s.num_evictions);
        raise(&self.steps, s.num_steps);
        raise(&self.drafted_rows, s.num_drafted_rows);
        raise(&self.draft_tokens, s.num_draft_tokens);
        let accepted = &s.num_accepted_by_position;
        raise(&self.accepted_drafts, accepted.iter().sum());
        for (counter, total) in self.accepted_by_position.iter().zip(accepted) {
            raise(counter, *total);
        }
        self.heartbeat_age.set(stats.heartbeat_age.as_secs_f64());
    }
}

impl GenerationMetrics {
    fn new(of: &Registrar<'_>) -> Self {
        Self {
            queue: of.histogram(
                "request_queue_time_seconds",
                "From a generation's submission to its first step.",
                DURATION_BUCKETS,
            ),
            prefill: of.histogram(
                "request_prefill_time_seconds",
                "From a generation's first step to its first token.",
                DURATION_BUCKETS,
            ),
            decode: of.histogram(
                "request_decode_time_seconds",
                "From a generation's first token to its last.",
                DURATION_BUCKETS,
            ),
            inference: of.histogram(
                "request_inference_time_seconds",
                "From a generation's first step to its last token.",
                DURATION_BUCKETS,
            ),
            per_token: of.histogram(
                "request_time_per_output_token_seconds",
                "Mean time between two tokens of one choice, one value for each generation.",
                INTER_TOKEN_BUCKETS,
            ),
            prompt_tokens: of.histogram(
                "request_prompt_tokens",
                "Prompt tokens of a generation.",
                LENGTH_BUCKETS,
            ),
            generation_tokens: of.histogram(
                "request_generation_tokens",
                "Sampled tokens of a generation.",
                LENGTH_BUCKETS,
            ),
            max_tokens: of.histogram(
                "request_params_max_tokens",
                "Most tokens that a choice was allowed.",
                LENGTH_BUCKETS,
            ),
            choices: of.histogram(
                "request_params_n",
                "Choices for each prompt, candidates included.",
                CHOICES_BUCKETS,
            ),
            faulted: of.counter(
                "requests_faulted_total",
                "Generations that ended because the model's numbers were none.",
            ),
        }
    }

    fn observe(&self, timeline: &Timeline) {
        let decoded = timeline.decoded();
        for (histogram, took) in [
            (&self.queue, timeline.queued()),
            (&self.prefill, timeline.prefilled()),
            (&self.decode, decoded),
        ] {
            if let Some(took) = took {
                histogram.observe(took.as_secs_f64());
            }
        }
        if let (Some(prefill), Some(decode)) = (timeline.prefilled(), decoded) {
            self.inference.observe((prefill + decode).as_secs_f64());
        }
        let usage = &timeline.usage;
        let num_choices = timeline.finishes.len().max(1) as f64;
        let num_gaps = usage.completion as f64 / num_choices - 1.0;
        if let (Some(decode), true) = (decoded, num_gaps > 0.0) {
            self.per_token.observe(decode.as_secs_f64() / num_gaps);
        }
        // What was never read counts nowhere else either.
        if usage.prompt > 0 {
            self.prompt_tokens.observe(usage.prompt as f64);
        }
        if usage.completion > 0 {
            self.generation_tokens.observe(usage.completion as f64);
        }
        if let Some(sampling) = &timeline.sampling {
            self.max_tokens.observe(sampling.max_tokens.into());
        }
        self.choices.observe(timeline.num_choices as f64);
    }
}

/// A histogram that somebody else keeps.
fn step_tokens(steps: &StepTokens) -> MetricFamily {
    let mut histogram = proto::Histogram::default();
    let mut count = 0;
    let bounds = StepTokens::BOUNDS.iter().zip(steps.counts);
    let buckets = bounds.map(|(bound, num)| {
        count += num;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(*bound as f64);
        bucket.set_cumulative_count(count);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(steps.counts.iter().sum());
    histogram.set_sample_sum(steps.sum as f64);
    let mut metric = proto::Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name("nemoserve_step_tokens".into());
    family.set_help("Tokens of a step, over all sequences.".into());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(vec![metric]);
    family
}

/// Brings a counter up to a total that somebody else keeps.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Makes and registers metrics under the prefix.
struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<C>,
    ) -> C {
        let metric = metric.expect("names and labels are literals that fit the grammar");
        self.0
            .register(Box::new(metric.clone()))
            .expect("every name is registered once");
        metric
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("nemoserve_{name}"), help)
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(Self::opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Self::opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(Self::opts(name, help)))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(Self::opts(name, help)))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Self::opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts))
    }
}
