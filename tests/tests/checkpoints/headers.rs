//! The file itself: length, header, offsets.

use std::fs;
use std::path::Path;

use nemoserve_tests::surgery::{Shard, write_raw};
use serde_json::json;

use crate::{Case, check};

const FILE: &str = "model.safetensors";
/// Neither first nor last in the file.
const TENSOR: &str = "backbone.layers.0.mixer.in_proj.weight";

#[test]
fn a_file_is_what_its_header_says() {
    check(CASES);
}

pub(crate) const CASES: &[Case] = &[
    case(
        "empty file",
        |folder| rewrite(folder, |_| Vec::new()),
        &["model.safetensors: is empty"],
    ),
    case(
        "cut inside the header's length",
        |folder| rewrite(folder, |bytes| bytes[..5].to_vec()),
        &["model.safetensors: 5 bytes cannot hold a header"],
    ),
    case(
        "cut inside the header",
        |folder| rewrite(folder, |bytes| bytes[..100].to_vec()),
        &[
            "model.safetensors: truncated: the header claims",
            "92 follow",
        ],
    ),
    case(
        "cut inside the data",
        |folder| rewrite(folder, |bytes| bytes[..bytes.len() - 1].to_vec()),
        &["model.safetensors: truncated: tensor \"", "the data at"],
    ),
    case(
        "header length beyond the file",
        |folder| rewrite(folder, |bytes| with_length(bytes, bytes.len() as u64)),
        &["model.safetensors: truncated: the header claims"],
    ),
    case(
        "header length beyond all files",
        |folder| rewrite(folder, |bytes| with_length(bytes, u64::MAX)),
        &["the header claims 18446744073709551615 bytes, the format allows 100000000"],
    ),
    case(
        "header length zero",
        |folder| rewrite(folder, |bytes| with_length(bytes, 0)),
        &["model.safetensors: header:"],
    ),
    case(
        "header length one short",
        |folder| {
            rewrite(folder, |bytes| {
                let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
                let text = std::str::from_utf8(&bytes[8..8 + length as usize]).expect("JSON");
                // The writer pads with spaces: one short of the closing brace.
                with_length(bytes, text.trim_end().len() as u64 - 1)
            });
        },
        &["model.safetensors: header: EOF"],
    ),
    case(
        "header that is no JSON",
        |folder| write_raw(&folder.join(FILE), b"hello", &[0; 8]),
        &["model.safetensors: header: expected value"],
    ),
    case(
        "header that is no UTF-8",
        |folder| write_raw(&folder.join(FILE), b"{\"\xff\xfe\":0}", &[0; 8]),
        &["model.safetensors: header: invalid utf-8"],
    ),
    case(
        "header that is no object",
        |folder| write_raw(&folder.join(FILE), b"[1, 2]", &[]),
        &["model.safetensors: header: invalid type: sequence, expected an object"],
    ),
    case(
        "header nested beyond reason",
        |folder| {
            let deep = ["{\"a\":", &"[".repeat(100_000)].concat();
            write_raw(&folder.join(FILE), deep.as_bytes(), &[]);
        },
        &["model.safetensors: header:", "recursion limit"],
    ),
    case(
        "another format behind the name",
        |folder| {
            rewrite(folder, |_| {
                b"PK\x03\x04 a zip archive, as torch.save makes it".to_vec()
            });
        },
        &["model.safetensors: the header claims"],
    ),
    case(
        "Git LFS pointer instead of the file",
        |folder| {
            rewrite(folder, |_| {
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec()
            });
        },
        &["model.safetensors: is a Git LFS pointer"],
    ),
    case(
        "no tensors",
        |folder| write_raw(&folder.join(FILE), b"{}", &[]),
        &[
            "model.safetensors: tensor \"backbone.embeddings.weight\"",
            "is missing",
        ],
    ),
    case(
        "bytes after the last tensor",
        |folder| edit(folder, |shard| shard.data.extend([0; 3])),
        &["model.safetensors: 3 bytes follow the last tensor"],
    ),
    case(
        "two tensors share bytes",
        |folder| {
            edit(folder, |shard| {
                let (begin, end) = shard.offsets(TENSOR);
                shard.entry(TENSOR)["data_offsets"] = json!([begin - 2, end - 2]);
            });
        },
        &[
            "tensor \"backbone.layers.0.mixer.in_proj.weight\" begins at",
            "inside \"",
        ],
    ),
    case(
        "two tensors are the same bytes",
        |folder| {
            edit(folder, |shard| {
                let copy = shard.entry(TENSOR).clone();
                shard.header.insert("lm_head.weight.copy".to_owned(), copy);
            });
        },
        &[
            "tensor \"lm_head.weight.copy\" begins at",
            "inside \"backbone.layers.0.mixer.in_proj",
        ],
    ),
    case(
        "a hole between two tensors",
        |folder| {
            edit(folder, |shard| {
                let (begin, _) = shard.offsets(TENSOR);
                shard.remove(TENSOR);
                for (_, entry) in shard
                    .header
                    .iter_mut()
                    .filter(|(name, _)| !name.starts_with("__"))
                {
                    let offsets = &mut entry["data_offsets"];
                    let [from, to] =
                        [0, 1].map(|i| offsets[i].as_u64().expect("an offset") as usize);
                    if from >= begin {
                        *offsets = json!([from + 4, to + 4]);
                    }
                }
                shard.data.extend([0; 4]);
            });
        },
        &["model.safetensors: nothing owns the bytes"],
    ),
    case(
        "offsets beyond the data",
        |folder| {
            edit(folder, |shard| {
                let bytes = shard.data.len();
                shard.remove("lm_head.weight");
                let entry = json!({"dtype": "BF16", "shape": [320, 40],
                    "data_offsets": [bytes - 25600, bytes]});
                shard.header.insert("lm_head.weight".to_owned(), entry);
            });
        },
        &["model.safetensors: truncated: tensor \"lm_head.weight\" ends at"],
    ),
    case(
        "offsets beyond all memory",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["data_offsets"] = json!([u64::MAX - 1, u64::MAX]);
            });
        },
        &[
            "tensor \"backbone.layers.0.mixer.in_proj.weight\"",
            "18446744073709551615",
        ],
    ),
    case(
        "offsets backwards",
        |folder| {
            edit(folder, |shard| {
                let (begin, end) = shard.offsets(TENSOR);
                shard.entry(TENSOR)["data_offsets"] = json!([end, begin]);
            });
        },
        &[
            "tensor \"backbone.layers.0.mixer.in_proj.weight\"",
            "its offsets are",
        ],
    ),
    case(
        "offsets that do not fit the shape",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["shape"] = json!([184, 39]);
            });
        },
        &["tensor \"backbone.layers.0.mixer.in_proj.weight\": BF16 [184, 39] takes 14352 bytes"],
    ),
    case(
        "three offsets",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["data_offsets"] = json!([0, 1, 2]);
            });
        },
        &["tensor \"backbone.layers.0.mixer.in_proj.weight\":"],
    ),
    case(
        "no offsets",
        |folder| {
            edit(folder, |shard| {
                let entry = shard.entry(TENSOR).as_object_mut().expect("an object");
                entry.remove("data_offsets");
            });
        },
        &["tensor \"backbone.layers.0.mixer.in_proj.weight\": missing field `data_offsets`"],
    ),
    case(
        "a negative size",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["shape"] = json!([-184, -40]);
            });
        },
        &["tensor \"backbone.layers.0.mixer.in_proj.weight\":", "-184"],
    ),
    case(
        "a size that is no integer",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["shape"] = json!([184.5, 40]);
            });
        },
        &[
            "tensor \"backbone.layers.0.mixer.in_proj.weight\":",
            "184.5",
        ],
    ),
    case(
        "sizes whose product overflows",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["shape"] = json!([1_u64 << 40, 1_u64 << 40]);
            });
        },
        &[
            "tensor \"backbone.layers.0.mixer.in_proj.weight\": shape",
            "overflows",
        ],
    ),
    case(
        "an element type nobody knows",
        |folder| edit(folder, |shard| shard.entry(TENSOR)["dtype"] = json!("BF17")),
        &["tensor \"backbone.layers.0.mixer.in_proj.weight\": unknown element type \"BF17\""],
    ),
    case(
        "a field nobody knows",
        |folder| {
            edit(folder, |shard| {
                shard.entry(TENSOR)["strides"] = json!([1, 40]);
            });
        },
        &["tensor \"backbone.layers.0.mixer.in_proj.weight\": unknown field `strides`"],
    ),
    case(
        "one name twice",
        |folder| {
            let path = folder.join(FILE);
            let shard = Shard::read(&path);
            let header = serde_json::to_string(&shard.header).expect("JSON");
            let again = "backbone.layers.3.mixer.gate.weight";
            let header = header.replace(again, "backbone.layers.1.mixer.gate.weight");
            write_raw(&path, header.as_bytes(), &shard.data);
        },
        &["model.safetensors: tensor \"backbone.layers.1.mixer.gate.weight\" is listed twice"],
    ),
];

const fn case(name: &'static str, break_it: fn(&Path), expect: &'static [&'static str]) -> Case {
    Case {
        name,
        fixture: "super",
        break_it,
        expect,
    }
}

fn edit(folder: &Path, change: impl FnOnce(&mut Shard)) {
    let path = folder.join(FILE);
    let mut shard = Shard::read(&path);
    change(&mut shard);
    shard.write(&path);
}

fn rewrite(folder: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) {
    let path = folder.join(FILE);
    let bytes = fs::read(&path).expect("the copy has it");
    fs::write(&path, change(&bytes)).expect("the copy is ours");
}

fn with_length(bytes: &[u8], length: u64) -> Vec<u8> {
    [&length.to_le_bytes()[..], &bytes[8..]].concat()
}
