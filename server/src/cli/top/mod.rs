//! `nemoserve top`: a running server in the terminal, by what its `/metrics` says.
//!
//! | file | is |
//! |---|---|
//! | `exposition` | the text of a scrape |
//! | `reading` | what two scrapes say together |
//! | `view` | that on the screen |

mod exposition;
mod reading;
mod view;

use std::io;
use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::time::{sleep, timeout};

use self::exposition::Exposition;
use self::reading::{History, Reading};
use super::client::Server;
use crate::args::{TopArgs, exit};

/// What a scrape may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches until somebody says `q`; the exit code.
pub async fn run(args: TopArgs) -> u8 {
    match watch(&args).await {
        Ok(()) => exit::OK,
        Err(error) => {
            eprintln!("nemoserve: {error}");
            exit::COMMAND
        }
    }
}

async fn watch(args: &TopArgs) -> Result<(), String> {
    if !(0.2..=60.0).contains(&args.interval) {
        return Err(format!(
            "--interval {}: expected 0.2 to 60 seconds",
            args.interval
        ));
    }
    let interval = Duration::from_secs_f64(args.interval);
    let mut eye = Eye {
        server: Server::new(&args.url, None, args.cacert.as_deref())?,
        seen: None,
        reading: Reading::default(),
        history: History::default(),
    };
    eye.look().await?;
    if args.once {
        sleep(interval).await;
        eye.look().await?;
        print!("{}", view::plain(eye.server.base(), &eye.reading));
        return Ok(());
    }
    let mut terminal = ratatui::try_init().map_err(|error| format!("the terminal: {error}"))?;
    let outcome = eye.stay(&mut terminal, interval).await;
    ratatui::restore();
    outcome.map_err(|error| format!("the terminal: {error}"))
}

struct Eye {
    server: Server,
    /// The last scrape and when it was.
    seen: Option<(Exposition, Instant)>,
    reading: Reading,
    history: History,
}

impl Eye {
    async fn look(&mut self) -> Result<(), String> {
        let late = |_| format!("{}: no answer in time", self.server.base());
        let text = timeout(PATIENCE, self.scrape()).await.map_err(late)??;
        let now = Exposition::parse(&text)
            .map_err(|error| format!("{}/metrics: {error}", self.server.base()))?;
        let at = Instant::now();
        let before = self.seen.as_ref();
        let before = before.map(|(exposition, then)| (exposition, at - *then));
        self.reading = Reading::new(&now, before);
        self.history.note(&self.reading);
        self.seen = Some((now, at));
        Ok(())
    }

    async fn scrape(&self) -> Result<String, String> {
        let answer = self.server.send(Method::GET, "/metrics", String::new());
        let body = answer.await?.collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        String::from_utf8(body.into()).map_err(|error| error.to_string())
    }

    /// Looks and draws, again and again.
    async fn stay(&mut self, terminal: &mut DefaultTerminal, interval: Duration) -> io::Result<()> {
        let mut trouble = None;
        loop {
            let next = Instant::now() + interval;
            loop {
                let (url, reading) = (self.server.base(), &self.reading);
                let trouble = trouble.as_deref();
                terminal.draw(|frame| view::draw(frame, url, reading, &self.history, trouble))?;
                // This blocks the thread, on which nothing else runs.
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() || !event::poll(left)? {
                    break;
                }
                if is_goodbye(&event::read()?) {
                    return Ok(());
                }
            }
            trouble = self.look().await.err();
        }
    }
}

fn is_goodbye(event: &Event) -> bool {
    let Event::Key(key) = event else {
        return false;
    };
    let is_interrupt =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}
