// SPDX-License-Identifier: GPL-2.0
//! Writes to one attachment that are still under way when the next one comes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::image::{Image, SIZE, dies};
use crate::attach::Setup;
use crate::cgroup::Cgroup;
use crate::device::{Device, open_direct, write_direct};
use crate::netlink::{Client, attr, attr_u64};
use crate::process::{PATIENCE, describe_task, fork_child, wait_for};
use crate::server::{Action, Command, Export, Server};
use crate::tests::netlink::attached::{Attached, connect_sockets, sockets};
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test, skip};
use crate::userfault::Late;

const EBUSY_WHILE_OPEN: &str = "EBUSY for as long as anybody has it open";

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.write_stuck",
        "a write() that waits for its own memory goes on when the next image is there",
        stuck,
    )
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new(
        "disks.write_in_progress",
        "a large write() is half done when the next image comes",
        in_progress,
    )
    .limit(120),
    Test::new(
        "disks.throttled",
        "a write that a cgroup's limit holds back comes to no other image",
        throttled,
    ),
    Test::new("disks.requeued", "writes that wait for a new connection go to no other image", requeued)
        .known_on_nbd(EBUSY_WHILE_OPEN),
];

fn told() -> String {
    describe_task(std::process::id() as i32)
}

fn stuck(_: &Context) -> Result<()> {
    const LENGTH: usize = 1 << 20;
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let late = Arc::new(Late::new(&[0xf1; LENGTH / 2])?);
    let (source, opener) = (late.clone(), Device::open(0)?);
    let (sender, result) = channel();
    std::thread::Builder::new().name("the writer".to_owned()).spawn(move || {
        let written = source.write_to(opener.file(), 65536);
        let synced = opener.file().sync_all();
        drop(opener);
        let _ = sender.send((written, synced));
    })?;
    late.wait_wanted().context("the writer")?;
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach().context("while somebody writes")?;
    late.arrive(&[0xf2; LENGTH / 2])?;
    let (written, synced) =
        result.recv_timeout(*PATIENCE).with_context(|| format!("the writer hangs\n{}", told()))?;
    println!("write gave {written:?}, fsync {synced:?}");
    let mut checks = Checks::default();
    checks.that("all was written, and fsync succeeded", written.is_err() || synced.is_err());
    // Whatever is dirty under this name is written back by now.
    nix::unistd::sync();
    Device::open(0)?.file().sync_all().context("fsync by a new open")?;
    b.ends(&mut client, checks)
}

