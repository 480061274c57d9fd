// SPDX-License-Identifier: GPL-2.0

//! CONNECT: sets a device up and attaches it, in one step.

use super::request::{
    check_sender, offered, open_all, refuse, require, wait_loaded, Request, Settings,
};
use super::worker;
use crate::{
    abstractions::{
        net::{
            genetlink::{nla_total_size, Operation, PutAttributes, Validation},
            socket::Socket,
        },
        pid::ProcessRef,
    },
    driver::{
        device::{
            owner::Setup,
            refusal::{errno, RefusalMessage},
            start::{connect, NotConnected},
            Device,
        },
        devices::{Devices, Entry},
        wire::connection::ConnectionArray,
    },
    protocol::{
        netlink::{attribute, command},
        setup::{Config, Refusal},
    },
};
use kernel::{prelude::*, sync::Arc};

/// `NBD_CMD_CONNECT`.
pub(super) struct Connect;

impl Operation<Arc<Devices>> for Connect {
    const COMMAND: u8 = command::CONNECT;
    const VALIDATION: Validation = Validation::Liberal;

    /// Attaches the device that is asked for, or the first that is free, and replies with its
    /// number. Returns when the device serves requests.
    ///
    /// # Errors
    ///
    /// `EPERM`; `EINVAL` for an impossible index, a missing socket or size, a bad size, time-out or
    /// socket; `EBUSY` if the device is in use; `ENOSPC` if there cannot be another one; `EBUSY` if
    /// a signal came while the last attachment was awaited.
    fn doit(info: &Request<'_>) -> Result {
        check_sender(info)?;
        wait_loaded(info)?;
        let index = info.get(attribute::INDEX).map(|it| it.u32()).transpose()?;
        let most = info.data().most();
        if let Some(index) = index.filter(|&index| index >= most) {
            return Err(refuse(
                info,
                EINVAL,
                fmt!("there can be no nbd{index}: its number must be below {most}"),
            ));
        }
        require(info, attribute::SOCKETS, "a socket (NBD_ATTR_SOCKETS)")?;
        require(
            info,
            attribute::SIZE_BYTES,
            "the size (NBD_ATTR_SIZE_BYTES)",
        )?;
        let settings = Settings::of(info)?;
        let mut config = Config::default();
        settings.apply(info, &mut config)?;
        config.flags = settings.server_flags().unwrap_or_default();
        let request = ConnectRequest {
            devices: (*info.data()).into(),
            config,
            fds: offered(info)?,
            backend: backend(info)?,
        };
        let index = request.attach(info, index)?;

        // The device serves, whether or not that can be said.
        if let Err(error) = reply(info, index) {
            pr_warn!("nbd{index}: attached, but the sender could not be told ({error:?})\n");
        }
        Ok(())
    }
}

fn reply(info: &Request<'_>, index: u32) -> Result {
    let mut reply = info.new_reply(nla_total_size(size_of::<u32>()))?;
    reply.put_u32(attribute::INDEX, index)?;
    info.reply(reply)
}

/// Which backend a request names.
pub(super) fn backend(info: &Request<'_>) -> Result<Option<KVec<u8>>> {
    let Some(name) = info.get(attribute::BACKEND_IDENTIFIER) else {
        return Ok(None);
    };
    let mut copy = KVec::new();
    copy.extend_from_slice(name.string(), GFP_KERNEL)?;
    Ok(Some(copy))
}

/// What shall be attached.
struct ConnectRequest {
    devices: Arc<Devices>,
    config: Config,
    fds: KVec<u32>,
    backend: Option<KVec<u8>>,
}

impl ConnectRequest {
    /// Attaches device `index`, or the first that is free. Returns its number.
    fn attach(&self, info: &Request<'_>, index: Option<u32>) -> Result<u32> {
        // All is looked at before a device is made for it.
        let mut sockets = Some(open_all(info, &self.fds)?);
        self.config.may_have(self.fds.len()).map_err(|refusal| {
            refuse(
                info,
                errno(refusal),
                fmt!("{}", RefusalMessage::from(refusal)),
            )
        })?;
        let mut from = 0;
        loop {
            let entry = self.choose(info, index, from)?;
            let device = entry.device();
            let sockets = match sockets.take() {
                Some(sockets) => sockets,
                None => open_all(info, &self.fds)?,
            };
            let number = device.index();
            match self.try_attach(device, sockets) {
                Ok(()) => return Ok(number),
                Err(NotConnected::Failed(error)) => {
                    return Err(refuse(
                        info,
                        error,
                        fmt!("nbd{number}: cannot be attached ({error:?})"),
                    ));
                }
                Err(NotConnected::Interrupted) => {
                    return Err(refuse(
                        info,
                        EINTR,
                        fmt!("nbd{number}: a signal came while its last attachment was ending"),
                    ));
                }
                // It is being removed. The next try waits until it is gone.
                Err(NotConnected::Refused(Refusal::Gone)) => {}
                // Another one was faster.
                Err(NotConnected::Refused(
                    Refusal::Running | Refusal::Owned | Refusal::Held | Refusal::NeedsDisk,
                )) if index.is_none() => from = number.saturating_add(1),
                Err(NotConnected::Refused(refusal)) => {
                    let why = RefusalMessage::new(device, refusal);
                    return Err(refuse(info, errno(refusal), fmt!("nbd{number}: {why}")));
                }
            }
        }
    }

    fn choose(&self, info: &Request<'_>, index: Option<u32>, from: u32) -> Result<Arc<Entry>> {
        let devices = &self.devices;
        let found = match index {
            Some(index) => Devices::find_or_add(devices, index).map(Some),
            None => Devices::first_free(devices, from),
        };
        match found {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) => Err(refuse(
                info,
                ENOSPC,
                fmt!("no device is free, and there can be no more: disconnect one first"),
            )),
            Err(error) if error == EINTR => Err(refuse(
                info,
                error,
                fmt!("a signal came while the device was being made or removed"),
            )),
            Err(error) if error == EBUSY => Err(refuse(
                info,
                error,
                fmt!("its number is still in use by what was made on the device before that was removed: unmount or release it first"),
            )),
            Err(error) => Err(refuse(
                info,
                error,
                fmt!("there is no such device, nor can it be made ({error:?})"),
            )),
        }
    }

    fn try_attach(&self, device: &Arc<Device>, sockets: KVec<Socket>) -> Result<(), NotConnected> {
        let mut connections = ConnectionArray::default();
        for socket in sockets {
            connections
                .push(&device.journal, socket)
                .map_err(NotConnected::Failed)?;
        }
        let setup = Setup {
            owner: ProcessRef::current(),
            config: self.config,
            connections,
        };
        connect(device, setup, || {
            worker::keeper(&self.devices, device, self.backend.as_deref())
        })
    }
}
