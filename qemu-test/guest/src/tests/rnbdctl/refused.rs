// SPDX-License-Identifier: GPL-2.0
//! What cannot be done is said with why, what to do, and an exit status of its own.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Detached, Run, Served, ctl, program, says};
use crate::modules::Driver;
use crate::tests::clients::{NbdServer, image};
use crate::tests::{Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("rnbdctl.refused", "a device in use, an impossible setting: in the kernel's words", driver),
    Test::new("rnbdctl.server_refused", "no server, no export, one connection alone: exit status 5", server)
        .limit(120),
    Test::new("rnbdctl.unprivileged", "anybody may ask, and root alone change: exit status 3", unprivileged),
    Test::new("rnbdctl.no_driver", "without a driver it says how to load one: exit status 4", no_driver)
        .unloaded(),
];

const NOBODY: u32 = 65534;

fn driver(context: &Context) -> Result<()> {
    let server = Served::start(context, "socket")?;
    let connect = ["connect", &*server.socket, "--device", "nbd0"];
    let _detached = Detached(0);
    ctl(&connect)?;
    let why: &[&str] = match context.driver {
        Driver::Rnbd => {
            &["cannot attach nbd0: in use, attached by pid", "(rnbdctl)", "disconnect it", "(EBUSY)"]
        }
        // Without words of its own, what is known of the device stands in.
        Driver::Nbd => {
            &["cannot attach nbd0: Device or resource busy (EBUSY)", "dmesg", "It is attached, by netlink"]
        }
    };
    Run::with(&connect)?.refused(1, why)?;
    ctl(&["disconnect", "nbd0"])?;
    let odd = [&connect[..], &["--block-size", "1000"]].concat();
    let why: &[&str] = match context.driver {
        Driver::Rnbd => &["block size 1000: must be a power of two", "EINVAL"],
        Driver::Nbd => &["EINVAL", "dmesg"],
    };
    let run = Run::with(&odd)?;
    // The export's end is no whole block of that size either, which is said first.
    run.refused(1, why)?;
    Run::with(&["reconfigure", "nbd0", &server.socket])?.refused(1, &["nbd0 is not attached"])?;
    Run::with(&["status", "nbd7"])?.refused(4, &["there is no nbd7"])?;
    Run::with(&["status", "sda"])?.refused(2, &["that is no nbd device"])
}

fn server(context: &Context) -> Result<()> {
    let image = image(context, "disk", super::SIZE)?;
    let server = NbdServer::start(context, &image)?;
    let [host, port, ..] = server.place();
    let address = format!("{host}:{port}");
    Run::with(&["connect", &address, "--export", "none", "--handshake-timeout", "600"])?
        .refused(5, &["export \"none\": it has no such export"])?;
    let alone = Served::to(1, &image, context, "socket")?;
    Run::with(&["connect", &alone.socket, "--connections", "2"])?
        .refused(5, &["NBD_FLAG_CAN_MULTI_CONN", "leave out --connections"])?;
    let free = TcpListener::bind("127.0.0.1:0")?;
    let nobody = free.local_addr()?.to_string();
    // It is listened to, and nothing is said.
    let silent = ["connect", &*nobody, "--handshake-timeout", "1"];
    Run::with(&silent)?.refused(5, &[&nobody, "it does not answer"])?;
    drop(free);
    Run::with(&["connect", &nobody])?.refused(5, &[&nobody, "it cannot be reached: Connection refused"])?;
    Run::with(&["connect", "/nonexistent"])?.refused(5, &["it cannot be reached: No such file or directory"])
}

fn unprivileged(context: &Context) -> Result<()> {
    let server = Served::start(context, "socket")?;
    let _detached = Detached(0);
    ctl(&["connect", &server.socket, "--device", "nbd0"])?;
    let as_nobody = |args: &[&str]| Run::of(Command::new(program()?).args(args).uid(NOBODY).gid(NOBODY));
    let all = as_nobody(&["status"])?;
    ensure!(all.code == Some(0), "nobody may not ask: {}", all.stderr);
    says(&all.stdout, &["nbd0    running", "4 MiB", "nbd1    idle"])?;
    let one = as_nobody(&["status", "nbd0"])?;
    ensure!(one.code == Some(0), "nobody may not ask: {}", one.stderr);
    says(
        &one.stdout,
        &["It is attached", "Not shown: tables of connections and requests: debugfs is root's alone"],
    )?;
    as_nobody(&["connect", &server.socket])?
        .refused(3, &["connect: this needs root (CAP_SYS_ADMIN)", "sudo"])?;
    as_nobody(&["disconnect", "nbd0"])?.refused(3, &["disconnect: this needs root"])?;
    as_nobody(&["reconfigure", "nbd0", "--timeout", "1"])?.refused(3, &["reconfigure: this needs root"])?;
    ctl(&["disconnect", "nbd0"]).map(drop)
}

fn no_driver(_: &Context) -> Result<()> {
    for args in
        [&["status"][..], &["status", "nbd0"], &["connect", "/tmp/socket"], &["disconnect", "0"], &["watch"]]
    {
        Run::with(args)?.refused(4, &["no nbd driver is loaded", "modprobe nbd", "insmod rnbd.ko"])?;
    }
    Ok(())
}
