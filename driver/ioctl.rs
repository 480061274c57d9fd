// SPDX-License-Identifier: GPL-2.0

//! The ioctl interface.
//!
//! C header: [`include/uapi/linux/nbd.h`](srctree/include/uapi/linux/nbd.h)

use super::{device::Device, keeper, setup, teardown};
use crate::abstractions::{
    block::mq::{Disk, IoctlMode},
    capability::Capability,
};
use kernel::{
    ioctl::{_IO, _IOC_TYPE},
    prelude::*,
};

/// All of nbd's ioctls have this type.
const TYPE: u32 = 0xab;

const SET_SOCK: u32 = _IO(TYPE, 0);
const SET_BLKSIZE: u32 = _IO(TYPE, 1);
const SET_SIZE: u32 = _IO(TYPE, 2);
const DO_IT: u32 = _IO(TYPE, 3);
const CLEAR_SOCK: u32 = _IO(TYPE, 4);
const CLEAR_QUE: u32 = _IO(TYPE, 5);
const PRINT_DEBUG: u32 = _IO(TYPE, 6);
const SET_SIZE_BLOCKS: u32 = _IO(TYPE, 7);
const DISCONNECT: u32 = _IO(TYPE, 8);
const SET_TIMEOUT: u32 = _IO(TYPE, 9);
const SET_FLAGS: u32 = _IO(TYPE, 10);

/// Handles an ioctl. Sleeps.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`; `EINVAL` for what is no ioctl of nbd, as nbd.ko says it;
/// `ENOTTY` for one that nbd does not have; else as the functions that are called.
pub(super) fn handle(disk: &Disk<Device>, mode: IoctlMode, cmd: u32, arg: usize) -> Result<i32> {
    if !Capability::SysAdmin.capable() {
        return Err(EPERM);
    }
    if _IOC_TYPE(cmd) != TYPE {
        return Err(EINVAL);
    }
    if !matches!(cmd, DISCONNECT | CLEAR_SOCK) {
        disk.data()
            .change(|life| life.may_ioctl())
            .map_err(|refusal| setup::refuse(disk, refusal))?;
    }
    match cmd {
        SET_SOCK => setup::add_socket(disk, mode, arg)?,
        SET_BLKSIZE => setup::set_block_size(disk, arg)?,
        SET_SIZE => setup::set_size(disk, arg)?,
        SET_SIZE_BLOCKS => setup::set_size_blocks(disk, arg)?,
        SET_FLAGS => setup::set_flags(disk, arg)?,
        SET_TIMEOUT => setup::set_timeout(disk, arg)?,
        DO_IT => keeper::run(disk, mode)?,
        DISCONNECT => teardown::disconnect(disk),
        CLEAR_SOCK => teardown::clear(disk)?,
        // Clients still send these two; the queue is cleared, and nothing is there to be printed,
        // without being asked.
        CLEAR_QUE | PRINT_DEBUG => {}
        _ => return Err(ENOTTY),
    }
    Ok(0)
}
