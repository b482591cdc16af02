//! `/openapi.json`: the whole API as one document, made from the route table and from types.
//!
//! The route table gives paths, methods and whose manners they have; [`describe`] says what an endpoint
//! takes and gives. The types below this module exist for their schemas: requests are read by hand
//! (`fields`), answers are written from borrowed data (`types`). So that neither drifts away, the tests
//! send every parameter of every route in and out of its documented range, and hold every answer to its
//! schema with no field left over (`tests/tests/api/openapi.rs`).

pub mod answer;
pub mod blocks;
pub mod flavours;
pub mod items;
pub mod message;
pub mod request;
pub mod utility;

use std::sync::OnceLock;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use http_body_util::{BodyExt as _, Full};
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::debug;
use super::flavour::Flavour;
use super::priority;
use crate::router::{Endpoint, routes};
use crate::state::Response;

/// The document.
pub fn document() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| build().to_string());
    let mut response = http::Response::new(Full::new(Bytes::from(text.as_str())).boxed_unsync());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The document as JSON.
pub fn build() -> Value {
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    for (pattern, endpoint, flavour) in routes() {
        let Some(operation) = describe(endpoint, flavour, &mut schemas) else {
            continue;
        };
        let methods = operation.into_methods(pattern, endpoint, flavour, &mut schemas);
        paths.insert(path_template(pattern), methods);
    }
    let schemas = schemas.finish();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "nemoserve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One model, under the APIs that its clients already speak. `null` for an \
                optional parameter means that it is not given; unknown parameters are ignored; nothing is \
                coerced, but 5.0 is an integer. Bodies are JSON whatever their content type.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "headers": {
                "RequestId": {
                    "description": "The client's own if it matches `[A-Za-z0-9._-]{1,128}`, else a unique one.",
                    "required": true,
                    "schema": {"type": "string"},
                },
                "RetryAfter": {"description": "Seconds.", "schema": {"type": "integer"}},
                "RetryAfterMs": {
                    "description": "The same in milliseconds, which are exact.",
                    "schema": {"type": "integer"},
                },
                "RateLimit": {
                    "description": "Where the key has such a limit: what it may have in a minute.",
                    "schema": {"type": "integer"},
                },
                "RateRemaining": {
                    "description": "What is left of it now.",
                    "schema": {"type": "integer"},
                },
                "RateReset": {
                    "description": "How long until all of it is there again, such as `20ms`, `3s`, `1m30s`.",
                    "schema": {"type": "string"},
                },
                "ProcessingMs": {
                    "description": "Milliseconds; of a stream, until its headers.",
                    "schema": {"type": "integer"},
                },
            },
        },
    })
}

