//! A real vocabulary, and grammars tried on whole texts.

#![allow(dead_code)] // Each test target uses its part.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use constraint::{
    Compiled, Compiler, Grammar, GrammarError, GrammarGuide, Guide, GuideState, Limits, Piece,
    Vocabulary,
};
use serde_json::{Map, Value, json};

/// A file of the workspace.
pub(crate) fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// The demo model's tokens: byte-level BPE, so all 256 bytes are among them.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    static VOCABULARY: OnceLock<Arc<Vocabulary>> = OnceLock::new();
    Arc::clone(VOCABULARY.get_or_init(|| Arc::new(read_vocabulary())))
}

fn read_vocabulary() -> Vocabulary {
    let text = std::fs::read_to_string(workspace("server/demo/model/tokenizer.json"))
        .expect("the demo model is there");
    let file: Value = serde_json::from_str(&text).expect("it is JSON");
    let bytes = bytes_of_characters();
    let mut pieces: HashMap<u32, Piece> = HashMap::new();
    for (token, id) in file["model"]["vocab"].as_object().expect("a BPE model") {
        let text = token.chars().map(|character| bytes[&character]).collect();
        pieces.insert(id.as_u64().expect("an id") as u32, Piece::Text(text));
    }
    for added in file["added_tokens"].as_array().expect("added tokens") {
        let id = added["id"].as_u64().expect("an id") as u32;
        let name = added["content"].as_str().expect("a name").to_owned();
        pieces.insert(id, Piece::Control(name));
    }
    let size = pieces.keys().max().expect("it has tokens") + 1;
    let end = id_of(&pieces, "<|im_end|>");
    Vocabulary::new(
        size,
        |id| pieces.get(&id).cloned().unwrap_or(Piece::None),
        &[end],
    )
}

fn id_of(pieces: &HashMap<u32, Piece>, name: &str) -> u32 {
    let named = Piece::Control(name.to_owned());
    let found = pieces.iter().find(|(_, piece)| **piece == named);
    *found.expect("the demo model has it").0
}

/// The alphabet of byte-level BPE: printable bytes are themselves, the others follow from 256 on.
pub(crate) fn bytes_of_characters() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let (printable, rest): (Vec<u8>, Vec<u8>) = (0..=255).partition(is_printable);
    let moved = (256..).filter_map(char::from_u32).zip(rest);
    printable
        .into_iter()
        .map(|byte| (char::from(byte), byte))
        .chain(moved)
        .collect()
}

/// One for all tests of a target.
pub(crate) fn compiler() -> &'static Compiler {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    // Tests share two cores with others: only the outcome counts here, not the time.
    let limits = Limits {
        timeout: std::time::Duration::from_mins(1),
        ..Limits::default()
    };
    COMPILER.get_or_init(|| Compiler::new(vocabulary(), limits))
}

pub(crate) fn compile_schema(schema: &Value) -> Result<Arc<Compiled>, GrammarError> {
    compiler().compile(&Grammar::JsonSchema(schema.to_string()))
}

/// A guide whose answer begins with the grammar.
pub(crate) fn guide(grammar: &Arc<Compiled>) -> Arc<Guide> {
    let mut guide = Guide::new(vocabulary());
    guide.grammar = Some(GrammarGuide {
        grammar: Arc::clone(grammar),
        trigger: None,
    });
    Arc::new(guide)
}

/// The token that is this byte.
pub(crate) fn byte_token(byte: u8) -> u32 {
    static TOKENS: OnceLock<Vec<u32>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        let vocabulary = vocabulary();
        let token = |byte: u8| {
            let mut ids = 0..vocabulary.size();
            ids.find(|id| vocabulary.text(*id) == [byte])
                .unwrap_or(u32::MAX)
        };
        (0..=255).map(token).collect()
    })[byte as usize]
}

/// Whether masks let this text through, byte by byte, and its end after it.
pub(crate) fn accepts(grammar: &Arc<Compiled>, text: &str) -> bool {
    let mut state = GuideState::new(&guide(grammar));
    for byte in text.bytes() {
        let token = byte_token(byte);
        let mask = state
            .mask()
            .expect("the grammar holds")
            .expect("it constrains");
        if !mask.allows(token) {
            return false;
        }
        state.advance(token).expect("it was allowed");
    }
    let end = vocabulary().end_ids()[0];
    let mask = state
        .mask()
        .expect("the grammar holds")
        .expect("it constrains");
    mask.allows(end)
}

/// `oneOf` is held as `anyOf`: what the judge is asked instead.
pub(crate) fn as_any_of(schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            let mut coerced: Map<String, Value> = members
                .iter()
                .map(|(key, value)| (key.to_owned(), as_any_of(value)))
                .collect();
            if let Some(Value::Array(options)) = coerced.remove("oneOf") {
                let all = coerced.entry("allOf").or_insert_with(|| json!([]));
                let all = all.as_array_mut().expect("the suite is well-formed");
                all.push(json!({"anyOf": options}));
            }
            coerced.into()
        }
        Value::Array(items) => items.iter().map(as_any_of).collect(),
        other => other.clone(),
    }
}
