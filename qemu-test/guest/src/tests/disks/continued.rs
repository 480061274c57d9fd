// SPDX-License-Identifier: GPL-2.0
//! Which attachment goes on with the one before, so that opens of that one are good for it, and which does not.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::image::{Image, drop_caches};
use crate::attach::Setup;
use crate::device::{
    Device, attached, capacity, diskseq, node, open_direct, read_direct, req, round_trip, wait_idle,
    write_direct,
};
use crate::mounted::Mounted;
use crate::process::{have, run, wait_for};
use crate::puppet::{Answer, Puppet};
use crate::server::{Action, Command, Export, Server, Transport};
use crate::tests::netlink::attached::Attached;
use crate::tests::size::partitioned;
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.continuation",
        "who comes back to a server that died finds its holders and its mount as they were",
        continuation,
    )
    .limit(120)
    .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new(
        "disks.continuation_timeout",
        "so does who comes back after a request's time-out",
        continuation_timeout,
    )
    .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new(
        "disks.disconnected_owner",
        "after a disconnect even the same owner's next image is not its holders'",
        disconnected_owner,
    )
    .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new(
        "disks.cleared_owner",
        "after NBD_CLEAR_SOCK even the same owner's next image is not its holders'",
        cleared_owner,
    )
    .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new(
        "disks.resized_owner",
        "a server that died and one of another size are two images, for the same owner too",
        resized_owner,
    )
    .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new(
        "disks.another_owner",
        "another process that comes after a death does not go on",
        another_owner,
    )
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.kept", "of an image that nobody holds, nothing is left at the next one", kept)
        .limit(120)
        .known_on_nbd("diskseq does not move"),
];

/// What the client says on its way to NBD_DO_IT, up to the first error. Attached when it is `Ok`.
fn start(client: &mut Puppet, socket: &OwnedFd, size: u64) -> Result<Answer> {
    let set = client.set_up(socket.as_raw_fd(), size)?;
    if set.is_err() {
        return Ok(set);
    }
    client.begin(req::DO_IT, 0)?;
    let running = || attached(0) && capacity(0) == size;
    wait_for("NBD_DO_IT to run or to fail", || running() || client.has_answered().unwrap_or(true))?;
    if running() { Ok(Ok(0)) } else { client.finish() }
}

fn continuation(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4");
    }
    const SIZE: u64 = 32 << 20;
    let disk = context.scratch.join("disk");
    std::fs::File::create(&disk)?.set_len(SIZE)?;
    let lives = (0..4).map(|_| -> Result<(Server, OwnedFd)> {
        let server = Server::new(Export::file(&disk)?);
        let socket = server.connect(Transport::Unix)?;
        Ok((server, socket))
    });
    let lives: Vec<(Server, OwnedFd)> = lives.collect::<Result<_>>()?;
    let fds: Vec<i32> = lives.iter().map(|life| life.1.as_raw_fd()).collect();
    let mut client = Puppet::new(0, &fds)?;
    start(&mut client, &lives[0].1, SIZE)?.context("the first time")?;
    // Behind the filesystem is something for who has opened the device alone.
    const OWN: u64 = 24 << 20;
    run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "/dev/nbd0", "16M"])?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    std::fs::write(mounted.file("file"), [0x11; 10_000])?;
    nix::unistd::sync();
    let (holder, direct) = (Device::open(0)?, open_direct("/dev/nbd0")?);
    round_trip(&direct, OWN, &[0x22; 4096])?;
    for life in 1..lives.len() {
        let again = || format!("life {life}");
        lives[life - 1].0.close();
        let ended = client.finish()?;
        println!("NBD_DO_IT returned {ended:?}");
        ensure!(read_direct(&direct, OWN, 4096).is_err(), "a read without a server succeeded");
        start(&mut client, &lives[life].1, SIZE)?.with_context(again)?;
        drop_caches()?;
        let mut data = [0; 4096];
        holder.file().read_exact_at(&mut data, OWN).with_context(again)?;
        ensure!(data == [0x22; 4096], "{}: other data", again());
        round_trip(&direct, OWN + 4096, &[life as u8; 4096]).with_context(again)?;
        holder.file().write_all_at(&[life as u8; 4096], OWN + 8192).with_context(again)?;
        holder.file().sync_all().with_context(again)?;
        let there = lives[life].0.export().read(OWN + 4096, 8192)?;
        ensure!(there == [life as u8; 8192], "{}: what was written is not there", again());
        let data = std::fs::read(mounted.file("file")).with_context(again)?;
        ensure!(data == [0x11; 10_000], "{}: the file has changed", again());
        std::fs::write(mounted.file(format!("file-{life}")), [life as u8; 10_000]).with_context(again)?;
        std::fs::File::open(mounted.file(format!("file-{life}")))?.sync_all().with_context(again)?;
    }
    drop((holder, direct));
    mounted.unmount()?;
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.finish()?.context("NBD_DO_IT")?;
    Ok(())
}

