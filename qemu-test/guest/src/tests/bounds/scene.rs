// SPDX-License-Identifier: GPL-2.0
//! A device that is attached to somebody who misbehaves, and those who use it: how each condition is set up.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::calls::{Call, Made, descriptors, write_limits};
use super::conditions::Condition;
use crate::attach::Setup;
use crate::cgroup::Cgroup;
use crate::device::{Device, device_size, flag, open_direct, read_direct, sysfs, wait_idle};
use crate::modules::Driver;
use crate::netlink::{Client, attr, attr_u64};
use crate::process::{Child, describe_task, fork_child, wait_for};
use crate::server::{Action, Export, Server};
use crate::tests::Context;
use crate::tests::load::starved::hog;
use crate::tests::netlink::attached::{connect_sockets, sockets};
use crate::tests::netlink::load::{Writer, fill};

pub const SIZE: u64 = 64 << 20;
const CONNECTIONS: usize = 2;
/// What the machine has left, and how much of that is written to the device. The processes of a test need some too, and
/// the debug kernel most of all.
const LEFT: usize = 128 << 20;
const DIRTY: u64 = 40 << 20;
const SLOW: Duration = Duration::from_millis(200);

const SERVING: u8 = 0;
const IGNORING: u8 = 1;
const SLOWLY: u8 = 2;
const STALLED: u8 = 3;

/// What a call is made with: opened before anybody misbehaved.
pub struct Hands {
    pub device: Option<Device>,
    pub direct: Option<File>,
    /// To be closed: no other process has it.
    pub spare: Option<File>,
    /// To a server that does its part.
    pub sockets: Vec<OwnedFd>,
    /// What the export was said to have.
    pub flags: u64,
    pub driver: Driver,
}

impl Hands {
    pub fn device(&self) -> Result<&Device> {
        self.device.as_ref().context("the device is not open")
    }

    pub fn direct(&self) -> Result<&File> {
        self.direct.as_ref().context("the device is not open")
    }

    pub fn socket(&self) -> Result<RawFd> {
        use std::os::fd::AsRawFd as _;
        Ok(self.sockets.first().context("there is no socket")?.as_raw_fd())
    }

    pub fn keep(&self) -> Vec<RawFd> {
        let files = [self.device.as_ref().map(Device::file), self.direct.as_ref()];
        let mut keep = descriptors(files);
        keep.extend(crate::tests::netlink::attached::fds(&self.sockets));
        keep
    }
}

/// How a device is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    Ioctl,
    Netlink,
}

/// What all scenes of a condition share.
pub struct Stage {
    condition: Condition,
    driver: Driver,
    /// A server that does its part.
    other: Server,
    group: Option<Cgroup>,
    _hog: Option<Child>,
}

/// A device that is attached to somebody who misbehaves.
pub struct Scene {
    pub hands: Hands,
    client: Client,
    server: Server,
    mood: Arc<AtomicU8>,
    /// Those who end with the attachment: they wait for the server, or are the client in NBD_DO_IT.
    waiting: Vec<Child>,
    writers: Vec<Writer>,
    /// Who has the device open, and does not run.
    holder: Option<Child>,
    frozen: Option<Cgroup>,
}

impl Stage {
    pub fn new(context: &Context, condition: Condition) -> Result<Stage> {
        Ok(Stage {
            condition,
            driver: context.driver,
            other: Server::new(Export::memory(SIZE)?),
            group: match condition {
                Condition::HolderFrozen | Condition::ClientFrozen => Some(Cgroup::new(context, "")?),
                _ => None,
            },
            _hog: match condition {
                Condition::MemoryShort => Some(hog(LEFT)?),
                _ => None,
            },
        })
    }

