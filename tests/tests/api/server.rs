//! A server in this process, and a client that shows every byte.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use engine::{EngineInfo, EngineStatus};
use nemoserve::admission::Admission;
use nemoserve::api::models::ModelNames;
use nemoserve::api::params::Defaults;
use nemoserve::api::responses::ResponseStore;
use nemoserve::chat::ChatTemplate;
use nemoserve::grammars::Grammars;
use nemoserve::metrics::Metrics;
use nemoserve::receipts::Receipts;
use nemoserve::router::route_labels;
use nemoserve::state::{AppState, Phase, ServerConfig};
use nemoserve::text::Tokenizer;
use nemoserve_tests::scripted::Script;
use scheduler::{CacheConfig, SchedulerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

pub(crate) const VOCAB_SIZE: u32 = 2048;
pub(crate) const MAX_MODEL_LEN: u32 = 512;
pub(crate) const IM_END: u32 = 11;
/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls are lists of JSON, and tags are letters.
const NANO_V2: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if tools %}{{ tools | tojson }} Say <TOOLCALL>[...]</TOOLCALL>.\n{% endif %}assistant: ";

/// What of a model folder is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folder {
    Whole,
    /// Whole, with a template in the manner of Nano v2.
    NanoV2,
    NoTemplate,
    NoTokenizer,
}

/// What the engine is given.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) cache: CacheConfig,
}

impl Shape {
    /// Memory for all that fits into a context of this length, several times.
    pub(crate) fn roomy(max_model_len: u32) -> Self {
        Self {
            scheduler: SchedulerConfig {
                max_model_len,
                ..SchedulerConfig::default()
            },
            cache: CacheConfig {
                block_size: 16,
                num_blocks: 1025.max(4 * max_model_len),
                num_slots: 8193,
                num_host_slots: 0,
                num_host_blocks: 0,
            },
        }
    }
}

