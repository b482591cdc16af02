//! Parse, build, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use nemoserve::args::{Cli, Command, ServeArgs, exit};
use nemoserve::config::{ConfigError, Settings};
use nemoserve::http::{ServeError, panicked};
use nemoserve::state::AppState;
use nemoserve::transport::{Activated, ListenAddress, Listeners, Tls, activated};
use nemoserve::watchdog::end_for_good;
use nemoserve::{admission, cli, kv_events, log_writer, logging, serve, startup, systemd};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

fn main() -> ExitCode {
    let Cli {
        command,
        serve: top_level,
    } = Cli::parse();
    let code = match command {
        None => run_server(top_level),
        Some(Command::Serve(args)) => run_server(args.over(top_level)),
        Some(Command::Chat(args)) => run(cli::chat::run(args)),
        Some(Command::Quantize(args)) => run(cli::quantize::run(args)),
        Some(Command::Pull(args)) => cli::pull::run(&args),
        Some(Command::Verify(args)) => cli::verify::run(&args),
        Some(Command::Top(args)) => run(cli::top::run(args)),
        Some(Command::Replay(args)) => cli::replay::run(&args),
        Some(Command::Doctor(args)) => cli::doctor::run(&args),
        Some(Command::Bench(args)) => return cli::bench::run(args),
        Some(Command::Key(args)) => cli::key::run(&args),
    };
    log_writer::flush();
    ExitCode::from(code)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime needs a few threads and descriptors")
        .block_on(future)
}

fn run_server(args: ServeArgs) -> u8 {
    let args = match args.with_file() {
        Ok(args) => args,
        Err(error) => return fail(exit::USAGE, &error),
    };
    let filter = args.log.as_deref().unwrap_or("info");
    if let Err(error) = logging::init(args.log_format.unwrap_or_default(), filter) {
        return fail(exit::USAGE, &error);
    }
    // First of all: it changes the environment, which threads might read.
    let activated = match activated() {
        Ok(activated) => activated,
        Err(error) => return fail(exit::ADDRESS, &error),
    };
    let opened = Settings::new(&args).and_then(|settings| {
        let doors = Doors::new(activated, &settings)?;
        Ok((startup::open(settings)?, doors))
    });
    match opened {
        Ok((state, doors)) => run(serve_until_signal(Arc::new(state), doors)),
        Err(error) => fail(error.exit_code(), &error),
    }
}

/// What is known of the ways in before there is a runtime.
struct Doors {
    activated: Vec<Activated>,
    addresses: Vec<ListenAddress>,
    unix_socket_mode: u32,
    tls: Option<Arc<Tls>>,
}

impl Doors {
    fn new(activated: Vec<Activated>, settings: &Settings) -> Result<Self, ConfigError> {
        let mut addresses = settings.listen.clone();
        if addresses.is_empty() && activated.is_empty() {
            addresses.push(ListenAddress::Tcp("127.0.0.1:8000".into()));
        }
        let tls = settings.tls.clone().map(Tls::open).transpose();
        Ok(Self {
            activated,
            addresses,
            unix_socket_mode: settings.unix_socket_mode,
            tls: tls.map_err(ConfigError::Usage)?,
        })
    }
}

async fn serve_until_signal(state: Arc<AppState>, doors: Doors) -> u8 {
    let Doors {
        activated,
        addresses,
        unix_socket_mode,
        tls,
    } = doors;
    let listeners = match Listeners::open(activated, &addresses, unix_socket_mode).await {
        Ok(listeners) => listeners.with_tls(tls.clone()),
        Err(error) => return fail(exit::ADDRESS, &error),
    };
    let mut background = JoinSet::new();
    if let Some(config) = &state.config.kv_events
        && let Err(error) =
            kv_events::start(config, &state.engine, &state.info, &mut background).await
    {
        return fail(exit::ADDRESS, &error);
    }
    let urls = listeners.urls();
    log_writer::say(&format_args!("\n{}", startup::summary(&state, &urls)));
    tracing::info!(?urls, model = state.models.ids[0], "listening");
    background.spawn(startup::follow_loading(Arc::clone(&state)));
    background.spawn(reload_on_hangup(Arc::clone(&state), tls));
    end_for_good(state.engine.clone());

    let mut signals = Signals::new();
    let (found, mut bug) = oneshot::channel();
    let shutdown = async move {
        tokio::select! {
            () = signals.next() => {}
            // Nobody waits for the answer if serving has ended by itself.
            failure = panicked(&mut background) => drop(found.send(failure)),
        }
        // The others run on while streams end.
        background.detach_all();
        // Whoever asks twice does not want to wait for streams.
        tokio::spawn(async move {
            signals.next().await;
            tracing::warn!("second signal: leaving at once");
            log_writer::flush();
            std::process::exit(exit::FORCED.into());
        });
    };
    let outcome = serve(listeners, state, shutdown).await;
    let outcome = outcome.and_then(|()| match bug.try_recv() {
        Ok(failure) => Err(ServeError::Background(failure)),
        Err(_) => Ok(()),
    });
    match outcome {
        Ok(()) => exit::OK,
        Err(error) => {
            let (ServeError::Load(failure)
            | ServeError::Engine(failure)
            | ServeError::Accept(failure)
            | ServeError::Background(failure)) = &error;
            fail(exit::of(failure.cause), &error)
        }
    }
}

/// SIGHUP: what files say is read anew, and nobody is disturbed.
async fn reload_on_hangup(state: Arc<AppState>, tls: Option<Arc<Tls>>) {
    let mut hangup = signal(SignalKind::hangup()).expect("this signal can be listened for");
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reading files anew");
        systemd::reload(&state, || {
            if let Some(tls) = &tls {
                tls.reload();
            }
            admission::reload(&state);
        });
    }
}

/// SIGTERM and Ctrl-C.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Self {
        let listen = |kind| signal(kind).expect("these signals can be listened for");
        Self {
            terminate: listen(SignalKind::terminate()),
            interrupt: listen(SignalKind::interrupt()),
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> u8 {
    log_writer::say(&format_args!("nemoserve: {error}"));
    code
}
