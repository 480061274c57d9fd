// SPDX-License-Identifier: GPL-2.0
//! `has-kvm`: whether KVM boots a kernel, for a script that boots it by other means.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::kvm;
use crate::machine::{Accel, Size};

/// Options of `has-kvm`.
#[derive(clap::Args)]
pub struct HasKvmArgs {
    /// Image of the kernel to try
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Where what is found is kept until this machine is booted again
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    #[command(flatten)]
    size: Size,
}

/// `has-kvm`: prints why not.
pub fn has_kvm(args: &HasKvmArgs) -> Result<ExitCode> {
    let kernel = super::exists("--kernel", &args.kernel)?;
    std::fs::create_dir_all(&args.store).with_context(|| format!("create {}", args.store.display()))?;
    let (accel, why) = kvm::choose(&args.size, &kernel, &args.store);
    if let Some(why) = why {
        println!("{why}");
    }
    Ok(if accel == Accel::Kvm { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
