// SPDX-License-Identifier: GPL-2.0
//! The tests, by subject.

mod away;
mod away_threads;
pub mod bounds;
mod calls;
mod claim;
mod clients;
mod data;
mod debugfs;
mod disks;
mod draining;
mod end;
mod errors;
mod fault;
mod flags;
mod hostile;
mod hot;
mod ioctl;
mod load;
mod module;
mod netlink;
mod own;
mod params;
mod persist;
mod race;
mod rnbdctl;
mod settings;
mod size;
mod state;
mod stuck;
mod teardown;
mod trace;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::modules::{BUILT_IN, Driver};

/// How long such tests run with --soak.
pub const SOAK_SECONDS: u64 = 600;

/// What a test is given.
pub struct Context {
    pub driver: Driver,
    /// Directory of rnbd.ko and nbd.ko.
    pub modules: PathBuf,
    /// The quick subset is run: fewer rounds will do.
    pub quick: bool,
    /// Run for minutes rather than seconds.
    pub soak: bool,
    /// An empty directory, removed afterwards.
    pub scratch: PathBuf,
}

impl Context {
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// How long a test goes on that could go on for ever.
    pub fn seconds(&self, full: u64, quick: u64) -> u64 {
        match (self.soak, self.quick) {
            (true, _) => SOAK_SECONDS,
            (_, true) => quick,
            _ => full,
        }
    }

    pub fn scratch_file(&self, name: &str) -> String {
        self.scratch.join(name).to_string_lossy().into_owned()
    }
}

pub struct Test {
    pub name: &'static str,
    pub about: &'static str,
    pub body: fn(&Context) -> Result<()>,
    /// Part of the quick subset.
    pub quick: bool,
    /// It retells an incident for which this driver exists: `make test` runs it on nbd.ko too, to compare.
    pub incident: bool,
    /// Module parameters to load the driver with; None when the test loads it itself.
    pub params: Option<&'static str>,
    /// Seconds after which it counts as hung.
    pub limit: u64,
    /// Why nbd.ko fails it, when it is known to.
    pub known_on_nbd: Option<&'static str>,
}

impl Test {
    /// A test on a driver with two small devices.
    pub const fn new(name: &'static str, about: &'static str, body: fn(&Context) -> Result<()>) -> Test {
        let params = Some("nbds_max=2");
        Test { name, about, body, quick: false, incident: false, params, limit: 60, known_on_nbd: None }
    }

    pub const fn quick(self) -> Test {
        Test { quick: true, ..self }
    }

    pub const fn incident(self) -> Test {
        Test { incident: true, ..self }
    }

    pub const fn params(self, params: &'static str) -> Test {
        Test { params: Some(params), ..self }
    }

    /// The test loads the driver itself.
    pub const fn unloaded(self) -> Test {
        Test { params: None, ..self }
    }

    pub const fn limit(self, seconds: u64) -> Test {
        Test { limit: seconds, ..self }
    }

    pub const fn known_on_nbd(self, reason: &'static str) -> Test {
        Test { known_on_nbd: Some(reason), ..self }
    }
}

pub fn all() -> impl Iterator<Item = &'static Test> {
    [
        ioctl::TESTS,
        flags::TESTS,
        size::TESTS,
        params::TESTS,
        module::TESTS,
        errors::TESTS,
        teardown::TESTS,
        own::TESTS,
        settings::TESTS,
        end::TESTS,
        stuck::TESTS,
        bounds::TESTS,
        draining::TESTS,
        away::TESTS,
        away_threads::TESTS,
        claim::TESTS,
        data::TESTS,
        clients::TESTS,
        persist::TESTS,
        state::TESTS,
        debugfs::TESTS,
        trace::TESTS,
        hot::TESTS,
        race::TESTS,
        calls::TESTS,
    ]
    .into_iter()
    .chain(disks::TESTS)
    .chain(load::TESTS)
    .chain(fault::TESTS)
    .chain(netlink::TESTS)
    .chain(hostile::TESTS)
    .chain(rnbdctl::TESTS)
    .flatten()
}

/// The error of a test that cannot be run here.
#[derive(Debug)]
pub struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

/// For a test of what nbd.ko does not have.
pub fn ours_only(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko does not show it");
    }
    Ok(())
}

/// For a test that loads or unloads the driver: not if it is built in.
pub fn loadable(context: &Context) -> Result<()> {
    if context.driver.built_in() {
        return skip(BUILT_IN);
    }
    Ok(())
}

/// Says how many of what there were; the harness shows that, and adds them up.
pub fn tried(count: usize, what: &str) {
    println!("tried: {count} {what}");
}

/// Of the time, unless one is given to repeat a run. What the scheduler does is not repeated.
pub fn seed() -> Result<u64> {
    use anyhow::Context as _;
    let seed = match std::env::var("RNBD_TEST_SEED") {
        Ok(text) => text.parse().context("RNBD_TEST_SEED")?,
        Err(_) => std::time::UNIX_EPOCH.elapsed()?.as_micros() as u64,
    };
    println!("seed {seed} (to run it again: toolchain/qemu test --seed {seed} NAME)");
    Ok(seed)
}

/// Collects what differs, so that a table of cases is reported whole.
#[derive(Default)]
pub struct Checks(Vec<String>);

impl Checks {
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: T, want: T) {
        if got != want {
            self.0.push(format!("{what}: got {got:?}, want {want:?}"));
        }
    }

    pub fn that(&mut self, what: &str, holds: bool) {
        if !holds {
            self.0.push(what.to_owned());
        }
    }

    /// What has failed elsewhere fails here, and what is to be seen after it is looked at.
    pub fn also(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{error:#}"));
        }
    }

    pub fn done(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!("{}", self.0.join("\n"))
    }
}
