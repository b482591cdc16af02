//! What can never run.

use kvcache::CacheConfig;

use crate::config::SchedulerConfig;
use crate::request::Request;

/// Why a request cannot be queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The queue is at its limit.
    #[error("the queue is full ({max} requests wait)")]
    QueueFull {
        /// `max_queue`.
        max: u32,
    },
    /// Prompt and output do not fit the context window.
    #[error("prompt of {len} tokens leaves no room in a context of {max}")]
    PromptTooLong {
        /// Prompt tokens.
        len: u32,
        /// `max_model_len`.
        max: u32,
    },
    /// Not even an empty cache could hold it.
    #[error("the request needs {needed} cache blocks, there are {total}")]
    NeverFits {
        /// Blocks at its longest.
        needed: u32,
        /// Blocks in all.
        total: u32,
    },
}

/// Whether the window and an empty cache have room for a request.
pub fn check_size(
    request: &Request,
    config: &SchedulerConfig,
    cache: &CacheConfig,
) -> Result<(), AdmissionError> {
    let len = request.prompt.len() as u32;
    let (max, max_tokens) = (config.max_model_len, request.sampling.max_tokens);
    // A prompt that fills the window leaves no token to generate; scoring needs none.
    if len.saturating_add(max_tokens.min(1)) > max {
        return Err(AdmissionError::PromptTooLong { len, max });
    }
    // A generated last token is never computed.
    let longest = match max_tokens {
        0 => len,
        _ => len.saturating_add(max_tokens).min(max) - 1,
    };
    let (needed, total) = (cache.blocks_for(longest), cache.num_blocks - 1);
    if needed > total {
        return Err(AdmissionError::NeverFits { needed, total });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::request::{RequestId, SamplingParams, TenantId};

    #[test]
    fn sizes_at_their_limits() {
        let config = SchedulerConfig {
            max_model_len: 40,
            ..SchedulerConfig::default()
        };
        let check =
            |num_blocks: u32, len: usize, max_tokens, expect: Result<(), AdmissionError>| {
                let request = Request {
                    id: RequestId(1),
                    prompt: vec![1; len].into(),
                    sampling: Arc::new(SamplingParams {
                        max_tokens,
                        ..SamplingParams::default()
                    }),
                    num_choices: 1,
                    cache_salt: "".into(),
                    boundaries: Arc::default(),
                    priority: 0,
                    tenant: TenantId::default(),
                    tenant_weight: 1,
                };
                let cache = CacheConfig {
                    block_size: 8,
                    num_blocks: num_blocks + 1,
                    num_slots: 2,
                    num_host_slots: 0,
                    num_host_blocks: 0,
                };
                let got = check_size(&request, &config, &cache);
                assert_eq!(got, expect, "{len} and {max_tokens} in {num_blocks} blocks");
            };
        check(5, 39, 1, Ok(()));
        check(5, 40, 0, Ok(()));
        check(
            5,
            40,
            1,
            Err(AdmissionError::PromptTooLong { len: 40, max: 40 }),
        );
        check(5, 1, 1000, Ok(()));
        // The last token of 17 is never computed: two blocks hold the rest.
        check(2, 8, 9, Ok(()));
        check(
            2,
            8,
            10,
            Err(AdmissionError::NeverFits {
                needed: 3,
                total: 2,
            }),
        );
        check(2, 16, 0, Ok(()));
        check(
            2,
            17,
            0,
            Err(AdmissionError::NeverFits {
                needed: 3,
                total: 2,
            }),
        );
    }
}
