// SPDX-License-Identifier: GPL-2.0

//! DISCONNECT: ends a device's generation.

use super::request::{device, Request};
use crate::{
    abstractions::net::genetlink::{Operation, Validation},
    driver::{device::end, devices::Devices},
    protocol::netlink::command,
};
use kernel::{prelude::*, sync::Arc};

/// `NBD_CMD_DISCONNECT`.
pub(super) struct Disconnect;

impl Operation<Arc<Devices>> for Disconnect {
    const COMMAND: u8 = command::DISCONNECT;
    const VALIDATION: Validation = Validation::Liberal;

    /// Ends whatever generation the device has, and returns when that is gone. The server may
    /// answer what it was asked before; for a while, then it is not waited for.
    ///
    /// # Errors
    ///
    /// `EPERM`; `EINVAL` for a missing index, or if there is no such device; `EBUSY` if a signal
    /// came before the generation was gone, which it will be nevertheless.
    fn doit(info: &Request<'_>) -> Result {
        let entry = device(info)?;
        let device = entry.device();
        let index = device.index();
        end::disconnect(device);
        device.when_drained(|_| ()).map_err(|_| {
            info.ext_ack().err_msg(
                EINTR,
                fmt!("nbd{index}: a signal came; it is being detached nevertheless"),
            )
        })
    }
}
