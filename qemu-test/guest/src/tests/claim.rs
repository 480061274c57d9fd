// SPDX-License-Identifier: GPL-2.0
//! Whoever has claimed the disk of generation N (a mounted filesystem, device-mapper, swap) keeps it from being
//! attached to another server, and nothing written to generation N reaches that one (invariant G4).

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;

use super::netlink::attached::{Attached, client_flag, client_flags};
use super::size::partitioned;
use super::teardown::EBUSY_FOR_EVER;
use super::{Checks, Context, Test, skip};
use crate::attach::{Setup, with_attached};
use crate::device::{
    Device, attached, capacity, node, open_direct, raw_ioctl, read_direct, req, round_trip, write_direct,
};
use crate::kmsg::Log;
use crate::mounted::{Mounted, mkfs_ext4};
use crate::process::{Child, have, run, wait_for};
use crate::puppet::{Answer, Puppet};
use crate::server::{Command, Export, Server, Transport};
use crate::swap::Swap;

const SILENT_ON_NBD: &str = "EBUSY, but the log does not say who holds the device";

pub const TESTS: &[Test] = &[
    Test::new("claim.ext4", "a mounted ext4 keeps its device from another image", ext4)
        .incident()
        .quick()
        .limit(120)
        .known_on_nbd(SILENT_ON_NBD),
    Test::new(
        "claim.same_owner",
        "under a mounted ext4 its own client may come back with the same size, and no other",
        same_owner,
    )
    .limit(120)
    .known_on_nbd("EBUSY for as long as it is mounted"),
    Test::new("claim.dm", "a dm-linear target keeps its device from another image", dm)
        .known_on_nbd(SILENT_ON_NBD),
    Test::new("claim.swap", "swap keeps its device from another image", swap).known_on_nbd(SILENT_ON_NBD),
    Test::new(
        "claim.partition",
        "who has one partition for himself does not get past who has another one",
        partition,
    )
    .known_on_nbd(SILENT_ON_NBD),
    Test::new(
        "claim.loop_destroyed",
        "of a device that goes with its attachment, a loop device gets none of the next one",
        loop_destroyed,
    )
    .limit(120)
    .known_on_nbd("the device stays until it is closed, and its number is refused with EINVAL"),
    Test::new("claim.loop", "what a loop device could not write does not reach the next server", loop_device)
        .limit(120),
    Test::new("claim.dirty_pages", "a plain opener's dirty pages do not reach the next server", dirty_pages)
        .known_on_nbd(EBUSY_FOR_EVER),
];

const SIZE: u64 = 16 << 20;
/// What is written to files.
static FILE: [u8; 100_000] = [0x5e; 100_000];
const FILESYSTEM: &str = "a mounted filesystem";

/// An image that is not to be touched: no two blocks are the same.
fn image_b() -> Result<(Server, Vec<u8>)> {
    let server = Server::new(Export::memory(SIZE)?);
    let numbers = (0..SIZE / 8).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let content: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    server.export().write(0, &content)?;
    Ok((server, content))
}

/// The image that is claimed, and its client.
fn image_a() -> Result<(Server, Child)> {
    let server = Server::new(Export::memory(SIZE)?);
    let client = Setup::for_server(&server).attach_in_child(0, &server)?;
    Ok((server, client))
}

/// The server dies, and with it the client and the attachment.
fn dies(server: &Server, client: &mut Child) -> Result<()> {
    server.close();
    client.wait()?;
    server.wait_closed()
}

/// Attaching `server` must be refused with EBUSY; that the log then says that `holder` has the device is checked, too.
fn refused(server: &Server, holder: &str, checks: &mut Checks) -> Result<()> {
    let mut log = Log::from_now()?;
    let attached = Setup::for_server(server).attach_in_child(0, server);
    let lines = log.lines();
    let error = match attached {
        Ok(_) => bail!("another image was attached under the holder"),
        Err(error) => format!("{error:#}"),
    };
    println!("{error}");
    ensure!(error.contains(&Errno::EBUSY.to_string()), "refused, but not with EBUSY: {error}");
    server.wait_closed()?;
    let says = |line: &&String| line.contains("nbd0") && line.contains(holder);
    match lines.iter().find(says) {
        Some(line) => println!("{line}"),
        None => checks.that(&format!("no line tells of {holder}: {lines:?}"), false),
    }
    Ok(())
}

