//! `/metrics`: names, types, and labels that no request can multiply.

use crate::harness::{Server, completion, metric_in, request};

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
    ("nemoserve_requests_faulted_total", "counter"),
    ("nemoserve_request_queue_time_seconds", "histogram"),
    ("nemoserve_request_prefill_time_seconds", "histogram"),
    ("nemoserve_request_decode_time_seconds", "histogram"),
    ("nemoserve_request_inference_time_seconds", "histogram"),
    (
        "nemoserve_request_time_per_output_token_seconds",
        "histogram",
    ),
    ("nemoserve_request_prompt_tokens", "histogram"),
    ("nemoserve_request_generation_tokens", "histogram"),
    ("nemoserve_request_params_max_tokens", "histogram"),
    ("nemoserve_request_params_n", "histogram"),
    ("nemoserve_step_tokens", "histogram"),
    ("nemoserve_engine_heartbeat_age_seconds", "gauge"),
    ("nemoserve_panics_contained_total", "counter"),
    ("nemoserve_trace_spans_exported_total", "counter"),
    ("nemoserve_trace_spans_dropped_total", "counter"),
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
    ("vllm:request_queue_time_seconds", "histogram"),
    ("vllm:request_prefill_time_seconds", "histogram"),
    ("vllm:request_decode_time_seconds", "histogram"),
    ("vllm:request_inference_time_seconds", "histogram"),
    ("vllm:request_time_per_output_token_seconds", "histogram"),
    ("vllm:request_prompt_tokens", "histogram"),
    ("vllm:request_generation_tokens", "histogram"),
    ("vllm:request_params_max_tokens", "histogram"),
    ("vllm:request_params_n", "histogram"),
    ("vllm:iteration_tokens_total", "histogram"),
    ("vllm:corrupted_requests_total", "counter"),
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

/// What gateways and autoscalers bind to: names, and what they count.
#[tokio::test]
async fn gateways_find_their_gauges() {
    let server = Server::start().await;
    server.script.hold();
    let mut wires = Vec::new();
    for _ in 0..12 {
        let mut wire = server.wire().await;
        let body = completion(60, false);
        wire.send(request("POST", "/v1/completions", "", &body))
            .await;
        wires.push(wire);
    }
    let labels = "{engine=\"0\",model_name=\"test-model\"}";
    let running = format!("vllm:num_requests_running{labels}");
    let waiting = format!("vllm:num_requests_waiting{labels}");
    // Eight run at once, whoever came first; nobody ends within fifty steps.
    let mut text = String::new();
    for _ in 0..50 {
        text = server.get("/metrics").await.body;
        let counts = (metric_in(&text, &running), metric_in(&text, &waiting));
        if counts == (Some(8.0), Some(4.0)) {
            break;
        }
        server.script.allow(1);
    }
    assert_eq!(metric_in(&text, &running), Some(8.0), "{text}");
    assert_eq!(metric_in(&text, &waiting), Some(4.0), "{text}");
    let usage = metric_in(&text, &format!("vllm:kv_cache_usage_perc{labels}"));
    assert!(
        usage.is_some_and(|usage| usage > 0.0 && usage < 1.0),
        "{usage:?}"
    );
    let config = text
        .lines()
        .find(|line| line.starts_with("vllm:cache_config_info{"));
    let config = config.expect("it is there");
    for label in ["block_size=\"32\"", "num_gpu_blocks=\"8191\""] {
        assert!(config.contains(label), "{config}");
    }
    server.script.release();
    for mut wire in wires {
        assert_eq!(wire.reply().await.status, 200);
    }
    let text = server.get("/metrics").await.body;
    let count = |name: &str| metric_in(&text, &format!("{name}_count"));
    for name in ["queue_time", "prefill_time", "decode_time"] {
        let name = format!("nemoserve_request_{name}_seconds");
        assert_eq!(count(&name), Some(12.0), "{name}");
    }
    assert_eq!(count("nemoserve_request_prompt_tokens"), Some(12.0));
    let tokens = metric_in(&text, "nemoserve_request_generation_tokens_sum");
    assert_eq!(tokens, Some(720.0));
    // Prompts of two tokens, and each token drawn but the last of each runs once more.
    assert_eq!(
        metric_in(&text, "nemoserve_step_tokens_sum"),
        Some(12.0 * (2.0 + 59.0))
    );
    assert_eq!(
        count("nemoserve_step_tokens"),
        metric_in(&text, "nemoserve_engine_steps_total")
    );
}
