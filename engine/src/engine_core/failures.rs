//! Every way in which a device can fail, at every time: the engine ends, says why and whose business it
//! is, and every client hears of it.

use std::sync::Arc;

use scheduler::{RequestId, RowMasks, SamplingParams, SchedulerOutput, StepResult, TenantId};

use super::*;
use crate::error::Cause;
use crate::handle::SubmitError;

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Load,
    WarmUp,
    Submit,
    Collect,
}

/// How it is told.
#[derive(Clone, Copy, Debug)]
enum How {
    Error,
    Panic,
    /// The device's own thread panics, and its caller finds nobody there.
    Thread,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

struct Doomed {
    when: When,
    how: How,
    text: &'static str,
}

impl Doomed {
    fn reach(&self, when: When) -> Result<(), Said> {
        if self.when != when {
            return Ok(());
        }
        match self.how {
            How::Error => Err(Said(self.text.into())),
            How::Panic => panic!("{}", self.text),
            How::Thread => {
                let text = self.text;
                let (sender, receiver) = crossbeam::channel::bounded::<()>(0);
                let device = std::thread::spawn(move || {
                    let _held = sender;
                    panic!("{text}")
                });
                assert!(device.join().is_err());
                receiver.recv().expect("the device answers");
                Ok(())
            }
        }
    }
}

impl Runner for Doomed {
    type Error = Said;

    fn warm_up(&mut self, tell: &mut dyn FnMut(u32, u32)) -> Result<(), Said> {
        tell(0, 1);
        self.reach(When::WarmUp)
    }

    fn submit(&mut self, _plan: SchedulerOutput) -> Result<(), Said> {
        self.reach(When::Submit)
    }

    fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, Said> {
        self.reach(When::Collect)?;
        unreachable!("it fails before")
    }
}

/// What the engine says of it in the end, and what a client in flight hears.
async fn end(when: When, how: How, text: &'static str) -> (Failure, Option<String>) {
    let cache = CacheConfig {
        block_size: 16,
        num_blocks: 9,
        num_slots: 3,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let handle = spawn(SchedulerConfig::default(), cache, 100, move |_| {
        let doomed = Doomed { when, how, text };
        doomed
            .reach(When::Load)
            .map_err(|error| verdict::of_error(Phase::Load, error))?;
        Ok(doomed)
    })
    .expect("a thread can be started");
    let told = match handle.ready().await {
        Err(SubmitError::Failed(_)) => None,
        Err(error) => panic!("{error}"),
        Ok(()) => {
            let request = Request {
                id: RequestId(1),
                prompt: [1, 2].into(),
                sampling: Arc::new(SamplingParams::default()),
                num_choices: 1,
                cache_salt: "".into(),
                boundaries: Arc::default(),
                priority: 0,
                tenant: TenantId::default(),
                tenant_weight: 1,
            };
            let mut stream = handle.submit(request, None).expect("it fits");
            match stream.next().await {
                Some(StreamEvent::Failed(why)) => Some(why),
                other => panic!("{other:?}"),
            }
        }
    };
    (handle.failure().await, told)
}

#[tokio::test]
async fn every_failure_is_told_and_has_its_cause() {
    for (text, cause) in [
        ("out of device memory allocating 4096 bytes", Cause::Memory),
        (
            "Unable to dynamically load the shared library",
            Cause::Device,
        ),
        ("The device is poisoned", Cause::Fault),
    ] {
        for when in [When::Load, When::WarmUp, When::Submit, When::Collect] {
            for how in [How::Error, How::Panic, How::Thread] {
                let (failure, told) = end(when, how, text).await;
                assert_eq!(failure.cause, cause, "{when:?} {how:?}: {failure}");
                assert!(
                    failure.message.contains(text),
                    "{when:?} {how:?}: {failure}"
                );
                if matches!(when, When::Submit | When::Collect) {
                    assert_eq!(told, Some(failure.message), "{when:?} {how:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_nobody_understands_is_ours() {
    for how in [How::Error, How::Panic] {
        for when in [When::Load, When::WarmUp, When::Submit, When::Collect] {
            let (failure, _) = end(when, how, "index out of bounds").await;
            assert_eq!(failure.cause, Cause::Engine, "{when:?} {how:?}: {failure}");
        }
    }
}
