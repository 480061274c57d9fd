// SPDX-License-Identifier: GPL-2.0

//! What netlink adds to the driver's setup, and the table of devices, retold for loom.
//!
//! Mirrors `driver/netlink/`, `driver/devices.rs`, and of `driver/keeper.rs` and
//! `driver/drain.rs` what is for netlink: change them together. There is one number for devices.

use crate::{
    device::{Device, Ledger, Process, Refused},
    rnbd::{dispose, fit_disk, Attachment, Rnbd, Sockets},
    rules::Rules,
};
use loom::sync::{Condvar, Mutex};
use rnbd_protocol::{
    flags::TransmissionFlags,
    setup::{Config, DiskUse, Failure, Interface, Phase, Refusal, Setup},
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex as StdMutex},
};

/// How a device is attached.
#[derive(Clone, Copy)]
pub struct Wish {
    /// The device goes with the generation.
    pub destroy: bool,
    /// The last close ends the generation, if the disk was used.
    pub disconnect_on_close: bool,
    pub rules: Rules,
}

impl Wish {
    /// That it stays attached, and stays.
    pub const PLAIN: Self = Self {
        destroy: false,
        disconnect_on_close: false,
        rules: Rules::DRIVER,
    };
}

/// How far a generation's end has come.
#[derive(Default)]
pub struct End {
    pub asked: bool,
    pub armed: bool,
    woken: bool,
}

/// `Keeper::Worker`: what ends one generation.
pub struct Worker {
    entry: Arc<Entry>,
    end: Mutex<End>,
}

impl Worker {
    /// `tell_keeper`.
    pub fn tell(&self, attachment: &Arc<Attachment>, change: impl FnOnce(&mut End)) {
        let due = {
            let mut end = self.end.lock().unwrap();
            change(&mut end);
            end.asked && end.armed && !std::mem::replace(&mut end.woken, true)
        };
        if due {
            self.entry.devices.schedule(&self.entry, attachment);
        }
    }
}

/// A device, in the system until this is dropped; an opener keeps what is in it.
pub struct Entry {
    pub device: Arc<Rnbd>,
    devices: Arc<Devices>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        *self.devices.place.lock().unwrap() = Place::Free;
        self.devices.changed.notify_all();
    }
}

enum Place {
    Free,
    Present(Arc<Entry>),
    Changing,
}

/// What the worker has to do.
#[derive(Default)]
struct Work {
    /// Generations to be ended.
    due: Vec<(Arc<Entry>, Arc<Attachment>)>,
    stop: bool,
}

/// The devices there are: at most one.
pub struct Devices {
    place: Mutex<Place>,
    changed: Condvar,
    work: Mutex<Work>,
    work_changed: Condvar,
    /// Of every device that there was; no part of the model.
    ledgers: StdMutex<Vec<Arc<Ledger>>>,
}

