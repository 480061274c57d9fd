// SPDX-License-Identifier: GPL-2.0
//! `reconfigure` and `handover`, between processes of qemu-nbd on one image.

use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Detached, Run, SIZE, Served, ctl, diagnosis, json, says};
use crate::device::{capacity, open_direct, read_direct, round_trip};
use crate::modules::Driver;
use crate::netlink::{Listener, command};
use crate::process::{PATIENCE, wait_for};
use crate::tests::clients::image;
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new(
        "rnbdctl.reconfigure",
        "a reader waits for a server that died, and gets on with another",
        reconfigure,
    ),
    Test::new("rnbdctl.resize", "another size is taken on demand alone", resize),
    Test::new(
        "rnbdctl.handover",
        "30 handovers to another server under load, or a word that it cannot be",
        handover,
    )
    .limit(150),
];

/// Waits until the driver has told of so many deaths.
fn deaths(listener: &Listener, count: usize) -> Result<()> {
    for _ in 0..count {
        let message = listener.next(*PATIENCE)?;
        ensure!(message.is_some_and(|message| message.command == command::LINK_DEAD), "no death was told");
    }
    Ok(())
}

fn reconfigure(context: &Context) -> Result<()> {
    let rnbd = context.driver == Driver::Rnbd;
    let image = image(context, "disk", SIZE)?;
    let first = Served::of(&image, context, "first")?;
    let _detached = Detached(0);
    let listener = Listener::open()?;
    ctl(&["connect", &first.socket, "--device", "nbd0", "--connections", "2", "--dead-timeout", "600"])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 4096, &[0x77; 4096])?;
    if rnbd {
        let all_live = Run::with(&["reconfigure", "nbd0", &first.socket])?;
        all_live.refused(1, &["no connection of nbd0 is dead", "rnbdctl handover nbd0"])?;
    }
    drop(first);
    deaths(&listener, 2)?;
    let (sender, result) = channel();
    let reader = direct.try_clone()?;
    std::thread::spawn(move || sender.send(read_direct(&reader, 4096, 4096).map(|data| data.to_vec())));
    if rnbd {
        wait_for("the reader to be told waiting", || {
            json(&["status", "nbd0", "--json"]).is_ok_and(|status| {
                status["connections"] == json!({"live": 0, "all": 2}) && status["requests"].as_u64() > Some(0)
            })
        })?;
        let status = json(&["status", "nbd0", "--json"])?;
        let words = ["All 2 connections are dead", "for a new one", "rnbdctl reconfigure nbd0 SERVER"];
        says(&diagnosis(&status), &words)?;
    }
    ensure!(result.try_recv().is_err(), "the reader did not wait for a connection");
    let second = Served::of(&image, context, "second")?;
    let args = ["reconfigure", "nbd0", &*second.socket];
    if rnbd {
        says(&ctl(&args)?, &["nbd0: 2 of 2 sockets were taken"])?;
    } else {
        let told = ctl(&[&args[..], &["--connections", "2"]].concat())?;
        says(&told, &["nbd0: 2 offered; nbd.ko does not tell how many it took"])?;
    }
    let data = result.recv_timeout(*PATIENCE)??;
    ensure!(data == [0x77; 4096], "the reader has read something else");
    drop(direct);
    ctl(&["disconnect", "nbd0"]).map(drop)
}

fn resize(context: &Context) -> Result<()> {
    let small = image(context, "small", SIZE)?;
    let large = image(context, "large", 2 * SIZE)?;
    let first = Served::of(&small, context, "first")?;
    let second = Served::of(&large, context, "second")?;
    let _detached = Detached(0);
    let listener = Listener::open()?;
    ctl(&["connect", &first.socket, "--device", "nbd0", "--dead-timeout", "600"])?;
    drop(first);
    deaths(&listener, 1)?;
    let args = ["reconfigure", "nbd0", &*second.socket];
    Run::with(&args)?.refused(5, &["8388608 bytes, and nbd0 has 4194304", "--resize"])?;
    ctl(&[&args[..], &["--resize"]].concat())?;
    let mut checks = Checks::default();
    checks.equal("size", capacity(0), 2 * SIZE);
    checks.done()?;
    round_trip(&open_direct("/dev/nbd0")?, SIZE + 4096, &[0x11; 4096])?;
    ctl(&["disconnect", "nbd0"]).map(drop)
}

fn handover(context: &Context) -> Result<()> {
    let image = image(context, "disk", SIZE)?;
    let servers = [Served::of(&image, context, "first")?, Served::of(&image, context, "second")?];
    let _detached = Detached(0);
    ctl(&["connect", &servers[0].socket, "--device", "nbd0", "--connections", "2"])?;
    if context.driver == Driver::Nbd {
        let refused = Run::with(&["handover", "nbd0", &servers[1].socket])?;
        refused.refused(1, &["nbd.ko cannot hand live connections over", "rnbdctl reconfigure"])?;
        return ctl(&["disconnect", "nbd0"]).map(drop);
    }
    let direct = open_direct("/dev/nbd0")?;
    let (stop, stopped) = channel::<()>();
    let load = std::thread::spawn(move || -> Result<u64> {
        let mut rounds = 0_u64;
        while stopped.recv_timeout(Duration::ZERO) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            round_trip(&direct, rounds % 1024 * 4096, &[rounds as u8; 4096])?;
            rounds += 1;
        }
        Ok(rounds)
    });
    let handed = || -> Result<()> {
        for round in 0..context.rounds(30, 4) {
            let next = &servers[(round + 1) % 2];
            let told = json(&["handover", "nbd0", &next.socket, "--json"])?;
            let mut checks = Checks::default();
            checks.equal("told", told, json!({"index": 0, "offered": 2, "taken": 2}));
            checks.done()?;
        }
        Ok(())
    }();
    drop(stop);
    let rounds = load.join().map_err(|_| anyhow::anyhow!("the load died"))??;
    handed?;
    println!("{rounds} blocks were written and read meanwhile");
    // More than there are connections.
    let told = ctl(&["handover", "nbd0", &servers[1].socket, "--connections", "3"])?;
    says(&told, &["nbd0: 2 of 3 sockets were taken"])?;
    // The other one is not needed any more.
    let [first, second] = servers;
    drop(first);
    round_trip(&open_direct("/dev/nbd0")?, 0, &[0x99; 4096])?;
    drop(second);
    ctl(&["disconnect", "nbd0"]).map(drop)
}
