// SPDX-License-Identifier: GPL-2.0
//! `reconfigure` and `handover`: other sockets, or other settings, for a device that is attached.

use std::time::Duration;

use anyhow::Result;
use nbd_netlink::{Client, Message, attr, attr_flag, attr_string, attr_u64, from_bytes, value};
use netlink_packet_core::{DefaultNla, Nla as _};
use rnbd_protocol::flags::TransmissionFlags;
use serde::Serialize;

use crate::address::Address;
use crate::cli::{ExportArgs, HandoverArgs, ReconfigureArgs};
use crate::connect::timeouts;
use crate::device::{self, Details, Device, State};
use crate::driver::{self, Driver};
use crate::failure::{Failure, Kind};
use crate::server::{Session, Wanted};
use crate::text;

/// What is printed.
#[derive(Serialize)]
struct Changed {
    index: u32,
    offered: usize,
    /// None if the driver does not tell.
    taken: Option<usize>,
}

/// An attached device that is to be changed.
struct Target {
    client: Client,
    device: Device,
    read_only: bool,
}

impl Target {
    fn find(index: u32, what: &str) -> Result<Target> {
        let (_, client) = driver::privileged(what)?;
        let device = device::one(index)?;
        if matches!(device.state, State::Idle) {
            return Err(Failure::new(Kind::Refused, format!("nbd{index} is not attached"))
                .hint(format!("rnbdctl connect --device nbd{index} SERVER attaches it"))
                .into());
        }
        let read_only = Details::read(device.clone()).read_only;
        Ok(Target { client, device, read_only })
    }

    /// Connections to a server that shows what the device does.
    fn connect(
        &self,
        address: &Address,
        export: &ExportArgs,
        connections: usize,
        resize: bool,
    ) -> Result<Session> {
        let patience = Duration::from_secs(export.handshake_timeout);
        let session = Wanted { address, export: &export.export, connections, patience }.open()?;
        let (size, now) = (session.export.size, self.device.size);
        let differs = size / 512 != now / 512;
        if differs && !resize {
            let index = self.device.index;
            let told =
                format!("the export has {size} bytes, and nbd{index} has {now}: is that the same image?");
            let failure = Failure::new(Kind::Server, told);
            return Err(failure.hint("if it was resized: rnbdctl reconfigure --resize").into());
        }
        if session.export.flags.contains(TransmissionFlags::READ_ONLY) && !self.read_only {
            return Err(Failure::new(Kind::Server, "the export is read-only, and the device is not").into());
        }
        Ok(session)
    }

    /// RECONFIGURE. Returns how many sockets were taken, if that is told.
    fn reconfigure(&self, session: &mut Option<Session>, options: &[DefaultNla]) -> Result<Option<usize>> {
        let index = self.device.index;
        let fds = session.as_ref().map(Session::fds).unwrap_or_default();
        // A socket that the kernel may have is not ours to say goodbye on.
        if let Some(session) = session {
            session.give_away(fds.len());
        }
        let answer = self.client.reconfigure(index, &fds, options)?;
        let replies = driver::granted(&format!("cannot change nbd{index}"), answer)?;
        match (told(&replies), self.device.driver) {
            (Some(taken), _) => Ok(Some(taken)),
            // Without a reply all were taken.
            (None, Driver::Rnbd) => Ok(Some(fds.len())),
            (None, Driver::Nbd) => Ok(None),
        }
    }
}

/// How many sockets a reply says were taken.
fn told(replies: &[Message]) -> Option<usize> {
    let attributes = from_bytes(&replies.first()?.payload).ok()?;
    let taken = attributes.iter().find(|attribute| attribute.kind() == attr::SOCKETS_TAKEN)?;
    Some(u32::from_ne_bytes(value(taken)[..].try_into().ok()?) as usize)
}

fn backend(name: Option<&String>) -> Option<DefaultNla> {
    name.map(|name| attr_string(attr::BACKEND_IDENTIFIER, name))
}

pub fn reconfigure(args: &ReconfigureArgs) -> Result<()> {
    let target = Target::find(args.device, "reconfigure")?;
    let mut options: Vec<_> = timeouts(&args.timeouts).chain(backend(args.backend.as_ref())).collect();
    let mut session = match &args.server {
        Some(server) => {
            let dead =
                target.device.connections.map(|connections| connections.all.saturating_sub(connections.live));
            let wanted = args.connections.map(usize::from).or(dead.map(|dead| dead as usize)).unwrap_or(1);
            if wanted == 0 {
                let told = format!("no connection of nbd{} is dead", args.device);
                let hint = format!("rnbdctl handover nbd{} {server} replaces live ones", args.device);
                return Err(Failure::new(Kind::Refused, told).hint(hint).into());
            }
            let session = target.connect(server, &args.export, wanted, args.resize)?;
            if args.resize {
                options.push(attr_u64(attr::SIZE_BYTES, session.export.size));
            }
            Some(session)
        }
        None => None,
    };
    let offered = session.as_ref().map_or(0, |session| session.fds().len());
    let taken = target.reconfigure(&mut session, &options)?;
    let changed = Changed { index: args.device, offered, taken };
    if args.json {
        return text::print_json(&changed);
    }
    text::print(&match (offered, taken) {
        (0, _) => format!("nbd{}: changed\n", args.device),
        (_, Some(taken)) => format!("nbd{}: {taken} of {offered} sockets were taken\n", args.device),
        (_, None) => {
            format!("nbd{}: {offered} offered; nbd.ko does not tell how many it took\n", args.device)
        }
    })
}

pub fn handover(args: &HandoverArgs) -> Result<()> {
    let index = args.device;
    let target = Target::find(index, "handover")?;
    if target.device.driver == Driver::Nbd {
        return Err(no_handover(index).into());
    }
    let all = target.device.connections.map_or(1, |connections| connections.all) as usize;
    let wanted = args.connections.map_or(all.max(1), usize::from);
    let mut session = Some(target.connect(&args.server, &args.export, wanted, false)?);
    let options: Vec<_> =
        backend(args.backend.as_ref()).into_iter().chain([attr_flag(attr::HANDOVER)]).collect();
    // Without a number nothing was handed over, whatever else was done.
    let taken = target.reconfigure(&mut session, &options)?.ok_or_else(|| no_handover(index))?;
    let changed = Changed { index, offered: wanted, taken: Some(taken) };
    if args.json {
        text::print_json(&changed)?;
    } else {
        text::print(&format!(
            "nbd{index}: {taken} of {wanted} sockets were taken by its {}\n",
            connections(all)
        ))?;
    }
    if taken == 0 {
        return Err(Failure::new(Kind::Refused, format!("nothing of nbd{index} was handed over")).into());
    }
    Ok(())
}

fn connections(count: usize) -> String {
    if count == 1 { "connection".to_owned() } else { format!("{count} connections") }
}

fn no_handover(index: u32) -> Failure {
    Failure::new(Kind::Refused, format!("nbd{index}: nbd.ko cannot hand live connections over; rnbd.ko can"))
        .hint("a connection that is dead can be replaced: rnbdctl reconfigure")
}
