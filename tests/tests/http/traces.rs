//! Traces: what a collector is sent, for whom, and that nobody waits for it.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nemoserve::state::ServerConfig;
use nemoserve::traces::TraceConfig;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use rcgen::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::harness::{Server, completion, eventually, soon};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

type Exports = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// Takes whatever is sent.
struct Collector {
    scheme: &'static str,
    address: SocketAddr,
    exports: Exports,
}

impl Collector {
    async fn start() -> Self {
        Self::behind(None).await
    }

    async fn behind(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let collector = Self {
            scheme: if tls.is_some() { "https" } else { "http" },
            address: listener.local_addr().expect("it is bound"),
            exports: Arc::default(),
        };
        let exports = Arc::clone(&collector.exports);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, exports) = (tls.clone(), Arc::clone(&exports));
                tokio::spawn(async move {
                    let Some(tls) = tls else {
                        return answer(stream, exports).await;
                    };
                    // Who does not know the certificate leaves.
                    if let Ok(stream) = tls.accept(stream).await {
                        answer(stream, exports).await;
                    }
                });
            }
        });
        collector
    }

    fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    fn spans(&self) -> Vec<Span> {
        let exports = self.exports.lock().expect("nobody panics in here");
        let resources = exports.iter().flat_map(|export| &export.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn resource(&self) -> Resource {
        let exports = self.exports.lock().expect("nobody panics in here");
        let resource = exports[0].resource_spans[0].resource.clone();
        resource.expect("it says who sends")
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: S, exports: Exports) {
    let service = service_fn(move |request| take(request, Arc::clone(&exports)));
    let server = hyper::server::conn::http1::Builder::new();
    // Servers leave when they end.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn take(
    request: Request<Incoming>,
    exports: Exports,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request
        .into_body()
        .collect()
        .await
        .expect("it is sent whole");
    let export = ExportTraceServiceRequest::decode(body.to_bytes()).expect("it is protobuf");
    exports.lock().expect("nobody panics in here").push(export);
    Ok(Response::new(Full::default()))
}

async fn traced(endpoint: String, ratio: f64) -> Server {
    Server::configured(ServerConfig {
        api_keys: vec!["sk-secret".into()],
        traces: TraceConfig {
            endpoint: Some(endpoint),
            ratio,
            ..TraceConfig::default()
        },
        ..ServerConfig::default()
    })
    .await
}

/// Everything that waits is sent when the server ends.
async fn end(mut server: Server) {
    server.stop();
    server.outcome().await.expect("it drains");
}

fn headers(traceparent: &str) -> String {
    format!(
        "authorization: Bearer sk-secret\r\nx-request-id: mine\r\n{traceparent}tracestate: a=b\r\n"
    )
}

fn from_caller(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\n")
}

fn hex(id: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).expect("half a byte");
    let halves = id.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    halves.map(digit).collect()
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found?.value.as_ref()?.value.as_ref()
}

fn text(text: &str) -> Value {
    Value::StringValue(text.into())
}

#[tokio::test]
async fn a_request_is_one_trace_with_its_stages() {
    let collector = Collector::start().await;
    let server = traced(collector.endpoint(), 0.0).await;
    let body = r#"{"model":"test-model","prompt":"SECRETPROMPT","max_tokens":7,"ignore_eos":true,"temperature":0.5}"#;
    let reply = server
        .request(
            "POST",
            "/v1/completions",
            &headers(&from_caller("01")),
            body,
        )
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let (usage, id) = (reply.json()["usage"].clone(), reply.json()["id"].clone());
    end(server).await;

    let resource = collector.resource();
    assert_eq!(
        attribute(&resource.attributes, "service.name"),
        Some(&text("nemoserve"))
    );
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "{spans:?}");
    let named = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no {name}: {spans:?}"))
    };
    let server = named("POST /v1/completions");
    assert_eq!(server.kind, SpanKind::Server as i32);
    assert_eq!(hex(&server.trace_id), TRACE);
    assert_eq!(hex(&server.parent_span_id), PARENT);
    assert_eq!(server.trace_state, "a=b");
    let prompt_tokens = usage["prompt_tokens"].as_i64().expect("a number");
    let is = |key: &str, value: Value| {
        assert_eq!(attribute(&server.attributes, key), Some(&value), "{key}");
    };
    is("http.request.method", text("POST"));
    is("http.route", text("/v1/completions"));
    is("http.response.status_code", Value::IntValue(200));
    is("nemoserve.request_id", text("mine"));
    is("gen_ai.operation.name", text("text_completion"));
    is("gen_ai.request.model", text("test-model"));
    is("gen_ai.response.model", text("test-model"));
    is("gen_ai.response.id", text(id.as_str().expect("an id")));
    is("gen_ai.usage.input_tokens", Value::IntValue(prompt_tokens));
    is("gen_ai.usage.output_tokens", Value::IntValue(7));
    is("gen_ai.request.max_tokens", Value::IntValue(7));
    is("gen_ai.request.temperature", Value::DoubleValue(0.5));
    let Some(Value::ArrayValue(finishes)) =
        attribute(&server.attributes, "gen_ai.response.finish_reasons")
    else {
        panic!("no finish reasons: {server:?}");
    };
    let length = AnyValue {
        value: Some(text("length")),
    };
    assert_eq!(finishes.values, [length]);

    // One after the other, within the server's.
    let mut at = server.start_time_unix_nano;
    for stage in ["queue", "prefill", "decode"].map(named) {
        assert_eq!(stage.trace_id, server.trace_id);
        assert_eq!(stage.parent_span_id, server.span_id);
        assert_eq!(stage.kind, SpanKind::Internal as i32);
        assert!(stage.start_time_unix_nano >= at, "{spans:?}");
        assert!(stage.end_time_unix_nano >= stage.start_time_unix_nano);
        at = stage.end_time_unix_nano;
    }
    assert!(server.end_time_unix_nano >= at);

    let said = format!("{:?}", collector.exports.lock().expect("it is whole"));
    for secret in ["SECRETPROMPT", "sk-secret"] {
        assert!(!said.contains(secret), "{secret} was sent: {said}");
    }
}

