//! The web playground: a chat page that the binary carries. It asks nobody but this server.
//!
//! The files beside this one are what the browser gets, as they are: no build step.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, Full};

use crate::state::Response;

/// Scripts, styles and requests of this server only; nothing inline, so no text of a model or of a
/// person can become code. Nobody may frame the page, because it may hold a key.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Name below `/playground/`, type, content.
const FILES: &[(&str, &str, &str)] = &[
    ("app.js", JAVASCRIPT, include_str!("app.js")),
    ("api.js", JAVASCRIPT, include_str!("api.js")),
    ("dom.js", JAVASCRIPT, include_str!("dom.js")),
    ("markdown.js", JAVASCRIPT, include_str!("markdown.js")),
    ("settings.js", JAVASCRIPT, include_str!("settings.js")),
    ("tokens.js", JAVASCRIPT, include_str!("tokens.js")),
    ("turns.js", JAVASCRIPT, include_str!("turns.js")),
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("style.css"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The page itself.
pub(crate) fn page() -> Response {
    respond("text/html; charset=utf-8", include_str!("index.html"))
}

/// What the page loads; `None`: no such file.
pub(crate) fn file(name: &str) -> Option<Response> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    found.map(|(_, kind, text)| respond(kind, text))
}

fn respond(kind: &'static str, text: &'static str) -> Response {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = http::Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        // A new binary brings new files under the old names.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_used_and_every_used_file_is_there() {
        let scripts: String = FILES.iter().map(|(.., text)| *text).collect();
        let all = format!("{}{scripts}", include_str!("index.html"));
        for (name, ..) in FILES {
            assert!(
                all.contains(&format!("/playground/{name}"))
                    || all.contains(&format!("\"./{name}\"")),
                "{name} is not used"
            );
        }
        for part in all.split("/playground/").skip(1) {
            let name = part.split('"').next().expect("split gives one");
            assert!(file(name).is_some(), "{name} is not there");
        }
        for part in all.split("from \"./").skip(1) {
            let name = part.split('"').next().expect("split gives one");
            assert!(file(name).is_some(), "{name} is not there");
        }
    }

    #[test]
    fn nothing_is_fetched_from_elsewhere_and_nothing_becomes_markup() {
        let page = include_str!("index.html");
        let pages = FILES.iter().copied().chain([("index.html", "", page)]);
        for (name, _, text) in pages {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "src=\"http",
                "href=\"http",
                "@import",
                " url(",
            ] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
    }
}
