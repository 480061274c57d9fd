// SPDX-License-Identifier: GPL-2.0
//! Attaching a device by ioctl, step by step as nbd-client does it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use crate::device::{self, Device, flag, open_direct, req, round_trip};
use crate::process::{self, Child, PATIENCE, fork_child, wait_for};
use crate::server::{Export, Server, Transport};

/// What a client tells the driver before NBD_DO_IT.
#[derive(Clone, Copy)]
pub struct Setup {
    pub block_size: u64,
    pub size: u64,
    pub flags: u64,
    pub timeout: Option<u64>,
    pub connections: usize,
    pub transport: Transport,
}

impl Setup {
    pub fn for_server(server: &Server) -> Setup {
        Setup {
            block_size: 512,
            size: server.export().size(),
            flags: flag::HAS_FLAGS,
            timeout: None,
            connections: 1,
            transport: Transport::Unix,
        }
    }

    pub fn flags(self, flags: u64) -> Setup {
        Setup { flags: self.flags | flags, ..self }
    }

    pub fn block_size(self, block_size: u64) -> Setup {
        Setup { block_size, ..self }
    }

    pub fn timeout(self, seconds: u64) -> Setup {
        Setup { timeout: Some(seconds), ..self }
    }

    pub fn connections(self, connections: usize) -> Setup {
        Setup { connections, flags: self.flags | flag::CAN_MULTI_CONN, ..self }
    }

    pub fn transport(self, transport: Transport) -> Setup {
        Setup { transport, ..self }
    }

    /// Everything up to NBD_DO_IT. The sockets are the driver's alone when this returns.
    pub fn prepare(&self, device: &Device, server: &Server) -> Result<()> {
        let sockets = self.sockets(server)?;
        let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        self.tell(device, &fds)
    }

    fn sockets(&self, server: &Server) -> Result<Vec<OwnedFd>> {
        (0..self.connections).map(|_| server.connect(self.transport)).collect()
    }

    fn tell(&self, device: &Device, sockets: &[RawFd]) -> Result<()> {
        for socket in sockets {
            self.step(device, "NBD_SET_SOCK", req::SET_SOCK, *socket as u64)?;
        }
        self.step(device, "NBD_SET_BLKSIZE", req::SET_BLKSIZE, self.block_size)?;
        let blocks = self.size / self.block_size;
        self.step(device, "NBD_SET_SIZE_BLOCKS", req::SET_SIZE_BLOCKS, blocks)?;
        if let Some(seconds) = self.timeout {
            self.step(device, "NBD_SET_TIMEOUT", req::SET_TIMEOUT, seconds)?;
        }
        self.step(device, "NBD_SET_FLAGS", req::SET_FLAGS, self.flags)
    }

    fn step(&self, device: &Device, name: &str, cmd: u32, arg: u64) -> Result<()> {
        device.ioctl(cmd, arg).map(drop).with_context(|| format!("{name} {arg}"))
    }

    /// Sets up and runs NBD_DO_IT in a thread; returns when the device is usable.
    pub fn attach(&self, device: &Device, server: &Server) -> Result<Attachment> {
        self.prepare(device, server)?;
        let attachment = Attachment::start(device)?;
        attachment.wait_running(self.size)?;
        Ok(attachment)
    }

    /// The same in a process of its own, which has the device open and is the client: it can be killed. The
    /// server stays here.
    pub fn attach_in_child(&self, index: u32, server: &Server) -> Result<Child> {
        let child = self.spawn(index, None, server)?;
        self.wait_child(child, index)
    }

    /// The same by an open file that the child shares with us.
    pub fn attach_in_child_on(&self, device: &Device, server: &Server) -> Result<Child> {
        let child = self.spawn(device.index(), Some(device), server)?;
        self.wait_child(child, device.index())
    }

    /// A process that sets up, tells `set up`, and goes into NBD_DO_IT.
    pub fn spawn(&self, index: u32, shared: Option<&Device>, server: &Server) -> Result<Child> {
        let sockets = self.sockets(server)?;
        let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let keep: Vec<RawFd> = fds.iter().copied().chain(shared.map(Device::fd)).collect();
        let mut child = fork_child(&keep, |ready| {
            let device = match shared {
                Some(device) => device.same_open()?,
                None => Device::open(index)?,
            };
            self.tell(&device, &fds)?;
            ready.tell("set up")?;
            self.step(&device, "NBD_DO_IT", req::DO_IT, 0)
        })?;
        child.expect_line("set up")?;
        Ok(child)
    }

