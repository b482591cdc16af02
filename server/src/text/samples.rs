//! Small tokenizers of each kind, for tests.

use serde_json::{Value, json};

use super::Tokenizer;

/// Special flags of added tokens follow the family's: turns are special, markers are not.
fn added_tokens() -> Value {
    let token = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": special})
    };
    json!([
        token(0, "<unk>", true),
        token(1, "<s>", true),
        token(2, "</s>", true),
        token(3, "<|im_start|>", true),
        token(4, "<|im_end|>", true),
        token(5, "<think>", false),
        token(6, "</think>", false),
        token(7, "<tool_call>", false),
        token(8, "</tool_call>", false),
    ])
}

fn build(model: &Value, pre_tokenizer: &Value, decoder: &Value, added: &Value) -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder, "model": model,
    });
    Tokenizer::from_bytes(json.to_string().as_bytes()).expect("well-formed")
}

/// All bytes from id 16 on, then a few merges.
pub(crate) fn byte_level() -> Tokenizer {
    byte_level_with(&added_tokens())
}

/// As [`byte_level`], with nothing added: markers are spelled.
pub(crate) fn byte_level_bare() -> Tokenizer {
    byte_level_with(&json!([]))
}

fn byte_level_with(added: &Value) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for token in added.as_array().expect("a list") {
        let content = token["content"].as_str().expect("a string");
        vocab.insert(content.into(), token["id"].clone());
    }
    let mut alphabet: Vec<char> = (0x21..=0x7eu8).map(char::from).collect();
    alphabet.extend((0xa1..=0xffu8).filter(|b| *b != 0xad).map(char::from));
    alphabet.extend((0x100..=0x143).filter_map(char::from_u32));
    assert_eq!(alphabet.len(), 256);
    for (i, character) in alphabet.iter().enumerate() {
        vocab.insert(character.to_string(), json!(16 + i));
    }
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©", "Ċ Ċ", "t h"];
    for (i, merge) in merges.iter().enumerate() {
        vocab.insert(merge.replace(' ', ""), json!(300 + i));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
                            "trim_offsets": true, "use_regex": true});
    build(
        &json!({"type": "BPE", "dropout": null, "unk_token": null,
               "continuing_subword_prefix": null, "end_of_word_suffix": null,
               "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}),
        &byte_level,
        &byte_level,
        added,
    )
}

/// Words between white space, joined by spaces.
pub(crate) fn word_level() -> Tokenizer {
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "one": 8, "two": 9, "three": 10});
    build(
        &json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}),
        &json!({"type": "WhitespaceSplit"}),
        &Value::Null,
        &json!([added_tokens()[0], added_tokens()[1], added_tokens()[2]]),
    )
}

/// Pieces after `▁`, unknown characters as bytes.
pub(crate) fn metaspace() -> Tokenizer {
    let mut vocab = vec![
        json!(["<unk>", 0.0]),
        json!(["<s>", 0.0]),
        json!(["</s>", 0.0]),
    ];
    vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), -20.0])));
    for piece in ["▁", "▁hello", "▁wor", "ld", "l", "o", "h", "e"] {
        vocab.push(json!([piece, -1.0]));
    }
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
                           "split": true});
    build(
        &json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true}),
        &metaspace,
        &json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]}),
        &json!([added_tokens()[0], added_tokens()[1], added_tokens()[2]]),
    )
}
