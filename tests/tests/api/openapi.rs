//! The document against what the server does: every documented parameter is read, within its range and
//! not beyond; everything that is read is documented; every answer fits its schema.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::server::{Reply, Server};

/// The document, with what a test wants to know of it.
struct Document(Value);

/// A route that reads a body.
#[derive(Clone)]
struct Route {
    path: String,
    /// The smallest body that is answered.
    example: Map<String, Value>,
    properties: Map<String, Value>,
    /// Of the answer; `None`: it never succeeds.
    answer: Option<Validator>,
}

impl Document {
    async fn of(server: &Server) -> Self {
        let reply = server.get("/openapi.json").await;
        assert_eq!(reply.status, 200);
        Self(serde_json::from_str(&reply.body).expect("JSON"))
    }

    /// A schema without references at its top; `null` is allowed for whatever is optional.
    fn resolve(&self, schema: &Value) -> Value {
        if let Some(target) = schema["$ref"].as_str() {
            let found = self.0.pointer(&target[1..]);
            return self.resolve(found.expect("references lead somewhere"));
        }
        let parts = schema["anyOf"].as_array().into_iter().flatten();
        let mut parts = parts.filter(|part| part["type"] != "null");
        match (parts.next(), parts.next()) {
            (Some(only), None) => self.resolve(only),
            _ => schema.clone(),
        }
    }

    /// Judges by `schema`; a closed one has no room for undocumented members.
    fn validator(&self, schema: &Value, closed: bool) -> Validator {
        let mut root = schema.clone();
        root["components"] = self.0["components"].clone();
        if closed {
            close(&mut root);
        }
        jsonschema::draft202012::new(&root).expect("it is a schema")
    }

    fn routes(&self) -> Vec<Route> {
        let paths = self.0["paths"].as_object().expect("paths");
        let with_body = paths.iter().filter_map(|(path, methods)| {
            let body = &methods["post"]["requestBody"]["content"]["application/json"];
            let mut example = body["example"].as_object()?.clone();
            if example.contains_key("model") {
                example["model"] = json!("test");
            }
            let mut schema = self.resolve(&body["schema"]);
            // One of several forms: the one that the example has.
            let forms = schema["anyOf"].as_array().into_iter().flatten();
            let is_examples = |form: &Value| {
                let mut required = form["required"].as_array().into_iter().flatten();
                required.all(|name| example.contains_key(name.as_str().expect("a name")))
            };
            let form = forms.map(|form| self.resolve(form)).find(is_examples);
            schema = form.unwrap_or(schema);
            let answer = &methods["post"]["responses"]["200"]["content"]["application/json"];
            Some(Route {
                path: path.replace("{model}", "test").replace("{account}", "a"),
                example,
                properties: schema["properties"]
                    .as_object()
                    .cloned()
                    .unwrap_or_default(),
                answer: answer
                    .is_object()
                    .then(|| self.validator(&answer["schema"], true)),
            })
        });
        with_body.collect()
    }
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") && !map.contains_key("additionalProperties") {
                map.insert("unevaluatedProperties".into(), false.into());
            }
            map.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

impl Route {
    /// The example with a parameter, and what that parameter needs beside it.
    async fn with(&self, server: &Server, name: &str, value: &Value) -> Reply {
        let tool = json!({"name": "f", "parameters": {"type": "object"}});
        let tools = match self.path.as_str() {
            "/v1/responses" => json!([{"type": "function", "name": "f"}]),
            path if path.starts_with("/v1/messages") => {
                json!([{"name": "f", "input_schema": {"type": "object"}}])
            }
            _ => json!([{"type": "function", "function": tool}]),
        };
        let mut body = self.example.clone();
        match name {
            "top_logprobs" => body.insert("logprobs".into(), true.into()),
            "stream_options" => body.insert("stream".into(), true.into()),
            "tool_choice" => body.insert("tools".into(), tools),
            "function_call" => body.insert("functions".into(), json!([tool])),
            _ => None,
        };
        body.insert(name.into(), value.clone());
        server
            .post(&self.path, Value::Object(body).to_string())
            .await
    }

