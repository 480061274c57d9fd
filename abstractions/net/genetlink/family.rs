// SPDX-License-Identifier: GPL-2.0

//! Families: their declaration, their operations, their registration.
//!
//! C header: [`include/net/genetlink.h`](srctree/include/net/genetlink.h)

use super::{Info, Message, MulticastGroup, Policy};
use crate::{
    abstractions::compat::{bindings, error::code::ENOTCONN},
    bindings as extra,
};
use core::marker::PhantomData;
use kernel::{
    error::{from_result, to_result},
    ffi,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full},
    types::{ForeignOwnable, Opaque},
};

/// How notifications are allocated: they may be about I/O, and sent where none can be waited for.
const NOTIFICATION_GFP: bindings::gfp_t = extra::GFP_NOIO;

/// How closely attributes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validation {
    /// All must be as declared: unknown ones, wrong lengths and missing `NLA_F_NESTED` are refused.
    Strict,
    /// What is unknown or too long is passed over: for interfaces from before there was strictness.
    Liberal,
}

/// What a sender needs for a command, as far as the C side checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Nothing. The operation can check by itself: [`Info::netlink_capable`].
    None,
    /// `CAP_NET_ADMIN` in the initial user namespace (`GENL_ADMIN_PERM`).
    Admin,
    /// `CAP_NET_ADMIN` in the user namespace of the network namespace
    /// (`GENL_UNS_ADMIN_PERM`).
    UnsAdmin,
}

/// What a command of a family that is registered with a `D` does.
pub(crate) trait Operation<D: ForeignOwnable + Send + Sync + 'static>: 'static {
    /// The command.
    const COMMAND: u8;

    /// How closely its attributes are looked at.
    const VALIDATION: Validation = Validation::Strict;

    /// What its sender needs.
    const PERMISSION: Permission = Permission::None;

    /// Does it, in the sender's task. May sleep; for what it must not wait for see the
    /// [module](super). User space gets an acknowledgement if it asked for one, of the error after
    /// a failure; for `EINTR`, which netlink does not acknowledge, that is `EBUSY`.
    fn doit(info: &Info<'_, D>) -> Result;
}

/// An [`Operation`], as the C side knows it.
#[repr(transparent)]
pub(crate) struct SmallOps<D>(bindings::genl_small_ops, PhantomData<fn(D)>);

impl<D: ForeignOwnable + Send + Sync + 'static> SmallOps<D> {
    /// The operation `O`.
    pub(crate) const fn of<O: Operation<D>>() -> Self {
        let validate = match O::VALIDATION {
            Validation::Strict => 0,
            Validation::Liberal => {
                bindings::genl_validate_flags_GENL_DONT_VALIDATE_STRICT
                    | bindings::genl_validate_flags_GENL_DONT_VALIDATE_DUMP
            }
        };
        let permission = match O::PERMISSION {
            Permission::None => 0,
            Permission::Admin => bindings::GENL_ADMIN_PERM,
            Permission::UnsAdmin => bindings::GENL_UNS_ADMIN_PERM,
        };
        Self(
            bindings::genl_small_ops {
                doit: Some(doit::<D, O>),
                cmd: O::COMMAND,
                // The flags are bits of a byte.
                flags: permission as u8,
                validate: validate as u8,
                ..pin_init::zeroed()
            },
            PhantomData,
        )
    }
}

/// # Safety
///
/// Only for the C side to call, as an operation of a `Family<D>`.
unsafe extern "C" fn doit<D: ForeignOwnable + Send + Sync + 'static, O: Operation<D>>(
    skb: *mut bindings::sk_buff,
    info: *mut bindings::genl_info,
) -> ffi::c_int {
    from_result(|| {
        // SAFETY: By the safety requirement.
        match O::doit(&unsafe { Info::from_raw(skb, info) }) {
            // The C side sends no acknowledgement for the first, whose sender then waits for one;
            // the second is not for user space.
            Err(error) if error == EINTR || error == ERESTARTSYS => Err(EBUSY),
            done => done.map(|()| 0),
        }
    })
}

