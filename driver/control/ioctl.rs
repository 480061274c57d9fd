// SPDX-License-Identifier: GPL-2.0

//! The ioctl interface.
//!
//! C header: [`include/uapi/linux/nbd.h`](srctree/include/uapi/linux/nbd.h)

use crate::{
    abstractions::{block::mq::IoctlMode, capability::Capability},
    bindings as extra,
    driver::device::{end, refusal::refuse, run, setup, Device},
};
use kernel::{ioctl::_IOC_TYPE, prelude::*, sync::Arc};

/// The type of all of nbd's ioctls.
const TYPE: u32 = _IOC_TYPE(extra::NBD_SET_SOCK);

/// Handles an ioctl. Sleeps.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`; `EINVAL` for what is no ioctl of nbd, as nbd.ko says it;
/// `ENOTTY` for one that nbd does not have; else as the functions that are called.
pub(crate) fn handle(device: &Arc<Device>, mode: IoctlMode, cmd: u32, arg: usize) -> Result<i32> {
    if !Capability::SysAdmin.capable() {
        return Err(EPERM);
    }
    if _IOC_TYPE(cmd) != TYPE {
        return Err(EINVAL);
    }
    if cmd != extra::NBD_DO_IT {
        device.forget_absence();
    }
    // NBD_DO_IT may come back for a generation that has ended meanwhile; it looks by itself.
    if !matches!(
        cmd,
        extra::NBD_DISCONNECT | extra::NBD_CLEAR_SOCK | extra::NBD_DO_IT
    ) {
        device
            .change(|life| life.may_ioctl())
            .map_err(|refusal| refuse(device, refusal))?;
    }
    match cmd {
        extra::NBD_SET_SOCK => setup::add_socket(device, mode, arg)?,
        extra::NBD_SET_BLKSIZE => setup::set_block_size(device, arg)?,
        extra::NBD_SET_SIZE => setup::set_size(device, arg)?,
        extra::NBD_SET_SIZE_BLOCKS => setup::set_size_blocks(device, arg)?,
        extra::NBD_SET_FLAGS => setup::set_flags(device, arg)?,
        extra::NBD_SET_TIMEOUT => setup::set_timeout(device, arg)?,
        extra::NBD_DO_IT => run::run(device, mode)?,
        extra::NBD_DISCONNECT => end::disconnect(device),
        extra::NBD_CLEAR_SOCK => end::clear(device)?,
        // Clients still send these two; the queue is cleared, and nothing is there to be printed,
        // without being asked.
        extra::NBD_CLEAR_QUE | extra::NBD_PRINT_DEBUG => {}
        _ => return Err(ENOTTY),
    }
    Ok(0)
}
