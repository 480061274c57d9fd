// SPDX-License-Identifier: GPL-2.0

//! The setup rules of nbd.ko (Linux 7.3), as a driver for the same harness.
//!
//! Its config, with the socket array, lives as long as the device has openers, however often
//! it is shut down; a flag remembers that it was, so that a second shutdown does nothing. The
//! owner is the address of a task, forgotten by a shutdown alone. Starting lets go of the lock
//! once, to set up hardware queues, before the device counts as running.
//!
//! One process holds the device open all the time, as the stuck `blkid` of the incident did.

use crate::device::{Device, Ledger, Process, Refused, Socket};
use loom::sync::Mutex;
use std::sync::Arc;

/// The one config that a device has while it is open.
const GENERATION: u64 = 1;

#[derive(Default)]
struct Config {
    sockets: Vec<Socket>,
    disconnected: bool,
    task_setup: Option<u32>,
    running: bool,
}

impl Config {
    fn shut_down(&mut self) {
        if self.sockets.is_empty() || self.disconnected {
            return;
        }
        self.disconnected = true;
        self.sockets.iter().for_each(Socket::shutdown);
    }
}

pub struct NbdKo {
    config: Mutex<Config>,
    ledger: Arc<Ledger>,
}

impl Device for NbdKo {
    fn new(ledger: &Arc<Ledger>) -> Self {
        Self {
            config: Mutex::default(),
            ledger: ledger.clone(),
        }
    }

    fn set_sock(&self, caller: &Process) -> Result<(), Refused> {
        let mut config = self.config.lock().unwrap();
        if config.running {
            return Err(Refused);
        }
        if *config.task_setup.get_or_insert(caller.address) != caller.address {
            return Err(Refused);
        }
        let socket = self.ledger.socket(caller);
        self.ledger.added(&socket, GENERATION);
        config.sockets.push(socket);
        Ok(())
    }

    fn do_it(&self, _: &Process) -> Result<(), Refused> {
        {
            let config = self.config.lock().unwrap();
            if config.running || config.sockets.is_empty() {
                return Err(Refused);
            }
        }
        // Here hardware queues are set up.
        let mut config = self.config.lock().unwrap();
        config.running = true;
        self.ledger.started(GENERATION, &config.sockets);
        drop(config);
        // The server closes, and every receiver leaves. The rest is not reset: the config lives.
        Ok(())
    }

    fn clear_sock(&self, _: &Process) {
        let mut config = self.config.lock().unwrap();
        config.shut_down();
        config.task_setup = None;
    }

    fn disconnect(&self) {
        // Asks the server to close, and sets a flag.
    }

    fn closed_by_death(&self, _: &Process) {
        // The config goes with the last close, and a holder has the device open.
    }
}
