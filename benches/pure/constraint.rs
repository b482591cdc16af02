//! What a mask costs, token by token, and what hostile grammars cost.
//!
//!     cargo bench -p nemoserve-benches-pure --bench constraint -- [--tekken FILE]
//!
//! FILE is a tokenizer in Mistral's format, for a vocabulary of the size that Nemotron 3 has: the
//! package `mistral-common` 1.5.4 carries `tekken_240911.json` of 131,072 tokens. Without it the demo
//! model's 2,048 tokens are taken.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use constraint::{
    Compiled, Compiler, Grammar, GrammarGuide, Guide, GuideState, Limits, Piece, Vocabulary,
};
use serde_json::{Value, json};

/// Times that each grammar is compiled and its document gone through twice. The first text grows the
/// automaton, which later texts share.
const NUM_RUNS: usize = 21;

fn main() {
    let mut pieces = demo_pieces();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--tekken" => pieces = tekken_pieces(&args.next().expect("--tekken names a file")),
            // Cargo says this to every bench.
            "--bench" => {}
            other => panic!("{other}: expected --tekken"),
        }
    }
    let start = Instant::now();
    let piece = |id: u32| pieces[id as usize].clone();
    let vocabulary = Arc::new(Vocabulary::new(pieces.len() as u32, piece, &[2]));
    let compiler = Compiler::new(Arc::clone(&vocabulary), Limits::default());
    println!(
        "vocabulary: {} tokens, ready in {:?}",
        vocabulary.size(),
        start.elapsed()
    );
    let spelling = Spelling::of(&vocabulary);

    println!("masks, microseconds  compile     first text                  later texts");
    println!(
        "                          ms   mean    p50    p99    max   mean    p50    p99    max  tokens"
    );
    let (mut first_times, mut later_times) = (Vec::new(), Vec::new());
    for (name, grammar, document) in cases() {
        let tokens = spelling.spell(&document);
        let (mut compile, mut first, mut later) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..NUM_RUNS {
            let grammar = variant(&grammar, number);
            let start = Instant::now();
            let compiled = compiler.compile(&grammar).expect("the grammar is sound");
            compile.push(start.elapsed());
            first.push(walk(&compiled, &tokens));
            later.push(walk(&compiled, &tokens));
        }
        let (first, later) = (medians(&first), medians(&later));
        report(name, median(compile), &first, &later);
        first_times.extend(first);
        later_times.extend(later);
    }
    report("all", Duration::ZERO, &first_times, &later_times);

    println!("hostile grammars");
    for (name, grammar) in hostile() {
        let start = Instant::now();
        let outcome = match compiler.compile(&grammar) {
            Ok(_) => "compiled, steps are limited".to_owned(),
            Err(error) => {
                let error = error.to_string();
                error.chars().take(90).collect()
            }
        };
        println!("{name:20} {:>9.2?}  {outcome}", start.elapsed());
    }
}

/// Times of the masks along a document, the one at its end included. Each includes the step from the
/// token before.
fn walk(grammar: &Arc<Compiled>, tokens: &[u32]) -> Vec<Duration> {
    let mut guide = Guide::new(Arc::clone(grammar.vocabulary()));
    guide.grammar = Some(GrammarGuide {
        grammar: Arc::clone(grammar),
        trigger: None,
    });
    let guide = Arc::new(guide);
    let mut times = Vec::with_capacity(tokens.len() + 1);
    let mut begun = Instant::now();
    let mut state = GuideState::new(&guide);
    for token in tokens {
        let mask = state.mask().expect("within limits").expect("constrained");
        times.push(begun.elapsed());
        assert!(mask.allows(*token), "the document does not fit");
        begun = Instant::now();
        state.advance(*token).expect("allowed");
    }
    let mask = state.mask().expect("within limits").expect("constrained");
    times.push(begun.elapsed());
    assert!(mask.allows(grammar.vocabulary().end_ids()[0]));
    times
}

/// The same step costs the same every time; the rest is other programs' work on the same cores.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The typical time of each step.
fn medians(runs: &[Vec<Duration>]) -> Vec<Duration> {
    let at = |step: usize| median(runs.iter().map(|run| run[step]).collect());
    (0..runs[0].len()).map(at).collect()
}

/// The same grammar to everybody but the cache.
fn variant(grammar: &Grammar, number: usize) -> Grammar {
    let space = "\n".repeat(number);
    match grammar.clone() {
        Grammar::JsonSchema(text) => Grammar::JsonSchema(text + &space),
        Grammar::Lark(text) => Grammar::Lark(text + &space),
        Grammar::Composed { root, parts } => Grammar::Composed {
            root: root + &space,
            parts,
        },
        Grammar::Regex(_) => unreachable!("white space would count"),
    }
}

