// SPDX-License-Identifier: GPL-2.0
//! A machine that has no memory left but what it gets by writing to the device. The server is on the same machine, and
//! has all that it needs in locked memory.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MlockAllFlags, ProtFlags, mlock, mlockall, mmap_anonymous};

use crate::device::{flag, sysfs, wait_idle};
use crate::mounted::{Mounted, mkfs_ext4};
use crate::netlink::{Client, attr, attr_u64};
use crate::process::{Child, describe_task, fork_child, have, patient, wait_for_within};
use crate::server::{Command, Export, Request, pattern, wire};
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] =
    &[Test::new("load.dirty", "a filesystem's dirty pages, and no other memory left", dirty).limit(300)];

const MIB: usize = 1 << 20;
const EXPORT: usize = 256 * MIB;
/// No request is longer.
const LARGEST: usize = 32 * MIB;
/// What is worked on.
const LOAD: usize = 160 * MIB;
/// What is left of the machine's memory.
const LEFT: usize = 80 * MIB;
const SECONDS: u64 = 200;

/// Memory of this process, from the kernel.
fn memory(length: usize) -> Result<&'static mut [u8]> {
    let size = NonZero::new(length).context("no length")?;
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory, at a place that the kernel chooses.
    let start = unsafe { mmap_anonymous(None, size, rights, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: it is of this length, and never unmapped.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast().as_ptr(), length) })
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
fn server(streams: Vec<UnixStream>) -> Result<Child> {
    let fds: Vec<RawFd> = streams.iter().map(AsRawFd::as_raw_fd).collect();
    let mut server = fork_child(&fds, |ready| {
        io_flusher()?;
        oom_score(-1000)?;
        mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).context("mlockall")?;
        let export = Arc::new(Export::locked(EXPORT as u64)?);
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
struct Served {
    client: Client,
    server: Child,
}

impl Served {
    fn new() -> Result<Served> {
        let pairs = [UnixStream::pair()?, UnixStream::pair()?];
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let server = server(theirs)?;
        let fds: Vec<RawFd> = ours.iter().map(AsRawFd::as_raw_fd).collect();
        let client = Client::open()?;
        let flags = attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN);
        let options = [flags, attr_u64(attr::BLOCK_SIZE_BYTES, 4096)];
        let connected = client.connect(Some(0), EXPORT as u64, &fds, &options)?;
        ensure!(connected == Ok(0), "CONNECT: {connected:?}");
        Ok(Served { client, server })
    }

    /// Runs `work` in a process of its own, with the rest of the memory taken away.
    fn starve(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let _hog = hog()?;
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

    fn end(mut self) -> Result<()> {
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

/// A process that has all memory but [`LEFT`].
fn hog() -> Result<Child> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("meminfo")?;
    let available: usize = line.trim().trim_end_matches(" kB").parse()?;
    let taken = (available * 1024).checked_sub(LEFT).context("there is no memory to begin with")?;
    let mut hog = fork_child(&[], |ready| {
        oom_score(-1000)?;
        let memory = memory(taken)?;
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

fn dirty(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4 here");
    }
    // As much as there is may be dirty.
    let ratios = [("dirty_ratio", "95"), ("dirty_background_ratio", "90")];
    let path = |name: &str| format!("/proc/sys/vm/{name}");
    let before = ratios.map(|(name, _)| fs::read_to_string(path(name)).unwrap_or_default());
    ratios.iter().try_for_each(|(name, value)| fs::write(path(name), value))?;
    let served = Served::new()?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, "/dev/nbd0".as_ref(), "ext4")?;
    let file = mounted.file("data");
    let done = served.starve(|| {
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&file)?;
        for offset in (0..LOAD as u64).step_by(MIB) {
            file.write_all_at(&pattern::data(offset, MIB, 2), offset)?;
        }
        file.sync_all()?;
        let mut data = vec![0; MIB];
        for offset in (0..LOAD as u64).step_by(MIB) {
            file.read_exact_at(&mut data, offset)?;
            let versions = pattern::versions(offset, &data).map_err(|what| anyhow!("at {offset}: {what}"))?;
            ensure!(versions.iter().all(|version| *version == 2), "at {offset} is what was not written");
        }
        Ok(())
    });
    let unmounted = mounted.unmount();
    for ((name, _), value) in ratios.iter().zip(before) {
        fs::write(path(name), value)?;
    }
    done?;
    unmounted?;
    served.end()
}
