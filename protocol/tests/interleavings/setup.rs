// SPDX-License-Identifier: GPL-2.0

//! Setups that are added to, started, ended, orphaned and contended for at once.
//!
//! Each scenario is told once, for any driver: rnbd holds in all, nbd.ko's rules fail in those
//! that led to the incident.

use crate::{
    device::{Device, Ledger, Process},
    explore::explore,
    nbd_ko::NbdKo,
    rnbd::Rnbd,
};
use loom::thread;
use std::sync::Arc;

/// What a process does.
#[derive(Clone, Copy)]
enum Act {
    SetSock,
    DoIt,
    Clear,
    Disconnect,
    /// Dies, and leaves the open device to others: a child, say.
    Die,
    /// Dies, and with it goes its open device.
    Exit,
}
use Act::{Clear, Die, Disconnect, DoIt, Exit, SetSock};

struct Room<D> {
    ledger: Arc<Ledger>,
    device: D,
}

impl<D: Device> Room<D> {
    fn new() -> Arc<Self> {
        let ledger = Arc::<Ledger>::default();
        Arc::new(Self {
            device: D::new(&ledger),
            ledger,
        })
    }

    fn act(&self, process: &Process, acts: &[Act]) {
        for act in acts {
            // A refusal is an answer, unless a scenario says that there is no reason for it.
            match act {
                SetSock => drop(self.device.set_sock(process)),
                DoIt => drop(self.device.do_it(process)),
                Clear => self.device.clear_sock(process),
                Disconnect => self.device.disconnect(),
                Die => process.die(),
                Exit => {
                    process.die();
                    self.device.closed_by_death(process);
                }
            }
        }
    }

    fn spawn(self: &Arc<Self>, process: &Process, acts: &'static [Act]) -> thread::JoinHandle<()> {
        let (room, process) = (self.clone(), process.clone());
        thread::spawn(move || room.act(&process, acts))
    }

    /// All other processes are dead: a newcomer can use the device.
    fn assert_free(&self) {
        let newcomer = self.ledger.process();
        assert!(
            self.device.set_sock(&newcomer).is_ok(),
            "the device is owned by a dead process, for ever"
        );
        assert!(
            self.device.do_it(&newcomer).is_ok(),
            "what a newcomer set up does not start"
        );
    }

    /// An operator ends whatever there is; others have the device open still.
    fn assert_released(&self) {
        self.device.clear_sock(&self.ledger.process());
        self.ledger.assert_none_left();
    }
}

/// Processes that do this at once; then all are dead, and the device must be free.
fn at_once<D: Device>(name: &str, preemptions: Option<usize>, acts: &'static [&'static [Act]]) {
    explore(name, preemptions, move || {
        let room = Room::<D>::new();
        let processes: Vec<_> = acts.iter().map(|_| room.ledger.process()).collect();
        let threads: Vec<_> = processes
            .iter()
            .zip(acts)
            .map(|(process, acts)| room.spawn(process, acts))
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        processes.iter().for_each(Process::die);
        room.assert_free();
        room.assert_released();
    });
}

/// A shutdown in the midst of a setup.
fn cleared_in_setup<D: Device>() {
    explore("a shutdown amid a setup", None, || {
        let room = Room::<D>::new();
        let owner = room.ledger.process();
        let setter = room.spawn(&owner, &[SetSock, SetSock]);
        room.act(&room.ledger.process(), &[Clear]);
        setter.join().unwrap();
        room.assert_released();
    });
}

/// A setter dies; another comes, before or after.
fn dead_setter<D: Device>() {
    explore("a setter dies", None, || {
        let room = Room::<D>::new();
        let owner = room.ledger.process();
        let setter = room.spawn(&owner, &[SetSock, Die]);
        room.act(&room.ledger.process(), &[Disconnect]);
        setter.join().unwrap();
        room.assert_free();
        room.assert_released();
    });
}

