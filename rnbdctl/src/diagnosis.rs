// SPDX-License-Identifier: GPL-2.0
//! In words: what a device is at, why it is refused or stuck, and what to do about it.

#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::device::{Connections, Details, State};
use crate::driver::Driver;
use crate::text::{count, duration};
use crate::users::User;

/// A request that is older than this is worth a word, in milliseconds.
const OLD: u64 = 10_000;

/// What is so, and what to do about it, if anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    pub what: String,
    pub to_do: Option<String>,
}

fn say(what: impl Into<String>) -> Advice {
    Advice { what: what.into(), to_do: None }
}

impl Advice {
    fn advise(self, to_do: impl Into<String>) -> Advice {
        Advice { to_do: Some(to_do.into()), ..self }
    }
}

/// All that is to be said of a device, the main thing first.
pub fn of(details: &Details) -> Vec<Advice> {
    let device = &details.device;
    let mut advice = match (device.driver, &device.state) {
        (_, State::Idle) => idle(details),
        (_, State::Setup) => setup(details),
        (_, State::Running) => running(details),
        (_, State::Draining) => draining(details),
        (_, State::Gone) => vec![
            say("It is being removed: whoever has it open gets I/O errors.")
                .advise("Nothing: its number is free as soon as it has gone. Connecting it waits for that."),
        ],
        (_, State::Held) => held(details),
        (_, State::Other(name)) => {
            vec![say(format!("Its state {name:?} is unknown to this version of rnbdctl."))]
        }
    };
    if let Some(error) = &device.last_error {
        advice.push(say(format!("The last thing that went wrong: {error}.")));
    }
    advice
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join("; ")
}

fn exclusive(details: &Details) -> impl Iterator<Item = &User> {
    details.users.iter().filter(|user| user.is_exclusive())
}

/// The commands that end the exclusive uses.
fn releases(details: &Details) -> String {
    list(exclusive(details).map(User::release))
}

fn idle(details: &Details) -> Vec<Advice> {
    let name = format!("nbd{}", details.device.index);
    if exclusive(details).next().is_some() {
        let users = list(exclusive(details));
        return vec![
            say(format!(
                "It is not attached, but still used since the last attachment: {users}. It is refused to all but the \
                 last owner, who may come back to an export of the same size."
            ))
            .advise(format!("{}; then it is free.", releases(details))),
        ];
    }
    let mut advice = vec![say(format!("It is free: rnbdctl connect --device {name} attaches it."))];
    if !details.openers.is_empty() {
        let openers = list(&details.openers);
        advice.push(say(match details.device.driver {
            Driver::Rnbd => format!("Open in {openers}; that does not keep it from being attached."),
            Driver::Nbd => format!("Open in {openers}; with nbd.ko that keeps netlink from attaching it."),
        }));
    }
    advice
}

fn setup(details: &Details) -> Vec<Advice> {
    let device = &details.device;
    let name = format!("nbd{}", device.index);
    let sockets = device.connections.map_or(0, |connections| connections.all);
    let so_far = count(sockets.into(), "socket", "sockets");
    let Some(owner) = &device.owner else {
        return vec![say(format!("It is being set up, with {so_far} so far."))];
    };
    match owner.alive {
        Some(false) => vec![
            say(format!(
                "Its setup is an orphan: {owner} began it, with {so_far}, and is gone. It refuses nobody, and does \
                 not work either."
            ))
            .advise(format!(
                "Attach it anew, which replaces this setup; or rnbdctl disconnect {name}, which drops it."
            )),
        ],
        alive => {
            let doubt = if alive.is_none() { ", unless that is dead, which cannot be seen from here" } else { "" };
            vec![
                say(format!(
                    "{owner} is setting it up, with {so_far} so far. Others get EBUSY until it starts or gives up{doubt}."
                ))
                .advise(format!(
                    "Wait for that process. If it is stuck, end it, or drop its setup: rnbdctl disconnect {name}."
                )),
            ]
        }
    }
}

fn draining(details: &Details) -> Vec<Advice> {
    let mut advice = vec![
        say(
            "It is being detached: the server has a few seconds to answer what it was asked, then the sockets are \
             shut down and the rest fails. Whoever wants to attach it waits for that.",
        )
        .advise("Wait; this ends by itself."),
    ];
    advice.extend(in_use_meanwhile(details, "It is detached under"));
    advice
}

fn in_use_meanwhile(details: &Details, what: &str) -> Option<Advice> {
    exclusive(details).next()?;
    Some(say(format!("{what} {}.", list(exclusive(details)))).advise(format!("{}.", releases(details))))
}

fn running(details: &Details) -> Vec<Advice> {
    let device = &details.device;
    let dead = device.owner.as_ref().filter(|owner| owner.alive == Some(false));
    if let (Driver::Nbd, false, Some(owner)) = (device.driver, details.by_netlink, dead) {
        return vec![kept(details, owner.pid)];
    }
    let mut advice = Vec::new();
    if let Some(connections) = device.connections {
        advice.push(attached(details, connections));
    } else {
        advice.push(say(attached_by(details)));
    }
    let any_live = device.connections.is_none_or(|connections| connections.live > 0);
    if any_live {
        advice.extend(slow(details));
    }
    if exclusive(details).next().is_some() {
        advice.push(say(format!("In use by {}.", list(exclusive(details)))));
    }
    advice
}

