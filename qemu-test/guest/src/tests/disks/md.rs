// SPDX-License-Identifier: GPL-2.0
//! A RAID array of md on the device, when the next image comes. There is no mdadm here: the array is made as mkraid made
//! one, by the ioctls of `uapi/linux/raid/md_u.h`, with superblocks of version 0.90, which md writes when it wants to.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::image::{Image, content, dies};
use super::stacked::refused;
use crate::attach::Setup;
use crate::device::{errno_result, node, open_direct, raw_ioctl, read_direct, write_direct};
use crate::process::{Child, run, wait_for};
use crate::tests::{Checks, Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.md",
        "an array of md keeps other images away from one half, and goes on by the other",
        stopped,
    )
    .limit(120)
    .known_on_nbd("EBUSY, but the log does not say who holds the device"),
    Test::new(
        "disks.md_removed",
        "what an array writes after it has let go of a device does not reach that one's next image",
        removed,
    )
    .limit(120)
    .known_on_nbd("EBUSY, but the log does not say who holds the device"),
];

/// A mirror of the first two devices, stopped when dropped.
struct Mirror(File);

impl Mirror {
    const NODE: &'static str = "/dev/md0";

    const SET_ARRAY_INFO: libc::Ioctl = 0x4048_0923;
    const ADD_NEW_DISK: libc::Ioctl = 0x4014_0921;
    const RUN_ARRAY: libc::Ioctl = 0x400c_0930;
    const HOT_REMOVE_DISK: u32 = 0x0922;
    const STOP_ARRAY: u32 = 0x0932;

    const CLEAN: i32 = 1;
    const ACTIVE: i32 = 1 << 1;
    const SYNC: i32 = 1 << 2;

    fn new() -> Result<Mirror> {
        if run("modprobe", &["raid1"]).is_err() {
            return skip("this kernel has no raid1");
        }
        wait_for("the last array to go", || !Path::new(Mirror::NODE).exists())?;
        std::fs::write("/sys/module/md_mod/parameters/new_array", "md0").context("a new array")?;
        wait_for(Mirror::NODE, || Path::new(Mirror::NODE).exists())?;
        let file = OpenOptions::new().read(true).write(true).open(Mirror::NODE)?;
        let mirror = Mirror(file);
        // Version 0.90 of level 1 with two disks, which are taken to be the same.
        let mut array = [0i32; 18];
        array[1] = 90;
        array[4] = 1;
        array[7] = 2;
        array[11] = Mirror::CLEAN;
        mirror.tell(Mirror::SET_ARRAY_INFO, &array).context("SET_ARRAY_INFO")?;
        for number in 0..2 {
            let (major, minor) = numbers(number as u32)?;
            let disk = [number, major as i32, minor as i32, number, Mirror::ACTIVE | Mirror::SYNC];
            mirror.tell(Mirror::ADD_NEW_DISK, &disk).context("ADD_NEW_DISK")?;
        }
        mirror.tell(Mirror::RUN_ARRAY, &[0i32; 3]).context("RUN_ARRAY")?;
        Ok(mirror)
    }

    fn tell<const COUNT: usize>(&self, cmd: libc::Ioctl, argument: &[i32; COUNT]) -> Result<()> {
        // SAFETY: the commands used here read the struct of that many ints that their numbers say.
        errno_result(unsafe { libc::ioctl(self.0.as_raw_fd(), cmd, argument.as_ptr()) })?;
        Ok(())
    }

    /// What md says of a device: `in_sync`, `faulty`; nothing, if it has none such.
    fn state(&self, index: u32) -> String {
        std::fs::read_to_string(format!("/sys/block/md0/md/dev-nbd{index}/state")).unwrap_or_default()
    }

    /// Lets go of a device that is faulty, as soon as that is written down.
    fn remove(&self, index: u32) -> Result<()> {
        let (major, minor) = numbers(index)?;
        // As the kernel packs small numbers.
        let number = u64::from((major << 8) | minor);
        let fd = self.0.as_raw_fd();
        wait_for("HOT_REMOVE_DISK", || raw_ioctl(fd, Mirror::HOT_REMOVE_DISK, number).is_ok())
    }

    fn stop(self) -> Result<()> {
        raw_ioctl(self.0.as_raw_fd(), Mirror::STOP_ARRAY, 0).context("STOP_ARRAY")?;
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = raw_ioctl(self.0.as_raw_fd(), Mirror::STOP_ARRAY, 0);
    }
}