fn report(name: &str, compile: Duration, first: &[Duration], later: &[Duration]) {
    let columns = [first, later].map(|times| {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
        [mean, at(0.5), at(0.99), at(1.0)]
            .map(|time| format!("{:6.1}", time.as_secs_f64() * 1e6))
            .join(" ")
    });
    println!(
        "{name:18} {:>9.1} {} {} {:7}",
        compile.as_secs_f64() * 1e3,
        columns[0],
        columns[1],
        first.len()
    );
}

/// Text to tokens, always the longest that fits.
struct Spelling {
    tokens: HashMap<Vec<u8>, u32>,
    longest: usize,
}

impl Spelling {
    fn of(vocabulary: &Vocabulary) -> Self {
        let tokens: HashMap<Vec<u8>, u32> = (0..vocabulary.size())
            .map(|id| (vocabulary.text(id).to_vec(), id))
            .filter(|(text, _)| !text.is_empty())
            .collect();
        let longest = tokens.keys().map(Vec::len).max().expect("it has tokens");
        Self { tokens, longest }
    }

    fn spell(&self, text: &str) -> Vec<u32> {
        let mut rest = text.as_bytes();
        let mut spelled = Vec::new();
        while !rest.is_empty() {
            let mut lens = (1..=self.longest.min(rest.len())).rev();
            let (len, token) = lens
                .find_map(|len| self.tokens.get(&rest[..len]).map(|token| (len, *token)))
                .expect("every byte is a token");
            spelled.push(token);
            rest = &rest[len..];
        }
        spelled
    }
}

fn cases() -> Vec<(&'static str, Grammar, String)> {
    let prose = "The quick brown fox jumps over the lazy dog; it was \\\"not\\\" amused, 42 times. \
        Naïve café owners in Zürich and 東京 agreed.";
    let person = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"}, "born": {"type": "string", "format": "date"},
        "role": {"enum": ["admin", "user", "guest"]}, "scores": {"type": "array", "items": {"type": "number"}},
        "bio": {"type": "string", "maxLength": 400}},
        "required": ["name", "age", "email", "born", "role", "scores", "bio"], "additionalProperties": false});
    let person_text = format!(
        r#"{{"name": "Ada Lovelace", "age": 36, "email": "ada@example.com", "born": "1815-12-10", "role": "admin", "scores": [1.5, -2, 3e8], "bio": "{prose}"}}"#
    );
    let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "label": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "required": ["label", "children"], "additionalProperties": false}}});
    let leaf = r#"{"label":"a leaf on a branch","children":[]}"#;
    let tree_text = format!(
        r#"{{"label":"root","children":[{leaf},{{"label":"b","children":[{leaf},{leaf}]}}]}}"#
    );
    let words: Vec<String> = (0..1000)
        .map(|i| format!("option number {i} of many"))
        .collect();
    let wide = json!({"type": "array", "items": {"enum": words}});
    let fields: Value = (0..60)
        .map(|i| {
            (
                format!("optional_field_{i}"),
                json!({"type": ["string", "null"]}),
            )
        })
        .collect();
    let optional = json!({"type": "object", "properties": fields, "additionalProperties": false});
    // As the server writes it.
    let call = "start: \"<function=run>\\n<parameter=code>\\n\" VALUE \"</function>\\n\"\n\
        VALUE: (/(?s:.*)/ & ~TAGS) /\\n<\\/parameter>\\n/\n\
        TAGS: /(?s:.*)(\\n<\\/parameter>|<\\/parameter>\\s*(<parameter=|<\\/function>|<function=)\
        |\\n<\\/function>\\s*(<function=)|\\n<parameter=[^<>\\n]*>|<parameter=(code)>)(?s:.*)/";
    let code = "def f(x):\n    return [y for y in range(x) if y % 2 == 0]  # <even>\n".repeat(6);
    let schema = |schema: &Value| Grammar::JsonSchema(schema.to_string());
    vec![
        ("record", schema(&person), person_text),
        ("any object", schema(&json!({"type": "object"})),
            format!(r#"{{"a": {{"b": [1, 2, {{"c": "{prose}"}}]}}, "d": null, "text": "{prose}"}}"#)),
        ("recursive", schema(&tree), tree_text),
        ("enum of 1000", schema(&wide), r#"["option number 7 of many", "option number 999 of many"]"#.into()),
        ("60 optional", schema(&optional), r#"{"optional_field_3": "x", "optional_field_20": null, "optional_field_59": "some text"}"#.into()),
        ("pattern", schema(&json!({"type": "string", "pattern": "^[A-Z]{2}-\\d{4}(-[a-z]+)*$"})), "\"AB-1234-some-words-follow-here\"".into()),
        ("tool call", Grammar::Composed { root: call.into(), parts: Vec::new() },
            format!("<function=run>\n<parameter=code>\n{code}\n</parameter>\n</function>\n")),
    ]
}

fn hostile() -> Vec<(&'static str, Grammar)> {
    let schema = |schema: Value| Grammar::JsonSchema(schema.to_string());
    let words = |count: usize| -> Vec<String> { (0..count).map(|i| format!("word{i}")).collect() };
    let pairs: Vec<Value> = (0..30)
        .map(|i| {
            json!({"anyOf": [{"properties": {format!("a{i}"): {"type": "string"}}},
                {"properties": {format!("b{i}"): {"type": "integer"}}}]})
        })
        .collect();
    let rules: Vec<String> = (0..30_000)
        .map(|i| format!("r{i}: \"a{i}\" r{}", i + 1))
        .collect();
    vec![
        ("10 MB enum", schema(json!({"enum": words(1_000_000)}))),
        ("500 KB enum", schema(json!({"enum": words(40_000)}))),
        (
            "minItems 1e9",
            schema(json!({"type": "array", "minItems": 1_000_000_000})),
        ),
        (
            "maxLength 1e9",
            schema(json!({"type": "string", "maxLength": 1_000_000_000})),
        ),
        ("exponential unions", schema(json!({"allOf": pairs}))),
        (
            "10k brackets",
            Grammar::JsonSchema(format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))),
        ),
        (
            "10k groups",
            Grammar::Regex(format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000))),
        ),
        (
            "counted regex",
            Grammar::Regex("((a{0,1000}){0,1000}){0,1000}".into()),
        ),
        (
            "catastrophic regex",
            Grammar::Regex("(a|b|ab)*c{1,200}(a|aa)*[ab]{200}[^c]{300}x".repeat(40)),
        ),
        (
            "unions of patterns",
            schema(json!({"anyOf": (0..200).map(|i|
            json!({"type": "string", "pattern": format!(".*a{{{i},200}}.*b.{{{i}}}")})).collect::<Vec<_>>()})),
        ),
        (
            "20k letters",
            Grammar::Regex(format!("({}|b)*", "[a-z]?".repeat(20_000))),
        ),
        (
            "giant lark",
            Grammar::Lark(format!("start: r0\n{}\nr30000: \"x\"", rules.join("\n"))),
        ),
    ]
}

