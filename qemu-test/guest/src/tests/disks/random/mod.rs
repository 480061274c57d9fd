// SPDX-License-Identifier: GPL-2.0
//! Holders of every kind, each of which knows what image it has opened, read and write all the time, while images come
//! and go. What somebody reads must be of his own image, and what an image holds must be its own.

mod holder;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::image::{Image, SECTOR, content};
use crate::cgroup::Cgroup;
use crate::device::{Device, attached, capacity, open_direct, req, wait_idle, write_direct};
use crate::netlink::Client;
use crate::process::{Child, PATIENCE, describe_task, fork_child, wait_for};
use crate::server::Action;
use crate::tests::netlink::attached::{connect_sockets, sockets};
use crate::tests::{Context, Skip, Test, seed, tried};
use crate::userfault::Late;
use holder::{Kind, Tally, Worker};

pub const TESTS: &[Test] = &[Test::new(
    "disks.random",
    "images come and go under holders of every kind, for 30 s: nobody sees or changes another's",
    random,
)
.limit(400)
.known_on_nbd("EBUSY for as long as anybody has it open")];

/// What is at the begin of the device is always answered.
const CALM: u64 = 1 << 20;
const SIZE: u64 = 8 << 20;
const WORKERS: usize = 7;
const STUCK: usize = 2;

/// An image that is attached, and how.
struct Generation {
    image: Image,
    silent: bool,
    client: Option<Child>,
}

impl Generation {
    fn start(name: u64, rng: &mut SmallRng) -> Result<Generation> {
        let silent = rng.random_bool(0.4);
        let image = Image::sized(name, SIZE, move |request| {
            // Every 37th.
            if silent && request.offset >= CALM && (request.cookie >> 32) % 37 == 36 {
                Action::Ignore
            } else {
                Action::Serve
            }
        })?;
        let mut generation = Generation { image, silent, client: None };
        if rng.random() {
            generation.client = Some(generation.image.attach().context("an attach by ioctl")?);
            return Ok(generation);
        }
        let (client, offered) = (Client::open()?, sockets(&generation.image.server, 1)?);
        let start = Instant::now();
        // Somebody may be at it, until the last one has ended.
        while let Err(refusal) = connect_sockets(&client, Some(0), SIZE, &offered, &[])? {
            ensure!(start.elapsed() < *PATIENCE, "CONNECT is refused: {refusal:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(generation)
    }

    /// Ends it, in one of the ways that there are, and looks at what it holds.
    fn end(mut self, rng: &mut SmallRng) -> Result<&'static str> {
        // What is not answered would be waited for.
        let way = if self.silent { rng.random_range(0..3) } else { rng.random_range(0..5) };
        let server = &self.image.server;
        let netlink = || -> Result<()> {
            let _ = Client::open()?.disconnect(0)?;
            Ok(())
        };
        let name = match (&mut self.client, way) {
            (Some(client), 0) => {
                client.kill()?;
                "killed"
            }
            (_, 0 | 1) => {
                server.close();
                "closed"
            }
            (Some(_), 2) => {
                // Not by this process: if it had the last image attached by netlink, it would be taken to mean that.
                let mut other = fork_child(&[], |_| {
                    Device::open(0)?.ioctl(req::CLEAR_SOCK, 0)?;
                    Ok(())
                })?;
                other.success()?;
                "cleared"
            }
            (_, 3) => {
                Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
                "disconnected"
            }
            _ => {
                netlink()?;
                "disconnected by netlink"
            }
        };
        match &mut self.client {
            Some(client) => drop(client.wait().context("the client")?),
            None => netlink()?,
        }
        server.wait_closed().with_context(|| format!("{name}: the server"))?;
        wait_for("the device to be detached", || !attached(0)).with_context(|| name.to_owned())?;
        self.check().with_context(|| name.to_owned())?;
        Ok(name)
    }

    fn check(&self) -> Result<()> {
        let now = self.image.server.export().read(0, SIZE as usize)?;
        let own = content(self.image.name, 0, SIZE as usize);
        let other =
            |(index, (now, own)): (usize, (&[u8], &[u8]))| (now != own).then_some((index, now.to_vec()));
        let mut others = now.chunks(SECTOR).zip(own.chunks(SECTOR)).enumerate().filter_map(other);
        if let Some((sector, data)) = others.next() {
            let names = super::image::names(&data);
            let name = self.image.name;
            bail!("image {name} holds in sector {sector} one of {names:?}, and {} others", others.count());
        }
        Ok(())
    }
}

/// Somebody in the middle of a write(), whose memory comes later.
struct Stuck {
    late: Arc<Late>,
    name: u64,
    offset: u64,
    done: Receiver<String>,
}

impl Stuck {
    const HALF: usize = 64 << 10;

    fn start(name: u64, rng: &mut SmallRng) -> Result<Stuck> {
        let offset = CALM + rng.random_range(0..48) * 4096;
        let late = Arc::new(Late::new(&content(name, offset, Stuck::HALF))?);
        let (source, opener) = (late.clone(), Device::open(0)?);
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::Builder::new().name(format!("stuck {name}")).spawn(move || {
            let written = source.write_to(opener.file(), offset);
            let synced = opener.file().sync_all();
            drop(opener);
            let _ = sender.send(format!("{written:?} {synced:?}"));
        })?;
        late.wait_wanted()?;
        Ok(Stuck { late, name, offset, done })
    }

    fn goes_on(&self) -> Result<()> {
        self.late.arrive(&content(self.name, self.offset + Stuck::HALF as u64, Stuck::HALF))
    }