impl Devices {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            place: Mutex::new(Place::Free),
            changed: Condvar::new(),
            work: Mutex::default(),
            work_changed: Condvar::new(),
            ledgers: StdMutex::default(),
        })
    }

    // driver/devices.rs

    pub fn find(&self) -> Option<Arc<Entry>> {
        match &*self.place.lock().unwrap() {
            Place::Present(entry) => Some(entry.clone()),
            _ => None,
        }
    }

    pub fn find_or_add(self: &Arc<Self>) -> Arc<Entry> {
        let mut place = self.place.lock().unwrap();
        loop {
            match &*place {
                Place::Free => break,
                Place::Present(entry) => return entry.clone(),
                Place::Changing => place = self.changed.wait(place).unwrap(),
            }
        }
        *place = Place::Changing;
        drop(place);
        let ledger = Arc::<Ledger>::default();
        self.ledgers.lock().unwrap().push(ledger.clone());
        let entry = Arc::new(Entry {
            device: Arc::new(Rnbd::new(&ledger)),
            devices: self.clone(),
        });
        *self.place.lock().unwrap() = Place::Present(entry.clone());
        self.changed.notify_all();
        entry
    }

    fn take_out(&self) -> Option<Arc<Entry>> {
        let mut place = self.place.lock().unwrap();
        match std::mem::replace(&mut *place, Place::Changing) {
            Place::Present(entry) => Some(entry),
            _ => None,
        }
    }

    // driver/netlink/

    /// `NBD_CMD_CONNECT`.
    pub fn connect(self: &Arc<Self>, caller: &Process, wish: Wish) -> Result<(), Refused> {
        loop {
            let entry = self.find_or_add();
            match self.try_attach(&entry, caller, wish) {
                Ok(()) => return Ok(()),
                Err(Refusal::Gone) => {}
                Err(_) => return Err(Refused),
            }
        }
    }

    /// `NBD_CMD_DISCONNECT`.
    pub fn disconnect(&self) {
        if let Some(entry) = self.find() {
            entry.device.disconnect();
            entry.device.when_drained(|_| ());
        }
    }

    /// `NBD_CMD_RECONFIGURE`: leaves its generation's number in the configuration.
    pub fn reconfigure(&self, minds_generation: bool) {
        let Some(entry) = self.find() else { return };
        let device = &entry.device;
        let attachment = match device.lock().phase() {
            Phase::Running {
                interface: Interface::Netlink,
                attachment,
                ..
            } => attachment.clone(),
            _ => return,
        };
        // Here connections get other sockets.
        let mut life = device.lock();
        if minds_generation && life.generation() != attachment.generation {
            return;
        }
        let _ = life.reconfigure(|config| {
            config.timeout = attachment.generation as u32;
            Ok::<_, Infallible>(())
        });
    }

    // driver/keeper.rs

    fn try_attach(&self, entry: &Arc<Entry>, caller: &Process, wish: Wish) -> Result<(), Refusal> {
        let device = &entry.device;
        let mut setup = Setup {
            owner: caller.clone(),
            config: Config {
                flags: TransmissionFlags::CAN_MULTI_CONN,
                destroy_on_disconnect: wish.destroy,
                disconnect_on_close: wish.disconnect_on_close,
                ..Config::default()
            },
            connections: Sockets(vec![
                device.ledger.socket(caller),
                device.ledger.socket(caller),
            ]),
        };
        let connected = loop {
            device.when_drained(|_| ());
            let tried = device.ending(
                &mut device.lock(),
                |life| {
                    if let Ok(plan) = life.plan_connect(&setup, DiskUse::Shared) {
                        fit_disk(life, plan);
                    }
                    life.connect(setup, DiskUse::Shared, |generation, setup| {
                        let sockets = std::mem::take(&mut setup.connections.0);
                        for socket in &sockets {
                            device.ledger.added(socket, generation);
                        }
                        device.ledger.started(generation, &sockets);
                        if wish.rules.forgets_use_at_once {
                            device.forget_use();
                        }
                        let worker = Worker {
                            entry: entry.clone(),
                            end: Mutex::default(),
                        };
                        Ok::<_, Infallible>(Attachment::new(generation, sockets, Some(worker)))
                    })
                },
                |tried| matches!(tried, Ok(connected) if connected.replaced.is_some()),
            );
            match tried {
                Ok(connected) => break connected,
                Err((Failure::Refused(Refusal::Draining), same)) => setup = same,
                Err((Failure::Refused(refusal), _)) => return Err(refusal),
                Err((Failure::Step(never), _)) => match never {},
            }
        };
        if let Some(orphan) = connected.replaced {
            dispose(orphan);
        }
        if !wish.rules.forgets_use_at_once {
            device.forget_use();
        }
        connected.attachment.is_up();
        Ok(())
    }

    fn schedule(&self, entry: &Arc<Entry>, attachment: &Arc<Attachment>) {
        let due = (entry.clone(), attachment.clone());
        self.work.lock().unwrap().due.push(due);
        self.work_changed.notify_all();
    }

    /// The worker, until it is stopped and has nothing more to do.
    pub fn work(&self) {
        let mut work = self.work.lock().unwrap();
        loop {
            if let Some((entry, attachment)) = work.due.pop() {
                drop(work);
                self.finish(&entry, attachment);
                drop(entry);
                work = self.work.lock().unwrap();
            } else if work.stop {
                return;
            } else {
                work = self.work_changed.wait(work).unwrap();
            }
        }
    }

    pub fn stop_work(&self) {
        self.work.lock().unwrap().stop = true;
        self.work_changed.notify_all();
    }

    /// `finish`, and `drain::run`.
    fn finish(&self, entry: &Entry, attachment: Arc<Attachment>) {
        let device = &entry.device;
        let (is_last, told) = match device.lock().phase() {
            Phase::Draining { config, .. } => (config.destroy_on_disconnect, config.timeout),
            _ => panic!("what drains was ended behind its keeper"),
        };
        assert!(
            told == 0 || u64::from(told) == attachment.generation,
            "a generation was reconfigured for another"
        );
        attachment.kill_all();
        drop(attachment);
        let taken_out = if is_last { self.take_out() } else { None };
        let reason = device.lock().drained();
        assert!(reason.is_some(), "what drains was ended behind its keeper");
        device.phase_changed.notify_all();
        drop(taken_out);
    }

    /// Nothing is attached any more: no socket is held, of any device that there was.
    pub fn assert_none_left(&self) {
        let ledgers = self.ledgers.lock().unwrap();
        ledgers.iter().for_each(|ledger| ledger.assert_none_left());
    }
}
