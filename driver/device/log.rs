// SPDX-License-Identifier: GPL-2.0

//! Log lines about a device: as its disk's, if it has one.

/// Says something about a device, by `dev_*` of its disk or else by `pr_*` with its name.
macro_rules! device_log {
    ($dev:ident, $pr:ident, $device:expr, $($arg:tt)*) => {
        match $device.disk() {
            Some(disk) => kernel::$dev!(disk.device(), $($arg)*),
            None => kernel::$pr!("nbd{}: {}", $device.index(), kernel::prelude::fmt!($($arg)*)),
        }
    };
}

/// Says that something about a device failed.
macro_rules! device_err {
    ($($arg:tt)*) => {
        device_log!(dev_err, pr_err, $($arg)*)
    };
}
