//! JSON that is read and passed on as it grows, so that what was passed on can always be closed.

use crate::text::Utf8Stream;

/// Deeper values are refused; parsers that clients use go no deeper.
const MAX_DEPTH: usize = 120;

/// One JSON value, compacted. A member's name waits for its value, a number for its end, an escape
/// for its last digit; text flows.
#[derive(Debug)]
pub(super) struct JsonStream {
    at: At,
    /// Open brackets.
    stack: Vec<u8>,
    /// Waits for what follows.
    waiting: Vec<u8>,
    /// An escape that is not complete, or the first half of a pair.
    escape: Vec<u8>,
    utf8: Utf8Stream,
    ready: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Value,
    /// Or the end of an empty list.
    FirstItem,
    Key,
    /// Or the end of an empty object.
    FirstKey,
    Colon,
    AfterItem,
    /// A string, or the name of a member.
    Text {
        key: bool,
    },
    /// A number, `true`, `false`, `null` or what Python calls them.
    Word,
    Done,
}

/// What a byte was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Part of the value, which goes on.
    More,
    /// Its last.
    Done,
    /// Behind it.
    DoneBefore,
    /// No JSON.
    Bad,
}

impl JsonStream {
    pub(super) fn new() -> Self {
        Self {
            at: At::Value,
            stack: Vec::new(),
            waiting: Vec::new(),
            escape: Vec::new(),
            utf8: Utf8Stream::default(),
            ready: String::new(),
        }
    }

