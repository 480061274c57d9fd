// SPDX-License-Identifier: GPL-2.0

//! Phases, owner and socket array (`protocol/setup/`), with real processes as owners.

use super::fixture::{Census, Counted, Process};
use crate::{
    abstractions::pid::ProcessRef,
    protocol::{
        flags::TransmissionFlags,
        geometry::ExportSize,
        setup::{
            Configured, Connections, DiskPlan, DiskUse, EndReason, Failure, Kinds, Lifecycle,
            Phase, Refusal, Retired,
        },
    },
};
use kernel::prelude::*;

/// The test's own kind of device.
pub(super) enum Kind {}

impl Kinds for Kind {
    type Owner = ProcessRef;
    type Connections = Sockets;
    type Attachment = u64;
}

/// Stand for sockets; each knows the generation that it was added to.
#[derive(Default)]
pub(super) struct Sockets(pub(super) KVec<(u64, Counted)>);

impl Connections for Sockets {
    fn count(&self) -> usize {
        self.0.len()
    }
}

pub(super) type Life = Lifecycle<Kind>;
type Added = (Option<Sockets>, Result<(), Failure<Error>>);

/// Adds a socket, as `NBD_SET_SOCK` does.
pub(super) fn add(life: &mut Life, owner: ProcessRef, census: &Census) -> Added {
    life.add(owner, DiskUse::Shared, |generation, sockets| {
        Ok(sockets.0.push((generation, census.make()), GFP_KERNEL)?)
    })
}

/// Gives the device another disk.
fn next_disk(life: &mut Life) {
    if let Some(serial) = life.disk.replace() {
        life.disk.added(serial);
    }
}

/// Starts, as `NBD_DO_IT` does, on another disk if it takes one; the attachment is the generation's
/// number.
pub(super) fn start(life: &mut Life, owner: ProcessRef) -> Result<u64, Failure<Error>> {
    let (plan, _) = life.plan_start(&owner, DiskUse::Shared)?;
    if plan == DiskPlan::Replace {
        next_disk(life);
    }
    life.start(owner, DiskUse::Shared, |generation, setup| {
        setup.connections = Sockets::default();
        Ok(generation)
    })
}

fn set_size(
    life: &mut Life,
    owner: ProcessRef,
    bytes: u64,
) -> Result<Configured<Kind>, Failure<Error>> {
    life.configure(owner, |config| {
        config.size = ExportSize::from_bytes(bytes).map_err(|_| EINVAL)?;
        Ok(())
    })
}

fn sockets(life: &Life) -> usize {
    match life.phase() {
        Phase::Setup(setup) => setup.connections.count(),
        _ => 0,
    }
}

fn refused(result: Result<(), Failure<Error>>, by: Refusal) -> bool {
    matches!(result, Err(Failure::Refused(refusal)) if refusal == by)
}

#[kunit_tests(rnbd_setup)]
mod tests {
    use super::*;