    async fn takes(&self, server: &Server, name: &str, value: Value) {
        let reply = self.with(server, name, &value).await;
        let what = format!("{} {name}={value}: {}", self.path, reply.body);
        if name.starts_with("max_") && reply.body.contains("maximum context length") {
            // In range, and more than this window has.
            return;
        }
        assert_eq!(reply.status, 200, "{what}");
        if reply.head.contains("application/json") {
            let answer = serde_json::from_str(&reply.body).expect("JSON");
            let errors: Vec<String> = self
                .answer
                .as_ref()
                .into_iter()
                .flat_map(|schema| schema.iter_errors(&answer))
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{what}: {errors:?}");
        }
    }

    /// 400, and the error says which parameter.
    async fn refuses(&self, server: &Server, name: &str, value: Value) {
        let reply = self.with(server, name, &value).await;
        let what = format!("{} {name}={value}: {}", self.path, reply.body);
        assert_eq!(reply.status, 400, "{what}");
        assert!(reply.body.contains(name), "{what}");
    }
}

/// Something of a type that the schema does not have.
fn misfit(schema: &Validator) -> Value {
    let candidates = [json!({"x": {}}), json!([[[{}]]]), json!(true), json!("x y")];
    let misfit = candidates.into_iter().find(|value| !schema.is_valid(value));
    misfit.expect("no parameter takes everything")
}

/// Ends of a number's range, and what lies just beyond them.
fn ends(schema: &Value) -> Vec<(Value, Option<Value>)> {
    let beyond = |end: &Value, step: i64| match end.as_i64() {
        Some(end) => end.checked_add(step).map(Value::from),
        // Beyond what 64 bits hold.
        None => Some(json!(end.as_f64().expect("a number") * 2.0)),
    };
    let mut ends = Vec::new();
    if !schema["minimum"].is_null() {
        ends.push((schema["minimum"].clone(), beyond(&schema["minimum"], -1)));
    }
    if !schema["maximum"].is_null() {
        ends.push((schema["maximum"].clone(), beyond(&schema["maximum"], 1)));
    }
    ends
}

/// Names of the words of an enumeration, however the schema says it.
fn words(document: &Document, schema: &Value) -> Vec<Value> {
    let parts = ["enum", "oneOf", "anyOf"].map(|key| schema[key].as_array().cloned());
    let [plain, one_of, any_of] = parts.map(Option::unwrap_or_default);
    let nested = one_of.iter().chain(&any_of).flat_map(|part| {
        let part = document.resolve(part);
        match &part["const"] {
            Value::String(word) => vec![json!(word)],
            _ => words(document, &part),
        }
    });
    let plain = plain.iter().filter(|word| word.is_string()).cloned();
    plain.chain(nested).collect()
}

#[tokio::test]
async fn every_documented_parameter_is_read_within_its_range_and_not_beyond() {
    let server = Server::start().await;
    let document = Document::of(&server).await;
    let mut num_probes = 0;
    for route in document.routes() {
        if route.answer.is_none() {
            continue;
        }
        for (name, schema) in &route.properties {
            let named = document.resolve(schema);
            route
                .refuses(&server, name, misfit(&document.validator(schema, false)))
                .await;
            for (end, beyond) in ends(&named) {
                route.takes(&server, name, end).await;
                if let Some(beyond) = beyond {
                    route.refuses(&server, name, beyond).await;
                }
                num_probes += 1;
            }
            if let Some(end) = named["exclusiveMinimum"].as_i64() {
                route.refuses(&server, name, json!(end)).await;
            }
            if let Some(max) = named["maxLength"].as_u64() {
                route
                    .takes(&server, name, json!("x".repeat(max as usize)))
                    .await;
                let beyond = "x".repeat(max as usize + 1);
                route.refuses(&server, name, json!(beyond)).await;
            }
            let known = words(&document, &named);
            if !known.is_empty() && name != "model" {
                for word in known {
                    route.takes(&server, name, word).await;
                }
                route.refuses(&server, name, json!("no such word")).await;
            }
            for (member, schema) in named["properties"].as_object().into_iter().flatten() {
                let path = format!("{name}.{member}");
                let value = misfit(&document.validator(schema, false));
                let reply = route.with(&server, name, &json!({member: value})).await;
                assert_eq!(reply.status, 400, "{} {path}={value}", route.path);
                assert!(reply.body.contains(&path), "{path}: {}", reply.body);
                for (_, beyond) in ends(&document.resolve(schema)) {
                    let value = json!({member: beyond});
                    let reply = route.with(&server, name, &value).await;
                    assert_eq!(reply.status, 400, "{} {name}={value}", route.path);
                }
                num_probes += 1;
            }
        }
    }
    assert!(
        num_probes > 100,
        "only {num_probes}: the probes find nothing"
    );
}

