//! The public JSON schema test suite, as far as it is supported: masks let every valid instance
//! through and no invalid one, and what is refused is exactly what `refused.txt` lists.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use common::{accepts, as_any_of, compile_schema, workspace};
use constraint::GrammarError;
use serde_json::Value;

/// Valid, and left out by the masks: leap seconds at other offsets than zero, see `formats.rs`.
const LEFT_OUT: [&str; 5] = [
    "1998-12-31T15:59:60.123-08:00",
    "01:29:60+01:30",
    "23:29:60+23:30",
    "15:59:60-08:00",
    "00:29:60-23:30",
];

#[test]
fn masks_agree_with_the_public_suite() {
    let suite = workspace("tests/fixtures/json-schema-suite");
    let mut refused = String::new();
    let mut wrong = Vec::new();
    let (mut num_instances, mut num_left_out) = (0, 0);
    for file in files(&suite.join("draft2020-12")) {
        let name = file
            .strip_prefix(&suite)
            .expect("below")
            .display()
            .to_string();
        let text = fs::read_to_string(&file).expect("the fixture can be read");
        let groups: Value = serde_json::from_str(&text).expect("the fixture is JSON");
        for group in groups.as_array().expect("a list of groups") {
            let what = group["description"].as_str().expect("a description");
            let grammar = match compile_schema(&group["schema"]) {
                Ok(grammar) => grammar,
                Err(GrammarError::Unsatisfiable { .. }) => {
                    // Then no instance may be valid.
                    for test in group["tests"].as_array().expect("a list of tests") {
                        if test["valid"] == true {
                            wrong.push(format!("{name}: {what}: unsatisfiable, but {test}"));
                        }
                    }
                    continue;
                }
                Err(error) => {
                    writeln!(refused, "{name}: {what}: {error}").expect("a string takes all");
                    continue;
                }
            };
            let judge = jsonschema::validator_for(&as_any_of(&group["schema"]));
            for test in group["tests"].as_array().expect("a list of tests") {
                num_instances += 1;
                let data = &test["data"];
                // `oneOf` is held as `anyOf`.
                let valid = match &judge {
                    Ok(judge) if group["schema"].to_string().contains("oneOf") => {
                        judge.is_valid(data)
                    }
                    _ => test["valid"] == true,
                };
                let accepted = spellings(data).iter().any(|text| accepts(&grammar, text));
                if !accepted && data.as_str().is_some_and(|text| LEFT_OUT.contains(&text)) {
                    num_left_out += 1;
                } else if accepted != valid {
                    wrong.push(format!(
                        "{name}: {what}: {}: {data} should be {valid}",
                        test["description"]
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        num_instances > 900,
        "only {num_instances} instances were tried"
    );
    assert_eq!(num_left_out, LEFT_OUT.len());
    let expected = fs::read_to_string(suite.join("refused.txt")).expect("the list is there");
    assert!(refused == expected, "refused now:\n{refused}");
}

fn files(folder: &Path) -> BTreeSet<std::path::PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

/// The compact texts of a value: with its keys in every order, because the schema's order is the only
/// one that the grammar lets through, and 1.0 also as 1.
fn spellings(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let members: Vec<(String, Vec<String>)> = members
                .iter()
                .map(|(key, value)| (Value::from(key.as_str()).to_string(), spellings(value)))
                .collect();
            let mut found = Vec::new();
            orders(&members, &mut Vec::new(), &mut found);
            found
        }
        Value::Array(items) => {
            let mut found = vec![String::new()];
            for item in items {
                let mut longer = Vec::new();
                for text in &found {
                    for item in spellings(item) {
                        let comma = if text.is_empty() { "" } else { "," };
                        longer.push(format!("{text}{comma}{item}"));
                    }
                }
                found = longer;
            }
            found.iter().map(|text| format!("[{text}]")).collect()
        }
        Value::Number(number) => {
            let text = number.to_string();
            let whole = text.strip_suffix(".0").map(str::to_owned);
            whole.into_iter().chain([text]).collect()
        }
        other => vec![other.to_string()],
    }
}

fn orders(rest: &[(String, Vec<String>)], done: &mut Vec<String>, found: &mut Vec<String>) {
    if rest.is_empty() {
        found.push(format!("{{{}}}", done.join(",")));
    }
    for (at, (key, values)) in rest.iter().enumerate() {
        let mut others = rest.to_vec();
        others.remove(at);
        for value in values {
            done.push(format!("{key}:{value}"));
            orders(&others, done, found);
            done.pop();
        }
    }
}
