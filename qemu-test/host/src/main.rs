// SPDX-License-Identifier: GPL-2.0
//! `rnbd-qemu`: boots a kernel in QEMU and runs rnbd's tests, demo or a shell in it.

mod bench;
mod boot;
mod commands;
mod comparison;
mod complaint;
mod initramfs;
mod ktap;
mod kvm;
mod machine;
mod report;
mod runs;
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    version,
    about = "Boots a kernel in QEMU and runs rnbd's tests, demo or a shell in it",
    after_help = "Exit status: 0 all good, 1 something failed, 2 the harness itself could not go on, 130 Ctrl-C."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run tests in the guest
    ///
    /// Prints a line a test and, last, `N passed, N failed`. Any complaint of the kernel (WARNING, BUG, KASAN,
    /// lockdep, a hung task, ...) fails the test during which it came.
    #[command(args_override_self = true)]
    Test(commands::TestArgs),
    /// Load the module in a kernel that has KUnit, which runs the module's own tests
    #[command(args_override_self = true)]
    Kunit(commands::KunitArgs),
    /// Measure rnbd.ko against nbd.ko and against what the sockets allow, in one boot
    ///
    /// By default in instructions, which the emulation counts, so that what else the machine does is not measured.
    #[command(args_override_self = true)]
    Bench(commands::BenchArgs),
    /// Run one job of the benchmark under perf, in instructions, and print where they went
    #[command(args_override_self = true)]
    Profile(commands::ProfileArgs),
    /// Show the driver at work with real programs, a line a step
    #[command(args_override_self = true)]
    Demo(commands::DemoArgs),
    /// A shell in the guest, with the driver loaded
    #[command(args_override_self = true)]
    Shell(commands::ShellArgs),
    /// Check this harness: provoke each kind of failure in a guest and see that it is told
    #[command(args_override_self = true)]
    Selftest(commands::SelftestArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => commands::test(&args),
        Command::Kunit(args) => commands::kunit(&args),
        Command::Bench(args) => commands::bench(&args),
        Command::Profile(args) => commands::profile(&args),
        Command::Demo(args) => commands::demo(&args),
        Command::Shell(args) => commands::shell(&args),
        Command::Selftest(args) => commands::selftest(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
