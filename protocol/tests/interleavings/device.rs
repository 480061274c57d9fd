// SPDX-License-Identifier: GPL-2.0

//! What a driver's setup is put to: processes and sockets, the calls, and what must always hold.

use loom::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    atomic::{AtomicU32, Ordering::Relaxed},
    Arc, Mutex,
};

/// A refusal: `EBUSY` and its like.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// A driver of one device, with the calls that user space has. A process that calls
/// [`Device::do_it`] has a server that may close at any moment.
pub trait Device: 'static {
    fn new(ledger: &Arc<Ledger>) -> Self;

    /// `NBD_SET_SOCK`.
    fn set_sock(&self, caller: &Process) -> Result<(), Refused>;

    /// `NBD_DO_IT`.
    fn do_it(&self, caller: &Process) -> Result<(), Refused>;

    /// `NBD_CLEAR_SOCK`.
    fn clear_sock(&self, caller: &Process);

    /// `NBD_DISCONNECT`.
    fn disconnect(&self);

    /// A process that has just died closes the device; others have it open still.
    fn closed_by_death(&self, process: &Process);
}

/// A process.
#[derive(Clone)]
pub struct Process {
    /// Never used again: what a reference-counted `struct pid` is.
    id: u32,
    /// May be used again once the process is dead: where a `task_struct` lies.
    pub address: u32,
    parent: u32,
    alive: Arc<AtomicBool>,
    /// The parent of the process that holds the setup lock.
    parent_of_caller: Arc<AtomicU32>,
}

impl Process {
    fn new(id: u32, address: u32, parent: u32, parent_of_caller: &Arc<AtomicU32>) -> Self {
        Self {
            id,
            address,
            parent,
            alive: Arc::new(AtomicBool::new(true)),
            parent_of_caller: parent_of_caller.clone(),
        }
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub fn die(&self) {
        self.alive.store(false, Ordering::Release);
    }

    /// To be called under the setup lock, before the caller's parent is asked for.
    pub fn calls(&self) {
        self.parent_of_caller.store(self.parent, Relaxed);
    }

    pub fn is_parent_of_caller(&self) -> bool {
        self.parent_of_caller.load(Relaxed) == self.id
    }
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// What became of one socket.
struct Record {
    owner: u32,
    added: Option<u64>,
    shut: bool,
    released: bool,
}

#[derive(Default)]
struct Book {
    sockets: Vec<Record>,
    /// The newest generation that has ended.
    ended: Option<u64>,
    /// The newest generation that was started.
    started: Option<u64>,
    processes: u32,
}

/// What became of every socket, written down from outside; its locks are no part of the model.
#[derive(Default)]
pub struct Ledger {
    book: Mutex<Book>,
    parent_of_caller: Arc<AtomicU32>,
}

impl Ledger {
    pub fn process(&self) -> Process {
        let id = self.next_process();
        Process::new(id, id, 0, &self.parent_of_caller)
    }

    pub fn child_of(&self, parent: &Process) -> Process {
        let id = self.next_process();
        Process::new(id, id, parent.id, &self.parent_of_caller)
    }

    /// Another process, with its task where that of `dead` was.
    pub fn successor_of(&self, dead: &Process) -> Process {
        let id = self.next_process();
        Process::new(id, dead.address, 0, &self.parent_of_caller)
    }

    fn next_process(&self) -> u32 {
        let mut book = self.book.lock().unwrap();
        book.processes += 1;
        book.processes
    }

    /// A socket that `owner` brings.
    pub fn socket(self: &Arc<Self>, owner: &Process) -> Socket {
        let mut book = self.book.lock().unwrap();
        book.sockets.push(Record {
            owner: owner.id,
            added: None,
            shut: false,
            released: false,
        });
        Socket {
            id: book.sockets.len() - 1,
            ledger: self.clone(),
        }
    }

    /// A socket is put in the array of a generation.
    pub fn added(&self, socket: &Socket, generation: u64) {
        let mut book = self.book.lock().unwrap();
        assert!(
            book.ended.is_none_or(|ended| generation > ended),
            "a socket was added to a generation that had ended"
        );
        book.sockets[socket.id].added = Some(generation);
    }

    /// A generation ends; under the setup lock.
    pub fn ended(&self, generation: u64) {
        let mut book = self.book.lock().unwrap();
        assert!(
            book.ended.is_none_or(|ended| generation >= ended),
            "generation numbers went backwards"
        );
        book.ended = Some(generation);
    }

    /// A generation is started with these sockets.
    pub fn started(&self, generation: u64, sockets: &[Socket]) {
        let mut book = self.book.lock().unwrap();
        let records = || sockets.iter().map(|socket| &book.sockets[socket.id]);
        let owner = records().next().map(|record| record.owner);
        assert!(
            records().all(|record| Some(record.owner) == owner),
            "an attachment has sockets of two owners"
        );
        assert!(
            records().all(|record| record.added == Some(generation)),
            "an attachment has a socket of another generation"
        );
        assert!(
            records().all(|record| !record.shut),
            "an attachment has a socket that was shut down"
        );
        assert!(
            book.started.is_none_or(|started| generation > started),
            "generation numbers went backwards"
        );
        book.started = Some(generation);
    }

    /// Nothing is set up or attached any more.
    pub fn assert_none_left(&self) {
        let book = self.book.lock().unwrap();
        let left = |record: &Record| record.added.is_some() && !(record.shut && record.released);
        assert!(
            !book.sockets.iter().any(left),
            "a socket was left behind: it is held, and will never be shut down"
        );
    }
}

/// A socket in the driver's hands.
pub struct Socket {
    id: usize,
    ledger: Arc<Ledger>,
}

impl Socket {
    pub fn shutdown(&self) {
        self.ledger.book.lock().unwrap().sockets[self.id].shut = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut book = self.ledger.book.lock().unwrap();
        assert!(!book.sockets[self.id].released);
        book.sockets[self.id].released = true;
    }
}
