// SPDX-License-Identifier: GPL-2.0
//! The family itself: what it is, who may use it, where it is to be found, and until when.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::attached::{Attached, client_flag, client_flags};
use super::{found, ok, reply_of_free};
use crate::modules::Driver;
use crate::netlink::{Answer, Client, Family, Message, NlaType, Operation, attr, command};
use crate::process::{fork_child, wait_for};
use crate::server::{Export, Server};
use crate::tests::{Checks, Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new("netlink.family", "the family has nbd.ko's version, group, attributes and their types", family)
        .quick(),
    Test::new("netlink.gone", "the family comes and goes with the module", gone).unloaded(),
    Test::new("netlink.commands", "commands that there are not get EOPNOTSUPP", commands),
    Test::new("netlink.unprivileged", "anybody may ask for STATUS, and nothing else", unprivileged),
    Test::new("netlink.namespaces", "the family is there in every network namespace", namespaces),
    Test::new("netlink.unload_connect", "CONNECT, while the module goes and comes again", unload_connect)
        .unloaded()
        .limit(120),
    Test::new("netlink.unload", "unloading waits for requests, and leaves none without an answer", unload)
        .unloaded()
        .limit(120),
];

fn family(context: &Context) -> Result<()> {
    let family = found()?;
    let mut checks = Checks::default();
    checks.equal("version", family.version, 1);
    checks.equal("size of the family's header", family.header_size, 0);
    let highest = match context.driver {
        Driver::Nbd => attr::MAX,
        Driver::Rnbd => attr::SOCKETS_LEFT,
    };
    checks.equal("highest attribute", family.max_attribute, highest.into());
    let groups: Vec<&str> = family.groups.iter().map(|(name, _)| name.as_str()).collect();
    checks.equal("groups", groups, vec!["nbd_mc_group"]);
    let commands: Vec<u32> = family.operations.iter().map(|operation| operation.command).collect();
    let want = [command::CONNECT, command::DISCONNECT, command::RECONFIGURE, command::STATUS];
    checks.equal("commands", commands, want.map(u32::from).to_vec());
    for operation in &family.operations {
        checks.equal(
            &format!("flags of command {}", operation.command),
            operation.flags,
            Operation::DO | Operation::HAS_POLICY,
        );
        let types = BTreeMap::from([
            (attr::INDEX, NlaType::U32),
            (attr::SIZE_BYTES, NlaType::U64),
            (attr::BLOCK_SIZE_BYTES, NlaType::U64),
            (attr::TIMEOUT, NlaType::U64),
            (attr::SERVER_FLAGS, NlaType::U64),
            (attr::CLIENT_FLAGS, NlaType::U64),
            (attr::SOCKETS, NlaType::Nested),
            (attr::DEAD_CONN_TIMEOUT, NlaType::U64),
            (attr::DEVICE_LIST, NlaType::Nested),
            (attr::BACKEND_IDENTIFIER, NlaType::String),
        ]);
        let mut policy = family.policy(operation.command as u8)?;
        let own = policy.split_off(&(attr::MAX + 1));
        checks.that("what is beyond nbd.ko is far beyond", own.keys().all(|&number| number >= 64));
        checks.equal(&format!("attributes of command {}", operation.command), policy, types);
    }
    checks.done()
}

fn gone(context: &Context) -> Result<()> {
    for round in 0..3 {
        ensure!(Family::find()?.is_none(), "round {round}: without the module there is a family");
        context.driver.load(&context.modules, "nbds_max=1")?;
        ok(Client::open()?.status(None)?)?;
        context.driver.remove().map_err(|errno| anyhow!("rmmod: {errno}"))?;
    }
    ensure!(Family::find()?.is_none(), "the module is gone, the family is not");
    Ok(())
}

fn commands(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let mut checks = Checks::default();
    let errno = |answer: Answer<Vec<Message>>| answer.map_err(|refusal| refusal.errno);
    for command in [0, command::LINK_DEAD, 6, 77, 255] {
        let answer = errno(client.call(command, &[])?);
        checks.equal(&format!("command {command}"), answer, Err(Errno::EOPNOTSUPP));
    }
    let dump = errno(client.call_bytes(command::STATUS, NLM_F_DUMP, &[])?);
    checks.equal("STATUS as a dump", dump, Err(Errno::EOPNOTSUPP));
    let flags = errno(client.call_bytes(command::STATUS, NLM_F_CREATE, &[])?);
    checks.equal("STATUS with flags without meaning", flags, Ok(vec![reply_of_free(0..2)]));
    checks.done()
}

/// STATUS is answered, and all else that the family has refused with EPERM.
fn may_only_ask(client: &Client, family: &Family, who: &str) -> Result<()> {
    let mut checks = Checks::default();
    for operation in &family.operations {
        let answer = client.call(operation.command as u8, &[])?.map_err(|refusal| refusal.errno);
        let want = match operation.command as u8 {
            command::STATUS => Ok(vec![reply_of_free(0..2)]),
            _ => Err(Errno::EPERM),
        };
        checks.equal(&format!("{who}: command {}", operation.command), answer, want);
    }
    checks.done()
}

