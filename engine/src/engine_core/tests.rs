use std::sync::Arc;

use crossbeam::channel::{bounded, unbounded};
use scheduler::{
    AdmissionError, RowMasks, RowOutput, RowResult, SamplingParams, SchedulerOutput, StepResult,
    TenantId,
};

use super::*;
use crate::error::Cause;
use crate::handle::{RequestStream, STREAM_CAPACITY, SubmitError};

const VOCAB_SIZE: u32 = 100;

/// Answers every sampling row with token 5, after `before_step` has seen the plan.
struct FakeRunner<F> {
    before_step: F,
    result: Option<StepResult>,
}

type Hook = fn(&SchedulerOutput) -> Result<(), OnFire>;

#[derive(Debug, thiserror::Error)]
#[error("the device is on fire")]
struct OnFire;

impl<F: FnMut(&SchedulerOutput) -> Result<(), OnFire>> Runner for FakeRunner<F> {
    type Error = OnFire;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), OnFire> {
        (self.before_step)(&plan)?;
        let rows = plan.rows.iter().map(|row| RowResult {
            sequence: row.sequence,
            outcome: Ok(RowOutput {
                tokens: row.sample.iter().map(|_| 5).collect(),
                ..RowOutput::default()
            }),
        });
        self.result = Some(StepResult {
            step: plan.step,
            rows: rows.collect(),
        });
        Ok(())
    }

    fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, OnFire> {
        Ok(self.result.take().expect("a step was submitted"))
    }
}

