//! Who was let in and who was not. Keys are labelled by their names in the key file, so there are as many
//! as somebody wrote there.

use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Registrar;
use crate::admission::Cause;

/// From microseconds to what would be too long.
const REFUSAL_BUCKETS: &[f64] = &[
    0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.1,
];

/// Counters and gauges of the door.
pub(crate) struct AdmissionMetrics {
    pub(crate) level: IntGauge,
    pub(crate) queued_requests: IntGauge,
    pub(crate) queued_tokens: IntGauge,
    pub(crate) queue_age: Gauge,
    shed: IntCounterVec,
    refusal: Histogram,
    reloads: IntCounterVec,
    is_stale: IntGauge,
    key_requests: IntCounterVec,
    key_shed: IntCounterVec,
    key_load: IntGaugeVec,
    key_prompt: IntCounterVec,
    key_cached: IntCounterVec,
    key_generation: IntCounterVec,
}

impl AdmissionMetrics {
    pub(super) fn new(of: &Registrar<'_>) -> Self {
        let shed = of.counters(
            "requests_shed_total",
            "Requests refused or cut off by a limit, by cause.",
            &["cause"],
        );
        for cause in Cause::ALL {
            shed.with_label_values(&[cause.label()]);
        }
        let reloads = of.counters(
            "key_file_reloads_total",
            "Times that the key file was read again, by outcome; failed: the keys from before hold on.",
            &["outcome"],
        );
        for outcome in ["ok", "failed"] {
            reloads.with_label_values(&[outcome]);
        }
        Self {
            level: of.gauge(
                "degradation_level",
                "What is given up: 0 nothing, 1 drafts and low priority, 2 all but high priority, 3 new requests.",
            ),
            queued_requests: of.gauge(
                "requests_without_token",
                "Admitted requests that have no token yet, those being rendered included.",
            ),
            queued_tokens: of.gauge(
                "queued_prompt_tokens",
                "Prompt tokens of requests that have no token yet, estimated until they are counted.",
            ),
            queue_age: of.float_gauge(
                "queue_age_seconds",
                "Since the oldest request came with which the engine has not begun.",
            ),
            shed,
            refusal: of.histogram(
                "refusal_seconds",
                "From a request's headers to the decision to refuse it, where headers decide.",
                REFUSAL_BUCKETS,
            ),
            reloads,
            is_stale: of.gauge(
                "key_file_stale",
                "1 if the key file could not be used when it was last read again.",
            ),
            key_requests: of.counters(
                "key_requests_total",
                "Requests let in, by key.",
                &["key"],
            ),
            key_shed: of.counters(
                "key_requests_shed_total",
                "Requests refused or cut off by a limit, by key and cause.",
                &["key", "cause"],
            ),
            key_load: of.gauges(
                "key_requests_in_flight",
                "Requests let in whose answer is not complete, by key.",
                &["key"],
            ),
            key_prompt: of.counters(
                "key_prompt_tokens_total",
                "Prompt tokens, as in usage, by key.",
                &["key"],
            ),
            key_cached: of.counters(
                "key_cached_prompt_tokens_total",
                "Prompt tokens that needed no computing, as in usage, by key.",
                &["key"],
            ),
            key_generation: of.counters(
                "key_generation_tokens_total",
                "Sampled tokens, as in usage, by key.",
                &["key"],
            ),
        }
    }

    pub(crate) fn count_shed(&self, cause: Cause, key: Option<&str>) {
        self.shed.with_label_values(&[cause.label()]).inc();
        if let Some(key) = key {
            let counter = self.key_shed.with_label_values(&[key, cause.label()]);
            counter.inc();
        }
    }

    pub(crate) fn observe_refusal(&self, after: Duration) {
        self.refusal.observe(after.as_secs_f64());
    }

    pub(crate) fn count_reload(&self, succeeded: bool) {
        let outcome = if succeeded { "ok" } else { "failed" };
        self.reloads.with_label_values(&[outcome]).inc();
        self.is_stale.set(i64::from(!succeeded));
    }

    pub(crate) fn set_load(&self, key: &str, requests: u64) {
        self.key_load.with_label_values(&[key]).set(requests as i64);
    }

    pub(crate) fn count_entry(&self, key: Option<&str>) {
        add(&self.key_requests, key, 1);
    }

    pub(crate) fn count_prompt(&self, key: Option<&str>, prompt: u64, cached: u64) {
        add(&self.key_prompt, key, prompt);
        add(&self.key_cached, key, cached);
    }

    pub(crate) fn count_generated(&self, key: Option<&str>, generated: u64) {
        add(&self.key_generation, key, generated);
    }
}

fn add(counters: &IntCounterVec, key: Option<&str>, number: u64) {
    if let Some(key) = key {
        let counter: IntCounter = counters.with_label_values(&[key]);
        counter.inc_by(number);
    }
}
