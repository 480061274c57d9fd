// SPDX-License-Identifier: GPL-2.0
//! Who comes while the last attachment is still ending: the server owes an answer, and has a while to give it. He waits
//! for the end rather than be refused (invariant G3), and a signal ends his wait.

use anyhow::{Result, ensure};

use super::{Context, Test};
use crate::attach::{Setup, attaches_again_by};
use crate::blocked::{Blocked, silent_server};
use crate::device::{Device, req, sysfs};
use crate::modules::Driver;
use crate::process::Child;
use crate::server::Server;

const BUSY_ON_NBD: &str = "EBUSY, until the last one is gone";

pub const TESTS: &[Test] = &[Test::new(
    "draining.attach",
    "who attaches while the last attachment ends waits, and attaches",
    attach,
)
.known_on_nbd(BUSY_ON_NBD)];

/// An attachment that ends, and what it waits for.
struct Draining {
    server: Server,
    client: Child,
    reader: Blocked,
}

impl Draining {
    fn new(context: &Context) -> Result<Draining> {
        let server = silent_server()?;
        let client = Setup::for_server(&server).attach_in_child(0, &server)?;
        let reader = Blocked::read(&server)?;
        Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
        if context.driver == Driver::Rnbd {
            let state = sysfs(0, "nbd/state");
            ensure!(state.as_deref() == Some("draining"), "after NBD_DISCONNECT the state is {state:?}");
        }
        Ok(Draining { server, client, reader })
    }

    /// It has come to its end by itself.
    fn ended(mut self) -> Result<()> {
        self.reader.fails("NBD_DISCONNECT")?;
        println!("the client ended as {:?}", self.client.wait()?);
        self.server.wait_closed()
    }
}

fn attach(context: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let draining = Draining::new(context)?;
    attaches_again_by(&device)?;
    draining.ended()
}