/// Now it can be attached, shows what it holds, and was never written to.
fn attaches_untouched(server: &Server, content: &[u8]) -> Result<()> {
    with_attached(server, Setup::for_server(server), |_| {
        let direct = open_direct("/dev/nbd0")?;
        for offset in (0..SIZE).step_by(1 << 20) {
            let data = read_direct(&direct, offset, 1 << 20)?;
            let from = offset as usize;
            ensure!(data[..] == content[from..from + (1 << 20)], "other data at {offset}");
        }
        Ok(())
    })?;
    untouched(server, content)
}

fn untouched(server: &Server, content: &[u8]) -> Result<()> {
    let mut checks = Checks::default();
    for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
        let seen = server.seen_of(command);
        checks.that(&format!("no {command:?} reached it: {seen:?}"), seen.is_empty());
    }
    checks.that("its bytes are as they were", server.export().read(0, SIZE as usize)? == content);
    checks.done()
}

/// Writes a file, to the server.
fn write(mounted: &Mounted, name: &str) -> std::io::Result<()> {
    let mut file = fs::File::create(mounted.file(name))?;
    file.write_all(&FILE)?;
    file.sync_all()
}

fn need(programs: &[&str]) -> Result<()> {
    match programs.iter().find(|program| !have(program)) {
        Some(program) => skip(format!("there is no {program}")),
        None => Ok(()),
    }
}

fn ext4(context: &Context) -> Result<()> {
    need(&["mkfs.ext4"])?;
    let (a, mut client) = image_a()?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    write(&mounted, "before").context("a file on the first image")?;
    dies(&a, &mut client)?;
    let (b, content) = image_b()?;
    let mut checks = Checks::default();
    refused(&b, FILESYSTEM, &mut checks)?;
    let lost = write(&mounted, "meanwhile");
    ensure!(lost.is_err(), "a write without a server succeeded");
    refused(&b, FILESYSTEM, &mut checks).context("a second time")?;
    // Its last writes have nowhere to go.
    mounted.unmount()?;
    attaches_untouched(&b, &content)?;
    checks.done()
}

/// What the client says on its way to NBD_DO_IT, up to the first error. Attached when it is `Ok`.
fn start(client: &mut Puppet, socket: &OwnedFd, size: u64) -> Result<Answer> {
    let set = client.set_up(socket.as_raw_fd(), size)?;
    if set.is_err() {
        return Ok(set);
    }
    client.begin(req::DO_IT, 0)?;
    let running = || attached(0) && capacity(0) != 0;
    wait_for("NBD_DO_IT to run or to fail", || running() || client.has_answered().unwrap_or(true))?;
    if running() { Ok(Ok(0)) } else { client.finish() }
}

fn same_owner(context: &Context) -> Result<()> {
    need(&["mkfs.ext4"])?;
    let image = context.scratch.join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    // Three lives of one server.
    let serve = || -> Result<(Server, OwnedFd)> {
        let server = Server::new(Export::file(&image)?);
        let socket = server.connect(Transport::Unix)?;
        Ok((server, socket))
    };
    let (first, other, again) = (serve()?, serve()?, serve()?);
    let fds = [&first.1, &other.1, &again.1].map(AsRawFd::as_raw_fd);
    let mut client = Puppet::new(0, &fds)?;
    start(&mut client, &first.1, SIZE)?.context("the first time")?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    write(&mounted, "before").context("a file")?;
    first.0.close();
    println!("NBD_DO_IT returned {:?}", client.finish()?);

    let refused = start(&mut client, &other.1, SIZE / 2)?;
    ensure!(refused == Err(Errno::EBUSY), "half the size gave {refused:?}");
    client.ioctl(req::CLEAR_SOCK, 0)?.context("NBD_CLEAR_SOCK")?;

    start(&mut client, &again.1, SIZE)?.context("again, with the same size")?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let data = fs::read(mounted.file("before")).context("the file from before")?;
    ensure!(data == FILE, "the file has changed");
    write(&mounted, "after").context("a file after")?;
    mounted.unmount()?;
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.finish()?.context("NBD_DO_IT")?;
    Ok(())
}

