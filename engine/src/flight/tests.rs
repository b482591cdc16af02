//! Whatever happens to a scheduler, its recording runs again, and a changed one does not.

use std::collections::BTreeMap;
use std::io::Cursor;

use scheduler::{
    RowFault, RowOutput, RowResult, SamplingParams, Scheduler, SequenceId, StepId, TenantId,
};

use super::*;

/// A small generator of numbers, the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Requests come, are told off, stop, go wrong; memory is short; prompts share beginnings.
struct Ride {
    numbers: Numbers,
    scheduler: Scheduler,
    flight: Flight,
    alive: Vec<RequestId>,
    next_id: u64,
    /// What was said, to go on from.
    said: Vec<Vec<u32>>,
    /// Tokens of those who run.
    texts: BTreeMap<SequenceId, Vec<u32>>,
}

const STOP_ID: u32 = 7;

impl Ride {
    fn new(seed: u64, max_drafts: u32) -> Self {
        let config = SchedulerConfig {
            max_num_batched_tokens: 48,
            max_num_seqs: 6,
            max_queue: 40,
            max_model_len: 160,
            max_slowdown: Some(4),
            max_drafts,
            ..SchedulerConfig::default()
        };
        let cache = CacheConfig {
            block_size: 4,
            num_blocks: 60,
            num_slots: 14,
            num_host_slots: 6,
            num_host_blocks: 40,
        };
        Self {
            numbers: Numbers(seed),
            flight: Flight::new(&config, &cache),
            scheduler: Scheduler::new(config, cache),
            alive: Vec::new(),
            next_id: 1,
            said: vec![vec![1, 2, 3]],
            texts: BTreeMap::new(),
        }
    }

    fn arrive(&mut self) {
        let base = self.numbers.below(self.said.len() as u64) as usize;
        let mut prompt = self.said[base].clone();
        prompt.truncate(100);
        for _ in 0..=self.numbers.below(20) {
            prompt.push(self.numbers.below(50) as u32 + 10);
        }
        let half = prompt.len() as u32 / 2;
        let salts = ["", "", "", "blue"];
        let request = Request {
            id: RequestId(self.next_id),
            sampling: Arc::new(SamplingParams {
                max_tokens: 1 + self.numbers.below(20) as u32,
                stop_token_ids: vec![STOP_ID],
                prompt_logprobs: self.numbers.one_in(9).then_some(2),
                ..SamplingParams::default()
            }),
            num_choices: 1 + u32::from(self.numbers.one_in(4)),
            cache_salt: salts[self.numbers.below(4) as usize].into(),
            boundaries: if half > 0 {
                [half].into()
            } else {
                Arc::default()
            },
            priority: self.numbers.below(3) as i8 - 1,
            tenant: TenantId(self.numbers.below(3) as u32),
            tenant_weight: 1 + self.numbers.below(2) as u16,
            prompt: prompt.into(),
        };
        self.next_id += 1;
        if self.scheduler.add(request.clone()).is_ok() {
            self.alive.push(request.id);
            self.flight.add(request);
        }
    }

