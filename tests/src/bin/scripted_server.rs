//! The real front end over a model that follows a script: third-party clients are led through whole
//! conversations with answers that no tiny model could give.
//!
//! Usage: `scripted_server SCRIPT.json [ADDRESS]`. It prints its address when it is ready, and with
//! `SCRIPT_VERBOSE` set also every prompt and answer. A step takes `SCRIPT_STEP_MS`, or no time. A
//! script is a list of rules; the first one that fits the rendered prompt speaks:
//!
//! ```json
//! [{"when": ["weather", "<tool_response>"], "say": ["It is mild."]},
//!  {"when": ["weather"], "say": ["<tool_call>\n<function=get_weather>\n</function>\n</tool_call>"]},
//!  {"say": ["Hello.", "Hello again."]}]
//! ```

use std::sync::Arc;
use std::time::Duration;

use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::text::Tokenizer;
use nemoserve::{serve, startup};
use nemoserve_tests::front_end::{self, BLOCK_SIZE, Size};
use nemoserve_tests::prompted::PromptedRunner;
use serde::Deserialize;

/// Agents send long prompts, and a vocabulary of 2,048 makes them longer.
const SIZE: Size = Size {
    max_model_len: 1 << 18,
    max_num_seqs: 1024,
    num_blocks: 1 << 16,
};
const END: &str = "<|im_end|>";
/// How a prompt ends that asks for thoughts first.
const THINKING: &str = "<think>\n";

/// One thing the model says. The first rule that fits a prompt speaks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Texts that the prompt must contain, all of them.
    #[serde(default)]
    when: Vec<String>,
    /// Texts that it must not contain.
    #[serde(default)]
    unless: Vec<String>,
    /// Thoughts, said only if the prompt asks for some.
    #[serde(default = "some_thought")]
    think: String,
    /// Answers in the model's own format; in turn, the last again and again.
    say: Vec<String>,
    /// Say it so many times.
    #[serde(default = "once")]
    repeat: usize,
    #[serde(skip)]
    turn: usize,
}

fn some_thought() -> String {
    "I follow the script.".into()
}

fn once() -> usize {
    1
}

struct Script {
    rules: Vec<Rule>,
    tokenizer: Arc<Tokenizer>,
    /// Shows on standard error what was asked and which rule answered.
    verbose: bool,
}

impl Script {
    fn answer(&mut self, prompt: &[u32]) -> Vec<u32> {
        let prompt = self.spelled(prompt);
        let fits = |rule: &&mut Rule| {
            rule.when.iter().all(|text| prompt.contains(text))
                && !rule.unless.iter().any(|text| prompt.contains(text))
        };
        let rule = self.rules.iter_mut().find(fits);
        let text = match rule {
            None => "The script says nothing about this.".to_owned(),
            Some(rule) => {
                let text = &rule.say[rule.turn.min(rule.say.len() - 1)];
                rule.turn += 1;
                let text = text.repeat(rule.repeat);
                if prompt.ends_with(THINKING) {
                    format!("{}\n</think>\n{text}", rule.think)
                } else {
                    text
                }
            }
        };
        if self.verbose {
            eprintln!("--- prompt\n{prompt}\n--- answer\n{text}\n---");
        }
        let ids = self.tokenizer.encode_special(&text, false);
        ids.expect("scripts are ordinary text")
    }

    /// The prompt with its markers.
    fn spelled(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        let mut previous = None;
        for id in ids {
            if self.tokenizer.is_control(*id) {
                bytes.extend_from_slice(self.tokenizer.name(*id).as_bytes());
            } else {
                bytes.extend_from_slice(&self.tokenizer.bytes(previous, *id));
            }
            previous = Some(*id);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .expect("usage: scripted_server SCRIPT [ADDRESS]");
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let script = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let rules: Vec<Rule> =
        serde_json::from_slice(&script).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(
        rules.iter().all(|rule| !rule.say.is_empty()),
        "{path}: every rule says something"
    );

    let settings = Settings::new(&ServeArgs::default()).expect("the defaults are valid");
    let tokenizer = settings.tokenizer().expect("the demo's is valid");
    let tokenizer = tokenizer.expect("the demo has one");
    let end = tokenizer.added_id(END).expect("the demo has it");
    let mut script = Script {
        rules,
        verbose: std::env::var_os("SCRIPT_VERBOSE").is_some(),
        tokenizer,
    };
    let listener = startup::listen(&address)
        .await
        .expect("the address is free");
    let step_time = std::env::var("SCRIPT_STEP_MS").map_or(Duration::ZERO, |text| {
        let ms = text.parse();
        Duration::from_millis(ms.unwrap_or_else(|_| panic!("SCRIPT_STEP_MS={text}")))
    });
    let state = front_end::state(SIZE, move |vocab_size| {
        let author = move |prompt: &[u32]| script.answer(prompt);
        PromptedRunner::new(author, end, vocab_size, BLOCK_SIZE, SIZE.num_blocks + 1)
            .paced(step_time)
    });
    state.engine.ready().await.expect("nothing to load");
    println!("http://{}", listener.local_addr().expect("it is bound"));
    serve(listener, Arc::new(state), std::future::pending())
        .await
        .expect("nothing fails here");
}