    fn ends(self) -> Result<()> {
        let told = self.done.recv_timeout(*PATIENCE);
        told.with_context(|| format!("a write() hangs\n{}", describe_task(std::process::id() as i32)))?;
        Ok(())
    }
}

/// A process whose write is held back by its group's limit.
fn throttled(group: &Cgroup, name: u64, rng: &mut SmallRng) -> Result<Child> {
    group.set("io.max", "43:0 wbps=32768")?;
    let (door, offset) = (group.door(), CALM + rng.random_range(0..64) * 65536);
    let mut child = fork_child(&[], move |ready| {
        std::fs::write(door, "0")?;
        let direct = open_direct("/dev/nbd0")?;
        ready.tell("writes")?;
        let _ = write_direct(&direct, offset, &content(name, offset, 48 << 10));
        Ok(())
    })?;
    child.expect_line("writes")?;
    Ok(child)
}

/// All that goes on at once.
struct Scene {
    rng: SmallRng,
    group: Option<Cgroup>,
    workers: Vec<Worker>,
    stuck: Vec<Stuck>,
    throttled: Vec<Child>,
    tally: Arc<Tally>,
}

impl Scene {
    /// More holders, of the image that is attached, whose server may leave requests without an answer.
    fn populate(&mut self, name: u64, silent: bool) -> Result<()> {
        for _ in 0..self.rng.random_range(1..4) {
            if self.workers.len() < WORKERS {
                let kind = match Kind::any(&mut self.rng) {
                    // losetup has all written that is in the page cache, and waits for that, and we for losetup.
                    Kind::Loop if silent => Kind::Plain,
                    kind => kind,
                };
                if let Some(worker) = Worker::start(kind, name, SIZE, self.rng.random(), &self.tally)? {
                    self.workers.push(worker);
                }
            }
        }
        if self.stuck.len() < STUCK && self.rng.random_bool(0.5) {
            self.stuck.push(Stuck::start(name, &mut self.rng).context("a write() that waits")?);
        }
        if let Some(group) = &self.group {
            if self.throttled.is_empty() && self.rng.random_bool(0.3) {
                self.throttled.push(throttled(group, name, &mut self.rng).context("a limited write")?);
            }
        }
        Ok(())
    }

    /// Some of what is under way comes to its end, be it in the next image's time or not.
    fn advance(&mut self, all: bool) -> Result<()> {
        if let Some(group) = &self.group {
            if all || self.rng.random() {
                // Of a disk that is gone the limit is gone too.
                let _ = group.set("io.max", "43:0 wbps=max");
            }
        }
        while !self.stuck.is_empty() && (all || self.rng.random_bool(0.4)) {
            let stuck = self.stuck.swap_remove(self.rng.random_range(0..self.stuck.len()));
            stuck.goes_on()?;
            stuck.ends()?;
        }
        for child in &mut self.throttled {
            if all {
                child.success().context("a limited write")?;
            }
        }
        self.throttled.retain_mut(|child| !child.ended());
        Ok(())
    }

    /// Some holders leave. None waits for a server now.
    fn thin_out(&mut self, all: bool) -> Result<()> {
        let rng = &mut self.rng;
        let (go, stay) = self.workers.drain(..).partition(|_| all || rng.random_bool(0.25));
        self.workers = stay;
        let gone: Vec<Worker> = go;
        gone.into_iter().try_for_each(Worker::end)
    }
}

fn random(context: &Context) -> Result<()> {
    let rng = SmallRng::seed_from_u64(seed()?);
    let group = match Cgroup::new(context, "io") {
        Ok(group) => Some(group).filter(|group| group.has("io.max")),
        Err(error) if error.is::<Skip>() => None,
        Err(error) => return Err(error),
    };
    println!("writes are limited: {}", group.is_some());
    let (workers, stuck, throttled) = (Vec::new(), Vec::new(), Vec::new());
    let mut scene = Scene { rng, group, workers, stuck, throttled, tally: Arc::default() };
    let length = Duration::from_secs(context.seconds(30, 8));
    let least = if context.soak { 1000 } else { 4 };
    let start = Instant::now();
    let mut ends = BTreeMap::<&str, usize>::new();
    let mut name = 0;
    while start.elapsed() < length || name < least {
        name += 1;
        let what = format!("image {name}");
        let generation = Generation::start(name, &mut scene.rng).with_context(|| what.clone())?;
        ensure!(capacity(0) == SIZE, "{what}: the capacity is {}", capacity(0));
        scene.advance(false).with_context(|| what.clone())?;
        scene.populate(name, generation.silent).with_context(|| what.clone())?;
        std::thread::sleep(Duration::from_millis(scene.rng.random_range(0..200)));
        let way = generation.end(&mut scene.rng).with_context(|| what.clone())?;
        *ends.entry(way).or_default() += 1;
        scene.thin_out(false).with_context(|| what.clone())?;
        scene.tally.wrong().with_context(|| format!("{what}, {way}"))?;
        if scene.rng.random_bool(0.3) {
            std::thread::sleep(Duration::from_millis(scene.rng.random_range(0..30)));
        }
    }
    scene.advance(true)?;
    scene.thin_out(true)?;
    println!("images ended as {ends:?}; {}", scene.tally);
    scene.tally.wrong()?;
    tried(name as usize, "images");
    drop(scene.group);
    wait_idle(0)?;
    crate::attach::attaches_again()?;
    ensure!(scene.tally.works(), "nobody has ever read or written: {}", scene.tally);
    Ok(())
}
