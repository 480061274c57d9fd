// SPDX-License-Identifier: GPL-2.0

//! Calls to put to both, the driver's rules and the plain ones.

use super::Setting;
use proptest::prelude::*;
use rnbd_protocol::setup::{DiskUse, EndReason};

/// What a process does to the device, or what happens to it.
#[derive(Clone, Debug)]
pub enum Call {
    Add {
        works: bool,
        disk: DiskUse,
    },
    Configure(Setting),
    Start {
        works: bool,
        fits: bool,
        disk: DiskUse,
    },
    Connect {
        sockets: u32,
        flags: u32,
        destroy: bool,
        works: bool,
        fits: bool,
        disk: DiskUse,
    },
    Reconfigure(Setting),
    /// The number of a device that is gone is given to another.
    Anew,
    Clear,
    Retire(EndReason),
    Abandon,
    /// All requests of a generation that drains are done.
    Detached,
    Drained,
    /// The disk that is there is opened.
    Open,
    /// Some disk is closed; if that is the last close, and it is not refused, it is cleaned.
    Close {
        disk: usize,
        cleans: bool,
    },
    /// The device's disk is cleaned if it is not open.
    Clean,
    Die,
    Fork,
    Arrive,
}

/// Mostly able to have several connections.
fn any_flags() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0x100), any::<u32>()]
}

fn any_setting() -> impl Strategy<Value = Setting> {
    let edge = i64::MAX as u64;
    let bytes = prop_oneof![0..1_u64 << 20, edge - 1..=edge + 1, any::<u64>()];
    let block = prop_oneof![
        Just(0),
        (8..14_u32).prop_map(|shift| 1_u64 << shift),
        any::<u64>()
    ];
    prop_oneof![
        bytes.clone().prop_map(Setting::Size),
        bytes.prop_map(Setting::Blocks),
        block.prop_map(Setting::BlockSize),
        any_flags().prop_map(Setting::Flags),
        any::<u32>().prop_map(Setting::Timeout),
    ]
}

pub fn any_call() -> impl Strategy<Value = Call> {
    let disk = || prop_oneof![4 => Just(DiskUse::Shared), 1 => Just(DiskUse::Exclusive)];
    let works = || prop::bool::weighted(0.9);
    let reason = prop_oneof![
        Just(EndReason::Disconnected),
        Just(EndReason::ConnectionsLost),
        Just(EndReason::TimedOut),
        Just(EndReason::Interrupted),
        Just(EndReason::StartFailed),
        Just(EndReason::StartFailed),
    ];
    let fits = || prop::bool::weighted(0.9);
    prop_oneof![
        6 => (works(), disk()).prop_map(|(works, disk)| Call::Add { works, disk }),
        5 => any_setting().prop_map(Call::Configure),
        6 => (works(), fits(), disk())
            .prop_map(|(works, fits, disk)| Call::Start { works, fits, disk }),
        3 => (0..3_u32, any_flags(), prop::bool::weighted(0.2), works(), fits(), disk())
            .prop_map(|(sockets, flags, destroy, works, fits, disk)| Call::Connect {
                sockets,
                flags,
                destroy,
                works,
                fits,
                disk,
            }),
        3 => any_setting().prop_map(Call::Reconfigure),
        4 => Just(Call::Anew),
        1 => Just(Call::Clear),
        2 => reason.prop_map(Call::Retire),
        1 => Just(Call::Abandon),
        2 => Just(Call::Detached),
        4 => Just(Call::Drained),
        3 => Just(Call::Open),
        3 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(disk, cleans)| Call::Close { disk, cleans }),
        1 => Just(Call::Clean),
        2 => Just(Call::Die),
        2 => Just(Call::Fork),
        1 => Just(Call::Arrive),
    ]
}
