// SPDX-License-Identifier: GPL-2.0
//! The incident that rnbd exists for, replayed on either driver by the same script.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use super::show::step;
use super::work::{qemu_attach, qemu_detach};
use super::{Driver, Scratch};
use crate::device::{Device, req};
use crate::process::{Child, fork_child, hold_open, run as command, run_within};

/// How often a client comes back, as the operators' clients did.
const TRIES: usize = 3;

/// Replays it: nbd.ko must refuse every new client, rnbd.ko must serve the first.
pub fn run(scratch: &Scratch, driver: Driver) -> Result<()> {
    let image = scratch.path("incident.qcow2");
    command("qemu-img", &["create", "-q", "-f", "qcow2", &image, "64M"])?;
    let name = driver.module();
    let mut holder = None;
    step(&format!("{name}.ko: a process holds /dev/nbd0 open"), || {
        let child = hold_open("/dev/nbd0")?;
        let pid = child.pid();
        holder = Some(child);
        Ok(format!("pid {pid}"))
    })?;
    // nbd.ko remembers its task by the bare pointer: kept, lest a client get the same one and with it the setup.
    let mut setter = None;
    step(&format!("{name}.ko: another sets a socket and dies"), || {
        let dead = setter.insert(dead_setter()?);
        Ok(format!("pid {} is gone", dead.pid()))
    })?;
    match driver {
        Driver::Nbd => {
            step("nbd.ko: NBD_SET_SOCK by a new process", || {
                for _ in 0..TRIES {
                    let result = set_socket()?;
                    ensure!(result == Err(Errno::EBUSY), "{result:?}: this nbd.ko does not have the fault");
                }
                Ok(format!("{TRIES} times EBUSY"))
            })?;
            step("nbd.ko: qemu-nbd -c /dev/nbd0", || {
                for _ in 0..TRIES {
                    refused(&image)?;
                }
                Ok(format!("{TRIES} times refused"))
            })?;
        }
        Driver::Rnbd => {
            step("rnbd.ko: qemu-nbd -c /dev/nbd0", || {
                let size = qemu_attach(&image)?;
                Ok(format!("attached, {size}"))
            })?;
            step("rnbd.ko: qemu-nbd -d /dev/nbd0", qemu_detach)?;
        }
    }
    setter.map_or(Ok(()), |mut setter: Child| setter.success())?;
    holder.map_or(Ok(()), |mut holder: Child| holder.kill())
}

/// A process that gives the driver a socket, and is gone before it can do more.
fn dead_setter() -> Result<Child> {
    let mut setter = fork_child(&[], |_| {
        let (ours, _theirs) = UnixStream::pair()?;
        let device = Device::open(0)?;
        device.ioctl(req::SET_SOCK, ours.as_raw_fd() as u64).context("NBD_SET_SOCK")?;
        Ok(())
    })?;
    setter.wait_unreaped()?;
    Ok(setter)
}

/// NBD_SET_SOCK in a process of its own, as a client would make it.
fn set_socket() -> Result<Result<(), Errno>> {
    let mut child = fork_child(&[], |ready| {
        let (ours, _theirs) = UnixStream::pair()?;
        let result = Device::open(0)?.ioctl(req::SET_SOCK, ours.as_raw_fd() as u64);
        ready.tell(&format!("{}", result.err().map_or(0, |errno| errno as i32)))
    })?;
    let errno: i32 = child.next_line()?.parse()?;
    child.success()?;
    Ok(if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) })
}

/// qemu-nbd must fail, and for the reason of the incident.
fn refused(image: &str) -> Result<()> {
    let mut qemu = std::process::Command::new("qemu-nbd");
    let output = run_within(Duration::from_secs(30), qemu.args(["-c", "/dev/nbd0", "-f", "qcow2", image]))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        bail!("qemu-nbd attached: this nbd.ko does not have the fault");
    }
    // That is NBD_SET_SOCK: it does not say the errno.
    ensure!(said.contains("Failed to set NBD socket"), "qemu-nbd failed for another reason: {said}");
    Ok(())
}
