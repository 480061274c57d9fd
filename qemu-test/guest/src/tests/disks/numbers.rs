// SPDX-License-Identifier: GPL-2.0
//! Disks that nobody reaches by a number any more, but somebody has still open: the module stays for them, and their
//! number is free.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;

use super::image::{Image, dies};
use crate::device::{Device, capacity, node, open_direct, read_direct, wait_idle};
use crate::netlink::Client;
use crate::process::wait_for;
use crate::server::Transport;
use crate::tests::netlink::attached::{Attached, client_flag, client_flags, connect_sockets, sockets};
use crate::tests::netlink::destroy::wait_gone;
use crate::tests::teardown::EBUSY_FOR_EVER;
use crate::tests::{Checks, Context, Test, loadable};

const EBUSY_WHILE_OPEN: &str = "EBUSY for as long as anybody has it open";

pub const TESTS: &[Test] = &[
    Test::new(
        "disks.module",
        "the module stays as long as somebody has an old disk open, and then goes",
        module,
    )
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("disks.many_old", "one number has 50 old disks that are open, and works", many)
        .limit(150)
        .known_on_nbd(EBUSY_WHILE_OPEN),
    Test::new(
        "disks.made",
        "so does a number that was made, whether it goes with its attachment or not",
        made,
    )
    .known_on_nbd(EBUSY_WHILE_OPEN),
    Test::new("disks.two_connects", "of two CONNECTs at once, under a holder, one wins: 50 times", two)
        .limit(150)
        .known_on_nbd(EBUSY_WHILE_OPEN),
    Test::new("disks.two_clients", "of two processes that set up at once, under a holder, one wins", clients)
        .known_on_nbd(EBUSY_WHILE_OPEN),
];

/// What is read by an old open is not of this image.
fn cut_off(b: &Image, old: &Device, checks: &mut Checks) {
    let mut data = vec![0; 4096];
    let read = old.file().read_exact_at(&mut data, 0).map(|()| data);
    b.not_in("a read by an old open", read, checks);
}

fn module(context: &Context) -> Result<()> {
    loadable(context)?;
    let a = Image::new(0xa)?;
    let mut client = a.attach()?;
    let corpse = Device::open(0)?;
    dies(&a, &mut client)?;
    let b = Image::new(0xb)?;
    let mut client = b.attach()?;
    drop(Device::open(0)?);
    client.kill()?;
    b.server.wait_closed()?;
    wait_idle(0)?;
    // The disk that goes by the number now is nobody's.
    let removed = context.driver.remove();
    let busy = matches!(removed, Err(Errno::EWOULDBLOCK | Errno::EBUSY));
    ensure!(busy, "rmmod while an old disk is open gave {removed:?}");
    let mut checks = Checks::default();
    cut_off(&b, &corpse, &mut checks);
    let size = corpse.size();
    println!("the old disk has {size:?} bytes");
    drop(corpse);
    wait_for("the driver to be unloaded when it is closed", || context.driver.remove().is_ok())?;
    let left = crate::modules::leftovers();
    checks.that(&format!("left: {left:?}"), left.is_empty());
    context.driver.load(&context.modules, "nbds_max=2").context("afterwards")?;
    checks.done()
}

fn many(context: &Context) -> Result<()> {
    let mut olds: Vec<(u64, Device)> = Vec::new();
    let mut checks = Checks::default();
    for round in 1..=context.rounds(50, 10) as u64 {
        let image = Image::sized(round, 1 << 20, |_| crate::server::Action::Serve)?;
        let attached = Attached::new(&image.server, 1, &[]).with_context(|| format!("round {round}"))?;
        let opener = Device::open(0)?;
        let mut data = vec![0; 4096];
        opener.file().read_exact_at(&mut data, 0)?;
        olds.push((round, opener));
        for (name, old) in olds.iter().rev().skip(1).take(3) {
            let mut data = vec![0; 4096];
            let read = old.file().read_exact_at(&mut data, 8192).map(|()| data);
            if let Ok(data) = read {
                let seen = super::image::names(&data);
                ensure!(!seen.contains(&round), "who has opened image {name} reads of images {seen:?}");
            }
        }
        attached.disconnect()?;
        image.server.wait_closed()?;
        checks.also(image.untouched());
    }
    drop(olds);
    wait_idle(0)?;
    crate::attach::attaches_again()?;
    checks.done()
}