/// A running server; it stops when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) script: Arc<Script>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    _stop: oneshot::Sender<()>,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::serving(Folder::Whole, Defaults::default()).await
    }

    pub(crate) async fn serving(folder: Folder, defaults: Defaults) -> Self {
        let shape = Shape::roomy(MAX_MODEL_LEN);
        Self::configured(folder, defaults, ServerConfig::default(), shape).await
    }

    /// With a configuration of the operator's.
    pub(crate) async fn operated(config: ServerConfig) -> Self {
        let shape = Shape::roomy(MAX_MODEL_LEN);
        Self::configured(Folder::Whole, Defaults::default(), config, shape).await
    }

    /// With a window for agents, who send long prompts and ask for long answers.
    pub(crate) async fn roomy() -> Self {
        Self::shaped(Shape::roomy(1 << 16)).await
    }

    /// With an engine of this shape.
    pub(crate) async fn shaped(shape: Shape) -> Self {
        let (defaults, config) = (Defaults::default(), ServerConfig::default());
        Self::configured(Folder::Whole, defaults, config, shape).await
    }

    async fn configured(
        folder: Folder,
        defaults: Defaults,
        operator: ServerConfig,
        shape: Shape,
    ) -> Self {
        let Shape { scheduler, cache } = shape;
        let script = Script::new(IM_END, VOCAB_SIZE);
        let read = |name: &str| {
            let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/demo/model");
            fs::read_to_string(model.join(name)).expect("the demo is committed")
        };
        let tokenizer = Tokenizer::from_bytes(read("tokenizer.json").as_bytes());
        let tokenizer = Arc::new(tokenizer.expect("the demo's tokenizer is valid"));
        let jinja = match folder {
            Folder::NanoV2 => NANO_V2.to_owned(),
            _ => read("chat_template.jinja"),
        };
        let template = ChatTemplate::from_folder(
            Some(&jinja),
            Some(&read("tokenizer_config.json")),
            &tokenizer,
        );
        let template = template.expect("the demo's template is valid");
        let runner = script.runner();
        let max_model_len = scheduler.max_model_len;
        let engine = engine::spawn(scheduler, cache.clone(), VOCAB_SIZE, move |_| Ok(runner));
        let engine = engine.expect("a thread starts");
        while engine.status() != EngineStatus::Ready {
            tokio::task::yield_now().await;
        }
        let info = EngineInfo {
            fingerprint: "fp_test".into(),
            vocab_size: VOCAB_SIZE,
            max_model_len,
            block_size: cache.block_size,
            num_blocks: cache.num_blocks - 1,
            num_slots: cache.num_slots - 1,
            ..EngineInfo::default()
        };
        let tokens = (folder != Folder::NoTokenizer).then(|| Arc::clone(&tokenizer));
        let state = Arc::new(AppState {
            grammars: Grammars::new(tokens.clone(), VOCAB_SIZE, &[2, IM_END]),
            engine,
            metrics: Metrics::new("test", &info, route_labels()),
            info,
            tokenizer: tokens,
            template: template
                .filter(|_| matches!(folder, Folder::Whole | Folder::NanoV2))
                .map(Arc::new),
            models: ModelNames {
                ids: vec!["test".into(), "org/test".into()],
                owned_by: "tests".into(),
                description: None,
                created: 1,
            },
            defaults: Defaults {
                eos_token_ids: vec![2, IM_END],
                ..defaults
            },
            admission: Admission::new(&operator).expect("the key file is sound"),
            config: ServerConfig {
                sse_keepalive: Duration::from_millis(50),
                ..operator
            },
            receipts: Receipts::default(),
            responses: ResponseStore::new(1 << 20),
            phase: watch::Sender::new(Phase::Serving),
            num_generating: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(nemoserve::http::serve(listener, state, async {
            // Dropping the sender is the signal.
            let _ = stopped.await;
        }));
        Self {
            address,
            script,
            tokenizer,
            _stop: stop,
        }
    }

    /// Ids of a text, spelled tokens included.
    pub(crate) fn ids(&self, text: &str) -> Vec<u32> {
        let ids = self.tokenizer.encode_special(text, false);
        ids.expect("it is encoded")
    }

    /// The model says `text`.
    pub(crate) fn say(&self, text: &str) {
        self.script.say(&self.ids(text));
    }

    pub(crate) async fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.post_with(path, "", body).await
    }

    /// With more headers, each a line.
    pub(crate) async fn post_with(
        &self,
        path: &str,
        headers: &str,
        body: impl AsRef<[u8]>,
    ) -> Reply {
        let body = body.as_ref();
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\
             content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.send(&request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.get_with(path, "").await
    }

    /// With more headers, each a line.
    pub(crate) async fn get_with(&self, path: &str, headers: &str) -> Reply {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n");
        self.send(request.as_bytes()).await
    }

    /// What `/metrics` says of a count.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.body;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(sample, _)| *sample == name);
        let (_, value) = found.unwrap_or_else(|| panic!("no {name}"));
        value.parse::<f64>().expect("samples are numbers") as u64
    }

    /// 200 and its JSON.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body.to_string()).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        serde_json::from_str(&reply.body).expect("JSON")
    }

    /// The chunks of a stream, which must end with `[DONE]`.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let reply = self.post(path, body.to_string()).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        reply.events()
    }

    /// Sends a request and reads until `until` has come; the socket has the rest.
    pub(crate) async fn post_until(
        &self,
        path: &str,
        body: &Value,
        until: &str,
    ) -> (TcpStream, Vec<u8>) {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = async {
            let mut socket = TcpStream::connect(self.address).await.expect("it listens");
            socket
                .write_all(request.as_bytes())
                .await
                .expect("it reads");
            let mut bytes = Vec::new();
            while !String::from_utf8_lossy(&bytes).contains(until) {
                let num = socket.read_buf(&mut bytes).await.expect("it answers");
                assert!(num > 0, "closed before {until:?}");
            }
            (socket, bytes)
        };
        let answered = tokio::time::timeout(PATIENCE, exchange).await;
        answered.expect("it answers in time")
    }

    pub(crate) async fn send(&self, request: &[u8]) -> Reply {
        let exchange = async {
            let mut socket = TcpStream::connect(self.address).await.expect("it listens");
            socket.write_all(request).await.expect("it reads");
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).await.expect("it answers");
            bytes
        };
        let bytes = tokio::time::timeout(PATIENCE, exchange).await;
        Reply::parse(&bytes.expect("it answers in time"))
    }
}

impl Reply {
    /// The value of a header, which must be there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .unwrap_or_else(|| panic!("no {name} in {}", self.head))
            .1
    }

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).expect("headers are ASCII");
        let status = head[9..12].parse().expect("a status line");
        let mut body = bytes[end + 4..].to_vec();
        if head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked")
        {
            body = unchunked(&body);
        }
        let body = String::from_utf8(body).expect("bodies are UTF-8");
        Self { status, head, body }
    }

    /// Data of all events but `[DONE]`, which must be the last.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert!(self.head.contains("text/event-stream"), "{}", self.head);
        let body = self.body.strip_suffix("data: [DONE]\n\n");
        let body = body.unwrap_or_else(|| panic!("no [DONE]: {}", self.body));
        body.split_terminator("\n\n")
            .filter(|event| !event.starts_with(':'))
            .map(|event| {
                let data = event.strip_prefix("data: ").expect("an event has data");
                serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))
            })
            .collect()
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|w| w == b"\r\n")
            .expect("a chunk size");
        let size = std::str::from_utf8(&bytes[..end]).expect("ASCII");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
}