    #[test]
    fn the_first_socket_begins_a_generation() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        assert_eq!(life.generation(), 0);
        let (replaced, added) = add(&mut life, ProcessRef::current(), &census);
        assert!(replaced.is_none() && added.is_ok());
        assert_eq!(life.generation(), 1);
        assert!(life.owner() == Some(&ProcessRef::current()));
        assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        assert_eq!(
            (life.generation(), sockets(&life), census.alive()),
            (1, 2, 2)
        );
        drop(life);
        assert_eq!(census.alive(), 0);
        Ok(())
    }

    #[test]
    fn a_living_owner_is_protected() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        let owner = Process::start("rnbd-owner")?;
        assert!(add(&mut life, owner.process()?, &census).1.is_ok());
        assert!(refused(
            add(&mut life, ProcessRef::current(), &census).1,
            Refusal::Owned
        ));
        let configured = set_size(&mut life, ProcessRef::current(), 4096).map(|_| ());
        assert!(refused(configured, Refusal::Owned));
        assert!(refused(
            start(&mut life, ProcessRef::current()).map(|_| ()),
            Refusal::Owned
        ));
        assert_eq!(
            (life.generation(), sockets(&life), census.alive()),
            (1, 1, 1)
        );
        assert!(add(&mut life, owner.process()?, &census).1.is_ok());
        assert_eq!(sockets(&life), 2);
        Ok(())
    }

    #[test]
    fn an_orphan_is_replaced_as_a_whole() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        let owner = Process::start("rnbd-owner")?;
        for _ in 0..3 {
            assert!(add(&mut life, owner.process()?, &census).1.is_ok());
        }
        drop(owner);
        let (replaced, added) = add(&mut life, ProcessRef::current(), &census);
        assert!(added.is_ok());
        assert_eq!(replaced.as_ref().map(Sockets::count), Some(3));
        assert_eq!(
            (life.generation(), sockets(&life), census.alive()),
            (2, 1, 4)
        );
        drop(replaced);
        assert_eq!(census.alive(), 1);
        Ok(())
    }

    #[test]
    fn a_thousand_dead_setters_leave_nothing() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        for _ in 0..1000 {
            let owner = Process::start("rnbd-setter")?;
            assert!(add(&mut life, owner.process()?, &census).1.is_ok());
            drop(owner);
            assert_eq!(census.alive(), 1);
        }
        assert_eq!(life.generation(), 1000);
        assert!(start(&mut life, ProcessRef::current()).is_ok());
        assert_eq!(census.alive(), 0);
        Ok(())
    }

    #[test]
    fn an_orphan_is_adopted_by_who_starts_it() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        let owner = Process::start("rnbd-owner")?;
        assert!(add(&mut life, owner.process()?, &census).1.is_ok());
        assert!(refused(
            start(&mut life, ProcessRef::current()).map(|_| ()),
            Refusal::Owned
        ));
        drop(owner);
        assert!(start(&mut life, ProcessRef::current()) == Ok(1));
        assert!(life.owner() == Some(&ProcessRef::current()));
        assert!(matches!(life.phase(), Phase::Running { attachment: 1, .. }));
        Ok(())
    }

    #[test]
    fn a_failed_push_adds_nothing() -> Result {
        let mut life = Life::default();
        let (replaced, added) =
            life.add(ProcessRef::current(), DiskUse::Shared, |_, _| Err(ENOMEM));
        assert!(replaced.is_none() && added == Err(Failure::Step(ENOMEM)));
        assert_eq!(sockets(&life), 0);
        let started = start(&mut life, ProcessRef::current()).map(|_| ());
        assert!(refused(started, Refusal::NoConnection));
        Ok(())
    }

    #[test]
    fn a_failed_start_leaves_the_setup_whole() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        next_disk(&mut life);
        let failed = life.start(ProcessRef::current(), DiskUse::Shared, |_, _| {
            Err::<u64, _>(ENOMEM)
        });
        assert!(failed == Err(Failure::Step(ENOMEM)));
        assert_eq!((sockets(&life), census.alive()), (1, 1));
        assert!(start(&mut life, ProcessRef::current()) == Ok(1));
        Ok(())
    }

    #[test]
    fn several_connections_need_a_server_that_takes_them() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        for _ in 0..2 {
            assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        }
        let started = start(&mut life, ProcessRef::current()).map(|_| ());
        assert!(refused(started, Refusal::NotMultiConn));
        let configured = life.configure(ProcessRef::current(), |config| {
            config.flags = TransmissionFlags::CAN_MULTI_CONN;
            Ok::<_, Error>(())
        });
        assert!(matches!(configured, Ok(Configured::Setup(None))));
        assert!(start(&mut life, ProcessRef::current()) == Ok(1));
        Ok(())
    }

    #[test]
    fn a_retired_setup_gives_its_sockets_back() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        for _ in 0..2 {
            assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        }
        match life.retire(EndReason::Cleared) {
            Retired::Setup(displaced) => assert_eq!(displaced.count(), 2),
            _ => return Err(EINVAL),
        }
        assert!(matches!(life.phase(), Phase::Idle) && life.owner().is_none());
        assert_eq!(census.alive(), 0);
        assert!(matches!(life.retire(EndReason::Cleared), Retired::Nothing));
        // At once, by anyone.
        let other = Process::start("rnbd-other")?;
        assert!(add(&mut life, other.process()?, &census).1.is_ok());
        assert_eq!(life.generation(), 2);
        Ok(())
    }

    #[test]
    fn a_running_generation_drains_before_the_next() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        assert!(start(&mut life, ProcessRef::current()) == Ok(1));
        assert!(refused(
            add(&mut life, ProcessRef::current(), &census).1,
            Refusal::Running
        ));
        assert!(matches!(
            life.retire(EndReason::TimedOut),
            Retired::Stopped(1)
        ));
        assert!(refused(
            add(&mut life, ProcessRef::current(), &census).1,
            Refusal::Draining
        ));
        // The first reason stands.
        assert!(matches!(
            life.retire(EndReason::Cleared),
            Retired::AlreadyDraining(1)
        ));
        assert!(life.drained() == Some(EndReason::TimedOut));
        assert!(life.drained().is_none());
        assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        assert_eq!(life.generation(), 2);
        Ok(())
    }

    #[test]
    fn an_owner_that_clears_keeps_its_settings() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        assert!(set_size(&mut life, ProcessRef::current(), 1 << 20).is_ok());
        assert!(add(&mut life, ProcessRef::current(), &census).1.is_ok());
        match life.clear(&ProcessRef::current()) {
            Retired::Setup(displaced) => assert_eq!(displaced.count(), 1),
            _ => return Err(EINVAL),
        }
        assert_eq!((life.generation(), census.alive()), (2, 0));
        match life.phase() {
            Phase::Setup(setup) => assert_eq!(setup.config.size.bytes(), 1 << 20),
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    #[test]
    fn under_an_exclusive_user_only_the_last_owner_returns() -> Result {
        let (census, mut life) = (Census::new()?, Life::default());
        let owner = Process::start("rnbd-owner")?;
        assert!(set_size(&mut life, owner.process()?, 4096).is_ok());
        assert!(add(&mut life, owner.process()?, &census).1.is_ok());
        assert!(start(&mut life, owner.process()?) == Ok(1));
        assert!(matches!(
            life.retire(EndReason::ConnectionsLost),
            Retired::Stopped(1)
        ));
        assert!(life.drained().is_some());
        let held = life.may_add(&ProcessRef::current(), DiskUse::Exclusive);
        assert!(held == Err(Refusal::Held));
        assert!(life.may_add(&owner.process()?, DiskUse::Exclusive).is_ok());
        assert!(set_size(&mut life, owner.process()?, 8192).is_ok());
        assert!(add(&mut life, owner.process()?, &census).1.is_ok());
        // Another size.
        let started = life.start(owner.process()?, DiskUse::Exclusive, |generation, _| {
            Ok::<_, Error>(generation)
        });
        assert!(started == Err(Failure::Refused(Refusal::Held)));
        Ok(())
    }
}
