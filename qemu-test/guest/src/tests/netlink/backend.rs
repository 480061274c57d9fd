// SPDX-License-Identifier: GPL-2.0
//! The name of the backend, which whoever reconfigures must know.

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::attached::Attached;
use super::ok;
use crate::device::{capacity, sysfs};
use crate::netlink::{attr, attr_string, attr_u64};
use crate::server::{Export, Server};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.backend",
        "a device that has a backend's name is reconfigured with that name alone",
        named,
    ),
    Test::new("netlink.backend_none", "a device without a backend's name takes any", unnamed),
];

const SIZE: u64 = 1 << 20;

fn name(text: &str) -> netlink_packet_core::DefaultNla {
    attr_string(attr::BACKEND_IDENTIFIER, text)
}

fn named(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    ensure!(sysfs(0, "backend").is_none(), "a free device has a backend");
    let device = Attached::new(&server, 1, &[name("pool/image@7")])?;
    let mut checks = Checks::default();
    checks.equal("sysfs", sysfs(0, "backend").as_deref(), Some("pool/image@7"));
    let mut size = SIZE;
    for (what, names, granted) in [
        ("the same", vec![name("pool/image@7")], true),
        ("another", vec![name("pool/image@8")], false),
        ("a longer one", vec![name("pool/image@71")], false),
        ("a shorter one", vec![name("pool/image@")], false),
        ("an empty one", vec![name("")], false),
        ("none", vec![], false),
        ("the same at last", vec![name("other"), name("pool/image@7")], true),
    ] {
        let want = size / 2;
        let options = [&names[..], &[attr_u64(attr::SIZE_BYTES, want)]].concat();
        let answer = device.client.reconfigure(0, &[], &options)?;
        checks.equal(
            what,
            answer.map(drop).map_err(|refusal| refusal.errno),
            match granted {
                true => Ok(()),
                false => Err(Errno::EINVAL),
            },
        );
        if granted {
            size = want;
        }
        checks.equal(&format!("size after {what}"), capacity(0), size);
    }
    checks.equal("sysfs in the end", sysfs(0, "backend").as_deref(), Some("pool/image@7"));
    device.works()?;
    device.detach()?;
    checks.that("the file goes with the attachment", sysfs(0, "backend").is_none());
    checks.done()
}

fn unnamed(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    // One that had a name was there before.
    Attached::new(&server, 1, &[name("before")])?.detach()?;
    let device = Attached::new(&server, 1, &[])?;
    let mut checks = Checks::default();
    checks.equal("sysfs", sysfs(0, "backend").as_deref(), Some(""));
    for names in [vec![], vec![name("any")], vec![name("other")]] {
        ok(device.client.reconfigure(0, &[], &names)?)?;
    }
    checks.equal("sysfs in the end", sysfs(0, "backend").as_deref(), Some(""));
    device.detach()?;
    checks.done()
}
