//! When a choice ends by itself.

use crate::request::{FinishReason, SamplingParams};

/// Whether `token`, the last of `num_generated` generated and of `num_tokens` in all, ends its
/// choice. A stop id at the limit is a stop.
pub(crate) fn check(
    params: &SamplingParams,
    max_model_len: u32,
    token: u32,
    num_generated: u32,
    num_tokens: u32,
) -> Option<FinishReason> {
    if params.stop_token_ids.contains(&token) {
        Some(FinishReason::Stop(token))
    } else if num_generated >= params.max_tokens || num_tokens >= max_model_len {
        Some(FinishReason::Length)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(token: u32, num_generated: u32, num_tokens: u32) -> Option<FinishReason> {
        let params = SamplingParams {
            max_tokens: 4,
            stop_token_ids: vec![7, 8],
            ..Default::default()
        };
        check(&params, 10, token, num_generated, num_tokens)
    }

    #[test]
    fn stop_ids_come_before_length() {
        assert_eq!(ends(1, 1, 3), None);
        assert_eq!(ends(8, 1, 3), Some(FinishReason::Stop(8)));
        assert_eq!(ends(7, 4, 10), Some(FinishReason::Stop(7)));
    }

    #[test]
    fn either_limit_ends() {
        assert_eq!(ends(1, 3, 9), None);
        assert_eq!(ends(1, 4, 6), Some(FinishReason::Length));
        assert_eq!(ends(1, 2, 10), Some(FinishReason::Length));
    }
}
