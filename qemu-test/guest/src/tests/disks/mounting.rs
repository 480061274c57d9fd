// SPDX-License-Identifier: GPL-2.0
//! Filesystems that are being mounted, or are mounted, while the block size changes: they set that of the page cache for
//! themselves, and rely on it. If somebody else changes it they look for a buffer for ever.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::frozen::bounded;
use crate::attach::Setup;
use crate::device::{node, set_soft_block_size, sysfs};
use crate::netlink::{attr, attr_u64};
use crate::process::{run, wait_for};
use crate::server::{Action, Command, Export, Server};
use crate::tests::netlink::attached::{Attached, connect};
use crate::tests::race::nobody_is_stuck;
use crate::tests::{Context, Test, ours_only, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.mount_block_size",
        "attached with one block size after the other by netlink, while somebody tries to mount it",
        |context| while_mounting(context, by_netlink),
    )
    .limit(120),
    Test::new("disks.mount_block_size_ioctl", "the same by ioctl", |context| {
        while_mounting(context, by_ioctl)
    })
    .limit(120),
    Test::new(
        "disks.block_size_mounted",
        "a block size that does not suit what is mounted is refused, and nothing has changed",
        mounted,
    )
    .known_on_nbd("it is taken, and what is mounted has errors"),
    Test::new(
        "disks.block_size_claimed",
        "blocks do not become larger while an exclusive opener sets smaller ones",
        claimed,
    )
    .known_on_nbd("it is taken, and what is read then fails"),
];

/// False if it was refused, since the device was being mounted.
fn by_netlink(server: &Server, block_size: u64) -> Result<bool> {
    let client = crate::netlink::Client::open()?;
    let options = [attr_u64(attr::BLOCK_SIZE_BYTES, block_size)];
    match connect(&client, Some(0), server, 1, &options)? {
        Ok(index) => Attached { client, index }.disconnect().map(|()| true),
        Err(refusal) if refusal.errno == Errno::EBUSY => Ok(false),
        Err(refusal) => Err(refusal.errno).context("CONNECT"),
    }
}

fn by_ioctl(server: &Server, block_size: u64) -> Result<bool> {
    // What is mounted at that moment refuses the socket, or the start.
    match Setup::for_server(server).block_size(block_size).attach_in_child(0, server) {
        Ok(mut client) => client.kill().map(|()| true),
        Err(_) => Ok(false),
    }
}

fn while_mounting(context: &Context, attach: fn(&Server, u64) -> Result<bool>) -> Result<()> {
    let dir = context.scratch.join("mnt");
    fs::create_dir_all(&dir)?;
    let server = Server::new(Export::memory(8 << 20)?);
    let (start, length) = (Instant::now(), Duration::from_secs(context.seconds(12, 3)));
    let stop = AtomicBool::new(false);
    let attaches = std::thread::scope(|scope| -> Result<usize> {
        let mounts = scope.spawn(|| {
            let mut tries = 0;
            while !stop.load(Ordering::SeqCst) {
                // There is no filesystem.
                let _ = mount(Some(&node(0)), &dir, Some("ext4"), MsFlags::MS_RDONLY, None::<&str>);
                tries += 1;
            }
            tries
        });
        let mut attaches = 0;
        let mut done = Ok(());
        // On a slow machine it may take longer until one succeeds.
        while done.is_ok() && start.elapsed() < 5 * length && (start.elapsed() < length || attaches < 4) {
            let block_size = [512, 4096][attaches % 2];
            done = attach(&server, block_size).map(|attached| attaches += usize::from(attached));
        }
        stop.store(true, Ordering::SeqCst);
        let tries = mounts.join().unwrap_or(0);
        println!("{attaches} attaches, {tries} mounts");
        done.map(|()| attaches)
    })?;
    ensure!(attaches >= 2, "it was attached {attaches} times");
    server.wait_closed()?;
    nobody_is_stuck()
}