fn start<F>(before_step: F) -> EngineHandle
where
    F: FnMut(&SchedulerOutput) -> Result<(), OnFire> + Send + 'static,
{
    let config = SchedulerConfig {
        max_num_batched_tokens: 64,
        max_num_seqs: 4,
        max_queue: 8,
        max_model_len: 8000,
        grid: None,
        max_drafts: 0,
        ..SchedulerConfig::default()
    };
    let cache = CacheConfig {
        block_size: 16,
        num_blocks: 2001,
        num_slots: 9,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    spawn(config, cache, VOCAB_SIZE, move |_| {
        Ok(FakeRunner {
            before_step,
            result: None,
        })
    })
    .expect("a thread can be started")
}

fn request(handle: &EngineHandle, max_tokens: u32, num_choices: u32) -> Request {
    Request {
        id: handle.next_request_id(),
        prompt: [1, 2, 3].into(),
        sampling: Arc::new(SamplingParams {
            max_tokens,
            ..SamplingParams::default()
        }),
        num_choices,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    }
}

/// Everything until the stream ends: number of tokens, choices that told their end, failure.
async fn drain(stream: &mut RequestStream) -> (usize, Vec<u32>, Option<String>) {
    let (mut num_tokens, mut finished, mut failure) = (0, Vec::new(), None);
    while let Some(event) = stream.next().await {
        match event {
            StreamEvent::Output(output) => {
                num_tokens += output.tokens.len();
                finished.extend(output.finish.map(|_| output.choice));
            }
            StreamEvent::Failed(why) => failure = Some(why),
        }
    }
    (num_tokens, finished, failure)
}

#[tokio::test]
async fn tokens_arrive_until_the_end() {
    let handle = start(|_| Ok(()));
    handle.ready().await.expect("loading is nothing");
    let mut stream = handle
        .submit(request(&handle, 3, 2), None)
        .expect("it fits");
    assert_eq!(drain(&mut stream).await, (6, vec![0, 1], None));
    assert_eq!(handle.status(), EngineStatus::Ready);
}

#[tokio::test]
async fn a_panic_fails_every_stream_and_the_engine() {
    let (release, gate) = bounded::<()>(0);
    let handle = start(move |_| {
        gate.recv().expect("the test holds the gate");
        panic!("impossible state")
    });
    handle.ready().await.expect("loading is nothing");
    let mut streams: Vec<_> = (0..3)
        .map(|_| {
            handle
                .submit(request(&handle, 3, 1), None)
                .expect("it fits")
        })
        .collect();
    release.send(()).expect("the engine waits");
    // The first step may have been planned before the others came; theirs fail from the queue.
    for stream in &mut streams[..1] {
        let (num_tokens, finished, failure) = drain(stream).await;
        assert!(num_tokens == 0 && finished.is_empty());
        let failure = failure.expect("the stream is told why");
        assert!(failure.contains("impossible state"), "{failure}");
    }
    for stream in &mut streams[1..] {
        let (_, finished, _) = drain(stream).await;
        assert!(
            finished.is_empty(),
            "the stream ends, and not as if all was well"
        );
    }
    assert!(
        matches!(handle.status(), EngineStatus::Failed(why) if why.message.contains("impossible"))
    );
    let refused = handle.submit(request(&handle, 3, 1), None).err();
    assert!(matches!(refused, Some(SubmitError::Failed(_))));
}

#[tokio::test]
async fn a_failed_step_fails_the_engine() {
    let handle = start(|_| Err(OnFire));
    handle.ready().await.expect("loading is nothing");
    let mut stream = handle
        .submit(request(&handle, 3, 1), None)
        .expect("it fits");
    let (_, _, failure) = drain(&mut stream).await;
    assert!(failure.expect("told why").contains("on fire"));
    assert!(matches!(handle.status(), EngineStatus::Failed(_)));
}

#[tokio::test]
async fn a_failed_load_fails_the_engine() {
    let handle = spawn(
        SchedulerConfig::default(),
        CacheConfig {
            block_size: 16,
            num_blocks: 2,
            num_slots: 2,
            num_host_slots: 0,
            num_host_blocks: 0,
        },
        VOCAB_SIZE,
        |_| -> Result<FakeRunner<Hook>, _> { Err(EngineError::Device("no such device".into())) },
    )
    .expect("a thread can be started");
    let failed = handle.ready().await.expect_err("loading failed");
    assert!(failed.to_string().contains("no such device"));
}

/// Loads as `load` does.
fn start_loading(load: impl FnOnce(LoadProgress) + Send + 'static) -> EngineHandle {
    spawn(
        SchedulerConfig::default(),
        CacheConfig {
            block_size: 16,
            num_blocks: 100,
            num_slots: 4,
            num_host_slots: 0,
            num_host_blocks: 0,
        },
        VOCAB_SIZE,
        move |progress| {
            load(progress);
            let before_step: Hook = |_| Ok(());
            Ok(FakeRunner {
                before_step,
                result: None,
            })
        },
    )
    .expect("a thread can be started")
}

#[tokio::test]
async fn loading_is_still_while_nothing_comes() {
    let (release, gate) = bounded::<()>(0);
    let handle = start_loading(move |progress| {
        for loaded in 1..3 {
            gate.recv().expect("the test holds the gate");
            progress.set(loaded, 2);
        }
    });
    let still_for = || handle.still_for().expect("it loads");
    while still_for() < Duration::from_millis(2) {
        std::hint::spin_loop();
    }
    let begin = Instant::now();
    for _ in 0..2 {
        release.send(()).expect("the loader waits");
    }
    // It came for the second time, so the first count was told.
    assert!(handle.still_for().is_none_or(|age| age < begin.elapsed()));
    handle.ready().await.expect("loading went well");
    assert_eq!(handle.still_for(), None, "nobody asks for anything");
}

#[tokio::test]
async fn who_was_given_up_while_loading_does_not_come_back() {
    let (release, gate) = bounded::<()>(0);
    let handle = start_loading(move |progress| {
        gate.recv().expect("the test holds the gate");
        progress.set(1, 2);
    });
    handle.give_up(Failure {
        cause: Cause::Stall,
        message: "it hangs".into(),
    });
    assert_eq!(handle.still_for(), None);
    release.send(()).expect("the loader waits");
    // The second reader takes the first one's place once steps could run.
    let mut first = handle.cache_news();
    let _second = handle.cache_news();
    assert!(first.recv().await.is_none());
    let status = handle.status();
    assert!(
        matches!(&status, EngineStatus::Failed(why) if why.message == "it hangs"),
        "{status:?}"
    );
}

#[tokio::test]
async fn nothing_is_taken_while_loading() {
    let (release, gate) = bounded::<()>(0);
    let handle = start_loading(move |progress| {
        progress.set(1, 2);
        gate.recv().expect("the test holds the gate");
    });
    let early = handle.submit(request(&handle, 3, 1), None).err();
    assert_eq!(early, Some(SubmitError::NotReady));
    release.send(()).expect("the loader waits");
    handle.ready().await.expect("loading went well");
    assert!(handle.submit(request(&handle, 3, 1), None).is_ok());
}

#[tokio::test]
async fn a_slow_reader_loses_its_own_request() {
    let handle = start(|_| Ok(()));
    handle.ready().await.expect("loading is nothing");
    let capacity = STREAM_CAPACITY as u32;
    let mut slow = handle
        .submit(request(&handle, capacity + 10, 1), None)
        .expect("it fits");
    let mut quick = handle
        .submit(request(&handle, capacity - 10, 1), None)
        .expect("it fits");
    let (num_tokens, finished, _) = drain(&mut quick).await;
    assert_eq!((num_tokens, finished), (STREAM_CAPACITY - 10, vec![0]));
    // Only now does the slow one begin to read: its buffer may have been full before this.
    let mut third = handle
        .submit(request(&handle, capacity - 10, 1), None)
        .expect("it fits");
    drain(&mut third).await;
    let (num_tokens, finished, _) = drain(&mut slow).await;
    assert_eq!(
        (num_tokens, finished),
        (STREAM_CAPACITY, vec![]),
        "the buffer, and no end"
    );
}

#[tokio::test]
async fn a_dropped_stream_leaves_the_batch() {
    let (report, plans) = unbounded();
    let handle = start(move |plan| {
        report.send(plan.rows.len()).expect("the test listens");
        Ok(())
    });
    handle.ready().await.expect("loading is nothing");
    let mut endless = handle
        .submit(request(&handle, 4000, 1), None)
        .expect("it fits");
    assert!(endless.next().await.is_some(), "it runs");
    drop(endless);
    let mut next = handle
        .submit(request(&handle, 3, 1), None)
        .expect("it fits");
    assert_eq!(drain(&mut next).await.1, [0]);
    // The abort came before the new request, so the two never share a step.
    assert!(plans.try_iter().all(|num_rows| num_rows == 1));
}

#[tokio::test]
async fn a_choice_may_be_finished_twice() {
    let (permit, permits) = unbounded();
    let handle = start(move |_| {
        permits.recv().expect("the test holds the other end");
        Ok(())
    });
    handle.ready().await.expect("loading is nothing");
    let request = request(&handle, 50, 2);
    let id = request.id;
    let mut stream = handle.submit(request, None).expect("it fits");
    for _ in 0..4 {
        permit.send(()).expect("the engine waits");
    }
    assert!(stream.next().await.is_some(), "it runs");
    handle.finish_choice(id, 0);
    handle.finish_choice(id, 0);
    handle.finish_choice(id, 7);
    for _ in 0..100 {
        permit.send(()).expect("the engine waits");
    }
    let mut num_tokens = [0; 2];
    while let Some(event) = stream.next().await {
        let StreamEvent::Output(output) = event else {
            panic!("{event:?}");
        };
        num_tokens[output.choice as usize] += output.tokens.len();
    }
    assert!(num_tokens[0] < 10, "{num_tokens:?}");
    assert_eq!(num_tokens[1], 50, "the other choice runs to its end");
    // A request that has ended may be finished again.
    handle.finish_choice(id, 1);
    assert_eq!(handle.status(), EngineStatus::Ready);
}

/// Whoever comes while a step runs is in the next one; whoever ends then, ends after it.
#[tokio::test]
async fn commands_of_a_running_step_find_their_place() {
    let (permit, permits) = unbounded();
    let (report, plans) = unbounded();
    let handle = start(move |plan: &SchedulerOutput| {
        let rows: Vec<_> = plan.rows.iter().map(|row| row.start).collect();
        report.send(rows).expect("the test listens");
        permits.recv().expect("the test holds the other end");
        Ok(())
    });
    handle.ready().await.expect("loading is nothing");
    let submit = || {
        handle
            .submit(request(&handle, 50, 1), None)
            .expect("it fits")
    };
    let next = || plans.recv().expect("the engine plans");
    let mut first = submit();
    assert_eq!(next(), [0]);
    // The step waits in `submit`; all of these are in the channel before its arrivals are taken.
    let second = submit();
    drop(second);
    let mut third = submit();
    permit.send(()).expect("the engine waits");
    assert_eq!(
        next(),
        [3, 0],
        "the second came and went, the third is here"
    );
    for _ in 0..200 {
        permit.send(()).expect("the engine waits");
    }
    assert_eq!(drain(&mut first).await, (50, vec![0], None));
    assert_eq!(drain(&mut third).await, (50, vec![0], None));
}

#[tokio::test]
async fn what_cannot_run_is_refused_at_once() {
    let handle = start(|_| Ok(()));
    handle.ready().await.expect("loading is nothing");
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = request(&handle, 3, 1);
        change(&mut request);
        handle.submit(request, None).err().expect("it is refused")
    };
    assert_eq!(refused(&|r| r.prompt = [].into()), SubmitError::Empty);
    assert_eq!(refused(&|r| r.num_choices = 0), SubmitError::Empty);
    assert_eq!(
        refused(&|r| r.prompt = [1, VOCAB_SIZE, 2].into()),
        SubmitError::TokenOutOfRange {
            token: VOCAB_SIZE,
            vocab_size: VOCAB_SIZE
        }
    );
    let too_long = refused(&|r| r.prompt = vec![1; 8000].into());
    assert!(matches!(too_long, SubmitError::Admission(_)), "{too_long}");
}

/// Those who come while the engine counts those before them: nobody is let in and refused later.
#[test]
fn a_flood_is_refused_at_the_door() {
    let handle = start(|_| Ok(()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime
        .block_on(handle.ready())
        .expect("loading is nothing");
    let flood = |handle: EngineHandle| {
        let (mut served, mut refused) = (Vec::new(), 0);
        for _ in 0..2000 {
            match handle.submit(request(&handle, 3, 1), None) {
                Ok(stream) => served.push(stream),
                Err(SubmitError::Admission(AdmissionError::QueueFull { max: 8 })) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (served, refused)
    };
    let threads = [0; 4].map(|_| {
        let handle = handle.clone();
        std::thread::spawn(move || flood(handle))
    });
    let mut num_refused = 0;
    for thread in threads {
        let (served, refused) = thread.join().expect("no thread fails");
        num_refused += refused;
        for mut stream in served {
            assert_eq!(runtime.block_on(drain(&mut stream)), (3, vec![0], None));
        }
    }
    assert!(num_refused > 0, "it was no flood");
}