#[tokio::test]
async fn every_answer_fits_its_schema_with_nothing_left_over() {
    let server = Server::start().await;
    let words = server
        .tokenizer
        .encode("a thought</think>Hello, wörld", false);
    server.script.say(&words.expect("text has tokens"));
    let document = Document::of(&server).await;
    for route in document.routes() {
        if route.answer.is_none() {
            continue;
        }
        for more in [
            json!({}),
            json!({"logprobs": true, "top_logprobs": 2, "n": 2}),
            json!({"logprobs": 2, "echo": true}),
            json!({"return_token_ids": true, "prompt_logprobs": 1, "stream": false}),
        ] {
            let is_legacy = route.path.contains("/completions") && !route.path.contains("chat");
            if more["logprobs"].is_u64() != is_legacy && !more["logprobs"].is_null() {
                continue;
            }
            let mut varied = route.clone();
            let more = more.as_object().expect("an object").clone();
            varied.example.extend(more);
            varied.takes(&server, "user", json!("me")).await;
        }
    }
    for path in [
        "/v1/models",
        "/v1/models/test",
        "/api/v1/models",
        "/health",
        "/ready",
    ] {
        let pattern = path.replace("/test", "/{id}");
        let operation = &document.0["paths"][pattern]["get"];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let answer = serde_json::from_str(&server.get(path).await.body).expect("JSON");
        let result = document
            .validator(schema, true)
            .validate(&answer)
            .map_err(|error| error.to_string());
        assert_eq!(result, Ok(()), "{path}: {answer}");
    }
}

#[tokio::test]
async fn every_error_fits_its_schema() {
    let server = Server::start().await;
    let document = Document::of(&server).await;
    for (path, methods) in document.0["paths"].as_object().expect("paths") {
        let failures = &methods["post"]["responses"];
        if failures.is_null() {
            continue;
        }
        let path = path.replace("{model}", "test").replace("{account}", "a");
        for (method, body, status) in [("POST", "[]", "400"), ("PUT", "", "405")] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let reply = server.send(request.as_bytes()).await;
            assert_eq!(reply.status.to_string(), status, "{path}");
            let schema = &failures[status]["content"]["application/json"]["schema"];
            let error = serde_json::from_str(&reply.body).expect("JSON");
            let schema = document.validator(schema, true);
            assert!(schema.is_valid(&error), "{path}: {error}");
        }
    }
}

/// The other direction: a name that some reader asks for and the document does not have.
#[tokio::test]
async fn everything_that_is_read_is_documented() {
    fn names(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                let properties = map.get("properties").and_then(Value::as_object);
                found.extend(properties.into_iter().flat_map(Map::keys).cloned());
                map.values().for_each(|value| names(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| names(item, found)),
            _ => {}
        }
    }
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("it can be read").path();
            match path.extension() {
                _ if path.is_dir() => sources(&path, found),
                Some(kind) if kind == "rs" => found.push(path),
                _ => {}
            }
        }
    }
    let server = Server::start().await;
    let mut documented = BTreeSet::new();
    names(
        &Document::of(&server).await.0["components"],
        &mut documented,
    );
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/api");
    let mut files = Vec::new();
    sources(&api, &mut files);
    let (mut num_read, mut missing) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).expect("sources are UTF-8");
        let text = text.split("#[cfg(test)]").next().expect("split gives one");
        for reader in [
            "bool",
            "int",
            "number",
            "string",
            "short_string",
            "word",
            "array",
            "object",
        ] {
            for rest in text.split(&format!("{reader}(\"")).skip(1) {
                let name = rest.split('"').next().expect("split gives one");
                num_read += 1;
                if !documented.contains(name) {
                    missing.push(format!("{name} in {}", file.display()));
                }
            }
        }
    }
    assert!(
        num_read > 50,
        "only {num_read}: the readers have other names"
    );
    assert!(missing.is_empty(), "read and not documented: {missing:#?}");
}
