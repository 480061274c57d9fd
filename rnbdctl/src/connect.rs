// SPDX-License-Identifier: GPL-2.0
//! `connect`: attaches a device to an export.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use nbd_netlink::{attr, attr_string, attr_u64, client_flag};
use nix::errno::Errno;
use rnbd_protocol::flags::TransmissionFlags;
use serde::Serialize;

use crate::cli::{ConnectArgs, TimeoutArgs};
use crate::driver::{self, Driver};
use crate::failure::{Failure, Kind};
use crate::handshake::Export;
use crate::server::Wanted;
use crate::{device, diagnosis, text};

/// The block size that a disk has when nobody says another.
const USUAL_BLOCK_SIZE: u32 = 512;

/// What is printed.
#[derive(Serialize)]
struct Attached {
    index: u32,
    device: PathBuf,
    size: u64,
    block_size: u32,
    read_only: bool,
    connections: u16,
    server: String,
    export: String,
}

pub fn run(args: &ConnectArgs) -> Result<()> {
    let (_, client) = driver::privileged("connect")?;
    let wanted = Wanted {
        address: &args.server,
        export: &args.export.export,
        connections: args.connections.into(),
        patience: Duration::from_secs(args.export.handshake_timeout),
    };
    let mut session = wanted.open()?;
    let export = session.export;
    let block_size = block_size(&export, args.block_size)?;
    let read_only = args.read_only || export.flags.contains(TransmissionFlags::READ_ONLY);
    let mut flags = export.flags.bits();
    if args.read_only {
        flags |= TransmissionFlags::HAS_FLAGS.bits() | TransmissionFlags::READ_ONLY.bits();
    }
    let mut options = vec![
        attr_u64(attr::BLOCK_SIZE_BYTES, block_size.into()),
        attr_u64(attr::SERVER_FLAGS, flags.into()),
        attr_u64(attr::CLIENT_FLAGS, client_flags(args)),
    ];
    options.extend(timeouts(&args.timeouts));
    options.extend(args.backend.iter().map(|name| attr_string(attr::BACKEND_IDENTIFIER, name)));
    let answer = client.connect(args.device, export.size, &session.fds(), &options)?;
    let index = match answer {
        Ok(index) => index,
        Err(refusal) => {
            let failure = Failure::of(&place(args.device), &refusal);
            let busy = args.device.filter(|_| refusal.errno == Errno::EBUSY);
            return Err(explained(busy, failure).into());
        }
    };
    session.give_away(args.connections.into());
    keep_to_maximum(index, &export);
    let attached = Attached {
        index,
        device: format!("/dev/nbd{index}").into(),
        size: export.size,
        block_size,
        read_only,
        connections: args.connections,
        server: args.server.to_string(),
        export: args.export.export.clone(),
    };
    if args.json { text::print_json(&attached) } else { text::print(&attached.line()) }
}

impl Attached {
    fn line(&self) -> String {
        let read_only = if self.read_only { ", read-only" } else { "" };
        format!(
            "{} (index {}): {}, {}{read_only}, from {}\n",
            self.device.display(),
            self.index,
            text::size(self.size),
            text::count(self.connections.into(), "connection", "connections"),
            self.server
        )
    }
}

fn place(device: Option<u32>) -> String {
    match device {
        Some(index) => format!("cannot attach nbd{index}"),
        None => "cannot attach a device".to_owned(),
    }
}

/// nbd.ko does not say why a device is busy; what is known of it does.
fn explained(device: Option<u32>, failure: Failure) -> Failure {
    let Some(device) = device.and_then(|index| device::one(index).ok()) else { return failure };
    if device.driver == Driver::Rnbd {
        return failure;
    }
    let advice = diagnosis::of(&device::Details::read(device)).into_iter().next();
    match advice {
        Some(advice) => {
            let to_do = advice.to_do.map(|to_do| format!(" {to_do}")).unwrap_or_default();
            failure.hint(format!("{}{to_do}", advice.what))
        }
        None => failure,
    }
}

/// What is asked for, or the least that server and disks have in common.
fn block_size(export: &Export, asked: Option<u32>) -> Result<u32> {
    let minimum = export.block_sizes.map_or(1, |sizes| sizes.minimum);
    let block_size = asked.unwrap_or(USUAL_BLOCK_SIZE.max(minimum));
    if block_size < minimum {
        let told = format!(
            "blocks of {block_size} bytes are too small for the server, which takes {minimum} at least"
        );
        return Err(Failure::new(Kind::Server, told).into());
    }
    if let Some(rest) = export.size.checked_rem(block_size.into()).filter(|rest| *rest != 0) {
        eprintln!(
            "rnbdctl: the export's last {rest} bytes are no whole block of {block_size} bytes, and cannot be reached"
        );
    }
    Ok(block_size)
}

fn client_flags(args: &ConnectArgs) -> u64 {
    let mut flags = 0;
    if args.destroy_on_disconnect {
        flags |= client_flag::DESTROY_ON_DISCONNECT;
    }
    if args.disconnect_on_close {
        flags |= client_flag::DISCONNECT_ON_CLOSE;
    }
    flags
}

/// The time-outs that are asked for, as attributes.
pub fn timeouts(args: &TimeoutArgs) -> impl Iterator<Item = netlink_packet_core::DefaultNla> {
    let timeout = args.timeout.map(|seconds| attr_u64(attr::TIMEOUT, seconds));
    let dead_timeout = args.dead_timeout.map(|seconds| attr_u64(attr::DEAD_CONN_TIMEOUT, seconds));
    timeout.into_iter().chain(dead_timeout)
}

/// Lets the block layer make no request larger than the server takes.
fn keep_to_maximum(index: u32, export: &Export) {
    let Some(sizes) = export.block_sizes else { return };
    let path = format!("/sys/block/nbd{index}/queue/max_sectors_kb");
    let now = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let maximum = sizes.maximum / 1024;
    if now.is_none_or(|now| now <= maximum) {
        return;
    }
    if let Err(error) = fs::write(&path, maximum.to_string()) {
        eprintln!(
            "rnbdctl: nbd{index}: the server takes requests of {} bytes at most, and the device cannot be held to that: {}",
            sizes.maximum,
            text::plain(&error)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::BlockSizes;

    fn export(size: u64, minimum: Option<u32>) -> Export {
        let block_sizes = minimum.map(|minimum| BlockSizes { minimum, preferred: 4096, maximum: 1 << 25 });
        Export { size, flags: TransmissionFlags::default(), block_sizes }
    }

    #[test]
    fn blocks_are_what_server_and_disk_can_both_do() {
        assert_eq!(block_size(&export(1 << 20, None), None).unwrap(), 512);
        assert_eq!(block_size(&export(1 << 20, Some(1)), None).unwrap(), 512);
        assert_eq!(block_size(&export(1 << 20, Some(4096)), None).unwrap(), 4096);
        assert_eq!(block_size(&export(1 << 20, Some(512)), Some(4096)).unwrap(), 4096);
        assert!(block_size(&export(1 << 20, Some(4096)), Some(512)).is_err());
    }
}
