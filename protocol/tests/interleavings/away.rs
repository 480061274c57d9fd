// SPDX-License-Identifier: GPL-2.0

//! A task that leaves `NBD_DO_IT` and comes back, or not, while its generation ends: one of the task and
//! the worker ends it, and the task learns why. Around the real [`End`] and [`Lifecycle`]; mirrors
//! `driver/device/{run,away}.rs` and `Attachment::tell_keeper`: change them together.

use crate::{disk::Client, explore::explore};
use loom::{
    sync::{Arc, Condvar, Mutex},
    thread,
};
use rnbd_protocol::{
    end::{ComeBack, End},
    setup::{Connections, DiskUse, EndReason, Interface, Kinds, Lifecycle, Phase, Retired},
};

/// One process, which lives, and what it owns.
enum World {}

impl Kinds for World {
    type Owner = Client;
    type Connections = One;
    type Attachment = ();
}

const CLIENT: Client = Client(1);

#[derive(Default)]
struct One(usize);

impl Connections for One {
    fn count(&self) -> usize {
        self.0
    }
}

/// What the worker is told.
#[derive(Default)]
struct Work {
    queued: bool,
    /// `Substitute::due`.
    due: bool,
    stop: bool,
}

struct Device {
    life: Mutex<Lifecycle<World>>,
    phase_changed: Condvar,
    end: Mutex<End>,
    end_changed: Condvar,
    work: Mutex<Work>,
    work_changed: Condvar,
    /// The task does other things than to come back. Under `end`, as time goes by there.
    for_good: Mutex<bool>,
    unseen: Mutex<Option<EndReason>>,
    drains: Mutex<usize>,
}

impl Device {
    /// A generation that runs with one connection, in the call of the client.
    fn running() -> Arc<Self> {
        let mut life = Lifecycle::<World>::default();
        let serial = life.disk.replace().unwrap();
        life.disk.added(serial);
        let (_, added) = life.add(CLIENT, DiskUse::Shared, |_, connections| {
            connections.0 += 1;
            Ok::<_, ()>(())
        });
        added.unwrap();
        life.start(CLIENT, DiskUse::Shared, |_, _| Ok::<_, ()>(()))
            .unwrap();
        let mut end = End::new(Interface::Ioctl);
        end.receiver_comes();
        Arc::new(Self {
            life: Mutex::new(life),
            phase_changed: Condvar::new(),
            end: Mutex::new(end),
            end_changed: Condvar::new(),
            work: Mutex::default(),
            work_changed: Condvar::new(),
            for_good: Mutex::new(false),
            unseen: Mutex::new(None),
            drains: Mutex::new(0),
        })
    }

    fn tell_keeper(&self, change: impl FnOnce(&mut End)) {
        let due = {
            let mut end = self.end.lock().unwrap();
            change(&mut end);
            end.take_if_due()
        };
        self.end_changed.notify_all();
        if due {
            self.work.lock().unwrap().due = true;
            self.queue_work();
        }
    }

    fn queue_work(&self) {
        self.work.lock().unwrap().queued = true;
        self.work_changed.notify_all();
    }

    fn ask(&self, reason: EndReason) {
        if let Retired::Stopped(()) | Retired::AlreadyDraining(()) =
            self.life.lock().unwrap().retire(reason)
        {
            self.tell_keeper(End::ask);
        }
    }

    fn leave(&self) {
        self.tell_keeper(End::leave);
        self.queue_work();
    }

    /// `run`, of a task that has left the call.
    fn call_again(&self, leaves: usize) -> EndReason {
        loop {
            let (ended, runs) = {
                let mut life = self.life.lock().unwrap();
                while matches!(life.phase(), Phase::Draining { .. }) {
                    life = self.phase_changed.wait(life).unwrap();
                }
                (
                    self.unseen.lock().unwrap().take(),
                    life.attached_by(&CLIENT),
                )
            };
            if let Some(reason) = ended {
                return reason;
            }
            assert!(runs.is_some(), "the generation is not found");
            let back = self.end.lock().unwrap().come_back();
            match back {
                ComeBack::Done => {
                    self.end_changed.notify_all();
                    return self.keep(leaves);
                }
                ComeBack::Occupied => panic!("another task is in the call"),
                ComeBack::TooLate => {
                    let mut end = self.end.lock().unwrap();
                    while !end.is_asked() {
                        end = self.end_changed.wait(end).unwrap();
                    }
                }
            }
        }
    }

