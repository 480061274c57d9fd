// SPDX-License-Identifier: GPL-2.0

//! The block layer: hands requests out, and gets each back exactly once.
//!
//! Retells `abstractions/block/mq/request.rs`: the reference count and outcome of a request.

use crate::explore::{Number, RequestWord};
use loom::{
    sync::{Condvar, Mutex},
    thread,
};
use rnbd_protocol::request::Word;
use std::{ops::Deref, sync::Arc};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    End(Status),
    Requeue,
    RequeueDelayed,
}

pub struct Request {
    pub tag: u32,
    pub word: Word<RequestWord>,
    /// References (lower 24 bits) and outcome (upper 8).
    state: Number,
}

const REFS: u32 = (1 << 24) - 1;
const UNDECIDED: u32 = 0;
const OK: u32 = 1;
const IO_ERROR: u32 = 2;
const REQUEUE: u32 = 0xff;
const PARK: u32 = 0xfe;

/// What came back.
#[derive(Default)]
struct Returned {
    requeued: Vec<u32>,
    /// A task hands them out.
    handing_out: bool,
    /// What waits for a kick.
    parked: Vec<u32>,
    /// How each request ended, if it did.
    ended: Vec<Vec<Status>>,
    /// How often each was handed out by a submitter.
    submitted: Vec<usize>,
}

pub struct Layer {
    requests: Vec<Request>,
    returned: Mutex<Returned>,
    ended: Condvar,
}

/// A reference to a request in the driver's hands.
pub struct Ref {
    layer: Arc<Layer>,
    tag: u32,
}

impl Layer {
    pub fn new(requests: u32) -> Arc<Self> {
        Arc::new(Self {
            requests: (0..requests)
                .map(|tag| Request {
                    tag,
                    word: Word::default(),
                    state: Number::new(0),
                })
                .collect(),
            returned: Mutex::new(Returned {
                requeued: Vec::new(),
                handing_out: false,
                parked: Vec::new(),
                ended: vec![Vec::new(); requests as usize],
                submitted: vec![0; requests as usize],
            }),
            ended: Condvar::new(),
        })
    }

    fn request(&self, tag: u32) -> &Request {
        &self.requests[tag as usize]
    }

    /// A submitter has a request: `None` while the last use of its tag has not ended.
    pub fn submit(self: &Arc<Self>, tag: u32) -> Option<Ref> {
        let mut returned = self.returned.lock().unwrap();
        let at = tag as usize;
        if returned.submitted[at] != returned.ended[at].len() {
            return None;
        }
        returned.submitted[at] += 1;
        drop(returned);
        Some(self.start(tag))
    }

    /// Hands out what was put back, and what is parked too if it is time. One thread at a time does
    /// so, with what others put back meanwhile: it is a worker's task.
    pub fn hand_out(self: &Arc<Self>, parked: bool, queue_rq: impl Fn(Ref)) {
        let mut returned = self.returned.lock().unwrap();
        if parked {
            let parked = std::mem::take(&mut returned.parked);
            returned.requeued.extend(parked);
        }
        if returned.handing_out {
            return;
        }
        while let Some(tag) = returned.requeued.pop() {
            returned.handing_out = true;
            drop(returned);
            queue_rq(self.start(tag));
            // If it was put back again, others must move first.
            thread::yield_now();
            returned = self.returned.lock().unwrap();
        }
        returned.handing_out = false;
    }

    fn start(self: &Arc<Self>, tag: u32) -> Ref {
        let request = self.request(tag);
        assert_eq!(
            request.state.load() & REFS,
            0,
            "a request is handed out while the driver has it"
        );
        request.state.store_release(2);
        Ref {
            layer: self.clone(),
            tag,
        }
    }

    /// `tag_to_rq`.
    pub fn try_get(self: &Arc<Self>, tag: u32) -> Option<Ref> {
        let request = self.request(tag);
        let mut state = request.state.load();
        while state & REFS != 0 {
            match request.state.compare_exchange_full(state, state + 1) {
                Ok(()) => {
                    return Some(Ref {
                        layer: self.clone(),
                        tag,
                    })
                }
                Err(met) => state = met,
            }
        }
        None
    }

    pub fn tagset_busy_iter(self: &Arc<Self>, mut visit: impl FnMut(&Ref)) {
        for request in &self.requests {
            if let Some(request) = self.try_get(request.tag) {
                visit(&request);
            }
        }
    }

    /// Waits until the last use of a tag has ended, and tells how.
    pub fn wait(&self, tag: u32) -> Status {
        let mut returned = self.returned.lock().unwrap();
        loop {
            let at = tag as usize;
            match returned.ended[at].last() {
                Some(status) if returned.ended[at].len() == returned.submitted[at] => {
                    return *status
                }
                _ => returned = self.ended.wait(returned).unwrap(),
            }
        }
    }

    fn give_back(&self, tag: u32, outcome: u32) {
        let mut returned = self.returned.lock().unwrap();
        let status = match outcome {
            REQUEUE => return returned.requeued.push(tag),
            PARK => return returned.parked.push(tag),
            OK => Status::Ok,
            _ => Status::IoError,
        };
        let at = tag as usize;
        returned.ended[at].push(status);
        assert!(
            returned.ended[at].len() <= returned.submitted[at],
            "a request was completed twice"
        );
        drop(returned);
        self.ended.notify_all();
    }

    /// Every request that was submitted has come back.
    pub fn assert_all_ended(&self) {
        let returned = self.returned.lock().unwrap();
        for (tag, ended) in returned.ended.iter().enumerate() {
            assert_eq!(
                ended.len(),
                returned.submitted[tag],
                "a request was never completed"
            );
        }
    }
}

impl Ref {
    /// Says what becomes of the request, once its last reference is dropped.
    pub fn finish(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Requeue => REQUEUE,
            Outcome::RequeueDelayed => PARK,
            Outcome::End(Status::Ok) => OK,
            Outcome::End(Status::IoError) => IO_ERROR,
        };
        let state = &self.state;
        let mut old = state.load();
        loop {
            assert_eq!(old >> 24, UNDECIDED, "a request was finished twice");
            match state.compare_exchange_full(old, (old - 1) | (outcome << 24)) {
                Ok(()) => return,
                Err(met) => old = met,
            }
        }
    }
}

impl Deref for Ref {
    type Target = Request;

    fn deref(&self) -> &Request {
        self.layer.request(self.tag)
    }
}

impl Clone for Ref {
    fn clone(&self) -> Self {
        self.state.fetch_add_relaxed(1);
        Self {
            layer: self.layer.clone(),
            tag: self.tag,
        }
    }
}

impl Drop for Ref {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let old = self.state.fetch_sub_full(1);
        if old & REFS != 1 {
            return;
        }
        if matches!(old >> 24, REQUEUE | PARK) {
            self.state.store_release(0);
        }
        self.layer.give_back(self.tag, old >> 24);
    }
}