/// What an endpoint takes and gives.
struct Operation {
    tag: &'static str,
    summary: &'static str,
    /// The body, and the smallest one that is answered.
    request: Option<(Value, Value)>,
    /// Of 200: content type and schema.
    answer: (&'static str, Value),
    /// Of 200 with `stream`: a chunk.
    chunk: Option<Value>,
    /// A parameter of the query.
    query: Option<(&'static str, &'static str)>,
}

const JSON: &str = "application/json";
const NAME: &str = "nvidia/nemotron-3-super-120b-a12b";

/// `None`: a page, which is no part of the API.
fn describe(endpoint: Endpoint, flavour: Flavour, schemas: &mut Schemas) -> Option<Operation> {
    use answer as a;
    use flavours as f;
    use request as r;
    use utility as u;
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let chat = json!({"model": NAME, "messages": messages, "max_completion_tokens": 16});
    let completion = json!({"model": NAME, "prompt": "Once upon a time", "max_tokens": 16});
    let chat_body = |schemas: &mut Schemas| match flavour {
        Flavour::OpenRouter => schemas.request::<f::RouterChatBody>(),
        Flavour::Nvidia => schemas.nvidia::<r::ChatBody>("NvidiaChatBody"),
        _ => schemas.request::<r::ChatBody>(),
    };
    let completion_body = |schemas: &mut Schemas| match flavour {
        Flavour::OpenRouter => schemas.request::<f::RouterCompletionBody>(),
        Flavour::Nvidia => schemas.nvidia::<r::CompletionBody>("NvidiaCompletionBody"),
        _ => schemas.request::<r::CompletionBody>(),
    };
    Some(match endpoint {
        Endpoint::Playground | Endpoint::PlaygroundFile => return None,
        Endpoint::Chat => Operation {
            chunk: Some(schemas.answer::<a::ChatChunk>()),
            ..Operation::post(
                "Chat",
                "Answer a conversation",
                (chat_body(schemas), chat),
                schemas.answer::<a::ChatAnswer>(),
            )
        },
        Endpoint::Completions => Operation {
            chunk: Some(schemas.answer::<a::TextAnswer>()),
            ..Operation::post(
                "Completions",
                "Continue a text",
                (completion_body(schemas), completion),
                schemas.answer::<a::TextAnswer>(),
            )
        },
        Endpoint::Run => Operation {
            chunk: Some(schemas.answer::<a::ChatChunk>()),
            ..Operation::post(
                "Chat",
                "Answer a prompt or a conversation",
                (
                    schemas.request::<f::RunBody>(),
                    json!({"messages": messages, "max_tokens": 16}),
                ),
                match flavour {
                    Flavour::Cloudflare => schemas.answer::<a::ChatAnswer>(),
                    _ => schemas.answer::<f::RunAnswer>(),
                },
            )
        },
        Endpoint::RenderChat => Operation::post(
            "Tokens",
            "What the engine would be given for a chat; nothing is run",
            (chat_body(schemas), chat),
            schemas.answer::<u::Rendered>(),
        ),
        Endpoint::RenderCompletions => Operation::post(
            "Tokens",
            "What the engine would be given for a completion, per prompt; nothing is run",
            (completion_body(schemas), completion),
            schemas.answer::<Vec<u::Rendered>>(),
        ),
        Endpoint::Responses => Operation {
            chunk: Some(schemas.answer::<u::AnyObject>()),
            ..Operation::post(
                "Responses",
                "Answer items with items; events are named, and there is no `[DONE]`",
                (
                    schemas.request::<items::ResponsesBody>(),
                    json!({"model": NAME, "input": "Hello", "max_output_tokens": 16}),
                ),
                schemas.answer::<items::ResponsesAnswer>(),
            )
        },
        Endpoint::StoredResponse => Operation::get(
            "Responses",
            "A stored answer, to read or to forget",
            schemas.answer::<u::AnyObject>(),
        ),
        Endpoint::Messages => Operation {
            chunk: Some(schemas.answer::<u::AnyObject>()),
            ..Operation::post(
                "Messages",
                "Answer content blocks with content blocks; events are named, and there is no `[DONE]`",
                (
                    schemas.request::<blocks::MessagesBody>(),
                    json!({"model": NAME, "messages": messages, "max_tokens": 16}),
                ),
                schemas.answer::<blocks::MessagesAnswer>(),
            )
        },
        Endpoint::CountTokens => Operation::post(
            "Messages",
            "How long the prompt of a request would be",
            (
                schemas.request::<blocks::CountTokensBody>(),
                json!({"model": NAME, "messages": messages}),
            ),
            schemas.answer::<blocks::Count>(),
        ),
        Endpoint::Receipt => Operation {
            query: Some(("id", "Of a recent answer.")),
            ..Operation::get(
                "Models",
                "What a recent request used and cost",
                schemas.answer::<a::Receipt>(),
            )
        },
        Endpoint::Models => {
            let answer = match flavour {
                Flavour::OpenRouter => schemas.answer::<a::RouterModelList>(),
                _ => schemas.answer::<a::ModelList>(),
            };
            Operation::get("Models", "List the names of the loaded model", answer)
        }
        Endpoint::Model => Operation::get(
            "Models",
            "Look up a name of the loaded model",
            schemas.answer::<a::ModelEntry>(),
        ),
        Endpoint::Embeddings => Operation::post(
            "Models",
            "Always 400: the model generates text",
            (schemas.request::<u::AnyObject>(), json!({})),
            Value::Bool(false),
        ),
        Endpoint::Tokenize => Operation::post(
            "Tokens",
            "Text or a conversation to token ids",
            (
                schemas.request::<u::TokenizeBody>(),
                json!({"prompt": "Once upon a time"}),
            ),
            schemas.answer::<u::Tokens>(),
        ),
        Endpoint::Detokenize => Operation::post(
            "Tokens",
            "Token ids to text",
            (
                schemas.request::<u::DetokenizeBody>(),
                json!({"tokens": [1, 2]}),
            ),
            schemas.answer::<u::Text>(),
        ),
        Endpoint::OpenApi => Operation::get(
            "Operating",
            "This document",
            schemas.answer::<u::AnyObject>(),
        ),
        Endpoint::Health => Operation::get(
            "Operating",
            "Should this process be left alone?",
            schemas.answer::<u::Health>(),
        ),
        Endpoint::Ready => Operation::get(
            "Operating",
            "Should it get new work?",
            schemas.answer::<u::Ready>(),
        ),
        Endpoint::DebugCache => Operation::get(
            "Operating",
            "What the prefix cache holds",
            schemas.answer::<debug::CacheReport>(),
        ),
        Endpoint::DebugFlight => Operation {
            answer: ("application/jsonl", json!({"type": "string"})),
            ..Operation::get(
                "Operating",
                "What the scheduler was told and planned, to be run again",
                Value::Null,
            )
        },
        Endpoint::Metrics => Operation {
            answer: ("text/plain", json!({"type": "string"})),
            ..Operation::get("Operating", "Prometheus metrics", Value::Null)
        },
    })
}

impl Operation {
    fn get(tag: &'static str, summary: &'static str, answer: Value) -> Self {
        Self {
            tag,
            summary,
            request: None,
            answer: (JSON, answer),
            chunk: None,
            query: None,
        }
    }

