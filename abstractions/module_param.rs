// SPDX-License-Identifier: GPL-2.0

//! Integer module parameters that are readable in sysfs.
//!
//! `kernel::module_param` has parameters that cannot be read back, and that the module cannot
//! correct; C drivers' can.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use kernel::{
    bindings,
    sync::atomic::{Atomic, Relaxed},
};

/// An integer parameter. To be declared with [`module_params!`](crate::module_params).
#[repr(transparent)]
pub(crate) struct IntParam(Atomic<i32>);

impl IntParam {
    /// A parameter with a default value.
    #[inline]
    pub(crate) const fn new(default: i32) -> Self {
        Self(Atomic::new(default))
    }

    /// What it is set to.
    #[inline]
    pub(crate) fn get(&self) -> i32 {
        self.0.load(Relaxed)
    }

    /// Corrects what sysfs shows.
    #[inline]
    pub(crate) fn set(&self, value: i32) {
        self.0.store(value, Relaxed);
    }

    /// For the parameter table: where `param_ops_int` finds the integer.
    #[inline]
    pub(crate) const fn as_arg(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// A `struct kernel_param`, in the module's table of them.
#[repr(transparent)]
pub(crate) struct KernelParam(pub(crate) bindings::kernel_param);

// SAFETY: The module loader alone uses it, under its own lock.
unsafe impl Sync for KernelParam {}

/// Bytes for the module's information section. For constants: panics, which fails the build there, if
/// the text is shorter.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
pub(crate) const fn bytes_of<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let from = text.as_bytes();
    let mut i = 0;
    while i < N {
        bytes[i] = from[i];
        i += 1;
    }
    bytes
}

/// Declares integer parameters of a module, shown in `/sys/module/<module>/parameters/` with mode
/// 0444.
#[macro_export]
macro_rules! module_params {
    (
        module: $module:literal;
        $($(#[$meta:meta])* $name:ident: $default:expr, $description:literal;)*
    ) => {$(
        $(#[$meta])*
        #[allow(non_upper_case_globals)]
        pub(crate) static $name: $crate::abstractions::module_param::IntParam =
            $crate::abstractions::module_param::IntParam::new($default);

        const _: () = {
            use $crate::abstractions::module_param::{bytes_of, KernelParam};
            use kernel::{bindings, c_str, str::as_char_ptr_in_const_context};

            // What belongs to a module that is built in is named after it.
            #[cfg(MODULE)]
            const NAME: &kernel::str::CStr = c_str!(stringify!($name));
            #[cfg(not(MODULE))]
            const NAME: &kernel::str::CStr = c_str!(concat!($module, ".", stringify!($name)));
            #[cfg(MODULE)]
            const TYPE: &str = concat!("parmtype=", stringify!($name), ":int\0");
            #[cfg(not(MODULE))]
            const TYPE: &str = concat!($module, ".parmtype=", stringify!($name), ":int\0");
            #[cfg(MODULE)]
            const TEXT: &str = concat!("parm=", stringify!($name), ":", $description, "\0");
            #[cfg(not(MODULE))]
            const TEXT: &str =
                concat!($module, ".parm=", stringify!($name), ":", $description, "\0");

            #[link_section = "__param"]
            #[used(compiler)]
            static ENTRY: KernelParam = KernelParam(bindings::kernel_param {
                name: as_char_ptr_in_const_context(NAME),
                #[cfg(MODULE)]
                mod_: &raw mut bindings::__this_module,
                #[cfg(not(MODULE))]
                mod_: core::ptr::null_mut(),
                ops: &raw const bindings::param_ops_int,
                perm: 0o444,
                level: -1,
                flags: 0,
                __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                    arg: $name.as_arg(),
                },
            });

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static PARMTYPE: [u8; TYPE.len()] = bytes_of(TYPE);

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static PARM: [u8; TEXT.len()] = bytes_of(TEXT);
        };
    )*};
}
