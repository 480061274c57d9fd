// SPDX-License-Identifier: GPL-2.0
//! Holders that cannot do anything do not keep the next image away.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::image::{Image, dies};
use crate::blocked::{Blocked, silent_server};
use crate::cgroup::Cgroup;
use crate::device::{Device, open_direct, read_direct};
use crate::process::{Child, describe_task, fork_child, patient, wait_for};
use crate::tests::netlink::attached::Attached;
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.stopped_holder",
        "a holder that is stopped keeps no image away, and reads none later",
        stopped,
    )
    .limit(120)
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.frozen_holder", "nor does one in a frozen cgroup", frozen)
        .limit(120)
        .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.waiting_holder", "nor one that waits for a silent server when its client dies", waiting)
        .limit(120),
    Test::new("disks.opening_holder", "nor one that waits within open, for the partition table", opening)
        .limit(120),
];

/// What a call may take. Nobody has to wait for anybody.
pub(super) fn bounded<T>(what: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = call().with_context(|| what.to_owned())?;
    let took = start.elapsed();
    println!("{what} took {} ms", took.as_millis());
    ensure!(took < patient(30), "{what} took {} s", took.as_secs());
    Ok(done)
}

/// A process that has read from the device, and reads and writes again when it is told to by a byte. It has a mapping
/// too, and dirty pages.
fn reader() -> Result<(Child, std::fs::File)> {
    use std::os::fd::AsRawFd;
    let (go, mut told) = crate::process::pipe()?;
    let mut child = fork_child(&[go.as_raw_fd()], move |ready| {
        let (plain, direct) = (Device::open(0)?, open_direct("/dev/nbd0")?);
        let mut data = vec![0; 65536];
        plain.file().read_exact_at(&mut data, 0)?;
        plain.file().write_all_at(&[0x5a; 4096], 4096)?;
        ready.tell("held")?;
        std::io::Read::read_exact(&mut &go, &mut [0])?;
        let mut images = std::collections::BTreeSet::new();
        for offset in [0, 1 << 20] {
            if plain.file().read_exact_at(&mut data, offset).is_ok() {
                images.extend(super::image::names(&data));
            }
            if let Ok(data) = read_direct(&direct, offset, 65536) {
                images.extend(super::image::names(&data));
            }
        }
        let written = direct.write_all_at(&crate::device::Buffer::filled(&[0x5b; 4096]), 8192);
        let synced = plain.file().sync_all();
        ready.tell(&format!("{images:?}"))?;
        ready.tell(&format!("write {written:?}, fsync {synced:?}"))
    })?;
    child.expect_line("held")?;
    // The child has the one end, and we have the other.
    std::io::Write::flush(&mut told)?;
    Ok((child, told))
}

/// It goes on, and knows nothing of the next image.
fn goes_on((mut child, mut told): (Child, std::fs::File), b: &Image, checks: &mut Checks) -> Result<()> {
    std::io::Write::write_all(&mut told, &[1])?;
    let images = child.next_line()?;
    let wrote = child.next_line()?;
    println!("the holder saw images {images}; {wrote}");
    checks.that("the holder saw the next image", !images.contains(&b.name.to_string()));
    checks.that("the holder's write succeeded", wrote.starts_with("write Err"));
    child.success()
}

/// Both ways to attach, while it cannot do anything.
fn under(
    a: &Image,
    mut client: Child,
    release: impl FnOnce(&Image, &mut Checks) -> Result<()>,
) -> Result<()> {
    let b = Image::new(0xbbbb)?;
    bounded("the death of the client", || dies(a, &mut client))?;
    let attached = bounded("CONNECT", || Attached::new(&b.server, 1, &[]))?;
    b.reads("/dev/nbd0")?;
    bounded("DISCONNECT", || attached.disconnect())?;
    b.server.wait_closed()?;
    let mut client = bounded("an attach by ioctl", || b.attach())?;
    b.reads("/dev/nbd0")?;
    let mut checks = Checks::default();
    release(&b, &mut checks)?;
    b.ends(&mut client, checks)
}

fn stopped(_: &Context) -> Result<()> {
    let a = Image::new(0xaaaa)?;
    let client = a.attach()?;
    let holder = reader()?;
    let pid = Pid::from_raw(holder.0.pid());
    kill(pid, Signal::SIGSTOP)?;
    wait_for("it to stop", || describe_task(pid.as_raw()).contains("state T"))?;
    under(&a, client, |b, checks| {
        kill(pid, Signal::SIGCONT)?;
        goes_on(holder, b, checks)
    })
}

fn frozen(context: &Context) -> Result<()> {
    let a = Image::new(0xaaaa)?;
    let client = a.attach()?;
    let group = Cgroup::new(context, "")?;
    let holder = reader()?;
    group.add(holder.0.pid())?;
    group.freeze(true)?;
    under(&a, client, |b, checks| {
        group.freeze(false)?;
        goes_on(holder, b, checks)
    })
}

fn waiting(_: &Context) -> Result<()> {
    let silent = silent_server()?;
    let mut client = crate::attach::Setup::for_server(&silent).attach_in_child(0, &silent)?;
    let (read, written) = (Blocked::read(&silent)?, Blocked::write(&silent)?);
    let b = Image::new(0xbbbb)?;
    bounded("the death of the client", || client.kill())?;
    let mut client = bounded("an attach by ioctl", || b.attach())?;
    read.fails("the client died")?;
    written.fails("the client died")?;
    b.ends(&mut client, Checks::default())
}

fn opening(_: &Context) -> Result<()> {
    use crate::server::{Action, Command};
    let a = Image::behaving(0xaaaa, |request| {
        if request.command == Command::Read { Action::Ignore } else { Action::Serve }
    })?;
    let mut client = a.attach()?;
    a.server.forget();
    let mut opener = fork_child(&[], |ready| {
        let opened =
            OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open("/dev/nbd0").map(|file| {
                let mut data = vec![0; 4096];
                file.read_exact_at(&mut data, 0).map(|()| super::image::names(&data))
            });
        ready.tell(&format!("{opened:?}"))
    })?;
    wait_for("the open to ask the server", || !a.server.seen_of(Command::Read).is_empty())?;
    bounded("the death of the client", || dies(&a, &mut client))?;
    let b = Image::new(0xbbbb)?;
    let mut client = bounded("an attach by ioctl", || b.attach())?;
    println!("the opener got {}", opener.next_line()?);
    opener.success()?;
    b.ends(&mut client, Checks::default())
}
