//! Cache events for routers that send a prompt where its beginning is known: vLLM's schema over ZeroMQ,
//! as llm-d and Dynamo read it.
//!
//! A message has three frames: topic, number (8 bytes, big-endian), and as MessagePack
//! `[seconds, [events], rank]`. An event is an array that begins with its name. The numbers have no gaps;
//! who sees one has missed something. Only prefixes that can be hit are told of, and none under a cache
//! salt.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use engine::{CacheNews, EngineHandle, EngineInfo};
use scheduler::{BlockHash, News};
use serde::Serialize;
use tokio::task::JoinSet;
use zeromq::{PubSocket, Socket as _, SocketSend as _, ZmqMessage};

/// Where events go, under which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEvents {
    /// `tcp://ADDRESS:PORT`.
    pub endpoint: String,
    /// By custom `kv@POD@MODEL`.
    pub topic: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    Stored(
        &'static str,
        Vec<u64>,
        Option<u64>,
        &'a [u32],
        u32,
        /// A LoRA's number: there is none.
        Option<u32>,
        /// Where the blocks are.
        &'static str,
    ),
    Removed(&'static str, Vec<u64>, &'static str),
    Cleared((&'static str,)),
}

/// Attention blocks of running sequences and snapshots alike. What lies in host memory can be hit too, and
/// is told of as the rest.
const MEDIUM: &str = "GPU";

/// Listens for routers. A task in `background` tells them what changes, until the engine ends.
///
/// # Errors
/// The address cannot be listened on; the message names it.
pub async fn start(
    config: &KvEvents,
    engine: &EngineHandle,
    info: &EngineInfo,
    background: &mut JoinSet<()>,
) -> Result<(), String> {
    let KvEvents { endpoint, topic } = config;
    let mut socket = PubSocket::new();
    // The wildcard is how everybody writes it, and not how an address is written.
    let address = endpoint.replacen("tcp://*:", "tcp://0.0.0.0:", 1);
    let bound = socket.bind(&address).await;
    let bound = bound.map_err(|error| format!("--kv-events-endpoint {endpoint}: {error}"))?;
    tracing::info!(endpoint = %bound, topic, "cache events");
    let mut news = engine.cache_news();
    let topic = Bytes::from(topic.clone());
    let block_size = info.block_size;
    background.spawn(async move {
        while let Some(issue) = news.recv().await {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let seconds = since.map_or(0.0, |since| since.as_secs_f64());
            let message = message(topic.clone(), &issue, seconds, block_size);
            if let Err(error) = socket.send(message).await {
                tracing::warn!(%error, "a cache event was not sent");
            }
        }
    });
    Ok(())
}

fn message(topic: Bytes, issue: &CacheNews, seconds: f64, block_size: u32) -> ZmqMessage {
    let events: Vec<Event<'_>> = issue
        .news
        .iter()
        .map(|news| Event::of(news, block_size))
        .collect();
    let payload = rmp_serde::to_vec(&(seconds, events, 0)).expect("numbers and names are encoded");
    let number = Bytes::copy_from_slice(&issue.number.to_be_bytes());
    ZmqMessage::try_from(vec![topic, number, payload.into()]).expect("it has frames")
}

impl<'a> Event<'a> {
    fn of(news: &'a News, block_size: u32) -> Self {
        let numbers = |hashes: &[BlockHash]| hashes.iter().map(|hash| hash.0).collect();
        match news {
            News::Stored {
                parent,
                hashes,
                tokens,
            } => Self::Stored(
                "BlockStored",
                numbers(hashes),
                parent.map(|hash| hash.0),
                tokens,
                block_size,
                None,
                MEDIUM,
            ),
            News::Removed { hashes } => Self::Removed("BlockRemoved", numbers(hashes), MEDIUM),
            News::Cleared => Self::Cleared(("AllBlocksCleared",)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn messages_are_as_published() {
        let issue = CacheNews {
            number: 258,
            news: vec![
                News::Stored {
                    parent: None,
                    hashes: vec![BlockHash(7), BlockHash(u64::MAX)],
                    tokens: vec![1, 2, 3, 4],
                },
                News::Stored {
                    parent: Some(BlockHash(7)),
                    hashes: vec![BlockHash(9)],
                    tokens: vec![5, 6],
                },
                News::Removed {
                    hashes: vec![BlockHash(9)],
                },
                News::Cleared,
            ],
        };
        let frames = message("kv@a@b".into(), &issue, 1.5, 2).into_vec();
        assert_eq!(frames.len(), 3);
        assert_eq!(&frames[0][..], b"kv@a@b");
        assert_eq!(&frames[1][..], [0, 0, 0, 0, 0, 0, 1, 2]);
        let payload: Value = rmp_serde::from_slice(&frames[2]).expect("it is MessagePack");
        let expect = json!([
            1.5,
            [
                [
                    "BlockStored",
                    [7, u64::MAX],
                    null,
                    [1, 2, 3, 4],
                    2,
                    null,
                    "GPU"
                ],
                ["BlockStored", [9], 7, [5, 6], 2, null, "GPU"],
                ["BlockRemoved", [9], "GPU"],
                ["AllBlocksCleared"],
            ],
            0
        ]);
        assert_eq!(payload, expect);
    }
}
