//! `nemoserve chat`: a terminal chat over the API, streaming. A client like any other: it knows the
//! server only by its URL.

use std::io::{IsTerminal as _, Write as _, stdin, stdout};
use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::client::{Lines, Server};
use crate::args::{ChatArgs, exit};

const HELP: &str = "/think on|off   let the model think first
/reset          forget the conversation
/quit           leave (so does the end of input)";

/// Talks until the input ends. Piped input is a conversation too: one turn per line, answers only.
pub async fn run(args: ChatArgs) -> u8 {
    match Chat::new(args).await {
        Ok(mut chat) => chat.converse().await,
        Err(error) => {
            eprintln!("nemoserve chat: {error}");
            exit::COMMAND
        }
    }
}

struct Chat {
    server: Server,
    model: String,
    think: bool,
    messages: Vec<Value>,
    /// A person is watching: prompts, dimming and rates make sense.
    is_terminal: bool,
}

/// What the lines of the person mean.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Say(&'a str),
    Think(bool),
    Reset,
    Quit,
    Help,
    Nothing,
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        match line.trim() {
            "" => Self::Nothing,
            "/quit" | "/exit" => Self::Quit,
            "/reset" => Self::Reset,
            "/think on" => Self::Think(true),
            "/think off" => Self::Think(false),
            command if command.starts_with('/') => Self::Help,
            text => Self::Say(text),
        }
    }
}

impl Chat {
    async fn new(args: ChatArgs) -> Result<Self, String> {
        let mut chat = Self {
            server: Server::new(&args.url, args.api_key, args.cacert.as_deref())?,
            model: String::new(),
            think: args.think,
            messages: Vec::new(),
            is_terminal: stdin().is_terminal() && stdout().is_terminal(),
        };
        chat.model = match args.model {
            Some(model) => model,
            None => chat.server.first_model().await?,
        };
        Ok(chat)
    }

    async fn converse(&mut self) -> u8 {
        if self.is_terminal {
            println!("{} at {}\n{HELP}\n", self.model, self.server.base());
        }
        loop {
            if self.is_terminal {
                print!("> ");
                // A terminal that cannot be written to ends the loop below, at the next read.
                let _ = stdout().flush();
            }
            let line = match tokio::task::spawn_blocking(read_line).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return exit::OK,
                Ok(Err(error)) => return complain(&error.to_string()),
                Err(error) => return complain(&error.to_string()),
            };
            match Input::parse(&line) {
                Input::Nothing => {}
                Input::Quit => return exit::OK,
                Input::Reset => self.messages.clear(),
                Input::Think(think) => self.think = think,
                Input::Help => println!("{HELP}"),
                Input::Say(text) => {
                    if let Err(error) = self.say(text).await {
                        let code = complain(&error);
                        // A person may try again; a script must see it.
                        if !self.is_terminal {
                            return code;
                        }
                    }
                }
            }
        }
    }

    /// One turn. What failed leaves no trace in the conversation.
    async fn say(&mut self, text: &str) -> Result<(), String> {
        self.messages.push(json!({"role": "user", "content": text}));
        let outcome = self.stream_answer().await;
        match outcome {
            Ok(answer) => {
                self.messages
                    .push(json!({"role": "assistant", "content": answer}));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    async fn stream_answer(&self) -> Result<String, String> {
        let body = json!({
            "model": self.model,
            "messages": self.messages,
            "stream": true,
            "stream_options": {"include_usage": true},
            "chat_template_kwargs": {"enable_thinking": self.think},
        });
        let asked = Instant::now();
        let mut response = self
            .server
            .send(Method::POST, "/v1/chat/completions", body.to_string())
            .await?;
        let mut lines = Lines::default();
        let mut printer = Printer::new(self.is_terminal);
        let mut first_token = None;
        let mut usage = Value::Null;
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|error| format!("the stream broke off: {error}"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            for event in lines.push(&data) {
                if event == "[DONE]" {
                    continue;
                }
                let event: Value = serde_json::from_str(&event)
                    .map_err(|error| format!("the server sent no JSON: {error}"))?;
                if let Some(message) = event["error"]["message"].as_str() {
                    return Err(message.to_owned());
                }
                let delta = &event["choices"][0]["delta"];
                let reasoning = delta["reasoning_content"]
                    .as_str()
                    .or_else(|| delta["reasoning"].as_str())
                    .unwrap_or("");
                let content = delta["content"].as_str().unwrap_or("");
                if first_token.is_none() && !(reasoning.is_empty() && content.is_empty()) {
                    first_token = Some(asked.elapsed());
                }
                printer.reasoning(reasoning)?;
                printer.content(content)?;
                if event["usage"].is_object() {
                    usage = event["usage"].clone();
                }
            }
        }
        printer.finish(&rate(&usage, first_token, asked.elapsed()))
    }
}

/// Prints an answer as it comes.
struct Printer {
    is_terminal: bool,
    is_thinking: bool,
    answer: String,
}

impl Printer {
    fn new(is_terminal: bool) -> Self {
        Self {
            is_terminal,
            is_thinking: false,
            answer: String::new(),
        }
    }

    /// Dimmed for people; a pipe gets the answer alone.
    fn reasoning(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() || !self.is_terminal {
            return Ok(());
        }
        let dim = if self.is_thinking { "" } else { "\x1b[2m" };
        self.is_thinking = true;
        show(&format!("{dim}{}", printable(text)))
    }

    fn content(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Ok(());
        }
        self.answer.push_str(text);
        let undim = if self.is_thinking { "\x1b[0m\n" } else { "" };
        self.is_thinking = false;
        if self.is_terminal {
            show(&format!("{undim}{}", printable(text)))
        } else {
            show(text)
        }
    }

    fn finish(self, rate: &str) -> Result<String, String> {
        let undim = if self.is_thinking { "\x1b[0m" } else { "" };
        if self.is_terminal {
            show(&format!("{undim}\n\x1b[2m{rate}\x1b[0m\n"))?;
        } else {
            show("\n")?;
        }
        Ok(self.answer)
    }
}

/// A model's text cannot move the cursor or recolour the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

fn show(text: &str) -> Result<(), String> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| error.to_string())
}

