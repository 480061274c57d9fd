// SPDX-License-Identifier: GPL-2.0
//! Devices that are detached by their last close.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};

use super::attached::{Attached, client_flag, client_flags};
use super::destroy::wait_gone;
use crate::device::{Device, flag, node, wait_idle};
use crate::mounted::{Mounted, mkfs_ext4};
use crate::netlink::{attr, attr_u64};
use crate::process::have;
use crate::server::{Export, Server};
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new("netlink.close", "the last close of those who write detaches", writers),
    Test::new(
        "netlink.close_reader",
        "an open and close for reading, as udev's, does not detach what nobody has used",
        reader,
    )
    .known_on_nbd("the first last close detaches, udev's too"),
    Test::new("netlink.close_read_only", "the last close of a read-only device detaches", read_only),
    Test::new("netlink.close_mount", "umount detaches", mounted).limit(90),
    Test::new("netlink.close_changed", "RECONFIGURE sets and clears the flag", changed),
    Test::new("netlink.close_destroy", "the last close takes a device with it that is to go", destroy),
];

fn on_close() -> [netlink_packet_core::DefaultNla; 1] {
    [client_flags(client_flag::DISCONNECT_ON_CLOSE)]
}

/// Who only looks what is there: the device is attached if he can read. A disconnect has changed the phase before
/// the close that caused it returns.
fn reads(index: u32) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::open(node(index))?;
    // Not what the page cache may have.
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    file.read_exact_at(&mut [0; 4096], 8192).context("read from the device")
}

fn writers(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    for round in 0..5 {
        let device = Attached::new(&server, 1, &on_close())?;
        let (one, two) = (Device::open(0)?, Device::open(0)?);
        drop(one);
        reads(0).with_context(|| format!("round {round}: a close that was not the last"))?;
        let looker = File::open(node(0))?;
        drop(two);
        reads(0).with_context(|| format!("round {round}: somebody has it open still"))?;
        drop(looker);
        wait_idle(0).with_context(|| format!("round {round}: after the last close"))?;
        server.wait_closed()?;
        drop(device);
    }
    Ok(())
}

fn reader(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let device = Attached::new(&server, 1, &on_close())?;
    for round in 0..5 {
        reads(0).with_context(|| format!("round {round}"))?;
    }
    device.works().context("the first to write")?;
    wait_idle(0)?;
    // Each attachment begins anew.
    let device = Attached::new(&server, 1, &on_close())?;
    reads(0)?;
    reads(0).context("after another attachment's user")?;
    device.detach()
}

fn read_only(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let [on_close] = on_close();
    let flags = attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::READ_ONLY);
    let _device = Attached::new(&server, 1, &[on_close, flags])?;
    reads(0)?;
    wait_idle(0)?;
    server.wait_closed()
}

fn mounted(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4");
    }
    let server = Server::new(Export::memory(16 << 20)?);
    let device = Attached::new(&server, 1, &[])?;
    mkfs_ext4("/dev/nbd0")?;
    device.detach()?;
    for round in 0..3 {
        let _device = Attached::new(&server, 1, &on_close())?;
        let mounted = Mounted::new(context, &node(0), "ext4")?;
        reads(0)?;
        let last = std::fs::read_to_string(mounted.file("file")).ok();
        ensure!(
            round == 0 || last == Some(format!("round {}", round - 1)),
            "round {round}: {last:?} is there"
        );
        std::fs::write(mounted.file("file"), format!("round {round}"))?;
        mounted.unmount()?;
        wait_idle(0).with_context(|| format!("round {round}: after umount"))?;
        server.wait_closed()?;
    }
    Ok(())
}

fn changed(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let device = Attached::new(&server, 1, &on_close())?;
    device.change(&[client_flags(0)])?;
    device.works()?;
    reads(0).context("the flag was taken back")?;
    device.change(&on_close())?;
    device.works()?;
    wait_idle(0)?;
    server.wait_closed()
}

fn destroy(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let flags = client_flag::DISCONNECT_ON_CLOSE | client_flag::DESTROY_ON_DISCONNECT;
    for round in 0..5 {
        let device = Attached::by(5, &server, 1, &[client_flags(flags)])?;
        device.works().with_context(|| format!("round {round}"))?;
        wait_gone(&device.client, 5).with_context(|| format!("round {round}"))?;
        server.wait_closed()?;
    }
    Ok(())
}