    fn step(&mut self) {
        let Some(plan) = self.scheduler.schedule() else {
            self.flight.idle();
            return;
        };
        self.flight.plan(&plan);
        if self.numbers.one_in(8) {
            self.arrive();
        }
        let rows = plan.rows.iter().map(|row| {
            let numbers = &mut self.numbers;
            let text = self.texts.entry(row.sequence).or_default();
            text.truncate(row.start as usize);
            let num_known = row.input_ids.len() - row.drafting.num_drafts as usize;
            text.extend(&row.input_ids[..num_known]);
            let mut output = RowOutput::default();
            if row.sample.is_some() {
                let num_accepted = numbers.below(u64::from(row.drafting.num_drafts) + 1);
                let drafts = &row.input_ids[num_known..][..num_accepted as usize];
                output.tokens.extend(drafts);
                let end = numbers.one_in(15);
                let token = if end {
                    STOP_ID
                } else {
                    numbers.below(50) as u32 + 10
                };
                output.tokens.push(token);
                text.extend(&output.tokens);
                for _ in 0..numbers.below(u64::from(row.drafting.max_drafts) + 1) {
                    output.drafts.push(numbers.below(50) as u32 + 10);
                }
            }
            let fault = numbers.one_in(150).then_some(RowFault::BadLogits);
            RowResult {
                sequence: row.sequence,
                outcome: fault.map_or(Ok(output), Err),
            }
        });
        let result = StepResult {
            step: StepId(plan.step.0),
            rows: rows.collect(),
        };
        let nanos = 1000 + self.numbers.below(5000);
        let time = self.numbers.one_in(3).then(|| StepTime {
            num_rows: plan.rows.len() as u32,
            step_ns: nanos,
            ..StepTime::default()
        });
        let times: Vec<_> = time.into_iter().collect();
        self.scheduler.note_times(nanos, &times);
        self.flight.result(&result, (nanos, &times));
        for news in self.scheduler.update(result) {
            if news.finish.is_some() {
                let texts = self.texts.values();
                let longest = texts.max_by_key(|text| text.len()).expect("somebody ran");
                self.said.push(longest.clone());
                self.said.truncate(12);
            }
        }
    }

    fn run(mut self, num_steps: u32) -> Flight {
        for _ in 0..num_steps {
            match self.numbers.below(6) {
                0 | 1 => self.arrive(),
                2 if self.numbers.one_in(4) => {
                    if let Some(id) = self.alive.pop() {
                        self.flight.abort(id);
                        self.scheduler.abort(id);
                    }
                }
                4 if self.numbers.one_in(4) => {
                    let paused = self.numbers.one_in(2);
                    self.flight.pause_drafts(paused);
                    self.scheduler.pause_drafts(paused);
                }
                3 if self.numbers.one_in(4) => {
                    if let Some(id) = self.alive.first().copied() {
                        self.flight.finish_choice(id, 0);
                        self.scheduler.finish_choice(id, 0);
                    }
                }
                _ => {}
            }
            self.step();
        }
        let stats = self.scheduler.stats();
        assert!(stats.num_preemptions > 0, "memory was short: {stats:?}");
        assert!(
            stats.num_cached_prompt_tokens > 0,
            "there were hits: {stats:?}"
        );
        assert!(stats.num_swapped_out > 0, "the host was used: {stats:?}");
        self.flight
    }
}

fn written(flight: &Flight, contents: Contents) -> String {
    let mut text = Vec::new();
    let recording = flight.recording();
    recording
        .write(&mut text, contents)
        .expect("memory takes it");
    String::from_utf8(text).expect("JSON is UTF-8")
}

#[test]
fn the_same_calls_make_the_same_plans() {
    for (seed, max_drafts) in [(1, 0), (2, 0), (3, 3), (4, 7)] {
        let flight = Ride::new(seed, max_drafts).run(1500);
        for contents in [Contents::Hidden, Contents::Plain] {
            let text = written(&flight, contents);
            let replayed = replay(Cursor::new(&text));
            let replayed = replayed.unwrap_or_else(|error| panic!("{seed} {contents:?}: {error}"));
            assert_eq!(replayed.num_calls as usize + 1, text.lines().count());
            assert!(replayed.num_plans > 1000, "{replayed:?}");
            assert!(replayed.num_tokens > 1000, "{replayed:?}");
        }
    }
}

