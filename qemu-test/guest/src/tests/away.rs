// SPDX-License-Identifier: GPL-2.0
//! A client in NBD_DO_IT that is stopped, traced or frozen: it has to leave the kernel for that, and nothing has ended.
//! And what comes of it if something ends meanwhile.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::end::handling_client;
use super::netlink::attached::Attached;
use super::{Context, Test, ours_only, skip};
use crate::attach::{Setup, attaches_again};
use crate::blocked::{Blocked, silent_server};
use crate::cgroup::Cgroup;
use crate::device::{Device, attached, open_direct, req, round_trip, sysfs, wait_attached, wait_idle};
use crate::process::{Child, fork_child, processes, wait_for};
use crate::server::{Server, Transport};

pub const ENDS_ON_NBD: &str = "the device is detached as soon as its client is stopped";

pub const TESTS: &[Test] = &[
    Test::new("away.stopped", "SIGSTOP and SIGCONT of the client leave all as it is", |_| {
        goes_on(stop, go_on)
    })
    .quick()
    .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.traced", "so does a tracer that attaches to it and lets it go", |_| {
        goes_on(|client| attach_tracer(client).map(drop), detach_tracer)
    })
    .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.traced_calls", "so does one that looks at all its calls, as strace does", traced_calls)
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.frozen", "so does the cgroup's freezer", frozen).known_on_nbd(ENDS_ON_NBD),
    Test::new("away.suspended", "so does suspending the machine, as far as its tasks", suspended),
    Test::new("away.often", "stopped and continued a hundred times under load", often)
        .known_on_nbd(ENDS_ON_NBD),
    Test::new(
        "away.server_dies",
        "the server dies meanwhile: it ends at once, and the client learns why",
        server_dies,
    )
    .known_on_nbd(ENDS_ON_NBD),
    Test::new(
        "away.disconnected",
        "it is disconnected, and another attaches, while the client is stopped",
        disconnected,
    )
    .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.disconnected_slowly", "a client that is stopped while the server still answers", slowly)
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.killed", "a client that is killed while it is stopped ends it", killed)
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.handled", "so does one that runs a handler when it goes on", |_| handled(Then::Sleep))
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.handled_spins", "also if it never sleeps after that", |_| handled(Then::Spin))
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.handled_naps", "or sleeps for a moment at a time", |_| handled(Then::Nap))
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.handled_clears", "or if it clears the device, as clients do", |_| handled(Then::Clear))
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.persists", "a client whose server dies while it is stopped comes back to it", persists)
        .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.taken", "its end is told to it also while the device is attached by netlink", taken)
        .known_on_nbd(ENDS_ON_NBD),
    Test::new(
        "away.dies_at_once",
        "who sees a stopped client dead can set the device up at once",
        dies_at_once,
    )
    .known_on_nbd(ENDS_ON_NBD),
    Test::new("away.rmmod", "the module stays while a client is stopped", rmmod).known_on_nbd(ENDS_ON_NBD),
];

pub fn pid(client: &Child) -> Pid {
    Pid::from_raw(client.pid())
}

fn state(client: &Child) -> char {
    let all = processes();
    all.iter().find(|process| process.0 == client.pid()).map_or('?', |process| process.3)
}

pub fn stop(client: &mut Child) -> Result<()> {
    kill(pid(client), Signal::SIGSTOP)?;
    wait_for("the client to stop", || state(client) == 'T')
}

fn go_on(client: &mut Child) -> Result<()> {
    kill(pid(client), Signal::SIGCONT)?;
    in_call(client)
}

/// The client is in NBD_DO_IT again.
fn in_call(client: &Child) -> Result<()> {
    let wchan = format!("/proc/{}/wchan", client.pid());
    wait_for("the client to be back in the call", || {
        state(client) == 'S' && std::fs::read_to_string(&wchan).is_ok_and(|name| name.trim() != "0")
    })
}

pub fn ptrace(request: libc::c_uint, task: i32) -> Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the requests used here take numbers alone.
    let done = unsafe { libc::ptrace(request, task, none, none) };
    Errno::result(done).map(drop).with_context(|| format!("ptrace request {request}"))
}

fn wait_traced(client: &Child) -> Result<()> {
    wait_for("the client to be stopped by its tracer", || state(client) == 't')
}

fn attach_tracer(client: &mut Child) -> Result<()> {
    ptrace(libc::PTRACE_ATTACH, client.pid())?;
    wait_traced(client)
}

fn detach_tracer(client: &mut Child) -> Result<()> {
    ptrace(libc::PTRACE_DETACH, client.pid())?;
    in_call(client)
}

/// The device does I/O by a fresh open.
pub fn serves(what: &str) -> Result<()> {
    round_trip(&open_direct("/dev/nbd0")?, 0, &[0x77; 8192]).with_context(|| what.to_owned())
}

