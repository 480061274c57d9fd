// SPDX-License-Identifier: GPL-2.0

//! The generic netlink family `nbd`.
//!
//! * [`policy`]: what attributes hold.
//! * [`request`]: what requests have in common.
//! * [`connect`], [`disconnect`], [`reconfigure`], [`status`]: the commands.
//! * [`worker`]: the keeper of what was connected.

mod connect;
mod disconnect;
mod policy;
mod reconfigure;
mod request;
mod status;
mod worker;

use crate::{
    abstractions::net::genetlink::{
        nla_total_size, Declaration, Family, MulticastGroup, PutAttributes, Registration, SmallOps,
    },
    driver::devices::Devices,
    protocol::netlink::{attribute, command, FAMILY_NAME, FAMILY_VERSION, MULTICAST_GROUP},
};
use kernel::{prelude::*, sync::Arc};

/// The family.
///
/// Unlike nbd.ko's its operations run in parallel: none waits for another one's device, nor do
/// other families wait for them.
static FAMILY: Family<Arc<Devices>> = Family::new(Declaration {
    module: crate::this_module(),
    name: FAMILY_NAME,
    version: FAMILY_VERSION,
    policies: policy::ATTRIBUTES.as_slice(),
    groups: &GROUPS,
    operations: &OPERATIONS,
    netnsok: true,
    parallel_ops: true,
    resv_start_op: FIRST_STRICT_COMMAND,
});

/// All commands that nbd.ko has are older than strict validation.
const FIRST_STRICT_COMMAND: u8 = command::STATUS + 1;

static GROUPS: [MulticastGroup; 1] = [MulticastGroup::const_new(MULTICAST_GROUP)];

static OPERATIONS: [SmallOps<Arc<Devices>>; 4] = [
    SmallOps::of::<connect::Connect>(),
    SmallOps::of::<disconnect::Disconnect>(),
    SmallOps::of::<reconfigure::Reconfigure>(),
    SmallOps::of::<status::Status>(),
];

/// Answers requests about `devices` from now on, until what is returned is dropped.
pub(crate) fn register(devices: Arc<Devices>) -> Result<Registration<Arc<Devices>>> {
    FAMILY.register(devices).inspect_err(|error| {
        pr_err!(
            "cannot register the generic netlink family nbd ({error:?}): is there one already?\n"
        );
    })
}

/// Tells the listeners that a connection of a device is dead. Sleeps, but waits for none of them.
pub(crate) fn link_dead(device: u32) {
    let tell = || {
        let mut message =
            FAMILY.new_notification(command::LINK_DEAD, nla_total_size(size_of::<u32>()))?;
        message.put_u32(attribute::INDEX, device)?;
        FAMILY.multicast(0, message)
    };
    // A listener whose socket is full is told that by the C side; without memory nothing is said.
    let _: Result = tell();
}
