//! Flags, then the server; the process's only exit.

use std::env;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use metastore::config::{self, Parsed};
use metastore::server::{self, Ended, logging};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match config::parse(env::args_os().skip(1), env::vars_os()) {
        Ok(Parsed::Print(text)) => {
            // Who closed the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Parsed::Check { data_dir, wal_dir }) => {
            let progress = std::io::stderr().is_terminal();
            match server::check::run(&data_dir, wal_dir.as_deref(), progress) {
                Ok(report) => {
                    println!("{report}");
                    ExitCode::SUCCESS
                }
                Err(error) => refuse(&error.to_string(), 1),
            }
        }
        Ok(Parsed::Tool(tool)) => {
            let progress = std::io::stderr().is_terminal();
            match server::tools::run(&tool, progress) {
                Ok(said) => {
                    println!("{said}");
                    ExitCode::SUCCESS
                }
                Err(error) => refuse(&error.to_string(), 1),
            }
        }
        Ok(Parsed::Serve(config)) => {
            logging::begin(config.log_level, config.log_format, config.log_output);
            match server::run(&config) {
                Ok(ended) => end_by_signal(ended),
                Err(error) => refuse(&error.to_string(), 1),
            }
        }
        Err(refusal) => refuse(&refusal.message, refusal.code),
    }
}

fn refuse(message: &str, code: u8) -> ExitCode {
    eprintln!("metastore: {message}");
    ExitCode::from(code)
}

/// As etcd: after a graceful stop the process dies of the signal that asked for it, so that whoever
/// waits for it sees why; as the first process of a container, which no signal kills, it exits.
fn end_by_signal(ended: Ended) -> ExitCode {
    let signal = match ended {
        Ended::Terminated => signal_hook::consts::SIGTERM,
        Ended::Interrupted => signal_hook::consts::SIGINT,
    };
    if std::process::id() != 1 {
        // What fails here leaves the ordinary exit.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    ExitCode::SUCCESS
}
