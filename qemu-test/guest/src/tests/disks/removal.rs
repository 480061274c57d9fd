// SPDX-License-Identifier: GPL-2.0
//! The disk of the last attachment goes, whatever holds it up, and another one comes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::frozen::bounded;
use super::image::{Image, dies};
use crate::attach::Setup;
use crate::cgroup::Cgroup;
use crate::device::{Device, capacity, node};
use crate::mounted::{Mounted, mkfs_ext4};
use crate::netlink::Client;
use crate::process::{describe_task, fork_child, have, wait_for};
use crate::server::{Command, Export, Server};
use crate::tests::netlink::attached::{Attached, client_flag, client_flags, connect};
use crate::tests::netlink::destroy::wait_gone;
use crate::tests::{Checks, Context, Test, skip};
use crate::userfault::Late;

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.throttled_close",
        "a last close whose write-back a cgroup holds back keeps no one from opening, nor from the next image",
        throttled_close,
    )
    .limit(120),
    Test::new(
        "disks.delayed",
        "a device whose last disk cannot go yet gets another one later by itself",
        delayed,
    )
    .limit(120)
    .known_on_nbd("it keeps its disk, and is refused as long as that is open"),
    Test::new(
        "disks.mounted_number",
        "what is mounted on a device that goes keeps its number: the kernel knows a filesystem by that",
        mounted_number,
    )
    .limit(120)
    .known_on_nbd("the device stays until it is closed, and its number is refused with EINVAL"),
    Test::new(
        "disks.read_only",
        "what an opener has made read-only is writable for the next attachment",
        read_only,
    )
    .known_on_nbd("it stays read-only"),
    Test::new(
        "disks.dead_partition",
        "a partition of a disk that is gone takes no data, which nobody would ever write back",
        |_| dead_partition(0),
    )
    .known_on_nbd(crate::tests::teardown::EBUSY_FOR_EVER),
    Test::new("disks.dead_partition_destroyed", "nor does one of a device that is gone", |_| {
        dead_partition(client_flag::DESTROY_ON_DISCONNECT)
    })
    .known_on_nbd(crate::tests::teardown::EBUSY_FOR_EVER),
];

fn dead_partition(flags: u64) -> Result<()> {
    let options = [client_flags(flags)];
    let a = Image::new(0xa)?;
    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&16384u32.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    a.server.export().write(0, &table)?;
    let attached = Attached::new(&a.server, 1, &options)?;
    drop(Device::open(0)?);
    wait_for("the partition", || Path::new("/dev/nbd0p1").exists())?;
    let old = File::options().read(true).write(true).open("/dev/nbd0p1")?;
    old.write_all_at(&[0x11; 4096], 0).context("while it was there")?;
    attached.disconnect()?;
    a.server.wait_closed()?;
    let b = Image::new(0xb)?;
    let attached = Attached::new(&b.server, 1, &options)?;
    let written = old.write_at(&[0xee; 1 << 16], 1 << 20);
    let errno = written.as_ref().err().and_then(std::io::Error::raw_os_error);
    ensure!(matches!(errno, Some(libc::ENOSPC | libc::EIO)), "a write gave {written:?}");
    drop(old);
    b.reads("/dev/nbd0")?;
    attached.disconnect()?;
    b.server.wait_closed()?;
    b.untouched()
}

