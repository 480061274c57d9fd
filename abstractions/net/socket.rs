// SPDX-License-Identifier: GPL-2.0

//! Stream sockets that user space made and a driver uses.
//!
//! C header: [`include/linux/net.h`](srctree/include/linux/net.h)

use crate::{
    abstractions::{
        compat::error::code::ENOTSOCK,
        iov::{self, Dest, IovIter, Source},
        net::sockaddr::SockAddr,
    },
    bindings as extra,
};
use core::ptr::NonNull;
use kernel::{
    bindings, error::to_result, ffi, prelude::*, task::MAX_SCHEDULE_TIMEOUT, types::ScopeGuard,
};

/// Why a file descriptor cannot be used as a stream socket here.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unusable {
    /// It is no socket, or not open: this is what the look-up said.
    NotSocket(Error),
    /// Neither TCP nor an AF_UNIX stream.
    NotStream,
    /// It cannot be shut down.
    NoShutdown,
}

/// Whether more data follows at once, so that the stack may wait for it before it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    /// More follows (`MSG_MORE`).
    Follows,
    /// This ends a message.
    Ends,
}

/// Whether a call may wait for the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It may.
    Allowed,
    /// It fails with `EAGAIN` instead (`MSG_DONTWAIT`).
    Never,
}

/// A TCP or AF_UNIX stream socket, held open by a reference to its file.
///
/// Sends and receives do not recurse into reclaim's I/O, and use the kernel's credentials: they
/// run in whatever task wants its data.
///
/// # Invariants
///
/// `0` is a valid socket, and its file's reference is this value's.
pub(crate) struct Socket(NonNull<bindings::socket>);

impl Socket {
    /// The socket behind a file descriptor of the current task. May sleep.
    pub(crate) fn from_fd(fd: i32) -> Result<Self, Unusable> {
        let mut err = 0;
        // SAFETY: `err` is valid for the call.
        let sock = NonNull::new(unsafe { bindings::sockfd_lookup(fd, &mut err) })
            .ok_or_else(|| Unusable::NotSocket(to_result(err).err().unwrap_or(ENOTSOCK)))?;
        // INVARIANT: The look-up took a reference to the file.
        let socket = Self(sock);
        let sk = socket.sk();
        // SAFETY: By the type invariant.
        if !unsafe { extra::rnbd_helper_sk_is_tcp(sk) || extra::rnbd_helper_sk_is_stream_unix(sk) }
        {
            return Err(Unusable::NotStream);
        }
        // SAFETY: By the type invariant.
        if !unsafe { extra::rnbd_helper_sock_can_shutdown(sock.as_ptr()) } {
            return Err(Unusable::NoShutdown);
        }
        Ok(socket)
    }

    /// Our end's address.
    pub(crate) fn getsockname(&self) -> SockAddr {
        // SAFETY: By the type invariant; there is room for any address.
        SockAddr::read(|room| unsafe { bindings::kernel_getsockname(self.0.as_ptr(), room) })
    }

    /// The other end's address, while it is connected.
    pub(crate) fn getpeername(&self) -> SockAddr {
        // SAFETY: As above.
        SockAddr::read(|room| unsafe { bindings::kernel_getpeername(self.0.as_ptr(), room) })
    }

    #[inline]
    fn sk(&self) -> *mut bindings::sock {
        // SAFETY: By the type invariant; an open socket keeps its `sk`.
        unsafe { (*self.0.as_ptr()).sk }
    }

