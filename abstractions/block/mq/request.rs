// SPDX-License-Identifier: GPL-2.0

//! Requests.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::operations::{Operations, OperationsVTable};
use crate::bindings as extra;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        aref::{ARef, AlwaysRefCounted},
        atomic::{Atomic, Full, Relaxed, Release},
    },
    types::Opaque,
};

/// What a request asks of the device (`enum req_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read sectors.
    Read,
    /// Write sectors.
    Write,
    /// Put the volatile cache on stable storage.
    Flush,
    /// The sectors are not needed any more.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Anything else.
    Other(u32),
}

impl Op {
    /// The operation's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
            Self::Other(_) => "other",
        }
    }
}

/// How a request ended, for its submitter (`blk_status_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It was done.
    Ok,
    /// It failed: `EIO`.
    IoError,
    /// The device cannot do it: `EOPNOTSUPP`.
    NotSupported,
    /// No space: `ENOSPC`.
    NoSpace,
    /// The device refuses it, on any path: `EREMOTEIO`.
    Target,
    /// The device is offline, or about to be: `ENODEV`.
    Offline,
}

impl Status {
    const fn to_raw(self) -> u8 {
        match self {
            // BLK_STS_OK is zero by definition.
            Self::Ok => 0,
            Self::IoError => extra::BLK_STS_IOERR,
            Self::NotSupported => extra::BLK_STS_NOTSUPP,
            Self::NoSpace => extra::BLK_STS_NOSPC,
            Self::Target => extra::BLK_STS_TARGET,
            Self::Offline => extra::BLK_STS_OFFLINE,
        }
    }
}

/// What becomes of a request once its last reference is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ends with this status.
    End(Status),
    /// It is requeued: [`Operations::queue_rq`] gets it again (`blk_mq_requeue_request`).
    Requeue,
    /// It is put on the requeue list, and then [`Operations::requeued`] says when
    /// [`Operations::queue_rq`] gets it again.
    RequeueDelayed,
}

/// The request was finished already; the first caller decides the outcome.
#[derive(Debug)]
pub(crate) struct AlreadyFinished;

/// A request that the driver owns.
///
/// Between [`Operations::queue_rq`] and [`Request::finish`] the request belongs to the driver, and
/// one reference stands for that. Every [`ARef`] is another. When [`Request::finish`] has dropped
/// the first and the last [`ARef`] is gone, the request goes back to the block layer: then its
/// data cannot be looked at any more, and it cannot be ended twice.
///
/// # Invariants
///
/// * `self.0` is a valid `struct request` whose private data is an initialised `Pdu<T>`.
/// * While the reference count in the private data is not zero, the request is started and not
///   ended: it belongs to the driver.
#[repr(transparent)]
pub(crate) struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

/// Private data of a request.
pub(super) struct Pdu<T: Operations> {
    /// Reference count (lower 24 bits) and outcome (upper 8).
    state: Atomic<u32>,
    /// When its clock was restarted, in nanoseconds of the monotonic clock; 0 if it was not.
    restarted: Atomic<u64>,
    data: T::RequestData,
}

const ONE_REF: u32 = 1;
const REFS: u32 = (1 << OUTCOME_SHIFT) - 1;
const OUTCOME_SHIFT: u32 = 24;

/// No outcome yet.
const UNDECIDED: u32 = 0;
/// [`Outcome::Requeue`]; any value but these is a status plus one.
const REQUEUE: u32 = 0xff;
/// [`Outcome::RequeueDelayed`].
const REQUEUE_DELAYED: u32 = 0xfe;

/// Nanoseconds of the monotonic clock.
#[inline]
fn now() -> u64 {
    // SAFETY: May be called in any context.
    (unsafe { bindings::ktime_get() }) as u64
}

impl<T: Operations> Pdu<T> {
    /// Initialises the private data of `rq`.
    ///
    /// # Safety
    ///
    /// `rq` must be a valid request with `size_of::<Pdu<T>>()` bytes of private data, not yet used.
    pub(super) unsafe fn init(rq: *mut bindings::request) {
        // SAFETY: By the safety requirement there is room for a `Pdu<T>` behind `rq`, which
        // is not shared yet. `blk_mq_alloc_tag_set` aligns it to a cache line.
        unsafe {
            bindings::blk_mq_rq_to_pdu(rq).cast::<Self>().write(Self {
                state: Atomic::new(0),
                restarted: Atomic::new(0),
                data: T::RequestData::default(),
            })
        };
    }

    /// Drops the private data of `rq`.
    ///
    /// # Safety
    ///
    /// The data was initialised with [`Pdu::init`], and there is no reference to the request.
    pub(super) unsafe fn exit(rq: *mut bindings::request) {
        // SAFETY: The request is valid.
        let pdu = unsafe { bindings::blk_mq_rq_to_pdu(rq) }.cast::<Self>();
        // SAFETY: By the safety requirement. [`Request::try_get`] may still look at the count,
        // which is zero and is left as it is.
        unsafe { (&raw mut (*pdu).data).drop_in_place() };
    }
}

