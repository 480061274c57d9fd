// SPDX-License-Identifier: GPL-2.0

//! The driver's setup, retold for loom around the real [`Lifecycle`].
//!
//! Mirrors `driver/setup.rs`, `driver/keeper.rs`, `driver/teardown.rs` and `when_drained` of
//! `driver/device.rs`: change them together. What netlink adds is in [`netlink`](crate::netlink).
//! Which disk a generation gets is in [`disk`](crate::disk); here it has it in one step.

use crate::{
    device::{Device, Ledger, Process, Refused, Socket},
    netlink::Worker,
    rules::Rules,
};
use loom::sync::{
    atomic::{AtomicBool, Ordering},
    Condvar, Mutex, MutexGuard,
};
use rnbd_protocol::{
    flags::TransmissionFlags,
    setup::{
        Configured, Connections, DiskPlan, DiskUse, EndReason, Failure, Kinds, Lifecycle, Owner,
        Phase, Refusal, Retired,
    },
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex as StdMutex},
};

pub enum World {}

impl Kinds for World {
    type Owner = Process;
    type Connections = Sockets;
    type Attachment = Arc<Attachment>;
}

#[derive(Default)]
pub struct Sockets(pub Vec<Socket>);

impl Connections for Sockets {
    fn count(&self) -> usize {
        self.0.len()
    }
}

impl Owner for Process {
    fn is_alive(&self) -> bool {
        Process::is_alive(self)
    }

    fn is_parent_of_caller(&self) -> bool {
        Process::is_parent_of_caller(self)
    }
}

/// `driver/attachment.rs`, of which only the sockets matter here.
pub struct Attachment {
    pub generation: u64,
    sockets: StdMutex<Vec<Socket>>,
    /// The worker that ends it; none if that is a task in `NBD_DO_IT`.
    worker: Option<Worker>,
}

impl Attachment {
    pub fn new(generation: u64, sockets: Vec<Socket>, worker: Option<Worker>) -> Arc<Self> {
        Arc::new(Self {
            generation,
            sockets: StdMutex::new(sockets),
            worker,
        })
    }

    pub fn kill_all(&self) {
        let sockets = self.sockets.lock().unwrap();
        sockets.iter().for_each(Socket::shutdown);
    }

    pub fn ask_for_end(self: &Arc<Self>) {
        if let Some(worker) = &self.worker {
            worker.tell(self, |end| end.asked = true);
        }
    }

    pub fn is_up(self: &Arc<Self>) {
        if let Some(worker) = &self.worker {
            worker.tell(self, |end| end.armed = true);
        }
    }
}

pub struct Rnbd {
    setup: Mutex<Lifecycle<World>>,
    pub phase_changed: Condvar,
    /// `used` of `driver/device.rs`.
    used: AtomicBool,
    pub ledger: Arc<Ledger>,
}

/// `Device::fit_disk`, in one step.
pub fn fit_disk(life: &mut Lifecycle<World>, plan: DiskPlan) {
    if plan == DiskPlan::Replace {
        let serial = life.disk.replace().expect("no generation is attached");
        life.disk.added(serial);
    }
}

pub fn dispose(sockets: Sockets) {
    sockets.0.iter().for_each(Socket::shutdown);
}

