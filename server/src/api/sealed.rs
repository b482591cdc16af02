//! Thoughts in fields that clients hand back unread: `encrypted_content` of Responses, `signature`
//! and `data` of Messages. They come back in the next request and re-enter the prompt. There is
//! nobody to hide them from: who may ask for them sealed may ask for them open.

const PREFIX: &str = "nemoserve-thought:";

/// What goes where a thought is shown beside it.
pub const SHOWN: &str = "nemoserve";

/// A thought for such a field.
pub fn seal(thought: &str) -> String {
    format!("{PREFIX}{thought}")
}

/// The thought, if it was sealed here; another server's is not readable.
pub fn open(sealed: &str) -> Option<&str> {
    sealed.strip_prefix(PREFIX)
}
