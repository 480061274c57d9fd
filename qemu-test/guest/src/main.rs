// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test`: one program with every test that runs inside a booted kernel, and the demo.

mod demo;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    version,
    about = "Tests of the nbd block driver, to be run as root in a kernel that one can afford to crash"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run tests and print KTAP on standard output
    Run {
        /// The driver under test
        #[arg(long, default_value = "rnbd")]
        driver: demo::Driver,
        /// Directory that holds rnbd.ko and nbd.ko
        #[arg(long, default_value = "/modules")]
        modules: PathBuf,
        /// Only the quick subset
        #[arg(long)]
        quick: bool,
        /// Names or globs of tests; all when none is given
        names: Vec<String>,
    },
    /// List the tests
    List,
    /// Show the driver at work, a line a step
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::List => Ok(()),
        Command::Run { .. } => Err(anyhow::anyhow!("no tests yet")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rnbd-test: {error:#}");
            ExitCode::FAILURE
        }
    }
}