impl Rnbd {
    pub fn lock(&self) -> MutexGuard<'_, Lifecycle<World>> {
        self.setup.lock().unwrap()
    }

    pub fn when_drained<R>(&self, step: impl FnOnce(&mut Lifecycle<World>) -> R) -> R {
        let mut life = self.lock();
        while matches!(life.phase(), Phase::Draining { .. }) {
            life = self.phase_changed.wait(life).unwrap();
        }
        step(&mut life)
    }

    /// Under the setup lock: what ends a generation, told to the ledger.
    pub fn ending<R>(
        &self,
        life: &mut Lifecycle<World>,
        end: impl FnOnce(&mut Lifecycle<World>) -> R,
        ended: impl FnOnce(&R) -> bool,
    ) -> R {
        let generation = life.generation();
        let result = end(life);
        if ended(&result) {
            self.ledger.ended(generation);
        }
        result
    }

    // driver/device.rs

    pub fn note_use(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    pub fn forget_use(&self) {
        self.used.store(false, Ordering::Relaxed);
    }

    fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    // driver/setup.rs

    fn set_flags(&self, caller: &Process) -> Result<(), Refused> {
        let configured = self.when_drained(|life| {
            self.ending(
                life,
                |life| {
                    life.configure(caller.clone(), |config| {
                        config.flags = TransmissionFlags::CAN_MULTI_CONN;
                        Ok::<_, Infallible>(())
                    })
                },
                |configured| matches!(configured, Ok(Configured::Setup(Some(_)))),
            )
        });
        match configured {
            Ok(Configured::Setup(Some(orphan))) => dispose(orphan),
            Ok(_) => {}
            Err(_) => return Err(Refused),
        }
        Ok(())
    }

    // driver/teardown.rs

    fn stop(&self, retired: Retired<World>) -> bool {
        match retired {
            Retired::Nothing => false,
            Retired::Setup(sockets) => {
                dispose(sockets);
                false
            }
            Retired::Stopped(attachment) | Retired::AlreadyDraining(attachment) => {
                attachment.kill_all();
                attachment.ask_for_end();
                true
            }
        }
    }

    fn tell_server(&self, retired: Retired<World>) {
        match retired {
            Retired::Nothing | Retired::AlreadyDraining(_) => {}
            Retired::Setup(sockets) => dispose(sockets),
            // The keeper is told, and shuts the sockets down.
            Retired::Stopped(attachment) => attachment.ask_for_end(),
        }
    }

    /// `closed`, for the last one.
    pub fn closed_last(&self, rules: Rules) {
        if rules.closes_in_one_step {
            let mut life = self.lock();
            if ends_with_use(&life) && self.was_used() {
                let retire = |life: &mut Lifecycle<World>| life.retire(EndReason::Disconnected);
                let retired = self.ending(&mut life, retire, ends);
                drop(life);
                self.tell_server(retired);
            }
        } else {
            let ends = ends_with_use(&self.lock());
            if ends && self.was_used() {
                self.disconnect();
            }
        }
    }

    pub fn retire(&self, reason: EndReason) -> Retired<World> {
        self.ending(&mut self.lock(), |life| life.retire(reason), ends)
    }

    // driver/keeper.rs

    fn start(&self, caller: &Process) -> Result<Arc<Attachment>, Refused> {
        loop {
            self.when_drained(|_| ());
            let started = {
                let mut life = self.lock();
                caller.calls();
                if let Ok((plan, _)) = life.plan_start(caller, DiskUse::Shared) {
                    fit_disk(&mut life, plan);
                }
                life.start(caller.clone(), DiskUse::Shared, |generation, setup| {
                    let sockets = core::mem::take(&mut setup.connections.0);
                    self.ledger.started(generation, &sockets);
                    Ok::<_, Infallible>(Attachment::new(generation, sockets, None))
                })
            };
            match started {
                Ok(attachment) => return Ok(attachment),
                Err(Failure::Refused(Refusal::Draining)) => {}
                Err(_) => return Err(Refused),
            }
        }
    }
}

fn ends_with_use(life: &Lifecycle<World>) -> bool {
    matches!(
        life.phase(),
        Phase::Running { config, .. } if config.disconnect_on_close
    )
}

fn ends(retired: &Retired<World>) -> bool {
    matches!(retired, Retired::Setup(_) | Retired::Stopped(_))
}

impl Device for Rnbd {
    fn new(ledger: &Arc<Ledger>) -> Self {
        Self {
            setup: Mutex::new(Lifecycle::default()),
            phase_changed: Condvar::new(),
            used: AtomicBool::new(false),
            ledger: ledger.clone(),
        }
    }

    fn set_sock(&self, caller: &Process) -> Result<(), Refused> {
        self.when_drained(|life| life.may_add(caller, DiskUse::Shared))
            .map_err(|_| Refused)?;
        let socket = self.ledger.socket(caller);
        let (replaced, added) = self.when_drained(|life| {
            self.ending(
                life,
                |life| {
                    life.add(caller.clone(), DiskUse::Shared, |generation, sockets| {
                        self.ledger.added(&socket, generation);
                        sockets.0.push(socket);
                        Ok::<_, Infallible>(())
                    })
                },
                |(replaced, _)| replaced.is_some(),
            )
        });
        if let Some(orphan) = replaced {
            dispose(orphan);
        }
        added.map_err(|_| Refused)?;
        // As multi-connection clients do; a process that lost the setup meanwhile is refused, or
        // starts another one without a socket.
        self.set_flags(caller)
    }

    fn do_it(&self, caller: &Process) -> Result<(), Refused> {
        let attachment = self.start(caller)?;
        // The server closes.
        let retired = self.retire(EndReason::ConnectionsLost);
        assert!(self.stop(retired), "what runs was ended behind its keeper");
        // `drain`: only the phase and the tasks that have just ended it hold the attachment.
        drop(attachment);
        let reason = self.lock().drained();
        assert!(reason.is_some(), "what drains was ended behind its keeper");
        self.phase_changed.notify_all();
        Ok(())
    }

    fn clear_sock(&self, caller: &Process) {
        let retired = self.ending(&mut self.lock(), |life| life.clear(caller), ends);
        if self.stop(retired) {
            self.when_drained(|_| ());
        }
    }

    fn disconnect(&self) {
        self.tell_server(self.retire(EndReason::Disconnected));
    }

    fn closed_by_death(&self, process: &Process) {
        let abandoned = {
            let mut life = self.lock();
            let dying_owner = matches!(
                life.phase(),
                Phase::Setup(setup) if setup.owner == *process && !setup.owner.is_alive()
            );
            if dying_owner {
                self.ending(&mut life, Lifecycle::abandon_setup, Option::is_some)
            } else {
                None
            }
        };
        if let Some(sockets) = abandoned {
            dispose(sockets);
        }
    }
}
