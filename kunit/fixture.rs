// SPDX-License-Identifier: GPL-2.0

//! What several suites use: things that are counted while they live, flags, other processes.

use crate::abstractions::{
    kthread::{SchedPolicy, Thread, ThreadFn},
    pid::ProcessRef,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc, Completion, Mutex,
    },
};

/// Knows how many of the things that it made are not dropped yet.
#[derive(Clone)]
pub(super) struct Census(Arc<Atomic<i32>>);

/// One of them.
pub(super) struct Counted(Arc<Atomic<i32>>);

impl Census {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(Arc::new(Atomic::new(0), GFP_KERNEL)?))
    }

    pub(super) fn make(&self) -> Counted {
        self.0.fetch_add(1, Full);
        Counted(self.0.clone())
    }

    pub(super) fn alive(&self) -> i32 {
        self.0.load(Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Full);
    }
}

/// Something that happens once, and can be waited for.
#[derive(Clone)]
pub(super) struct Event(Arc<EventInner>);

#[pin_data]
struct EventInner {
    #[pin]
    completion: Completion,
    happened: Atomic<bool>,
}

impl Event {
    pub(super) fn new() -> Result<Self> {
        let inner = pin_init!(EventInner {
            completion <- Completion::new(),
            happened: Atomic::new(false),
        });
        Ok(Self(Arc::pin_init(inner, GFP_KERNEL)?))
    }

    pub(super) fn happen(&self) {
        self.0.happened.store(true, Relaxed);
        self.0.completion.complete_all();
    }

    pub(super) fn wait(&self) {
        self.0.completion.wait_for_completion();
    }

    pub(super) fn has_happened(&self) -> bool {
        self.0.happened.load(Relaxed)
    }
}

/// Another process: a kernel thread, which is a thread group of its own. It lives until this is
/// dropped.
pub(super) struct Process {
    _exit: ExitFirst,
    _thread: Thread<Life>,
    refs: Arc<Refs>,
}

/// Before the thread is waited for, it is told to leave.
struct ExitFirst(Event);

impl Drop for ExitFirst {
    fn drop(&mut self) {
        self.0.happen();
    }
}

#[pin_data]
struct Refs {
    #[pin]
    made: Mutex<KVec<ProcessRef>>,
}

struct Life {
    refs: Arc<Refs>,
    started: Event,
    exit: Event,
}

impl ThreadFn for Life {
    const SCHED_POLICY: SchedPolicy = SchedPolicy::Batch;

    fn run(self) {
        for _ in 0..Process::REFS {
            let process = ProcessRef::current();
            // A caller that asks for more than there are sees it.
            let _ = self.refs.made.lock().push(process, GFP_KERNEL);
        }
        self.started.happen();
        self.exit.wait();
    }
}

impl Process {
    /// So many references to itself it gives.
    const REFS: usize = 8;

    pub(super) fn start(name: &str) -> Result<Self> {
        let refs = pin_init!(Refs { made <- new_mutex!(KVec::new()) });
        let refs = Arc::pin_init(refs, GFP_KERNEL)?;
        let (started, exit) = (Event::new()?, Event::new()?);
        let life = Life {
            refs: refs.clone(),
            started: started.clone(),
            exit: exit.clone(),
        };
        let exit = ExitFirst(exit);
        let thread = Thread::run(fmt!("{name}"), life)?;
        started.wait();
        Ok(Self {
            _exit: exit,
            _thread: thread,
            refs,
        })
    }

    /// A reference to the process, made by itself.
    pub(super) fn process(&self) -> Result<ProcessRef> {
        self.refs.made.lock().pop().ok_or(ENOENT)
    }
}

/// Runs a closure in a thread of its own.
pub(super) struct Run<F>(pub(super) F);

impl<F: FnOnce() + Send + 'static> ThreadFn for Run<F> {
    const SCHED_POLICY: SchedPolicy = SchedPolicy::HighPri;

    fn run(self) {
        (self.0)()
    }
}

/// Starts a thread that runs `body`.
pub(super) fn thread<F: FnOnce() + Send + 'static>(body: F) -> Result<Thread<Run<F>>> {
    Thread::run(fmt!("rnbd-kunit"), Run(body))
}
