// SPDX-License-Identifier: GPL-2.0
//! Capacity, block size, uevents, the pid attribute and partitions.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::{Checks, Context, Test, skip};
use crate::attach::{Setup, with_attached};
use crate::blocked::{Blocked, silent_server};
use crate::device::{
    self, Device, capacity, device_size, open_direct, read_direct, round_trip, sysfs, wait_idle,
};
use crate::kmsg::Log;
use crate::process::{PATIENCE, describe_task, have, wait_for};
use crate::server::{Command, Export, Server};
use crate::uevent::Uevents;

pub const TESTS: &[Test] = &[
    Test::new(
        "size.capacity",
        "sysfs and BLKGETSIZE64 show the size while attached, and 0 after",
        capacities,
    )
    .quick(),
    Test::new(
        "size.block_size",
        "the block size shows as logical and physical, and bounds direct I/O",
        block_size,
    ),
    Test::new("size.large_blocks", "block sizes above the page's, up to 64 KiB", large_blocks),
    Test::new("size.resize", "NBD_SET_SIZE of a running device changes its capacity", resize),
    Test::new(
        "size.block_size_silent",
        "NBD_SET_BLKSIZE does not wait for a silent server: EBUSY, and the block size stays",
        block_size_silent,
    )
    .known_on_nbd("it waits for the server"),
    Test::new("size.odd", "a size that is not whole sectors is rounded down", odd),
    Test::new("size.huge", "an export of 4 EiB shows its size and reads at its end", huge),
    Test::new("size.uevents", "a change event at start and one at the end", uevents),
    Test::new("size.pid", "/sys/block/nbdN/pid is the client's, while attached", pid),
    Test::new("size.partitions_mbr", "MBR partitions at unaligned starts", partitions_mbr),
    Test::new("size.partitions_gpt", "GPT partitions at unaligned starts", partitions_gpt),
    Test::new("size.no_partitions", "with max_part=0 no partition is scanned", no_partitions)
        .params("nbds_max=2 max_part=0"),
];

fn capacities(_: &Context) -> Result<()> {
    let mut checks = Checks::default();
    for size in [512, 1 << 20, (1 << 20) + 512, 3 << 30] {
        let server = Server::new(Export::memory(size)?);
        let device = Device::open(0)?;
        checks.equal("capacity before", capacity(0), 0);
        let attachment = Setup::for_server(&server).attach(&device, &server)?;
        checks.equal("capacity in sysfs", capacity(0), size);
        checks.equal("BLKGETSIZE64", device.size()?, size);
        attachment.detach()?;
        checks.equal("BLKGETSIZE64 of an old open, after", device.size()?, 0);
        drop(device);
        wait_idle(0)?;
        checks.equal("BLKGETSIZE64 of a new open, after", Device::open(0)?.size()?, 0);
    }
    checks.done()
}

fn block_size(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let mut checks = Checks::default();
    for size in [512, 1024, 2048, 4096] {
        with_attached(&server, Setup::for_server(&server).block_size(size), |device| {
            checks.equal("BLKSSZGET", u64::from(device.block_size()?), size);
            for name in ["queue/logical_block_size", "queue/physical_block_size"] {
                checks.equal(name, device.sysfs(name), Some(size.to_string()));
            }
            let direct = open_direct("/dev/nbd0")?;
            round_trip(&direct, size, &vec![0x31; size as usize])?;
            if size > 512 {
                let smaller = read_direct(&direct, 512, 512);
                checks.that("direct I/O below the block size is refused", smaller.is_err());
            }
            Ok(())
        })?;
    }
    checks.done()
}

fn large_blocks(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    for size in [8192, 65536] {
        with_attached(&server, Setup::for_server(&server).block_size(size), |_| {
            // Blocks larger than a page are those of a disk from its first open on: the client's own is of another.
            let device = Device::open(0)?;
            ensure!(u64::from(device.block_size()?) == size, "BLKSSZGET shows {}", device.block_size()?);
            let direct = open_direct("/dev/nbd0")?;
            ensure!(read_direct(&direct, 4096, 4096).is_err(), "direct I/O below the block size");
            round_trip(&direct, size, &vec![0x13; 2 * size as usize])
        })
        .with_context(|| format!("block size {size}"))?;
    }
    Ok(())
}