fn made(_: &Context) -> Result<()> {
    const NEW: u32 = 5;
    let client = Client::open()?;
    let mut checks = Checks::default();
    for flags in [0, client_flag::DESTROY_ON_DISCONNECT] {
        let mut holders = Vec::new();
        for name in 1..=3 {
            let image = Image::sized(name, 1 << 20, |_| crate::server::Action::Serve)?;
            let what = || format!("image {name}, flags {flags}");
            let attached = Attached::by(NEW, &image.server, 1, &[client_flags(flags)]).with_context(what)?;
            ensure!(capacity(NEW) == 1 << 20, "{}: the capacity is {}", what(), capacity(NEW));
            for old in &holders {
                cut_off(&image, old, &mut checks);
            }
            let holder = Device::open(NEW)?;
            image.reads(node(NEW)).with_context(what)?;
            let data = read_direct(&open_direct(node(NEW))?, 0, 4096).with_context(what)?;
            ensure!(super::image::names(&data) == [name].into(), "{}: other data", what());
            holders.push(holder);
            attached.disconnect()?;
            image.server.wait_closed()?;
            checks.also(image.untouched());
        }
        if flags != 0 {
            wait_gone(&client, NEW)?;
        }
    }
    checks.done()
}

fn two(context: &Context) -> Result<()> {
    for round in 0..context.rounds(50, 10) as u64 {
        let a = Image::sized(3 * round, 1 << 20, |_| crate::server::Action::Serve)?;
        let attached = Attached::new(&a.server, 1, &[])?;
        let holder = Device::open(0)?;
        attached.disconnect()?;
        a.server.wait_closed()?;
        let images =
            [1, 2].map(|more| Image::sized(3 * round + more, 1 << 20, |_| crate::server::Action::Serve));
        let images =
            [images[0].as_ref(), images[1].as_ref()].map(|image| image.map_err(|error| anyhow!("{error}")));
        let [one, other] = images;
        let images = [one?, other?];
        let barrier = Barrier::new(2);
        let compete = |image: &Image| -> Result<_> {
            let (client, offered) = (Client::open()?, sockets(&image.server, 1)?);
            barrier.wait();
            connect_sockets(&client, Some(0), 1 << 20, &offered, &[])
        };
        let answers = std::thread::scope(|scope| {
            let first = scope.spawn(|| compete(images[0]));
            let second = scope.spawn(|| compete(images[1]));
            [first.join(), second.join()]
        });
        let mut winner = None;
        for (answer, image) in answers.into_iter().zip(images) {
            match answer.map_err(|_| anyhow!("a task panicked"))?.context("CONNECT")? {
                Ok(index) => {
                    ensure!(index == 0 && winner.is_none(), "round {round}: both were attached");
                    winner = Some(image);
                }
                Err(refusal) => {
                    ensure!(refusal.errno == Errno::EBUSY, "round {round}: refused with {refusal:?}");
                }
            }
        }
        let winner = winner.with_context(|| format!("round {round}: neither was attached"))?;
        winner.reads("/dev/nbd0").with_context(|| format!("round {round}"))?;
        let mut checks = Checks::default();
        cut_off(winner, &holder, &mut checks);
        let client = Client::open()?;
        client.disconnect(0)?.map_err(|refusal| anyhow!("DISCONNECT: {refusal:?}"))?;
        for image in images {
            image.server.wait_closed()?;
            checks.also(image.untouched());
        }
        checks.done().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn clients(context: &Context) -> Result<()> {
    use crate::puppet::Puppet;
    for round in 0..context.rounds(10, 3) as u64 {
        let a = Image::sized(3 * round, 1 << 20, |_| crate::server::Action::Serve)?;
        let mut client = a.attach()?;
        let holder = Device::open(0)?;
        dies(&a, &mut client)?;
        let image = Image::sized(3 * round + 1, 1 << 20, |_| crate::server::Action::Serve)?;
        let offered = [image.server.connect(Transport::Unix)?, image.server.connect(Transport::Unix)?];
        let fds = offered.each_ref().map(AsRawFd::as_raw_fd);
        let (mut first, mut second) = (Puppet::new(0, &fds)?, Puppet::new(0, &fds)?);
        first.begin(crate::device::req::SET_SOCK, fds[0] as u64)?;
        second.begin(crate::device::req::SET_SOCK, fds[1] as u64)?;
        let answers = [first.finish()?, second.finish()?];
        let won: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        ensure!(won[0] != won[1], "round {round}: they got {answers:?}");
        let loser = if won[0] { answers[1] } else { answers[0] };
        ensure!(loser == Err(Errno::EBUSY), "round {round}: the other one got {loser:?}");
        drop(offered);
        drop((first, second, holder));
        image.server.wait_closed()?;
        image.untouched()?;
    }
    crate::attach::attaches_again()
}
