// SPDX-License-Identifier: GPL-2.0
//! The same with several threads, and several clients: who is away is a task, and not its process.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use super::away::{ENDS_ON_NBD, pid, ptrace, serves, stop};
use super::{Context, Test};
use crate::attach::{Setup, attaches_again};
use crate::blocked::silent_server;
use crate::device::{Device, attached, raw_ioctl, req, wait_attached, wait_idle};
use crate::process::{Child, fork_child, pipe, processes, wait_for};
use crate::server::{Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new(
        "away.other_thread",
        "another thread's NBD_DO_IT is refused while the one that is attached is traced, and that one comes back",
        other_thread,
    )
    .known_on_nbd(ENDS_ON_NBD),
    Test::new(
        "away.stolen_signal",
        "signals of the process that another thread handles end nothing",
        stolen_signal,
    )
    .known_on_nbd("the attachment ends"),
    Test::new("away.many", "a dozen clients, stopped one after the other, all learn how theirs ended", many)
        .known_on_nbd(ENDS_ON_NBD),
];

/// A process whose second thread is in NBD_DO_IT. `first` is what its first thread does meanwhile.
fn client(
    server: &Server,
    keep: &[i32],
    first: impl FnOnce(&Device, &mut crate::process::Ready) -> Result<()>,
) -> Result<Child> {
    let socket = server.connect(Transport::Unix)?;
    let fd = socket.as_raw_fd();
    let mut keep = keep.to_vec();
    keep.push(fd);
    fork_child(&keep, move |ready| {
        let device = Device::open(0)?;
        device.ioctl(req::SET_SOCK, fd as u64)?;
        nix::unistd::close(fd)?;
        device.ioctl(req::SET_SIZE, 1 << 20)?;
        let (dev, tid) = (device.fd(), Arc::new(AtomicI32::new(0)));
        let its = tid.clone();
        let theirs = std::thread::spawn(move || {
            its.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            raw_ioctl(dev, req::DO_IT, 0)
        });
        wait_attached(0)?;
        ready.tell(&tid.load(Ordering::SeqCst).to_string())?;
        first(&device, ready)?;
        let ran = theirs.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?;
        ready.tell(&format!("{ran:?}"))
    })
}

fn other_thread(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let (go, mut told) = pipe()?;
    let mut client = client(&server, &[go.as_raw_fd()], |device, ready| {
        std::io::Read::read_exact(&mut &go, &mut [0])?;
        ready.tell(&format!("{:?}", device.ioctl(req::DO_IT, 0)))
    })?;
    let task: i32 = client.next_line()?.parse()?;
    ptrace(libc::PTRACE_ATTACH, task)?;
    let stat = format!("/proc/{}/task/{task}/stat", client.pid());
    wait_for("the thread to be stopped", || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") t "))
    })?;
    std::io::Write::write_all(&mut told, b"x")?;
    client.expect_line("Err(EBUSY)").context("another thread's NBD_DO_IT")?;
    serves("while the thread is traced")?;
    ptrace(libc::PTRACE_DETACH, task)?;
    serves("when the thread goes on")?;
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.expect_line("Ok(0)").context("its own NBD_DO_IT")?;
    client.success()?;
    wait_idle(0)?;
    attaches_again()
}

static THREAD: AtomicI32 = AtomicI32::new(0);
static THERE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    if nix::unistd::gettid().as_raw() == THREAD.load(Ordering::SeqCst) {
        THERE.fetch_add(1, Ordering::SeqCst);
    }
}

fn stolen_signal(context: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = client(&server, &[], |_, ready| {
        // The thread in NBD_DO_IT has not been told of this: it blocks nothing.
        let action = SigAction::new(SigHandler::Handler(count), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler counts.
        unsafe { sigaction(Signal::SIGUSR1, &action) }?;
        let others = std::fs::read_dir("/proc/self/task")?;
        let own = nix::unistd::gettid().as_raw().to_string();
        let other = others.flatten().map(|task| task.file_name().to_string_lossy().into_owned());
        let thread = other.filter(|task| *task != own).find_map(|task| task.parse().ok());
        THREAD.store(thread.context("no other thread")?, Ordering::SeqCst);
        ready.tell("ready")?;
        while attached(0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        ready.tell(&THERE.load(Ordering::SeqCst).to_string())
    })?;
    client.next_line()?;
    client.expect_line("ready")?;
    for round in 0..context.rounds(500, 50) {
        if !attached(0) {
            break;
        }
        kill(pid(&client), Signal::SIGUSR1)?;
        std::thread::sleep(Duration::from_micros(700 + round as u64 % 300));
    }
    let stayed = attached(0);
    if stayed {
        serves("after the signals")?;
    }
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    let there: usize = client.next_line()?.parse()?;
    println!("it stayed attached: {stayed}; {there} handlers ran in the thread of the call");
    client.wait()?;
    // One that ran there is an end that was asked for.
    ensure!(stayed || there > 0, "it ended, and no handler has run in the thread of the call");
    wait_idle(0)?;
    attaches_again()
}

fn many(_: &Context) -> Result<()> {
    let mut clients = Vec::new();
    for number in 0..12 {
        let server = silent_server()?;
        let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
        stop(&mut client)?;
        if number % 2 == 0 {
            server.close();
        } else {
            Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
        }
        wait_idle(0)?;
        clients.push((number, client));
    }
    for (number, mut client) in clients {
        kill(Pid::from_raw(client.pid()), Signal::SIGCONT)?;
        if number % 2 == 0 {
            let told = client.next_line().unwrap_or_else(|error| format!("{error:#}"));
            ensure!(told.contains("EPIPE"), "client {number} learned: {told}");
            client.wait()?;
        } else {
            client.success().with_context(|| format!("client {number}"))?;
        }
    }
    ensure!(processes().iter().all(|process| process.3 != 'T'), "somebody is stopped still");
    attaches_again()
}
