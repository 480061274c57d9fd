// SPDX-License-Identifier: GPL-2.0
//! `kunit`: the tests that are part of the module, in a kernel that has KUnit.

use std::process::ExitCode;

use anyhow::Result;

use super::Places;
use super::test::{Watch, boot_until_done, conclude, tally};
use crate::boot::Interrupts;
use crate::report::Report;
use crate::terminal::Terminal;

/// Options of `kunit`.
#[derive(clap::Args)]
pub struct KunitArgs {
    #[command(flatten)]
    places: Places,
}

/// `kunit`.
pub fn kunit(args: &KunitArgs) -> Result<ExitCode> {
    let watch = Watch { terminal: Terminal::new(), interrupts: Interrupts::install()? };
    let job = |_: &[String]| "rnbd-test kunit".to_owned();
    // Which cases there are, the module alone knows: nothing is left to be run in another boot.
    let (report, last) = boot_until_done(&args.places, Report::new("rnbd", false), &[], &job, &watch)?;
    conclude(&report, &last, &watch)?;
    let (passed, failed) = report.tally();
    Ok(tally(passed, failed, report.interrupted(), &watch.terminal))
}