/// What a family is.
pub(crate) struct Declaration<D: 'static> {
    /// The module it belongs to: it is kept from being unloaded where that is needed.
    pub(crate) module: &'static ThisModule,
    /// Its name, of at most 15 bytes. There cannot be two of one name.
    pub(crate) name: &'static CStr,
    /// Its version, which is shown to user space and not looked at.
    pub(crate) version: u8,
    /// Which attributes there are: [`Policies::as_slice`](super::Policies::as_slice). None, if it
    /// is empty.
    pub(crate) policies: &'static [Policy],
    /// Its multicast groups.
    pub(crate) groups: &'static [MulticastGroup],
    /// What it does.
    pub(crate) operations: &'static [SmallOps<D>],
    /// Whether it is there in all network namespaces, not in the initial one alone.
    pub(crate) netnsok: bool,
    /// Whether its operations may run at the same time. If not, they also wait for those of other
    /// families that do not allow it either.
    pub(crate) parallel_ops: bool,
    /// The first command of which header and attributes are validated strictly; 0, all of them, but
    /// for interfaces from before there was strictness.
    pub(crate) resv_start_op: u8,
}

/// A generic netlink family, declared as a static and registered with data of type `D`.
///
/// # Invariants
///
/// What `inner` points to lives for ever. `data` is null, or what a `D` became as a foreign
/// pointer, which is taken back when no operation runs any more.
#[repr(C)]
pub(crate) struct Family<D> {
    inner: Opaque<bindings::genl_family>,
    data: Atomic<*mut ffi::c_void>,
    attributes: usize,
    groups: usize,
    netnsok: bool,
    parallel_ops: bool,
    _data: PhantomData<D>,
}

// SAFETY: The C side has its own locks; operations in all tasks get `D::Borrowed`.
unsafe impl<D: ForeignOwnable + Send + Sync> Sync for Family<D> {}