/// A dm device of one linear target, removed when dropped.
pub struct Linear;

impl Linear {
    const NAME: &'static str = "rnbd-test";
    pub const NODE: &'static str = "/dev/mapper/rnbd-test";

    /// On all of a device.
    pub fn on(path: &str, sectors: u64) -> Result<Linear> {
        let table = format!("0 {sectors} linear {path} 0");
        run("dmsetup", &["create", Linear::NAME, "--noudevsync", "--table", &table])?;
        run("dmsetup", &["mknodes", Linear::NAME])?;
        Ok(Linear)
    }

    pub fn remove(self) -> Result<()> {
        std::mem::forget(self);
        run("dmsetup", &["remove", "--noudevsync", Linear::NAME]).map(drop)
    }
}

impl Drop for Linear {
    fn drop(&mut self) {
        let _ = run("dmsetup", &["remove", "--force", "--noudevsync", Linear::NAME]);
    }
}

fn dm(_: &Context) -> Result<()> {
    need(&["dmsetup"])?;
    run("modprobe", &["dm-mod"])?;
    let (a, mut client) = image_a()?;
    let linear = Linear::on("/dev/nbd0", SIZE / 512)?;
    let direct = open_direct(Linear::NODE)?;
    round_trip(&direct, 8192, &[0x1d; 4096])?;
    dies(&a, &mut client)?;
    let (b, content) = image_b()?;
    let mut checks = Checks::default();
    refused(&b, "device-mapper", &mut checks)?;
    let lost = write_direct(&direct, 8192, &[0x2d; 4096]);
    ensure!(lost.is_err(), "a write without a server succeeded");
    drop(direct);
    linear.remove()?;
    attaches_untouched(&b, &content)?;
    checks.done()
}

fn swap(_: &Context) -> Result<()> {
    need(&["mkswap", "swapon", "swapoff"])?;
    let (a, mut client) = image_a()?;
    let swap = Swap::on()?;
    dies(&a, &mut client)?;
    let (b, content) = image_b()?;
    let mut checks = Checks::default();
    refused(&b, "swap", &mut checks)?;
    swap.off()?;
    attaches_untouched(&b, &content)?;
    checks.done()
}

/// A loop device on the device, detached when dropped.
pub struct Loop(String);

impl Loop {
    pub fn new() -> Result<Loop> {
        run("modprobe", &["loop"])?;
        let name = run("losetup", &["-f"])?.trim().to_owned();
        run("losetup", &[&name, "/dev/nbd0"])?;
        Ok(Loop(name))
    }

    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d", &self.0]);
    }
}

/// To the kernel a loop device's backing file is a plain open, which claims nothing: nobody can tell the driver of
/// the filesystem above. What is left to ask for is that what failed stays lost.
fn loop_device(context: &Context) -> Result<()> {
    need(&["losetup", "mkfs.ext4"])?;
    let (a, mut client) = image_a()?;
    let device = Loop::new()?;
    mkfs_ext4(&device.0)?;
    let mounted = Mounted::new(context, Path::new(&device.0), "ext4")?;
    write(&mounted, "before").context("a file on the first image")?;
    dies(&a, &mut client)?;
    let lost = write(&mounted, "meanwhile");
    ensure!(lost.is_err(), "a write without a server succeeded");
    mounted.unmount()?;
    drop(device);
    let (b, content) = image_b()?;
    attaches_untouched(&b, &content)
}