    fn wait_child(&self, mut child: Child, index: u32) -> Result<Child> {
        let pid = child.pid();
        wait_for("the child's attachment", || {
            child.ended() || (device::attached(index) && device::capacity(index) == self.size)
        })?;
        if child.ended() {
            child.success()?;
            bail!("client {pid} ended instead of serving the device");
        }
        Ok(child)
    }
}

/// A running NBD_DO_IT, in a thread of this process.
pub struct Attachment {
    device: Device,
    result: Receiver<Result<i32, Errno>>,
}

impl Attachment {
    /// Starts NBD_DO_IT; when it returns, the thread clears queue and socket, as every client does.
    pub fn start(device: &Device) -> Result<Attachment> {
        let (sender, result) = channel();
        let theirs = device.same_open()?;
        std::thread::Builder::new().name("do-it".to_owned()).spawn(move || {
            let result = theirs.ioctl(req::DO_IT, 0);
            // An attachment has ended; any other errno means that there was none of ours.
            if matches!(result, Ok(_) | Err(Errno::ETIMEDOUT | Errno::EPIPE)) {
                let _ = theirs.ioctl(req::CLEAR_QUE, 0);
                let _ = theirs.ioctl(req::CLEAR_SOCK, 0);
            }
            drop(theirs);
            let _ = sender.send(result);
        })?;
        Ok(Attachment { device: device.same_open()?, result })
    }

    pub fn wait_running(&self, size: u64) -> Result<()> {
        let index = self.device.index();
        let mut early = None;
        wait_for("the device to run", || {
            early = self.result.try_recv().ok();
            early.is_some() || (device::attached(index) && device::capacity(index) == size)
        })?;
        match early {
            Some(result) => bail!("NBD_DO_IT returned at once: {result:?}"),
            None => Ok(()),
        }
    }

    /// What NBD_DO_IT returned, if that is within `bound`.
    pub fn ends_within(&self, bound: std::time::Duration) -> Option<Result<i32, Errno>> {
        self.result.recv_timeout(bound).ok()
    }

    /// Waits for NBD_DO_IT to return by itself.
    pub fn ended(self) -> Result<Result<i32, Errno>> {
        match self.result.recv_timeout(*PATIENCE) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Disconnected) => bail!("the NBD_DO_IT thread died"),
            Err(RecvTimeoutError::Timeout) => {
                let told = process::describe_task(std::process::id() as i32);
                bail!("NBD_DO_IT has not returned in {} s\n{told}", PATIENCE.as_secs())
            }
        }
    }

    /// NBD_DISCONNECT, then NBD_DO_IT must return 0.
    pub fn detach(self) -> Result<()> {
        self.device.ioctl(req::DISCONNECT, 0).context("NBD_DISCONNECT")?;
        let result = self.ended()?;
        ensure!(result == Ok(0), "NBD_DO_IT returned {result:?} after NBD_DISCONNECT");
        Ok(())
    }
}

/// The whole way once: attach by a fresh open, do something, detach, and everything is idle again.
pub fn with_attached<T>(server: &Server, setup: Setup, body: impl FnOnce(&Device) -> Result<T>) -> Result<T> {
    let device = Device::open(0)?;
    let attachment = setup.attach(&device, server)?;
    let done = body(&device);
    let detached = attachment.detach();
    drop(device);
    let value = done?;
    detached?;
    device::wait_idle(0)?;
    server.wait_closed()?;
    ensure!(server.errors().is_empty(), "the server complains: {:?}", server.errors());
    Ok(value)
}

/// A process that gives the device a socket and a size, whatever it is answered, and dies.
pub fn set_up_and_die(socket: OwnedFd) -> Result<()> {
    let fd = socket.as_raw_fd();
    let mut setter = fork_child(&[fd], move |ready| {
        let device = Device::open(0)?;
        let set = device.ioctl(req::SET_SOCK, fd as u64);
        let size = device.ioctl(req::SET_SIZE, 1 << 20);
        ready.tell(&format!("{set:?} {size:?}"))?;
        loop {
            nix::unistd::pause();
        }
    })?;
    setter.next_line()?;
    setter.kill()
}

/// The device takes a new server and does I/O with it, from beginning to end. Only plain openers may be there.
pub fn attaches_again() -> Result<()> {
    // Who was killed while the device got another disk for it has left that to go on.
    let device = Device::open_in_turn(0)?;
    attaches_again_by(&device)
}

/// The same by an open file that has been used before.
pub fn attaches_again_by(device: &Device) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let attachment = Setup::for_server(&server).attach(device, &server).context("attaching again")?;
    let direct = open_direct("/dev/nbd0")?;
    let done = round_trip(&direct, 4096, &[0xc3; 8192]);
    drop(direct);
    attachment.detach()?;
    done?;
    server.wait_closed()
}
