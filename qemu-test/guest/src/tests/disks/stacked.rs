// SPDX-License-Identifier: GPL-2.0
//! What lies on the device when the next image comes: loop devices, device-mapper, filesystems on partitions.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;

use super::image::{Image, dies, drop_caches};
use super::partitions::{P1, P2, attached_partitions};
use crate::device::{open_direct, read_direct, write_direct};
use crate::kmsg::Log;
use crate::mounted::{Mounted, mkfs_ext4};
use crate::process::{have, run};
use crate::tests::claim::{Linear, Loop};
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new("disks.loop", "a loop device on one image neither reads nor writes the next one", loop_device)
        .limit(120)
        .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.loop_mounted", "nor does the filesystem that is mounted from it", loop_mounted)
        .limit(120)
        .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.lvm", "a dm-linear target on a partition keeps other images away", lvm)
        .known_on_nbd("EBUSY, but the log does not say who holds the device"),
    Test::new("disks.mounted_partition", "so does a filesystem that is mounted from a partition", mounted)
        .limit(120)
        .known_on_nbd("EBUSY, but the log does not say who holds the device"),
];

fn loop_device(_: &Context) -> Result<()> {
    if !have("losetup") {
        return skip("there is no losetup");
    }
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let device = Loop::new()?;
    let path = device.path();
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let direct = open_direct(path)?;
    let mut data = vec![0; 65536];
    file.read_exact_at(&mut data, 0)?;
    ensure!(data == super::image::content(a.name, 0, 65536), "the loop device does not read as its image");
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach().context("under a loop device")?;
    let mut checks = Checks::default();
    drop_caches()?;
    for offset in [0, 4 << 20] {
        let mut data = vec![0; 65536];
        let read = file.read_exact_at(&mut data, offset).map(|()| data);
        b.not_in(&format!("a read of the loop device at {offset}"), read, &mut checks);
        let read = read_direct(&direct, offset, 65536).map(|data| data.to_vec());
        b.not_in(&format!("a direct read of the loop device at {offset}"), read, &mut checks);
    }
    let written = file.write_all_at(&[0x10; 65536], 1 << 20).and_then(|()| file.sync_all());
    println!("a write and fsync gave {written:?}");
    checks.that("a write and fsync of the loop device succeeded", written.is_err());
    let written = write_direct(&direct, 2 << 20, &[0x11; 65536]).and_then(|()| direct.sync_all());
    println!("a direct write and fsync gave {written:?}");
    checks.that("a direct write and fsync of the loop device succeeded", written.is_err());
    drop((file, direct));
    // Without a client that it could wait for.
    run("losetup", &["-d", path]).context("losetup -d")?;
    drop(device);
    b.ends(&mut client, checks)
}

fn loop_mounted(context: &Context) -> Result<()> {
    if !have("losetup") || !have("mkfs.ext4") {
        return skip("there is no losetup, or no mkfs.ext4");
    }
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let device = Loop::new()?;
    mkfs_ext4(device.path())?;
    let mounted = Mounted::new(context, Path::new(device.path()), "ext4")?;
    std::fs::write(mounted.file("before"), [1; 100_000])?;
    nix::unistd::sync();
    std::fs::write(mounted.file("dirty"), [2; 100_000])?;
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach().context("under a loop device")?;
    let mut checks = Checks::default();
    let written = std::fs::write(mounted.file("after"), [3; 100_000])
        .and_then(|()| std::fs::File::open(mounted.file("after"))?.sync_all());
    println!("a file and fsync gave {written:?}");
    checks.that("a file was written to what is gone", written.is_err());
    mounted.unmount()?;
    drop(device);
    b.ends(&mut client, checks)
}

/// Attaching `image` must be refused with EBUSY, and the log says that `holder` has the device.
pub fn refused(image: &Image, holder: &str, checks: &mut Checks) -> Result<()> {
    let mut log = Log::from_now()?;
    let error = match image.attach() {
        Ok(_) => bail!("another image was attached under {holder}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains(&Errno::EBUSY.to_string()), "refused, but not with EBUSY: {error}");
    image.server.wait_closed()?;
    let lines = log.lines();
    let says = lines.iter().any(|line| line.contains("nbd0") && line.contains(holder));
    checks.that(&format!("no line tells of {holder}: {lines:?}"), says);
    Ok(())
}

fn lvm(context: &Context) -> Result<()> {
    if !have("dmsetup") {
        return skip("there is no dmsetup");
    }
    run("modprobe", &["dm-mod"])?;
    let (a, mut client) = attached_partitions(context)?;
    let linear = Linear::on(P2, 8007)?;
    let direct = open_direct(Linear::NODE)?;
    write_direct(&direct, 0, &[0x20; 4096]).context("a write to the first image")?;
    client.kill()?;
    a.wait_closed()?;
    let b = Image::new(0xb)?;
    let mut checks = Checks::default();
    refused(&b, "device-mapper", &mut checks)?;
    ensure!(write_direct(&direct, 0, &[0x21; 4096]).is_err(), "a write without a server succeeded");
    drop(direct);
    linear.remove()?;
    let mut client = b.attach().context("when nobody has it")?;
    b.ends(&mut client, checks)
}

fn mounted(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4");
    }
    let (a, mut client) = attached_partitions(context)?;
    mkfs_ext4(P1)?;
    let mounted = Mounted::new(context, Path::new(P1), "ext4")?;
    std::fs::write(mounted.file("before"), [1; 10_000])?;
    nix::unistd::sync();
    std::fs::write(mounted.file("dirty"), [2; 10_000])?;
    client.kill()?;
    a.wait_closed()?;
    let b = Image::new(0xb)?;
    let mut checks = Checks::default();
    refused(&b, "a mounted filesystem", &mut checks)?;
    nix::unistd::sync();
    refused(&b, "a mounted filesystem", &mut checks).context("a second time")?;
    mounted.unmount()?;
    let mut client = b.attach().context("when nobody has it")?;
    b.ends(&mut client, checks)
}
