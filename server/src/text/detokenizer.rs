//! Tokens to bytes, bytes to whole characters.

use std::borrow::Cow;

use super::Tokenizer;

/// Turns the tokens of one text into bytes, in order. It remembers the token before, which some
/// decoders ask for.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    previous: Option<u32>,
}

/// Turns bytes into text as they come, as `String::from_utf8_lossy` would on the whole: holds back
/// an incomplete last character, writes U+FFFD for what can be none.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    held: Vec<u8>,
}

impl Detokenizer {
    /// After a prompt: the first token continues it.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        let last = prompt.last().copied();
        Self {
            previous: last.filter(|id| !tokenizer.is_control(*id)),
        }
    }

    /// What `id` would be if it came next.
    pub fn peek<'a>(&self, tokenizer: &'a Tokenizer, id: u32) -> Cow<'a, [u8]> {
        tokenizer.bytes(self.previous, id)
    }

    /// The bytes of the next token.
    pub fn push<'a>(&mut self, tokenizer: &'a Tokenizer, id: u32) -> Cow<'a, [u8]> {
        let bytes = tokenizer.bytes(self.previous, id);
        if !tokenizer.is_control(id) {
            self.previous = Some(id);
        }
        bytes
    }
}

impl Utf8Stream {
    /// Appends to `text` the characters that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        if self.held.is_empty() {
            self.decode(bytes, text);
        } else {
            let mut whole = std::mem::take(&mut self.held);
            whole.extend_from_slice(bytes);
            self.decode(&whole, text);
        }
    }

    /// The text is over: a character left incomplete becomes one U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn decode(&mut self, mut bytes: &[u8], text: &mut String) {
        loop {
            let error = match std::str::from_utf8(bytes) {
                Ok(valid) => return text.push_str(valid),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).expect("checked just above"));
            let Some(num_invalid) = error.error_len() else {
                self.held.extend_from_slice(rest);
                return;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            bytes = &rest[num_invalid..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn streams_as_the_whole_would_decode(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..4),
                    "\\PC{0,3}".prop_map(String::into_bytes),
                    Just(vec![0xf0, 0x9f]),
                    Just(vec![0x98, 0x80]),
                ],
                0..20,
            ),
        ) {
            let (mut stream, mut text) = (Utf8Stream::default(), String::new());
            for piece in &pieces {
                stream.push(piece, &mut text);
            }
            stream.finish(&mut text);
            let whole = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }

    #[test]
    fn whole_characters_only() {
        let (mut stream, mut text) = (Utf8Stream::default(), String::new());
        stream.push(b"a\xe2\x82", &mut text);
        assert_eq!(text, "a");
        stream.push(b"\xac", &mut text);
        assert_eq!(text, "a€");
        stream.push(b"\xf0\x9f\x98", &mut text);
        stream.finish(&mut text);
        assert_eq!(text, "a€\u{fffd}");
    }
}