fn resize(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(4 << 20)?);
    let events = Uevents::listen()?;
    let setup = Setup { size: 1 << 20, ..Setup::for_server(&server) };
    with_attached(&server, setup, |device| {
        for (cmd, arg, size) in [
            (device::req::SET_SIZE, 4 << 20, 4 << 20),
            (device::req::SET_SIZE_BLOCKS, 4096, 2 << 20),
            (device::req::SET_SIZE, 3 << 20, 3 << 20),
        ] {
            events.pending()?;
            device.ioctl(cmd, arg)?;
            ensure!(capacity(0) == size, "capacity {} after {cmd:#x} {arg}", capacity(0));
            ensure!(device.size()? == size, "BLKGETSIZE64 {} after {cmd:#x} {arg}", device.size()?);
            events.wait("change", "/block/nbd0")?;
            round_trip(&open_direct("/dev/nbd0")?, size - 4096, &[0x21; 4096])?;
        }
        for (cmd, arg) in [(device::req::SET_SIZE, 1 << 63), (device::req::SET_SIZE_BLOCKS, 1 << 60)] {
            let refused = device.ioctl(cmd, arg);
            ensure!(refused == Err(Errno::EINVAL), "{cmd:#x} {arg:#x} gave {refused:?}");
            ensure!(capacity(0) == 3 << 20, "a refused size changed the capacity to {}", capacity(0));
        }
        Ok(())
    })
}

fn block_size_silent(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    let reader = Blocked::read(&server)?;
    let mut log = Log::from_now()?;
    let (sender, result) = channel();
    let theirs = device.same_open()?;
    std::thread::spawn(move || sender.send(theirs.ioctl(device::req::SET_BLKSIZE, 4096)));
    let told = || describe_task(std::process::id() as i32);
    let changed = result.recv_timeout(*PATIENCE).with_context(|| format!("it hangs\n{}", told()))?;
    ensure!(changed == Err(Errno::EBUSY), "NBD_SET_BLKSIZE gave {changed:?}");
    let lines = log.lines();
    ensure!(lines.iter().any(|line| line.contains("block size")), "the log does not say why: {lines:?}");
    ensure!(device.block_size()? == 512, "BLKSSZGET shows {}", device.block_size()?);
    // What counts blocks counts them as they are.
    device.ioctl(device::req::SET_SIZE_BLOCKS, 256)?;
    ensure!(capacity(0) == 256 * 512, "256 blocks are {} bytes", capacity(0));
    ensure!(reader.waits(), "the reader has ended");
    attachment.detach()?;
    reader.fails("NBD_DISCONNECT")?;
    // A server that answers does not stand in the way.
    drop(device);
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server), |device| {
        device.ioctl(device::req::SET_BLKSIZE, 4096)?;
        ensure!(device.block_size()? == 4096, "BLKSSZGET shows {}", device.block_size()?);
        round_trip(&open_direct("/dev/nbd0")?, 4096, &[0x44; 4096])
    })
}

fn odd(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory((1 << 20) + 700)?);
    let device = Device::open(0)?;
    let setup = Setup::for_server(&server);
    // NBD_SET_SIZE takes bytes, so that it can say what NBD_SET_SIZE_BLOCKS cannot.
    setup.prepare(&device, &server)?;
    device.ioctl(device::req::SET_SIZE, setup.size)?;
    let attachment = crate::attach::Attachment::start(&device)?;
    attachment.wait_running((1 << 20) + 512)?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 1 << 20, &[4; 512])?;
    drop(direct);
    attachment.detach()
}

fn huge(_: &Context) -> Result<()> {
    // A file in memory cannot be that large, so the server answers reads by itself.
    const SIZE: u64 = 1 << 62;
    let server = Server::with_behaviour(Export::memory(4096)?, |request| {
        if request.offset.checked_add(request.length.into()).is_none_or(|end| end > SIZE) {
            return crate::server::Action::Refuse(libc::EINVAL as u32);
        }
        let mut reply =
            crate::server::wire::reply(crate::server::wire::REPLY_MAGIC, 0, request.cookie).to_vec();
        reply.extend(request.offset.to_be_bytes().iter().cycle().take(request.length as usize));
        crate::server::Action::Send(reply)
    });
    let setup = Setup { size: SIZE, ..Setup::for_server(&server) };
    with_attached(&server, setup, |device| {
        ensure!(device.size()? == SIZE, "BLKGETSIZE64 shows {}", device.size()?);
        let last = SIZE - 4096;
        let data = read_direct(&open_direct("/dev/nbd0")?, last, 4096)?;
        ensure!(data.chunks(8).all(|chunk| chunk == last.to_be_bytes()), "data of another offset");
        Ok(())
    })
}

