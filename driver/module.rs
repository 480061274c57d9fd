// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading.

use super::{
    control::netlink, device::maker::Maker, devices::Devices, nbd::Nbd, params::Params, show::sysfs,
};
use crate::abstractions::{
    block::{major::Major, mq::Disk},
    net::genetlink::Registration,
    workqueue::Workqueue,
};
use kernel::{bindings, debugfs::Dir, prelude::*, sync::Arc};

/// The loaded module.
pub(crate) struct Module {
    // Dropped in this order: what asks for devices, the devices, what they are made of.
    _netlink: Registration<Arc<Devices>>,
    _devices: AllDevices,
    _major: Major,
}

/// All devices, in the system until this is dropped. None is in use then.
struct AllDevices {
    devices: Arc<Devices>,
    workers: Arc<Workqueue>,
    watchers: Arc<Workqueue>,
    disks: Arc<Workqueue>,
}

impl Drop for AllDevices {
    fn drop(&mut self) {
        // A worker that has just ended the last generation of a device may not have returned yet.
        self.workers.flush();
        self.watchers.flush();
        self.devices.remove_all();
        self.disks.flush();
        // Who closed a disk that was replaced may be about to free it.
        Disk::<Nbd>::wait_for_all_freed();
    }
}

impl kernel::Module for Module {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let params = Params::read()?;
        let major = Major::register(bindings::NBD_MAJOR, c"nbd").inspect_err(|error| {
            pr_err!(
                "major number {} is taken ({error:?}): is nbd.ko loaded? Unload it first: modprobe -r nbd\n",
                bindings::NBD_MAJOR
            );
        })?;
        let workers = Arc::new(Workqueue::new(c"rnbd")?, GFP_KERNEL)?;
        let watchers = Arc::new(Workqueue::without_rescuer(c"rnbd-away")?, GFP_KERNEL)?;
        let disks = Arc::new(Workqueue::new(c"rnbd-disks")?, GFP_KERNEL)?;
        let maker = Maker {
            module,
            params,
            attributes: &sysfs::GROUP,
            link_dead: netlink::link_dead,
            workers: workers.clone(),
            watchers: watchers.clone(),
            disks: disks.clone(),
        };
        let devices = AllDevices {
            devices: Devices::new(Arc::new(maker, GFP_KERNEL)?, Dir::new(c"nbd"))?,
            workers,
            watchers,
            disks,
        };
        // Before the first disk: after that nothing may fail, for disks are opened at once.
        let netlink = netlink::register(devices.devices.clone())?;
        Devices::add_initial(&devices.devices);
        Ok(Self {
            _netlink: netlink,
            _devices: devices,
            _major: major,
        })
    }
}