fn numbers(index: u32) -> Result<(u32, u32)> {
    let number = std::fs::metadata(node(index))?.rdev();
    Ok((libc::major(number), libc::minor(number)))
}

/// Where the array is written to.
const EARLY: u64 = 1 << 20;
const DIRTY: u64 = 2 << 20;
const LATE: u64 = 3 << 20;
const LENGTH: usize = 64 << 10;
/// Whose bytes these are.
const ARRAY: u64 = 0x3d;

/// The array lost its first half with bytes on the way there, and goes on by the second.
struct Degraded {
    // Dropped first: an array that is open is not stopped.
    direct: File,
    mirror: Mirror,
    other: Image,
    _client: Child,
}

impl Degraded {
    fn new() -> Result<Degraded> {
        let (a, other) = (Image::new(0xa)?, Image::new(0xd)?);
        let mut client = a.attach()?;
        let others = Setup::for_server(&other.server).attach_in_child(1, &other.server)?;
        let mirror = Mirror::new()?;
        let direct = open_direct(Mirror::NODE)?;
        write_direct(&direct, EARLY, &content(ARRAY, EARLY, LENGTH)).context("a write to both halves")?;
        for image in [&a, &other] {
            let held = image.server.export().read(EARLY, LENGTH)?;
            ensure!(held == content(ARRAY, EARLY, LENGTH), "image {:x} lacks what was written", image.name);
        }
        mirror.0.write_all_at(&content(ARRAY, DIRTY, LENGTH), DIRTY)?;
        dies(&a, &mut client)?;
        Ok(Degraded { direct, mirror, other, _client: others })
    }

    /// What is written now succeeds, is read back, and is on the other half.
    fn goes_on(&self, offset: u64) -> Result<()> {
        let data = content(ARRAY, offset, LENGTH);
        write_direct(&self.direct, offset, &data).with_context(|| format!("a write at {offset}"))?;
        ensure!(read_direct(&self.direct, offset, LENGTH)?[..] == data, "other bytes at {offset}");
        ensure!(self.other.server.export().read(offset, LENGTH)? == data, "no such bytes on the other half");
        Ok(())
    }

    /// Its first half is faulty, but still its own.
    fn notices(&self) -> Result<()> {
        self.mirror.0.sync_all().context("what was dirty")?;
        self.goes_on(LATE)?;
        let (first, second) = (self.mirror.state(0), self.mirror.state(1));
        ensure!(first.contains("faulty") && second.contains("in_sync"), "nbd0 {first:?}, nbd1 {second:?}");
        Ok(())
    }

    /// Nobody uses it any more. What it held is on the other half.
    fn stop(self) -> Result<()> {
        drop(self.direct);
        self.mirror.stop()?;
        for offset in [EARLY, DIRTY, LATE] {
            let held = self.other.server.export().read(offset, LENGTH)?;
            ensure!(
                held == content(ARRAY, offset, LENGTH),
                "the other half lacks what was written at {offset}"
            );
        }
        Ok(())
    }
}

fn stopped(_: &Context) -> Result<()> {
    let array = Degraded::new()?;
    let b = Image::new(0xb)?;
    let mut checks = Checks::default();
    refused(&b, "RAID", &mut checks).context("before md knows")?;
    array.notices()?;
    refused(&b, "RAID", &mut checks).context("of a faulty half")?;
    array.stop()?;
    let mut client = b.attach().context("when the array is stopped")?;
    b.ends(&mut client, checks)
}

fn removed(_: &Context) -> Result<()> {
    let array = Degraded::new()?;
    // Somebody else has it open, past the array.
    let plain = OpenOptions::new().read(true).write(true).open(node(0))?;
    let b = Image::new(0xb)?;
    let mut checks = Checks::default();
    array.notices()?;
    refused(&b, "RAID", &mut checks)?;
    array.mirror.remove(0)?;
    let mut client = b.attach().context("when the array has let go of it")?;
    array.goes_on(LATE + LENGTH as u64)?;
    let state = array.mirror.state(0);
    checks.that(&format!("the array has it again: {state:?}"), state.is_empty());
    let mut data = vec![0; LENGTH];
    let read = plain.read_exact_at(&mut data, EARLY).map(|()| data);
    b.not_in("a read by an open of the first half", read, &mut checks);
    array.stop()?;
    drop(plain);
    b.ends(&mut client, checks)
}
