//! The texts beside the weights: tokenizer, chat template, generation defaults.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::startup;
use nemoserve_tests::fixtures;
use nemoserve_tests::surgery::edit_json;
use serde_json::json;

use crate::{Case, check_through};

#[test]
fn texts_are_refused_by_name() {
    check_through(CASES, |folder| {
        startup::open(settings(folder)?)
            .map(drop)
            .map_err(|error| error.to_string())
    });
}

pub(crate) const CASES: &[Case] = &[
    case(
        "a tokenizer that is no JSON",
        |folder| write(folder, "tokenizer.json", b"vocab"),
        &["tokenizer.json: expected value"],
    ),
    case(
        "an empty tokenizer",
        |folder| write(folder, "tokenizer.json", b""),
        &["tokenizer.json: EOF"],
    ),
    case(
        "a tokenizer cut short",
        |folder| {
            let bytes = fs::read(folder.join("tokenizer.json")).expect("it is there");
            write(folder, "tokenizer.json", &bytes[..bytes.len() / 2]);
        },
        &["tokenizer.json: "],
    ),
    case(
        "a tokenizer without a model",
        |folder| write(folder, "tokenizer.json", b"{\"version\": \"1.0\"}"),
        &["tokenizer.json: "],
    ),
    case(
        "a tokenizer of a kind nobody knows",
        |folder| {
            edit_json(&folder.join("tokenizer.json"), |tokenizer| {
                tokenizer["model"]["type"] = json!("Runes");
            });
        },
        &["tokenizer.json: "],
    ),
    case(
        "a merge of tokens that are not there",
        |folder| {
            edit_json(&folder.join("tokenizer.json"), |tokenizer| {
                tokenizer["model"]["merges"] = json!([["qqq", "zzz"]]);
            });
        },
        &["tokenizer.json: ", "qqq"],
    ),
    case(
        "a token that the model does not know",
        |folder| {
            edit_json(&folder.join("tokenizer.json"), |tokenizer| {
                let token = json!({"id": 5000, "content": "<far>", "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false, "special": true});
                let added = tokenizer["added_tokens"].as_array_mut();
                added.expect("a list").push(token);
            });
        },
        &["tokenizer.json: it has ids up to ", "`vocab_size` is "],
    ),
    case(
        "a normaliser whose table is none",
        |folder| {
            edit_json(&folder.join("tokenizer.json"), |tokenizer| {
                let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
                tokenizer["normalizer"] = table;
            });
        },
        &["tokenizer.json: the tokenizers library cannot read it"],
    ),
    case(
        "a tokenizer that is a folder",
        |folder| {
            fs::remove_file(folder.join("tokenizer.json")).expect("it is there");
            fs::create_dir(folder.join("tokenizer.json")).expect("a folder");
        },
        &["tokenizer.json: "],
    ),
    case(
        "tokenizer settings that are no JSON",
        |folder| write(folder, "tokenizer_config.json", b"{"),
        &["tokenizer_config.json: EOF"],
    ),
    case(
        "a chat template that does not close",
        |folder| {
            write(
                folder,
                "chat_template.jinja",
                b"{% for message in messages %}",
            );
        },
        &["chat template: "],
    ),
    case(
        "a chat template that is no UTF-8",
        |folder| write(folder, "chat_template.jinja", b"\xff\xfe"),
        &["chat_template.jinja: not UTF-8"],
    ),
    case(
        "generation defaults that are no JSON",
        |folder| write(folder, "generation_config.json", b"temperature = 1"),
        &["generation_config.json: expected ident at line 1 column 2"],
    ),
    case(
        "an end id in words",
        |folder| {
            write(
                folder,
                "generation_config.json",
                b"{\"eos_token_id\": \"</s>\"}",
            );
        },
        &["generation_config.json: `eos_token_id` is \"</s>\""],
    ),
    case(
        "an end id below zero",
        |folder| {
            write(
                folder,
                "generation_config.json",
                b"{\"eos_token_id\": [2, -1]}",
            );
        },
        &["generation_config.json: `eos_token_id` is [2,-1]"],
    ),
    case(
        "a temperature below zero",
        |folder| write(folder, "generation_config.json", b"{\"temperature\": -1}"),
        &["generation_config.json: `temperature` is -1"],
    ),
];

#[test]
fn any_changed_byte_of_a_tokenizer_is_survived() {
    let folder = fixtures::copy("super");
    let path = folder.path().join("tokenizer.json");
    let sound = fs::read(&path).expect("it is there");
    // A prime stride meets every kind of place; all of them would take a minute.
    for at in (0..sound.len()).step_by(11) {
        let mut bytes = sound.clone();
        bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
        write(folder.path(), "tokenizer.json", &bytes);
        let settings = settings(folder.path()).expect("its bytes are only read");
        let outcome = catch_unwind(AssertUnwindSafe(|| settings.tokenizer().map(drop)));
        assert!(outcome.is_ok(), "byte {at} of tokenizer.json: panicked");
    }
}

const fn case(name: &'static str, break_it: fn(&Path), expect: &'static [&'static str]) -> Case {
    Case {
        name,
        fixture: "super",
        break_it,
        expect,
    }
}

fn settings(folder: &Path) -> Result<Settings, String> {
    let args = ServeArgs {
        model: Some(folder.to_owned()),
        device: Some("cpu".into()),
        cache_memory: Some("64MiB".into()),
        ..ServeArgs::default()
    };
    Settings::new(&args).map_err(|error| error.to_string())
}

fn write(folder: &Path, file: &str, bytes: &[u8]) {
    fs::write(folder.join(file), bytes).expect("the copy is ours");
}
