//! Lark grammars of clients: the language of the Lark project and nothing of the library's own.
//!
//! The library can name control tokens, embed other grammars and switch the rules of its lexer. In a
//! client's hands that would put tags where only text may stand.

use crate::GrammarError;

/// Directives of Lark itself.
const DIRECTIVES: [&str; 2] = ["ignore", "import"];

/// Refuses what is not Lark's.
pub(crate) fn check(grammar: &str) -> Result<(), GrammarError> {
    for (number, line) in (1..).zip(grammar.lines()) {
        let code = without_literals(line);
        let refuse = |what: &str| GrammarError::Malformed {
            message: format!("line {number}: {what}"),
        };
        if code.contains('<') {
            return Err(refuse(
                "`<` stands for a control token, which no text can hold",
            ));
        }
        if code.contains('@') {
            return Err(refuse("`@` refers to another grammar, and there is none"));
        }
        if has_attributes(&code) {
            return Err(refuse(
                "a rule's name is followed by `:`, not by attributes",
            ));
        }
        for (at, _) in code.match_indices('%') {
            let name: String = code[at + 1..]
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            if !DIRECTIVES.contains(&name.as_str()) {
                return Err(refuse(&format!("there is no directive `%{name}`")));
            }
        }
    }
    Ok(())
}

/// `name[key=value]: ..`; in Lark, brackets come after the colon and make something optional.
fn has_attributes(code: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_?!".contains(c);
    let rest = code.trim_start().trim_start_matches(is_name);
    rest.len() < code.trim_start().len() && rest.starts_with('[')
}

/// The line with strings and regular expressions emptied, and without its comment.
fn without_literals(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        if character == '#' || rest.starts_with("//") {
            break;
        }
        code.push(character);
        rest = &rest[character.len_utf8()..];
        if character == '"' || character == '/' {
            rest = after_literal(rest, character);
        }
    }
    code
}

/// What follows the unescaped `quote`.
fn after_literal(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        if character == quote && !escaped {
            return &text[at + character.len_utf8()..];
        }
        escaped = character == '\\' && !escaped;
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn accept(grammar: &str) {
        assert_eq!(check(grammar), Ok(()), "{grammar}");
    }

    #[track_caller]
    fn refuse(grammar: &str, word: &str) {
        let error = check(grammar).expect_err("it is not Lark").to_string();
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }

    #[test]
    fn larks_own_language_passes() {
        accept("start: \"<a>\" /<b>@%x/ // <c>\n  | [\"x\"] # @d\nA: \"\\\"<\" | /\\/</i");
        accept(
            "%import common.INT\n%ignore \" \"\n?start: sum\n!sum: INT (\"+\" INT)* \"a\"..\"z\"~2..3",
        );
        accept("");
    }

    #[test]
    fn what_is_the_librarys_is_refused() {
        refuse("start: <tool_call>", "line 1");
        refuse("start: A\nA: <[14]>", "line 2");
        refuse("start: @other", "another grammar");
        refuse("start: %json {\"type\": \"string\"}", "%json");
        refuse("%llguidance {\"allow_invalid_utf8\": true}", "%llguidance");
        refuse("start[lazy]: /a*/", "attributes");
        refuse("  gen[stop=\"x\"]: /a*/", "attributes");
        refuse("start: \"a\" /b/ <think>", "control token");
    }
}
