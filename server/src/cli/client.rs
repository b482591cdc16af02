//! A client of a running server, ours or another: knows it only by its URL.

use std::path::Path;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::Value;

use crate::transport::{Client, client, why};

/// One server.
pub(super) struct Server {
    client: Client,
    base: String,
    api_key: Option<String>,
}

impl Server {
    /// `url` with or without `/v1`; `cacert` holds certificates to trust besides the public authorities'.
    pub(super) fn new(
        url: &str,
        api_key: Option<String>,
        cacert: Option<&Path>,
    ) -> Result<Self, String> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1");
        let uri: Uri = base
            .parse()
            .map_err(|error| format!("--url {url}: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(format!("--url {url}: expected http:// or https://"));
        }
        Ok(Self {
            client: client("--cacert", cacert)?,
            base: base.to_owned(),
            api_key,
        })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) async fn first_model(&self) -> Result<String, String> {
        let response = self.send(Method::GET, "/v1/models", String::new()).await?;
        let body = response
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        let list: Value = serde_json::from_slice(&body)
            .map_err(|error| format!("{}/v1/models is no model list: {error}", self.base))?;
        list["data"][0]["id"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("{} lists no model", self.base))
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Incoming, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(Full::from(body))
            .map_err(|error| error.to_string())?;
        let response = self.client.request(request).await;
        let response = response.map_err(|error| format!("{}: {}", self.base, why(&error)))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        let message = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|body| body["error"]["message"].as_str().map(str::to_owned));
        Err(format!("{status}: {}", message.unwrap_or_default()))
    }
}

/// Server-sent events out of pieces of any size: the data of each, comments dropped.
#[derive(Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                events.push(data.trim_start().to_owned());
            }
        }
        events
    }
}