/// NBD_DISCONNECT, after which the client must have ended with success.
fn disconnect(mut client: Child, server: &Server) -> Result<()> {
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.success()?;
    server.wait_closed()?;
    wait_idle(0)?;
    attaches_again()
}

/// The client is away and comes back: what is in flight stays so, I/O goes on, and it ends as it would have.
fn goes_on(
    leave: impl FnOnce(&mut Child) -> Result<()>,
    come_back: impl FnOnce(&mut Child) -> Result<()>,
) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let before = sysfs(0, "diskseq");
    let blocked = Blocked::read(&server)?;
    leave(&mut client)?;
    serves("while the client is away")?;
    ensure!(attached(0) && blocked.waits(), "it was detached");
    come_back(&mut client)?;
    serves("when the client is back")?;
    ensure!(attached(0) && blocked.waits(), "it was detached then");
    ensure!(sysfs(0, "diskseq") == before, "there is another medium");
    ensure!(server.accepted() == 1, "there was another connection");
    Device::open(0)?.ioctl(req::CLEAR_SOCK, 0)?;
    blocked.fails("NBD_CLEAR_SOCK")?;
    client.success()?;
    server.wait_closed()?;
    wait_idle(0)?;
    attaches_again()
}

fn traced_calls(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    attach_tracer(&mut client)?;
    let step = || ptrace(libc::PTRACE_SYSCALL, client.pid());
    // It has left the call that it was in, and makes it again.
    step()?;
    wait_traced(&client).context("at the entry of the call")?;
    serves("while the client is stopped before the call")?;
    step()?;
    in_call(&client)?;
    // A signal that would end it, which the tracer keeps.
    kill(pid(&client), Signal::SIGTERM)?;
    wait_traced(&client).context("at the exit of the call")?;
    serves("while the client is stopped behind the call")?;
    step()?;
    wait_traced(&client).context("at the signal")?;
    step()?;
    wait_traced(&client).context("at the entry of the call, again")?;
    serves("while the client is stopped before the call, again")?;
    ptrace(libc::PTRACE_DETACH, client.pid())?;
    in_call(&client)?;
    disconnect(client, &server)
}

fn frozen(context: &Context) -> Result<()> {
    let cgroup = Cgroup::new(context, "")?;
    goes_on(
        |client| {
            cgroup.add(client.pid())?;
            cgroup.freeze(true)
        },
        |client| {
            cgroup.freeze(false)?;
            in_call(client)
        },
    )
}

/// All tasks but the one that asks are frozen, as before the machine is suspended.
fn suspended(_: &Context) -> Result<()> {
    const SNAPSHOT_FREEZE: libc::Ioctl = 0x3301;
    const SNAPSHOT_UNFREEZE: libc::Ioctl = 0x3302;

    let snapshot = match std::fs::File::open("/dev/snapshot") {
        Ok(snapshot) => snapshot,
        Err(error) => return skip(format!("this kernel cannot be hibernated by user space: {error}")),
    };
    // SAFETY: the two take no argument.
    let ioctl = |cmd| Errno::result(unsafe { libc::ioctl(snapshot.as_raw_fd(), cmd, 0) });
    // Without a task in D, which the kernel would not suspend for.
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    for _ in 0..3 {
        ioctl(SNAPSHOT_FREEZE).context("freeze all tasks")?;
        ioctl(SNAPSHOT_UNFREEZE).context("let them go on")?;
        serves("when all go on")?;
    }
    ensure!(!client.ended() && server.accepted() == 1, "it was attached anew");
    disconnect(client, &server)
}

fn often(context: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    for round in 0..context.rounds(100, 10) {
        kill(pid(&client), Signal::SIGSTOP)?;
        // In any state.
        if round % 3 == 0 {
            serves("while the client may be stopped")?;
        }
        kill(pid(&client), Signal::SIGCONT)?;
        if round % 5 == 0 {
            serves("while the client may come back")?;
        }
    }
    ensure!(!client.ended(), "the client ended");
    in_call(&client)?;
    disconnect(client, &server)
}

/// What the client told before it ended, which it has done.
fn told(client: &mut Child) -> Result<String> {
    let told = client.next_line().unwrap_or_else(|error| format!("{error:#}"));
    client.wait()?;
    Ok(told)
}

fn server_dies(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let blocked = Blocked::read(&server)?;
    stop(&mut client)?;
    server.close();
    blocked.fails("the server's close, with the client stopped")?;
    wait_idle(0)?;
    server.wait_closed()?;
    // Another process attaches in between.
    attaches_again()?;
    kill(pid(&client), Signal::SIGCONT)?;
    let told = told(&mut client)?;
    ensure!(told.contains("EPIPE"), "the client learned: {told}");
    attaches_again()
}

fn disconnected(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    stop(&mut client)?;
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    wait_idle(0)?;
    server.wait_closed()?;
    // It comes back while another one is attached, and leaves that alone.
    let next = silent_server()?;
    let other = Setup::for_server(&next).attach_in_child(0, &next)?;
    kill(pid(&client), Signal::SIGCONT)?;
    client.success().context("the client was disconnected, and is to learn so")?;
    serves("the next one's device")?;
    disconnect(other, &next)
}

