//! What clients send: sessions of turns, from a seed.

/// A stretch of text that prompts share as a whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Equal ids are equal text.
    pub(crate) id: u64,
    /// Tokens.
    pub(crate) len: u32,
    /// Whether a message begins here.
    pub(crate) begins_message: bool,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Seconds.
    pub(crate) arrival: f64,
    pub(crate) prompt: Vec<Segment>,
    /// What is generated; it may or may not return in the next prompt as it was.
    pub(crate) answer: Segment,
}

impl Request {
    pub(crate) fn prompt_len(&self) -> u32 {
        self.prompt.iter().map(|segment| segment.len).sum()
    }

    /// Positions where messages begin, the first left out.
    pub(crate) fn boundaries(&self) -> Vec<u32> {
        let mut at = 0;
        let mut found = Vec::new();
        for segment in &self.prompt {
            if segment.begins_message && at > 0 {
                found.push(at);
            }
            at += segment.len;
        }
        found
    }
}

/// Requests in order of arrival.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) requests: Vec<Request>,
}

pub(crate) fn all() -> Vec<Workload> {
    let workload = |name, sessions: Vec<Vec<Request>>| {
        let mut requests: Vec<Request> = sessions.into_iter().flatten().collect();
        requests.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
        Workload { name, requests }
    };
    let mut rng = Rng(7);
    let rng = &mut rng;
    vec![
        workload("coding agents", agents(rng, 160, 0)),
        workload("coding agents, retried branches", agents(rng, 160, 8)),
        workload("chat, thoughts stripped", chats(rng, 900, true)),
        workload("chat, history as it was", chats(rng, 900, false)),
        workload("shared system prompts", shared_system(rng, 4000)),
        workload("questions about documents", documents(rng, 300)),
        workload("mixture", mixture(rng)),
    ]
}

/// Sixty-odd calls of tools each, over one of a few system prompts with tools; an agent of
/// `retry_one_in` steps goes back some turns and tries again (0: never).
fn agents(rng: &mut Rng, num_sessions: u32, retry_one_in: u64) -> Vec<Vec<Request>> {
    let systems: Vec<Segment> = (0..6).map(|_| text(rng, 4000, 12_000, true)).collect();
    let session = |_| {
        let system = systems[rng.below(6) as usize];
        let mut prompt = vec![system, text(rng, 200, 2000, true)];
        let mut clock = rng.real() * 3600.0;
        let mut requests = Vec::new();
        for _ in 0..rng.between(20, 80) {
            let answer = text(rng, 60, 500, false);
            prompt.push(opening());
            requests.push(Request {
                arrival: clock,
                prompt: prompt.clone(),
                answer,
            });
            clock += rng.between(2, 40) as f64;
            // A call and its result; its thought stays in the history of a running task.
            prompt.push(answer);
            prompt.push(text(rng, 100, 3000, true));
            if retry_one_in > 0 && rng.below(retry_one_in) == 0 && prompt.len() > 9 {
                prompt.truncate(prompt.len() - 6);
                prompt.push(text(rng, 100, 800, true));
            }
        }
        requests
    };
    (0..num_sessions).map(session).collect()
}

/// People who chat. Templates strip old thoughts, so an answer returns as other text.
fn chats(rng: &mut Rng, num_sessions: u32, strips: bool) -> Vec<Vec<Request>> {
    let system = text(rng, 300, 600, true);
    let session = |_| {
        let mut prompt = vec![system];
        let mut clock = rng.real() * 3600.0;
        let mut requests = Vec::new();
        for _ in 0..rng.between(2, 16) {
            prompt.push(text(rng, 30, 1200, true));
            prompt.push(opening());
            let answer = text(rng, 300, 3000, false);
            requests.push(Request {
                arrival: clock,
                prompt: prompt.clone(),
                answer,
            });
            clock += rng.between(20, 300) as f64;
            if strips {
                // The opening ends in a thought; in history there is none.
                prompt.pop();
                prompt.push(text(rng, 150, 900, true));
            } else {
                prompt.push(answer);
            }
        }
        requests
    };
    (0..num_sessions).map(session).collect()
}

/// One question each under one of many system prompts, some of them far more often used.
fn shared_system(rng: &mut Rng, num_requests: u32) -> Vec<Vec<Request>> {
    let systems: Vec<Segment> = (0..400).map(|_| text(rng, 500, 9000, true)).collect();
    let request = |_| {
        // About Zipf: half of the requests for the first twentieth.
        let rank = (400.0_f64.powf(rng.real()) - 1.0) as usize;
        let prompt = vec![systems[rank], text(rng, 30, 400, true), opening()];
        vec![Request {
            arrival: rng.real() * 3600.0,
            prompt,
            answer: text(rng, 50, 400, false),
        }]
    };
    (0..num_requests).map(request).collect()
}

/// Several questions about a long document each, some behind it in the same message, some in the next.
fn documents(rng: &mut Rng, num_documents: u32) -> Vec<Vec<Request>> {
    let system = text(rng, 100, 300, true);
    let session = |_| {
        let document = text(rng, 8000, 100_000, true);
        let same_message = rng.below(2) == 0;
        let mut clock = rng.real() * 3600.0;
        let request = |_| {
            let question = text(rng, 20, 200, !same_message);
            clock += rng.between(10, 400) as f64;
            Request {
                arrival: clock,
                prompt: vec![system, document, question, opening()],
                answer: text(rng, 50, 600, false),
            }
        };
        (0..=document.id % 7).map(request).collect()
    };
    (0..num_documents).map(session).collect()
}

fn mixture(rng: &mut Rng) -> Vec<Vec<Request>> {
    let mut sessions = agents(rng, 60, 10);
    sessions.extend(chats(rng, 350, true));
    sessions.extend(shared_system(rng, 1500));
    sessions.extend(documents(rng, 80));
    sessions
}

fn text(rng: &mut Rng, least: u64, most: u64, begins_message: bool) -> Segment {
    // Log-uniform: most are short.
    let (least, most) = (least as f64, most as f64);
    let len = (least * (most / least).powf(rng.real())) as u32;
    Segment {
        id: rng.next(),
        len: len.max(1),
        begins_message,
    }
}

/// What the template puts before an answer: the same everywhere.
fn opening() -> Segment {
    Segment {
        id: 1,
        len: 5,
        begins_message: true,
    }
}

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
