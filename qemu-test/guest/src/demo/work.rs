// SPDX-License-Identifier: GPL-2.0
//! What the driver is for: images of real servers, attached by real clients, with files on them.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::show::{step, title};
use super::{Driver, Scratch};
use crate::device::{attached, capacity, wait_attached, wait_idle};
use crate::process::{run as command, wait_for};

const DEVICE: &str = "/dev/nbd0";
const MIB: u64 = 1 << 20;

/// Files to copy: programs that are there anyway, of some megabytes.
const FILES: [&str; 4] =
    ["/usr/bin/busybox", "/usr/bin/nbd-server", "/usr/bin/qemu-nbd", "/usr/bin/rnbd-test"];

/// A mounted filesystem; dropped, it is unmounted in any case.
struct Mounted(String);

impl Mounted {
    fn new(folder: String) -> Result<Mounted> {
        fs::create_dir_all(&folder)?;
        let none: Option<&str> = None;
        mount(Some(DEVICE), folder.as_str(), Some("ext4"), MsFlags::empty(), none)
            .with_context(|| format!("mount {DEVICE} {folder}"))?;
        Ok(Mounted(folder))
    }

    fn unmount(self) -> Result<()> {
        umount2(self.0.as_str(), MntFlags::empty()).with_context(|| format!("umount {}", self.0))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After unmount() there is nothing there to unmount.
        let _ = umount2(self.0.as_str(), MntFlags::MNT_DETACH);
    }
}

/// nbd-server in the foreground; dropped, it is killed.
struct Server {
    process: Child,
    /// The file that it exports as "disk".
    image: String,
}