fn continuation_timeout(_: &Context) -> Result<()> {
    let silent =
        Image::behaving(
            0xa,
            |request| {
                if request.offset >= 1 << 20 { Action::Ignore } else { Action::Serve }
            },
        )?;
    // The same image, served by another one.
    let again = Image::new(0xa)?;
    let size = again.server.export().size();
    let sockets = [silent.server.connect(Transport::Unix)?, again.server.connect(Transport::Unix)?];
    let mut client = Puppet::new(0, &sockets.each_ref().map(AsRawFd::as_raw_fd))?;
    client.ioctl(req::SET_TIMEOUT, 1)?.context("NBD_SET_TIMEOUT")?;
    start(&mut client, &sockets[0], size)?.context("the first time")?;
    let (holder, direct) = (Device::open(0)?, open_direct("/dev/nbd0")?);
    let mut data = vec![0; 65536];
    holder.file().read_exact_at(&mut data, 0)?;
    ensure!(read_direct(&direct, 2 << 20, 4096).is_err(), "a read without an answer succeeded");
    println!("NBD_DO_IT returned {:?}", client.finish()?);
    start(&mut client, &sockets[1], size)?.context("again")?;
    drop_caches()?;
    holder.file().read_exact_at(&mut data, 2 << 20).context("the holder's read")?;
    ensure!(data == super::image::content(0xa, 2 << 20, 65536), "the holder reads other data");
    round_trip(&direct, 3 << 20, &[0x33; 4096]).context("the holder's write")?;
    ensure!(again.server.export().read(3 << 20, 4096)? == [0x33; 4096], "what was written is not there");
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.finish()?.context("NBD_DO_IT")?;
    Ok(())
}

/// An owner attaches A, which ends as it does, and B. A's opens are no good for B.
fn apart(a: &Image, b: &Image, ends: impl FnOnce(&mut Puppet) -> Result<()>) -> Result<()> {
    let sockets = [a.server.connect(Transport::Unix)?, b.server.connect(Transport::Unix)?];
    let mut client = Puppet::new(0, &sockets.each_ref().map(AsRawFd::as_raw_fd))?;
    start(&mut client, &sockets[0], a.server.export().size())?.context("the first image")?;
    let (holder, direct) = (Device::open(0)?, open_direct("/dev/nbd0")?);
    let mut data = vec![0; 65536];
    holder.file().read_exact_at(&mut data, 0)?;
    ends(&mut client)?;
    a.server.wait_closed().ok();
    start(&mut client, &sockets[1], b.server.export().size())?.context("the second image")?;
    drop(sockets);
    let checks = cut_off(b, &holder, &direct)?;
    drop((holder, direct));
    let mut checks = checks;
    checks.also(b.reads("/dev/nbd0"));
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.finish()?.context("NBD_DO_IT")?;
    b.server.wait_closed()?;
    checks.also(b.untouched());
    checks.done()
}

