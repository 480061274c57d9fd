// SPDX-License-Identifier: GPL-2.0
//! The limit: the same requests and replies, over the same socket, to the same server, by a program without a block
//! layer. It keeps as many requests on the way as the job's depth says, and sends together what may be sent.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::job::{Job, SIZE};
use super::meter::{Measured, Meter};
use super::server::{advance, send_some};
use crate::process::fork_child;
use crate::server::wire::{REPLY_MAGIC, REQUEST_MAGIC};

const READ: u16 = 0;
const WRITE: u16 = 1;

/// Runs the job on these sockets in a process of its own, so that the server's time is the server's alone. With a meter,
/// what comes is measured here, for a server that has none.
pub fn run(job: &Job, sockets: &[OwnedFd], seed: u64, meter: Option<&Meter>) -> Result<Option<Measured>> {
    let keep: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let mut child = fork_child(&keep, |ready| {
        std::thread::scope(|scope| {
            let start = |(number, socket)| {
                let mut client = Client::new(job, sockets.len() as u64, number as u64, socket, seed, meter);
                scope.spawn(move || client.run())
            };
            let threads: Vec<_> = sockets.iter().enumerate().map(start).collect();
            for thread in threads {
                thread.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            let measured = meter.map(Meter::measured).transpose()?;
            ready.tell(&serde_json::to_string(&measured)?)
        })
    })?;
    let measured = serde_json::from_str(&child.next_line()?)?;
    child.success()?;
    Ok(measured)
}

/// What is still to be sent of one request.
struct Outgoing {
    header: [u8; 28],
    sent: usize,
    length: usize,
}

/// The client of one connection.
struct Client<'a> {
    job: &'a Job,
    socket: &'a OwnedFd,
    meter: Option<&'a Meter>,
    rng: SmallRng,
    window: u64,
    total: u64,
    issued: u64,
    answered: u64,
    outgoing: VecDeque<Outgoing>,
    payload: Vec<u8>,
    buffer: Vec<u8>,
    filled: usize,
    /// A reply's header has come.
    pending: bool,
    /// What is still to come of its data.
    data: usize,
}

impl Client<'_> {
    fn new<'a>(
        job: &'a Job,
        share: u64,
        number: u64,
        socket: &'a OwnedFd,
        seed: u64,
        meter: Option<&'a Meter>,
    ) -> Client<'a> {
        let (blocks, rest) = (job.blocks() / share, job.blocks() % share);
        Client {
            job,
            socket,
            meter,
            rng: SmallRng::seed_from_u64(seed.wrapping_add(number)),
            window: (job.depth / share).max(1),
            total: blocks + u64::from(number < rest),
            issued: 0,
            answered: 0,
            outgoing: VecDeque::new(),
            payload: vec![0; job.block as usize],
            buffer: vec![0; 128 << 10],
            filled: 0,
            data: 0,
            pending: false,
        }
    }

    fn run(&mut self) -> Result<()> {
        while self.answered < self.total {
            while self.issued < self.total && self.issued - self.answered < self.window {
                self.issue();
            }
            if self.send()? {
                self.receive()?;
                continue;
            }
            // The server may be waiting for us to take its replies.
            let mut poll_fd = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
            poll(&mut poll_fd, PollTimeout::NONE)?;
            if poll_fd[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
                self.receive()?;
            }
        }
        Ok(())
    }

    fn issue(&mut self) {
        let reads = self.rng.random_range(0..100) < self.job.kind.reads();
        let command: u16 = if reads { READ } else { WRITE };
        let blocks = SIZE / self.job.block;
        let block =
            if self.job.kind.sequential() { self.issued % blocks } else { self.rng.random_range(0..blocks) };
        let cookie = (self.issued << 1) | u64::from(reads);
        let mut header = [0; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[6..8].copy_from_slice(&command.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&(block * self.job.block).to_be_bytes());
        header[24..].copy_from_slice(&(self.job.block as u32).to_be_bytes());
        let length = header.len() + if reads { 0 } else { self.job.block as usize };
        self.outgoing.push_back(Outgoing { header, sent: 0, length });
        self.issued += 1;
    }

    /// Sends what there is. False when the socket takes no more of it now.
    fn send(&mut self) -> Result<bool> {
        while !self.outgoing.is_empty() {
            let mut parts = Vec::with_capacity(256);
            for one in self.outgoing.iter_mut().take(128) {
                let mut sent = one.sent;
                for bytes in [&one.header[..], &self.payload[..one.length - one.header.len()]] {
                    let mut part =
                        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                    let skipped = sent.min(bytes.len());
                    advance(&mut part, skipped);
                    sent -= skipped;
                    if part.iov_len > 0 {
                        parts.push(part);
                    }
                }
            }
            let mut sent = match send_some(self.socket.as_raw_fd(), &mut parts, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                sent => sent.context("send")?,
            };
            while let Some(first) = self.outgoing.front_mut() {
                let taken = sent.min(first.length - first.sent);
                first.sent += taken;
                sent -= taken;
                if first.sent < first.length {
                    break;
                }
                self.outgoing.pop_front();
            }
        }
        Ok(true)
    }

    fn receive(&mut self) -> Result<()> {
        let free = &mut self.buffer[self.filled..];
        let received = recv(self.socket.as_raw_fd(), free, MsgFlags::empty()).context("receive")?;
        ensure!(received > 0, "the server has closed the connection");
        self.filled += received;
        let mut used = 0;
        loop {
            let data = self.data.min(self.filled - used);
            used += data;
            self.data -= data;
            if self.pending && self.data == 0 {
                self.pending = false;
                self.answered += 1;
                self.meter.inspect(|meter| meter.answered(self.job.block));
            }
            let Some(header) = self.buffer[..self.filled].get(used..used + 16).filter(|_| self.data == 0)
            else {
                break;
            };
            ensure!(
                header[..4] == REPLY_MAGIC.to_be_bytes() && header[4..8] == [0; 4],
                "the server says {header:?}"
            );
            let read = header[15] & 1 == 1;
            self.data = if read { self.job.block as usize } else { 0 };
            used += 16;
            self.pending = true;
        }
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }
}