impl<T: Operations> Request<T> {
    /// The private data behind a request.
    ///
    /// # Safety
    ///
    /// `rq` must be a request of a tag set made for `T`, valid for `'a`.
    #[inline]
    unsafe fn pdu_of<'a>(rq: *mut bindings::request) -> &'a Pdu<T> {
        // SAFETY: By the safety requirement; `init_request` has initialised it.
        unsafe { &*bindings::blk_mq_rq_to_pdu(rq).cast::<Pdu<T>>() }
    }

    /// The C side's request, for a tracepoint.
    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    #[inline]
    fn pdu(&self) -> &Pdu<T> {
        // SAFETY: By the type invariant.
        unsafe { Self::pdu_of(self.0.get()) }
    }

    /// Takes a request over from the block layer, and starts it.
    ///
    /// # Safety
    ///
    /// `rq` is a request of a tag set made for `T`, which the block layer has just handed to
    /// `queue_rq`, and which the caller does not give back.
    pub(super) unsafe fn start(rq: *mut bindings::request) -> ARef<Self> {
        // SAFETY: By the safety requirement the request is the driver's.
        unsafe { bindings::blk_mq_start_request(rq) };
        // SAFETY: By the safety requirement.
        let pdu = unsafe { Self::pdu_of(rq) };
        pdu.restarted.store(0, Relaxed);
        // One reference for being the driver's, one for the `ARef`. The count is changed
        // here alone while it is zero. Release: a new reference sees the request started.
        pdu.state.store(2 * ONE_REF, Release);
        // SAFETY: `rq` came from the block layer, so it is not null; one of the references that
        // were stored above goes to the `ARef`.
        unsafe { ARef::from_raw(NonNull::new_unchecked(rq.cast())) }
    }

    /// A reference to the request, unless it is at the block layer.
    ///
    /// # Safety
    ///
    /// `rq` is a request of a tag set made for `T`, whose memory stays allocated for the call.
    pub(super) unsafe fn try_get(rq: *mut bindings::request) -> Option<ARef<Self>> {
        // SAFETY: By the safety requirement. The rest may have been dropped: it is not looked at.
        let count = unsafe { &(*bindings::blk_mq_rq_to_pdu(rq).cast::<Pdu<T>>()).state };
        let mut state = count.load(Relaxed);
        while state & REFS != 0 {
            match count.cmpxchg(state, state.wrapping_add(ONE_REF), Full) {
                // SAFETY: The count was not zero, so the request is the driver's; the reference
                // that was just added goes to the `ARef`.
                Ok(_) => return Some(unsafe { ARef::from_raw(NonNull::new(rq.cast())?) }),
                Err(met) => state = met,
            }
        }
        None
    }

    /// Says what becomes of the request. That happens when its last reference is dropped.
    ///
    /// Any context. Fails, and changes nothing, if it was said before.
    pub(crate) fn finish(&self, outcome: Outcome) -> Result<(), AlreadyFinished> {
        let outcome = match outcome {
            Outcome::Requeue => REQUEUE,
            Outcome::RequeueDelayed => REQUEUE_DELAYED,
            Outcome::End(status) => u32::from(status.to_raw()).wrapping_add(1),
        };
        let state = &self.pdu().state;
        let mut old = state.load(Relaxed);
        loop {
            if old >> OUTCOME_SHIFT != UNDECIDED {
                return Err(AlreadyFinished);
            }
            // The caller's own reference keeps the count above zero.
            let new = old.wrapping_sub(ONE_REF) | outcome << OUTCOME_SHIFT;
            match state.cmpxchg(old, new, Full) {
                Ok(_) => return Ok(()),
                Err(met) => old = met,
            }
        }
    }

    /// The status that the request was finished with, for `complete`.
    ///
    /// # Safety
    ///
    /// `rq` was finished, with an [`Outcome::End`], and the block layer has not got it back yet.
    #[inline]
    pub(super) unsafe fn finished_status(rq: *mut bindings::request) -> u8 {
        // SAFETY: By the safety requirement.
        let state = unsafe { Self::pdu_of(rq) }.state.load(Relaxed);
        (state >> OUTCOME_SHIFT).wrapping_sub(1) as u8
    }

    /// The driver's own data in this request.
    #[inline]
    pub(crate) fn data(&self) -> &T::RequestData {
        &self.pdu().data
    }

    /// What is asked.
    pub(crate) fn op(&self) -> Op {
        match self.cmd_flags() & ((1 << bindings::REQ_OP_BITS) - 1) {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            other => Op::Other(other),
        }
    }

    #[inline]
    fn cmd_flags(&self) -> u32 {
        // SAFETY: By the type invariant; the field does not change while the request is started.
        unsafe { (*self.0.get()).cmd_flags }
    }

