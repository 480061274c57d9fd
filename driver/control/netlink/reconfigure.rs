// SPDX-License-Identifier: GPL-2.0

//! RECONFIGURE: changes an attached device, and gives its connections other sockets.

use super::{
    connect::backend,
    request::{device, offered, open_all, refuse, Request, Settings},
};
use crate::{
    abstractions::{
        memalloc::MemallocNoio,
        net::genetlink::{nla_total_size, Operation, PutAttributes, Validation},
    },
    driver::{
        attachment::{
            replace::{self, Scope},
            AttachmentRef,
        },
        device::{
            geometry,
            refusal::{errno, RefusalMessage},
            Device,
        },
        devices::Devices,
    },
    protocol::{
        netlink::{attribute, command},
        setup::{Config, Failure, Interface, Phase, Refusal},
    },
};
use kernel::{prelude::*, str::BStr, sync::Arc};

/// `NBD_CMD_RECONFIGURE`.
pub(super) struct Reconfigure;

impl Operation<Arc<Devices>> for Reconfigure {
    const COMMAND: u8 = command::RECONFIGURE;
    const VALIDATION: Validation = Validation::Liberal;

    /// Gives dead connections the sockets that are offered, and with
    /// [`HANDOVER`](attribute::HANDOVER) live ones too; then changes size, time-outs and flags.
    ///
    /// Sockets come first, and nothing here waits for requests that wait for one. A caller that asks for a
    /// handover, or offers more sockets than are taken, gets a reply that says how many were.
    ///
    /// # Errors
    ///
    /// `EPERM`; `EINVAL` for a missing index, another backend, a device that was not attached by
    /// netlink, or what CONNECT does not take: then nothing is changed. `EBUSY` if the block size
    /// shall change and requests are under way that are not answered: then all but the sizes is.
    fn doit(info: &Request<'_>) -> Result {
        let entry = device(info)?;
        let device = entry.device();
        let index = device.index();
        let (attachment, config) = running(info, device)?;
        check_backend(info, &attachment)?;
        let settings = Settings::of(info)?;
        settings.apply(info, &mut { config })?;
        let scope = match info.get(attribute::HANDOVER) {
            Some(_) => Scope::All,
            None => Scope::Dead,
        };
        let sockets = open_all(info, &offered(info)?)?;
        // What waits for memory may wait for this device.
        let _noio = MemallocNoio::save();
        let count = sockets.len();
        let taken = replace::sockets(&attachment, sockets, scope)
            .map_err(|error| refuse(info, error, fmt!("nbd{index}: no new socket ({error:?})")))?;
        change(info, device, &attachment, &settings)?;
        report(info, index, taken, count.saturating_sub(taken), scope)
    }
}

fn running(info: &Request<'_>, device: &Device) -> Result<(AttachmentRef, Config)> {
    if let Phase::Running {
        interface: Interface::Netlink,
        attachment,
        config,
        ..
    } = device.lock_setup().phase()
    {
        return Ok((attachment.clone(), *config));
    }
    Err(refuse_change(info, device, Refusal::NotNetlink))
}

fn refuse_change(info: &Request<'_>, device: &Device, refusal: Refusal) -> Error {
    let why = RefusalMessage::new(device, refusal);
    let index = device.index();
    refuse(info, errno(refusal), fmt!("nbd{index}: {why}"))
}

/// If the device was attached to a backend with a name, the same name must be given again.
fn check_backend(info: &Request<'_>, attachment: &AttachmentRef) -> Result {
    let Some(now) = attachment.keeper.backend() else {
        return Ok(());
    };
    match backend(info)? {
        Some(named) if *named == *now => Ok(()),
        Some(_) => Err(refuse(
            info,
            EINVAL,
            fmt!("another backend is attached: {}", BStr::from_bytes(now)),
        )),
        None => Err(refuse(
            info,
            EINVAL,
            fmt!("the backend (NBD_ATTR_BACKEND_IDENTIFIER) is missing"),
        )),
    }
}

/// Changes what is known of the export, if it still is that attachment's.
fn change(
    info: &Request<'_>,
    device: &Device,
    attachment: &AttachmentRef,
    settings: &Settings,
) -> Result {
    let mut before = Config::default();
    let mut after = before;
    let changed = device.change(|life| {
        if life.generation() != attachment.generation {
            return Err(Refusal::NotNetlink.into());
        }
        life.reconfigure(|config| {
            before = *config;
            settings.apply(info, config)?;
            after = *config;
            Ok(())
        })
    });
    changed.map_err(|failure| match failure {
        Failure::Refused(refusal) => refuse_change(info, device, refusal),
        Failure::Step(error) => error,
    })?;
    if settings.timeout.is_some() {
        geometry::apply_timeout(device, attachment);
    }
    if let Some(seconds) = settings.dead_conn_timeout {
        attachment.set_dead_conn_timeout(seconds);
    }
    if after.block_size != before.block_size {
        geometry::apply(device, attachment).map_err(|why| {
            let keep = |config: &mut Config| {
                config.block_size = before.block_size;
                config.size = before.size;
                Ok::<(), Error>(())
            };
            let _ = device.change(|life| {
                // What has been attached since has its own.
                let same = life.generation() == attachment.generation;
                same.then(|| life.reconfigure(keep))
            });
            refuse(info, why.errno(), fmt!("the sizes stay: {why}"))
        })?;
    } else if after.size != before.size {
        geometry::apply_size(device, attachment);
    }
    Ok(())
}

fn report(info: &Request<'_>, index: u32, taken: usize, left: usize, scope: Scope) -> Result {
    if left == 0 && scope == Scope::Dead {
        return Ok(());
    }
    if left > 0 {
        info.ext_ack().set_msg(fmt!(
            "{left} sockets were not taken: no connection needs them"
        ));
    }
    let size = nla_total_size(size_of::<u32>());
    let mut reply = info.new_reply(size.saturating_mul(3))?;
    reply.put_u32(attribute::INDEX, index)?;
    reply.put_u32(attribute::SOCKETS_TAKEN, u32::try_from(taken)?)?;
    reply.put_u32(attribute::SOCKETS_LEFT, u32::try_from(left)?)?;
    info.reply(reply)
}