fn demo_pieces() -> Vec<Piece> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../server/demo/model/tokenizer.json");
    let text = std::fs::read_to_string(file).expect("the demo model is there");
    let file: Value = serde_json::from_str(&text).expect("it is JSON");
    let is_printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let (printable, rest): (Vec<u8>, Vec<u8>) = (0..=255).partition(is_printable);
    let moved = (256..).filter_map(char::from_u32).zip(rest);
    let bytes: HashMap<char, u8> = printable
        .into_iter()
        .map(|byte| (char::from(byte), byte))
        .chain(moved)
        .collect();
    let vocab = file["model"]["vocab"].as_object().expect("a BPE model");
    let mut pieces = vec![Piece::None; vocab.len()];
    for (token, id) in vocab {
        let text = token.chars().map(|character| bytes[&character]).collect();
        pieces[id.as_u64().expect("an id") as usize] = Piece::Text(text);
    }
    for added in file["added_tokens"].as_array().expect("added tokens") {
        let id = added["id"].as_u64().expect("an id") as usize;
        pieces[id] = Piece::Control(added["content"].as_str().expect("a name").to_owned());
    }
    pieces
}

fn tekken_pieces(file: &str) -> Vec<Piece> {
    let text = std::fs::read_to_string(file).expect("the file can be read");
    let file: Value = serde_json::from_str(&text).expect("it is JSON");
    let config = &file["config"];
    let number = |name: &str| config[name].as_u64().expect("a number") as usize;
    let (size, num_special) = (
        number("default_vocab_size"),
        number("default_num_special_tokens"),
    );
    let mut pieces: Vec<Piece> = (0..num_special)
        .map(|id| Piece::Control(format!("<SPECIAL_{id}>")))
        .collect();
    let vocab = file["vocab"].as_array().expect("a list of tokens");
    for token in &vocab[..size - num_special] {
        let text = token["token_bytes"].as_str().expect("base64");
        pieces.push(Piece::Text(base64(text)));
    }
    pieces
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut num_bits, mut bytes) = (0_u32, 0, Vec::new());
    for character in text.trim_end_matches('=').chars() {
        let value = ALPHABET.find(character).expect("base64");
        bits = bits << 6 | value as u32;
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
        }
    }
    bytes
}
