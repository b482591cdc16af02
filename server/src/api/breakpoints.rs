//! Where in a prompt blocks end that its client wants cached: `cache_control` of Anthropic's and
//! OpenRouter's content blocks.
//!
//! Where a message begins the ids tell by themselves
//! ([`Tokenizer::turns`](crate::text::Tokenizer::turns)). A block inside a message ends at no token in
//! particular: templates trim, wrap and repeat what they are given, and a token may reach over the end.
//! So the conversation is rendered once more as if the message ended with the block. The prefix that both
//! prompts have in common is what the block's end decides, and nothing behind it: any request with the
//! same blocks up to there has it, whatever it says next.
//!
//! ```text
//! |---- messages before ----|---- block ----| another block, more messages ..    the prompt
//! |---- messages before ----|---- block ----|<end of message> more messages ..   as if it ended there
//!                                           ^ common prefix
//! ```
//!
//! A message's last block needs none of this: the next message begins right behind it. So does one
//! behind tools, and behind calls and their results, which are whole messages or the ends of some.

use crate::chat::Message;
use crate::error::ApiError;

/// As many as Anthropic takes; each costs a rendering. Of more the last ones count.
const MAX_BREAKPOINTS: usize = 4;

/// Lengths of the prefixes of `ids`, in tokens, ascending; `render` gives the ids of a conversation.
pub(super) fn find(
    messages: &[Message],
    ids: &[u32],
    render: impl Fn(&[Message]) -> Result<Vec<u32>, ApiError>,
) -> Vec<u32> {
    let ends = messages.iter().enumerate().flat_map(|(at, message)| {
        let ends = message.breakpoints.iter().copied();
        ends.filter(move |end| is_inside(message, *end))
            .map(move |end| (at, end))
    });
    let ends: Vec<(usize, usize)> = ends.collect();
    let ends = &ends[ends.len().saturating_sub(MAX_BREAKPOINTS)..];
    if ends.is_empty() {
        return Vec::new();
    }
    let mut cut = messages.to_vec();
    let mut breakpoints = Vec::with_capacity(ends.len());
    for &(at, end) in ends {
        cut[at].content.truncate(end);
        cut[at].tool_calls.clear();
        match render(&cut) {
            Ok(others) => breakpoints.push(num_common(ids, &others)),
            // It is the client's conversation that must render; this one nobody has.
            Err(error) => tracing::debug!(why = error.message, "no cache breakpoint"),
        }
        cut[at].clone_from(&messages[at]);
    }
    breakpoints.sort_unstable();
    breakpoints.dedup();
    breakpoints
}

/// Whether the message goes on behind the block.
fn is_inside(message: &Message, end: usize) -> bool {
    end < message.content.len() || !message.tool_calls.is_empty()
}

fn num_common(ids: &[u32], others: &[u32]) -> u32 {
    ids.iter().zip(others).take_while(|(a, b)| a == b).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ToolCall;

    fn message(content: &str, breakpoints: &[usize]) -> Message {
        Message {
            content: content.into(),
            breakpoints: breakpoints.to_vec(),
            ..Message::default()
        }
    }

    /// Bytes as ids, messages closed by 0, calls by 1; one that is empty is refused.
    fn render(messages: &[Message]) -> Result<Vec<u32>, ApiError> {
        let mut ids = Vec::new();
        for message in messages {
            if message.content.is_empty() {
                return Err(ApiError::internal("an empty message"));
            }
            ids.extend(message.content.bytes().map(u32::from));
            ids.extend(message.tool_calls.iter().map(|_| 1));
            ids.push(0);
        }
        Ok(ids)
    }

    fn check(messages: &[Message], expect: &[u32]) {
        let ids = render(messages).expect("nothing is empty");
        assert_eq!(find(messages, &ids, render), expect);
    }

    #[test]
    fn blocks_end_inside_their_messages() {
        check(&[message("abcdef", &[])], &[]);
        check(&[message("abcdef", &[2, 4])], &[2, 4]);
        check(&[message("abcdef", &[6]), message("gh", &[])], &[]);
        check(
            &[
                message("abc", &[1]),
                message("def", &[3]),
                message("ghi", &[2]),
            ],
            &[1, 10],
        );
    }

    #[test]
    fn calls_go_on_behind_a_text() {
        let call = ToolCall {
            id: "1".into(),
            name: "f".into(),
            arguments: serde_json::Map::new(),
        };
        let calling = Message {
            tool_calls: vec![call],
            ..message("abc", &[3])
        };
        check(&[message("x", &[]), calling, message("y", &[])], &[5]);
    }

    #[test]
    fn of_many_the_last_count() {
        check(&[message("abcdefgh", &[1, 2, 3, 4, 5, 6])], &[3, 4, 5, 6]);
    }

    #[test]
    fn what_cannot_be_rendered_has_no_place() {
        check(&[message("abc", &[0, 1])], &[1]);
    }
}
