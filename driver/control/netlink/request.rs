// SPDX-License-Identifier: GPL-2.0

//! What requests have in common: who may send them, and what they say of an export.

use super::policy;
use crate::{
    abstractions::{
        block::mq::max_block_size,
        capability::Capability,
        net::{
            genetlink::{Attribute, Info, Validation},
            socket::Socket,
        },
    },
    driver::{
        device::refusal::{Bad, NotTaken, MAX_TIMEOUT},
        devices::{Devices, Entry},
    },
    protocol::{
        flags::TransmissionFlags,
        geometry::{BadGeometry, BlockSize, ExportSize},
        netlink::{attribute, socket, ClientFlags},
        setup::Config,
    },
};
use kernel::{fmt, prelude::*, sync::Arc};

/// A request to this family.
pub(super) type Request<'a> = Info<'a, Arc<Devices>>;

/// Says why a request is refused, in the log and to the sender, and returns `error`.
#[must_use]
pub(super) fn refuse(info: &Request<'_>, error: Error, why: fmt::Arguments<'_>) -> Error {
    pr_err!("netlink: {why}\n");
    info.ext_ack().err_msg(error, why)
}

/// Whether the sender may change devices: `EPERM` if not.
pub(super) fn check_sender(info: &Request<'_>) -> Result {
    if info.netlink_capable(Capability::SysAdmin) {
        return Ok(());
    }
    Err(info
        .ext_ack()
        .err_msg(EPERM, fmt!("this needs CAP_SYS_ADMIN")))
}

/// Waits until the module has made its devices, which it does when it answers already.
pub(super) fn wait_loaded(info: &Request<'_>) -> Result {
    info.data().wait_loaded().map_err(|error| {
        info.ext_ack().err_msg(
            error,
            fmt!("a signal came while the module was being loaded"),
        )
    })
}

/// The device that a request names, which must be there: `EINVAL` if it is not. After the sender was
/// checked.
pub(super) fn device(info: &Request<'_>) -> Result<Arc<Entry>> {
    check_sender(info)?;
    wait_loaded(info)?;
    let index = require(info, attribute::INDEX, "the device (NBD_ATTR_INDEX)")?.u32()?;
    info.data()
        .find(index)
        .ok_or_else(|| refuse(info, EINVAL, fmt!("there is no nbd{index}")))
}

/// An attribute that must be there: `EINVAL` if it is not.
pub(super) fn require<'a>(info: &Request<'a>, number: u16, what: &str) -> Result<Attribute<'a>> {
    info.require(number)
        .map_err(|error| refuse(info, error, fmt!("{what} is missing")))
}

/// What a request says of an export, and of how it is to be served.
pub(super) struct Settings {
    size: Option<u64>,
    block_size: Option<u64>,
    pub(super) timeout: Option<u32>,
    pub(super) dead_conn_timeout: Option<u32>,
    server_flags: Option<u64>,
    client_flags: Option<ClientFlags>,
}

impl Settings {
    /// Reads a request's attributes.
    pub(super) fn of(info: &Request<'_>) -> Result<Self> {
        let number = |attribute| info.get(attribute).map(Attribute::u64).transpose();
        let seconds = |attribute, what| match number(attribute)? {
            None => Ok(None),
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds) if seconds <= MAX_TIMEOUT => Ok(Some(seconds)),
                _ => Err(refuse(
                    info,
                    EINVAL,
                    fmt!("{what} of {seconds} s: must be at most {MAX_TIMEOUT}"),
                )),
            },
        };
        Ok(Self {
            size: number(attribute::SIZE_BYTES)?,
            block_size: number(attribute::BLOCK_SIZE_BYTES)?,
            timeout: seconds(attribute::TIMEOUT, "time-out")?,
            dead_conn_timeout: seconds(attribute::DEAD_CONN_TIMEOUT, "dead connection time-out")?,
            server_flags: number(attribute::SERVER_FLAGS)?,
            client_flags: number(attribute::CLIENT_FLAGS)?.map(ClientFlags::from_bits),
        })
    }

    /// Changes `config` as the request says. If that cannot be, the sender is told so.
    pub(super) fn apply(&self, info: &Request<'_>, config: &mut Config) -> Result {
        self.apply_geometry(config)
            .map_err(|bad| refuse(info, EINVAL, fmt!("{}", Bad(bad))))?;
        config.timeout = self.timeout.unwrap_or(config.timeout);
        config.dead_conn_timeout = self.dead_conn_timeout.unwrap_or(config.dead_conn_timeout);
        if let Some(flags) = self.client_flags {
            config.destroy_on_disconnect = flags.contains(ClientFlags::DESTROY_ON_DISCONNECT);
            config.disconnect_on_close = flags.contains(ClientFlags::DISCONNECT_ON_CLOSE);
        }
        Ok(())
    }

    fn apply_geometry(&self, config: &mut Config) -> Result<(), BadGeometry> {
        if let Some(bytes) = self.block_size {
            config.block_size = BlockSize::new(bytes, max_block_size())?;
        }
        if let Some(bytes) = self.size {
            config.size = ExportSize::from_bytes(bytes)?;
        }
        Ok(())
    }

    /// What the export can do, if the request says so. Only CONNECT may.
    pub(super) fn server_flags(&self) -> Option<TransmissionFlags> {
        // Flags have 32 bits, here and with nbd.ko.
        self.server_flags
            .map(|flags| TransmissionFlags::from_bits(flags as u32))
    }
}

/// The file descriptors of the sockets that a request offers.
pub(super) fn offered(info: &Request<'_>) -> Result<KVec<u32>> {
    let mut fds = KVec::new();
    let Some(list) = info.get(attribute::SOCKETS) else {
        return Ok(fds);
    };
    for item in list.nested() {
        if item.number() != socket::ITEM {
            info.ext_ack().set_bad_attr(item);
            return Err(refuse(
                info,
                EINVAL,
                fmt!("a socket must be in an NBD_SOCK_ITEM"),
            ));
        }
        let parsed = item
            .parse_nested(&policy::SOCKET, Validation::Liberal, &info.ext_ack())
            .inspect_err(|_| pr_err!("netlink: a socket's item is malformed\n"))
            .map_err(|_| EINVAL)?;
        if let Some(fd) = parsed.get(socket::FD) {
            fds.push(fd.u32()?, GFP_KERNEL)?;
        }
    }
    Ok(fds)
}

/// The sockets behind the sender's file descriptors: all, or an error for the first that is none.
pub(super) fn open_all(info: &Request<'_>, fds: &[u32]) -> Result<KVec<Socket>> {
    let mut sockets = KVec::with_capacity(fds.len(), GFP_KERNEL)?;
    for &fd in fds {
        let fd = i32::try_from(fd)
            .map_err(|_| refuse(info, EINVAL, fmt!("{fd} is no file descriptor")))?;
        let socket = Socket::from_fd(fd).map_err(|why| {
            let not_taken = NotTaken { fd, why };
            refuse(info, not_taken.errno(), fmt!("{not_taken}"))
        })?;
        sockets.push(socket, GFP_KERNEL)?;
    }
    Ok(sockets)
}