impl<D: ForeignOwnable + Send + Sync + 'static> Family<D> {
    /// Makes a family, for a static. Panics, which fails the build there, if the declaration is
    /// none that can be registered.
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
    pub(crate) const fn new(declaration: Declaration<D>) -> Self {
        let name = declaration.name.to_bytes_with_nul();
        let Declaration {
            policies,
            groups,
            operations,
            ..
        } = declaration;
        let mut raw: bindings::genl_family = pin_init::zeroed();
        assert!(name.len() <= raw.name.len(), "the name is too long");
        assert!(policies.len() <= 1 << u16::BITS, "too many attributes");
        assert!(groups.len() <= u8::MAX as usize, "too many groups");
        assert!(operations.len() <= u8::MAX as usize, "too many operations");
        let mut at = 0;
        while at < name.len() {
            raw.name[at] = name[at];
            at += 1;
        }
        at = 0;
        while at < operations.len() {
            let operation = &operations[at].0;
            assert!(
                operation.validate == 0 || operation.cmd < declaration.resv_start_op,
                "a command from the first strict one on is validated liberally"
            );
            at += 1;
        }
        raw.version = declaration.version as u32;
        raw.module = declaration.module.as_ptr();
        if !policies.is_empty() {
            raw.policy = policies.as_ptr().cast();
            raw.maxattr = policies.len() as u32 - 1;
        }
        raw.mcgrps = groups.as_ptr().cast();
        raw.n_mcgrps = groups.len() as u8;
        raw.small_ops = operations.as_ptr().cast();
        raw.n_small_ops = operations.len() as u8;
        raw.resv_start_op = declaration.resv_start_op;
        // INVARIANT: All is static, and there is no data yet.
        Self {
            inner: Opaque::new(raw),
            data: Atomic::new(core::ptr::null_mut()),
            attributes: policies.len(),
            groups: groups.len(),
            netnsok: declaration.netnsok,
            parallel_ops: declaration.parallel_ops,
            _data: PhantomData,
        }
    }

    /// Registers the family: from now on its operations are called, with `data`. Sleeps.
    ///
    /// # Errors
    ///
    /// `EEXIST` if there is a family of that name already, `EBUSY` if this one is registered.
    pub(crate) fn register(&'static self, data: D) -> Result<Registration<D>> {
        let data = data.into_foreign();
        // INVARIANT: It became foreign right now.
        if self
            .data
            .cmpxchg(core::ptr::null_mut(), data, Full)
            .is_err()
        {
            // SAFETY: It is from above, and was not stored.
            drop(unsafe { D::from_foreign(data) });
            return Err(EBUSY);
        }
        let raw = self.as_raw();
        // SAFETY: It is valid. Only the caller that has stored the data gets here, and the C side
        // does not know the family yet.
        unsafe {
            bindings::genl_family::set_netnsok_raw(raw, self.netnsok.into());
            bindings::genl_family::set_parallel_ops_raw(raw, self.parallel_ops.into());
        }
        // SAFETY: By the type invariant, what it points to lives for ever, and so does the family;
        // the registration unregisters it before the module is unloaded.
        let result = to_result(unsafe { bindings::genl_register_family(raw) });
        if let Err(error) = result {
            // SAFETY: The C side does not know the family: no operation runs.
            unsafe { self.take_data_back() };
            return Err(error);
        }
        // INVARIANT: It is registered.
        Ok(Registration { family: self })
    }

    /// # Safety
    ///
    /// The family must not be registered, and the caller must be the one that has, or had,
    /// registered it.
    unsafe fn take_data_back(&self) {
        let data = self.data.xchg(core::ptr::null_mut(), Full);
        // SAFETY: By the type invariant. The exchange gives it to one caller only, and no
        // operation borrows it any more.
        drop(unsafe { D::try_from_foreign(data) });
    }

    /// What the family is registered with.
    ///
    /// # Safety
    ///
    /// The family must be registered, and for `'a` not be unregistered.
    #[inline]
    pub(super) unsafe fn data<'a>(&self) -> D::Borrowed<'a> {
        // SAFETY: By the type invariant and the safety requirement.
        unsafe { D::borrow(self.data.load(Acquire)) }
    }

    /// Length of a request's table of attributes.
    #[inline]
    pub(super) const fn attributes(&self) -> usize {
        self.attributes
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::genl_family {
        self.inner.get()
    }

    fn has_group(&self, group: u8) -> Result {
        if usize::from(group) >= self.groups {
            return Err(EINVAL);
        }
        if self.data.load(Acquire).is_null() {
            return Err(ENOTCONN);
        }
        Ok(())
    }

    /// Begins a notification, with room for `payload` bytes of attributes; see
    /// [`nla_total_size`](super::nla_total_size). Sleeps.
    pub(crate) fn new_notification(&self, command: u8, payload: usize) -> Result<Message> {
        // SAFETY: The family is valid.
        unsafe { Message::new(self.as_raw(), 0, 0, command, payload, NOTIFICATION_GFP) }
    }

    /// Whether there are listeners to a group in the initial network namespace, which is given by
    /// its place in the declaration.
    pub(crate) fn has_listeners(&self, group: u8) -> bool {
        if self.has_group(group).is_err() {
            return false;
        }
        // SAFETY: The family and the namespace are valid, and the family has the group.
        unsafe {
            bindings::genl_has_listeners(self.as_raw(), &raw mut bindings::init_net, group.into())
                > 0
        }
    }

    /// Sends `message` to the listeners to a group in the initial network namespace, if there
    /// are any. Sleeps, but does not wait for them, nor for I/O.
    ///
    /// To be of use, the family must be registered, and stay so for the call.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such group, `ENOTCONN` if the family is not registered, else what
    /// the C side says, such as `ENOBUFS`.
    pub(crate) fn multicast(&self, group: u8, message: Message) -> Result {
        self.has_group(group)?;
        // SAFETY: The family is valid, and has the group. The call takes the message.
        let result = to_result(unsafe {
            bindings::genlmsg_multicast(
                self.as_raw(),
                message.finish(),
                0,
                group.into(),
                NOTIFICATION_GFP,
            )
        });
        match result {
            // There are no listeners.
            Err(error) if error == ESRCH => Ok(()),
            result => result,
        }
    }
}

/// A family that is registered. Dropping it unregisters the family: waits for operations that run,
/// and then drops what the family was registered with. So an operation must not do it.
///
/// # Invariants
///
/// `family` is registered, and unregistered by this value alone.
pub(crate) struct Registration<D: ForeignOwnable + Send + Sync + 'static> {
    family: &'static Family<D>,
}

impl<D: ForeignOwnable + Send + Sync + 'static> Drop for Registration<D> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. When the call returns, no operation runs.
        unsafe {
            bindings::genl_unregister_family(self.family.as_raw());
            self.family.take_data_back();
        }
    }
}