    /// Whether the data must be on stable storage before the request ends.
    #[inline]
    pub(crate) fn is_fua(&self) -> bool {
        self.cmd_flags() & extra::REQ_FUA != 0
    }

    /// Whether zeroes must be written without making a hole.
    #[inline]
    pub(crate) fn is_nounmap(&self) -> bool {
        self.cmd_flags() & extra::REQ_NOUNMAP != 0
    }

    /// First sector, in units of 512 bytes.
    #[inline]
    pub(crate) fn sector(&self) -> u64 {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_blk_rq_pos(self.0.get()) }
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_blk_rq_bytes(self.0.get()) }
    }

    /// Whether fault injection (`fail_io_timeout`) wants the completion of this request to be lost,
    /// so that it times out.
    #[inline]
    pub(crate) fn should_fake_timeout(&self) -> bool {
        // SAFETY: By the type invariant; a request that is started has its queue.
        unsafe { extra::rnbd_helper_blk_should_fake_timeout((*self.0.get()).q) }
    }

    /// Time since the block layer allocated the request (`start_time_ns`), in milliseconds; none,
    /// if it does not account time for this disk.
    pub(crate) fn age_ms(&self) -> Option<u64> {
        // SAFETY: By the type invariant; the field is set before the driver gets the request.
        let start = unsafe { (*self.0.get()).start_time_ns };
        if start == 0 {
            return None;
        }
        Some(now().saturating_sub(start) / 1_000_000)
    }

    /// The request has waited for something that was not the device's fault: what it takes counts
    /// from now on. See [`Request::restarted_ms`].
    #[inline]
    pub(crate) fn restart_clock(&self) {
        self.pdu().restarted.store(now(), Relaxed);
    }

    /// How long ago the clock was restarted since the block layer handed the request over, in
    /// milliseconds. The block layer's own time-out knows nothing of it.
    pub(crate) fn restarted_ms(&self) -> Option<u64> {
        match self.pdu().restarted.load(Relaxed) {
            0 => None,
            then => Some(now().saturating_sub(then) / 1_000_000),
        }
    }

    /// Drops a reference. With the last one the request goes back to the block layer, by `end` if
    /// it was finished with an [`Outcome::End`]. Tells whether it was finished: it goes back then
    /// without anybody's help, or has done so.
    ///
    /// # Safety
    ///
    /// The caller owns a reference, which it does not use again. `end` may rely on it that the
    /// request is started, that there are no references to it, and that it was not ended.
    pub(super) unsafe fn put(obj: NonNull<Self>, end: impl FnOnce(*mut bindings::request)) -> bool {
        let rq = obj.as_ptr().cast::<bindings::request>();
        // SAFETY: By the safety requirement the caller owns a reference.
        let state = &unsafe { Self::pdu_of(rq) }.state;
        // Fully ordered: all that any holder did comes before the end of the request.
        let old = state.fetch_sub(ONE_REF, Full);
        let finished = old >> OUTCOME_SHIFT != UNDECIDED;
        if old & REFS != ONE_REF {
            return finished;
        }
        // That was the last one, so the request was finished: until then one reference stands for
        // being the driver's.
        match old >> OUTCOME_SHIFT {
            REQUEUE => {
                state.store(0, Release);
                // SAFETY: The request is started, has no references, and was not ended.
                unsafe { bindings::blk_mq_requeue_request(rq, true) };
            }
            REQUEUE_DELAYED => {
                state.store(0, Release);
                // SAFETY: As above.
                unsafe { OperationsVTable::<T>::requeue_delayed(rq) };
            }
            _ => end(rq),
        }
        finished
    }

    /// Drops a reference, as [`Self::put`] does.
    #[inline]
    pub(super) fn release(this: ARef<Self>) -> bool {
        // SAFETY: The reference is the value's, which is used up. `complete` reads the outcome from
        // the private data.
        unsafe {
            Self::put(ARef::into_raw(this), |rq| {
                bindings::blk_mq_complete_request(rq)
            })
        }
    }

    /// Hardware queue and tag in one number, which [`super::Disk::tag_to_rq`] takes.
    #[inline]
    pub(crate) fn unique_tag(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { bindings::blk_mq_unique_tag(self.0.get()) }
    }
}

// SAFETY: A `Request` has no `&mut self` methods, and what `&self` methods change is atomic.
unsafe impl<T: Operations> Send for Request<T> {}

// SAFETY: As above.
unsafe impl<T: Operations> Sync for Request<T> {}

// SAFETY: While the count is not zero the request is the driver's: it is neither ended nor reused.
unsafe impl<T: Operations> AlwaysRefCounted for Request<T> {
    #[inline]
    fn inc_ref(&self) {
        self.pdu().state.add(ONE_REF, Relaxed);
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the safety requirement. `complete` reads the outcome from the private data.
        unsafe { Self::put(obj, |rq| bindings::blk_mq_complete_request(rq)) };
    }
}