    /// Readies the socket for block I/O: its locks get lock classes of their own, for it is used
    /// below filesystems that other sockets are used above.
    #[inline]
    pub(crate) fn reclassify_locks(&self) {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_sock_reclassify(self.sk()) };
    }

    /// Lets the socket use the memory reserves, without which writing pages out over it could
    /// wait for pages to be written out.
    #[inline]
    pub(crate) fn set_memalloc(&self) {
        // SAFETY: By the type invariant.
        unsafe { extra::sk_set_memalloc(self.sk()) };
    }

    /// Bounds how long a send may wait for the peer, in seconds; 0 for no bound.
    pub(crate) fn set_sndtimeo(&self, seconds: u32) {
        let jiffies = match seconds {
            0 => MAX_SCHEDULE_TIMEOUT,
            seconds => kernel::time::msecs_to_jiffies(seconds.saturating_mul(1000)) as isize,
        };
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_sk_store_sndtimeo(self.sk(), jiffies) };
    }

    /// Sends from `data`, all of it unless something fails. Sleeps, if it may wait.
    ///
    /// Returns how many bytes went, and what stopped the rest: `EINTR` or `ERESTARTSYS` for a
    /// signal, `EAGAIN` for a bound on waiting, else what the socket says.
    pub(crate) fn send<V: IovIter<Source>>(
        &self,
        data: &mut V,
        more: More,
        wait: Wait,
    ) -> (usize, Result) {
        let mut flags = bindings::MSG_NOSIGNAL | V::FLAGS;
        if more == More::Follows {
            flags |= bindings::MSG_MORE;
        }
        if wait == Wait::Never {
            flags |= MSG_DONTWAIT;
        }
        self.transfer(data.as_raw(), flags, usize::MAX, |sock, msg| {
            // SAFETY: Both are valid for the call.
            unsafe { bindings::sock_sendmsg(sock, msg) }
        })
    }

    /// Fills `data`, all of it unless something fails. Sleeps.
    ///
    /// Returns how many bytes came, and what stopped the rest: `EPIPE` if the peer has closed.
    pub(crate) fn receive(&self, data: &mut impl IovIter<Dest>) -> (usize, Result) {
        let flags = bindings::MSG_NOSIGNAL | bindings::MSG_WAITALL;
        self.receive_with(data, flags, usize::MAX)
    }

    /// Receives into `data` what is there, but waits until at least `enough` bytes, or all, came,
    /// unless something fails. Sleeps, if it may wait.
    ///
    /// Returns as [`Self::receive`] does, and `EAGAIN` for what it would have to wait for.
    pub(crate) fn receive_at_least(
        &self,
        data: &mut impl IovIter<Dest>,
        enough: usize,
        wait: Wait,
    ) -> (usize, Result) {
        let flags = match wait {
            Wait::Allowed => bindings::MSG_NOSIGNAL,
            Wait::Never => bindings::MSG_NOSIGNAL | MSG_DONTWAIT,
        };
        self.receive_with(data, flags, enough)
    }

    fn receive_with(
        &self,
        data: &mut impl IovIter<Dest>,
        flags: u32,
        enough: usize,
    ) -> (usize, Result) {
        self.transfer(data.as_raw(), flags, enough, |sock, msg| {
            // SAFETY: Both are valid for the call.
            unsafe { bindings::sock_recvmsg(sock, msg, flags as i32) }
        })
    }

    fn transfer(
        &self,
        iter: *mut bindings::iov_iter,
        flags: u32,
        enough: usize,
        call: impl Fn(*mut bindings::socket, *mut bindings::msghdr) -> i32,
    ) -> (usize, Result) {
        // SAFETY: All-zero is a valid message header.
        let mut msg: bindings::msghdr = unsafe { core::mem::zeroed() };
        // SAFETY: The caller's vector is valid, plain data; the copy is what gets advanced.
        msg.msg_iter = unsafe { iter.read() };

        // SAFETY: Both scopes are left, in this task, when the guards are dropped.
        let (noreclaim, creds) = unsafe {
            (
                extra::rnbd_helper_memalloc_noreclaim_save(),
                extra::rnbd_helper_override_kernel_creds(),
            )
        };
        let _scope = ScopeGuard::new(|| {
            // SAFETY: They are from the calls above.
            unsafe {
                extra::rnbd_helper_revert_creds(creds);
                extra::rnbd_helper_memalloc_noreclaim_restore(noreclaim);
            }
        });

        let mut done = 0_usize;
        loop {
            // SAFETY: By the type invariant. User space may change these meanwhile: said anew.
            unsafe { extra::rnbd_helper_sock_set_noio(self.sk()) };
            msg.msg_flags = flags;
            let result = call(self.0.as_ptr(), &mut msg);
            match usize::try_from(result) {
                Err(_) => return (done, to_result(result)),
                Ok(0) => return (done, Err(EPIPE)),
                Ok(bytes) => done = done.saturating_add(bytes),
            }
            if done >= enough || iov::count(&msg.msg_iter) == 0 {
                return (done, Ok(()));
            }
        }
    }

    /// Whether there is something to receive, as far as can be told without a lock.
    #[inline]
    pub(crate) fn has_data(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_sk_has_data(self.sk()) }
    }

    /// Waits until there is something to receive, or the connection has ended, or at times for no
    /// reason. Signals do not end this, and no lock of the socket is taken. Sleeps.
    ///
    /// A receive that waits is also woken when there is room to send, of which an AF_UNIX socket
    /// tells each time that its peer has taken a message. That is just before the peer answers it:
    /// two task switches for nothing.
    pub(crate) fn wait_readable(&self) {
        // SAFETY: All-zero is an entry that is in no queue.
        let mut entry: bindings::wait_queue_entry = unsafe { core::mem::zeroed() };
        entry.func = Some(wake_reader);
        // SAFETY: There always is a current task.
        entry.private = unsafe { bindings::get_current() }.cast();
        let entry = &raw mut entry;
        // SAFETY: By the type invariant the socket is open, and so has its wait queue. The entry
        // does not move, and it has left the queue before it goes; `wake_reader` runs under the
        // queue's lock, and so not after that.
        unsafe {
            let queue = extra::rnbd_helper_sk_sleep(self.sk());
            bindings::add_wait_queue(queue, entry);
            // What came before the entry was there is seen here; what comes after it, wakes.
            // Between the two is a full barrier, in the helper; the waker has one too.
            if extra::rnbd_helper_sock_poll(self.0.as_ptr()) & READER_EVENTS == 0 {
                bindings::wait_woken(entry, bindings::TASK_INTERRUPTIBLE, MAX_SCHEDULE_TIMEOUT);
            }
            bindings::remove_wait_queue(queue, entry);
        }
    }

    /// Shuts both directions down: all waiters in the socket wake, and the peer sees EOF. May
    /// sleep.
    #[inline]
    pub(crate) fn shutdown(&self) {
        // SAFETY: By the type invariant.
        unsafe {
            bindings::kernel_sock_shutdown(self.0.as_ptr(), bindings::sock_shutdown_cmd_SHUT_RDWR)
        };
    }

    /// As [`shutdown`](Self::shutdown), and over TCP what was sent and has not left yet never does:
    /// the peer sees a reset at once, where the end would have to wait behind those bytes. May
    /// sleep.
    pub(crate) fn abort(&self) {
        // SAFETY: By the type invariant.
        if unsafe { extra::rnbd_helper_sk_is_tcp(self.sk()) } {
            // Before the shutdown, after which TCP may take no reset to be needed. One with TLS on
            // it cannot be disconnected, and is shut down only.
            // SAFETY: As above.
            let _ = unsafe { extra::rnbd_helper_sock_disconnect(self.0.as_ptr()) };
        }
        self.shutdown();
    }
}

