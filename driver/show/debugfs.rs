// SPDX-License-Identifier: GPL-2.0

//! Files in debugfs, `nbd/nbdN/`: nbd.ko's by their names, and tables of a device's connections and
//! of the requests that it has in flight.
//!
//! Reading takes the setup lock for a moment, and waits for no server.

use crate::{
    driver::{device::Device, wire::connection::ConnectionRef},
    protocol::{
        flags::TransmissionFlags,
        request::Route,
        setup::{Config, Phase},
    },
};
use kernel::{
    debugfs::{Dir, File},
    fmt,
    prelude::*,
    sync::{atomic::Relaxed, Arc},
    time::msecs_to_jiffies,
};

type DeviceRef = Arc<Device>;

/// A device's files, in debugfs until this is dropped.
pub(crate) struct DeviceFiles {
    _files: [Pin<KBox<File<DeviceRef>>>; 7],
}

impl DeviceFiles {
    /// Creates the files of a device below `root`. Sleeps.
    pub(crate) fn create(root: &Dir, name: &CStr, device: &DeviceRef) -> Result<Self> {
        let dir = root.subdir(name);
        macro_rules! file {
            ($name:literal, $show:ident) => {
                KBox::pin_init(
                    dir.read_callback_file($name, device.clone(), &|device: &DeviceRef, f| {
                        $show(device, f)
                    }),
                    GFP_KERNEL,
                )?
            };
        }
        Ok(Self {
            _files: [
                file!(c"tasks", tasks),
                file!(c"size_bytes", size_bytes),
                file!(c"timeout", timeout),
                file!(c"blocksize_bits", blocksize_bits),
                file!(c"flags", flags),
                file!(c"connections", connections),
                file!(c"requests", requests),
            ],
        })
    }
}

fn config(device: &Device) -> Config {
    match device.lock_setup().phase() {
        Phase::Setup(setup) => setup.config,
        Phase::Running { config, .. } => *config,
        Phase::Draining { config, .. } => *config,
        Phase::Idle | Phase::Gone => Config::default(),
    }
}

fn tasks(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match device.pid() {
        0 => Ok(()),
        pid => writeln!(f, "recv: {pid}"),
    }
}

fn size_bytes(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", config(device).size.bytes())
}

/// In jiffies, as nbd.ko gives it.
fn timeout(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let milliseconds = config(device).timeout.saturating_mul(1000);
    writeln!(f, "{}", msecs_to_jiffies(milliseconds))
}

fn blocksize_bits(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", config(device).block_size.bits())
}

fn flags(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let flags = config(device).flags;
    write!(f, "Hex: {:#010x}\n\nKnown flags:\n", flags.bits())?;
    for (flag, name) in TransmissionFlags::NAMED {
        if flags.contains(flag) {
            writeln!(f, "{name}")?;
        }
    }
    Ok(())
}

/// The connections of the newest generation, without the setup lock held any longer.
fn connections_of(device: &Device) -> KVec<ConnectionRef> {
    let life = device.lock_setup();
    let connections = match life.phase() {
        Phase::Idle | Phase::Gone => return KVec::new(),
        Phase::Setup(setup) => &setup.connections.0,
        Phase::Running { attachment, .. } | Phase::Draining { attachment, .. } => {
            &attachment.connections
        }
    };
    let mut copies = KVec::new();
    for connection in connections {
        // Without memory the table is shorter.
        if copies.push(connection.clone(), GFP_KERNEL).is_err() {
            break;
        }
    }
    copies
}

fn in_flight(device: &Device, route: Route) -> u32 {
    let mut count = 0_u32;
    let Some(disk) = device.disk() else {
        return 0;
    };
    disk.tagset_busy_iter(|request| {
        if request.data().word.route() == Some(route) {
            count = count.saturating_add(1);
        }
    });
    count
}

/// One line a connection. `since_ms` is how long ago it died.
fn connections(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "index family local peer state since_ms epoch owner inflight sent received reason"
    )?;
    for connection in &connections_of(device) {
        let link = connection.link();
        let origin = &link.origin;
        write!(f, "{} ", connection.index)?;
        match origin.local.family() {
            Some(family) => f.write_fmt(fmt!("{family}"))?,
            None => write!(f, "-")?,
        }
        f.write_fmt(fmt!(" {} {} ", origin.local, origin.peer))?;
        let end = link.end();
        match end {
            Some(end) => write!(f, "dead {}", end.at.elapsed().as_millis())?,
            None => write!(f, "live -")?,
        }
        write!(
            f,
            " {} {} {} {} {} ",
            link.route.epoch,
            origin.added_by,
            in_flight(device, link.route),
            link.sent.load(Relaxed),
            link.received.load(Relaxed),
        )?;
        match end {
            Some(end) => f.write_fmt(fmt!("{}\n", end.death))?,
            None => writeln!(f, "-")?,
        }
    }
    Ok(())
}

/// One line a request that a server owes an answer to.
fn requests(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "age_ms operation sector bytes connection cookie")?;
    let mut result = Ok(());
    let Some(disk) = device.disk() else {
        return result;
    };
    disk.tagset_busy_iter(|request| {
        let word = &request.data().word;
        let Some(route) = word.route() else {
            return;
        };
        let mut line = || {
            match request.age_ms() {
                Some(age) => write!(f, "{age}")?,
                None => write!(f, "-")?,
            }
            writeln!(
                f,
                " {} {} {} {} {:#018x}",
                request.op().name(),
                request.sector(),
                request.bytes(),
                route.connection,
                word.cookie(request.unique_tag()).to_wire(),
            )
        };
        if result.is_ok() {
            result = line();
        }
    });
    result
}
