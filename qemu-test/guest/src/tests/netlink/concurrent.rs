// SPDX-License-Identifier: GPL-2.0
//! Several at once: CONNECTs that want the same, and everything against everything.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use netlink_packet_core::DefaultNla;
use nix::errno::Errno;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::attached::{client_flag, client_flags, fds, sockets, speaks};
use super::destroy::wait_gone;
use super::ok;
use crate::attach::attaches_again;
use crate::device::{Device, flag, node, open_direct, read_direct, req, round_trip, wait_idle};
use crate::modules::Driver;
use crate::netlink::{Answer, Client, Status, attr, attr_flag, attr_u64};
use crate::process::{Child, fork_child, wait_for};
use crate::server::{Command, Export, Server};
use crate::tests::race::{end, nobody_is_stuck};
use crate::tests::{Context, Test, seed};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.connect_same",
        "of two CONNECTs of one device at once one wins, 20 times",
        |context| same(context, 0, &[]),
    ),
    Test::new(
        "netlink.connect_same_new",
        "of two CONNECTs that make one device at once one wins, 20 times",
        |context| same(context, 5, &[client_flags(client_flag::DESTROY_ON_DISCONNECT)]),
    ),
    Test::new("netlink.connect_any", "two CONNECTs of any device at once get one each, 20 times", any),
    Test::new(
        "netlink.race",
        "8 tasks attach, change and detach one device by ioctl and netlink for 20 s, and it settles",
        race,
    )
    .limit(150)
    .known_on_nbd("two starts at once both begin, or a partition scan waits for a dead connection for ever"),
];

const SIZE: u64 = 1 << 20;

/// One of several CONNECTs: its answer, and its sockets, which it holds on to.
type Attempt = (Answer<u32>, Vec<OwnedFd>);

/// As many CONNECTs as there are servers, let go at the same moment.
fn at_once(index: Option<u32>, servers: &[Server; 2], options: &[DefaultNla]) -> Result<Vec<Attempt>> {
    let barrier = Barrier::new(servers.len());
    let attempt = |server: &Server| -> Result<Attempt> {
        let client = Client::open()?;
        let sockets = sockets(server, 1)?;
        barrier.wait();
        let answer = client.connect(index, SIZE, &fds(&sockets), options)?;
        Ok((answer, sockets))
    };
    std::thread::scope(|scope| {
        let attempts = servers.each_ref().map(|server| scope.spawn(|| attempt(server)));
        attempts.into_iter().map(|one| one.join().map_err(|_| anyhow!("a task panicked"))?).collect()
    })
}

/// Whether STATUS tells of no device in use.
fn is_free(answer: Answer<Vec<Status>>) -> bool {
    answer.is_ok_and(|all| all.iter().all(|device| device.connected == 0))
}

fn servers() -> Result<[Server; 2]> {
    Ok([Server::new(Export::memory(SIZE)?), Server::new(Export::memory(SIZE)?)])
}

fn same(context: &Context, index: u32, options: &[DefaultNla]) -> Result<()> {
    let client = Client::open()?;
    let servers = servers()?;
    let mut wins = [0, 0];
    for round in 0..context.rounds(20, 5) {
        let exists = node(index).exists();
        let attempts = at_once(Some(index), &servers, options)?;
        let won: Vec<usize> = (0..2).filter(|one| attempts[*one].0.is_ok()).collect();
        ensure!(won.len() == 1, "round {round}: {:?}", attempts.iter().map(|one| &one.0).collect::<Vec<_>>());
        let (winner, loser) = (won[0], 1 - won[0]);
        wins[winner] += 1;
        let refusal = attempts[loser].0.clone().err().context("both won")?;
        // While a device is half made nbd.ko says EEXIST or EINVAL.
        let half_made = context.driver == Driver::Nbd
            && !exists
            && matches!(refusal.errno, Errno::EEXIST | Errno::EINVAL);
        ensure!(refusal.errno == Errno::EBUSY || half_made, "round {round}: the loser got {refusal:?}");
        speaks(&attempts[loser].1[0]).with_context(|| format!("round {round}: the loser's socket"))?;
        drop(attempts);
        servers[loser].wait_closed()?;
        servers[winner].forget();
        round_trip(&open_direct(node(index))?, 0, &[round as u8; 4096])?;
        ensure!(servers[winner].seen_of(Command::Write).len() == 1, "round {round}: a write went elsewhere");
        ok(client.disconnect(index)?)?;
        wait_idle(index)?;
        // nbd.ko takes its time to let go of a device.
        if exists {
            wait_for("the device to be free", || client.status(Some(index)).is_ok_and(is_free))?;
        } else {
            wait_gone(&client, index)?;
        }
        servers[winner].wait_closed()?;
    }
    println!("won: {wins:?}");
    Ok(())
}

fn any(context: &Context) -> Result<()> {
    let client = Client::open()?;
    let servers = servers()?;
    for round in 0..context.rounds(20, 5) {
        let attempts = at_once(None, &servers, &[])?;
        let mut taken = Vec::new();
        for (one, (answer, _)) in attempts.iter().enumerate() {
            let index = ok(answer.clone()).with_context(|| format!("round {round}"))?;
            servers[one].forget();
            round_trip(&open_direct(node(index))?, 0, &[one as u8; 4096])?;
            ensure!(
                servers[one].seen_of(Command::Write).len() == 1,
                "round {round}: device {index} is not the caller's"
            );
            taken.push(index);
        }
        taken.sort_unstable();
        ensure!(taken == [0, 1], "round {round}: devices {taken:?} were attached");
        drop(attempts);
        for index in taken {
            ok(client.disconnect(index)?)?;
            wait_idle(index)?;
        }
        servers.iter().try_for_each(Server::wait_closed)?;
    }
    Ok(())
}

