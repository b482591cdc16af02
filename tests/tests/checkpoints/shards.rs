//! Files that should be there, and the index that says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nemoserve_tests::surgery::{Shard, edit_json};

use crate::{Case, check};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const LAST: &str = "model-00003-of-00003.safetensors";
/// In the first shard.
const EMBEDDING: &str = "backbone.embeddings.weight";

#[test]
fn an_index_is_what_its_shards_hold() {
    check(CASES);
}

pub(crate) const CASES: &[Case] = &[
    case(
        "neither index nor file",
        |folder| delete(folder, INDEX),
        &["neither model.safetensors nor model.safetensors.index.json is in this folder"],
    ),
    case(
        "an index that is no JSON",
        |folder| fs::write(folder.join(INDEX), "{\"weight_map\": {").expect("ours"),
        &["model.safetensors.index.json: not an index: EOF"],
    ),
    case(
        "an empty index",
        |folder| fs::write(folder.join(INDEX), "").expect("ours"),
        &["model.safetensors.index.json: not an index:"],
    ),
    case(
        "an index without a map",
        |folder| fs::write(folder.join(INDEX), "{\"metadata\": {}}").expect("ours"),
        &["model.safetensors.index.json: not an index: missing field `weight_map`"],
    ),
    case(
        "an index of nothing",
        |folder| fs::write(folder.join(INDEX), "{\"weight_map\": {}}").expect("ours"),
        &["model.safetensors.index.json: lists no tensors"],
    ),
    case(
        "a shard that is a number",
        |folder| map(folder, EMBEDDING, 1),
        &[
            "model.safetensors.index.json: not an index:",
            "backbone.embeddings.weight",
        ],
    ),
    case(
        "one name twice in the index",
        |folder| {
            let path = folder.join(INDEX);
            let text = fs::read_to_string(&path).expect("it is there");
            let twice = text.replace("\"lm_head.weight\"", "\"backbone.norm_f.weight\"");
            fs::write(&path, twice).expect("ours");
        },
        &["index.json: tensor \"backbone.norm_f.weight\" is listed twice"],
    ),
    case(
        "a shard is missing",
        |folder| delete(folder, SECOND),
        &["model-00002-of-00003.safetensors: No such file"],
    ),
    case(
        "a shard is cut short",
        |folder| {
            let path = folder.join(LAST);
            let bytes = fs::read(&path).expect("it is there");
            fs::write(&path, &bytes[..bytes.len() / 2]).expect("ours");
        },
        &["model-00003-of-00003.safetensors: truncated: tensor \""],
    ),
    case(
        "a shard is another one's copy",
        |folder| {
            fs::copy(folder.join(FIRST), folder.join(SECOND)).expect("a copy");
        },
        &[
            "model-00002-of-00003.safetensors: tensor \"",
            "is here, the index says model-00001-of",
        ],
    ),
    case(
        "the index names the wrong shard",
        |folder| map(folder, EMBEDDING, LAST),
        &[
            "model-00001-of-00003.safetensors: tensor \"backbone.embeddings.weight\" is here",
            "the index says model-00003-of-00003.safetensors",
        ],
    ),
    case(
        "the index names a shard that never was",
        |folder| map(folder, EMBEDDING, "model-00004-of-00003.safetensors"),
        &["model-00001-of-00003.safetensors: tensor \"backbone.embeddings.weight\" is here"],
    ),
    case(
        "the index promises a tensor that no shard holds",
        |folder| map(folder, "backbone.layers.0.mixer.in_proj.bias", FIRST),
        &[
            "model-00001-of-00003.safetensors: tensor \"backbone.layers.0.mixer.in_proj.bias\"",
            "is missing, the index says it is here",
        ],
    ),
    case(
        "a shard holds a tensor that the index does not know",
        |folder| {
            edit(folder, SECOND, |shard| {
                shard.push("extra", "BF16", &[2], &[0; 4]);
            });
        },
        &["model-00002-of-00003.safetensors: tensor \"extra\" is not in the index"],
    ),
    case(
        "one tensor in two shards",
        |folder| {
            edit(folder, SECOND, |shard| {
                shard.push(EMBEDDING, "BF16", &[1], &[0; 2]);
            });
        },
        &[
            "model-00002-of-00003.safetensors: tensor \"backbone.embeddings.weight\" is here",
            "the index says model-00001-of-00003.safetensors",
        ],
    ),
    case(
        "the index leads out of the folder",
        |folder| map(folder, EMBEDDING, "../model-00001-of-00003.safetensors"),
        &[
            "\"backbone.embeddings.weight\" lies in \"../model-00001-of",
            "leaves the folder",
        ],
    ),
    case(
        "the index names an absolute path",
        |folder| map(folder, EMBEDDING, "/etc/passwd"),
        &["\"backbone.embeddings.weight\" lies in \"/etc/passwd\", which leaves the folder"],
    ),
    case(
        "the index names no file at all",
        |folder| map(folder, EMBEDDING, ""),
        &["tensor \"backbone.embeddings.weight\" lies in \"\""],
    ),
    case(
        "a shard links out of the folder",
        |folder| {
            delete(folder, FIRST);
            symlink("/etc/hostname", folder.join(FIRST)).expect("a link");
        },
        &["model-00001-of-00003.safetensors: leads out of the model folder, to /etc/hostname"],
    ),
    case(
        "a shard links to nothing",
        |folder| {
            delete(folder, FIRST);
            symlink("gone", folder.join(FIRST)).expect("a link");
        },
        &["model-00001-of-00003.safetensors: No such file"],
    ),
    case(
        "a shard is a folder",
        |folder| {
            delete(folder, FIRST);
            fs::create_dir(folder.join(FIRST)).expect("a folder");
        },
        &["model-00001-of-00003.safetensors: is not a regular file"],
    ),
    case(
        "the single file is a folder",
        |folder| fs::create_dir(folder.join("model.safetensors")).expect("a folder"),
        &["model.safetensors: is not a regular file"],
    ),
    case(
        "the index links out of the folder",
        |folder| {
            delete(folder, INDEX);
            symlink("/etc/hostname", folder.join(INDEX)).expect("a link");
        },
        &["model.safetensors.index.json: leads out of the model folder, to /etc/hostname"],
    ),
];

const fn case(name: &'static str, break_it: fn(&Path), expect: &'static [&'static str]) -> Case {
    Case {
        name,
        fixture: "ultra",
        break_it,
        expect,
    }
}

fn delete(folder: &Path, file: &str) {
    fs::remove_file(folder.join(file)).expect("the fixture has it");
}

fn map(folder: &Path, tensor: &str, shard: impl Into<serde_json::Value>) {
    edit_json(&folder.join(INDEX), |index| {
        index["weight_map"][tensor] = shard.into();
    });
}

fn edit(folder: &Path, shard: &str, change: impl FnOnce(&mut Shard)) {
    let path = folder.join(shard);
    let mut shard = Shard::read(&path);
    change(&mut shard);
    shard.write(&path);
}
