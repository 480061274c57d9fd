// SPDX-License-Identifier: GPL-2.0

//! Devices that netlink attaches, changes, detaches and removes at once, and ioctls meanwhile: no
//! socket is left behind, no task waits for ever, and what is free can be attached.

use crate::{
    device::{Device, Ledger, Process},
    explore::explore,
    netlink::{Devices, Wish},
    rnbd::Rnbd,
};
use loom::thread;
use std::sync::Arc;

/// What a process does.
#[derive(Clone, Copy)]
enum Act {
    Connect,
    /// The device goes with the generation.
    ConnectToDestroy,
    Reconfigure,
    Disconnect,
    // By ioctl, on the device that was there at first.
    SetSock,
    DoIt,
    Clear,
    IoctlDisconnect,
    Die,
}
use Act::{
    Clear, Connect, ConnectToDestroy, Die, Disconnect, DoIt, IoctlDisconnect, Reconfigure, SetSock,
};

const TO_DESTROY: Wish = Wish {
    destroy: true,
    ..Wish::PLAIN
};

struct Room {
    devices: Arc<Devices>,
    /// Open all the time.
    device: Arc<Rnbd>,
    people: Arc<Ledger>,
    minds_generation: bool,
}

impl Room {
    fn act(&self, process: &Process, acts: &[Act]) {
        for act in acts {
            // A refusal is an answer.
            match act {
                Connect => drop(self.devices.connect(process, Wish::PLAIN)),
                ConnectToDestroy => drop(self.devices.connect(process, TO_DESTROY)),
                Reconfigure => self.devices.reconfigure(self.minds_generation),
                Disconnect => self.devices.disconnect(),
                SetSock => drop(self.device.set_sock(process)),
                DoIt => drop(self.device.do_it(process)),
                Clear => self.device.clear_sock(process),
                IoctlDisconnect => self.device.disconnect(),
                Die => process.die(),
            }
        }
    }
}

/// The first does this before, the others at once; then all are dead, and there is room for
/// another.
fn at_once(
    name: &str,
    preemptions: usize,
    minds_generation: bool,
    acts: &'static [&'static [Act]],
) {
    explore(name, Some(preemptions), move || {
        let devices = Devices::new();
        let room = Arc::new(Room {
            device: devices.find_or_add().device.clone(),
            devices,
            people: Arc::default(),
            minds_generation,
        });
        let worker = {
            let devices = room.devices.clone();
            thread::spawn(move || devices.work())
        };
        let processes: Vec<_> = acts.iter().map(|_| room.people.process()).collect();
        room.act(&processes[0], acts[0]);
        let threads: Vec<_> = processes
            .iter()
            .zip(acts)
            .skip(2)
            .map(|(process, acts)| {
                let (room, process) = (room.clone(), process.clone());
                thread::spawn(move || room.act(&process, acts))
            })
            .collect();
        room.act(&processes[1], acts[1]);
        for thread in threads {
            thread.join().unwrap();
        }
        processes.iter().for_each(Process::die);
        room.devices.disconnect();
        let newcomer = room.people.process();
        assert!(
            room.devices.connect(&newcomer, TO_DESTROY).is_ok(),
            "a device that is free cannot be attached"
        );
        room.devices.disconnect();
        room.devices.stop_work();
        worker.join().unwrap();
        room.devices.assert_none_left();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn one_of_two_is_attached() {
    at_once(
        "two connects, disconnect",
        3,
        true,
        &[&[], &[Connect], &[Connect], &[Disconnect]],
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_device_that_goes_makes_room_for_another() {
    at_once(
        "connect to a device that goes",
        2,
        true,
        &[
            &[ConnectToDestroy],
            &[Disconnect],
            &[Connect],
            &[Disconnect],
        ],
    );
    at_once(
        "ioctls on a device that goes",
        2,
        true,
        &[
            &[ConnectToDestroy],
            &[IoctlDisconnect],
            &[SetSock, DoIt],
            &[Connect],
        ],
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn netlink_and_ioctl_do_not_mix() {
    at_once(
        "connect, ioctl, clear",
        2,
        true,
        &[&[], &[Connect], &[SetSock, DoIt], &[Clear]],
    );
    at_once(
        "connect, dead setter, disconnect",
        2,
        true,
        &[&[], &[Connect], &[SetSock, Die], &[IoctlDisconnect]],
    );
}

const RECONFIGURED: &[&[Act]] = &[&[Connect], &[Disconnect, Connect], &[Reconfigure]];

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_change_is_for_the_generation_that_was_meant() {
    at_once("reconfigure amid a reattachment", 3, true, RECONFIGURED);
    at_once(
        "reconfigure a device that goes",
        2,
        true,
        &[
            &[ConnectToDestroy],
            &[Disconnect],
            &[Reconfigure],
            &[Connect],
        ],
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a generation was reconfigured for another")]
fn a_change_that_does_not_mind_its_generation_is_another_ones() {
    at_once("generation not minded", 3, false, RECONFIGURED);
}