/// What a task of the race does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Connect,
    Disconnect,
    Offer,
    Resize,
    Status,
    IoctlSetUp,
    IoctlStart,
    IoctlDisconnect,
    IoctlClear,
    Read,
}

const STEPS: [Step; 14] = [
    Step::Connect,
    Step::Connect,
    Step::Connect,
    Step::Disconnect,
    Step::Offer,
    Step::Offer,
    Step::Resize,
    Step::Status,
    Step::IoctlSetUp,
    Step::IoctlStart,
    Step::IoctlDisconnect,
    Step::IoctlClear,
    Step::Read,
    Step::Read,
];

/// A task of the race, until it is killed. Refusals are its daily bread; that netlink does not answer is not.
fn task(seed: u64, socket: &PathBuf) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let client = Client::open()?;
    loop {
        let step = *STEPS.choose(&mut rng).unwrap_or(&Step::Status);
        let count = rng.random_range(1..=2);
        let offer: Vec<OwnedFd> = (0..count)
            .map(|_| UnixStream::connect(socket).map(OwnedFd::from))
            .collect::<std::io::Result<_>>()
            .context("connect to the server")?;
        let size = rng.random_range(1..=SIZE / 4096) * 4096;
        let granted = match step {
            Step::Connect => {
                let mut options = vec![attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN)];
                if rng.random_bool(0.3) {
                    options.push(client_flags(client_flag::DISCONNECT_ON_CLOSE));
                }
                client.connect(Some(0), size, &fds(&offer), &options)?.is_ok()
            }
            Step::Disconnect => client.disconnect(0)?.is_ok(),
            Step::Offer => {
                let handover = if rng.random_bool(0.5) { vec![attr_flag(attr::HANDOVER)] } else { vec![] };
                client.reconfigure(0, &fds(&offer), &handover)?.is_ok()
            }
            Step::Resize => client.reconfigure(0, &[], &[attr_u64(attr::SIZE_BYTES, size)])?.is_ok(),
            Step::Status => client.status(None)?.is_ok(),
            Step::IoctlSetUp => {
                let device = Device::open_in_turn(0)?;
                device.ioctl(req::SET_SOCK, fds(&offer)[0] as u64).is_ok()
                    && device.ioctl(req::SET_SIZE, size).is_ok()
                    && device.ioctl(req::DO_IT, 0).is_ok()
            }
            Step::IoctlStart => Device::open_in_turn(0)?.ioctl(req::DO_IT, 0).is_ok(),
            Step::IoctlDisconnect => Device::open_in_turn(0)?.ioctl(req::DISCONNECT, 0).is_ok(),
            Step::IoctlClear => Device::open_in_turn(0)?.ioctl(req::CLEAR_SOCK, 0).is_ok(),
            Step::Read => open_direct("/dev/nbd0").is_ok_and(|direct| {
                let offset = rng.random_range(0..SIZE / 4096) * 4096;
                read_direct(&direct, offset, 4096).is_ok()
            }),
        };
        if !granted {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..500)));
        }
    }
}

fn race(context: &Context) -> Result<()> {
    const TASKS: usize = 8;
    let mut rng = SmallRng::seed_from_u64(seed()?);
    let server = Server::new(Export::memory(SIZE)?);
    let socket = context.scratch.join("server");
    server.listen_unix(&socket)?;
    let length = Duration::from_secs(context.rounds(20, 5) as u64);
    let start = Instant::now();
    let mut number = 0;
    let mut ends = BTreeMap::<String, usize>::new();
    let mut tasks: Vec<Child> = Vec::new();
    while start.elapsed() < length {
        while tasks.len() < TASKS {
            let seed = rng.random::<u64>();
            tasks.push(fork_child(&[], |_| task(seed, &socket))?);
            number += 1;
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(1..80)));
        let mut victim = tasks.swap_remove(rng.random_range(0..tasks.len()));
        if victim.ended() {
            // It has met what it should not: it says so.
            victim.success()?;
            *ends.entry("by itself".to_owned()).or_default() += 1;
        } else if rng.random_bool(0.4) {
            end(victim)?;
        } else {
            tasks.push(victim);
        }
    }
    for mut task in tasks.drain(..) {
        if task.ended() {
            task.success()?;
        }
        end(task)?;
    }
    let (offered, reads) = (server.accepted(), server.seen_of(Command::Read).len());
    println!("{number} tasks, {offered} sockets, {reads} reads, ended {ends:?}");
    let client = Client::open()?;
    ok(client.disconnect(0)?)?;
    wait_for("all sockets to be released", || server.open_connections() == 0)
        .with_context(|| format!("{} of {offered} are held", server.open_connections()))?;
    wait_idle(0)?;
    let again = ok(client.connect(Some(0), SIZE, &fds(&sockets(&server, 1)?), &[])?)?;
    round_trip(&open_direct(node(again))?, 0, &[1; 4096])?;
    ok(client.disconnect(0)?)?;
    wait_idle(0)?;
    attaches_again()?;
    nobody_is_stuck()?;
    ensure!(reads > 0, "no task has ever attached it and read from it");
    Ok(())
}
