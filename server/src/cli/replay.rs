//! `nemoserve replay`: a flight recording through the real scheduler once more.

use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use engine::flight::replay;

use crate::args::{ReplayArgs, exit};

/// Runs it again and says what came of it; the exit code.
pub fn run(args: &ReplayArgs) -> u8 {
    let path = args.file.display();
    let file = match File::open(&args.file) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("nemoserve: {path}: {error}");
            return exit::COMMAND;
        }
    };
    let begin = Instant::now();
    match replay(BufReader::new(file)) {
        Ok(done) => {
            println!(
                "{} plans are equal: {} calls, {} requests, {} tokens drawn",
                done.num_plans, done.num_calls, done.num_requests, done.num_tokens
            );
            println!(
                "{:.1} s recorded, {:.3} s to run again; the longest step took {:.1} ms",
                done.spanned.as_secs_f64(),
                begin.elapsed().as_secs_f64(),
                done.longest_step.as_secs_f64() * 1000.0
            );
            exit::OK
        }
        Err(error) => {
            eprintln!("nemoserve: {path}: {error}");
            exit::COMMAND
        }
    }
}
