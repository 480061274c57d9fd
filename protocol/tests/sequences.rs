// SPDX-License-Identifier: GPL-2.0

//! Long random sequences of calls, against a plain model of the rules (invariants G1 to G4).

mod plain;
mod world;

use plain::{
    calls::{any_call, Call},
    Answer, Plain, Setting, Wanted,
};
use proptest::prelude::*;
use rnbd_protocol::{
    flags::TransmissionFlags,
    geometry::{BlockSize, ExportSize},
    setup::{
        Config, Configured, Connections, DiskPlan, DiskUse, Failure, Interface, Lifecycle, Phase,
        Retired, Setup,
    },
};
use world::{as_caller, Numbers, Process, World};

/// Calls of a sequence, at most. Miri takes a thousand times as long, and looks at the code, not at the rules.
const CALLS: usize = if cfg!(miri) { 30 } else { 300 };

/// Largest block size of the kernel that the device is in.
const MAX_BLOCK: u64 = 4096;

fn change(config: &mut Config, setting: Setting) -> Result<(), ()> {
    let bad = |_| ();
    match setting {
        Setting::Size(bytes) => config.size = ExportSize::from_bytes(bytes).map_err(bad)?,
        Setting::Blocks(count) => {
            config.size = ExportSize::from_blocks(count, config.block_size).map_err(bad)?;
        }
        Setting::BlockSize(bytes) => {
            config.block_size = BlockSize::new(bytes, MAX_BLOCK).map_err(bad)?;
        }
        Setting::Flags(bits) => config.flags = TransmissionFlags::from_bits(bits),
        Setting::Timeout(seconds) => config.timeout = seconds,
    }
    Ok(())
}

fn refused<T>(failure: Failure<()>) -> Answer<T> {
    match failure {
        Failure::Refused(refusal) => Answer::Refused(refusal),
        Failure::Step(()) => Answer::Failed,
    }
}

/// What an end hands out: sockets that are disposed of, and those of an attachment.
fn retired(retired: Retired<World>) -> (Vec<u32>, Vec<u32>) {
    match retired {
        Retired::Nothing => (vec![], vec![]),
        Retired::Setup(sockets) => (sockets.0, vec![]),
        Retired::Stopped(attached) | Retired::AlreadyDraining(attached) => (vec![], attached),
    }
}

/// Whether it happens whoever lives.
fn goes_without_caller(call: &Call) -> bool {
    matches!(
        call,
        Call::Drained | Call::Detached | Call::Clean | Call::Arrive | Call::Anew
    )
}

/// A device, the plain model of it, and the processes that use both.
struct Room {
    life: Lifecycle<World>,
    plain: Plain,
    processes: Vec<Process>,
    sockets: u32,
    /// The disks that the device has and had.
    disks: Vec<u64>,
    /// Sockets that were handed out to be disposed of, or went with an attachment.
    gone: Vec<u32>,
}

impl Room {
    fn new() -> Self {
        let mut room = Self {
            life: Lifecycle::default(),
            plain: Plain::new(MAX_BLOCK),
            processes: Vec::new(),
            sockets: 0,
            disks: Vec::new(),
            gone: Vec::new(),
        };
        (0..3).for_each(|_| room.arrive(Process::new(), None));
        room
    }

    fn arrive(&mut self, process: Process, parent: Option<usize>) {
        self.processes.push(process);
        self.plain.arrive(parent);
    }

