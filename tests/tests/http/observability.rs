//! `/metrics`: names, types, and labels that no request can multiply.

use crate::harness::{Server, completion, metric_in};

const NATIVE: &[(&str, &str)] = &[
    ("nemoserve_requests_total", "counter"),
    ("nemoserve_prompt_tokens_total", "counter"),
    ("nemoserve_generation_tokens_total", "counter"),
    ("nemoserve_cached_prompt_tokens_total", "counter"),
    ("nemoserve_requests_cancelled_total", "counter"),
    ("nemoserve_requests_running", "gauge"),
    ("nemoserve_requests_waiting", "gauge"),
    ("nemoserve_kv_cache_usage_ratio", "gauge"),
    ("nemoserve_state_slots", "gauge"),
    ("nemoserve_host_kv_blocks", "gauge"),
    ("nemoserve_host_state_slots", "gauge"),
    ("nemoserve_prefix_cache_swapped_out_total", "counter"),
    ("nemoserve_prefix_cache_swapped_in_total", "counter"),
    ("nemoserve_prefix_cache_misses_total", "counter"),
    ("nemoserve_prefix_cache_missed_tokens_total", "counter"),
    ("nemoserve_prefix_cache_evictions_total", "counter"),
    ("nemoserve_degradation_level", "gauge"),
    ("nemoserve_requests_shed_total", "counter"),
    ("nemoserve_refusal_seconds", "histogram"),
    ("nemoserve_requests_without_token", "gauge"),
    ("nemoserve_queued_prompt_tokens", "gauge"),
    ("nemoserve_queue_age_seconds", "gauge"),
    ("nemoserve_key_file_reloads_total", "counter"),
    ("nemoserve_key_file_stale", "gauge"),
    ("nemoserve_time_to_first_token_seconds", "histogram"),
    ("nemoserve_inter_token_latency_seconds", "histogram"),
    ("nemoserve_request_duration_seconds", "histogram"),
    ("vllm:num_requests_running", "gauge"),
    ("vllm:num_requests_waiting", "gauge"),
    ("vllm:kv_cache_usage_perc", "gauge"),
    ("vllm:num_preemptions_total", "counter"),
    ("vllm:prompt_tokens_total", "counter"),
    ("vllm:generation_tokens_total", "counter"),
    ("vllm:prefix_cache_queries_total", "counter"),
    ("vllm:prefix_cache_hits_total", "counter"),
    ("vllm:request_success_total", "counter"),
    ("vllm:time_to_first_token_seconds", "histogram"),
    ("vllm:inter_token_latency_seconds", "histogram"),
    ("vllm:e2e_request_latency_seconds", "histogram"),
    ("vllm:cache_config_info", "gauge"),
    ("vllm:spec_decode_num_drafts_total", "counter"),
    ("vllm:spec_decode_num_draft_tokens_total", "counter"),
    ("vllm:spec_decode_num_accepted_tokens_total", "counter"),
    (
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        "counter",
    ),
];

#[tokio::test]
async fn every_family_has_help_and_type_from_the_start() {
    let server = Server::start().await;
    let reply = server.get("/metrics").await;
    assert!(
        reply
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    for (name, kind) in NATIVE {
        assert!(reply.body.contains(&format!("# HELP {name} ")), "{name}");
        assert!(
            reply.body.contains(&format!("# TYPE {name} {kind}\n")),
            "{name}"
        );
    }
}

#[tokio::test]
async fn tokens_are_counted_as_in_usage() {
    let server = Server::start().await;
    let reply = server.post("/v1/completions", &completion(7, false)).await;
    let usage = reply.json()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 7, "{reply:?}");
    let text = server.get("/metrics").await.body;
    let count = |name: &str| metric_in(&text, name);
    let prompt = usage["prompt_tokens"].as_f64();
    assert_eq!(count("nemoserve_prompt_tokens_total"), prompt);
    assert_eq!(count("nemoserve_generation_tokens_total"), Some(7.0));
    let labels = "{engine=\"0\",model_name=\"test-model\"}";
    assert_eq!(
        count(&format!("vllm:generation_tokens_total{labels}")),
        Some(7.0)
    );
    assert_eq!(
        count("nemoserve_time_to_first_token_seconds_count"),
        Some(1.0)
    );
    assert_eq!(count("nemoserve_request_duration_seconds_count"), Some(1.0));
    let finished = "nemoserve_choices_finished_total{finished_reason=\"length\"}";
    assert_eq!(count(finished), Some(1.0));
}

#[tokio::test]
async fn no_request_can_invent_a_label() {
    let server = Server::start().await;
    for n in 0..50 {
        server.get(&format!("/probe/{n}")).await;
        server.get(&format!("/v1/models/{n}")).await;
        server
            .request("BREW", "/health", &format!("x-request-id: {n}\r\n"), "")
            .await;
    }
    let text = server.get("/metrics").await.body;
    assert!(
        !text.contains("probe") && !text.contains("models/1"),
        "{text}"
    );
    let unmatched = "nemoserve_requests_total{route=\"unmatched\",status=\"404\"}";
    assert_eq!(metric_in(&text, unmatched), Some(50.0));
}
