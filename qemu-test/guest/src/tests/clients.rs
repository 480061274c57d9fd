// SPDX-License-Identifier: GPL-2.0
//! The real clients, unmodified: qemu-nbd and nbd-client by ioctl.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::{Context, Test, skip};
use crate::device::{node, open_direct, read_direct, round_trip, wait_attached, wait_idle};
use crate::mounted::Mounted;
use crate::process::{have, run, wait_for};

pub const TESTS: &[Test] = &[
    Test::new("clients.qemu_nbd", "qemu-nbd attaches and detaches 50 times", qemu_nbd).quick().limit(150),
    Test::new(
        "clients.nbd_client",
        "nbd-client by ioctl attaches and detaches 50 times, over TCP",
        nbd_client,
    )
    .limit(240),
    Test::new(
        "clients.nbd_client_unix",
        "nbd-client attaches to qemu-nbd's UNIX socket 10 times",
        nbd_client_unix,
    )
    .quick(),
    Test::new("clients.qcow2", "qemu-nbd serves a qcow2 image, which keeps the data", qcow2),
    Test::new("clients.discard", "blkdiscard gives the space of a raw image behind qemu-nbd back", discard),
    Test::new("clients.alternating", "qemu-nbd and nbd-client take turns on one device", alternating),
    Test::new("clients.ext4", "an ext4 filesystem is kept across detach and attach", |context| {
        filesystem(context, "ext4", 64 << 20)
    })
    .limit(120),
    Test::new("clients.xfs", "an xfs filesystem is kept across detach and attach", |context| {
        filesystem(context, "xfs", 320 << 20)
    })
    .limit(120),
];

/// A real program that is killed when it is not needed any more.
pub struct Daemon(Process);

impl Daemon {
    fn start(command: &mut Command) -> Result<Daemon> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Daemon(started.with_context(|| format!("start {command:?}"))?))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A device attached by `qemu-nbd -c`, which serves it as well.
pub struct QemuNbd(u32);

impl QemuNbd {
    pub fn connect(index: u32, image: &str, format: &str) -> Result<QemuNbd> {
        if !have("qemu-nbd") {
            return skip("there is no qemu-nbd");
        }
        let device = node(index);
        run("qemu-nbd", &["-c", &device.to_string_lossy(), "-f", format, "--discard=unmap", image])?;
        wait_attached(index)?;
        Ok(QemuNbd(index))
    }

    pub fn disconnect(self) -> Result<()> {
        run("qemu-nbd", &["-d", &node(self.0).to_string_lossy()])?;
        wait_idle(self.0)
    }

    /// qemu-nbd as a mere server on a UNIX socket, of the export named "". Others may serve the same image.
    pub fn listen(socket: &Path, image: &str, clients: u32) -> Result<Daemon> {
        if !have("qemu-nbd") {
            return skip("there is no qemu-nbd");
        }
        let mut command = Command::new("qemu-nbd");
        let image = format!("driver=raw,file.driver=file,file.locking=off,file.filename={image}");
        command.arg("-k").arg(socket).args(["-t", "-e", &clients.to_string(), "--image-opts", &image]);
        let daemon = Daemon::start(&mut command)?;
        wait_for("qemu-nbd's socket", || socket.exists())?;
        Ok(daemon)
    }
}

/// A device attached by nbd-client, by ioctl.
pub struct NbdClient(u32);

impl NbdClient {
    /// `server` is what nbd-client is told of server and export.
    pub fn connect(index: u32, server: &[&str]) -> Result<NbdClient> {
        if !have("nbd-client") {
            return skip("there is no nbd-client");
        }
        let device = node(index).to_string_lossy().into_owned();
        let mut args = server.to_vec();
        args.extend([&*device, "-nonetlink", "-block-size", "512"]);
        run("nbd-client", &args)?;
        wait_attached(index)?;
        Ok(NbdClient(index))
    }

    pub fn disconnect(self) -> Result<()> {
        run("nbd-client", &["-nonetlink", "-d", &node(self.0).to_string_lossy()])?;
        wait_idle(self.0)
    }
}

/// nbd-server on a TCP port of the loopback interface, serving one file as export "disk".
pub struct NbdServer {
    _daemon: Daemon,
    port: String,
}

