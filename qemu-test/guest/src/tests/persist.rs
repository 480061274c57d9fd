// SPDX-License-Identifier: GPL-2.0
//! nbd-client's -persist: a client that comes back to a server that comes back, under a mounted filesystem.
//!
//! nbd-client comes back when NBD_DO_IT fails with anything but EBADR, and ends when it returns 0. nbd.ko returns 0
//! whatever ended the connections, so that -persist does nothing there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};

use super::clients::QemuNbd;
use super::{Context, Test, skip};
use crate::device::{
    attached, capacity, node, open_direct, read_direct, round_trip, sysfs, wait_attached, wait_idle,
};
use crate::mounted::{Mounted, mkfs_ext4};
use crate::process::{PATIENCE, have, run, wait_for, wait_for_within};

pub const TESTS: &[Test] = &[
    Test::new(
        "persist.restarts",
        "nbd-client -persist under a mounted ext4, through 20 restarts of the server",
        restarts,
    )
    .incident()
    .limit(240)
    .known_on_nbd("NBD_DO_IT returns 0 when the server closes, and nbd-client ends"),
    Test::new("persist.timeout", "nbd-client -persist comes back after a request's time-out", timeout)
        .known_on_nbd("NBD_DO_IT returns 0 then too, and nbd-client ends"),
    Test::new("persist.disconnect", "NBD_DISCONNECT ends nbd-client -persist for good", disconnect),
];

const SIZE: u64 = 32 << 20;

/// nbd-client -persist in the foreground; killed when dropped.
struct Client {
    process: Process,
    said: PathBuf,
}

impl Client {
    fn start(context: &Context, socket: &str, more: &[&str]) -> Result<Client> {
        if !have("nbd-client") {
            return skip("there is no nbd-client");
        }
        let said = context.scratch.join("nbd-client.log");
        let log = fs::File::create(&said)?;
        let args = ["-unix", socket, "-N", "", "/dev/nbd0"];
        let process = Command::new("nbd-client")
            .args(args)
            .args(["-nonetlink", "-nofork", "-persist", "-block-size", "512"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start nbd-client")?;
        let client = Client { process, said };
        wait_attached(0)?;
        Ok(client)
    }

    fn ended(&mut self) -> bool {
        self.process.try_wait().is_ok_and(|status| status.is_some())
    }

    /// What it has said, without repetitions.
    fn said(&self) -> String {
        let text = fs::read(&self.said).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.dedup();
        lines.join(" | ")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn image(context: &Context) -> Result<String> {
    let path = context.scratch_file("disk");
    fs::File::create(&path)?.set_len(SIZE)?;
    Ok(path)
}

fn restarts(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4");
    }
    let image = image(context)?;
    let socket = context.scratch_file("socket");
    let mut server = QemuNbd::listen(Path::new(&socket), &image, 4)?;
    let mut client = Client::start(context, &socket, &[])?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    let content = |round: usize| vec![round as u8 + 1; 60_000];
    for round in 0..context.rounds(20, 3) {
        let mut file = fs::File::create(mounted.file(format!("file-{round}")))?;
        file.write_all(&content(round))?;
        file.sync_all().with_context(|| format!("round {round}: a file"))?;
        // All is written, and nothing is asked of the server while there is none.
        nix::unistd::sync();
        let generation = sysfs(0, "nbd/generation");
        drop(server);
        wait_for("the device to lose its server", || !attached(0) || client.ended())?;
        fs::remove_file(&socket)?;
        server = QemuNbd::listen(Path::new(&socket), &image, 4)?;
        let back = wait_for_within(*PATIENCE, "nbd-client to come back", || {
            client.ended() || (attached(0) && capacity(0) == SIZE)
        });
        let said = client.said();
        if client.ended() {
            bail!("round {round}: nbd-client has ended: {said}");
        }
        back.with_context(|| format!("round {round}: it says: {said}"))?;
        println!("round {round}: generation {generation:?}, then {:?}", sysfs(0, "nbd/generation"));
        // Not what the page cache still has, but what the image has.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        for earlier in 0..=round {
            let data = fs::read(mounted.file(format!("file-{earlier}")))
                .with_context(|| format!("round {round}: file {earlier}"))?;
            ensure!(data == content(earlier), "round {round}: file {earlier} has changed");
        }
    }
    mounted.unmount()?;
    run("e2fsck", &["-f", "-n", "/dev/nbd0"])?;
    run("nbd-client", &["-nonetlink", "-d", "/dev/nbd0"])?;
    wait_idle(0)
}

fn timeout(context: &Context) -> Result<()> {
    let image = image(context)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 4)?;
    let mut client = Client::start(context, &socket, &["-timeout", "1"])?;
    for round in 0..3 {
        let direct = open_direct("/dev/nbd0")?;
        round_trip(&direct, 0, &[round; 4096])?;
        kill(server.pid(), Signal::SIGSTOP)?;
        let read = read_direct(&direct, 0, 4096);
        drop(direct);
        kill(server.pid(), Signal::SIGCONT)?;
        ensure!(read.is_err(), "a read without an answer succeeded");
        // Until it is back, reads fail.
        let mut data = None;
        let back = wait_for("nbd-client to come back", || {
            data = open_direct("/dev/nbd0").ok().and_then(|direct| read_direct(&direct, 0, 4096).ok());
            data.is_some() || client.ended()
        });
        ensure!(!client.ended(), "round {round}: nbd-client has ended: {}", client.said());
        back.with_context(|| format!("round {round}: it says: {}", client.said()))?;
        ensure!(data.is_some_and(|data| data.iter().all(|byte| *byte == round)), "round {round}: other data");
    }
    run("nbd-client", &["-nonetlink", "-d", "/dev/nbd0"])?;
    wait_for("nbd-client to end", || client.ended()).with_context(|| client.said())?;
    wait_idle(0)
}

fn disconnect(context: &Context) -> Result<()> {
    let image = image(context)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 4)?;
    let mut client = Client::start(context, &socket, &[])?;
    run("nbd-client", &["-nonetlink", "-d", "/dev/nbd0"])?;
    wait_for("nbd-client to end", || client.ended()).with_context(|| client.said())?;
    wait_idle(0)?;
    drop(server);
    Ok(())
}
