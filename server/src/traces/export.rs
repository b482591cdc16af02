//! Spans to the collector, in batches, by a task that nobody waits for.
//!
//! Between requests and that task is a queue of bounded length. When the collector is slow or away it
//! fills, and what does not fit is counted and gone: serving goes on as if nothing were.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig as _,
    WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::metrics::SpanCounts;
use crate::transport::{Client, why};

/// Spans that wait for the collector; a request has four at most.
const QUEUE_LEN: usize = 8192;
/// Spans sent at once.
const MAX_BATCH: usize = 512;
/// How long a span waits for company.
const LINGER: Duration = Duration::from_secs(1);
/// What the collector gets for a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of its answer that are read.
const MAX_ANSWER: usize = 64 << 10;
/// After a failure the next batch waits so long, and twice as long each time up to the second.
const BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Who we are, to the collector: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are heard.
pub(super) fn resource() -> Resource {
    let service = Key::from_static_str("service.name");
    let said = Resource::builder().build();
    let is_named = said
        .get(&service)
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if is_named {
        builder.build()
    } else {
        builder.with_service_name("nemoserve").build()
    }
}

/// Where finished spans go.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: SpanCounts,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.counts.dropped_full.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
pub(super) struct Exporter {
    finishing: watch::Sender<bool>,
    /// Closed when the task has ended.
    ended: watch::Sender<()>,
}

impl Exporter {
    pub(super) fn start(
        endpoint: &str,
        client: Client,
        resource: &Resource,
        counts: SpanCounts,
    ) -> Result<(Queue, Self), ExporterBuildError> {
        let trouble = Trouble::default();
        let collector = Collector {
            client,
            trouble: Arc::clone(&trouble),
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            // Its own retries would put a thread of ours to sleep.
            .with_retry_policy(RetryPolicy::disabled())
            .build()?;
        exporter.set_resource(resource);
        let (spans, waiting) = mpsc::channel(QUEUE_LEN);
        let (finishing, finish) = watch::channel(false);
        let (ended, alive) = watch::channel(());
        let task = Task {
            exporter,
            waiting,
            finish,
            counts: counts.clone(),
            trouble,
            backoff: Duration::ZERO,
        };
        tokio::spawn(async move {
            let _alive = alive;
            task.run().await;
        });
        Ok((Queue { spans, counts }, Self { finishing, ended }))
    }

    /// Sends what waits and ends the task, in so long at most.
    pub(super) async fn finish(&self, at_most: Duration) {
        self.finishing.send_replace(true);
        // Beyond that they are lost with the process.
        let _ = timeout(at_most, self.ended.closed()).await;
    }
}

struct Task {
    exporter: SpanExporter,
    waiting: mpsc::Receiver<SpanData>,
    finish: watch::Receiver<bool>,
    counts: SpanCounts,
    trouble: Trouble,
    /// Nothing while the collector listens.
    backoff: Duration,
}

impl Task {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let finish = self.finish.clone();
        loop {
            tokio::select! {
                num = self.waiting.recv_many(&mut batch, MAX_BATCH) => {
                    if num == 0 {
                        return;
                    }
                }
                () = finishing(&finish) => break,
            }
            tokio::select! {
                () = self.gather(&mut batch) => {}
                () = finishing(&finish) => {}
            }
            self.send(&mut batch).await;
        }
        while let Ok(span) = self.waiting.try_recv() {
            batch.push(span);
            if batch.len() == MAX_BATCH {
                self.send(&mut batch).await;
            }
        }
        if !batch.is_empty() {
            self.send(&mut batch).await;
        }
    }

    /// Lets the batch grow for a moment. Dropping the future loses nothing.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) {
        let grow = async {
            while batch.len() < MAX_BATCH {
                let room = MAX_BATCH - batch.len();
                if self.waiting.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        // Fewer are sent when nobody came.
        let _ = timeout(LINGER, grow).await;
    }

    async fn send(&mut self, batch: &mut Vec<SpanData>) {
        let num = batch.len() as u64;
        let spans = std::mem::take(batch);
        let failure = match timeout(PATIENCE, self.exporter.export(spans)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(self.trouble.lock().take().unwrap_or(error.to_string())),
            Err(_) => Some("no answer in time".to_owned()),
        };
        let Some(why) = failure else {
            self.counts.exported.inc_by(num);
            if !std::mem::take(&mut self.backoff).is_zero() {
                tracing::info!("the trace collector is back");
            }
            return;
        };
        self.counts.dropped_collector.inc_by(num);
        if self.backoff.is_zero() {
            tracing::warn!(error = %why, "the trace collector does not take spans; they are dropped");
        }
        self.backoff = (self.backoff * 2).clamp(BACKOFF, MAX_BACKOFF);
        tokio::select! {
            () = sleep(self.backoff) => {}
            () = finishing(&self.finish) => {}
        }
    }
}

/// Resolves when the task is to end.
async fn finishing(finish: &watch::Receiver<bool>) {
    // The sender gone is an end, too.
    let _ = finish.clone().wait_for(|finish| *finish).await;
}

/// Why the last request did not come through: the exporter says no more than that it did not.
type Trouble = Arc<Mutex<Option<String>>>;

/// Speaks HTTP to the collector.
#[derive(Debug)]
struct Collector {
    client: Client,
    trouble: Trouble,
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.client.request(request.map(Full::new)).await;
            let answer = answer.inspect_err(|error| *self.trouble.lock() = Some(why(error)))?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(parts, body))
        })
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use prometheus::IntCounter;

    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_gone() {
        let counter = |name: &str| IntCounter::new(name, "help").expect("a good name");
        let counts = SpanCounts {
            exported: counter("exported"),
            dropped_full: counter("full"),
            dropped_collector: counter("collector"),
        };
        let (spans, mut waiting) = mpsc::channel(2);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Queue {
                spans,
                counts: counts.clone(),
            })
            .build();
        let tracer = provider.tracer("test");
        for _ in 0..5 {
            drop(tracer.start("span"));
        }
        assert_eq!(counts.dropped_full.get(), 3);
        assert!(waiting.try_recv().is_ok() && waiting.try_recv().is_ok());
        drop(tracer.start("room again"));
        assert_eq!(counts.dropped_full.get(), 3);
        assert!(waiting.try_recv().is_ok());
    }
}
