// SPDX-License-Identifier: GPL-2.0
//! What else there is to do with a device that netlink has attached: ioctls, and unloading.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;

use super::attached::{Attached, sockets, speaks};
use super::{connected, ok};
use crate::attach::attaches_again;
use crate::device::{Device, attached, open_direct, req, round_trip, sysfs, wait_idle};
use crate::netlink::Client;
use crate::process::wait_for;
use crate::server::{Command, Export, Server};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("netlink.ioctl_refused", "ioctls do not change what netlink has attached", refused).quick(),
    Test::new("netlink.ioctl_disconnect", "NBD_DISCONNECT detaches it", |_| ends(req::DISCONNECT))
        .known_on_nbd("the server is told, and the device stays attached"),
    Test::new("netlink.ioctl_clear", "NBD_CLEAR_SOCK detaches it", |_| ends(req::CLEAR_SOCK)),
    Test::new("netlink.ioctl_disconnect_foreign", "DISCONNECT detaches what an ioctl has attached", foreign),
    Test::new("netlink.unload_attached", "the module cannot be unloaded while a device is attached", unload)
        .unloaded(),
    Test::new(
        "netlink.left_attached",
        "what a test leaves attached, the runner detaches: the module can be unloaded",
        leave,
    ),
];

const SIZE: u64 = 1 << 20;

fn refused(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    let open = Device::open(0)?;
    let state = || (open.size().ok(), open.block_size().ok(), open.read_only().ok(), sysfs(0, "pid"));
    let before = state();
    let offered = sockets(&server, 1)?;
    let mut checks = Checks::default();
    for (name, request) in req::ALL {
        if matches!(request, req::DISCONNECT | req::CLEAR_SOCK) {
            continue;
        }
        let argument = match request {
            req::SET_SOCK => offered[0].as_raw_fd() as u64,
            req::SET_BLKSIZE => 4096,
            _ => 3,
        };
        checks.equal(name, open.ioctl(request, argument), Err(Errno::EINVAL));
        checks.equal(&format!("state after {name}"), state(), before.clone());
    }
    checks.equal("an ioctl that there is not", open.ioctl(0xab7f, 0), Err(Errno::EINVAL));
    speaks(&offered[0])?;
    drop((open, offered));
    device.works()?;
    device.detach()?;
    checks.done()
}

fn ends(request: u32) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    for round in 0..5 {
        let device = Attached::new(&server, 2, &[])?;
        device.works()?;
        let open = Device::open(0)?;
        let done = open.ioctl(request, 0);
        ensure!(done == Ok(0), "round {round}: the ioctl returned {done:?}");
        drop(open);
        server.wait_closed().with_context(|| format!("round {round}"))?;
        wait_idle(0).with_context(|| format!("round {round}"))?;
        // By then the driver is nearly done with it.
        wait_for("STATUS to tell that it is free", || connected(&device.client, 0).is_ok_and(|used| !used))?;
        let told = server.seen_of(Command::Disconnect).len();
        ensure!(told == if request == req::DISCONNECT { 2 } else { 0 }, "the server was told {told} times");
        server.forget();
    }
    attaches_again()
}

fn foreign(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let client = Client::open()?;
    for round in 0..5 {
        let device = Device::open(0)?;
        let attachment = crate::attach::Setup::for_server(&server).attach(&device, &server)?;
        round_trip(&open_direct("/dev/nbd0")?, 0, &[round; 4096])?;
        ok(client.disconnect(0)?)?;
        let ended = attachment.ended()?;
        ensure!(ended == Ok(0), "round {round}: NBD_DO_IT returned {ended:?}");
        drop(device);
        wait_idle(0)?;
        server.wait_closed()?;
    }
    attaches_again()
}

fn unload(context: &Context) -> Result<()> {
    context.driver.load(&context.modules, "nbds_max=1")?;
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    for _ in 0..5 {
        let removed = context.driver.remove();
        ensure!(removed == Err(Errno::EAGAIN), "rmmod of an attached device's driver: {removed:?}");
        ensure!(attached(0), "the device was detached");
        device.works()?;
    }
    device.detach()?;
    let removed = || context.driver.remove();
    // The worker that has ended it may not be gone yet.
    let mut last = Ok(());
    wait_for("rmmod", || {
        last = removed();
        last.is_ok()
    })
    .map_err(|error| anyhow!("{error:#}: {last:?}"))
}

/// What comes after it is the test: it fails if the driver cannot be unloaded.
fn leave(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    device.works()?;
    std::mem::forget(device);
    Ok(())
}
