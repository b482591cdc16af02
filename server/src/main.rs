//! Parse, build, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use nemoserve::args::{Cli, Command, ServeArgs, exit};
use nemoserve::config::Settings;
use nemoserve::http::ServeError;
use nemoserve::state::AppState;
use nemoserve::{cli, logging, serve, startup};
use tokio::signal::unix::{Signal, SignalKind, signal};

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
        Some(Command::Doctor(args)) => cli::doctor::run(&args),
        Some(Command::Bench(args)) => return cli::bench::run(args),
    };
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
    let opened = Settings::new(&args).and_then(|settings| {
        let listen = settings.listen.clone();
        Ok((startup::open(settings)?, listen))
    });
    match opened {
        Ok((state, listen)) => run(serve_until_signal(Arc::new(state), listen)),
        Err(error) => fail(error.exit_code(), &error),
    }
}

async fn serve_until_signal(state: Arc<AppState>, listen: String) -> u8 {
    let listener = match startup::listen(&listen).await {
        Ok(listener) => listener,
        Err(error) => return fail(exit::ADDRESS, &error),
    };
    let address = listener
        .local_addr()
        .expect("a bound listener has an address");
    eprint!("\n{}\n", startup::summary(&state, address));
    tracing::info!(%address, model = state.models.ids[0], "listening");
    tokio::spawn(startup::follow_loading(Arc::clone(&state)));

    let mut signals = Signals::new();
    let shutdown = async move {
        signals.next().await;
        // Whoever asks twice does not want to wait for streams.
        tokio::spawn(async move {
            signals.next().await;
            tracing::warn!("second signal: leaving at once");
            std::process::exit(exit::FORCED.into());
        });
    };
    match serve(listener, state, shutdown).await {
        Ok(()) => exit::OK,
        Err(error) => {
            let (ServeError::Load(failure) | ServeError::Engine(failure)) = &error;
            fail(exit::of(failure.cause), &error)
        }
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
    eprintln!("nemoserve: {error}");
    code
}