fn attached_by(details: &Details) -> String {
    let device = &details.device;
    match (&device.owner, details.by_netlink) {
        (Some(owner), true) => {
            let gone = if owner.alive == Some(false) { ", which has ended since, as it may" } else { "" };
            format!("It is attached, by netlink; {owner} did it{gone}.")
        }
        (Some(owner), false) => format!("It is attached, as long as {owner} runs."),
        (None, _) => "It is attached.".to_owned(),
    }
}

/// The connections, and what can be done about dead ones.
fn attached(details: &Details, connections: Connections) -> Advice {
    let device = &details.device;
    let name = format!("nbd{}", device.index);
    let Connections { live, all } = connections;
    let attached = attached_by(details);
    let dead = all.saturating_sub(live);
    if dead == 0 {
        let how_many = match all {
            1 => "Its connection is live".to_owned(),
            all => format!("All {all} connections are live"),
        };
        return say(format!("{attached} {how_many}."));
    }
    let reasons = reasons(details);
    if live > 0 {
        let is = if dead == 1 { "is" } else { "are" };
        let told =
            say(format!("{attached} {dead} of {all} connections {is} dead{reasons}; the others serve it."));
        return match details.by_netlink {
            true => told.advise(format!("rnbdctl reconfigure {name} SERVER gives it new ones.")),
            false => told.advise("It was attached by ioctl: new ones come only with a new attachment."),
        };
    }
    let dead = if all == 1 {
        "Its connection is dead".to_owned()
    } else {
        format!("All {all} connections are dead")
    };
    let waiting = match device.requests {
        0 => "nothing waits for it at the moment".to_owned(),
        waiting => format!("{} for a new one", count(waiting, "request waits", "requests wait")),
    };
    let told = say(format!("{attached} {dead}{reasons}; {waiting}."));
    match details.by_netlink {
        true => told.advise(format!(
            "rnbdctl reconfigure {name} SERVER gives it a new connection, and what waits goes on. Or rnbdctl \
             disconnect {name}, and what waits fails. Without either, requests fail when the dead connection time-out \
             is over, at once if there is none."
        )),
        false => told.advise(format!("The attachment is about to end; if it does not: rnbdctl disconnect {name}.")),
    }
}

/// Why connections died, if that can be read.
fn reasons(details: &Details) -> String {
    let table = details.connection_table.iter().flatten();
    let mut reasons: Vec<&str> = table.filter_map(|connection| connection.reason.as_deref()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

/// A server that lets requests wait.
fn slow(details: &Details) -> Option<Advice> {
    let device = &details.device;
    let name = format!("nbd{}", device.index);
    let age = device.oldest_request_ms.filter(|age| *age >= OLD)?;
    let oldest = details.request_table.iter().flatten().max_by_key(|request| request.age_ms)?;
    let table = details.connection_table.iter().flatten();
    let place = table.clone().find(|connection| connection.index == oldest.connection);
    let place = place.map(|connection| format!(" ({})", connection.place())).unwrap_or_default();
    let bound = match details.timeout_s {
        Some(seconds) => {
            format!("it fails, or goes to another connection, after {}", duration(seconds * 1000))
        }
        None => "there is no time-out, and it waits for ever".to_owned(),
    };
    let told = say(format!(
        "The server does not answer: a {} of {} bytes waits on connection {}{place} for {}; {bound}.",
        oldest.operation,
        oldest.bytes,
        oldest.connection,
        duration(age),
    ));
    Some(match details.by_netlink {
        true => told.advise(format!(
            "Look at the server. rnbdctl handover {name} SERVER gives what waits to another one; rnbdctl disconnect \
             {name} makes it fail."
        )),
        false => told.advise(format!("Look at the server; rnbdctl disconnect {name} makes what waits fail.")),
    })
}

/// The incident, with nbd.ko.
fn kept(details: &Details, pid: i32) -> Advice {
    say(format!(
        "It looks attached, but process {pid}, which did that by ioctl, is gone: nbd.ko keeps the attachment until the \
         last one closes it, and each new attempt fails with EBUSY. It is open in {}.",
        openers(details)
    ))
    .advise(end_openers(details))
}

/// nbd.ko does not say what it is.
fn held(details: &Details) -> Vec<Advice> {
    let told = say(format!(
        "nbd.ko counts it as in use, though nothing is attached. It is open in {}, or it is set up and not started. As \
         long as it is open nbd.ko keeps the last configuration: if that one's owner has died, each new attempt fails \
         with EBUSY, \"Device being setup by another task\".",
        openers(details)
    ));
    vec![told.advise(end_openers(details))]
}

fn openers(details: &Details) -> String {
    match details.openers.is_empty() {
        true => "no process that can be seen from here".to_owned(),
        false => list(&details.openers),
    }
}

fn end_openers(details: &Details) -> String {
    match exclusive(details).next() {
        Some(_) => format!("{}, then end what else has it open.", releases(details)),
        None => "End the processes that have it open; with the last one nbd.ko forgets it.".to_owned(),
    }
}