/// Old opens neither read nor write what is attached now.
fn cut_off(b: &Image, holder: &Device, direct: &std::fs::File) -> Result<Checks> {
    let mut checks = Checks::default();
    drop_caches()?;
    let mut data = vec![0; 65536];
    let read = holder.file().read_exact_at(&mut data, 0).map(|()| data);
    b.not_in("a read by an old open", read, &mut checks);
    let read = read_direct(direct, 0, 65536).map(|data| data.to_vec());
    b.not_in("a direct read by an old open", read, &mut checks);
    let written = write_direct(direct, 1 << 20, &[0xc1; 4096]);
    checks.that("a direct write by an old open succeeded", written.is_err());
    let written = holder.file().write_all_at(&[0xc2; 4096], 2 << 20);
    let synced = holder.file().sync_all();
    checks.that("a write and fsync by an old open succeeded", written.is_err() || synced.is_err());
    Ok(checks)
}

fn disconnected_owner(_: &Context) -> Result<()> {
    apart(&Image::new(0xa)?, &Image::new(0xb)?, |client| {
        Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
        client.finish()?.context("NBD_DO_IT")?;
        Ok(())
    })
}

fn cleared_owner(_: &Context) -> Result<()> {
    apart(&Image::new(0xa)?, &Image::new(0xb)?, |client| {
        Device::open(0)?.ioctl(req::CLEAR_SOCK, 0)?;
        println!("NBD_DO_IT returned {:?}", client.finish()?);
        Ok(())
    })
}

fn resized_owner(_: &Context) -> Result<()> {
    let a = Image::new(0xa)?;
    let b = Image::sized(0xb, super::image::SIZE / 2, |_| Action::Serve)?;
    let server = &a.server;
    apart(&a, &b, |client| {
        server.close();
        println!("NBD_DO_IT returned {:?}", client.finish()?);
        Ok(())
    })
}

fn another_owner(_: &Context) -> Result<()> {
    let a = Image::new(0xa)?;
    let mut first = a.attach()?;
    let (holder, direct) = (Device::open(0)?, open_direct("/dev/nbd0")?);
    holder.file().read_exact_at(&mut [0; 65536], 0)?;
    a.server.close();
    first.wait()?;
    let b = Image::new(0xb)?;
    let mut second = b.attach()?;
    let checks = cut_off(&b, &holder, &direct)?;
    drop((holder, direct));
    b.ends(&mut second, checks)
}

fn kept(context: &Context) -> Result<()> {
    let mut sequence = diskseq(0)?;
    for round in 0..context.rounds(4, 2) as u64 {
        let of_round = || format!("round {round}");
        let a = partitioned(context, "dos")?;
        let mut client = Setup::for_server(&a).attach_in_child(0, &a)?;
        drop(Device::open(0)?);
        wait_for("the partitions", || Path::new("/dev/nbd0p2").exists())?;
        let partition = open_direct("/dev/nbd0p2")?;
        round_trip(&partition, 0, &[0x2b; 4096])?;
        drop(partition);
        // What cannot be written back is told to who has it open, and to nobody later.
        let opener = Device::open(0)?;
        opener.file().write_all_at(&[0x2c; 65536], 8 << 20)?;
        client.kill()?;
        drop(opener);
        wait_idle(0).with_context(of_round)?;
        let b = Image::new(round)?;
        let attached = Attached::new(&b.server, 1, &[]).with_context(of_round)?;
        let opener = Device::open(0)?;
        opener.file().sync_all().context("the first fsync of the next image").with_context(of_round)?;
        drop(opener);
        for stale in ["/dev/nbd0p1", "/dev/nbd0p2", "/sys/block/nbd0/nbd0p1"] {
            ensure!(!Path::new(stale).exists(), "{}: there is still {stale}", of_round());
        }
        let now = diskseq(0)?;
        ensure!(now > sequence, "{}: diskseq was {sequence}, and is {now}", of_round());
        sequence = now;
        b.reads("/dev/nbd0").with_context(of_round)?;
        ensure!(b.server.seen_of(Command::Write).is_empty(), "{}: writes of the first image", of_round());
        attached.detach().with_context(of_round)?;
        b.untouched().with_context(of_round)?;
        let none = Device::open(0)?.file().read_at(&mut [0; 512], 0);
        ensure!(matches!(none, Ok(0)) || none.is_err(), "a read of an idle device gave {none:?}");
    }
    ensure!(Device::open(0)?.ioctl(req::DO_IT, 0) == Err(Errno::EINVAL), "NBD_DO_IT without a setup");
    Ok(())
}