    /// Attaches the device, by ioctl or by netlink, and has the other side misbehave. `open`: we have it open, and
    /// somebody uses it.
    pub fn set(&mut self, by: Interface, open: bool) -> Result<Scene> {
        wait_idle(0)?;
        // Before it is attached: an open then has nothing to wait for.
        let ours = |open: bool| open.then(|| Device::open_in_turn(0)).transpose();
        let (device, spare) = (ours(open)?, ours(open)?);
        let direct = open.then(|| open_direct("/dev/nbd0")).transpose()?;
        let mood = Arc::new(AtomicU8::new(SERVING));
        let server = moody(mood.clone())?;
        let client = Client::open()?;
        let options = match self.condition {
            Condition::DeadWaiting => vec![attr_u64(attr::DEAD_CONN_TIMEOUT, 600)],
            _ => Vec::new(),
        };
        let setup = Setup::for_server(&server).connections(CONNECTIONS).flags(flag::SEND_FLUSH);
        let process = match by {
            Interface::Ioctl => Some(setup.attach_in_child(0, &server)?),
            Interface::Netlink => {
                let sockets = sockets(&server, CONNECTIONS)?;
                let answer = connect_sockets(&client, Some(0), SIZE, &sockets, &options)?;
                answer.map_err(|refusal| anyhow!("CONNECT: {refusal:?}"))?;
                None
            }
        };
        if self.condition != Condition::ScanWaiting {
            // Has the partition table read.
            device_size(Device::open(0)?.file())?;
        }
        let hands = Hands {
            device,
            direct,
            spare: spare.map(|spare| spare.file().try_clone()).transpose()?,
            sockets: sockets(&self.other, CONNECTIONS)?,
            flags: setup.flags,
            driver: self.driver,
        };
        let mut scene = Scene {
            hands,
            client,
            server,
            mood,
            waiting: process.into_iter().collect(),
            writers: Vec::new(),
            holder: None,
            frozen: None,
        };
        scene.server.be_stubborn();
        self.misbehave(&mut scene, open)?;
        Ok(scene)
    }

    fn misbehave(&mut self, scene: &mut Scene, open: bool) -> Result<()> {
        let mood = |mood| scene.mood.store(mood, Ordering::SeqCst);
        match self.condition {
            Condition::Silent => {
                mood(IGNORING);
                scene.read(open)
            }
            Condition::Slow => {
                mood(SLOWLY);
                scene.read_on(open)
            }
            Condition::NotReading => {
                mood(STALLED);
                if open {
                    scene.writers = fill(0)?;
                }
                scene.read(open)
            }
            Condition::HalfClosed => {
                scene.server.finish();
                scene.wait_dead()
            }
            Condition::Dead => {
                scene.server.close();
                scene.wait_dead()
            }
            Condition::DeadWaiting => {
                scene.server.close();
                scene.wait_dead()?;
                scene.read(open)
            }
            Condition::HolderStopped => {
                let holder = holder()?;
                kill(Pid::from_raw(holder.pid()), Signal::SIGSTOP)?;
                wait_state(&holder, "state T")?;
                scene.holder = Some(holder);
                Ok(())
            }
            Condition::HolderFrozen => {
                let holder = holder()?;
                scene.frozen = Some(self.freeze(&holder)?);
                scene.holder = Some(holder);
                Ok(())
            }
            Condition::ClientStopped => {
                let client = scene.waiting.first().context("there is no client")?;
                kill(Pid::from_raw(client.pid()), Signal::SIGSTOP)?;
                wait_state(client, "state T")
            }
            Condition::ClientFrozen => {
                let client = scene.waiting.first().context("there is no client")?;
                scene.frozen = Some(self.freeze(client)?);
                Ok(())
            }
            Condition::LimitsWriter => {
                mood(IGNORING);
                // It waits for this read.
                scene.read(true)?;
                scene.wait_by("writing limits", &[], || {
                    let _ = write_limits();
                })
            }
            Condition::ScanWaiting => {
                mood(IGNORING);
                scene.wait_by("scanning", &[], || drop(File::open("/dev/nbd0")))?;
                scene.wait_by("claiming", &[], || {
                    use std::os::unix::fs::OpenOptionsExt as _;
                    let exclusive = File::options().read(true).custom_flags(libc::O_EXCL).open("/dev/nbd0");
                    drop(exclusive);
                })
            }
            Condition::MemoryShort => {
                mood(IGNORING);
                if open {
                    scene.dirty()?;
                }
                scene.read(open)
            }
        }
    }

    fn freeze(&mut self, child: &Child) -> Result<Cgroup> {
        let group = self.group.take().context("the group is in use")?;
        group.add(child.pid())?;
        group.freeze(true)?;
        Ok(group)
    }

    /// It is over, whatever is attached; nobody waits any more.
    pub fn end(&mut self, mut scene: Scene) -> Result<()> {
        let end = if scene.hands.device.is_some() { Call::ClearSock } else { Call::Disconnect };
        let mut ending: Made = end.begin(&mut scene.hands)?;
        ending.end(6, ", to end the scene")?;
        scene.mood.store(SERVING, Ordering::SeqCst);
        if let Some(group) = scene.frozen.take() {
            group.freeze(false)?;
            self.group = Some(group);
        }
        if let Some(mut holder) = scene.holder.take() {
            holder.kill()?;
        }
        for child in &mut scene.waiting {
            // A client may be stopped.
            if !child.ended() {
                kill(Pid::from_raw(child.pid()), Signal::SIGCONT)?;
            }
            child.wait().context("who waited for the server still does")?;
        }
        for writer in &scene.writers {
            let _ = writer.ended("the end of the scene")?;
        }
        drop(scene);
        wait_idle(0)
    }
}

