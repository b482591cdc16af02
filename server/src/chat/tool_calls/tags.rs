//! Which tag a text may become, and where the answer's text lets a spelled one count.

/// What a beginning `<...` may be.
pub(super) enum Found<T> {
    Tag(T),
    Prefix,
    Nothing,
}

/// Looks `text` up among tags, of which some do not count.
pub(super) fn find<T: Copy>(
    text: &[u8],
    tags: impl IntoIterator<Item = (Option<&'static [u8]>, T)>,
) -> Found<T> {
    let mut found = Found::Nothing;
    for (tag, what) in tags {
        match tag {
            Some(tag) if tag == text => return Found::Tag(what),
            Some(tag) if tag.starts_with(text) => found = Found::Prefix,
            _ => {}
        }
    }
    found
}

/// What the answer's text says about whether a spelled tag is meant.
#[derive(Debug, Default)]
pub(super) struct Prose {
    /// First characters of the line that are not blank.
    first: [u8; 3],
    num_first: usize,
    /// In a block of code.
    fenced: bool,
    last: u8,
    /// How much of a spelled `<tool_call>` ends the text, blanks aside.
    num_quoted: usize,
}

impl Prose {
    const QUOTE: &'static [u8] = b"<tool_call>";

    pub(super) fn push(&mut self, byte: u8) {
        self.last = byte;
        if byte == b'\n' {
            return self.end_line();
        }
        if byte.is_ascii_whitespace() {
            return;
        }
        if let Some(place) = self.first.get_mut(self.num_first) {
            *place = byte;
            self.num_first += 1;
        }
        self.num_quoted = match byte {
            _ if Self::QUOTE.get(self.num_quoted) == Some(&byte) => self.num_quoted + 1,
            b'<' => 1,
            _ => 0,
        };
    }

    pub(super) fn end_line(&mut self) {
        let fence = self.num_first == 3 && matches!(&self.first, b"```" | b"~~~");
        self.fenced ^= fence;
        self.num_first = 0;
    }

    /// A spelled opening tag counts here.
    pub(super) fn may_open(&self) -> bool {
        !self.fenced && self.last != b'`'
    }

    /// A function counts here without an opening tag.
    pub(super) fn may_call(&self) -> bool {
        !self.fenced && self.num_first == 0 && self.num_quoted < Self::QUOTE.len()
    }
}
