// SPDX-License-Identifier: GPL-2.0
//! `status`: each phase of a device, and what is said of it.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Detached, Run, Served, ctl, diagnosis, json, says};
use crate::attach::{Setup, with_attached};
use crate::blocked::{Blocked, stubborn_server};
use crate::device::{Device, node, req, wait_idle};
use crate::modules::Driver;
use crate::mounted::{Mounted, mkfs_ext4};
use crate::process::{hold_open, wait_for};
use crate::puppet::Puppet;
use crate::server::{Command, Export, Server, Transport};
use crate::tests::clients::image;
use crate::tests::{Checks, Context, Test, ours_only};

pub const TESTS: &[Test] = &[
    Test::new("rnbdctl.status", "tells devices that are idle, attached and open, with either driver", status)
        .quick(),
    Test::new(
        "rnbdctl.status_incident",
        "tells what a client that died has left, and who keeps it",
        dead_client,
    ),
    Test::new("rnbdctl.status_setup", "tells a living owner's setup from an orphan", setup),
    Test::new(
        "rnbdctl.status_requests",
        "tells connections, requests without an answer, and draining",
        requests,
    ),
    Test::new(
        "rnbdctl.status_mounted",
        "names who keeps a device, and does not detach it under him",
        mounted,
    ),
];

fn of(index: &str) -> Result<Value> {
    json(&["status", index, "--json"])
}

fn status(context: &Context) -> Result<()> {
    let rnbd = context.driver == Driver::Rnbd;
    let mut checks = Checks::default();
    let all = json(&["status", "--json"])?;
    let names: Vec<&str> =
        all.as_array().into_iter().flatten().filter_map(|one| one["device"].as_str()).collect();
    checks.equal("all devices", names, vec!["/dev/nbd0", "/dev/nbd1"]);
    let before = of("nbd0")?;
    checks.equal("driver", &before["driver"], &json!(if rnbd { "rnbd" } else { "nbd.ko" }));
    checks.equal("state before", &before["state"], &json!("idle"));
    says(&diagnosis(&before), &["It is free: rnbdctl connect --device nbd0"])?;

    let server = Served::start(context, "socket")?;
    let _detached = Detached(0);
    ctl(&["connect", &server.socket, "--device", "nbd0"])?;
    let attached = of("/dev/nbd0")?;
    checks.equal("state attached", &attached["state"], &json!("running"));
    checks.equal("by netlink", &attached["by_netlink"], &json!(true));
    checks.equal("owner's life", &attached["owner"]["alive"], &json!(false));
    if rnbd {
        checks.equal("owner", &attached["owner"]["comm"], &json!("rnbdctl"));
        checks.equal("connections", &attached["connections"], &json!({"live": 1, "all": 1}));
        checks.equal("table", attached["connection_table"].as_array().map(Vec::len), Some(1));
        says(
            &diagnosis(&attached),
            &["by netlink", "which has ended since, as it may", "Its connection is live"],
        )?;
    }
    says(&ctl(&["status"])?, &["DEVICE", "nbd0    running", "4 MiB", "nbd1    idle"])?;
    says(&ctl(&["status", "0"])?, &["size", "4 MiB (4194304 bytes), in blocks of 512 bytes", "HAS_FLAGS"])?;
    ctl(&["disconnect", "nbd0"])?;

    let holder = hold_open(node(1))?;
    let held = of("nbd1")?;
    checks.equal("state open", &held["state"], &json!(if rnbd { "idle" } else { "held" }));
    checks.equal("who has it open", &held["openers"][0]["pid"], &json!(holder.pid()));
    let says_why =
        if rnbd { "that does not keep it from being attached" } else { "Device being setup by another task" };
    says(&diagnosis(&held), &[&format!("{} (", holder.pid()), says_why])?;
    drop(holder);
    checks.done()
}

fn dead_client(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let pid = client.pid();
    let attached = of("nbd0")?;
    let mut checks = Checks::default();
    checks.equal("its owner", &attached["owner"]["pid"], &json!(pid));
    checks.equal("its owner's life", &attached["owner"]["alive"], &json!(true));
    says(&diagnosis(&attached), &[&format!("It is attached, as long as {pid} (")])?;
    let holder = hold_open(node(0))?;
    client.kill()?;
    server.wait_closed()?;
    let keeps = format!("{} (", holder.pid());
    if context.driver == Driver::Nbd {
        let left = format!("process {pid}, which did that by ioctl, is gone");
        says(&diagnosis(&of("nbd0")?), &[&left, "fails with EBUSY", &keeps])?;
    } else {
        wait_for("the device to be idle", || of("nbd0").is_ok_and(|now| now["state"] == json!("idle")))?;
        says(&diagnosis(&of("nbd0")?), &["It is free", &keeps, "that does not keep it from being attached"])?;
    }
    drop(holder);
    checks.done()
}