    fn post(
        tag: &'static str,
        summary: &'static str,
        request: (Value, Value),
        answer: Value,
    ) -> Self {
        Self {
            request: Some(request),
            ..Self::get(tag, summary, answer)
        }
    }

    /// A path item: one operation per method.
    fn into_methods(
        self,
        pattern: &str,
        endpoint: Endpoint,
        flavour: Flavour,
        schemas: &mut Schemas,
    ) -> Value {
        let mut parameters = path_parameters(pattern, schemas);
        parameters.extend(self.query.map(|(name, description)| {
            json!({
                "name": name, "in": "query", "required": true, "description": description,
                "schema": {"type": "string", "minLength": 1},
            })
        }));
        if endpoint.generates() {
            parameters.push(json!({
                "name": priority::HEADER, "in": "header", "required": false,
                "description": "Where it waits, whatever its body says: higher goes first.",
                "schema": {"type": "integer", "minimum": -8, "maximum": 8},
            }));
        }
        if endpoint == Endpoint::DebugCache {
            parameters.push(json!({
                "name": "limit", "in": "query", "required": false,
                "description": "Snapshots listed at most.",
                "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
            }));
        }
        let request_body = self.request.map(|(schema, example)| {
            json!({
                "required": true,
                "content": {JSON: {"schema": schema, "example": example}},
            })
        });
        let mut content = Map::new();
        let (kind, answer) = self.answer;
        content.insert(kind.to_owned(), json!({"schema": answer}));
        if let Some(chunk) = self.chunk {
            let description = match endpoint {
                Endpoint::Responses => {
                    "Events, named by their type. Comments keep the connection alive."
                }
                Endpoint::Messages => {
                    "Events, named by their type. `ping` keeps the connection alive."
                }
                _ => "Events; the last one is `[DONE]`. Comments keep the connection alive.",
            };
            content.insert(
                "text/event-stream".to_owned(),
                json!({"schema": {
                    "description": description,
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {
                        "type": "string",
                        "anyOf": [
                            {"const": "[DONE]"},
                            {"contentMediaType": JSON, "contentSchema": chunk},
                        ],
                    }},
                }}),
            );
        }
        let never = answer == Value::Bool(false);
        let mut responses = Map::new();
        if !never {
            let ok = json!({
                "description": "OK", "headers": headers(endpoint, 200), "content": content,
            });
            responses.insert("200".to_owned(), ok);
        }
        let error = schemas.error(flavour);
        for (status, description) in failures(endpoint, flavour) {
            // A probe's answer has the same form whatever it says.
            let schema = match endpoint {
                Endpoint::Health | Endpoint::Ready if status == 503 => answer.clone(),
                _ => error.clone(),
            };
            let response = json!({
                "description": description,
                "headers": headers(endpoint, status),
                "content": {JSON: {"schema": schema}},
            });
            responses.insert(status.to_string(), response);
        }
        let mut methods = Map::new();
        for method in [Method::GET, Method::POST, Method::DELETE] {
            if !endpoint.serves(&method) {
                continue;
            }
            let verb = method.as_str().to_lowercase();
            let mut operation = json!({
                "operationId": operation_id(&verb, pattern),
                "tags": [self.tag],
                "summary": self.summary,
                "parameters": parameters,
                "responses": responses,
            });
            if endpoint.is_operational() {
                operation["security"] = json!([]);
            }
            if let Some(body) = request_body.as_ref().filter(|_| method == Method::POST) {
                operation["requestBody"] = body.clone();
            }
            methods.insert(verb, operation);
        }
        Value::Object(methods)
    }
}