/// The device that a loop device has open is another than the one that is made under its number.
fn loop_destroyed(context: &Context) -> Result<()> {
    need(&["losetup", "mkfs.ext4"])?;
    let goes = [client_flags(client_flag::DESTROY_ON_DISCONNECT)];
    let a = Server::new(Export::memory(SIZE)?);
    let attached = Attached::new(&a, 1, &goes)?;
    let device = Loop::new()?;
    mkfs_ext4(&device.0)?;
    let mounted = Mounted::new(context, Path::new(&device.0), "ext4")?;
    write(&mounted, "before").context("a file on the first image")?;
    attached.disconnect()?;
    a.wait_closed()?;
    let (b, content) = image_b()?;
    let attached = Attached::new(&b, 1, &goes).context("the next image")?;
    let lost = write(&mounted, "meanwhile");
    ensure!(lost.is_err(), "a write without a server succeeded");
    mounted.unmount()?;
    drop(device);
    let data = read_direct(&open_direct("/dev/nbd0")?, 0, 1 << 20)?;
    ensure!(data[..] == content[..1 << 20], "the next image does not read as itself");
    attached.disconnect()?;
    b.wait_closed()?;
    untouched(&b, &content)
}

/// Opens a partition for itself.
fn open_exclusively(number: u32) -> Result<fs::File> {
    let path = format!("/dev/nbd0p{number}");
    wait_for(&path, || Path::new(&path).exists())?;
    let flags = libc::O_EXCL | libc::O_DIRECT;
    let opened = fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
    opened.with_context(|| format!("open {path} with O_EXCL"))
}

fn partition(context: &Context) -> Result<()> {
    let a = partitioned(context, "dos")?;
    let mut client = Setup::for_server(&a).attach_in_child(0, &a)?;
    // The table is read at the first open of a running device.
    drop(Device::open(0)?);
    let (ours, theirs) = (open_exclusively(1)?, open_exclusively(2)?);
    round_trip(&theirs, 0, &[0x2e; 4096])?;
    dies(&a, &mut client)?;
    let (b, content) = image_b()?;
    let socket = b.connect(Transport::Unix)?;
    let mut log = Log::from_now()?;
    let set = raw_ioctl(ours.as_raw_fd(), req::SET_SOCK, socket.as_raw_fd() as u64);
    ensure!(set == Err(Errno::EBUSY), "NBD_SET_SOCK through a partition gave {set:?}");
    let lines = log.lines();
    let mut checks = Checks::default();
    let told = lines.iter().any(|line| line.contains("on partition 2"));
    checks.that(&format!("no line tells of partition 2: {lines:?}"), told);
    ensure!(write_direct(&theirs, 0, &[0x3e; 4096]).is_err(), "a write without a server succeeded");
    drop((socket, ours, theirs));
    b.wait_closed()?;
    attaches_untouched(&b, &content)?;
    checks.done()
}

fn dirty_pages(_: &Context) -> Result<()> {
    let (a, mut client) = image_a()?;
    let opener = Device::open(0)?;
    opener.file().write_all_at(&[0xd1; 256 << 10], 4096)?;
    ensure!(a.seen_of(Command::Write).is_empty(), "the pages were written back at once");
    dies(&a, &mut client)?;
    let (b, content) = image_b()?;
    let mut client = Setup::for_server(&b).attach_in_child(0, &b)?;
    println!("fsync of what the first server did not get: {:?}", opener.file().sync_all());
    let mut data = vec![0; 256 << 10];
    let read = opener.file().read_at(&mut data, 4096);
    println!("a read by the old open: {read:?}");
    let read = read.unwrap_or(0);
    ensure!(read == 0 || data[..read] != content[4096..4096 + read], "the old open reads the second image");
    client.kill()?;
    b.wait_closed()?;
    untouched(&b, &content)
}