/// The end has begun when the client is stopped: the worker goes on with it.
fn slowly(context: &Context) -> Result<()> {
    for _ in 0..context.rounds(5, 2) {
        let server = silent_server()?;
        let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
        let blocked = Blocked::read(&server)?;
        Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
        stop(&mut client)?;
        blocked.fails("a disconnect, with the client stopped")?;
        wait_idle(0)?;
        kill(pid(&client), Signal::SIGCONT)?;
        client.success()?;
        server.wait_closed()?;
    }
    attaches_again()
}

fn killed(_: &Context) -> Result<()> {
    let holder = crate::process::hold_open("/dev/nbd0")?;
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let blocked = Blocked::read(&server)?;
    stop(&mut client)?;
    client.kill()?;
    blocked.fails("the death of a stopped client")?;
    server.wait_closed()?;
    wait_idle(0)?;
    drop(holder);
    attaches_again()
}

/// What a client does when a signal has taken it out of the call.
#[derive(Clone, Copy)]
enum Then {
    Sleep,
    Spin,
    Nap,
    Clear,
}

fn handled(then: Then) -> Result<()> {
    let server = silent_server()?;
    let mut client = handling_client(&server, move |device| {
        if matches!(then, Then::Clear) {
            device.ioctl(req::CLEAR_SOCK, 0)?;
        }
        loop {
            match then {
                Then::Spin => std::hint::spin_loop(),
                Then::Nap => std::thread::sleep(std::time::Duration::from_millis(1)),
                Then::Sleep | Then::Clear => nix::unistd::pause(),
            }
        }
    })?;
    let blocked = Blocked::read(&server)?;
    stop(&mut client)?;
    kill(pid(&client), Signal::SIGUSR1)?;
    ensure!(attached(0) && blocked.waits(), "it was detached before the signal was delivered");
    kill(pid(&client), Signal::SIGCONT)?;
    client.expect_line("Err(EINTR)")?;
    blocked.fails("a handler that ran")?;
    wait_idle(0)?;
    server.wait_closed()?;
    // While it lives.
    attaches_again()?;
    client.kill()
}

/// As `nbd-client -persist` does, under an opener that stays.
fn persists(_: &Context) -> Result<()> {
    let (first, second) = (silent_server()?, silent_server()?);
    let sockets = [first.connect(Transport::Unix)?, second.connect(Transport::Unix)?];
    let fds = [sockets[0].as_raw_fd(), sockets[1].as_raw_fd()];
    let mut client = fork_child(&fds, move |ready| {
        let device = Device::open(0)?;
        for fd in fds {
            device.ioctl(req::SET_SOCK, fd as u64)?;
            nix::unistd::close(fd)?;
            device.ioctl(req::SET_SIZE, 1 << 20)?;
            ready.tell(&format!("{:?}", device.ioctl(req::DO_IT, 0)))?;
        }
        Ok(())
    })?;
    drop(sockets);
    wait_attached(0)?;
    let held = open_direct("/dev/nbd0")?;
    stop(&mut client)?;
    first.close();
    wait_idle(0)?;
    kill(pid(&client), Signal::SIGCONT)?;
    client.expect_line("Err(EPIPE)")?;
    wait_attached(0)?;
    // The disk is the same.
    round_trip(&held, 0, &[0x55; 4096]).context("by an open of before")?;
    drop(held);
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.expect_line("Ok(0)")?;
    client.success()?;
    second.wait_closed()?;
    wait_idle(0)
}

fn rmmod(context: &Context) -> Result<()> {
    ours_only(context)?;
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    stop(&mut client)?;
    let removed = context.driver.remove();
    ensure!(removed.is_err(), "the module went under an attachment");
    serves("after rmmod")?;
    go_on(&mut client)?;
    disconnect(client, &server)
}

fn taken(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    stop(&mut client)?;
    server.close();
    wait_idle(0)?;
    let next = silent_server()?;
    let device = Attached::new(&next, 1, &[])?;
    kill(pid(&client), Signal::SIGCONT)?;
    let told = told(&mut client)?;
    ensure!(told.contains("EPIPE"), "the client learned: {told}");
    serves("the next one's device")?;
    device.disconnect()?;
    next.wait_closed()
}

fn dies_at_once(context: &Context) -> Result<()> {
    let device = Device::open(0)?;
    for round in 0..context.rounds(20, 5) {
        let server = silent_server()?;
        let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
        stop(&mut client)?;
        client.kill()?;
        let next = silent_server()?;
        Setup::for_server(&next).prepare(&device, &next).with_context(|| format!("round {round}"))?;
        device.ioctl(req::CLEAR_SOCK, 0)?;
        server.wait_closed()?;
        next.wait_closed()?;
    }
    drop(device);
    attaches_again()
}
