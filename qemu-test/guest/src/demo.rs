// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test demo`: the driver at work, one readable line a step.

mod incident;
mod show;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::modules::leftovers;
use crate::process::wait_for;
use show::{step, title};

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
    driver: Driver,
    /// Directory that holds rnbd.ko and nbd.ko
    #[arg(long, default_value = "/modules")]
    modules: PathBuf,
}

/// Where the demo keeps images and mounts.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join("rnbd-demo");
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Scratch(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the demo. The first step that fails ends it.
pub fn run(args: &Args) -> Result<()> {
    for driver in [Driver::Rnbd, Driver::Nbd] {
        if driver.loaded() {
            bail!("{0}.ko is loaded: the demo loads the drivers itself; rmmod {0} first", driver.module());
        }
    }
    let scratch = Scratch::new()?;
    let parameters = "nbds_max=2";
    step(&format!("insmod {}.ko", args.driver.module()), || {
        args.driver.load(&args.modules, parameters)?;
        wait_for("/dev/nbd0", || Path::new("/dev/nbd0").exists())?;
        Ok("/dev/nbd0 is there".to_owned())
    })?;
    work::run(&scratch, args.driver)?;
    unload(args.driver)?;

    title(
        "The incident. A process dies in the middle of a set-up while a stuck blkid holds the device open:",
    );
    let drivers = [Driver::Nbd, args.driver];
    for driver in if args.driver == Driver::Nbd { &drivers[..1] } else { &drivers[..] } {
        driver.load(&args.modules, parameters)?;
        incident::run(&scratch, *driver)?;
        remove(*driver)?;
    }
    Ok(())
}

fn unload(driver: Driver) -> Result<()> {
    step(&format!("rmmod {}", driver.module()), || {
        remove(driver)?;
        wait_for("its devices to go", || leftovers().is_empty())?;
        Ok("nothing is left of it".to_owned())
    })
}

/// Unloads the driver as soon as nobody uses it.
fn remove(driver: Driver) -> Result<()> {
    let mut last = Ok(());
    wait_for("nobody to use the driver", || {
        last = driver.remove();
        last.is_ok()
    })
    .with_context(|| format!("rmmod {}: {last:?}", driver.module()))
}
