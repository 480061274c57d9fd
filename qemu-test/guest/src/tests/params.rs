// SPDX-License-Identifier: GPL-2.0
//! Module parameters: what they do, what they show, which values are refused.

use std::fs;

use anyhow::{Result, anyhow, bail, ensure};
use nix::errno::Errno;

use super::{Checks, Context, Test};
use crate::attach::{Setup, with_attached};
use crate::device::sysfs;
use crate::process::wait_for;
use crate::server::{Export, Server};

pub const TESTS: &[Test] = &[
    Test::new("params.defaults", "16 devices, max_part 31, one connection", defaults).unloaded().quick(),
    Test::new("params.nbds_max", "as many devices as asked for, none included", nbds_max).unloaded(),
    Test::new("params.max_part", "max_part is rounded up to what its minors hold", max_part).unloaded(),
    Test::new("params.connections", "pre_defined_connections sets the hardware queues", connections)
        .unloaded(),
    Test::new("params.refused", "bad values are refused with EINVAL and leave nothing", refused).unloaded(),
];

/// Loads with `params`, runs `body`, unloads.
fn loaded<T>(context: &Context, params: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    context.driver.load(&context.modules, params)?;
    let done = body();
    let mut removed = Ok(());
    wait_for("the driver to be unloaded", || {
        removed = context.driver.remove();
        removed.is_ok()
    })?;
    done.map_err(|error| error.context(format!("with {params:?}")))
}

/// The indices of the devices there are.
fn devices() -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("nbd")?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

/// The first minor of each device.
fn minors() -> Vec<Option<String>> {
    devices().into_iter().map(|index| sysfs(index, "dev")).collect()
}

fn parameters(context: &Context) -> [Option<String>; 3] {
    ["nbds_max", "max_part", "pre_defined_connections"].map(|name| context.driver.parameter(name))
}

fn some(values: [&str; 3]) -> [Option<String>; 3] {
    values.map(|value| Some(value.to_owned()))
}

fn defaults(context: &Context) -> Result<()> {
    loaded(context, "", || {
        let mut checks = Checks::default();
        checks.equal("devices", devices(), (0..16).collect());
        checks.equal("parameters", parameters(context), some(["16", "31", "1"]));
        let spaced = (0..16).map(|index| Some(format!("43:{}", index * 32))).collect();
        checks.equal("minors", minors(), spaced);
        checks.equal("range", sysfs(0, "range").as_deref(), Some("32"));
        for name in ["nbds_max", "max_part", "pre_defined_connections"] {
            let path = format!("/sys/module/{}/parameters/{name}", context.driver.module());
            checks.that("read-only in sysfs", fs::metadata(path)?.permissions().readonly());
        }
        checks.equal("nodes", std::path::Path::new("/dev/nbd15").exists(), true);
        checks.done()
    })
}

fn nbds_max(context: &Context) -> Result<()> {
    for count in [0, 1, 3, 40] {
        loaded(context, &format!("nbds_max={count}"), || {
            ensure!(devices() == (0..count).collect::<Vec<u32>>(), "devices: {:?}", devices());
            ensure!(context.driver.parameter("nbds_max") == Some(count.to_string()), "shown wrongly");
            Ok(())
        })?;
    }
    Ok(())
}

fn max_part(context: &Context) -> Result<()> {
    let mut checks = Checks::default();
    for (asked, shown, spacing) in [
        ("0", "0", 1),
        ("1", "1", 2),
        ("2", "3", 4),
        ("5", "7", 8),
        ("15", "15", 16),
        ("16", "31", 32),
        ("128", "255", 256),
        ("255", "255", 256),
    ] {
        loaded(context, &format!("nbds_max=3 max_part={asked}"), || {
            let what = format!("max_part={asked}");
            checks.equal(&what, context.driver.parameter("max_part").as_deref(), Some(shown));
            let spaced = (0..3).map(|index| Some(format!("43:{}", index * spacing))).collect();
            checks.equal(&format!("minors with {what}"), minors(), spaced);
            checks.equal("range", sysfs(0, "range"), Some(spacing.to_string()));
            Ok(())
        })?;
    }
    checks.done()
}

fn hardware_queues() -> usize {
    fs::read_dir("/sys/block/nbd0/mq").map_or(0, Iterator::count)
}

fn connections(context: &Context) -> Result<()> {
    let cpus = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = cpus.trim().rsplit(['-', ',']).next().unwrap_or("0");
    let cpus = last.parse::<usize>()? + 1;
    for asked in [1, 2, 8] {
        loaded(context, &format!("nbds_max=1 pre_defined_connections={asked}"), || {
            let shown = context.driver.parameter("pre_defined_connections");
            ensure!(shown == Some(asked.to_string()), "shown as {shown:?}");
            let queues = hardware_queues();
            ensure!(queues == cpus.min(asked), "{queues} hardware queues");
            // Whatever was prepared, an attachment brings the number that it needs.
            let server = Server::new(Export::memory(1 << 20)?);
            with_attached(&server, Setup::for_server(&server).connections(2), |_| {
                let queues = hardware_queues();
                ensure!(queues == cpus.min(2), "{queues} hardware queues with two connections");
                Ok(())
            })
        })?;
    }
    Ok(())
}

fn refused(context: &Context) -> Result<()> {
    let bad = [
        "max_part=-1",
        "max_part=256",
        "max_part=100000",
        "max_part=abc",
        "nbds_max=-1",
        "nbds_max=abc",
        "nbds_max=32769",
        "nbds_max=4097 max_part=255",
        "nbds_max=1048577 max_part=0",
        "pre_defined_connections=0",
        "pre_defined_connections=-4",
        "pre_defined_connections=x",
    ];
    let mut checks = Checks::default();
    for params in bad {
        match context.driver.insert(&context.modules, params)? {
            Err(errno) => checks.equal(params, errno, Errno::EINVAL),
            Ok(()) => {
                checks.that(&format!("{params} is refused"), false);
                context.driver.remove().map_err(|errno| anyhow!("rmmod: {errno}"))?;
            }
        }
        let left = crate::modules::leftovers();
        if !left.is_empty() {
            bail!("a refused {params:?} left {left:?}");
        }
    }
    checks.done()
}