#[tokio::test]
async fn callers_decide_and_else_the_ratio() {
    let collector = Collector::start().await;
    for (ratio, traceparent, is_traced) in [
        (0.0, String::new(), false),
        (1.0, String::new(), true),
        (1.0, from_caller("00"), false),
        (0.0, from_caller("01"), true),
        // What cannot be read is no parent.
        (1.0, "traceparent: 00-nonsense\r\n".to_owned(), true),
        (0.0, "traceparent: 00-nonsense\r\n".to_owned(), false),
    ] {
        let before = collector.spans().len();
        let server = traced(collector.endpoint(), ratio).await;
        let reply = server
            .request(
                "POST",
                "/v1/completions",
                &headers(&traceparent),
                &completion(2, true),
            )
            .await;
        assert_eq!(reply.status, 200);
        // Probes and scrapes are not worth a trace.
        server.get("/health").await;
        server.get("/metrics").await;
        end(server).await;
        let num_new = collector.spans().len() - before;
        let expected = if is_traced { 4 } else { 0 };
        assert_eq!(num_new, expected, "{ratio} {traceparent:?}");
    }
}

#[tokio::test]
async fn refusals_and_failures_have_their_spans() {
    let collector = Collector::start().await;
    let server = traced(collector.endpoint(), 1.0).await;
    let refused = server.post("/v1/completions", &completion(2, false)).await;
    assert_eq!(refused.status, 401);
    server.script.fail();
    let failed = server
        .request(
            "POST",
            "/v1/completions",
            &headers(""),
            &completion(2, false),
        )
        .await;
    assert_eq!(failed.status, 500);
    server.outcome().await.expect_err("the engine has failed");
    let spans = collector.spans();
    let of_status = |status: i64| {
        let has = |span: &&Span| {
            let found = attribute(&span.attributes, "http.response.status_code");
            found == Some(&Value::IntValue(status))
        };
        let found = spans.iter().find(has);
        found.unwrap_or_else(|| panic!("no span of {status}: {spans:?}"))
    };
    let code = |span: &Span| span.status.as_ref().map_or(0, |status| status.code);
    assert_eq!(
        code(of_status(401)),
        0,
        "a client's mistake is no error of ours"
    );
    assert_eq!(code(of_status(500)), 2);
    assert_eq!(
        attribute(&of_status(500).attributes, "error.type"),
        Some(&text("500"))
    );
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_is_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let deaf = format!("http://{}", listener.local_addr().expect("it is bound"));
    // One that refuses, and one that takes connections and never answers.
    for endpoint in ["http://127.0.0.1:1".to_owned(), deaf] {
        let server = traced(endpoint.clone(), 1.0).await;
        for _ in 0..20 {
            let reply = server
                .request(
                    "POST",
                    "/v1/completions",
                    &headers(""),
                    &completion(2, false),
                )
                .await;
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        if endpoint.ends_with(":1") {
            let dropped = "nemoserve_trace_spans_dropped_total{reason=\"collector\"}";
            soon("drops are counted", async {
                while server.metric(dropped).await < Some(80.0) {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        end(server).await;
    }
}

#[tokio::test]
async fn exports_are_counted() {
    let collector = Collector::start().await;
    let server = traced(collector.endpoint(), 1.0).await;
    let reply = server
        .request(
            "POST",
            "/v1/completions",
            &headers(""),
            &completion(2, false),
        )
        .await;
    assert_eq!(reply.status, 200);
    eventually("spans arrive by themselves", || {
        collector.spans().len() == 4
    })
    .await;
    server
        .metric_becomes("nemoserve_trace_spans_exported_total", 4.0)
        .await;
}

/// A certificate that has signed itself, written to `path`.
fn signed_by_itself(path: &Path) -> TlsAcceptor {
    let names = vec!["127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).expect("a certificate");
    fs::write(path, cert.pem()).expect("writable");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("the key is the certificate's");
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_collector_over_tls_is_sent_spans_if_its_certificate_is_known() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("collector.pem");
    let collector = Collector::behind(Some(signed_by_itself(&path))).await;
    let dropped = "nemoserve_trace_spans_dropped_total{reason=\"collector\"}";
    for (certificate, counter) in [
        (Some(path), "nemoserve_trace_spans_exported_total"),
        (None, dropped),
    ] {
        let server = Server::configured(ServerConfig {
            traces: TraceConfig {
                endpoint: Some(collector.endpoint()),
                certificate,
                ..TraceConfig::default()
            },
            ..ServerConfig::default()
        })
        .await;
        let reply = server.post("/v1/completions", &completion(2, false)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        server.metric_becomes(counter, 4.0).await;
        end(server).await;
        assert_eq!(collector.spans().len(), 4, "{counter}");
    }
}