/// A limit of the whole kernel, as it was again when dropped.
struct Limit(&'static str, String);

impl Limit {
    fn set(path: &'static str, value: u64) -> Result<Limit> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value.to_string()).with_context(|| path.to_owned())?;
        Ok(Limit(path, before))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // 0 says that it is the ratio that counts, and cannot be written.
        if self.1.trim() != "0" {
            let _ = fs::write(self.0, &self.1);
        }
    }
}

/// The ratios count again.
struct Ratios([(&'static str, String); 2]);

impl Ratios {
    fn now() -> Result<Ratios> {
        let [dirty, background] =
            ["/proc/sys/vm/dirty_ratio", "/proc/sys/vm/dirty_background_ratio"].map(|path| {
                let value = fs::read_to_string(path)?;
                Ok::<_, std::io::Error>((path, value))
            });
        Ok(Ratios([dirty?, background?]))
    }
}

impl Drop for Ratios {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            let _ = fs::write(path, value);
        }
    }
}

fn in_progress(context: &Context) -> Result<()> {
    let _ratios = Ratios::now()?;
    let _limits = (
        Limit::set("/proc/sys/vm/dirty_background_bytes", 1 << 20)?,
        Limit::set("/proc/sys/vm/dirty_bytes", 4 << 20)?,
    );
    let mut checks = Checks::default();
    for _ in 0..context.rounds(3, 1) {
        half_done(&mut checks)?;
    }
    checks.done()
}

/// Writers sleep for 200 ms at a time, for too much is dirty. Whoever wakes while there is no attachment has his write()
/// end, and proves nothing. So there are several, and the next image comes at once.
fn half_done(checks: &mut Checks) -> Result<()> {
    const WRITERS: u64 = 4;
    const EACH: u64 = 64 << 20;
    const SIZE: u64 = WRITERS * EACH;
    // It takes some and is silent then, so that what is dirty stays so until it is detached.
    let taken = AtomicUsize::new(0);
    let a = Server::with_behaviour(Export::memory(SIZE)?, move |request| match request.command {
        Command::Write if taken.fetch_add(1, Ordering::SeqCst) >= 8 => Action::Ignore,
        _ => Action::Serve,
    });
    let b = Server::new(Export::memory(SIZE)?);
    let (client, offered) = (Client::open()?, sockets(&b, 1)?);
    let mut first = Setup::for_server(&a).attach_in_child(0, &a)?;
    let (sender, results) = channel();
    for number in 0..WRITERS {
        let (opener, sender) = (Device::open(0)?, sender.clone());
        std::thread::Builder::new().name(format!("writer {number}")).spawn(move || {
            let written = opener.file().write_at(&vec![0xc7; EACH as usize], number * EACH);
            let synced = opener.file().sync_all();
            drop(opener);
            let _ = sender.send((written, synced));
        })?;
    }
    wait_for("some of it to be written", || a.seen_of(Command::Write).len() > 8)?;
    kill(Pid::from_raw(first.pid()), Signal::SIGKILL)?;
    let start = Instant::now();
    while connect_sockets(&client, Some(0), SIZE, &offered, &[])?.is_err() {
        ensure!(start.elapsed() < *PATIENCE, "the next image is not attached while somebody writes");
    }
    first.wait()?;
    drop(offered);
    for _ in 0..WRITERS {
        let (written, synced) =
            results.recv_timeout(3 * *PATIENCE).with_context(|| format!("a writer hangs\n{}", told()))?;
        println!("write gave {written:?}, fsync {synced:?}");
        let whole = written.as_ref().is_ok_and(|count| *count as u64 == EACH);
        checks.that("all was written, and fsync succeeded", !(whole && synced.is_ok()));
    }
    nix::unistd::sync();
    Device::open(0)?.file().sync_all().context("fsync by a new open")?;
    client.disconnect(0)?.map_err(|refusal| anyhow!("DISCONNECT: {refusal:?}"))?;
    b.wait_closed()?;
    let seen = b.seen_of(Command::Write);
    let bytes: u64 = seen.iter().map(|request| u64::from(request.length)).sum();
    checks.that(&format!("{} writes, {bytes} bytes, reached the next image", seen.len()), seen.is_empty());
    for offset in (0..SIZE).step_by(1 << 20) {
        if b.export().read(offset, 1 << 20)?.iter().any(|byte| *byte != 0) {
            checks.that(&format!("the next image was changed, at {offset}"), false);
            break;
        }
    }
    Ok(())
}

fn throttled(context: &Context) -> Result<()> {
    const LENGTH: usize = 64 << 10;
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let group = Cgroup::new(context, "io")?;
    if !group.has("io.max") {
        return skip("this kernel does not throttle");
    }
    group.set("io.max", "43:0 wbps=4096")?;
    let door = group.door();
    let mut writer = fork_child(&[], move |ready| {
        fs::write(door, "0")?;
        let direct = open_direct("/dev/nbd0")?;
        ready.tell("writes")?;
        let written = write_direct(&direct, 1 << 20, &[0x7e; LENGTH]);
        ready.tell(&format!("{written:?}"))
    })?;
    writer.expect_line("writes")?;
    let waits = || describe_task(writer.pid()).contains("state D");
    wait_for("the writer to wait", waits)?;
    ensure!(a.server.seen_of(Command::Write).is_empty(), "the limit has no effect");
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach().context("while a write is held back")?;
    // Of a disk that is gone the limit may be gone too.
    println!("lifting the limit: {:?}", group.set("io.max", "43:0 wbps=max"));
    let written = writer.next_line().with_context(|| describe_task(writer.pid()))?;
    println!("the write gave {written}");
    let mut checks = Checks::default();
    checks.that("the write succeeded", written.starts_with("Err"));
    writer.success()?;
    drop(group);
    b.ends(&mut client, checks)
}

fn requeued(_: &Context) -> Result<()> {
    const WRITERS: u64 = 8;
    let silent = |request: &crate::server::Request| {
        if request.command == Command::Write { Action::Ignore } else { Action::Serve }
    };
    let a = Image::behaving(0xa, silent)?;
    let waits = [attr_u64(attr::DEAD_CONN_TIMEOUT, 600)];
    let attached = Attached::new(&a.server, 1, &waits)?;
    let (sender, results) = channel();
    let opener = Device::open(0)?;
    for number in 0..WRITERS {
        let (direct, sender) = (open_direct("/dev/nbd0")?, sender.clone());
        std::thread::Builder::new().name(format!("writer {number}")).spawn(move || {
            let written = write_direct(&direct, number << 20, &[0x9a; 65536]);
            drop(direct);
            let _ = sender.send(written);
        })?;
    }
    let asked = || a.server.seen_of(Command::Write).len() as u64 >= WRITERS;
    wait_for("the server to see the writes", asked)?;
    a.server.close();
    attached.wait_live(0)?;
    // These find no connection at all.
    for number in 0..WRITERS {
        let (direct, sender) = (open_direct("/dev/nbd0")?, sender.clone());
        std::thread::Builder::new().name(format!("late writer {number}")).spawn(move || {
            let written = write_direct(&direct, (number << 20) + 65536, &[0x9b; 65536]);
            drop(direct);
            let _ = sender.send(written);
        })?;
    }
    opener.file().write_all_at(&[0x9c; 65536], SIZE / 2 + (1 << 17))?;
    attached.disconnect()?;
    let b = Image::new(0xb)?;
    let attached = Attached::new(&b.server, 1, &waits).context("while writes wait")?;
    let mut checks = Checks::default();
    for _ in 0..2 * WRITERS {
        let written =
            results.recv_timeout(*PATIENCE).with_context(|| format!("a writer hangs\n{}", told()))?;
        checks.that("a write that waited has succeeded", written.is_err());
    }
    println!("fsync by an old open gave {:?}", opener.file().sync_all());
    drop(opener);
    b.reads("/dev/nbd0")?;
    attached.disconnect()?;
    b.server.wait_closed()?;
    checks.also(b.untouched());
    checks.done()
}