fn uevents(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let events = Uevents::listen()?;
    let device = Device::open(0)?;
    events.pending()?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    events.wait("change", "/block/nbd0").context("at start")?;
    attachment.detach()?;
    drop(device);
    events.wait("change", "/block/nbd0").context("at the end")?;
    wait_idle(0)
}

fn pid(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    ensure!(sysfs(0, "pid").is_none(), "there is a pid before");
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let got = sysfs(0, "pid");
    ensure!(got == Some(client.pid().to_string()), "pid is {got:?}, the client is {}", client.pid());
    let mode = fs::metadata(device::sysfs_path(0, "pid"))?.permissions();
    ensure!(mode.readonly(), "pid is writable");
    Device::open(0)?.ioctl(device::req::DISCONNECT, 0)?;
    client.success()?;
    wait_for("pid to go", || sysfs(0, "pid").is_none())
}

/// An image with two partitions, made by sfdisk; unaligned on purpose.
pub fn partitioned(context: &Context, label: &str) -> Result<Server> {
    if !have("sfdisk") {
        return skip("there is no sfdisk");
    }
    let path = context.scratch_file("image");
    fs::File::create(&path)?.set_len(16 << 20)?;
    let mut sfdisk = Program::new("sfdisk")
        .args(["--quiet", &path])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let script = format!("label: {label}\nstart=2051, size=4099\nstart=9001, size=8007\n");
    sfdisk.stdin.take().context("sfdisk's input")?.write_all(script.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk failed");
    Ok(Server::new(Export::file(Path::new(&path))?))
}

const PARTITIONS: [(u32, u64, u64); 2] = [(1, 2051 * 512, 4099 * 512), (2, 9001 * 512, 8007 * 512)];

fn partitions(context: &Context, label: &str) -> Result<()> {
    let server = partitioned(context, label)?;
    with_attached(&server, Setup::for_server(&server), |_| {
        // The table is read at the first open of a running device.
        drop(Device::open(0)?);
        let mut checks = Checks::default();
        for (number, start, size) in PARTITIONS {
            let name = format!("nbd0p{number}");
            wait_for(&name, || Path::new("/dev").join(&name).exists())?;
            let sectors = |what: &str| sysfs(0, &format!("{name}/{what}"));
            checks.equal("start", sectors("start"), Some((start / 512).to_string()));
            checks.equal("size", sectors("size"), Some((size / 512).to_string()));
            let partition = open_direct(format!("/dev/{name}"))?;
            checks.equal("BLKGETSIZE64", device_size(&partition)?, size);
            server.forget();
            for offset in [0, 512, size - 512] {
                round_trip(&partition, offset, &vec![number as u8; 512])?;
                let there = server.export().read(start + offset, 512)?;
                checks.that(&format!("{name}+{offset} lands there"), there == vec![number as u8; 512]);
            }
            round_trip(&partition, 4096, &vec![number as u8 | 0x80; 65536])?;
            let writes = server.seen_of(Command::Write);
            let first = writes.first().map(|write| write.offset);
            checks.equal("offset of the first write", first, Some(start));
            checks
                .that("a write behind the end is refused", round_trip(&partition, size, &[1; 512]).is_err());
        }
        checks.done()
    })?;
    wait_for("partitions to go", || {
        let _ = Device::open(0);
        !Path::new("/dev/nbd0p1").exists()
    })
}

fn partitions_mbr(context: &Context) -> Result<()> {
    partitions(context, "dos")
}

fn partitions_gpt(context: &Context) -> Result<()> {
    partitions(context, "gpt")
}

fn no_partitions(context: &Context) -> Result<()> {
    let server = partitioned(context, "dos")?;
    with_attached(&server, Setup::for_server(&server), |_| {
        drop(Device::open(0)?);
        ensure!(!Path::new("/dev/nbd0p1").exists(), "there is a partition");
        let range = sysfs(0, "range");
        ensure!(range.as_deref() == Some("1"), "the device has {range:?} minors");
        Ok(())
    })
}