fn unprivileged(_: &Context) -> Result<()> {
    let family = found()?;
    let roots = Client::of(&family)?;
    let mut child = fork_child(&[roots.fd()], |_| {
        let nobody = nix::unistd::Uid::from_raw(65534);
        nix::unistd::setresuid(nobody, nobody, nobody)?;
        may_only_ask(&Client::open()?, &family, "nobody, by a socket of its own")?;
        may_only_ask(&roots, &family, "nobody, by a socket of root's")
    })?;
    child.success()
}

fn namespaces(_: &Context) -> Result<()> {
    if ["net", "user"].iter().any(|kind| !Path::new("/proc/self/ns").join(kind).exists()) {
        return skip("the kernel has no network or no user namespaces");
    }
    let family = found()?;
    let mut child = fork_child(&[], |_| {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        ensure!(found()? == family, "the family is another one in another namespace");
        let answer = Client::open()?.call(command::STATUS, &[])?;
        ensure!(answer == Ok(vec![reply_of_free(0..2)]), "STATUS was answered with {answer:?}");
        Ok(())
    })?;
    child.success()?;
    let mut child = fork_child(&[], |_| {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("namespaces")?;
        may_only_ask(&Client::open()?, &family, "root of another user namespace")
    })?;
    child.success()
}

/// Asks until told to stop; the family may go at any time, and come back with another number.
fn ask_until(stop: &AtomicBool, devices: RangeInclusive<usize>, answered: &AtomicUsize) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let Some(family) = Family::find()? else { continue };
        let client = Client::of(&family)?;
        loop {
            match client.status(None)? {
                Ok(told) => ensure!(devices.contains(&told.len()), "STATUS told {told:?}"),
                Err(refusal) if refusal.errno == Errno::ENOENT => break,
                Err(refusal) => bail!("STATUS was refused: {refusal:?}"),
            }
            answered.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(())
}

fn unload(context: &Context) -> Result<()> {
    let stop = AtomicBool::new(false);
    let answered: [AtomicUsize; 4] = Default::default();
    // nbd.ko has the family first, and then one device after the other.
    let devices = match context.driver {
        Driver::Rnbd => 2..=2,
        Driver::Nbd => 0..=2,
    };
    std::thread::scope(|scope| {
        let tasks: Vec<_> = answered
            .iter()
            .map(|answered| {
                let (stop, devices) = (&stop, devices.clone());
                scope.spawn(move || ask_until(stop, devices, answered))
            })
            .collect();
        let rounds = || {
            for round in 0..context.rounds(10, 3) {
                context.driver.load(&context.modules, "nbds_max=2")?;
                let client = Client::open()?;
                for _ in 0..20 {
                    ok(client.status(None)?)?;
                }
                if round == 0 {
                    // Every task gets to ask; from then on as it comes.
                    let count = |task: &AtomicUsize| task.load(Ordering::Relaxed);
                    wait_for("every task to be answered", || answered.iter().all(|task| count(task) > 0))?;
                }
                context.driver.remove().map_err(|errno| anyhow!("round {round}: rmmod: {errno}"))?;
            }
            Ok(())
        };
        let done: Result<()> = rounds();
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.join().map_err(|_| anyhow!("a task panicked"))??;
        }
        println!("{answered:?} requests were answered");
        done
    })
}

/// The module is gone, or about to go, whenever that suits it least.
fn unload_connect(context: &Context) -> Result<()> {
    let stop = AtomicBool::new(false);
    let attached = AtomicUsize::new(0);
    let server = Server::new(Export::memory(1 << 20)?);
    let ask = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let goes = [client_flags(client_flag::DESTROY_ON_DISCONNECT)];
            // It may be that there is no family, or no device, or no module.
            if let Ok(device) = Attached::new(&server, 1, &goes) {
                attached.fetch_add(1, Ordering::Relaxed);
                let _ = device.disconnect();
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let task = scope.spawn(ask);
        let rounds = || -> Result<()> {
            for round in 0..context.rounds(20, 5) {
                context.driver.load(&context.modules, "nbds_max=0")?;
                let before = attached.load(Ordering::Relaxed);
                wait_for("an attachment", || attached.load(Ordering::Relaxed) > before)?;
                let mut last = Ok(());
                wait_for("rmmod", || {
                    last = context.driver.remove();
                    last.is_ok()
                })
                .with_context(|| format!("round {round}: {last:?}"))?;
            }
            Ok(())
        };
        let done = rounds();
        stop.store(true, Ordering::Relaxed);
        task.join().map_err(|_| anyhow!("the task panicked"))??;
        done
    })
}