    pub(super) fn push(&mut self, byte: u8) -> Progress {
        let blank = byte.is_ascii_whitespace();
        match (self.at, byte) {
            (At::Text { .. }, _) => return self.text(byte),
            (At::Word, b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {
                self.waiting.push(byte);
            }
            (At::Word, _) => {
                if !self.end_word() {
                    return Progress::Bad;
                }
                if self.at == At::Done {
                    return Progress::DoneBefore;
                }
                return self.push(byte);
            }
            (At::Done, _) => return Progress::DoneBefore,
            _ if blank => {}
            (At::FirstItem, b']') | (At::FirstKey, b'}') => self.close(byte),
            (At::Value | At::FirstItem, b'{' | b'[') => {
                if self.stack.len() == MAX_DEPTH {
                    return Progress::Bad;
                }
                self.stack.push(byte);
                self.flush(byte);
                self.at = if byte == b'{' {
                    At::FirstKey
                } else {
                    At::FirstItem
                };
            }
            (At::Value | At::FirstItem, b'"') => {
                self.flush(byte);
                self.at = At::Text { key: false };
            }
            (At::Value | At::FirstItem, b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {
                self.waiting.push(byte);
                self.at = At::Word;
            }
            (At::Key | At::FirstKey, b'"') => {
                self.waiting.push(byte);
                self.at = At::Text { key: true };
            }
            (At::Colon, b':') => {
                self.waiting.push(byte);
                self.at = At::Value;
            }
            (At::AfterItem, b',') => {
                self.waiting.push(byte);
                let in_object = self.stack.last() == Some(&b'{');
                self.at = if in_object { At::Key } else { At::Value };
            }
            (At::AfterItem, b'}') if self.stack.last() == Some(&b'{') => self.close(byte),
            (At::AfterItem, b']') if self.stack.last() == Some(&b'[') => self.close(byte),
            _ => return Progress::Bad,
        }
        self.progress()
    }

    /// Text that was spelled by a token of its own; it counts inside strings only.
    pub(super) fn quote(&mut self, text: &str) {
        if matches!(self.at, At::Text { .. }) {
            for byte in text.bytes() {
                self.text(byte);
            }
        }
    }

    /// What became certain.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.ready)
    }

    /// Nothing more comes: closes what is open. `cut`: it had more to say, so that the end of a
    /// number is not known.
    pub(super) fn finish(&mut self, cut: bool) {
        if self.at == At::Word && !cut && !self.end_word() {
            self.waiting.clear();
        }
        self.utf8.finish(&mut self.ready);
        if self.at == (At::Text { key: false }) {
            self.ready.push('"');
        }
        while let Some(open) = self.stack.pop() {
            self.ready.push(if open == b'{' { '}' } else { ']' });
        }
        self.at = At::Done;
    }

    fn progress(&self) -> Progress {
        if self.at == At::Done {
            Progress::Done
        } else {
            Progress::More
        }
    }

    fn end_item(&mut self) {
        self.at = if self.stack.is_empty() {
            At::Done
        } else {
            At::AfterItem
        };
    }

    fn close(&mut self, byte: u8) {
        self.stack.pop();
        self.waiting.clear();
        self.flush(byte);
        self.end_item();
    }

    /// Passes on what waited, and this byte.
    fn flush(&mut self, byte: u8) {
        self.waiting.push(byte);
        let waiting = std::mem::take(&mut self.waiting);
        self.utf8.push(&waiting, &mut self.ready);
    }

    fn end_word(&mut self) -> bool {
        let start = self
            .waiting
            .iter()
            .rposition(|b| matches!(b, b':' | b',' | b'"'));
        let word = self.waiting.split_off(start.map_or(0, |last| last + 1));
        let word: &[u8] = match &*word {
            b"True" => b"true",
            b"False" => b"false",
            b"None" => b"null",
            word => word,
        };
        let known = matches!(word, b"true" | b"false" | b"null");
        if !known && serde_json::from_slice::<serde_json::Number>(word).is_err() {
            return false;
        }
        self.waiting.extend_from_slice(word);
        let waiting = std::mem::take(&mut self.waiting);
        self.utf8.push(&waiting, &mut self.ready);
        self.end_item();
        true
    }

    fn text(&mut self, byte: u8) -> Progress {
        if !self.escape.is_empty() {
            return self.escaped(byte);
        }
        match byte {
            b'"' => {
                let key = self.at == (At::Text { key: true });
                if key {
                    self.waiting.push(byte);
                    self.at = At::Colon;
                } else {
                    self.flush(byte);
                    self.end_item();
                }
            }
            b'\\' => self.escape.push(byte),
            // Models forget to escape these.
            0..0x20 => self.write(format!("\\u{byte:04x}").as_bytes()),
            _ => self.write(&[byte]),
        }
        self.progress()
    }

    /// Inside an escape: whole ones are passed on, halves of pairs only with the other half.
    fn escaped(&mut self, byte: u8) -> Progress {
        let pair = self.escape.len() >= 6;
        let digits = self.escape.len() % 6;
        let fits = match digits {
            0 => byte == b'\\',
            1 if pair => byte == b'u',
            1 => true,
            _ => byte.is_ascii_hexdigit(),
        };
        if !fits {
            // Half a pair, or `\u` without digits.
            let escape = std::mem::take(&mut self.escape);
            if pair {
                self.write(b"\\ufffd");
                for &byte in &escape[6..] {
                    self.text(byte);
                }
            } else {
                self.write(b"\\");
                self.write(&escape);
            }
            return self.text(byte);
        }
        self.escape.push(byte);
        match (self.escape.len(), byte) {
            (2, b'u') | (1 | 3..=5 | 7..=11, _) => {}
            (2, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.end_escape(),
            // Such as `\d`: the backslash was meant.
            (2, _) => {
                self.escape.insert(0, b'\\');
                let escape = std::mem::take(&mut self.escape);
                self.write(&escape[..2]);
                return self.text(byte);
            }
            (6, _) => match unit(&self.escape[2..6]) {
                0xd800..0xdc00 => {}
                0xdc00..0xe000 => {
                    self.escape = b"\\ufffd".to_vec();
                    self.end_escape();
                }
                _ => self.end_escape(),
            },
            _ => {
                if !(0xdc00..0xe000).contains(&unit(&self.escape[8..12])) {
                    return self.refuse_second();
                }
                self.end_escape();
            }
        }
        Progress::More
    }

    /// The second half of a pair belongs to another, if to any.
    fn refuse_second(&mut self) -> Progress {
        let second = self.escape.split_off(6);
        self.escape = b"\\ufffd".to_vec();
        self.end_escape();
        for byte in second {
            self.text(byte);
        }
        Progress::More
    }

    fn end_escape(&mut self) {
        let escape = std::mem::take(&mut self.escape);
        self.write(&escape);
    }

    /// More of a string, or of a name, which waits.
    fn write(&mut self, bytes: &[u8]) {
        if self.at == (At::Text { key: true }) {
            self.waiting.extend_from_slice(bytes);
        } else {
            self.utf8.push(bytes, &mut self.ready);
        }
    }
}

/// The number that four hexadecimal digits write.
fn unit(digits: &[u8]) -> u32 {
    let digits = std::str::from_utf8(digits).expect("digits are ASCII");
    u32::from_str_radix(digits, 16).expect("digits were checked")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Reads `text` and closes it.
    fn read(text: &[u8], cut: bool) -> (String, Progress) {
        let mut stream = JsonStream::new();
        let (mut out, mut progress) = (String::new(), Progress::More);
        for &byte in text {
            progress = stream.push(byte);
            out.push_str(&stream.take());
            if progress != Progress::More {
                break;
            }
        }
        stream.finish(cut);
        out.push_str(&stream.take());
        (out, progress)
    }

    #[test]
    fn values_are_compacted() {
        let check = |text: &str, expect: &str| {
            assert_eq!(read(text.as_bytes(), false).0, expect, "{text}");
        };
        check(
            "{ \"a\" : [ 1 , 2.50 ,\n true ] , \"b\":{ } }",
            "{\"a\":[1,2.50,true],\"b\":{}}",
        );
        check("[\"é😀\\n\\u00e9\\\"\"]", "[\"é😀\\n\\u00e9\\\"\"]");
        check("{\"a\": True, \"b\": None}", "{\"a\":true,\"b\":null}");
        check("\"a\nb\"", "\"a\\u000ab\"");
        check("\"\\d+\\u12\"", "\"\\\\d+\\\\u12\"");
        check("\"\\ud83d\\ude00\"", "\"\\ud83d\\ude00\"");
        check(
            "\"\\ud83dx\\ude00\\ud83d\\n\"",
            "\"\\ufffdx\\ufffd\\ufffd\\n\"",
        );
        check("\"\\ud83d\\ud83d\\ude00\"", "\"\\ufffd\\ud83d\\ude00\"");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "}", "{1", "{\"a\"1", "[1 2", "[1}", "[1,]", "{,", "[01,", "[nil,", "[-,",
        ] {
            assert_eq!(read(text.as_bytes(), false).1, Progress::Bad, "{text}");
        }
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert_eq!(read(deep.as_bytes(), false).1, Progress::Bad);
    }

    #[test]
    fn cuts_leave_out_what_is_not_certain() {
        let check = |text: &str, cut: &str, over: &str| {
            assert_eq!(read(text.as_bytes(), true).0, cut, "{text}");
            assert_eq!(read(text.as_bytes(), false).0, over, "{text}");
        };
        check("{\"a\":12", "{}", "{\"a\":12}");
        check("{\"a\":[1,2", "{\"a\":[1]}", "{\"a\":[1,2]}");
        check("{\"a\":\"x\\u00e", "{\"a\":\"x\"}", "{\"a\":\"x\"}");
        check("{\"a\":1,\"b\"", "{\"a\":1}", "{\"a\":1}");
        check("[tru", "[]", "[]");
    }

    proptest! {
        #[test]
        fn any_bytes_leave_json(text in "[\\[\\]{}\":,\\\\ud8301ctrue é\n-]{0,40}", cut in any::<bool>()) {
            for start in ["", "{\"a\":", "[\"", "{\"a\":\"\\"] {
                let text = format!("{start}{text}");
                let (out, _) = read(text.as_bytes(), cut);
                if !out.is_empty() {
                    prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{text:?}: {out:?}");
                }
            }
        }
    }
}
