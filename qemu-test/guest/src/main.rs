// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test`: one program with every test that runs inside a booted kernel, and the demo.

mod attach;
mod bench;
mod blocked;
mod cgroup;
mod demo;
mod device;
mod kmsg;
mod ktap;
mod kunit;
mod leaks;
mod mapping;
mod modules;
mod mounted;
mod process;
mod puppet;
mod races;
mod runner;
mod server;
mod swap;
mod tests;
mod uevent;
mod userfault;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nbd_netlink as netlink;

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
    Run(runner::Args),
    /// Load rnbd.ko in a kernel that has KUnit, and print the results of its own tests as KTAP
    Kunit(kunit::Args),
    /// List the tests
    List {
        #[command(flatten)]
        selection: runner::Selection,
        /// Names alone, for programs
        #[arg(long)]
        names_only: bool,
    },
    /// Measure rnbd.ko, nbd.ko and the limit of their sockets, and print a line of JSON a sample
    Bench(bench::Args),
    /// Run one job of the benchmark under perf, and print where the time went
    Profile(bench::profile::Args),
    /// Show the driver at work, a line a step
    Demo(demo::Args),
    /// Print the table of bounds that docs/design.md has
    BoundsTable,
    /// The body of one test, in a process of its own
    #[command(hide = true)]
    Body(runner::BodyArgs),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    netlink::set_patience(*process::PATIENCE);
    let result = match command {
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Profile(args) => bench::profile::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::List { selection, names_only } => {
            runner::list(&selection, names_only).map(|()| ExitCode::SUCCESS)
        }
        Command::BoundsTable => {
            print!("{}", tests::bounds::table::markdown());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => runner::run(&args),
        Command::Kunit(args) => kunit::run(&args),
        Command::Body(args) => runner::body(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rnbd-test: {error:#}");
        ExitCode::from(2)
    })
}