/// `{*id}` is what the router calls a parameter with slashes in it.
fn path_template(pattern: &str) -> String {
    pattern.replace("{*", "{")
}

fn path_parameters(pattern: &str, schemas: &mut Schemas) -> Vec<Value> {
    let names = pattern.split('{').skip(1);
    let names = names.map(|rest| rest.split('}').next().expect("split gives one"));
    names
        .map(|name| {
            let description = if name.starts_with('*') {
                "May contain slashes, percent-encoded or not."
            } else {
                ""
            };
            let schema = match name {
                "*model" => schemas.request::<request::ModelName>(),
                _ => json!({"type": "string", "minLength": 1}),
            };
            json!({
                "name": name.trim_start_matches('*'),
                "in": "path",
                "required": true,
                "description": description,
                "schema": schema,
            })
        })
        .collect()
}

/// `post_v1_chat_completions`.
fn operation_id(verb: &str, pattern: &str) -> String {
    let words = pattern.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    format!("{verb}_{}", words.join("_"))
}

/// Every status but 200, and when it comes.
fn failures(endpoint: Endpoint, flavour: Flavour) -> Vec<(u16, &'static str)> {
    let mut failures = vec![
        (
            400,
            "The request is wrong; the error names the parameter and says what it must be.",
        ),
        (404, "No such path, model or object."),
        (
            405,
            "The method is not for this path; `Allow` says which are.",
        ),
        (408, "The body did not come in time."),
        (413, "The body is over the limit."),
        (431, "The head is over the limit."),
        (500, "The server has a bug."),
    ];
    let busy = match flavour {
        Flavour::Anthropic => 529,
        _ => 503,
    };
    if !endpoint.is_operational() {
        failures.push((401, "A key is needed and missing or wrong."));
        failures.push((
            429,
            "A limit of the key's is reached, or the queue is full.",
        ));
        failures.push((
            busy,
            "The model is loading, the server is stopping, or it is too crowded for this request.",
        ));
    }
    if endpoint.works() {
        failures.push((403, "The key may not use this name of the model."));
        // Named here and not among the parameters: tools that make requests from those would send times
        // that no answer can keep.
        failures.push((
            504,
            "The time is over that the request had: `x-request-timeout-ms`, in milliseconds, or fewer that the \
             operator allows.",
        ));
    }
    if endpoint.is_for_operators() {
        failures.push((403, "The key is no operator's."));
    }
    if matches!(endpoint, Endpoint::Health | Endpoint::Ready) {
        failures.push((503, "No."));
    }
    failures.sort_unstable();
    failures
}

fn headers(endpoint: Endpoint, status: u16) -> Value {
    let mut headers = json!({"x-request-id": {"$ref": "#/components/headers/RequestId"}});
    if endpoint.generates() {
        let header = json!({"$ref": "#/components/headers/ProcessingMs"});
        headers["openai-processing-ms"] = header;
    }
    if [429, 503, 529].contains(&status) {
        headers["retry-after"] = json!({"$ref": "#/components/headers/RetryAfter"});
        headers["retry-after-ms"] = json!({"$ref": "#/components/headers/RetryAfterMs"});
    }
    if endpoint.works() {
        for of in ["requests", "tokens"] {
            for (name, component) in [
                ("limit", "RateLimit"),
                ("remaining", "RateRemaining"),
                ("reset", "RateReset"),
            ] {
                let header = json!({"$ref": format!("#/components/headers/{component}")});
                headers[format!("x-ratelimit-{name}-{of}")] = header;
            }
        }
    }
    headers
}

