// SPDX-License-Identifier: GPL-2.0
//! What the system is told when a device gets a disk of its own, and where things are afterwards.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::image::{Image, SIZE, dies};
use crate::device::{Device, capacity, diskseq, sysfs};
use crate::process::{have, run, wait_for};
use crate::tests::netlink::attached::Attached;
use crate::tests::state::SYSFS;
use crate::tests::{Checks, Context, Test, ours_only, skip};
use crate::uevent::Uevents;

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.uevents",
        "under a holder the old disk is removed, the new one added, and then changed",
        events,
    )
    .quick(),
    Test::new(
        "disks.paths",
        "all that shows a device's state is where it was, for the next image too",
        paths,
    ),
    Test::new("disks.udev", "udev finds the next image where it was, and nothing of the last one", udev)
        .limit(120),
];

/// Both ways to attach, each under somebody who holds the image before.
fn twice(mut look: impl FnMut(&str, &mut dyn FnMut() -> Result<()>, &Image) -> Result<()>) -> Result<()> {
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let holder = Device::open(0)?;
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut attached = None;
    let mut attach = || {
        attached = Some(Attached::new(&b.server, 1, &[])?);
        Ok(())
    };
    look("netlink", &mut attach, &b)?;
    let attached = attached.context("nothing was attached")?;
    let second = Device::open(0)?;
    attached.disconnect()?;
    b.server.wait_closed()?;
    let c = Image::new(0xc)?;
    let mut client = None;
    let mut attach = || {
        client = Some(c.attach()?);
        Ok(())
    };
    look("ioctl", &mut attach, &c)?;
    drop((holder, second));
    Ok(())
}

fn events(context: &Context) -> Result<()> {
    ours_only(context)?;
    let events = Uevents::listen()?;
    let mut checks = Checks::default();
    twice(|how, attach, image| {
        events.pending()?;
        let before = diskseq(0)?;
        attach()?;
        // The call has returned: all is there.
        checks.that(&format!("{how}: there is no /dev/nbd0"), Path::new("/dev/nbd0").exists());
        checks.equal(&format!("{how}: the capacity"), capacity(0), SIZE);
        let open = Device::open(0).with_context(|| format!("{how}: open"))?;
        checks.equal(&format!("{how}: the size"), open.size()?, SIZE);
        checks.that(&format!("{how}: diskseq has not moved from {before}"), diskseq(0)? > before);
        let mut seen: Vec<String> = Vec::new();
        let place = |seen: &[String], action: &str| {
            seen.iter().position(|event| *event == format!("{action}@/devices/virtual/block/nbd0"))
        };
        let last = |seen: &[String], action: &str| {
            seen.iter().rposition(|event| *event == format!("{action}@/devices/virtual/block/nbd0"))
        };
        let complete = wait_for("the events", || {
            seen.extend(events.pending().unwrap_or_default());
            last(&seen, "change").is_some_and(|change| place(&seen, "add").is_some_and(|add| add < change))
        });
        seen.retain(|event| event.contains("/nbd0"));
        println!("{how}: {seen:?}");
        let order = [place(&seen, "remove"), place(&seen, "add"), last(&seen, "change")];
        let in_order = order[0].is_some() && order[0] < order[1] && order[1] < order[2];
        let what = format!("{how}: not remove, add and then change, but {seen:?}");
        checks.that(&what, complete.is_ok() && in_order);
        checks.also(image.reads("/dev/nbd0").with_context(|| how.to_owned()));
        Ok(())
    })?;
    checks.done()
}

const DEBUGFS: &str = "/sys/kernel/debug/nbd/nbd0";

fn paths(context: &Context) -> Result<()> {
    ours_only(context)?;
    let mut checks = Checks::default();
    let mut generation = 0;
    twice(|how, attach, _| {
        attach()?;
        let shown = |name: &str| sysfs(0, name).with_context(|| format!("{how}: there is no {name}"));
        for name in SYSFS {
            let value = shown(&format!("nbd/{name}"))?;
            println!("{how}: {name} {value:?}");
        }
        checks.equal(&format!("{how}: the state"), shown("nbd/state")?, "running".into());
        checks.equal(&format!("{how}: live connections"), shown("nbd/live_connections")?, "1".into());
        let now: u64 = shown("nbd/generation")?.parse()?;
        checks.that(&format!("{how}: generation {now} after {generation}"), now > generation);
        generation = now;
        let pid: i32 = shown("pid")?.parse()?;
        checks.that(&format!("{how}: pid {pid}"), pid > 0);
        checks.equal(&format!("{how}: dev"), shown("dev")?, "43:0".into());
        let link = fs::read_link("/sys/dev/block/43:0").unwrap_or_default();
        checks.that(&format!("{how}: 43:0 is {}", link.display()), link.ends_with("block/nbd0"));
        let bdi = fs::read_link("/sys/block/nbd0/bdi").unwrap_or_default();
        checks.that(&format!("{how}: bdi is {}", bdi.display()), bdi.to_string_lossy().contains("43:0"));
        for name in ["queue/logical_block_size", "queue/scheduler", "inflight", "stat", "ro", "removable"] {
            shown(name)?;
        }
        if Path::new("/sys/kernel/debug/block").exists() {
            for name in ["connections", "requests", "tasks", "size_bytes", "blocksize_bits", "flags"] {
                let path = Path::new(DEBUGFS).join(name);
                let read = fs::read_to_string(&path);
                checks.that(&format!("{how}: {}: {read:?}", path.display()), read.is_ok());
            }
            let there = Path::new("/sys/kernel/debug/block/nbd0").exists();
            checks.that(&format!("{how}: the block layer's directory in debugfs"), there);
        }
        Ok(())
    })?;
    checks.done()
}

fn udev(context: &Context) -> Result<()> {
    ours_only(context)?;
    if !have("udevadm") {
        return skip("there is no udevadm");
    }
    twice(|how, attach, image| {
        attach()?;
        let told = run("udevadm", &["info", "--query=path", "--name=/dev/nbd0"])?;
        ensure!(told.trim().ends_with("/block/nbd0"), "{how}: udev knows {told:?}");
        let held = run("lsblk", &["-bno", "NAME,SIZE", "/dev/nbd0"])?;
        let words: Vec<&str> = held.split_whitespace().collect();
        ensure!(words == ["nbd0", &SIZE.to_string()], "{how}: lsblk shows {held:?}");
        image.reads("/dev/nbd0").with_context(|| how.to_owned())
    })
}
