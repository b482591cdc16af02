//! What tests of the binary share.

use std::process::Command;

/// The binary, without what the environment of whoever runs the tests says of it.
pub(crate) fn nemoserve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nemoserve"));
    for (name, _) in std::env::vars() {
        if name.starts_with("NEMOSERVE_") || name.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
}