    fn call(&mut self, who: usize, call: Call) -> Result<(), TestCaseError> {
        let who = who % self.processes.len();
        if !self.plain.is_alive(who) && !goes_without_caller(&call) {
            return Ok(());
        }
        let caller = self.processes[who].clone();
        match call {
            Call::Add { works, disk } => self.add(who, &caller, works, disk)?,
            Call::Configure(setting) => {
                let mut got = Err(Failure::Step(()));
                as_caller(&caller, || {
                    got = self
                        .life
                        .configure(caller.clone(), |config| change(config, setting));
                });
                let got = match got {
                    Ok(Configured::Setup(orphan)) => {
                        let orphan = orphan.map_or(vec![], |sockets| sockets.0);
                        self.gone.extend(&orphan);
                        Answer::Done(orphan)
                    }
                    Ok(Configured::Live(_)) => Answer::Done(vec![]),
                    Err(failure) => refused(failure),
                };
                prop_assert_eq!(got, self.plain.configure(who, setting));
            }
            Call::Start { works, fits, disk } => self.start(who, &caller, (works, fits, disk))?,
            Call::Connect {
                sockets,
                flags,
                destroy,
                works,
                fits,
                disk,
            } => {
                let first = self.sockets;
                self.sockets += sockets;
                let want = Wanted {
                    sockets: (first..self.sockets).collect(),
                    flags,
                    destroy,
                    works,
                    fits,
                };
                let got = self.connect(caller, disk, &want)?;
                prop_assert_eq!(got, self.plain.connect(who, disk, &want));
            }
            Call::Reconfigure(setting) => {
                let got = self.life.reconfigure(|config| change(config, setting));
                let got = got.map_or_else(refused, Answer::Done);
                prop_assert_eq!(got, self.plain.reconfigure(setting));
            }
            Call::Anew => {
                if matches!(self.life.phase(), Phase::Gone) {
                    self.life = Lifecycle::default();
                    self.disks.clear();
                    let plain = std::mem::replace(&mut self.plain, Plain::new(MAX_BLOCK));
                    self.plain = plain.anew();
                }
            }
            Call::Clear => {
                let (disposed, attached) = retired(self.life.clear(&caller));
                self.gone.extend(&disposed);
                prop_assert_eq!((disposed, attached), self.plain.clear(who));
            }
            Call::Retire(reason) => {
                let (disposed, attached) = retired(self.life.retire(reason));
                self.gone.extend(&disposed);
                prop_assert_eq!((disposed, attached), self.plain.retire(reason));
            }
            Call::Abandon => {
                let disposed = self
                    .life
                    .abandon_setup()
                    .map_or(vec![], |sockets| sockets.0);
                self.gone.extend(&disposed);
                prop_assert_eq!(disposed, self.plain.abandon());
            }
            Call::Detached => {
                if matches!(self.life.phase(), Phase::Draining { .. }) {
                    self.life.disk.detached();
                    self.plain.leave_disk();
                }
            }
            Call::Open => {
                if let Some(last) = self.disks.len().checked_sub(1) {
                    if self.plain.has_disk(last) {
                        self.life.disk.opened();
                        self.plain.open(last);
                    }
                }
            }
            Call::Close { disk, cleans } => {
                let open: Vec<usize> = (0..self.disks.len())
                    .filter(|&number| self.plain.is_open(number))
                    .collect();
                if !open.is_empty() {
                    let number = open[disk % open.len()];
                    self.life.disk.closed();
                    self.plain.close(number);
                    if self.life.disk.opens() == 0 {
                        self.life.forget_drafts();
                        self.plain.forget_drafts();
                    }
                    if cleans {
                        self.clean(number)?;
                    }
                }
            }
            Call::Clean => {
                if let Some(last) = self.disks.len().checked_sub(1) {
                    self.clean(last)?;
                }
            }
            Call::Drained => {
                if let Phase::Draining { attachment, .. } = self.life.phase() {
                    self.gone.extend(attachment);
                }
                prop_assert_eq!(self.life.drained(), self.plain.drained());
            }
            Call::Die => {
                caller.die();
                self.plain.die(who);
            }
            Call::Fork => self.arrive(caller.fork(), Some(who)),
            Call::Arrive => self.arrive(Process::new(), None),
        }
        Ok(())
    }

    fn add(
        &mut self,
        who: usize,
        caller: &Process,
        works: bool,
        disk: DiskUse,
    ) -> Result<(), TestCaseError> {
        let expected = self.plain.add(who, disk, works.then_some(self.sockets));
        let may = self.life.may_add(caller, disk);
        let mut pushed_to = None;
        let (mut orphan, mut got) = (None, Err(Failure::Step(())));
        as_caller(caller, || {
            (orphan, got) = self.life.add(caller.clone(), disk, |generation, sockets| {
                pushed_to = Some(generation);
                if !works {
                    return Err(());
                }
                sockets.0.push(self.sockets);
                Ok(())
            });
        });
        let orphan = orphan.map_or(vec![], |sockets| sockets.0);
        self.gone.extend(&orphan);
        prop_assert_eq!(may.is_ok(), pushed_to.is_some(), "may_add and add disagree");
        if let Some(generation) = pushed_to {
            prop_assert_eq!(generation, self.life.generation());
        }
        match got {
            Ok(()) => {
                self.sockets += 1;
                prop_assert_eq!(Answer::Done(orphan), expected);
            }
            Err(Failure::Step(())) => {
                prop_assert_eq!(Answer::Failed, expected);
            }
            Err(failure) => {
                prop_assert!(orphan.is_empty());
                prop_assert_eq!(refused(failure), expected);
            }
        }
        Ok(())
    }

    /// Does with the disk as was planned; or gives it up, and no other fits.
    fn fit(&mut self, plan: DiskPlan, fits: bool) -> Result<(), TestCaseError> {
        if plan == DiskPlan::Replace {
            let serial = self.life.disk.replace();
            prop_assert!(
                serial.is_some(),
                "a disk that is attached is to be replaced"
            );
            self.disks.extend(serial);
            if let Some(serial) = serial.filter(|_| fits) {
                self.life.disk.added(serial);
            }
        }
        Ok(())
    }

    /// A disk is seen not to be open, and cleaned.
    fn clean(&mut self, number: usize) -> Result<(), TestCaseError> {
        if !self.plain.is_open(number) {
            let serial = self.disks[number];
            let may = self.life.disk.may_clean(serial);
            prop_assert!(!may || self.plain.has_disk(number));
            self.life.disk.cleaned(serial);
            prop_assert!(!self.life.disk.may_clean(serial));
            self.plain.clean(number);
        }
        Ok(())
    }

