// SPDX-License-Identifier: GPL-2.0

//! Sockets with file descriptors, as user space would bring them.

use crate::abstractions::{compat::error::code::EOPNOTSUPP, net::socket::Socket};
use core::ptr::{null, null_mut};
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    prelude::*,
};

/// `AF_UNIX`, `AF_INET`; `SOCK_STREAM`, `SOCK_DGRAM`: numbers of the ABI.
const UNIX: i32 = 1;
const INET: i32 = 2;
const STREAM: i32 = 1;
const DATAGRAM: i32 = 2;

/// A file descriptor of the current task, closed when dropped.
///
/// # Invariants
///
/// `0` is open, and is closed by this value alone.
pub(super) struct Fd(u32);

impl Fd {
    pub(super) fn number(&self) -> i32 {
        self.0 as i32
    }

    /// A descriptor for a socket that has no file yet.
    ///
    /// # Safety
    ///
    /// `socket` is valid, and the caller's; after this it is not any more.
    unsafe fn new(socket: *mut bindings::socket) -> Result<Self> {
        // SAFETY: By the safety requirement; a socket that gets no file is released by this.
        let file = from_err_ptr(unsafe { bindings::sock_alloc_file(socket, 0, null()) })?;
        // SAFETY: Always allowed; the flags are valid.
        let fd = unsafe { bindings::get_unused_fd_flags(0) };
        let Ok(number) = u32::try_from(fd) else {
            // SAFETY: The file is ours, and was not installed.
            unsafe { bindings::fput(file) };
            return Err(Error::from_errno(fd));
        };
        // SAFETY: The number was reserved above; the table takes the file over.
        unsafe { bindings::fd_install(number, file) };
        // INVARIANT: It was installed above.
        Ok(Self(number))
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::close_fd(self.0) };
        settle();
    }
}

/// Waits until files that a kernel thread has closed are released: that is left to a worker.
pub(super) fn settle() {
    // SAFETY: Nothing is locked here.
    unsafe { bindings::flush_delayed_fput() };
}

fn create(family: i32, kind: i32) -> Result<*mut bindings::socket> {
    let mut socket = null_mut();
    // SAFETY: There is room for the result.
    to_result(unsafe { bindings::sock_create(family, kind, 0, &mut socket) })?;
    Ok(socket)
}

/// Two connected AF_UNIX streams.
pub(super) fn pair() -> Result<(Fd, Fd)> {
    let one = create(UNIX, STREAM)?;
    let other = create(UNIX, STREAM).inspect_err(|_| {
        // SAFETY: It was made above, and has no file.
        unsafe { bindings::sock_release(one) }
    })?;
    // SAFETY: Both are valid; AF_UNIX has pairs.
    let connected = unsafe {
        let connect = (*(*one).ops).socketpair.ok_or(EOPNOTSUPP)?;
        to_result(connect(one, other))
    };
    // SAFETY: They are ours.
    let (one, other) = unsafe { (Fd::new(one), Fd::new(other)) };
    connected?;
    Ok((one?, other?))
}

/// Two connected streams, their descriptors closed.
pub(super) fn sockets() -> Result<(Socket, Socket)> {
    let (one, other) = pair()?;
    let open = |fd: &Fd| Socket::from_fd(fd.number()).map_err(|_| EINVAL);
    Ok((open(&one)?, open(&other)?))
}

/// Sockets that carry no stream.
pub(super) fn datagrams() -> Result<[Fd; 2]> {
    let (unix, inet) = (create(UNIX, DATAGRAM)?, create(INET, DATAGRAM)?);
    // SAFETY: They are ours.
    let (unix, inet) = unsafe { (Fd::new(unix), Fd::new(inet)) };
    Ok([unix?, inet?])
}

/// A TCP socket, not connected.
pub(super) fn tcp() -> Result<Fd> {
    let socket = create(INET, STREAM)?;
    // SAFETY: It is ours.
    unsafe { Fd::new(socket) }
}
