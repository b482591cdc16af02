//! A trace of every request: how it came, waited, was read and was answered.
//!
//! A request's spans are made when it is over, out of the times that it left behind, so that nothing
//! is held or decided on its way. Spans hold names, counts and times, and never what was said, nor a
//! key. What a caller's `traceparent` says about sampling holds; else a share is sampled.
//!
//! ```text
//! POST /v1/chat/completions     server: from the headers to the last byte
//!   queue                       until its first step
//!   prefill                     until its first token
//!   decode                      until its last token
//! ```

mod export;
mod spans;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Uri};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use self::export::{Exporter, Queue};
pub(crate) use self::spans::Exchange;
use crate::metrics::SpanCounts;
use crate::transport::{self, Client};

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// The collector's OTLP endpoint, to which `/v1/traces` is added. `None`: no traces. Default `None`.
    pub endpoint: Option<String>,
    /// PEM of certificates to trust besides the public authorities', if the endpoint is https. Default
    /// `None`.
    pub certificate: Option<PathBuf>,
    /// Share of requests to trace among those whose caller leaves it open. Default 1.
    pub ratio: f64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            certificate: None,
            ratio: 1.0,
        }
    }
}

impl TraceConfig {
    /// Says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(format!(
                "--trace-ratio is {}, not a share from 0 to 1",
                self.ratio
            ));
        }
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| format!("--otlp-endpoint {endpoint}: {error}"))?;
        let is_spoken = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_spoken || uri.host().is_none_or(str::is_empty) {
            return Err(format!(
                "--otlp-endpoint {endpoint}: expected http://HOST:PORT or https://HOST:PORT"
            ));
        }
        self.client().map(drop)
    }

    fn client(&self) -> Result<Client, String> {
        transport::client("--otlp-certificate", self.certificate.as_deref())
    }
}

/// Makes spans and sends them off. Without an endpoint it only reads what callers say.
pub(crate) struct Traces {
    tracer: Option<SdkTracer>,
    exporter: Option<Exporter>,
}

/// One request's part: who called, and where its spans go.
pub(crate) struct Trace {
    traces: Arc<Traces>,
    caller: Context,
    /// Probes and scrapes are not worth a trace.
    is_wanted: bool,
}

impl Traces {
    /// Sends from a task of its own. Call it inside a runtime.
    pub(crate) fn start(config: &TraceConfig, counts: SpanCounts) -> Self {
        let none = Self {
            tracer: None,
            exporter: None,
        };
        let Some(endpoint) = &config.endpoint else {
            return none;
        };
        let resource = export::resource();
        let started = config.client().and_then(|client| {
            let started = Exporter::start(endpoint, client, &resource, counts);
            started.map_err(|error| error.to_string())
        });
        let (queue, exporter) = match started {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(error, "no traces: the exporter cannot be set up");
                return none;
            }
        };
        let sampler = Sampler::TraceIdRatioBased(config.ratio);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource)
            .with_span_processor::<Queue>(queue)
            .build();
        Self {
            tracer: Some(provider.tracer("nemoserve")),
            exporter: Some(exporter),
        }
    }

    /// The beginning of a request's trace.
    pub(crate) fn begin(self: &Arc<Self>, headers: &HeaderMap, is_wanted: bool) -> Trace {
        let caller = if headers.contains_key("traceparent") {
            let none = Context::new();
            TraceContextPropagator::new().extract_with_context(&none, &HeaderExtractor(headers))
        } else {
            Context::new()
        };
        Trace {
            traces: Arc::clone(self),
            caller,
            is_wanted,
        }
    }

    /// Sends what is waiting, for so long at most.
    pub(crate) async fn finish(&self, at_most: Duration) {
        if let Some(exporter) = &self.exporter {
            exporter.finish(at_most).await;
        }
    }
}

impl Trace {
    /// Makes the spans of a request that is over. Returns the trace that it is part of: ours, or else its
    /// caller's.
    pub(crate) fn end(&self, exchange: &Exchange<'_>) -> Option<SpanContext> {
        let ours = match &self.traces.tracer {
            Some(tracer) if self.is_wanted => Some(spans::make(tracer, &self.caller, exchange)),
            _ => None,
        };
        ours.or_else(|| Some(self.caller.span().span_context().clone()))
            .filter(SpanContext::is_valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_and_shares_are_checked() {
        let check = |endpoint: Option<&str>, ratio| {
            let endpoint = endpoint.map(str::to_owned);
            let config = TraceConfig {
                endpoint,
                ratio,
                ..TraceConfig::default()
            };
            config.check()
        };
        for good in [
            None,
            Some("http://127.0.0.1:4318"),
            Some("http://otel:4318/"),
            Some("https://otel:4318"),
        ] {
            assert_eq!(check(good, 0.5), Ok(()), "{good:?}");
        }
        for bad in [
            "",
            "127.0.0.1:4318",
            "ftp://x:4318",
            "http://",
            "http://a b",
            "grpc://x",
        ] {
            let error = check(Some(bad), 1.0).expect_err(bad);
            assert!(error.contains("--otlp-endpoint"), "{error}");
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            let error = check(None, bad).expect_err("no share");
            assert!(error.contains("--trace-ratio"), "{error}");
        }
    }
}
