// SPDX-License-Identifier: GPL-2.0

//! What the series before 7.3 lack: generic netlink, most of errno, a module's own `ThisModule`.
//! And what they call by another name.

// A kernel's interface: its users may not need all of it.
#![allow(dead_code, unused_imports)]

/// `kernel::bindings`, with generic netlink.
pub(crate) mod bindings {
    #![allow(
        clippy::all,
        clippy::cast_lossless,
        clippy::ptr_as_ptr,
        clippy::undocumented_unsafe_blocks,
        improper_ctypes,
        missing_docs,
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        unreachable_pub,
        unsafe_op_in_unsafe_fn
    )]

    pub use kernel::bindings::*;
    use kernel::ffi;
    use pin_init::{MaybeZeroable, Zeroable};

    // SAFETY: It is a newtype of its storage.
    unsafe impl<Storage: Zeroable> Zeroable for __BindgenBitfieldUnit<Storage> {}

    include!(concat!(env!("RNBD_BINDINGS"), "/generated_genetlink.rs"));
}

/// `kernel::error`, with the errno codes that are used here.
pub(crate) mod error {
    pub(crate) use kernel::error::*;

    /// `kernel::error::code`.
    pub(crate) mod code {
        use core::num::NonZeroI32;
        use kernel::{bindings, error::Error};

        pub(crate) use kernel::error::code::*;

        // Constants: what is asserted is so at compile time.
        macro_rules! declare_err {
            ($($name:ident, $description:literal;)*) => {$(
                #[doc = $description]
                pub(crate) const $name: Error = {
                    let errno = -(bindings::$name as i32);
                    assert!(errno != 0);
                    assert!(size_of::<Error>() == size_of::<NonZeroI32>());
                    // SAFETY: In these series, whose source is published, an `Error` holds one
                    // field, the negative errno as a `NonZeroI32`. As the sizes are equal it is
                    // all of it, and it is not zero.
                    unsafe { core::mem::transmute::<i32, Error>(errno) }
                };
            )*};
        }

        declare_err! {
            ENOBUFS, "No buffer space available.";
            ENOTCONN, "Transport endpoint is not connected.";
            ENOTSOCK, "Socket operation on non-socket.";
            EOPNOTSUPP, "Operation not supported on transport endpoint.";
        }
    }
}

/// `bi_offset` of a bio's iterator.
#[inline]
pub(crate) fn bi_offset(iter: kernel::bindings::bvec_iter) -> u32 {
    iter.bi_bvec_done
}

/// `kernel::module`.
pub(crate) mod module {
    use kernel::{ModuleMetadata, ThisModule};

    /// Returns a reference to the `THIS_MODULE` of the given module type. There is one in a crate.
    #[allow(clippy::extra_unused_type_parameters)]
    #[inline]
    pub(crate) const fn this_module<M: ModuleMetadata>() -> &'static ThisModule {
        &crate::THIS_MODULE
    }
}

/// `kernel::net`.
pub(crate) mod net {
    /// `kernel::net::netlink`.
    pub(crate) mod netlink {
        use super::super::bindings;

        /// A multicast group of a generic netlink family (`struct genl_multicast_group`).
        #[repr(transparent)]
        pub(crate) struct MulticastGroup(bindings::genl_multicast_group);

        // SAFETY: It is plain data, and not changed.
        unsafe impl Sync for MulticastGroup {}

        impl MulticastGroup {
            /// Makes a group, for a static. Panics, which fails the build there, if the name is too
            /// long.
            pub(crate) const fn const_new(name: &core::ffi::CStr) -> Self {
                let name = name.to_bytes_with_nul();
                let mut group: bindings::genl_multicast_group = pin_init::zeroed();
                assert!(name.len() <= group.name.len(), "the name is too long");
                let mut at = 0;
                while at < name.len() {
                    group.name[at] = name[at];
                    at += 1;
                }
                Self(group)
            }
        }
    }
}