/// `MSG_DONTWAIT`, an enumerator's name in some C libraries and a macro here; part of the ABI.
const MSG_DONTWAIT: u32 = 0x40;

/// `EPOLLIN`, `EPOLLERR`, `EPOLLHUP`, `EPOLLRDHUP`: what a receiver waits for. Part of
/// the ABI; for C they are casts that bindgen does not evaluate.
const READER_EVENTS: u32 = 0x1 | 0x8 | 0x10 | 0x2000;

/// Wakes a task in [`Socket::wait_readable`], if that is for it.
///
/// # Safety
///
/// Only as the function of an entry made there, under the lock of the queue that it is in.
unsafe extern "C" fn wake_reader(
    entry: *mut bindings::wait_queue_entry,
    mode: ffi::c_uint,
    flags: ffi::c_int,
    key: *mut ffi::c_void,
) -> ffi::c_int {
    // The events themselves. None: anything may have happened.
    let events = key.addr() as u32;
    if events != 0 && events & READER_EVENTS == 0 {
        return 0;
    }
    // SAFETY: By the safety requirement; the entry names its task.
    unsafe { bindings::woken_wake_function(entry, mode, flags, key) }
}

impl Drop for Socket {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is this value's.
        unsafe { extra::rnbd_helper_sockfd_put(self.0.as_ptr()) };
    }
}

// SAFETY: Sockets have locks of their own, and may be used and released anywhere.
unsafe impl Send for Socket {}

// SAFETY: As above.
unsafe impl Sync for Socket {}
