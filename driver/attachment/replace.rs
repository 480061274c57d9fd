// SPDX-License-Identifier: GPL-2.0

//! Giving connections other sockets while their generation runs: reconnect and handover.
//!
//! A dead connection gets a new link, and the requests that wait for one go on. At a handover a
//! live connection gets one too. From then on requests are sent on the new link alone; those under
//! way on the old one may be answered there for a while, and are sent anew when it is over. So none
//! is lost, and none is answered twice: its word says over which link it may be.

use super::{presence::Presence, Attachment, AttachmentRef};
use crate::{
    abstractions::{
        block::mq::Disk, compat::error::code::ENOTCONN, deadline::Deadline, kthread::Thread,
        net::socket::Socket,
    },
    driver::{
        nbd::{answer, Nbd},
        wire::{
            connection::{Connection, ConnectionRef, Tx},
            link::{DeadReason, Link},
            overseer::Overseer,
            receive::Receiver,
        },
    },
    protocol::request::Route,
};
use kernel::{
    prelude::*,
    sync::{Arc, MutexGuard},
};

/// How long the server behind an old socket has to answer what it was asked.
const HANDOVER_GRACE_MS: u32 = 2000;

/// How long those that send on old sockets have to finish, all together.
const SENDERS_GRACE_MS: u32 = 1000;

/// Which connections get another socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Dead ones.
    Dead,
    /// Dead ones, and when these have theirs, live ones.
    All,
}

/// A link that another has taken the place of.
struct OldLink<'a> {
    connection: &'a ConnectionRef,
    link: Arc<Link>,
    receiver: Thread<Receiver<Attachment>>,
}

/// Gives connections of a running generation other sockets. Returns how many were taken, when the
/// old ones are released. Sleeps, for a bounded time; no lock may be held.
///
/// # Errors
///
/// `ENOTCONN` if the generation has ended; else what making a receiver fails with: connections that
/// were done before have their new sockets.
pub(crate) fn sockets(
    attachment: &AttachmentRef,
    sockets: KVec<Socket>,
    scope: Scope,
) -> Result<usize> {
    let mut old = KVec::with_capacity(sockets.len(), GFP_KERNEL)?;
    let result = put_all(attachment, sockets, scope, &mut old);
    attachment.disk().kick_requeue_list();
    let taken = old.len();
    retire(attachment, old);
    result.map(|()| taken)
}

fn put_all<'a>(
    attachment: &'a AttachmentRef,
    sockets: KVec<Socket>,
    scope: Scope,
    old: &mut KVec<OldLink<'a>>,
) -> Result {
    let mut presence = attachment.presence.lock();
    if presence.closed {
        return Err(ENOTCONN);
    }
    let mut sockets = sockets.into_iter();
    let grace = Deadline::after(SENDERS_GRACE_MS);
    let scopes: &[bool] = match scope {
        Scope::Dead => &[true],
        Scope::All => &[true, false],
    };
    for &dead in scopes {
        for connection in &attachment.connections {
            let done = || {
                old.iter()
                    .any(|old| old.connection.index == connection.index)
            };
            if connection.is_dead() != dead || done() {
                continue;
            }
            let Some(socket) = sockets.next() else {
                return Ok(());
            };
            let replaced = put(attachment, &mut presence, connection, socket, &grace)?;
            old.push(replaced, GFP_KERNEL)?;
        }
    }
    Ok(())
}

/// Gives one connection another socket. A task that sends on the old one has until `grace` is over.
fn put<'a>(
    attachment: &'a AttachmentRef,
    presence: &mut Presence<Attachment>,
    connection: &'a ConnectionRef,
    socket: Socket,
    grace: &Deadline,
) -> Result<OldLink<'a>> {
    let place = presence
        .receivers
        .get_mut(usize::from(connection.index))
        .ok_or(ENOTCONN)?;
    let route = Route {
        connection: connection.index,
        epoch: connection.link().route.epoch.wrapping_add(1),
    };
    socket.set_memalloc();
    socket.set_sndtimeo(attachment.timeout());
    let link = Link::new(route, socket)?;
    let receiver = Receiver::start(attachment, connection, link.clone())?;

    let mut tx = lock_sender(connection, grace);
    let pending = tx.pending.take();
    let displaced = connection.put_link(&mut tx, link.clone());
    drop(tx);
    if displaced.was_dead {
        attachment.inc_live();
    }
    // If it died before it was put there, that was not counted yet.
    if link.is_dead() && connection.lose(&link) {
        attachment.dec_live();
    }
    // The time of an earlier handover's link is over.
    if let Some(leaving) = displaced.leaving {
        attachment.kill(connection, &leaving, DeadReason::HandedOver);
    }
    // What was sent in part is sent anew.
    if let Some(pending) = pending {
        if let Some(sending) = pending.request.data().word.resume(pending.mark) {
            if let Some(claim) = sending.abandon() {
                answer(&pending.request, claim, attachment.disposition());
            }
        }
    }
    // What ends the generation kills the links that it sees.
    if attachment.is_draining() {
        attachment.kill(connection, &link, DeadReason::Retired);
    }
    dev_info!(
        attachment.disk().device(),
        "connection {}: {} socket\n",
        connection.index,
        if displaced.was_dead {
            "reconnected with a new"
        } else {
            "handed over to another"
        }
    );
    Ok(OldLink {
        connection,
        link: displaced.link,
        receiver: core::mem::replace(place, receiver),
    })
}

/// Waits for the task that sends on a connection, until `grace` is over. If the task waits for the
/// server, its link is killed.
fn lock_sender<'a>(connection: &'a Connection, grace: &Deadline) -> MutexGuard<'a, Tx> {
    let _wanted = connection.want_tx();
    let done = |tx: &MutexGuard<'_, Tx>| tx.pending.is_none() || tx.link.is_dead();
    grace
        .poll(|| connection.tx.try_lock().filter(done))
        .unwrap_or_else(|| {
            connection.cut_off();
            connection.tx.lock()
        })
}

/// Releases links whose places are taken, once no request is on them or their time is over.
fn retire(attachment: &Attachment, old: KVec<OldLink<'_>>) {
    let busy = |old: &OldLink<'_>| {
        !old.link.is_dead() && awaits_answers(attachment.disk(), old.link.route)
    };
    let _ = Deadline::after(HANDOVER_GRACE_MS).poll(|| (!old.iter().any(busy)).then_some(()));
    for OldLink {
        connection,
        link,
        receiver,
    } in old
    {
        if !link.is_dead() {
            // If it cannot be told at once it sees the end.
            let _ = link.send_disconnect();
        }
        attachment.kill(connection, &link, DeadReason::HandedOver);
        // Its socket is shut down: it is on its way.
        drop(receiver);
        connection.forget(&link);
    }
}

/// Whether an answer is awaited over a link.
fn awaits_answers(disk: &Disk<Nbd>, route: Route) -> bool {
    let mut any = false;
    disk.tagset_busy_iter(|request| any |= request.data().word.route() == Some(route));
    any
}
