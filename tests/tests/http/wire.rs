//! HTTP/1.1 by hand, so that tests can say what no client library would.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer takes longer, unless something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One connection, whatever it runs over.
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    unread: Vec<u8>,
}

/// One response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// The error object, checked for its four keys.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        let mut keys: Vec<_> = error
            .as_object()
            .unwrap_or_else(|| panic!("no error object: {self:?}"))
            .keys()
            .cloned()
            .collect();
        keys.sort();
        assert_eq!(keys, ["code", "message", "param", "type"], "{self:?}");
        error
    }

    #[track_caller]
    pub(crate) fn expect_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.error()["code"], code, "{self:?}");
        assert!(!self.header("x-request-id").is_empty(), "{self:?}");
    }
}

impl Wire {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.expect("it listens"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream
            .write_all(text.as_ref())
            .await
            .expect("it still reads");
    }

    /// The next response, whole. `HEAD` and 1xx have no body whatever their headers say.
    pub(crate) async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub(crate) async fn reply_to(&mut self, method: &str) -> Reply {
        let (status, headers) = self.head().await;
        let body = if method == "HEAD" || status < 200 || status == 204 {
            Vec::new()
        } else if headers
            .get("transfer-encoding")
            .is_some_and(|te| te == "chunked")
        {
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk().await {
                body.extend(chunk);
            }
            body
        } else {
            let length = headers.get("content-length").map_or("0", String::as_str);
            let length = length.parse().expect("content-length is a number");
            self.bytes(length).await
        };
        Reply {
            status,
            headers,
            body: String::from_utf8(body).expect("bodies are UTF-8"),
        }
    }

    /// Status and headers of the next response.
    pub(crate) async fn head(&mut self) -> (u16, HashMap<String, String>) {
        let status = self.line().await;
        let code = status
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("no status line: {status:?}"));
        let mut headers = HashMap::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return (code, headers);
            }
            let (name, value) = line.split_once(": ").expect("a header");
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
    }

    /// The next chunk of a chunked body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line().await;
        let size = usize::from_str_radix(&size, 16).expect("a chunk size");
        let chunk = self.bytes(size).await;
        assert_eq!(self.line().await, "");
        (size > 0).then_some(chunk)
    }

    /// Whether the server closes without sending anything more.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && self.more().await == 0
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let line = self.unread.drain(..at + 2).take(at).collect();
                return String::from_utf8(line).expect("heads are ASCII");
            }
            assert!(self.more().await > 0, "closed after {:?}", self.unread);
        }
    }

    async fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.unread.len() < len {
            assert!(self.more().await > 0, "closed after {:?}", self.unread);
        }
        self.unread.drain(..len).collect()
    }

    async fn more(&mut self) -> usize {
        let mut buffer = vec![0; 8192];
        let read = timeout(PATIENCE, self.stream.read(&mut buffer)).await;
        // A reset is an end too.
        let len = read.expect("something comes or it closes").unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..len]);
        len
    }
}