/// `23 tokens, first after 0.11 s, 84.0 tokens/s`.
fn rate(usage: &Value, first_token: Option<Duration>, total: Duration) -> String {
    let Some(tokens) = usage["completion_tokens"].as_u64() else {
        return format!("{:.2} s", total.as_secs_f64());
    };
    let Some(first) = first_token else {
        return format!("{tokens} tokens, {:.2} s", total.as_secs_f64());
    };
    let seconds = total.saturating_sub(first).as_secs_f64();
    let text = format!("{tokens} tokens, first after {:.2} s", first.as_secs_f64());
    if tokens > 1 && seconds > 0.0 {
        return format!("{text}, {:.1} tokens/s", (tokens - 1) as f64 / seconds);
    }
    text
}

fn read_line() -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let len = stdin().read_line(&mut line)?;
    Ok((len > 0).then_some(line))
}

fn complain(error: &str) -> u8 {
    eprintln!("nemoserve chat: {error}");
    exit::COMMAND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        assert_eq!(Input::parse("  hello \n"), Input::Say("hello"));
        assert_eq!(Input::parse("/think off\n"), Input::Think(false));
        assert_eq!(Input::parse("/reset"), Input::Reset);
        assert_eq!(Input::parse("/quit\n"), Input::Quit);
        assert_eq!(Input::parse("/what"), Input::Help);
        assert_eq!(Input::parse("\n"), Input::Nothing);
    }

    #[test]
    fn events_survive_any_cut() {
        let stream = ": keep-alive\n\ndata: {\"a\":\"é\"}\n\ndata: [DONE]\n\n".as_bytes();
        for cut in 0..stream.len() {
            let mut lines = Lines::default();
            let mut events = lines.push(&stream[..cut]);
            events.extend(lines.push(&stream[cut..]));
            assert_eq!(events, ["{\"a\":\"é\"}", "[DONE]"], "cut at {cut}");
        }
    }

    #[test]
    fn the_terminal_is_safe_from_the_model() {
        assert_eq!(printable("a\x1b[31mb\r\n\tc\u{7}"), "a[31mb\n\tc");
    }

    #[test]
    fn rates_leave_out_the_wait_for_the_first_token() {
        let usage = json!({"completion_tokens": 21});
        let text = rate(&usage, Some(Duration::from_secs(1)), Duration::from_secs(3));
        assert_eq!(text, "21 tokens, first after 1.00 s, 10.0 tokens/s");
    }
}
