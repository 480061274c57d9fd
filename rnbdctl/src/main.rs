// SPDX-License-Identifier: GPL-2.0
//! `rnbdctl`: network block devices for people, with rnbd.ko and with nbd.ko.

#![forbid(unsafe_code)]

mod address;
mod change;
mod cli;
mod connect;
mod device;
mod diagnosis;
mod disconnect;
mod driver;
mod failure;
mod generate;
mod handshake;
mod process;
mod server;
mod status;
mod tables;
mod text;
mod users;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Status(args) => status::run(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Reconfigure(args) => change::reconfigure(&args),
        Command::Handover(args) => change::handover(&args),
        Command::Disconnect(args) => disconnect::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Generate(args) => generate::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Says what went wrong and what to do about it, and gives the exit status.
fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("rnbdctl: {error:#}");
    let Some(failure) = error.downcast_ref::<Failure>() else { return ExitCode::FAILURE };
    failure.hints().iter().for_each(|hint| eprintln!("  {hint}"));
    failure.exit_code()
}