fn setup(context: &Context) -> Result<()> {
    ours_only(context)?;
    let holder = hold_open(node(0))?;
    let server = Server::new(Export::memory(1 << 20)?);
    let socket = server.connect(Transport::Unix)?;
    let mut setter = Puppet::new(0, &[socket.as_raw_fd()])?;
    setter.set_up(socket.as_raw_fd(), 1 << 20)?.context("setup")?;
    drop(socket);
    let pid = setter.pid();
    let mut checks = Checks::default();
    let living = of("nbd0")?;
    checks.equal("state of a setup", &living["state"], &json!("setup"));
    checks.equal("its owner", &living["owner"], &json!({"pid": pid, "comm": Puppet::COMM, "alive": true}));
    says(&diagnosis(&living), &[&format!("{pid} ({}) is setting it up, with 1 socket", Puppet::COMM)])?;
    // The owner refuses us, in the kernel's words.
    let socket = Served::start(context, "socket")?;
    let connect = ["connect", &*socket.socket, "--device", "nbd0"];
    Run::with(&connect)?
        .refused(1, &["cannot attach nbd0", &format!("being set up by pid {pid} ("), "EBUSY"])?;

    // It shares the open file, so that the setup stays.
    let child = setter.fork()?;
    setter.kill()?;
    let orphan = of("nbd0")?;
    checks.equal("state of an orphan", &orphan["state"], &json!("setup"));
    checks.equal("its owner's life", &orphan["owner"]["alive"], &json!(false));
    says(&diagnosis(&orphan), &["an orphan", "It refuses nobody", "Attach it anew"])?;
    let _detached = Detached(0);
    ctl(&connect)?;
    checks.equal("state after", &of("nbd0")?["state"], &json!("running"));
    ctl(&["disconnect", "nbd0"])?;

    // A living owner's setup is dropped on demand.
    drop(child);
    let socket = server.connect(Transport::Unix)?;
    let mut setter = Puppet::new(0, &[socket.as_raw_fd()])?;
    setter.set_up(socket.as_raw_fd(), 1 << 20)?.context("setup")?;
    drop(socket);
    ctl(&["disconnect", "nbd0"])?;
    checks.equal("state of a setup that was dropped", &of("nbd0")?["state"], &json!("idle"));
    drop((setter, holder));
    checks.done()
}

fn requests(context: &Context) -> Result<()> {
    ours_only(context)?;
    let server = stubborn_server()?;
    let device = Device::open(0)?;
    let setup = Setup::for_server(&server).connections(3).transport(Transport::Tcp4);
    let attachment = setup.attach(&device, &server)?;
    let read = Blocked::read(&server)?;
    let mut checks = Checks::default();
    let running = of("nbd0")?;
    checks.equal("state", &running["state"], &json!("running"));
    checks.equal("by netlink", &running["by_netlink"], &json!(false));
    checks.equal("owner", &running["owner"]["pid"], &json!(std::process::id()));
    checks.equal("connections", &running["connections"], &json!({"live": 3, "all": 3}));
    checks.equal("table", running["connection_table"].as_array().map(Vec::len), Some(3));
    checks.that("requests are counted", running["requests"].as_u64() > Some(0));
    checks.that("the oldest has an age", running["oldest_request_ms"].is_u64());
    says(&diagnosis(&running), &["as long as", "All 3 connections are live"])?;
    says(&ctl(&["status", "nbd0"])?, &["127.0.0.1:", "read", "open in"])?;
    // One without requests.
    let busy = server.seen_of(Command::Read).last().map_or(0, |read| read.connection);
    server.close_one((busy + 1) % 3);
    let mut dead = Value::Null;
    wait_for("a connection to be told dead", || {
        dead = of("nbd0").unwrap_or_default();
        dead["connections"]["live"] == json!(2)
    })?;
    let words =
        ["1 of 3 connections is dead (the server closed it)", "The last thing that went wrong: generation"];
    says(&diagnosis(&dead), &words)?;
    // The server has some seconds to answer what it was asked.
    device.ioctl(req::DISCONNECT, 0)?;
    let draining = of("nbd0")?;
    checks.equal("state after NBD_DISCONNECT", &draining["state"], &json!("draining"));
    says(&diagnosis(&draining), &["It is being detached", "this ends by itself"])?;
    checks.equal("NBD_DO_IT", attachment.ended()?, Ok(0));
    read.fails("NBD_DISCONNECT")?;
    drop(device);
    wait_idle(0)?;
    checks.done()
}

fn mounted(context: &Context) -> Result<()> {
    let image = image(context, "disk", 32 << 20)?;
    let server = Served::of(&image, context, "socket")?;
    let _detached = Detached(0);
    let connect = ["connect", &*server.socket, "--device", "nbd0"];
    ctl(&connect)?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    let at = context.scratch_file("mnt");
    let used = format!("ext4 of /dev/nbd0, mounted at {at}");
    says(&diagnosis(&of("nbd0")?), &[&format!("In use by {used}")])?;
    let refused = Run::with(&["disconnect", "nbd0"])?;
    refused.refused(1, &["nbd0 is in use", &used, &format!("first: umount {at}"), "--force"])?;
    if context.driver == Driver::Nbd {
        // It keeps what was detached as long as the mount is there, and says no more of it.
        mounted.unmount()?;
        return ctl(&["disconnect", "nbd0"]).map(drop);
    }
    says(&ctl(&["disconnect", "--force", "nbd0"])?, &["nbd0: detached"])?;
    let left = of("nbd0")?;
    let mut checks = Checks::default();
    checks.equal("state detached", &left["state"], &json!("idle"));
    says(
        &diagnosis(&left),
        &["still used since the last attachment", &used, &format!("umount {at}; then it is free")],
    )?;
    // The kernel's own words, as far as it has room for them.
    Run::with(&connect)?
        .refused(1, &["cannot attach nbd0", "used by a mounted filesystem", "unmount or", "EBUSY"])?;
    drop(mounted);
    wait_for("the filesystem to be gone", || {
        of("nbd0").is_ok_and(|now| diagnosis(&now).contains("It is free"))
    })?;
    ctl(&connect)?;
    ctl(&["disconnect", "nbd0"])?;
    checks.done()?;
    // By somebody else it can be attached as well.
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server), |_| Ok(()))
}