    /// Keeps the generation to its end, but that the task has to leave so often.
    fn keep(&self, leaves: usize) -> EndReason {
        let mut end = self.end.lock().unwrap();
        while !end.is_due() {
            if let Some(leaves) = leaves.checked_sub(1) {
                drop(end);
                self.leave();
                return self.call_again(leaves);
            }
            end = self.end_changed.wait(end).unwrap();
        }
        drop(end);
        self.conclude();
        self.drain(Lifecycle::drained)
    }

    /// With the sockets shut down the receiver leaves.
    fn conclude(&self) {
        let mut end = self.end.lock().unwrap();
        while !end.is_deserted() {
            end = self.end_changed.wait(end).unwrap();
        }
        drop(end);
        self.ask(EndReason::ConnectionsLost);
    }

    fn drain(&self, settle: impl FnOnce(&mut Lifecycle<World>) -> Option<EndReason>) -> EndReason {
        *self.drains.lock().unwrap() += 1;
        let reason = settle(&mut self.life.lock().unwrap());
        self.phase_changed.notify_all();
        reason.expect("what drains was ended behind its keeper")
    }

    /// The worker, until it is stopped.
    fn work(&self) {
        loop {
            let mut work = self.work.lock().unwrap();
            while !work.queued {
                if work.stop {
                    return;
                }
                work = self.work_changed.wait(work).unwrap();
            }
            work.queued = false;
            drop(work);
            if self.watch() {
                self.ask(EndReason::Interrupted);
                self.finish();
                continue;
            }
            let due = std::mem::take(&mut self.work.lock().unwrap().due);
            if due {
                self.finish();
            }
        }
    }

    /// True if the task is gone for good. What is a tick there is a change here.
    fn watch(&self) -> bool {
        let mut end = self.end.lock().unwrap();
        loop {
            if !end.is_away() {
                return false;
            }
            if *self.for_good.lock().unwrap() && end.take() {
                return true;
            }
            end = self.end_changed.wait(end).unwrap();
        }
    }

    fn finish(&self) {
        self.conclude();
        self.drain(|life| {
            let reason = life.drained();
            *self.unseen.lock().unwrap() = reason;
            reason
        });
    }

    /// The task has run a handler, or died.
    fn goes_for_good(&self) {
        let _end = self.end.lock().unwrap();
        *self.for_good.lock().unwrap() = true;
        self.end_changed.notify_all();
    }

    fn assert_drained_once(&self) {
        assert_eq!(*self.drains.lock().unwrap(), 1, "drains");
        assert!(matches!(self.life.lock().unwrap().phase(), Phase::Idle));
    }
}

/// The worker, and one whose socket dies at any moment; with `disconnects`, after somebody has asked for the end.
fn others(device: &Arc<Device>, disconnects: bool) -> [thread::JoinHandle<()>; 2] {
    let worker = device.clone();
    let receiver = device.clone();
    [
        thread::spawn(move || worker.work()),
        thread::spawn(move || {
            if disconnects {
                receiver.ask(EndReason::Disconnected);
            }
            receiver.tell_keeper(End::receiver_goes);
        }),
    ]
}

fn stop(device: &Device, others: [thread::JoinHandle<()>; 2]) {
    let [worker, receiver] = others;
    receiver.join().unwrap();
    device.work.lock().unwrap().stop = true;
    device.work_changed.notify_all();
    worker.join().unwrap();
}

fn comes_back(name: &str, disconnects: bool, times: usize) {
    explore(name, Some(2), move || {
        let device = Device::running();
        let others = others(&device, disconnects);
        let told = device.keep(times);
        let want = match disconnects {
            true => EndReason::Disconnected,
            false => EndReason::ConnectionsLost,
        };
        assert_eq!(told, want);
        stop(&device, others);
        device.assert_drained_once();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn who_was_away_learns_that_the_server_died() {
    comes_back("away, the server dies", false, 1);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn who_was_away_twice_learns_that_the_server_died() {
    comes_back("away twice, the server dies", false, 2);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn who_was_away_learns_that_it_was_disconnected() {
    comes_back("away, disconnected", true, 1);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_generation_ends_once_that_is_left_for_good() {
    explore("left for good", Some(2), || {
        let device = Device::running();
        let others = others(&device, false);
        device.leave();
        device.goes_for_good();
        {
            let mut life = device.life.lock().unwrap();
            while !matches!(life.phase(), Phase::Idle) {
                life = device.phase_changed.wait(life).unwrap();
            }
        }
        stop(&device, others);
        device.assert_drained_once();
    });
}