    fn start(
        &mut self,
        who: usize,
        caller: &Process,
        (works, fits, disk): (bool, bool, DiskUse),
    ) -> Result<(), TestCaseError> {
        let mut plan = Ok((DiskPlan::Keep, 0));
        as_caller(caller, || {
            let planned = self.life.plan_start(caller, disk);
            plan = planned.map(|(plan, setup)| (plan, setup.connections.count()));
        });
        prop_assert_eq!(plan, self.plain.plan_start(who, disk));
        if let Ok((plan, _)) = plan {
            self.fit(plan, fits)?;
        }
        let mut got = Answer::Failed;
        as_caller(caller, || {
            let started = self.life.start(caller.clone(), disk, |_, setup| {
                if works {
                    Ok(std::mem::take(&mut setup.connections.0))
                } else {
                    Err(())
                }
            });
            got = started.map_or_else(refused, Answer::Done);
        });
        prop_assert_eq!(got, self.plain.start(who, disk, works, fits));
        Ok(())
    }

    /// Gives the orphan's sockets. If nothing is attached the caller keeps its own.
    fn connect(
        &mut self,
        caller: Process,
        disk: DiskUse,
        want: &Wanted,
    ) -> Result<Answer<Vec<u32>>, TestCaseError> {
        let mut setup = Setup::new(caller);
        setup.connections = Numbers(want.sockets.clone());
        setup.config.flags = TransmissionFlags::from_bits(want.flags);
        setup.config.destroy_on_disconnect = want.destroy;
        let plan = self.life.plan_connect(&setup, disk);
        prop_assert_eq!(plan, self.plain.plan_connect(disk, want));
        if let Ok(plan) = plan {
            self.fit(plan, want.fits)?;
        }
        let connected = self.life.connect(setup, disk, |_, setup| {
            if want.works {
                Ok(std::mem::take(&mut setup.connections.0))
            } else {
                Err(())
            }
        });
        Ok(match connected {
            Ok(connected) => {
                let orphan = connected.replaced.map_or(vec![], |sockets| sockets.0);
                self.gone.extend(&orphan);
                Answer::Done(orphan)
            }
            Err((failure, setup)) => {
                self.gone.extend(setup.connections.0);
                refused(failure)
            }
        })
    }

    /// What must hold between any two calls.
    fn check(&self, generation_before: u64) -> Result<(), TestCaseError> {
        prop_assert!(self.life.generation() >= generation_before);
        prop_assert_eq!(self.life.generation(), self.plain.generation());
        let owner = self
            .life
            .owner()
            .and_then(|owner| self.processes.iter().position(|process| process == owner));
        prop_assert_eq!(owner, self.plain.owner());
        let (name, held, config) = match self.life.phase() {
            Phase::Idle => ("idle", vec![], None),
            Phase::Gone => ("gone", vec![], None),
            Phase::Setup(setup) => {
                prop_assert_eq!(setup.connections.count(), setup.connections.0.len());
                ("setup", setup.connections.0.clone(), Some(setup.config))
            }
            Phase::Running {
                config,
                attachment,
                interface,
                ..
            } => {
                let by_netlink = *interface == Interface::Netlink;
                prop_assert_eq!(by_netlink, self.plain.is_by_netlink());
                ("running", attachment.clone(), Some(*config))
            }
            Phase::Draining { attachment, .. } => ("draining", attachment.clone(), None),
        };
        prop_assert_eq!(name, self.plain.phase());
        prop_assert_eq!(&held, self.plain.sockets());
        if let Some(config) = config {
            let told = (
                config.size.bytes(),
                config.block_size.bytes(),
                config.flags.bits(),
                config.timeout,
            );
            prop_assert_eq!(told, self.plain.config());
            prop_assert_eq!(config.destroy_on_disconnect, self.plain.is_to_go());
        }
        prop_assert_eq!(self.life.disk.opens(), self.plain.opens());
        prop_assert_eq!(self.disks.len(), self.plain.disks());
        for (number, &serial) in self.disks.iter().enumerate() {
            let current = self.life.disk.is_current(serial);
            prop_assert_eq!(current, self.plain.has_disk(number));
        }
        // Every socket is in one place: held, or handed out.
        let mut all: Vec<u32> = self.gone.iter().copied().chain(held).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..self.sockets).collect::<Vec<_>>());
        Ok(())
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) {
            2
        } else if cfg!(debug_assertions) {
            256
        } else {
            4096
        },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_sequence_of_calls_is_as_the_plain_model_says(
        calls in prop::collection::vec((any::<usize>(), any_call()), 1..CALLS)
    ) {
        let mut room = Room::new();
        for (who, call) in calls {
            let before = match call {
                Call::Anew => 0,
                _ => room.life.generation(),
            };
            let text = format!("{who} {call:?}");
            room.call(who, call)
                .and_then(|()| room.check(before))
                .map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        }
    }
}
