// SPDX-License-Identifier: GPL-2.0
//! Work that goes on while a device is changed, and servers that do not do their part.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;

use crate::device::{io_errno, node, open_direct, write_direct};
use crate::process::{PATIENCE, describe_task, have, run, wait_for};
use crate::server::{Action, Export, Server};
use crate::tests::skip;

/// Bytes from the start of the device that [`Fio`] writes.
pub const FIO_SIZE: u64 = 8 << 20;

/// fio at work on device 0: random writes, each block with its checksum, read back and verified.
pub struct Fio(JoinHandle<Result<()>>);

impl Fio {
    /// Writes the first [`FIO_SIZE`] bytes, and then verifies them. Returns when the server has seen some of it. There
    /// are so many writes a second at most, 2048 in all.
    pub fn start(server: &Server, rate: u32) -> Result<Fio> {
        let before = server.seen().len();
        let fio = Fio::run(vec![
            "--bs=4k".to_owned(),
            format!("--size={FIO_SIZE}"),
            "--iodepth=8".to_owned(),
            "--do_verify=1".to_owned(),
            format!("--rate_iops={rate}"),
        ])?;
        wait_for("fio to write", || !fio.works() || server.seen().len() > before + 32)?;
        Ok(fio)
    }

    /// Writes and verifies for so many seconds, in so many bytes.
    pub fn lasting(seconds: usize, size: u64) -> Result<Fio> {
        Fio::run(vec![
            "--bsrange=4k-128k".to_owned(),
            "--blockalign=4k".to_owned(),
            format!("--size={size}"),
            "--iodepth=16".to_owned(),
            "--verify_backlog=64".to_owned(),
            "--verify_async=1".to_owned(),
            "--time_based".to_owned(),
            format!("--runtime={seconds}"),
        ])
    }

    fn run(more: Vec<String>) -> Result<Fio> {
        if !have("fio") {
            return skip("there is no fio");
        }
        Ok(Fio(std::thread::spawn(move || {
            let mut args = vec![
                "--name=load",
                "--filename=/dev/nbd0",
                "--thread",
                "--rw=randwrite",
                "--randseed=11",
                "--ioengine=libaio",
                "--direct=1",
                "--verify=crc32c",
                "--verify_fatal=1",
            ];
            args.extend(more.iter().map(String::as_str));
            run("fio", &args).map(drop)
        })))
    }

    pub fn works(&self) -> bool {
        !self.0.is_finished()
    }

    /// Waits for its end: no error was seen, and all that it wrote was read back.
    pub fn verified(self) -> Result<()> {
        self.0.join().map_err(|_| anyhow!("the thread of fio panicked"))?
    }
}

/// A server that answers nothing as long as it is silent, and then what was not answered is lost.
pub fn server_with_moods(size: u64) -> Result<(Server, Arc<AtomicBool>)> {
    let silent = Arc::new(AtomicBool::new(false));
    let mood = silent.clone();
    let server = Server::with_behaviour(Export::memory(size)?, move |_| {
        if mood.load(Ordering::Relaxed) { Action::Ignore } else { Action::Serve }
    });
    Ok((server, silent))
}

/// The far end of a connection that nobody reads from. The driver's end is the first.
pub fn unread() -> Result<(OwnedFd, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours.into(), theirs))
}

/// A server that does its part, until it is told to read no more.
pub struct Deaf {
    pub server: Server,
    deaf: Arc<AtomicBool>,
}

impl Deaf {
    pub fn new(size: u64) -> Result<Deaf> {
        let deaf = Arc::new(AtomicBool::new(false));
        let ears = deaf.clone();
        let server = Server::with_behaviour(Export::memory(size)?, move |_| {
            if !ears.load(Ordering::SeqCst) {
                return Action::Serve;
            }
            while ears.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            Action::Close
        });
        Ok(Deaf { server, deaf })
    }

    /// It reads the next request of each connection, and then nothing.
    pub fn turn_deaf(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        self.deaf.store(false, Ordering::SeqCst);
    }
}

/// A task of this process that writes 1 MiB to a device.
pub struct Writer(Receiver<Result<(), Errno>>);

impl Writer {
    pub fn start(index: u32, place: u64) -> Result<Writer> {
        let direct = open_direct(node(index))?;
        let (sender, result) = channel();
        std::thread::Builder::new().name(format!("writer-{place}")).spawn(move || {
            let done = write_direct(&direct, place << 20, &vec![place as u8; 1 << 20]);
            drop(direct);
            let _ = sender.send(done.map_err(|error| io_errno(&error)));
        })?;
        Ok(Writer(result))
    }

    /// True while nothing has ended the write.
    pub fn waits(&self) -> bool {
        matches!(self.0.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty))
    }

    /// How it ended, within the patience that we have with everything.
    pub fn ended(&self, why: &str) -> Result<Result<(), Errno>> {
        self.0.recv_timeout(*PATIENCE).with_context(|| {
            format!("a writer hangs after {why}\n{}", describe_task(std::process::id() as i32))
        })
    }
}

/// Writers enough to fill the socket of a device whose server does not read, so that one of them is stuck in sending.
pub fn fill(index: u32) -> Result<Vec<Writer>> {
    let writers = (0..4).map(|place| Writer::start(index, place)).collect::<Result<Vec<_>>>()?;
    // What fits into the socket is gone by then, and the rest waits.
    let mut calm = 0;
    let mut last = inflight(index)?;
    wait_for("the writers to be stuck", || {
        let now = inflight(index).unwrap_or_default();
        calm = if now == last && now > 0 { calm + 1 } else { 0 };
        last = now;
        calm > 20
    })?;
    ensure!(writers.iter().all(Writer::waits), "a write that no server has read has ended");
    Ok(writers)
}

/// Writes that the block layer has given to the driver, and not got back.
fn inflight(index: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/sys/block/nbd{index}/inflight"))?;
    let writes = text.split_whitespace().nth(1).context("inflight has one number")?;
    Ok(writes.parse()?)
}