/// A setter dies, and a later process gets its task's address.
fn reused_address<D: Device>() {
    explore("a task's address is used again", None, || {
        let room = Room::<D>::new();
        let owner = room.ledger.process();
        room.act(&owner, &[SetSock, Die]);
        let next = room.ledger.successor_of(&owner);
        let next = room.spawn(&next, &[SetSock, DoIt]);
        room.act(&room.ledger.process(), &[Disconnect]);
        next.join().unwrap();
        room.assert_released();
    });
}

/// A start races with a shutdown and the next setup.
fn cleared_at_start<D: Device>() {
    explore("a shutdown and a setup amid a start", None, || {
        let room = Room::<D>::new();
        let owner = room.ledger.process();
        room.act(&owner, &[SetSock]);
        let starter = room.spawn(&owner, &[DoIt]);
        room.act(&room.ledger.process(), &[Clear, SetSock]);
        starter.join().unwrap();
        room.assert_released();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn rnbd_leaves_no_socket_behind() {
    cleared_in_setup::<Rnbd>();
}

#[test]
#[should_panic(expected = "a socket was left behind: it is held, and will never be shut down")]
fn nbd_ko_leaves_a_socket_behind() {
    cleared_in_setup::<NbdKo>();
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn rnbd_is_free_once_its_setter_is_dead() {
    dead_setter::<Rnbd>();
}

#[test]
#[should_panic(expected = "the device is owned by a dead process, for ever")]
fn nbd_ko_is_blocked_by_a_dead_setter() {
    dead_setter::<NbdKo>();
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn rnbd_does_not_mix_a_dead_setup_with_another() {
    reused_address::<Rnbd>();
}

#[test]
#[should_panic(expected = "an attachment has sockets of two owners")]
fn nbd_ko_takes_a_reused_address_for_the_owner() {
    reused_address::<NbdKo>();
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn rnbd_starts_what_was_set_up_or_nothing() {
    cleared_at_start::<Rnbd>();
}

#[test]
#[should_panic(expected = "an attachment has sockets of two owners")]
fn nbd_ko_starts_two_owners_sockets() {
    cleared_at_start::<NbdKo>();
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn two_clients_and_a_disconnect() {
    at_once::<Rnbd>(
        "two clients, disconnect",
        Some(4),
        &[&[SetSock, DoIt], &[SetSock, DoIt], &[Disconnect, Clear]],
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_client_that_dies_and_one_that_contends() {
    at_once::<Rnbd>(
        "death, contender",
        Some(4),
        &[&[SetSock, SetSock, Die], &[SetSock, DoIt], &[Clear]],
    );
    at_once::<Rnbd>(
        "death with its open device, contender",
        Some(4),
        &[&[SetSock, SetSock, Exit], &[SetSock, DoIt], &[Disconnect]],
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn an_owner_that_clears_its_own_setup() {
    at_once::<Rnbd>(
        "own clear, contender",
        Some(4),
        &[&[SetSock, Clear, SetSock, DoIt], &[SetSock, DoIt], &[Clear]],
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_client_that_forks_between_setup_and_start() {
    explore("fork, contender", None, || {
        let room = Room::<Rnbd>::new();
        let parent = room.ledger.process();
        room.act(&parent, &[SetSock]);
        let child = room.ledger.child_of(&parent);
        // The child starts, or the contender takes over once the parent is dead: never both.
        let dying = room.spawn(&parent, &[Die]);
        let contending = room.spawn(&room.ledger.process(), &[SetSock, DoIt]);
        room.act(&child, &[DoIt]);
        dying.join().unwrap();
        contending.join().unwrap();
        room.assert_released();
    });
}

#[test]
fn a_child_starts_what_its_parent_set_up_whenever_that_dies() {
    explore("fork", None, || {
        let room = Room::<Rnbd>::new();
        let parent = room.ledger.process();
        room.act(&parent, &[SetSock]);
        let child = room.ledger.child_of(&parent);
        let dying = room.spawn(&parent, &[Die]);
        assert!(
            room.device.do_it(&child).is_ok(),
            "a child may not start what its parent set up"
        );
        dying.join().unwrap();
        room.assert_released();
    });
}