/// The schemas of all types: what clients send is read leniently, what they get is written strictly, so
/// each direction has a generator.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
    variants: Map<String, Value>,
}

impl Default for Schemas {
    fn default() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
            variants: Map::new(),
        }
    }
}

impl Schemas {
    fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().to_value()
    }

    fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    fn error(&mut self, flavour: Flavour) -> Value {
        match flavour {
            Flavour::OpenAi | Flavour::DeepInfra | Flavour::Nvidia => {
                self.answer::<utility::OpenAiError>()
            }
            Flavour::Anthropic => self.answer::<utility::AnthropicError>(),
            Flavour::OpenRouter => self.answer::<utility::OpenRouterError>(),
            Flavour::Cloudflare | Flavour::CloudflareRest => {
                self.answer::<utility::CloudflareError>()
            }
        }
    }

    /// `T` with NVIDIA's defaults and limits, under a name of its own.
    fn nvidia<T: JsonSchema>(&mut self, name: &str) -> Value {
        self.requests.subschema_for::<T>();
        let mut schema = self.requests.definitions()[&*T::schema_name()].clone();
        if let Some(required) = schema["required"].as_array_mut() {
            required.retain(|name| name != "model");
        }
        let properties = &mut schema["properties"];
        properties["model"] = json!({
            "description": "Default: the loaded one.",
            "anyOf": [properties["model"], {"type": "null"}],
        });
        if name.contains("Chat") {
            properties["stream"]["default"] = true.into();
            properties["temperature"]["maximum"] = 1.into();
            properties["top_p"]["default"] = json!(0.95);
            properties["reasoning_budget"]["default"] = 16384.into();
            properties["reasoning_effort"] = json!({
                "description": "How much to think.",
                "type": ["string", "null"],
                "enum": ["none", "low", "high", null],
                "default": "high",
            });
            for name in ["max_tokens", "max_completion_tokens"] {
                properties[name]["maximum"] = 32768.into();
                properties[name]["default"] = 16384.into();
            }
        }
        self.variants.insert(name.to_owned(), schema);
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn finish(mut self) -> Map<String, Value> {
        let mut all = self.requests.take_definitions(true);
        for (name, schema) in self.answers.take_definitions(true) {
            let other = all.insert(name.clone(), schema.clone());
            assert!(
                other.is_none_or(|other| other == schema),
                "{name} is two things"
            );
        }
        all.extend(self.variants);
        for schema in all.values_mut() {
            without_widths(schema);
        }
        all
    }
}

/// Widths of Rust's numbers are nobody's concern: ranges say what is accepted.
fn without_widths(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let width = |format: &str| {
                ["int", "uint", "float", "double"]
                    .iter()
                    .any(|kind| format.starts_with(kind))
            };
            if map.get("format").and_then(Value::as_str).is_some_and(width) {
                map.remove("format");
            }
            map.values_mut().for_each(without_widths);
        }
        Value::Array(items) => items.iter_mut().for_each(without_widths),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_documented_and_nothing_else() {
        let document = build();
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                documented.insert(format!("{method} {path}"));
            }
        }
        let mut served = BTreeSet::new();
        for (pattern, endpoint, _) in routes().filter(|(_, endpoint, _)| !endpoint.is_playground())
        {
            for method in [
                Method::GET,
                Method::POST,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
            ] {
                if endpoint.serves(&method) {
                    let method = method.as_str().to_lowercase();
                    served.insert(format!("{method} {}", path_template(pattern)));
                }
            }
        }
        assert_eq!(documented, served);
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_referred_to() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        found.insert(target.clone());
                    }
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = build();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in &found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
        for name in document["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
        {
            let target = format!("#/components/schemas/{name}");
            assert!(found.contains(&target), "{name} is used nowhere");
        }
    }

    #[test]
    fn everything_is_explained() {
        for (name, schema) in build()["components"]["schemas"].as_object().unwrap() {
            assert!(schema["description"].is_string(), "{name}: {schema}");
            let properties = schema["properties"].as_object();
            for (property, schema) in properties.into_iter().flatten() {
                let explained = schema["description"].is_string()
                    || schema["$ref"].is_string()
                    || schema.get("const").is_some();
                assert!(explained || name.starts_with("Router"), "{name}.{property}");
            }
        }
    }
}
