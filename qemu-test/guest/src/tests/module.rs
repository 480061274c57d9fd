// SPDX-License-Identifier: GPL-2.0
//! Loading, unloading, and what must not be possible.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::errno::Errno;

use super::{Checks, Context, Test, loadable, skip};
use crate::attach::{Setup, with_attached};
use crate::device::{Device, node, open_direct, round_trip};
use crate::kmsg::Log;
use crate::modules::{Driver, leftovers};
use crate::process::hold_open;
use crate::server::{Export, Server};

pub const TESTS: &[Test] = &[
    Test::new(
        "module.conflict",
        "loading it while the other nbd driver is loaded fails, and the log says why",
        conflict,
    )
    .unloaded()
    .known_on_nbd("its log line does not name the other module"),
    Test::new("module.twice", "loading it twice fails with EEXIST", twice),
    Test::new("module.unload_open", "it cannot be unloaded while a device is open", unload_open).quick(),
    Test::new("module.unload_attached", "it cannot be unloaded while a device is attached", unload_attached),
    Test::new("module.reload", "100 loads and unloads leak nothing", reload).unloaded().limit(150),
    Test::new("module.reload_used", "loads with an attachment in between leak nothing", reload_used)
        .unloaded()
        .limit(150),
];

fn conflict(context: &Context) -> Result<()> {
    let other = context.driver.other();
    if !other.file(&context.modules).exists() {
        return skip(format!("there is no {}.ko to load beside", other.module()));
    }
    other.load(&context.modules, "nbds_max=2")?;
    let mut log = Log::from_now()?;
    let inserted = context.driver.insert(&context.modules, "nbds_max=2")?;
    let lines = log.lines();
    ensure!(inserted.is_err(), "both drivers are loaded");
    ensure!(!context.driver.loaded(), "refused, yet in /sys/module");
    println!("errno {inserted:?}");
    // The first driver goes on working.
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server), |_| {
        round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 4096])
    })?;
    other.remove().map_err(|errno| anyhow!("rmmod {}: {errno}", other.module()))?;
    let left = leftovers();
    ensure!(left.is_empty(), "left: {left:?}");
    // A line of this driver's own that names the other one.
    let own = format!("{}: ", context.driver.module());
    let says = |line: &String| {
        line.strip_prefix(&own).is_some_and(|rest| {
            let mut words = rest.split(|c: char| !c.is_ascii_alphanumeric());
            words.any(|word| word == other.module())
        })
    };
    ensure!(lines.iter().any(says), "no line of the log says why: {lines:?}");
    context.driver.load(&context.modules, "nbds_max=2").context("afterwards")
}

fn twice(context: &Context) -> Result<()> {
    loadable(context)?;
    let inserted = context.driver.insert(&context.modules, "")?;
    ensure!(inserted == Err(Errno::EEXIST), "the second load gave {inserted:?}");
    Ok(())
}

fn refuses_unload(driver: Driver, when: &str) -> Result<()> {
    let removed = driver.remove();
    let busy = matches!(removed, Err(Errno::EWOULDBLOCK | Errno::EBUSY));
    ensure!(busy, "rmmod {when} gave {removed:?}");
    Ok(())
}

fn unload_open(context: &Context) -> Result<()> {
    loadable(context)?;
    let device = Device::open(0)?;
    refuses_unload(context.driver, "with an open device")?;
    drop(device);
    let holder = hold_open(node(1))?;
    refuses_unload(context.driver, "with a device open read-only in another process")?;
    drop(holder);
    context.driver.remove().map_err(|errno| anyhow!("rmmod afterwards: {errno}"))
}

fn unload_attached(context: &Context) -> Result<()> {
    loadable(context)?;
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server), |_| {
        refuses_unload(context.driver, "with an attached device")?;
        round_trip(&open_direct("/dev/nbd0")?, 0, &[2; 4096])
    })?;
    context.driver.remove().map_err(|errno| anyhow!("rmmod afterwards: {errno}"))
}

/// What the kernel holds in memory that a driver may leak into, by name.
fn kernel_memory() -> Result<BTreeMap<String, u64>> {
    // Settle what is freed later (RCU callbacks, deferred work), and give back the free objects that CPUs keep:
    // without that a slab's objects count as used by the dozen.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    sleep(Duration::from_millis(300));
    for cache in fs::read_dir("/sys/kernel/slab")? {
        // Aliases of one cache are shrunk several times, and some are gone by now: no harm.
        let _ = fs::write(cache?.path().join("shrink"), "1");
    }
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string("/proc/slabinfo")?.lines().skip(2) {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(active)) = (words.next(), words.next()) {
            counts.insert(format!("objects of {name}"), active.parse()?);
        }
    }
    for line in fs::read_to_string("/proc/meminfo")?.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name @ ("VmallocUsed:" | "Percpu:")), Some(kib)) = (words.next(), words.next()) {
            counts.insert(format!("KiB of {name}"), kib.parse()?);
        }
    }
    Ok(counts)
}

/// A leak grows in each of several equal parts of the run, by nearly an object a round; what fills up and what
/// comes and goes does not.
fn grows_without_end(rounds_per_part: u64, mut round: impl FnMut() -> Result<()>) -> Result<()> {
    const PARTS: usize = 4;
    let mut samples = Vec::new();
    for part in 0..=PARTS {
        // The first part fills caches, and is not judged.
        for _ in 0..rounds_per_part {
            round().with_context(|| format!("in part {part}"))?;
        }
        samples.push(kernel_memory()?);
    }
    let leak = rounds_per_part * 3 / 4;
    let mut leaks = Vec::new();
    for name in samples[0].keys() {
        let course: Vec<u64> = samples.iter().map(|sample| *sample.get(name).unwrap_or(&0)).collect();
        if course.windows(2).all(|pair| pair[1] >= pair[0] + leak) {
            leaks.push(format!("{name}: {course:?}"));
        }
    }
    if !leaks.is_empty() {
        bail!("every {rounds_per_part} rounds it grows by {leak} or more:\n{}", leaks.join("\n"));
    }
    Ok(())
}

fn reload(context: &Context) -> Result<()> {
    grows_without_end(20, || {
        context.driver.load(&context.modules, "nbds_max=4")?;
        context.driver.remove().map_err(|errno| anyhow!("rmmod: {errno}"))
    })?;
    let mut checks = Checks::default();
    checks.equal("left behind", leftovers(), Vec::new());
    checks.done()
}

fn reload_used(context: &Context) -> Result<()> {
    grows_without_end(8, || {
        let server = Server::new(Export::memory(1 << 20)?);
        context.driver.load(&context.modules, "nbds_max=2")?;
        with_attached(&server, Setup::for_server(&server), |_| {
            round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 65536])
        })?;
        // The last close of an open file may still be on its way.
        crate::process::wait_for("rmmod", || context.driver.remove().is_ok())
    })
}
