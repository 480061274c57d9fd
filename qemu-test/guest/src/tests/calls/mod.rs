// SPDX-License-Identifier: GPL-2.0
//! ioctls and netlink commands at random, with values that make sense and values that do not, by tasks that are
//! interrupted and killed at random. Nobody may get stuck, those without the capability may get nothing, and in the end
//! the device works.

mod task;

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Context, Test, ours_only, seed, tried};
use crate::attach::attaches_again;
use crate::device::{Device, flag, open_direct, req, round_trip, wait_idle};
use crate::netlink::{Client, attr, attr_u64};
use crate::process::{Child, PATIENCE, describe_task, fork_child, processes, wait_for};
use crate::server::{Command, Export, Server, Transport};
use task::{Counters, Kind, Task};

pub const TESTS: &[Test] = &[Test::new(
    "calls.fuzz",
    "netlink commands and ioctls at random, by tasks that are killed at random",
    fuzz,
)
.quick()
.params("nbds_max=3")
.limit(200)];

const SIZE: u64 = 1 << 20;
const TASKS: usize = 6;

/// Detaches all that is attached. Opens nothing: that can wait for a server.
fn disconnect_all(client: &Client) -> Result<()> {
    let devices = client.status(None)?.map_err(|refusal| anyhow::anyhow!("STATUS: {refusal:?}"))?;
    for device in devices.iter().filter(|device| device.connected != 0) {
        // It may have gone by itself.
        let _ = client.disconnect(device.index)?;
    }
    Ok(())
}

/// A killed task must die, at the latest when the devices that it waits for are detached.
fn end(child: &mut Child, client: &Client) -> Result<()> {
    let pid = child.pid();
    ensure!(!child.ended(), "task {pid} ended by itself: {:?}", child.next_line());
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let start = Instant::now();
    let mut next = Duration::from_millis(50);
    while !child.ended() {
        if start.elapsed() > next {
            disconnect_all(client)?;
            next = start.elapsed() + Duration::from_millis(100);
        }
        ensure!(start.elapsed() < *PATIENCE, "a killed task stays:\n{}", describe_task(pid));
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn fuzz(context: &Context) -> Result<()> {
    ours_only(context)?;
    let seed = seed()?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let server = Server::new(Export::memory(SIZE)?);
    let path = context.scratch.join("server");
    server.listen_unix(&path)?;
    // Whoever connects here is taken and never answered.
    let silent = context.scratch.join("silent");
    let _silent = UnixListener::bind(&silent)?;
    // Tasks inherit that, and let it through when they have a handler.
    SigSet::from(Signal::SIGUSR1).thread_block()?;
    let client = Client::open()?;
    let counters = Counters::new()?;
    let length = Duration::from_secs(context.seconds(30, 5));
    let (start, mut number, mut reads) = (Instant::now(), 0, 0);
    let mut tasks: Vec<Child> = Vec::new();
    // On a slow machine it may take longer until anything is attached.
    while start.elapsed() < length || (reads == 0 && start.elapsed() < 2 * *PATIENCE) {
        while tasks.len() < TASKS {
            number += 1;
            let privileged = number % 5 != 0;
            let seed = seed.wrapping_add(number);
            tasks.push(fork_child(&[], |_| Task::new(seed, &path, &silent, privileged, &counters)?.run())?);
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(1..100)));
        let victim = rng.random_range(0..tasks.len());
        if rng.random_bool(0.3) {
            end(&mut tasks.swap_remove(victim), &client)?;
        } else {
            kill(Pid::from_raw(tasks[victim].pid()), Signal::SIGUSR1)?;
        }
        reads += server.seen_of(Command::Read).len();
        server.forget();
    }
    for task in &mut tasks {
        end(task, &client)?;
    }
    wait_for("all to be detached, and all sockets to be released", || {
        disconnect_all(&client).is_ok() && server.open_connections() == 0
    })
    .with_context(|| format!("{} of {} sockets are held", server.open_connections(), server.accepted()))?;
    let stuck = || processes().into_iter().filter(|process| process.3 == 'D').map(|process| process.0);
    wait_for("no task to be in an uninterruptible sleep", || stuck().next().is_none())
        .with_context(|| stuck().map(describe_task).collect::<Vec<_>>().join("\n"))?;
    println!("{number} tasks, {} sockets served, {reads} reads; {counters}", server.accepted());
    ensure!(reads > 0, "nothing was ever attached and read from");
    ensure!(counters.succeeded(Kind::Ioctl) > 0 && counters.succeeded(Kind::Netlink) > 0, "all calls failed");
    works(&client)?;
    tried(counters.made(Kind::Ioctl) + counters.made(Kind::Netlink), "calls at random");
    attaches_again()
}

/// Attaches device 0, which may have gone with a generation, by netlink.
fn works(client: &Client) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let socket = server.connect(Transport::Unix)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let flags = attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS);
    let connected = client.connect(Some(0), SIZE, &[fd], &[flags])?;
    ensure!(connected == Ok(0), "CONNECT after it all: {connected:?}");
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 0, &[0x77; 4096])?;
    drop(direct);
    let device = Device::open(0)?;
    device.ioctl(req::DISCONNECT, 0)?;
    drop(device);
    wait_idle(0)
}
