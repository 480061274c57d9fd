// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test demo`: the driver at work, one readable line a step.

use std::path::PathBuf;

use anyhow::Result;

/// Which of the two drivers to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// The Rust driver.
    Rnbd,
    /// The kernel's own C driver.
    Nbd,
}

/// Options of the demo.
#[derive(clap::Args)]
pub struct Args {
    /// The driver to show
    #[arg(long, default_value = "rnbd")]
    pub driver: Driver,
    /// Directory that holds rnbd.ko and nbd.ko
    #[arg(long, default_value = "/modules")]
    pub modules: PathBuf,
}

/// Runs the demo.
pub fn run(_args: &Args) -> Result<()> {
    anyhow::bail!("the demo is not written yet")
}
