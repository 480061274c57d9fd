// SPDX-License-Identifier: GPL-2.0
//! A machine that has no memory left. The server is on the same machine, and has all that it needs in locked memory.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MlockAllFlags, ProtFlags, mlock, mlockall, mmap_anonymous};

use crate::device::{flag, sysfs, wait_idle};
use crate::netlink::{Client, attr, attr_u64};
use crate::process::{Child, describe_task, fork_child, patient, wait_for_within};
use crate::server::{Command, Export, Request, wire};

pub const MIB: usize = 1 << 20;
/// No request is longer.
const LARGEST: usize = 32 * MIB;
/// What is left of the machine's memory.
pub const LEFT: usize = 80 * MIB;
const SECONDS: u64 = 200;

/// Memory of this process, from the kernel: so many words.
pub fn memory(words: usize) -> Result<&'static mut [u64]> {
    let size = NonZero::new(words * size_of::<u64>()).context("no length")?;
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory, at a place that the kernel chooses.
    let start = unsafe { mmap_anonymous(None, size, rights, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: it is of this length, begins at a page, and is never unmapped.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast().as_ptr(), words) })
}

/// How likely the kernel kills this process for its memory: -1000 is never.
fn oom_score(score: i32) -> Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string()).context("oom_score_adj")
}

/// What serves a disk must not wait for that disk to get memory. Threads inherit it.
fn io_flusher() -> Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: sets a flag of this task.
    Errno::result(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) }).context("PR_SET_IO_FLUSHER")?;
    Ok(())
}

/// Serves a connection to its end, without taking any memory.
fn serve(mut stream: UnixStream, export: &Export, buffer: &mut [u8]) -> io::Result<()> {
    const REPLY: usize = 16;
    while let Some(request) = Request::read(&mut stream, 0)? {
        let reply = wire::reply(wire::REPLY_MAGIC, 0, request.cookie);
        let data = &mut buffer[..REPLY + request.length as usize];
        match request.command {
            Command::Read => {
                data[..REPLY].copy_from_slice(&reply);
                export.read_into(request.offset, &mut data[REPLY..])?;
                stream.write_all(data)?;
            }
            Command::Write => {
                stream.read_exact(&mut data[REPLY..])?;
                export.write(request.offset, &data[REPLY..])?;
                stream.write_all(&reply)?;
            }
            _ => break,
        }
    }
    Ok(())
}

/// A process that serves the other ends of `streams`. It never forks: the first write to a page after that takes memory.
fn server(streams: Vec<UnixStream>, size: usize) -> Result<Child> {
    let fds: Vec<RawFd> = streams.iter().map(AsRawFd::as_raw_fd).collect();
    let mut server = fork_child(&fds, |ready| {
        io_flusher()?;
        oom_score(-1000)?;
        mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).context("mlockall")?;
        let export = Arc::new(Export::locked(size as u64)?);
        let serve = |stream| {
            let export = export.clone();
            let mut buffer = vec![0; LARGEST + 16];
            std::thread::spawn(move || serve(stream, &export, &mut buffer))
        };
        let tasks: Vec<_> = streams.into_iter().map(serve).collect();
        ready.tell("serves")?;
        tasks.into_iter().try_for_each(|task| Ok(task.join().map_err(|_| anyhow!("a task panicked"))??))
    })?;
    server.expect_line("serves")?;
    Ok(server)
}

/// The device, with its server.
pub struct Served {
    client: Client,
    server: Child,
}

impl Served {
    /// Of this size.
    pub fn new(size: usize) -> Result<Served> {
        let pairs = [UnixStream::pair()?, UnixStream::pair()?];
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let server = server(theirs, size)?;
        let fds: Vec<RawFd> = ours.iter().map(AsRawFd::as_raw_fd).collect();
        let client = Client::open()?;
        let flags = attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN);
        let options = [flags, attr_u64(attr::BLOCK_SIZE_BYTES, 4096)];
        let connected = client.connect(Some(0), size as u64, &fds, &options)?;
        ensure!(connected == Ok(0), "CONNECT: {connected:?}");
        Ok(Served { client, server })
    }

    /// Runs `work` in a process of its own, with the rest of the memory taken away.
    pub fn starve(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let _hog = hog(LEFT)?;
        let before = requests()?;
        let mut worker = fork_child(&[], |_| {
            oom_score(1000)?;
            work()
        })?;
        wait_for_within(patient(SECONDS), "the work to be done", || worker.ended())
            .with_context(|| describe_task(worker.pid()))?;
        worker.success()?;
        let after = requests()?;
        let (reads, writes) = (after.0 - before.0, after.1 - before.1);
        println!("{reads} reads and {writes} writes meanwhile");
        ensure!(reads > 0 && writes > 0, "it was not starved");
        Ok(())
    }

    pub fn end(mut self) -> Result<()> {
        self.client.disconnect(0)?.map_err(|refusal| anyhow!("DISCONNECT: {refusal:?}"))?;
        self.server.success()?;
        wait_idle(0)
    }
}

/// Reads and writes that the device has done.
fn requests() -> Result<(u64, u64)> {
    let stat = sysfs(0, "stat").context("stat")?;
    let mut counts = stat.split_whitespace().map(str::parse);
    let mut count = |skipped| counts.nth(skipped).context("stat")?.context("stat");
    Ok((count(0)?, count(3)?))
}

/// A process that has all memory but so much.
pub fn hog(left: usize) -> Result<Child> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("meminfo")?;
    let available: usize = line.trim().trim_end_matches(" kB").parse()?;
    let taken = (available * 1024).checked_sub(left).context("there is no memory to begin with")?;
    let mut hog = fork_child(&[], |ready| {
        oom_score(-1000)?;
        let memory = memory(taken.div_ceil(size_of::<u64>()))?;
        // SAFETY: this memory is ours, and of that length.
        unsafe { mlock(std::ptr::NonNull::from(&mut memory[0]).cast(), taken) }.context("mlock")?;
        ready.tell("taken")?;
        loop {
            nix::unistd::pause();
        }
    })?;
    hog.expect_line("taken")?;
    println!("{} MiB of {} MiB taken", taken / MIB, available / 1024);
    Ok(hog)
}