impl Server {
    fn start(scratch: &Scratch) -> Result<Server> {
        let image = scratch.path("disk.raw");
        fs::File::create(&image)?.set_len(64 * MIB)?;
        let config = scratch.path("nbd-server.conf");
        let export =
            format!("[generic]\nlistenaddr = 127.0.0.1\nport = 10809\n[disk]\nexportname = {image}\n");
        fs::write(&config, export)?;
        let mut command = Command::new("nbd-server");
        command.args(["-n", "-C", &config]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Server { process: command.spawn().context("start nbd-server")?, image })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Attach, use, detach, by both clients.
pub fn run(scratch: &Scratch, driver: Driver) -> Result<()> {
    // It computes for seconds (parameters for TLS) before it answers: let it do so meanwhile.
    let server = Server::start(scratch)?;
    qcow2_with_files(scratch)?;
    second_image(scratch)?;
    tcp(&server)?;
    title(&format!("  all of it through {}.ko, by programs that were not changed", driver.module()));
    Ok(())
}

/// Attaches an image with qemu-nbd, which becomes its server.
pub fn qemu_attach(image: &str) -> Result<String> {
    command("qemu-nbd", &["-c", DEVICE, "-f", "qcow2", image])?;
    wait_attached(0)?;
    Ok(format!("{} MiB", capacity(0) / MIB))
}

/// Detaches, and sees to it that nothing is left.
pub fn qemu_detach() -> Result<String> {
    command("qemu-nbd", &["-d", DEVICE])?;
    wait_idle(0)?;
    Ok("0 MiB, no pid".to_owned())
}

fn qcow2_with_files(scratch: &Scratch) -> Result<()> {
    let image = scratch.path("image.qcow2");
    let folder = scratch.path("mnt");
    let sums = checksums(&FILES.map(str::to_owned))?;
    step("qemu-img create -f qcow2 image.qcow2 256M", || {
        command("qemu-img", &["create", "-q", "-f", "qcow2", &image, "256M"])?;
        Ok(String::new())
    })?;
    step("qemu-nbd -c /dev/nbd0 image.qcow2", || qemu_attach(&image))?;
    step("mkfs.ext4 /dev/nbd0", || {
        command("mkfs.ext4", &["-q", "-F", DEVICE])?;
        Ok(String::new())
    })?;
    step("mount, copy files, umount", || {
        let mounted = Mounted::new(folder.clone())?;
        let mut bytes = 0;
        for file in FILES {
            let to = copy_of(file, &folder);
            bytes += fs::copy(file, &to).with_context(|| format!("copy {file} to {to}"))?;
        }
        mounted.unmount()?;
        Ok(format!("{} files, {:.1} MiB", FILES.len(), bytes as f64 / MIB as f64))
    })?;
    step("qemu-nbd -d /dev/nbd0", qemu_detach)?;
    step("qemu-nbd -c /dev/nbd0 image.qcow2, mount again", || {
        qemu_attach(&image)?;
        Ok(String::new())
    })?;
    step("sha256sum of originals and copies", || {
        let mounted = Mounted::new(folder.clone())?;
        let copies = checksums(&FILES.map(|file| copy_of(file, &folder)))?;
        mounted.unmount()?;
        ensure!(copies == sums, "the copies differ: {copies:?}, not {sums:?}");
        Ok(format!("{} of {} are equal", copies.len(), sums.len()))
    })?;
    step("umount, qemu-nbd -d /dev/nbd0", qemu_detach)
}

fn copy_of(file: &str, folder: &str) -> String {
    format!("{folder}/{}", file.rsplit('/').next().unwrap_or(file))
}

fn checksums(files: &[String]) -> Result<Vec<String>> {
    let args: Vec<&str> = files.iter().map(String::as_str).collect();
    let output = command("sha256sum", &args)?;
    let sum = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    Ok(output.lines().map(sum).collect())
}

/// The device must show what the second image holds, and nothing of the first.
fn second_image(scratch: &Scratch) -> Result<()> {
    let image = scratch.path("second.qcow2");
    command("qemu-img", &["create", "-q", "-f", "qcow2", &image, "96M"])?;
    command("qemu-io", &["-f", "qcow2", "-c", "write -q -P 0x5a 0 1M", &image])?;
    step("qemu-nbd -c /dev/nbd0 second.qcow2", || qemu_attach(&image))?;
    step("read what the second image holds", || {
        let data = read_start()?;
        ensure!(data.iter().all(|byte| *byte == 0x5a), "the device does not show the second image");
        Ok("1 MiB, as written".to_owned())
    })?;
    step("qemu-nbd -d /dev/nbd0", qemu_detach)
}

fn read_start() -> Result<Vec<u8>> {
    use std::io::Read;
    let mut data = Vec::new();
    let file = fs::File::open(DEVICE).with_context(|| format!("open {DEVICE}"))?;
    file.take(MIB).read_to_end(&mut data).with_context(|| format!("read {DEVICE}"))?;
    ensure!(data.len() as u64 == MIB, "{DEVICE} ended after {} bytes", data.len());
    Ok(data)
}

fn tcp(server: &Server) -> Result<()> {
    step("nbd-server on 127.0.0.1, TCP", || {
        // /proc shows it without a connection, which the server would take for a client.
        let listening = format!("0100007F:{:04X} 00000000:0000 0A", 10809);
        wait_for("nbd-server to listen", || {
            fs::read_to_string("/proc/net/tcp").is_ok_and(|text| text.contains(&listening))
        })?;
        Ok("port 10809".to_owned())
    })?;
    step("nbd-client 127.0.0.1 /dev/nbd0 -N disk", || {
        command("nbd-client", &["127.0.0.1", "10809", DEVICE, "-N", "disk", "-nonetlink"])?;
        wait_attached(0)?;
        Ok(format!("{} MiB", capacity(0) / MIB))
    })?;
    step("write to it, look into the server's file", || {
        let text = b"written through /dev/nbd0";
        let mut data = vec![0; MIB as usize];
        data[..text.len()].copy_from_slice(text);
        let device = fs::File::options().write(true).open(DEVICE)?;
        std::os::unix::fs::FileExt::write_all_at(&device, &data, 0)?;
        device.sync_all().context("flush")?;
        ensure!(
            fs::read(&server.image)?.starts_with(text),
            "the server's file does not hold what was written"
        );
        Ok("1 MiB, the same".to_owned())
    })?;
    step("nbd-client -d /dev/nbd0", || {
        command("nbd-client", &["-nonetlink", "-d", DEVICE])?;
        wait_idle(0)?;
        ensure!(!attached(0), "{DEVICE} is still attached");
        Ok("0 MiB, no pid".to_owned())
    })
}
