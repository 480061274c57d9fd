// SPDX-License-Identifier: GPL-2.0

//! The request word (`protocol/request.rs`) on the kernel's atomics.

use super::fixture::{thread, Event};
use crate::{
    driver::RequestWord,
    protocol::{
        cookie::{Cookie, Sequence},
        request::{Route, Stale, Word},
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
};

type RealWord = Word<RequestWord>;

const HERE: Route = Route {
    connection: 3,
    epoch: 1,
};
const ELSEWHERE: Route = Route {
    connection: 4,
    epoch: 1,
};
const TAG: u32 = 0x0002_0017;

/// Requests that are claimed from several sides at once.
const RACED: usize = 4096;

/// What two threads that want to answer the same requests have come to.
struct Race {
    words: KVec<RealWord>,
    cookies: KVec<Cookie>,
    go: Event,
    won: [Atomic<u32>; 2],
}

impl Race {
    /// Requests on the wire.
    fn new() -> Result<Arc<Self>> {
        let (mut words, mut cookies) = (KVec::new(), KVec::new());
        let mut sequence = Sequence::default();
        for tag in 0..RACED as u32 {
            let word = RealWord::default();
            let sending = word.begin(HERE, &mut sequence);
            cookies.push(sending.cookie(tag), GFP_KERNEL)?;
            sending.sent();
            words.push(word, GFP_KERNEL)?;
        }
        let race = Self {
            words,
            cookies,
            go: Event::new()?,
            won: [Atomic::new(0), Atomic::new(0)],
        };
        Ok(Arc::new(race, GFP_KERNEL)?)
    }

    /// Has two threads answer all requests, each in its own way; how many each of them could.
    fn run(
        self: &Arc<Self>,
        first: fn(&RealWord, Cookie) -> bool,
        second: fn(&RealWord, Cookie) -> bool,
    ) -> Result<(u32, u32)> {
        let mut threads = KVec::new();
        for (side, answer) in [first, second].into_iter().enumerate() {
            let race = self.clone();
            let body = move || {
                race.go.wait();
                for (word, cookie) in race.words.iter().zip(&race.cookies) {
                    if answer(word, *cookie) {
                        race.won[side].fetch_add(1, Full);
                    }
                }
            };
            threads.push(thread(body)?, GFP_KERNEL)?;
        }
        self.go.happen();
        drop(threads);
        Ok((self.won[0].load(Relaxed), self.won[1].load(Relaxed)))
    }
}

fn by_reply(word: &RealWord, cookie: Cookie) -> bool {
    word.reply(cookie, HERE).map(|claim| claim.answer()).is_ok()
}

fn by_timeout(word: &RealWord, _: Cookie) -> bool {
    word.claim().map(|claim| claim.answer()).is_some()
}

fn by_death(word: &RealWord, _: Cookie) -> bool {
    word.claim_from(HERE).map(|claim| claim.answer()).is_some()
}

#[kunit_tests(rnbd_request)]
mod tests {
    use super::*;

    #[test]
    fn sent_then_replied() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        assert!(word.route().is_none());
        let sending = word.begin(HERE, &mut sequence);
        let cookie = sending.cookie(TAG);
        assert!(word.route() == Some(HERE) && word.cookie(TAG) == cookie);
        sending.sent();
        match word.reply(cookie, HERE) {
            Ok(claim) => claim.answer(),
            Err(Stale) => assert!(false),
        }
        assert!(word.route().is_none());
    }

    #[test]
    fn a_reply_may_overtake_the_end_of_its_send() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let sending = word.begin(HERE, &mut sequence);
        let claim = word.reply(sending.cookie(TAG), HERE);
        sending.sent();
        assert!(claim.is_ok() && word.claim().is_none());
        if let Ok(claim) = claim {
            claim.answer();
        }
        assert!(word.route().is_none());
    }

    #[test]
    fn a_second_reply_is_stale() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let sending = word.begin(HERE, &mut sequence);
        let cookie = sending.cookie(TAG);
        sending.sent();
        let claim = word.reply(cookie, HERE);
        assert!(claim.is_ok() && word.reply(cookie, HERE).is_err());
        if let Ok(claim) = claim {
            claim.answer();
        }
        assert!(word.reply(cookie, HERE).is_err());
        // The tag is used again: the old cookie is not the new one.
        word.begin(HERE, &mut sequence).sent();
        assert!(word.reply(cookie, HERE).is_err());
        assert!(word.reply(word.cookie(TAG), HERE).is_ok());
    }

    #[test]
    fn a_reply_from_elsewhere_is_stale() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let sending = word.begin(HERE, &mut sequence);
        let cookie = sending.cookie(TAG);
        sending.sent();
        let later = Route { epoch: 2, ..HERE };
        assert!(word.reply(cookie, ELSEWHERE).is_err() && word.reply(cookie, later).is_err());
        assert!(word.claim_from(ELSEWHERE).is_none() && word.claim_from(later).is_none());
        assert!(word.reply(cookie, HERE).is_ok());
    }

    #[test]
    fn what_is_being_sent_is_its_senders() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let sending = word.begin(HERE, &mut sequence);
        assert!(word.claim().is_none() && word.claim_from(HERE).is_none());
        let claim = sending.abandon();
        assert!(claim.is_some() && word.claim().is_none());
        if let Some(claim) = claim {
            claim.answer();
        }
        assert!(word.claim().is_none());
    }

    #[test]
    fn an_interrupted_send_is_taken_up_if_it_still_is_that_one() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let mark = word.begin(HERE, &mut sequence).interrupt();
        assert!(word.resume(mark).is_some());
        assert!(by_reply(&word, word.cookie(TAG)));
        assert!(word.resume(mark).is_none());
        let again = word.begin(HERE, &mut sequence).interrupt();
        assert!(word.resume(mark).is_none() && word.resume(again).is_some());
    }

    #[test]
    fn the_word_holds_the_largest_route() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let far = Route {
            connection: (Route::MAX_CONNECTIONS - 1) as u16,
            epoch: u16::MAX,
        };
        word.begin(far, &mut sequence).sent();
        assert!(word.route() == Some(far));
        assert!(word.reply(word.cookie(u32::MAX), far).is_ok());
    }

    #[test]
    fn reply_and_timeout_race_for_one_answer() -> Result {
        let (replies, timeouts) = Race::new()?.run(by_reply, by_timeout)?;
        assert_eq!(replies + timeouts, RACED as u32);
        Ok(())
    }

    #[test]
    fn doubled_replies_race_for_one_answer() -> Result {
        let (first, second) = Race::new()?.run(by_reply, by_reply)?;
        assert_eq!(first + second, RACED as u32);
        Ok(())
    }

    #[test]
    fn death_and_timeout_race_for_one_answer() -> Result {
        let (deaths, timeouts) = Race::new()?.run(by_death, by_timeout)?;
        assert_eq!(deaths + timeouts, RACED as u32);
        Ok(())
    }
}
