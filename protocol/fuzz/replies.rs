// SPDX-License-Identifier: GPL-2.0
#![no_main]

//! Requests on two connections, and a server that answers whatever it likes, at any moment.
//!
//! The input is a script. What a reply may do follows from a plain model beside the driver's request words: it answers
//! a request once, on the connection that it was sent on, by the cookie that it was sent with, and nothing else.

use libfuzzer_sys::fuzz_target;
use rnbd_protocol::{
    cookie::{Cookie, Sequence},
    request::{AtomicWord, Claim, Route, SendMark, Word},
    wire::{Reply, WrongMagic, REPLY_MAGIC, REPLY_SIZE},
};
use std::cell::Cell;

/// One thread: races for a word are the affair of loom.
struct Plain(Cell<u64>);

impl AtomicWord for Plain {
    fn new(value: u64) -> Self {
        Self(Cell::new(value))
    }

    fn load(&self) -> u64 {
        self.0.get()
    }

    fn store(&self, value: u64) {
        self.0.set(value);
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        let met = self.0.get();
        if met != old {
            return Err(met);
        }
        self.0.set(new);
        Ok(())
    }
}

const TAGS: usize = 4;
const CONNECTIONS: usize = 2;

/// What is known of a request that is not answered.
#[derive(Clone, Copy)]
struct Asked {
    route: Route,
    sequence: u32,
    /// Its send was begun and is not finished.
    sending: Option<SendMark>,
}

#[derive(Default)]
struct Tag {
    word: Word<Plain>,
    asked: Option<Asked>,
}

#[derive(Default)]
struct Connection {
    epoch: u16,
    sequence: Sequence,
    sent: u32,
}

/// The script, read from its beginning.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn below(&mut self, bound: usize) -> Option<usize> {
        self.bytes::<1>().map(|[byte]| usize::from(byte) % bound)
    }
}

struct World {
    tags: [Tag; TAGS],
    connections: [Connection; CONNECTIONS],
}

impl World {
    fn new() -> Self {
        Self {
            tags: Default::default(),
            connections: Default::default(),
        }
    }

    fn route(&self, connection: usize) -> Route {
        Route {
            connection: connection as u16,
            epoch: self.connections[connection].epoch,
        }
    }

    /// The block layer hands a request out, if the tag is free; its send ends, or not yet.
    fn send(&mut self, tag: usize, connection: usize, whole: bool) {
        let route = self.route(connection);
        let Self { tags, connections } = self;
        let (tag, connection) = (&mut tags[tag], &mut connections[connection]);
        if tag.asked.is_some() {
            return;
        }
        let sending = tag.word.begin(route, &mut connection.sequence);
        connection.sent = connection.sent.wrapping_add(1);
        assert_eq!(sending.cookie(0).sequence(), connection.sent);
        let sending = if whole {
            sending.sent();
            None
        } else {
            Some(sending.interrupt())
        };
        tag.asked = Some(Asked {
            route,
            sequence: connection.sent,
            sending,
        });
    }

    /// A send that was begun ends: well, or so that the request is answered by the sender.
    fn finish(&mut self, tag: usize, well: bool) {
        let tag = &mut self.tags[tag];
        let Some(asked) = &mut tag.asked else { return };
        let Some(mark) = asked.sending.take() else {
            return;
        };
        let sending = tag.word.resume(mark).expect("it is not answered yet");
        if well {
            sending.sent();
        } else {
            sending.abandon().expect("it is not answered yet").answer();
            tag.asked = None;
        }
    }

    /// Bytes come over a connection.
    fn reply(&mut self, bytes: [u8; REPLY_SIZE], connection: usize, withhold: bool) {
        let magic = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let reply = match Reply::decode(&bytes) {
            Ok(reply) => reply,
            Err(WrongMagic(met)) => {
                assert!(met == magic && magic != REPLY_MAGIC);
                return;
            }
        };
        assert_eq!(magic, REPLY_MAGIC);
        let number = reply.result.err().map_or(0, |error| error.number());
        assert_eq!(number.to_be_bytes(), bytes[4..8]);
        assert_eq!(reply.cookie.to_wire().to_be_bytes(), bytes[8..]);

        let route = self.route(connection);
        // As the driver does: what the tag leads to may be anything, or nothing.
        let Some(tag) = self.tags.get_mut(reply.cookie.tag() as usize) else {
            return;
        };
        let meant = tag
            .asked
            .is_some_and(|asked| asked.route == route && asked.sequence == reply.cookie.sequence());
        match tag.word.reply(reply.cookie, route) {
            Ok(claim) => {
                assert!(meant, "a reply to what was not asked counts");
                let mark = tag.asked.and_then(|asked| asked.sending);
                assert!(tag.word.claim().is_none() && tag.word.claim_from(route).is_none());
                assert!(tag.word.reply(reply.cookie, route).is_err());
                assert!(mark.is_none_or(|mark| tag.word.resume(mark).is_none()));
                // Only a reply that came whole can be withheld: its request was sent.
                if withhold && mark.is_none() {
                    claim.withhold();
                } else {
                    claim.answer();
                    tag.asked = None;
                }
            }
            Err(_) => assert!(!meant, "a right reply does not count"),
        }
    }

    /// The cookie that the server has seen last for a tag.
    fn cookie(&self, tag: usize) -> Cookie {
        self.tags[tag].word.cookie(tag as u32)
    }

    /// A request is given up: its time is over, or its connection died.
    fn give_up(&mut self, tag: usize, died: Option<usize>) {
        let route = died.map(|connection| self.route(connection));
        let tag = &mut self.tags[tag];
        let claim: Option<Claim<'_, _>> = match route {
            Some(route) => tag.word.claim_from(route),
            None => tag.word.claim(),
        };
        let may = tag.asked.is_some_and(|asked| {
            asked.sending.is_none() && route.is_none_or(|route| route == asked.route)
        });
        assert_eq!(claim.is_some(), may);
        if let Some(claim) = claim {
            claim.answer();
            tag.asked = None;
        }
    }

    /// Another socket takes a connection's place.
    fn replace(&mut self, connection: usize) {
        let epoch = &mut self.connections[connection].epoch;
        *epoch = epoch.wrapping_add(1);
    }

    fn check(&self) {
        for tag in &self.tags {
            assert_eq!(tag.word.route(), tag.asked.map(|asked| asked.route));
        }
    }
}

fn step(world: &mut World, script: &mut Script<'_>) -> Option<()> {
    let action = script.below(8)?;
    let (tag, connection) = (script.below(TAGS)?, script.below(CONNECTIONS)?);
    match action {
        0 => world.send(tag, connection, true),
        1 => world.send(tag, connection, false),
        2 => world.finish(tag, connection == 0),
        // Any bytes at all.
        3 => world.reply(script.bytes()?, connection, false),
        // The right reply, with some bits turned.
        4 | 5 => {
            let mut bytes = [0; REPLY_SIZE];
            bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
            bytes[8..].copy_from_slice(&world.cookie(tag).to_wire().to_be_bytes());
            let [place, turned] = script.bytes()?;
            bytes[usize::from(place) % REPLY_SIZE] ^= turned;
            world.reply(bytes, connection, action == 5);
        }
        6 => world.give_up(tag, (connection == 0).then_some(connection)),
        _ => world.replace(connection),
    }
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let mut world = World::new();
    let mut script = Script(input);
    while step(&mut world, &mut script).is_some() {
        world.check();
    }
});
