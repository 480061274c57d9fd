// SPDX-License-Identifier: GPL-2.0

//! The keeper of a generation that was attached by netlink: a worker, for the task that asked is
//! gone.

use crate::{
    abstractions::{
        module_ref::ModuleRef,
        work::{WithWork, WorkFunc},
    },
    driver::{
        attachment::{keeper::Keeper, Attachment, AttachmentRef},
        device::{drain, Device},
        devices::Devices,
    },
    protocol::setup::Interface,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// Ends a generation when that is asked for.
#[pin_data]
struct Worker {
    devices: Arc<Devices>,
    device: Arc<Device>,
    /// Which backend it is, as the one who attached it said.
    backend: Option<KVec<u8>>,
    /// What is to be ended.
    #[pin]
    due: Mutex<Option<AttachmentRef>>,
    /// No open file keeps the module: this does.
    _module: ModuleRef,
}

/// A [`Worker`] that can be scheduled.
struct Scheduled(Arc<WithWork<Worker>>);

/// The keeper of a generation of `device`. Sleeps.
pub(super) fn keeper(
    devices: &Arc<Devices>,
    device: &Arc<Device>,
    backend: Option<&[u8]>,
) -> Result<KBox<dyn Keeper<Attachment>>> {
    let backend = match backend {
        Some(backend) => {
            let mut copy = KVec::new();
            copy.extend_from_slice(backend, GFP_KERNEL)?;
            Some(copy)
        }
        None => None,
    };
    let module = ModuleRef::try_get(devices.module()).ok_or(ENODEV)?;
    let worker = Arc::pin_init(
        WithWork::new(pin_init!(Worker {
            devices: devices.clone(),
            device: device.clone(),
            backend,
            due <- new_mutex!(None, "rnbd::due"),
            _module: module,
        })),
        GFP_KERNEL,
    )?;
    Ok(KBox::new(Scheduled(worker), GFP_KERNEL)?)
}

impl Keeper<Attachment> for Scheduled {
    fn interface(&self) -> Interface {
        Interface::Netlink
    }

    fn backend(&self) -> Option<&[u8]> {
        self.0.backend.as_deref()
    }

    fn end_due(&self, attachment: &AttachmentRef) {
        *self.0.due.lock() = Some(attachment.clone());
        WithWork::queue_work(&self.0, self.0.devices.workers());
    }
}

impl WorkFunc for Worker {
    fn run(this: &Arc<WithWork<Self>>) {
        let Some(attachment) = this.due.lock().take() else {
            return;
        };
        drain::finish(&this.device, &attachment, || {
            this.devices.take_out(this.device.index())
        });
    }
}
