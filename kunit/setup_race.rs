// SPDX-License-Identifier: GPL-2.0

//! Set-up by many threads at once, under a real lock (invariant G1).

use super::{
    fixture::{thread, Census, Event},
    setup::{add, start, Life, Sockets},
};
use crate::{
    abstractions::pid::ProcessRef,
    protocol::setup::{EndReason, Phase, Retired},
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc, Mutex,
    },
};

const THREADS: u32 = 6;
const ROUNDS: u32 = 3000;

#[pin_data]
struct Device {
    #[pin]
    life: Mutex<Life>,
    census: Census,
    go: Event,
    added: Atomic<u32>,
    released: Atomic<u32>,
    /// Sockets met in a generation that was not theirs.
    strays: Atomic<u32>,
}

impl Device {
    /// One thread's work: whatever a client may do, in an order that differs with `seed`.
    fn work(&self, seed: u32) {
        self.go.wait();
        let mut random = seed;
        for _ in 0..ROUNDS {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let me = ProcessRef::current();
            match random >> 29 {
                0..=3 => {
                    let mut life = self.life.lock();
                    let (replaced, result) = add(&mut life, me, &self.census);
                    let orphan = life.generation().wrapping_sub(1);
                    drop(life);
                    if result.is_ok() {
                        self.added.fetch_add(1, Full);
                    }
                    self.release(replaced, orphan);
                }
                4 => {
                    let mut life = self.life.lock();
                    let generation = life.generation();
                    let cleared = life.clear(&me);
                    drop(life);
                    if let Retired::Setup(sockets) = cleared {
                        self.release(Some(sockets), generation);
                    }
                }
                5 => {
                    let mut life = self.life.lock();
                    let generation = life.generation();
                    let ended = life.retire(EndReason::Disconnected);
                    drop(life);
                    if let Retired::Setup(sockets) = ended {
                        self.release(Some(sockets), generation);
                    }
                }
                6 => {
                    let mut life = self.life.lock();
                    let before = match life.phase() {
                        Phase::Setup(setup) => setup.connections.0.len(),
                        _ => 0,
                    };
                    if start(&mut life, me).is_ok() {
                        self.released.fetch_add(before as u32, Full);
                    }
                }
                _ => {
                    let _ = self.life.lock().drained();
                }
            }
        }
    }

    /// Takes note of sockets that left with `generation`, and drops them.
    fn release(&self, sockets: Option<Sockets>, generation: u64) {
        let Some(sockets) = sockets else { return };
        for (theirs, _) in &sockets.0 {
            if *theirs != generation {
                self.strays.fetch_add(1, Full);
            }
            self.released.fetch_add(1, Full);
        }
    }
}

#[kunit_tests(rnbd_setup_race)]
mod tests {
    use super::*;

    #[test]
    fn no_socket_outlives_or_leaves_its_generation() -> Result {
        let device = Arc::pin_init(
            try_pin_init!(Device {
                life <- new_mutex!(Life::default()),
                census: Census::new()?,
                go: Event::new()?,
                added: Atomic::new(0),
                released: Atomic::new(0),
                strays: Atomic::new(0),
            }? Error),
            GFP_KERNEL,
        )?;
        let mut threads = KVec::new();
        for seed in 0..THREADS {
            let device = device.clone();
            threads.push(thread(move || device.work(seed))?, GFP_KERNEL)?;
        }
        device.go.happen();
        drop(threads);
        let (added, released) = (device.added.load(Relaxed), device.released.load(Relaxed));
        // Each thread was refused at times, and at times was not.
        assert!(added > 0 && released > 0 && added < THREADS * ROUNDS);
        assert_eq!(device.strays.load(Relaxed), 0);
        let left = match device.life.lock().retire(EndReason::Cleared) {
            Retired::Setup(sockets) => sockets.0.len() as u32,
            _ => 0,
        };
        assert_eq!(added, released + left);
        assert_eq!(device.census.alive(), 0);
        Ok(())
    }
}