/// BLKBSZSET has dirty pages written first, which takes its time here.
fn claimed(context: &Context) -> Result<()> {
    ours_only(context)?;
    let server = Server::with_behaviour(Export::memory(32 << 20)?, |request| {
        if request.command == Command::Write {
            std::thread::sleep(Duration::from_millis(3));
        }
        Action::Serve
    });
    let device = Attached::new(&server, 1, &[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let plain = File::options().read(true).write(true).open(node(0))?;
    for page in 0..1000 {
        plain.write_all_at(&[5; 4096], page << 14)?;
    }
    let exclusive = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(node(0))?;
    let setter = std::thread::spawn(move || set_soft_block_size(&exclusive, 512).map(|()| exclusive));
    wait_for("it to be written", || server.seen_of(Command::Write).len() >= 20)?;
    let answer = device.client.reconfigure(0, &[], &[attr_u64(attr::BLOCK_SIZE_BYTES, 4096)])?;
    let errno = answer.err().map(|refusal| refusal.errno);
    let exclusive = setter.join().map_err(|_| anyhow!("a task panicked"))?.context("BLKBSZSET")?;
    ensure!(errno == Some(Errno::EBUSY), "RECONFIGURE to larger blocks gave {errno:?}");
    let mut data = [0; 512];
    plain.read_exact_at(&mut data, 0).context("a read then")?;
    exclusive.read_exact_at(&mut data, 512).context("a small read then")?;
    drop((plain, exclusive));
    device.change(&[attr_u64(attr::BLOCK_SIZE_BYTES, 4096)]).context("when nobody has it open")?;
    device.disconnect()?;
    server.wait_closed()
}

/// An empty FAT16 with sectors of 512 bytes: it keeps no buffer when it is idle.
fn fat() -> Result<Server> {
    let export = Export::memory(8 << 20)?;
    let mut boot = [0u8; 512];
    boot[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    boot[3..11].copy_from_slice(b"mkfs.fat");
    for (at, value) in [(11, 512u16), (14, 1), (17, 512), (19, 16384), (22, 64), (24, 32), (26, 2)] {
        boot[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    (boot[13], boot[16], boot[21], boot[36], boot[38]) = (1, 1, 0xf8, 0x80, 0x29);
    boot[54..62].copy_from_slice(b"FAT16   ");
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    export.write(0, &boot)?;
    export.write(512, &[0xf8, 0xff, 0xff, 0xff])?;
    Ok(Server::new(export))
}

fn mounted(context: &Context) -> Result<()> {
    ours_only(context)?;
    for module in ["nls_cp437", "nls_ascii", "vfat"] {
        if let Err(error) = run("modprobe", &[module]) {
            return skip(format!("this kernel has no FAT: {error}"));
        }
    }
    let server = fat()?;
    let device = Attached::new(&server, 1, &[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let dir = context.scratch.join("mnt");
    fs::create_dir_all(&dir)?;
    let options = Some("codepage=437,iocharset=ascii");
    mount(Some(&node(0)), &dir, Some("vfat"), MsFlags::empty(), options)?;
    let done = changed_under(&device, &dir);
    umount2(&dir, MntFlags::MNT_DETACH)?;
    device.disconnect()?;
    done?;
    server.wait_closed()
}

fn changed_under(device: &Attached, dir: &std::path::Path) -> Result<()> {
    fs::write(dir.join("FILE"), [7; 100_000])?;
    nix::unistd::sync();
    for block_size in [1024, 4096, 65536, 512] {
        let answer = device.client.reconfigure(0, &[], &[attr_u64(attr::BLOCK_SIZE_BYTES, block_size)])?;
        let errno = answer.err().map(|refusal| refusal.errno);
        let want = (block_size != 512).then_some(Errno::EBUSY);
        ensure!(errno == want, "RECONFIGURE to blocks of {block_size} gave {errno:?}");
        let shown = sysfs(0, "queue/logical_block_size");
        ensure!(shown.as_deref() == Some("512"), "the block size shows as {shown:?}");
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        bounded(&format!("a look at the filesystem after {block_size}"), || {
            ensure!(fs::read(dir.join("FILE"))? == [7; 100_000], "the file is another");
            fs::write(dir.join(format!("F{block_size}")), [8; 50_000])?;
            nix::unistd::sync();
            Ok(())
        })?;
    }
    Ok(())
}
