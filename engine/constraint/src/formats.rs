//! Formats of strings as regular expressions, where the library's are too loose or too narrow.

/// What a string of this format matches as a whole, each of them, if it is one of ours.
pub(crate) fn patterns(format: &str) -> Vec<String> {
    match format {
        "date" => vec![DATE.to_owned()],
        "time" => vec![time()],
        "date-time" => vec![format!("(?:{DATE})[tT](?:{})", time())],
        "email" => vec![email(), EMAIL_LENGTHS.to_owned()],
        "ipv6" => vec![ipv6()],
        _ => Vec::new(),
    }
}

/// The 29th of February exists in every fourth year, but in one of four centuries only.
const DATE: &str = concat!(
    "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29",
);

/// A leap second ends a day of UTC: at other offsets than zero it is left out, because a text would
/// have to remember its hour until it tells its offset.
fn time() -> String {
    let hour = "(?:[01][0-9]|2[0-3])";
    let fraction = r"(?:\.[0-9]+)?";
    let ordinary = format!("{hour}:[0-5][0-9]:[0-5][0-9]{fraction}(?:[zZ]|[+-]{hour}:[0-5][0-9])");
    let leap = format!("23:59:60{fraction}(?:[zZ]|[+-]00:00)");
    format!("{ordinary}|{leap}")
}

/// At most 64 characters before the `@` and 253 after it: see [`EMAIL_LENGTHS`].
fn email() -> String {
    let atom = r"[a-zA-Z0-9!#$%&'*+\-/=?^_`{|}~]+";
    let quoted = r#""(?:[ !#-\[\]-~]|\\[ -~]){0,31}""#;
    let label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
    let (ipv4, ipv6) = (IPV4, ipv6());
    format!(
        r"(?:{atom}(?:\.{atom})*|{quoted})@(?:{label}(?:\.{label})*|\[{ipv4}\]|\[IPv6:(?:{ipv6})\])"
    )
}

/// What [`email`] cannot count while it looks at dots.
const EMAIL_LENGTHS: &str = r#"(?:[^"@]{1,64}|"[^\n]*")@.{1,253}"#;

const IPV4: &str = r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";

/// RFC 3986, `IPv6address`, line by line.
fn ipv6() -> String {
    let group = "[0-9a-fA-F]{1,4}";
    let last = format!("(?:{group}:{group}|{IPV4})");
    [
        format!("(?:{group}:){{6}}{last}"),
        format!("::(?:{group}:){{5}}{last}"),
        format!("(?:{group})?::(?:{group}:){{4}}{last}"),
        format!("(?:(?:{group}:){{0,1}}{group})?::(?:{group}:){{3}}{last}"),
        format!("(?:(?:{group}:){{0,2}}{group})?::(?:{group}:){{2}}{last}"),
        format!("(?:(?:{group}:){{0,3}}{group})?::{group}:{last}"),
        format!("(?:(?:{group}:){{0,4}}{group})?::{last}"),
        format!("(?:(?:{group}:){{0,5}}{group})?::{group}"),
        format!("(?:(?:{group}:){{0,6}}{group})?::"),
    ]
    .join("|")
}
