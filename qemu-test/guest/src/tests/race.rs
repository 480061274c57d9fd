// SPDX-License-Identifier: GPL-2.0
//! Many tasks that set up, tear down, open, close and die at once, in an order that nobody chose. What counts is
//! that it settles. These come late: where a driver has a task that cannot be killed, nothing can come after in the
//! same boot.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{Context, Test, seed};
use crate::attach::{Setup, attaches_again};
use crate::device::{Device, flag, open_direct, read_direct, req, wait_idle};
use crate::modules::Driver;
use crate::process::{Child, describe_task, fork_child, handle, processes, wait_for};
use crate::server::{Command, Export, Server};

pub const TESTS: &[Test] = &[
    Test::new(
        "race.disconnect",
        "NBD_DISCONNECT at random moments after connect, 200 times: no client hangs",
        disconnect,
    )
    .incident()
    .limit(240),
    Test::new(
        "race.control",
        "8 tasks set up, start, stop, open, close, read and are killed for 30 s, and it settles",
        control,
    )
    .incident()
    .quick()
    .limit(150)
    .known_on_nbd("it sticks at EBUSY while tasks hold it open, and nobody gets it attached"),
];

const SIZE: u64 = 1 << 20;
const TASKS: u64 = 8;

fn disconnect(context: &Context) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed()?);
    let server = Server::new(Export::memory(SIZE)?);
    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    for round in 0..context.rounds(200, 20) {
        let setup = Setup::for_server(&server).connections(rng.random_range(1..=2));
        // It has set up when this returns, and starts at this moment.
        let mut client = setup.spawn(0, None, &server)?;
        let pause = rng.random_range(0..20_000);
        std::thread::sleep(Duration::from_micros(pause));
        Device::open_in_turn(0)?.ioctl(req::DISCONNECT, 0).context("NBD_DISCONNECT")?;
        let status = client
            .wait()
            .with_context(|| format!("round {round}: the client, after a disconnect at {pause} us"))?;
        *ends.entry(format!("{status:?}").replace(&client.pid().to_string(), "client")).or_default() += 1;
        server.wait_closed().with_context(|| format!("round {round}"))?;
        wait_idle(0).with_context(|| format!("round {round}"))?;
        attaches_again().with_context(|| format!("round {round}, after a disconnect at {pause} us"))?;
    }
    println!("clients ended as {ends:?}");
    Ok(())
}

/// What a task of the race does at a time.
#[derive(Clone, Copy)]
enum Step {
    Open,
    Close,
    Socket,
    Size,
    Start,
    Disconnect,
    Clear,
    Read,
}

const STEPS: [Step; 10] = [
    Step::Open,
    Step::Close,
    Step::Socket,
    Step::Socket,
    Step::Size,
    Step::Start,
    Step::Start,
    Step::Disconnect,
    Step::Clear,
    Step::Read,
];

/// A task of the race, until it is killed. Errors are its daily bread.
fn task(seed: u64, socket: &PathBuf) -> Result<()> {
    handle(Signal::SIGUSR1, SaFlags::empty())?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut device = Device::open_in_turn(0)?;
    loop {
        let answer = match STEPS.choose(&mut rng).unwrap_or(&Step::Open) {
            Step::Open => {
                let other = Device::open_in_turn(0);
                other.map(|other| drop(std::mem::replace(&mut device, other))).map_err(|_| Errno::EIO)
            }
            Step::Close => {
                drop(device);
                std::thread::sleep(Duration::from_micros(rng.random_range(0..2000)));
                device = Device::open_in_turn(0)?;
                Ok(())
            }
            Step::Socket => match UnixStream::connect(socket) {
                Ok(stream) => device.ioctl(req::SET_SOCK, stream.as_raw_fd() as u64).map(drop),
                Err(_) => Err(Errno::ECONNREFUSED),
            },
            Step::Size => device.ioctl(req::SET_SIZE, rng.random_range(1..=SIZE / 512) * 512).map(drop),
            Step::Start => {
                let flags = flag::HAS_FLAGS | flag::CAN_MULTI_CONN;
                let _ = device.ioctl(req::SET_FLAGS, flags);
                device.ioctl(req::DO_IT, 0).map(drop)
            }
            Step::Disconnect => device.ioctl(req::DISCONNECT, 0).map(drop),
            Step::Clear => device.ioctl(req::CLEAR_SOCK, 0).map(drop),
            Step::Read => {
                let offset = rng.random_range(0..SIZE / 4096) * 4096;
                let read = open_direct("/dev/nbd0").map(|direct| read_direct(&direct, offset, 4096));
                read.map(drop).map_err(|_| Errno::EIO)
            }
        };
        if answer.is_err() {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..500)));
        }
    }
}

/// A killed task must die.
pub fn end(mut child: Child) -> Result<()> {
    let pid = child.pid();
    child.kill().with_context(|| format!("a killed task stays:\n{}", describe_task(pid)))
}

pub fn nobody_is_stuck() -> Result<()> {
    let mut stuck = Vec::new();
    wait_for("no task to be in an uninterruptible sleep", || {
        stuck = processes().into_iter().filter(|process| process.3 == 'D').map(|process| process.0).collect();
        stuck.is_empty()
    })
    .with_context(|| stuck.iter().map(|pid| describe_task(*pid)).collect::<Vec<_>>().join("\n"))
}

fn control(context: &Context) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed()?);
    let server = Server::new(Export::memory(SIZE)?);
    let socket = context.scratch.join("server");
    server.listen_unix(&socket)?;
    let length = Duration::from_secs(context.seconds(30, 5));
    let start = Instant::now();
    let mut number = 0;
    let mut tasks: Vec<Child> = Vec::new();
    // On a slow machine it may take longer until one gets that far. nbd.ko is known to stick.
    let longest = if context.driver == Driver::Rnbd { 10 * length } else { length };
    let goes_on =
        |elapsed| elapsed < length || (elapsed < longest && server.seen_of(Command::Read).is_empty());
    while goes_on(start.elapsed()) {
        while (tasks.len() as u64) < TASKS {
            let seed = rng.random::<u64>();
            tasks.push(fork_child(&[], |_| task(seed, &socket))?);
            number += 1;
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(1..40)));
        let victim = rng.random_range(0..tasks.len());
        if rng.random_bool(0.4) {
            end(tasks.swap_remove(victim))?;
        } else {
            kill(Pid::from_raw(tasks[victim].pid()), Signal::SIGUSR1)?;
        }
    }
    for task in tasks.drain(..) {
        end(task)?;
    }
    let (sockets, reads) = (server.accepted(), server.seen_of(Command::Read).len());
    println!("{number} tasks, {sockets} sockets, {reads} reads");
    wait_for("all sockets to be released", || server.open_connections() == 0)
        .with_context(|| format!("{} of {sockets} are held", server.open_connections()))?;
    wait_idle(0)?;
    attaches_again()?;
    nobody_is_stuck()?;
    ensure!(reads > 0, "no task has ever attached it and read from it");
    Ok(())
}