impl Scene {
    /// A read that waits, on the processor that can be switched off.
    fn read(&mut self, wanted: bool) -> Result<()> {
        if !wanted {
            return Ok(());
        }
        let direct = match &self.hands.direct {
            Some(direct) => direct.try_clone()?,
            None => open_direct("/dev/nbd0")?,
        };
        let keep = descriptors([Some(&direct)]);
        self.wait_by("reading", &keep, || {
            let _ = read_direct(&direct, 65536, 4096);
        })
    }

    /// Reads, one after the other, until they fail.
    fn read_on(&mut self, wanted: bool) -> Result<()> {
        if !wanted {
            return Ok(());
        }
        let direct = self.hands.direct()?.try_clone()?;
        let child = fork_child(&descriptors([Some(&direct)]), |_| {
            aside();
            while read_direct(&direct, 65536, 4096).is_ok() {}
            Ok(())
        })?;
        self.waiting.push(child);
        Ok(())
    }

    /// A process that does something which waits for the server. Returns when it waits.
    fn wait_by(&mut self, what: &str, keep: &[RawFd], step: impl FnOnce()) -> Result<()> {
        let child = fork_child(keep, |_| {
            aside();
            step();
            Ok(())
        })?;
        wait_state(&child, "state D").with_context(|| what.to_owned())?;
        self.waiting.push(child);
        Ok(())
    }

    /// A process that writes, until it is held up for all that is to be written, or has no more.
    fn dirty(&mut self) -> Result<()> {
        let mut child = fork_child(&[], |_| {
            let device = Device::open(0)?;
            for offset in (8 << 20..(8 << 20) + DIRTY).step_by(1 << 20) {
                device.file().write_all_at(&[0xcc; 1 << 20], offset)?;
            }
            Ok(())
        })?;
        let pid = child.pid();
        wait_for("it to be held up", || child.ended() || describe_task(pid).contains("state D"))?;
        self.waiting.push(child);
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let told = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        println!("{}, {}", told("MemAvailable:"), told("Dirty:"));
        Ok(())
    }

    fn wait_dead(&self) -> Result<()> {
        let live = || sysfs(0, "nbd/live_connections");
        wait_for("the driver to see them dead", || live().as_deref() == Some("0"))
    }

    /// True while the device is attached as it was.
    pub fn attached(&self) -> Result<bool> {
        let devices = self.client.status(Some(0))?.map_err(|refusal| anyhow!("STATUS: {refusal:?}"))?;
        ensure!(!devices.is_empty(), "STATUS says nothing");
        Ok(devices.iter().any(|device| device.connected != 0))
    }
}

/// On the processor that can be switched off.
fn aside() {
    let mut cpus = CpuSet::new();
    // If there is no second one, it stays where it is.
    let _ = cpus.set(1).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus));
}

fn wait_state(child: &Child, state: &str) -> Result<()> {
    wait_for(state, || describe_task(child.pid()).contains(state)).with_context(|| describe_task(child.pid()))
}

fn moody(mood: Arc<AtomicU8>) -> Result<Server> {
    Ok(Server::with_behaviour(Export::memory(SIZE)?, move |_| match mood.load(Ordering::SeqCst) {
        SERVING => Action::Serve,
        SLOWLY => Action::Delay(SLOW),
        IGNORING => Action::Ignore,
        _ => {
            while mood.load(Ordering::SeqCst) == STALLED {
                std::thread::sleep(Duration::from_millis(20));
            }
            Action::Close
        }
    }))
}

/// A process that has the device open, has read from it, and has data that is not written.
fn holder() -> Result<Child> {
    let mut child = fork_child(&[], |ready| {
        let device = Device::open(0)?;
        device.file().read_exact_at(&mut [0; 4096], 0)?;
        device.file().write_all_at(&[0x5a; 4096], 4096)?;
        ready.tell("held")?;
        loop {
            nix::unistd::pause();
        }
    })?;
    child.expect_line("held")?;
    Ok(child)
}