#[test]
fn the_first_difference_is_found() {
    let flight = Ride::new(5, 0).run(300);
    let text = written(&flight, Contents::Hidden);
    // An arrival less: the plan in which it would have run is another.
    let arrivals = text.lines().filter(|line| line.contains(r#"{"add":"#));
    let arrival = arrivals.clone().nth(3).expect("some came");
    let without: Vec<_> = text.lines().filter(|line| *line != arrival).collect();
    match replay(Cursor::new(without.join("\n"))) {
        Err(ReplayError::Differs { line, what }) => {
            assert!(line > 5 && what.contains("step"), "{line}: {what}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_said_is_not_written() {
    let flight = Ride::new(6, 0).run(300);
    let (hidden, plain) = (
        written(&flight, Contents::Hidden),
        written(&flight, Contents::Plain),
    );
    assert!(plain.contains("\"blue\"") && !hidden.contains("blue"));
    let tokens = |text: &str| -> Vec<u32> {
        let mut all = Vec::new();
        for line in text.lines().skip(1) {
            let call: line::TimedLine = serde_json::from_str(line).expect("a call");
            if let (_, line::Line::Add(add)) = call {
                all.extend(add.prompt);
            }
        }
        all
    };
    let (hidden_tokens, plain_tokens) = (tokens(&hidden), tokens(&plain));
    assert_eq!(hidden_tokens.len(), plain_tokens.len());
    // 50 different tokens were said; what stands for them differs with all that comes before.
    let distinct = |tokens: &[u32]| {
        let set: std::collections::BTreeSet<_> = tokens.iter().collect();
        set.len()
    };
    assert!(distinct(&plain_tokens) < 60);
    assert!(distinct(&hidden_tokens) > 500);
    assert_ne!(
        hidden,
        written(&flight, Contents::Hidden),
        "a key of its own for each"
    );
}

#[test]
fn salts_hide_what_begins_alike() {
    let mut flight = Ride::new(9, 0).flight;
    for (id, salt) in (1..).zip(["", "blue", "red", "blue"]) {
        flight.add(Request {
            id: RequestId(id),
            prompt: [1, 2, 3].into(),
            sampling: Arc::default(),
            num_choices: 1,
            cache_salt: salt.into(),
            boundaries: Arc::default(),
            priority: 0,
            tenant: TenantId(0),
            tenant_weight: 1,
        });
    }
    let prompts = |contents| -> Vec<Vec<u32>> {
        let text = written(&flight, contents);
        let calls = text.lines().skip(1);
        let calls = calls.map(|line| serde_json::from_str(line).expect("a call"));
        let prompt = |(_, call): line::TimedLine| match call {
            line::Line::Add(add) => add.prompt,
            other => panic!("{other:?}"),
        };
        calls.map(prompt).collect()
    };
    assert_eq!(prompts(Contents::Plain), vec![vec![1, 2, 3]; 4]);
    let hidden = prompts(Contents::Hidden);
    let [open, blue, red, again] = &hidden[..] else {
        panic!("four came: {hidden:?}");
    };
    assert_eq!(blue, again);
    for (one, other) in [(open, blue), (open, red), (blue, red)] {
        assert!(one.iter().zip(other).all(|(one, other)| one != other));
    }
}

#[test]
fn the_oldest_go_first_and_it_is_said() {
    let flight = Ride::new(7, 0).run(300);
    let whole = flight.recording();
    assert_eq!(whole.num_dropped(), 0);
    let mut flight = flight;
    flight.limit(20_000);
    let rest = flight.recording();
    assert!(rest.num_dropped() > 0 && rest.num_calls() > 10);
    assert_eq!(
        rest.num_calls() as u64 + rest.num_dropped(),
        whole.num_calls() as u64
    );
    let text = written(&flight, Contents::Hidden);
    match replay(Cursor::new(text)) {
        Err(ReplayError::Incomplete { num_dropped }) => {
            assert_eq!(num_dropped, rest.num_dropped());
        }
        other => panic!("{other:?}"),
    }
    flight.limit(0);
    assert_eq!(flight.recording().num_calls(), 0);
    flight.idle();
    assert_eq!(flight.recording().num_calls(), 0, "off is off");
}

#[test]
fn what_is_no_recording_is_told_by_its_line() {
    let flight = Ride::new(8, 0).run(300);
    let text = written(&flight, Contents::Hidden);
    let header = text.lines().next().expect("a header");
    for (bad, number) in [
        (String::new(), 1),
        ("{}".to_owned(), 1),
        (header.replace("\"flight\":1", "\"flight\":9"), 1),
        (format!("{header}\nnonsense"), 2),
        (
            format!("{header}\n[1,{{\"result\":{{\"ns\":1,\"times\":[],\"rows\":[]}}}}]"),
            2,
        ),
    ] {
        match replay(Cursor::new(&bad)) {
            Err(ReplayError::Malformed { line, .. }) => assert_eq!(line, number, "{bad}"),
            other => panic!("{bad}: {other:?}"),
        }
    }
}
