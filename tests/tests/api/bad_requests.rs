//! Every bad request has its status and names its parameter.

use serde_json::{Value, json};

use crate::server::{Folder, Server};
use nemoserve::api::params::Defaults;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Adds `extra` to a good request.
fn with(good: &Value, extra: &str) -> String {
    let good = good.to_string();
    format!("{},{extra}}}", &good[..good.len() - 1])
}

/// What was answered, as `status param code`.
async fn answer(server: &Server, path: &str, body: impl AsRef<[u8]>) -> String {
    let reply = server.post(path, body).await;
    if reply.status == 200 {
        return "200, accepted".to_owned();
    }
    let error: Value = serde_json::from_str(&reply.body).expect("errors are JSON");
    let error = error["error"].as_object().expect("errors have a body");
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    let text = |key: &str| error[key].as_str().unwrap_or("-").to_owned();
    format!("{} {} {}", reply.status, text("param"), text("code"))
}

/// `(members added to a good request, what is answered)`.
type Case = (&'static str, &'static str);

async fn check(path: &str, good: &Value, cases: &[Case]) {
    let server = Server::start().await;
    server.say("ok");
    assert_eq!(server.post(path, good.to_string()).await.status, 200);
    let mut wrong = Vec::new();
    for (extra, expect) in cases {
        for stream in ["", ",\"stream\":true"] {
            if stream.is_empty() || !extra.contains("\"stream") {
                let body = with(good, &format!("{extra}{stream}"));
                let got = answer(&server, path, body).await;
                if got != *expect {
                    wrong.push(format!("{extra}{stream}: {got}, not {expect}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What both routes refuse.
const SHARED: &[Case] = &[
    (r#""model":null"#, "400 model missing_required_parameter"),
    (r#""model":"""#, "400 model missing_required_parameter"),
    (r#""model":7"#, "400 model invalid_type"),
    (r#""model":"other""#, "404 model model_not_found"),
    (r#""temperature":-0.1"#, "400 temperature invalid_value"),
    (r#""temperature":2.1"#, "400 temperature invalid_value"),
    (r#""temperature":"1""#, "400 temperature invalid_type"),
    (r#""temperature":true"#, "400 temperature invalid_type"),
    (r#""top_p":1.01"#, "400 top_p invalid_value"),
    (r#""top_p":-1"#, "400 top_p invalid_value"),
    (r#""top_k":-2"#, "400 top_k invalid_value"),
    (r#""top_k":1.5"#, "400 top_k invalid_type"),
    (r#""min_p":1.1"#, "400 min_p invalid_value"),
    (
        r#""repetition_penalty":0"#,
        "400 repetition_penalty invalid_value",
    ),
    (
        r#""repetition_penalty":2.5"#,
        "400 repetition_penalty invalid_value",
    ),
    (
        r#""frequency_penalty":-2.1"#,
        "400 frequency_penalty invalid_value",
    ),
    (
        r#""presence_penalty":2.1"#,
        "400 presence_penalty invalid_value",
    ),
    (r#""logit_bias":[]"#, "400 logit_bias invalid_type"),
    (r#""logit_bias":{"a":1}"#, "400 logit_bias invalid_value"),
    (r#""logit_bias":{"-1":1}"#, "400 logit_bias invalid_value"),
    (r#""logit_bias":{"2048":1}"#, "400 logit_bias invalid_value"),
    (
        r#""logit_bias":{"99999999999999":1}"#,
        "400 logit_bias invalid_value",
    ),
    (r#""logit_bias":{"5":101}"#, "400 logit_bias invalid_value"),
    (r#""logit_bias":{"5":"1"}"#, "400 logit_bias invalid_type"),
    (r#""seed":1.5"#, "400 seed invalid_type"),
    (r#""seed":"1""#, "400 seed invalid_type"),
    (r#""seed":-9300000000000000000"#, "400 seed invalid_value"),
    (r#""seed":18446744073709560000"#, "400 seed invalid_value"),
    (r#""n":0"#, "400 n invalid_value"),
    (r#""n":129"#, "400 n invalid_value"),
    (r#""n":1.5"#, "400 n invalid_type"),
    (r#""n":"2""#, "400 n invalid_type"),
    (r#""stop":[]"#, "400 stop invalid_value"),
    (r#""stop":"""#, "400 stop invalid_value"),
    (r#""stop":["a",""]"#, "400 stop invalid_value"),
    (r#""stop":["a","b","c","d","e"]"#, "400 stop invalid_value"),
    (r#""stop":[1]"#, "400 stop[0] invalid_type"),
    (r#""stop":5"#, "400 stop invalid_type"),
    (r#""stop_token_ids":"1""#, "400 stop_token_ids invalid_type"),
    (
        r#""stop_token_ids":[2048]"#,
        "400 stop_token_ids[0] invalid_value",
    ),
    (
        r#""stop_token_ids":[1,-1]"#,
        "400 stop_token_ids[1] invalid_value",
    ),
    (r#""ignore_eos":1"#, "400 ignore_eos invalid_type"),
    (r#""min_tokens":-1"#, "400 min_tokens invalid_value"),
    (
        r#""min_tokens":5,"max_tokens":4"#,
        "400 min_tokens invalid_value",
    ),
    (r#""stream":"true""#, "400 stream invalid_type"),
    (r#""stream":1"#, "400 stream invalid_type"),
    (
        r#""stream":false,"stream_options":{}"#,
        "400 stream_options invalid_value",
    ),
    (
        r#""stream":true,"stream_options":[]"#,
        "400 stream_options invalid_type",
    ),
    (
        r#""stream":true,"stream_options":{"include_usage":1}"#,
        "400 stream_options.include_usage invalid_type",
    ),
    (r#""cache_salt":5"#, "400 cache_salt invalid_type"),
    (
        r#""return_token_ids":1"#,
        "400 return_token_ids invalid_type",
    ),
    (
        r#""prompt_logprobs":21"#,
        "400 prompt_logprobs invalid_value",
    ),
    (r#""service_tier":"gold""#, "400 service_tier invalid_value"),
    (r#""store":"no""#, "400 store invalid_type"),
    (r#""metadata":{"a":1}"#, "400 metadata.a invalid_type"),
    (r#""user":5"#, "400 user invalid_type"),
    (
        r#""prompt_cache_key":5"#,
        "400 prompt_cache_key invalid_type",
    ),
    (r#""max_tokens":-1"#, "400 max_tokens invalid_value"),
    (r#""max_tokens":1.5"#, "400 max_tokens invalid_type"),
    (r#""max_tokens":"5""#, "400 max_tokens invalid_type"),
];

const CHAT_ONLY: &[Case] = &[
    (r#""max_tokens":0"#, "400 max_tokens invalid_value"),
    (
        r#""max_completion_tokens":0"#,
        "400 max_completion_tokens invalid_value",
    ),
    (
        r#""max_tokens":0,"max_completion_tokens":5"#,
        "400 max_tokens invalid_value",
    ),
    (
        r#""max_tokens":512"#,
        "400 messages context_length_exceeded",
    ),
    (
        r#""max_tokens":1000000000000"#,
        "400 messages context_length_exceeded",
    ),
    (r#""logprobs":1"#, "400 logprobs invalid_type"),
    (r#""top_logprobs":1"#, "400 top_logprobs invalid_value"),
    (
        r#""logprobs":false,"top_logprobs":1"#,
        "400 top_logprobs invalid_value",
    ),
    (
        r#""logprobs":true,"top_logprobs":21"#,
        "400 top_logprobs invalid_value",
    ),
    (
        r#""response_format":"json""#,
        "400 response_format invalid_type",
    ),
    (
        r#""response_format":{}"#,
        "400 response_format.type missing_required_parameter",
    ),
    (
        r#""response_format":{"type":"xml"}"#,
        "400 response_format.type invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema"}"#,
        "400 response_format.json_schema missing_required_parameter",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}"#,
        "400 response_format.json_schema.name invalid_value",
    ),
    (
        r#""reasoning_effort":"huge""#,
        "400 reasoning_effort invalid_value",
    ),
    (
        r#""reasoning_budget":-2"#,
        "400 reasoning_budget invalid_value",
    ),
    (
        r#""reasoning_budget":32769"#,
        "400 reasoning_budget invalid_value",
    ),
    (r#""reasoning":5"#, "400 reasoning invalid_type"),
    (
        r#""reasoning":{"effort":"huge"}"#,
        "400 reasoning.effort invalid_value",
    ),
    (
        r#""reasoning":{"max_tokens":0}"#,
        "400 reasoning.max_tokens invalid_value",
    ),
    (
        r#""reasoning":{"max_tokens":9,"effort":"low"}"#,
        "400 reasoning invalid_value",
    ),
    (
        r#""reasoning":{"exclude":1}"#,
        "400 reasoning.exclude invalid_type",
    ),
    (
        r#""reasoning":{"enabled":1}"#,
        "400 reasoning.enabled invalid_type",
    ),
    (
        r#""include_reasoning":1"#,
        "400 include_reasoning invalid_type",
    ),
    (
        r#""chat_template_kwargs":[]"#,
        "400 chat_template_kwargs invalid_type",
    ),
    (
        r#""chat_template_kwargs":{"enable_thinking":"yes"}"#,
        "400 chat_template_kwargs.enable_thinking invalid_type",
    ),
    (
        r#""chat_template_kwargs":{"reasoning_budget":32769}"#,
        "400 chat_template_kwargs.reasoning_budget invalid_value",
    ),
    (r#""verbosity":"loud""#, "400 verbosity invalid_value"),
    (
        r#""prediction":{"type":"x"}"#,
        "400 prediction.type invalid_value",
    ),
    (
        r#""prediction":{"type":"content"}"#,
        "400 prediction.content missing_required_parameter",
    ),
    (
        r#""modalities":["text","audio"]"#,
        "400 modalities unsupported_value",
    ),
    (r#""audio":{}"#, "400 audio unsupported_parameter"),
    (
        r#""web_search_options":{}"#,
        "400 web_search_options unsupported_parameter",
    ),
    (r#""messages":[]"#, "400 messages invalid_value"),
    (
        r#""messages":null"#,
        "400 messages missing_required_parameter",
    ),
    (r#""messages":"hi""#, "400 messages invalid_type"),
    (r#""messages":["hi"]"#, "400 messages[0] invalid_type"),
    (
        r#""messages":[{"content":"x"}]"#,
        "400 messages[0].role missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"robot","content":"x"}]"#,
        "400 messages[0].role invalid_value",
    ),
    (
        r#""messages":[{"role":5,"content":"x"}]"#,
        "400 messages[0].role invalid_type",
    ),
    (
        r#""messages":[{"role":"user"}]"#,
        "400 messages[0].content missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"user","content":5}]"#,
        "400 messages[0].content invalid_type",
    ),
    (
        r#""messages":[{"role":"user","content":[]}]"#,
        "400 messages[0].content invalid_value",
    ),
    (
        r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]"#,
        "400 messages[0].content[0].type unsupported_value",
    ),
    (
        r#""messages":[{"role":"user","content":[{"type":"text"}]}]"#,
        "400 messages[0].content[0].text missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"user","content":[{"text":"x"}]}]"#,
        "400 messages[0].content[0].type missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"user","content":"x","name":5}]"#,
        "400 messages[0].name invalid_type",
    ),
    (
        r#""messages":[{"role":"assistant"}]"#,
        "400 messages[0].content missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"tool","content":"x"}]"#,
        "400 messages[0].tool_call_id missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"tool","content":"x","tool_call_id":"c"}]"#,
        "400 messages[0].tool_call_id invalid_value",
    ),
    (
        r#""messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]"#,
        "400 messages[0].tool_calls[0].id missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{"}}]}]"#,
        "400 messages[0].tool_calls[0].function.arguments invalid_value",
    ),
    (
        r#""messages":[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"[]"}}]}]"#,
        "400 messages[0].tool_calls[0].function.arguments invalid_value",
    ),
    (
        r#""messages":[{"role":"assistant","tool_calls":[{"id":"c","function":{"arguments":"{}"}}]}]"#,
        "400 messages[0].tool_calls[0].function.name missing_required_parameter",
    ),
    (
        r#""messages":[{"role":"assistant","content":"x","reasoning_content":5}]"#,
        "400 messages[0].reasoning_content invalid_type",
    ),
];

/// What is refused about tools.
const TOOLS: &[Case] = &[
    (r#""tools":{}"#, "400 tools invalid_type"),
    (r#""tools":["f"]"#, "400 tools[0] invalid_type"),
    (
        r#""tools":[{}]"#,
        "400 tools[0].type missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"retrieval"}]"#,
        "400 tools[0].type invalid_value",
    ),
    (
        r#""tools":[{"type":"function"}]"#,
        "400 tools[0].function missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{}}]"#,
        "400 tools[1].function.name missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":5}}]"#,
        "400 tools[0].function.name invalid_type",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":""}}]"#,
        "400 tools[0].function.name invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"a b"}}]"#,
        "400 tools[0].function.name invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"a.b"}}]"#,
        "400 tools[0].function.name invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}}]"#,
        "400 tools[0].function.name invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","description":5}}]"#,
        "400 tools[0].function.description invalid_type",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":"{}"}}]"#,
        "400 tools[0].function.parameters invalid_type",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","strict":"yes"}}]"#,
        "400 tools[0].function.strict invalid_type",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]"#,
        "400 tools invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"f"}}]"#,
        "400 tools invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g!"}}]"#,
        "400 tools[0].custom.name invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":"text"}}]"#,
        "400 tools[0].custom.format invalid_type",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{}}}]"#,
        "400 tools[0].custom.format.type missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"json"}}}]"#,
        "400 tools[0].custom.format.type invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar"}}}]"#,
        "400 tools[0].custom.format.grammar missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"ebnf","definition":"x"}}}}]"#,
        "400 tools[0].custom.format.grammar.syntax invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"lark"}}}}]"#,
        "400 tools[0].custom.format.grammar.definition missing_required_parameter",
    ),
    (
        r#""tool_choice":"required""#,
        "400 tool_choice invalid_value",
    ),
    (
        r#""tool_choice":"auto","tools":[]"#,
        "400 tool_choice invalid_value",
    ),
    (
        r#""tool_choice":{"type":"function","function":{"name":"f"}}"#,
        "400 tool_choice invalid_value",
    ),
    (
        r#""tool_choice":"any","tools":[{"type":"function","function":{"name":"f"}}]"#,
        "400 tool_choice invalid_value",
    ),
    (r#""tool_choice":5"#, "400 tool_choice invalid_type"),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"function","function":{"name":"h"}}"#,
        "400 tool_choice invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"custom","custom":{"name":"f"}}"#,
        "400 tool_choice invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"function"}"#,
        "400 tool_choice.function missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"tool","name":"f"}"#,
        "400 tool_choice.type invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"allowed_tools"}"#,
        "400 tool_choice.allowed_tools missing_required_parameter",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[]}}"#,
        "400 tool_choice.allowed_tools.tools invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"none","tools":[{"type":"function","function":{"name":"f"}}]}}"#,
        "400 tool_choice.allowed_tools.mode invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"h"}}]}}"#,
        "400 tool_choice invalid_value",
    ),
    (
        r#""parallel_tool_calls":"no""#,
        "400 parallel_tool_calls invalid_type",
    ),
    (r#""functions":[]"#, "400 functions invalid_value"),
    (r#""functions":{}"#, "400 functions invalid_type"),
    (
        r#""functions":[{}]"#,
        "400 functions[0].name missing_required_parameter",
    ),
    (
        r#""functions":[{"name":"f"},{"name":"f"}]"#,
        "400 functions invalid_value",
    ),
    (
        r#""functions":[{"name":"f","parameters":[]}]"#,
        "400 functions[0].parameters invalid_type",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"custom","custom":{"name":"g"}}],"functions":[{"name":"f"}]"#,
        "400 functions invalid_value",
    ),
    (
        r#""function_call":"auto""#,
        "400 function_call invalid_value",
    ),
    (
        r#""function_call":{"name":"f"}"#,
        "400 function_call invalid_value",
    ),
    (
        r#""functions":[{"name":"f"}],"function_call":"required""#,
        "400 function_call invalid_value",
    ),
    (
        r#""functions":[{"name":"f"}],"function_call":{"name":"h"}"#,
        "400 function_call invalid_value",
    ),
    (
        r#""functions":[{"name":"f"}],"function_call":{}"#,
        "400 function_call.name missing_required_parameter",
    ),
    (
        r#""functions":[{"name":"f"}],"tool_choice":"auto""#,
        "400 tool_choice invalid_value",
    ),
];

/// Grammars that cannot be, and whose they are.
const GRAMMARS: &[Case] = &[
    (
        r#""tools":[{"type":"function","function":{"name":"a","parameters":{"properties":{"x":{"type":"nonsense"}}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"a","parameters":{"type":"object","properties":{"x":{"enum":[]}}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"a","parameters":{"type":"object","properties":{"x":{"type":"string","minLength":-1}}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"a","parameters":{"type":"object","properties":{"x":{"type":"string","format":"nonsense"}}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"schema":{}}}"#,
        "400 response_format.json_schema.name missing_required_parameter",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx","schema":{}}}"#,
        "400 response_format.json_schema.name invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a"}}"#,
        "400 response_format.json_schema.schema missing_required_parameter",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":5}}"#,
        "400 response_format.json_schema.schema invalid_type",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","strict":1,"schema":{}}}"#,
        "400 response_format.json_schema.strict invalid_type",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"text"}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":5}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"properties":5}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r##""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"$ref":"#/$defs/None"}}}"##,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"$ref":"https://example.org/schema"}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"not":{"type":"string"}}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"if":{},"then":{}}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"integer","minimum":5,"maximum":1}}}"#,
        "400 response_format.json_schema.schema invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"string"}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":[]}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","not":{}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"type":"array","not":{}}}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"type":"string","pattern":"(?=a)"}}}}}]"#,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r##""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"$ref":"#/$defs/None"}}}}}]"##,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r##""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"type":"array","items":{"$ref":"#/$defs/None"}}}}}}]"##,
        "400 tools[0].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"good","parameters":{"type":"object","properties":{"a":{"type":"array"}}}}},{"type":"function","function":{"name":"bad","parameters":{"type":"object","properties":{"a":{"type":"object","not":{}}}}}}]"#,
        "400 tools[1].function.parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"function","function":{"name":"good","parameters":{"type":"object","properties":{"a":{"type":"array"}}}}},{"type":"function","function":{"name":"bad","parameters":{"type":"object","properties":{"a":{"type":"object","not":{}}}}}}],"tool_choice":"required""#,
        "400 tools[1].function.parameters invalid_value",
    ),
    (
        r#""functions":[{"name":"f","parameters":{"not":{}}}]"#,
        "400 functions[0].parameters invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"lark","definition":"start: ("}}}}]"#,
        "400 tools[0].custom.format.grammar.definition invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"lark","definition":"begin: \"x\""}}}}]"#,
        "400 tools[0].custom.format.grammar.definition invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"lark","definition":"start: missing"}}}}]"#,
        "400 tools[0].custom.format.grammar.definition invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"regex","definition":"(a"}}}}]"#,
        "400 tools[0].custom.format.grammar.definition invalid_value",
    ),
    (
        r#""tools":[{"type":"custom","custom":{"name":"g","format":{"type":"grammar","grammar":{"syntax":"regex","definition":"[z-a]"}}}}]"#,
        "400 tools[0].custom.format.grammar.definition invalid_value",
    ),
];

const TEXT_ONLY: &[Case] = &[
    (r#""prompt":null"#, "400 prompt missing_required_parameter"),
    (r#""prompt":"""#, "400 prompt invalid_value"),
    (r#""prompt":[]"#, "400 prompt invalid_value"),
    (r#""prompt":5"#, "400 prompt invalid_type"),
    (r#""prompt":[2048]"#, "400 prompt[0] invalid_value"),
    (r#""prompt":[5,-1]"#, "400 prompt[1] invalid_value"),
    (r#""prompt":[5,"a"]"#, "400 prompt[1] invalid_type"),
    (r#""prompt":["a",5]"#, "400 prompt[1] invalid_type"),
    (r#""prompt":[[5],[]]"#, "400 prompt[1] invalid_value"),
    (r#""prompt":[[5.5]]"#, "400 prompt[0][0] invalid_type"),
    (r#""max_tokens":512"#, "400 prompt context_length_exceeded"),
    (r#""logprobs":6"#, "400 logprobs invalid_value"),
    (r#""logprobs":true"#, "400 logprobs invalid_type"),
    (r#""echo":"yes""#, "400 echo invalid_type"),
    (r#""suffix":"x""#, "400 suffix unsupported_parameter"),
    (r#""suffix":5"#, "400 suffix invalid_type"),
    (r#""best_of":0"#, "400 best_of invalid_value"),
    (r#""best_of":21"#, "400 best_of invalid_value"),
    (r#""best_of":2,"n":3"#, "400 best_of invalid_value"),
    (r#""stream":true,"best_of":2"#, "400 best_of invalid_value"),
];

fn chat() -> Value {
    json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}]})
}

fn text() -> Value {
    json!({"model": "test", "prompt": "Hi"})
}

#[tokio::test]
async fn shared_parameters_in_chat() {
    assert!(SHARED.len() + CHAT_ONLY.len() + TEXT_ONLY.len() >= 80);
    check(CHAT, &chat(), SHARED).await;
}

#[tokio::test]
async fn shared_parameters_in_completions() {
    check(TEXT, &text(), SHARED).await;
}

#[tokio::test]
async fn chat_parameters() {
    check(CHAT, &chat(), CHAT_ONLY).await;
}

#[tokio::test]
async fn tools() {
    check(CHAT, &chat(), TOOLS).await;
}

#[tokio::test]
async fn grammars() {
    check(CHAT, &chat(), GRAMMARS).await;
}

#[tokio::test]
async fn completion_parameters() {
    check(TEXT, &text(), TEXT_ONLY).await;
}

#[tokio::test]
async fn lengths_at_their_limits() {
    let server = Server::start().await;
    server.say("ok");
    let cases = [
        (json!({"cache_salt": "é".repeat(1024)}), None),
        (
            json!({"cache_salt": "x".repeat(1025)}),
            Some("400 cache_salt invalid_value"),
        ),
        (json!({"safety_identifier": "x".repeat(64)}), None),
        (
            json!({"safety_identifier": "x".repeat(65)}),
            Some("400 safety_identifier invalid_value"),
        ),
        (json!({"metadata": {"k".repeat(64): "v".repeat(512)}}), None),
        (
            json!({"metadata": {"k".repeat(65): ""}}),
            Some("400 metadata invalid_value"),
        ),
        (
            json!({"metadata": {"k": "v".repeat(513)}}),
            Some("400 metadata.k invalid_value"),
        ),
    ];
    for (extra, expect) in cases {
        let mut body = chat();
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        match expect {
            None => drop(server.ask(CHAT, &body).await),
            Some(expect) => assert_eq!(answer(&server, CHAT, body.to_string()).await, expect),
        }
    }
    let pairs: serde_json::Map<String, Value> =
        (0..17).map(|i| (i.to_string(), json!(""))).collect();
    let body = with(&chat(), &format!("\"metadata\":{}", Value::Object(pairs)));
    assert_eq!(
        answer(&server, CHAT, body).await,
        "400 metadata invalid_value"
    );
    let long = "x ".repeat(2000);
    let body = json!({"model": "test", "messages": [{"role": "user", "content": long}]});
    let reply = server.post(CHAT, body.to_string()).await;
    assert_eq!(reply.status, 400);
    assert!(
        reply
            .body
            .contains("This model's maximum context length is 512 tokens")
    );
}

#[tokio::test]
async fn what_is_no_json_object() {
    let server = Server::start().await;
    let deep = [
        b"{\"a\":".as_slice(),
        &b"[".repeat(10_000),
        &b"]".repeat(10_000),
        b"}",
    ]
    .concat();
    let cases: [&[u8]; 12] = [
        b"",
        b"null",
        b"[]",
        b"\"x\"",
        b"{",
        b"{\"model\":\"test\"",
        b"{\"temperature\":NaN}",
        b"{\"temperature\":1e999}",
        b"{\"model\":\"\xff\"}",
        b"{\"model\":\"\\ud800\"}",
        b"{\"model\":\"\n\"}",
        &deep,
    ];
    for path in [CHAT, TEXT, "/tokenize", "/detokenize"] {
        for body in cases {
            let got = answer(&server, path, body).await;
            assert_eq!(
                got,
                "400 - invalid_json",
                "{:?}",
                String::from_utf8_lossy(body)
            );
        }
    }
}

#[tokio::test]
async fn good_requests_with_odd_values() {
    let server = Server::start().await;
    server.say("ok");
    for extra in [
        r#""temperature":0,"top_p":0,"top_k":-1,"min_p":1,"n":2.0,"max_tokens":5.0"#,
        r#""seed":18446744073709552000"#,
        r#""seed":-9223372036854775808"#,
        r#""temperature":null,"stop":null,"seed":null,"stream":null,"stream_options":null"#,
        r#""tools":[],"tool_choice":"none","functions":null,"parallel_tool_calls":true"#,
        r#""unknown":{"a":[1]},"response_format":{"type":"text"},"modalities":["text"]"#,
        r#""temperature":3,"temperature":1"#,
        r#""prediction":{"type":"content","content":[{"type":"text","text":"x"}]}"#,
        r#""service_tier":"priority","store":true,"verbosity":"low","user":"u""#,
        r#""reasoning_budget":-1,"reasoning":{"effort":"low"},"include_reasoning":true"#,
        r#""logit_bias":{},"stop_token_ids":[],"metadata":{}"#,
        r#""messages":[{"role":"user","content":"a\u0000b"}]"#,
    ] {
        let reply = server.post(CHAT, with(&chat(), extra)).await;
        assert_eq!(reply.status, 200, "{extra}: {}", reply.body);
    }
    for model in ["test:free", "org/test:nitro", "test:floor", "test:exacto"] {
        let mut body = chat();
        body["model"] = json!(model);
        assert_eq!(server.ask(CHAT, &body).await["model"], model);
    }
}

#[tokio::test]
async fn utilities() {
    let server = Server::start().await;
    for (path, body, expect) in [
        ("/tokenize", "{}", "400 prompt missing_required_parameter"),
        ("/tokenize", r#"{"prompt":5}"#, "400 prompt invalid_type"),
        ("/tokenize", r#"{"content":5}"#, "400 content invalid_type"),
        (
            "/tokenize",
            r#"{"prompt":"x","model":"y"}"#,
            "404 model model_not_found",
        ),
        (
            "/tokenize",
            r#"{"prompt":"x","add_special_tokens":1}"#,
            "400 add_special_tokens invalid_type",
        ),
        (
            "/tokenize",
            r#"{"messages":[]}"#,
            "400 messages invalid_value",
        ),
        (
            "/tokenize",
            r#"{"messages":[{"role":"user","content":"x"}],"tools":[{}]}"#,
            "400 tools[0].type missing_required_parameter",
        ),
        ("/detokenize", "{}", "400 tokens missing_required_parameter"),
        (
            "/detokenize",
            r#"{"tokens":"x"}"#,
            "400 tokens invalid_type",
        ),
        (
            "/detokenize",
            r#"{"tokens":[1,2048]}"#,
            "400 tokens[1] invalid_value",
        ),
        (
            "/detokenize",
            r#"{"tokens":[1.5]}"#,
            "400 tokens[0] invalid_type",
        ),
    ] {
        assert_eq!(answer(&server, path, body).await, expect, "{path} {body}");
    }
}

#[tokio::test]
async fn folders_that_lack_files() {
    let bare = Server::serving(Folder::NoTemplate, Defaults::default()).await;
    bare.say("ok");
    let got = answer(&bare, CHAT, chat().to_string()).await;
    assert_eq!(got, "400 messages unsupported_value");
    assert_eq!(bare.ask(TEXT, &text()).await["choices"][0]["text"], "ok");

    let ids_only = Server::serving(Folder::NoTokenizer, Defaults::default()).await;
    ids_only.script.say(&[300, 301]);
    let got = answer(&ids_only, CHAT, chat().to_string()).await;
    assert_eq!(got, "400 messages unsupported_value");
    let got = answer(&ids_only, TEXT, text().to_string()).await;
    assert_eq!(got, "400 prompt unsupported_value");
    let body = json!({"model": "test", "prompt": [5], "stop": "x"});
    assert_eq!(
        answer(&ids_only, TEXT, body.to_string()).await,
        "400 stop invalid_value"
    );
    let body = json!({"model": "test", "prompt": [5, 6], "return_token_ids": true, "logprobs": 1});
    let choice = ids_only.ask(TEXT, &body).await["choices"][0].clone();
    assert_eq!(choice["token_ids"], json!([300, 301, 11]));
    assert_eq!(
        choice["logprobs"]["tokens"],
        json!(["token_id:300", "token_id:301"])
    );
    let got = answer(&ids_only, "/tokenize", r#"{"prompt":"x"}"#).await;
    assert_eq!(got, "400 prompt unsupported_value");
}

#[tokio::test]
async fn nothing_is_fetched() {
    let server = Server::start().await;
    let bait = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = bait.local_addr().expect("bound");
    bait.set_nonblocking(true).expect("settable");
    for url in [
        format!("http://{address}/cat.png"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let image = json!({"type": "image_url", "image_url": {"url": url}});
        let body = json!({"model": "test", "messages": [{"role": "user", "content": [image]}]});
        let got = answer(&server, CHAT, body.to_string()).await;
        assert_eq!(got, "400 messages[0].content[0].type unsupported_value");
        let schema = json!({"$ref": url});
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let mut body = chat();
        body["response_format"] = format;
        let reply = server.post(CHAT, body.to_string()).await;
        assert_eq!(reply.status, 400, "{url}: {}", reply.body);
    }
    let came = bait.accept().map(|(_, from)| from);
    assert!(came.is_err(), "{came:?} followed a client's address");
}

#[tokio::test]
async fn templates_of_requests_are_not_rendered() {
    let server = Server::start().await;
    let mut body = chat();
    let render = "/v1/chat/completions/render";
    let usual = server.ask(render, &body).await["token_ids"].clone();
    assert!(usual.as_array().is_some_and(|ids| !ids.is_empty()));
    body["chat_template"] = json!("{% for i in range(1000000000) %}{{ 7 * 7 }}{% endfor %}");
    assert_eq!(server.ask(render, &body).await["token_ids"], usual);
}

#[tokio::test]
async fn prompts_of_a_million_tokens_are_refused_by_their_number() {
    let server = Server::start().await;
    let ids = vec![300; 1 << 20];
    let words = "word ".repeat(1 << 20);
    for prompt in [json!(ids), json!(words)] {
        let body = json!({"model": "test", "prompt": prompt, "max_tokens": 1});
        let got = answer(&server, TEXT, body.to_string()).await;
        assert_eq!(got, "400 prompt context_length_exceeded");
    }
}

/// A gzip file that holds `data` as it is, which takes no library.
fn gzipped(data: &[u8]) -> Vec<u8> {
    let crc = data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    let len = u16::try_from(data.len()).expect("one block holds it");
    [
        // Deflate, without a name or a time; one block, stored, the last.
        &b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01"[..],
        &len.to_le_bytes(),
        &(!len).to_le_bytes(),
        data,
        &(!crc).to_le_bytes(),
        &u32::from(len).to_le_bytes(),
    ]
    .concat()
}

#[tokio::test]
async fn packed_bodies_are_not_unpacked() {
    // The checksum that everybody gives for these digits: it is gzip, and only that is wrong with it.
    assert!(gzipped(b"123456789").ends_with(b"\x26\x39\xf4\xcb\x09\0\0\0"));
    let server = Server::start().await;
    server.say("ok");
    let good = chat().to_string();
    assert_eq!(server.post(CHAT, &good).await.status, 200);
    for headers in [
        "",
        "content-encoding: gzip\r\n",
        "content-encoding: identity, gzip\r\n",
    ] {
        let reply = server
            .post_with(CHAT, headers, gzipped(good.as_bytes()))
            .await;
        assert_eq!(reply.status, 400, "{headers}: {}", reply.body);
        assert!(reply.body.contains("invalid_json"), "{}", reply.body);
    }
}