impl NbdServer {
    /// Under emulation it takes its time: it makes parameters for TLS first, which nobody asked for.
    pub fn start(context: &Context, image: &str) -> Result<NbdServer> {
        if !have("nbd-server") {
            return skip("there is no nbd-server");
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let config = context.scratch_file("nbd-server.conf");
        let text = format!(
            "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n\
             [disk]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
        );
        fs::write(&config, text)?;
        let daemon = Daemon::start(Command::new("nbd-server").args(["-n", "-C", &config]))?;
        // /proc shows it without a connection, which the server would take for a client.
        let listening = format!("0100007F:{:04X} 00000000:0000 0A", port.parse::<u16>()?);
        wait_for("nbd-server to listen", || {
            fs::read_to_string("/proc/net/tcp").is_ok_and(|text| text.contains(&listening))
        })?;
        Ok(NbdServer { _daemon: daemon, port })
    }

    /// What nbd-client is told of server and export.
    pub fn place(&self) -> [&str; 4] {
        ["127.0.0.1", &self.port, "-N", "disk"]
    }

    fn attach(&self, index: u32) -> Result<NbdClient> {
        NbdClient::connect(index, &self.place())
    }
}

pub fn image(context: &Context, name: &str, size: u64) -> Result<String> {
    let path = context.scratch_file(name);
    fs::File::create(&path)?.set_len(size)?;
    Ok(path)
}

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

/// Checks what an earlier round wrote, and writes something else.
pub fn exercise(round: u64) -> Result<()> {
    let direct = open_direct("/dev/nbd0")?;
    if let Some(last) = round.checked_sub(1) {
        let there = read_direct(&direct, last * 4096, 4096)?;
        ensure!(there[..] == random(last, 4096), "what round {last} wrote is gone");
    }
    round_trip(&direct, round * 4096, &random(round, 4096))
}

fn qemu_nbd(context: &Context) -> Result<()> {
    let image = image(context, "disk", 4 << 20)?;
    for round in 0..context.rounds(50, 3) as u64 {
        let client = QemuNbd::connect(0, &image, "raw").with_context(|| format!("round {round}"))?;
        exercise(round)?;
        client.disconnect().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn nbd_client(context: &Context) -> Result<()> {
    let image = image(context, "disk", 4 << 20)?;
    let server = NbdServer::start(context, &image)?;
    for round in 0..context.rounds(50, 5) as u64 {
        let client = server.attach(0).with_context(|| format!("round {round}"))?;
        exercise(round)?;
        client.disconnect().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn nbd_client_unix(context: &Context) -> Result<()> {
    let image = image(context, "disk", 4 << 20)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 2)?;
    for round in 0..context.rounds(10, 3) as u64 {
        let client =
            NbdClient::connect(0, &["-unix", &socket, "-N", ""]).with_context(|| format!("round {round}"))?;
        exercise(round)?;
        client.disconnect().with_context(|| format!("round {round}"))?;
    }
    drop(server);
    Ok(())
}

fn qcow2(context: &Context) -> Result<()> {
    if !have("qemu-img") {
        return skip("there is no qemu-img");
    }
    let image = context.scratch_file("disk.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "256M"])?;
    for round in 0..3 {
        let client = QemuNbd::connect(0, &image, "qcow2")?;
        exercise(round)?;
        client.disconnect()?;
    }
    run("qemu-img", &["check", "-q", &image]).map(drop)
}

fn discard(context: &Context) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if !have("blkdiscard") {
        return skip("there is no blkdiscard");
    }
    let path = context.scratch_file("disk");
    fs::write(&path, vec![0x55; 8 << 20])?;
    let allocated = || fs::metadata(&path).map(|metadata| metadata.blocks() * 512);
    let before = allocated()?;
    let client = QemuNbd::connect(0, &path, "raw")?;
    run("blkdiscard", &["--offset", "1M", "--length", "6M", "/dev/nbd0"])?;
    let direct = open_direct("/dev/nbd0")?;
    let data = read_direct(&direct, 0, 8 << 20)?;
    drop(direct);
    client.disconnect()?;
    let discarded = (1 << 20)..(7 << 20);
    let right = |(at, byte): (usize, &u8)| *byte == if discarded.contains(&at) { 0 } else { 0x55 };
    ensure!(data.iter().enumerate().all(right), "the discarded range, or more, reads wrongly");
    let after = allocated()?;
    ensure!(before - after == 6 << 20, "the image holds {before} bytes before and {after} after");
    Ok(())
}

fn alternating(context: &Context) -> Result<()> {
    let image = image(context, "disk", 4 << 20)?;
    let server = NbdServer::start(context, &image)?;
    for round in 0..10 {
        if round % 2 == 0 {
            let client = QemuNbd::connect(0, &image, "raw")?;
            exercise(round)?;
            client.disconnect()?;
        } else {
            let client = server.attach(0)?;
            exercise(round)?;
            client.disconnect()?;
        }
    }
    Ok(())
}

fn file_of(round: u64, number: u64) -> (String, Vec<u8>) {
    let seed = round * 100 + number;
    (format!("file-{round}-{number}"), random(seed, 20_000 * (number as usize + 1) + 7))
}

fn filesystem(context: &Context, kind: &str, size: u64) -> Result<()> {
    const FILES: u64 = 12;
    let mkfs = format!("mkfs.{kind}");
    if !have(&mkfs) {
        return skip(format!("there is no {mkfs}"));
    }
    let image = image(context, "disk", size)?;
    let check = |args: &[&str]| {
        // The checker is another witness, where there is one.
        if have(args[0]) { run(args[0], &args[1..]).map(drop) } else { Ok(()) }
    };
    for round in 0..3 {
        let client = QemuNbd::connect(0, &image, "raw")?;
        if round == 0 {
            run(&mkfs, &["-q", "/dev/nbd0"])?;
        }
        let mounted = Mounted::new(context, &node(0), kind)?;
        for earlier in 0..round {
            for number in 0..FILES {
                let (name, data) = file_of(earlier, number);
                let there =
                    fs::read(mounted.file(&name)).with_context(|| format!("round {round}: {name}"))?;
                ensure!(there == data, "{name} has changed by round {round}");
            }
        }
        for number in 0..FILES {
            let (name, data) = file_of(round, number);
            fs::write(mounted.file(name), data)?;
        }
        mounted.unmount()?;
        match kind {
            "ext4" => check(&["e2fsck", "-f", "-n", "/dev/nbd0"])?,
            _ => check(&["xfs_repair", "-n", "/dev/nbd0"])?,
        }
        client.disconnect()?;
    }
    Ok(())
}
