//! States saved on the way through a row, and rows with drafts, through the whole model: the bits of
//! running one token after the other.

use engine::{DeviceChoice, Engine, EngineConfig, EngineError, ModelSource};
use nemoserve_tests::driver::{Driver, Line, Scores, Turn};
use nemoserve_tests::fixtures;
use scheduler::Runner;

const BLOCK_SIZE: u32 = 4;
const MAX_DRAFTS: u32 = 4;
/// Of the fixture, or less.
const VOCAB_SIZE: u32 = 150;

/// A model with a draft block: others have nothing to keep drafts in.
fn driver() -> Driver<impl Runner<Error = EngineError>> {
    let source = ModelSource::Folder(fixtures::folder("super"));
    let opened = Engine::open(EngineConfig {
        device: DeviceChoice::Cpu,
        max_num_seqs: 8,
        block_size: BLOCK_SIZE,
        cache_memory_bytes: Some(64 << 20),
        max_drafts: MAX_DRAFTS,
        ..EngineConfig::new(source)
    })
    .expect("the model is good");
    let (num_blocks, num_slots) = (opened.info().num_blocks + 1, opened.info().num_slots + 1);
    let runner = opened.into_runner().expect("it loads");
    Driver::new(runner, BLOCK_SIZE, num_blocks, num_slots)
}

fn prompt(len: u32, salt: u32) -> Vec<u32> {
    let token = |i| (i * i * 7 + i * 31 + salt * 17) % VOCAB_SIZE;
    (0..len).map(token).collect()
}

type Bits = Vec<(u32, u32, Vec<(u32, u32)>)>;

fn bits(scores: &Scores) -> Bits {
    let bits = |pairs: &[(u32, f32)]| pairs.iter().map(|(t, x)| (*t, x.to_bits())).collect();
    scores
        .iter()
        .map(|score| (score.token, score.logprob.to_bits(), bits(&score.top)))
        .collect()
}

/// One step of one line, or of two.
fn step<R: Runner<Error = EngineError>>(
    driver: &mut Driver<R>,
    lines: &mut [(&mut Line, usize)],
) -> Vec<Bits> {
    let mut turns: Vec<Turn<'_>> = lines
        .iter_mut()
        .map(|(line, len)| Turn {
            line,
            len: *len,
            top: 3,
        })
        .collect();
    let scores = driver.step(&mut turns).into_iter();
    scores
        .map(|scores| bits(&scores.expect("no fault")))
        .collect()
}

/// Scores of all positions of a prompt in one row and of so many tokens after it, one at a time; and
/// the line.
fn plain<R: Runner<Error = EngineError>>(
    driver: &mut Driver<R>,
    prompt: &[u32],
    num_tokens: usize,
) -> (Line, Bits) {
    let mut line = driver.start(prompt);
    let mut all = step(driver, &mut [(&mut line, prompt.len())]).remove(0);
    for _ in 1..num_tokens {
        all.extend(step(driver, &mut [(&mut line, 1)]).remove(0));
    }
    (line, all)
}

#[test]
fn a_saved_state_goes_on_as_a_cold_one() {
    let driver = &mut driver();
    let ids = prompt(61, 1);
    let (cold, expect) = plain(driver, &ids, 5);

    // All in one row, beside others that save too.
    let mut line = driver.start(&ids);
    let mut other = driver.start(&prompt(9, 2));
    let places = [1, 3, 4, 16, 37, 60];
    let saved = places.map(|at| driver.save(&mut line, at));
    let others = driver.save(&mut other, 9);
    let got = step(driver, &mut [(&mut other, 9), (&mut line, ids.len())]);
    assert_eq!(got[1], expect[..ids.len()], "saving changes nothing");
    // A save at the end of a row of one token.
    let last = driver.save(&mut line, ids.len() + 1);
    step(driver, &mut [(&mut line, 1)]);

    for (at, saved) in places
        .into_iter()
        .chain([ids.len() + 1])
        .zip(saved.into_iter().chain([last]))
    {
        let mut resumed = driver.resume(&line, saved);
        resumed.tokens.truncate(ids.len().max(at));
        let mut got = Bits::new();
        if at < ids.len() {
            got = step(driver, &mut [(&mut resumed, ids.len() - at)]).remove(0);
        } else {
            resumed.tokens = cold.tokens[..=at].to_vec();
        }
        while resumed.num_computed < ids.len() + 4 {
            got.extend(step(driver, &mut [(&mut resumed, 1)]).remove(0));
        }
        assert!(got == expect[at..], "from token {at}");
    }
    let mut resumed = driver.resume(&other, others);
    let twin = step(driver, &mut [(&mut resumed, 1), (&mut other, 1)]);
    assert_eq!(twin[0], twin[1]);
}

#[test]
fn drafts_right_or_wrong_change_nothing() {
    const NUM_TOKENS: usize = 40;
    let driver = &mut driver();
    let prompts = [prompt(13, 3), prompt(4, 4)];
    let [one, two] = [0, 1].map(|at| plain(driver, &prompts[at], NUM_TOKENS));
    let expects = [one, two];
    let mut random = 12345_u32;
    let mut draw = |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) as usize % below
    };
    let mut met = [0; MAX_DRAFTS as usize + 1];
    for round in 0..12 {
        let mut lines = [0, 1].map(|at| driver.start(&prompts[at]));
        let mut got: [Bits; 2] = Default::default();
        while (0..2).any(|at| got[at].len() < expects[at].1.len()) {
            let mut planned = Vec::new();
            for (at, line) in lines.iter_mut().enumerate() {
                let known = &expects[at].0.tokens;
                if line.num_computed == 0 {
                    // Its prompt, in two pieces.
                    planned.push(1 + draw(prompts[at].len() - 1));
                    continue;
                }
                let left = line.tokens.len() - line.num_computed;
                planned.push(left);
                let next = line.tokens.len();
                let num_drafts = draw(MAX_DRAFTS as usize + 1);
                if left > 1 || next + num_drafts >= known.len() {
                    continue;
                }
                line.drafts = known[next..next + num_drafts].to_vec();
                let num_right = draw(num_drafts + 1);
                if num_right < num_drafts {
                    line.drafts[num_right] = (line.drafts[num_right] + 1) % VOCAB_SIZE;
                }
            }
            let active: Vec<usize> = (0..2)
                .filter(|at| got[*at].len() < expects[*at].1.len())
                .collect();
            let mut rows: Vec<(&mut Line, usize)> = lines
                .iter_mut()
                .zip(planned)
                .enumerate()
                .filter(|(at, _)| active.contains(at))
                .map(|(_, row)| row)
                .collect();
            let scores = step(driver, &mut rows);
            for (at, scores) in active.into_iter().zip(scores) {
                if lines[at].num_computed > prompts[at].len() {
                    met[scores.len() - 1] += 1;
                }
                got[at].extend(scores);
            }
            // Sometimes a line goes on in another slot, its pending tokens with it.
            let at = draw(4);
            if let Some(line) = lines.get_mut(at) {
                driver.relocate(line);
            }
        }
        for (at, (line, expect)) in expects.iter().enumerate() {
            assert_eq!(lines[at].tokens, line.tokens, "round {round}");
            assert!(got[at] == *expect, "round {round}");
        }
        for line in lines {
            driver.finish(line);
        }
    }
    assert!(met.iter().all(|count| *count > 5), "{met:?}");
}