fn throttled_close(context: &Context) -> Result<()> {
    const LENGTH: usize = 1 << 20;
    let a = Image::new(0xa)?;
    let attached = Attached::new(&a.server, 1, &[])?;
    let group = Cgroup::new(context, "io")?;
    if !group.has("io.max") {
        return skip("this kernel does not throttle");
    }
    group.set("io.max", "43:0 wbps=2048")?;
    let door = group.door();
    let mut writer = fork_child(&[], move |ready| {
        fs::write(door, "0")?;
        let device = Device::open(0)?;
        device.file().write_all_at(&[0x7c; LENGTH], 1 << 20)?;
        ready.tell("closes")?;
        drop(device);
        ready.tell("closed")
    })?;
    writer.expect_line("closes")?;
    let waits = || describe_task(writer.pid()).contains("state D");
    wait_for("the close to wait for write-back", waits)?;
    attached.disconnect()?;
    a.server.wait_closed()?;
    bounded("an open of the idle device", || Device::open(0).map(drop))?;
    let b = Image::new(0xb)?;
    let mut client = bounded("the next attach", || b.attach())?;
    // Nothing holds back what has no disk any more.
    writer.expect_line("closed").with_context(|| describe_task(writer.pid()))?;
    writer.success()?;
    drop(group);
    b.ends(&mut client, Checks::default())
}

fn delayed(_: &Context) -> Result<()> {
    // A file of the disk's, whose reader waits with it open: it must be gone before the disk is.
    let file = Path::new("/sys/kernel/debug/block/nbd0/state");
    if !file.exists() {
        return skip(format!("there is no {}", file.display()));
    }
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let holder = Device::open(0)?;
    let late = Arc::new(Late::new(&[0; 4096])?);
    let reader = {
        let (late, file) = (late.clone(), File::open(file)?);
        std::thread::spawn(move || late.read_late(&file).map(drop))
    };
    late.wait_wanted()?;
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let refused =
        bounded("an attach meanwhile", || Ok(Setup::for_server(&b.server).attach_in_child(0, &b.server)))?;
    let error = refused.err().map(|error| format!("{error:#}"));
    println!("it gave {error:?}");
    ensure!(error.is_some_and(|error| error.contains("EBUSY")), "it was not refused with EBUSY");
    late.arrive(&[0; 4096])?;
    let _ = reader.join();
    // Nothing is attached for that.
    let there = || node(0).exists() && File::open(node(0)).is_ok() && capacity(0) == 0;
    wait_for("the device to be there again", there)?;
    drop(holder);
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    ensure!(b.server.seen_of(Command::Write).is_empty(), "something was written");
    b.ends(&mut client, Checks::default())
}

fn mounted_number(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4");
    }
    let goes = [client_flags(client_flag::DESTROY_ON_DISCONNECT)];
    let size = 16 << 20;
    let filesystem = |name: &str| -> Result<Server> {
        let server = Server::new(Export::memory(size)?);
        let attached = Attached::new(&server, 1, &[])?;
        mkfs_ext4("/dev/nbd0")?;
        let mounted = Mounted::new(context, &node(0), "ext4")?;
        fs::write(mounted.file("name"), name)?;
        mounted.unmount()?;
        attached.disconnect()?;
        server.wait_closed()?;
        Ok(server)
    };
    let (a, b) = (filesystem("a")?, filesystem("b")?);
    let attached = Attached::new(&a, 1, &goes)?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    attached.disconnect()?;
    wait_gone(&Client::open()?, 0)?;
    let refused = connect(&Client::open()?, Some(0), &b, 1, &goes)?.map_err(|refusal| refusal.errno);
    ensure!(refused == Err(Errno::EBUSY), "CONNECT of the number of what is mounted gave {refused:?}");
    mounted.unmount()?;
    let attached = Attached::new(&b, 1, &goes).context("when it is unmounted")?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    let name = fs::read_to_string(mounted.file("name"))?;
    ensure!(name == "b", "the filesystem of {name:?} was mounted");
    mounted.unmount()?;
    attached.disconnect()
}

fn read_only(_: &Context) -> Result<()> {
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let opener = Device::open(0)?;
    opener.set_read_only().context("BLKROSET")?;
    drop(opener);
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let attached = Attached::new(&b.server, 1, &[])?;
    let opener = Device::open(0).context("to write")?;
    opener.file().write_all_at(&[0x77; 4096], 0)?;
    opener.file().sync_all()?;
    drop(opener);
    attached.detach()
}
