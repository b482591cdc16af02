//! One request from its headers to the last byte of its answer: counted, timed, logged.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tracing::field;

use crate::admission::Tenant;
use crate::connection::RequestMark;
use crate::router::our_bug;
use crate::state::{Body, RequestContext};
use crate::timeline::Timeline;
use crate::traces::{Exchange, Trace};

/// Lives as long as the request. Dropped before the end, it tells that the client has left.
pub(crate) struct InFlight {
    ctx: RequestContext,
    method: Method,
    generates: bool,
    /// `None` until the headers are decided.
    status: Option<StatusCode>,
    complete: bool,
    /// The key's name.
    key: Option<Arc<str>>,
    trace: Trace,
    /// The connection is busy as long as this lives.
    mark: RequestMark,
}

impl InFlight {
    pub(crate) fn new(
        ctx: RequestContext,
        method: Method,
        generates: bool,
        (mark, trace): (RequestMark, Trace),
    ) -> Self {
        ctx.state.metrics.in_flight().inc();
        if generates {
            ctx.state.num_generating.fetch_add(1, Ordering::AcqRel);
        }
        Self {
            ctx,
            method,
            generates,
            status: None,
            complete: false,
            key: None,
            trace,
            mark,
        }
    }

    pub(crate) fn belongs_to(&mut self, tenant: &Tenant) {
        self.key = tenant.name().map(Arc::from);
    }

    pub(crate) fn headers_are_out(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Self { ctx, .. } = &*self;
        let metrics = &ctx.state.metrics;
        let took = ctx.received.elapsed();
        // 499 has no name in the registry of codes; proxies use it for a client that left.
        let left = || StatusCode::from_u16(499).expect("a valid code");
        let status = self.status.unwrap_or_else(left);
        metrics.in_flight().dec();
        metrics.count_request(ctx.route, status);
        if self.generates {
            ctx.state.num_generating.fetch_sub(1, Ordering::AcqRel);
            metrics.observe_duration(took);
            if !self.complete {
                metrics.count_cancelled();
            }
        }
        if !self.complete {
            self.mark.taken_back();
        }
        let exchange = Exchange {
            ctx,
            method: &self.method,
            status,
            cancelled: !self.complete,
        };
        let trace = self.trace.end(&exchange);
        let timeline = ctx.timeline.get();
        let ms = |took: Option<Duration>| took.map(|took| took.as_millis() as u64);
        let first_token = timeline.and_then(|timeline| timeline.first_token);
        let usage = ctx.counted();
        let prices = &ctx.state.config.prices;
        let cost = prices.cost(ctx.flavour, &usage);
        let cost = cost.filter(|_| self.generates);
        tracing::info!(
            target: "nemoserve::request",
            id = %ctx.request_id,
            client = self.mark.client.map(field::display),
            key = self.key.as_deref(),
            trace_id = trace.map(|trace| field::display(trace.trace_id())),
            method = %self.method,
            route = ctx.route,
            status = status.as_u16(),
            ms = took.as_millis() as u64,
            queue_ms = ms(timeline.and_then(Timeline::queued)),
            ttft_ms = ms(first_token.map(|first| first - ctx.received)),
            prompt_tokens = usage.prompt,
            cached_tokens = usage.cached,
            generated_tokens = usage.completion,
            finish = timeline.and_then(|timeline| timeline.finishes.first().copied()),
            cost_usd = cost.map(|cost| field::display(cost.total())),
            cancelled = !self.complete,
            "request"
        );
    }
}

/// An event of a stream that says nothing.
const COMMENT: &[u8] = b":\n\n";

/// A response body that carries its request's [`InFlight`].
pub(crate) struct Tracked {
    body: Body,
    in_flight: InFlight,
    /// A stream of events, the only bodies whose length nobody knows. Between two frames a comment may
    /// be sent.
    is_events: bool,
}

impl Tracked {
    pub(crate) fn new(body: Body, mut in_flight: InFlight) -> Self {
        // An empty body is never polled.
        in_flight.complete = body.is_end_stream();
        in_flight.mark.body_begins();
        let is_events = body.size_hint().exact().is_none();
        Self {
            body,
            in_flight,
            is_events,
        }
    }

    fn break_off(&mut self) -> Broken {
        // It is not the client who leaves.
        self.in_flight.complete = true;
        let ctx = &self.in_flight.ctx;
        Broken(our_bug(&ctx.request_id, &ctx.state.metrics).message)
    }
}

/// An answer that ends where it must not: its client sees a transfer that breaks, and not a whole one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(String);

/// What a body says when it is asked for more.
type Polled = Poll<Option<Result<Frame<Bytes>, Infallible>>>;

/// Asks for more. After a panic it must not be asked again.
fn poll_contained(body: &mut Body, cx: &mut Context<'_>) -> thread::Result<Polled> {
    catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx)))
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.in_flight.mark.body_goes_on();
        let Ok(polled) = poll_contained(&mut self.body, cx) else {
            return Poll::Ready(Some(Err(self.break_off())));
        };
        if polled.is_pending() && self.is_events && self.in_flight.mark.poll_comment(cx) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
        }
        // A body of known length is not polled again after its last byte.
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.in_flight.complete = true;
        }
        polled.map_err(|never| match never {})
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::stream::poll_fn;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    #[test]
    fn a_body_that_panics_breaks_off() {
        let mut num_polled = 0;
        let frames = poll_fn(move |_| {
            num_polled += 1;
            assert!(num_polled < 2, "a bug in it");
            let frame = Frame::data(Bytes::from_static(b"half"));
            Poll::Ready(Some(Ok::<_, Infallible>(frame)))
        });
        let mut body = StreamBody::new(frames).boxed_unsync();
        let mut cx = Context::from_waker(Waker::noop());
        let first = poll_contained(&mut body, &mut cx).expect("no panic yet");
        assert!(matches!(first, Poll::Ready(Some(Ok(_)))));
        assert!(poll_contained(&mut body, &mut cx).is_err());
    }
}
