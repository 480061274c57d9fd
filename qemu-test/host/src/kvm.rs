// SPDX-License-Identifier: GPL-2.0
//! Whether KVM works on this machine. That `/dev/kvm` exists, and even that it makes a processor, says little: in
//! some clouds it then stops at the first instruction that it has to emulate. So the kernel itself is tried.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::machine::{Accel, Machine, Ports, Size};

/// Far above what a boot takes under KVM.
const PATIENCE: Duration = Duration::from_secs(15);

/// Without a root the kernel ends its start so.
const BOOTED: &str = "Unable to mount root fs";

/// The accelerator to use, and why it is not the fast one. What is found is kept in `store` until this machine is
/// booted again.
pub fn choose(size: &Size, kernel: &Path, store: &Path) -> (Accel, Option<String>) {
    match size.accel {
        Accel::Kvm => (Accel::Kvm, None),
        Accel::Tcg | Accel::Icount => (size.accel, None),
        Accel::Auto => match makes_a_processor().and_then(|()| remembered(size, kernel, store)) {
            Ok(()) => (Accel::Kvm, None),
            Err(why) => (Accel::Tcg, Some(format!("emulated: {why}"))),
        },
    }
}

mod ioctl {
    nix::ioctl_write_int_bad!(create_vm, 0xae01);
    nix::ioctl_write_int_bad!(create_vcpu, 0xae41);
}

fn makes_a_processor() -> Result<(), String> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(device) => device,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err("there is no /dev/kvm".into()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err("no permission for /dev/kvm; is this user in group kvm?".into());
        }
        Err(error) => return Err(format!("/dev/kvm: {error}")),
    };
    let fails = |errno| format!("KVM fails: {errno}");
    // SAFETY: the ioctl takes a number and gives a new file descriptor, which the File then owns.
    let machine = unsafe { File::from_raw_fd(ioctl::create_vm(device.as_raw_fd(), 0).map_err(fails)?) };
    // SAFETY: as above.
    let _cpu = unsafe { File::from_raw_fd(ioctl::create_vcpu(machine.as_raw_fd(), 0).map_err(fails)?) };
    Ok(())
}

fn remembered(size: &Size, kernel: &Path, store: &Path) -> Result<(), String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let key = format!("{} {}", boot.trim(), kernel.display());
    let file = store.join("kvm");
    let known = fs::read_to_string(&file).unwrap_or_default();
    let boots = match known.split_once('\n') {
        Some((its_key, answer)) if its_key == key => answer == "works",
        _ => {
            let boots = boots_a_kernel(size, kernel, store);
            // If it cannot be kept it is tried again.
            let _ = fs::write(&file, format!("{key}\n{}", if boots { "works" } else { "fails" }));
            boots
        }
    };
    if boots { Ok(()) } else { Err("/dev/kvm is there but cannot run this kernel".into()) }
}

fn boots_a_kernel(size: &Size, kernel: &Path, store: &Path) -> bool {
    let log = store.join(format!("kvm-{}.log", std::process::id()));
    let messages = log.with_extension("messages");
    let ports = Ports::File { log: &log };
    let start = Instant::now();
    let mut works = false;
    if let Ok(mut machine) = Machine::start(size, Accel::Kvm, kernel, None, &ports, &messages) {
        while !works && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
            let ended = !matches!(machine.ended(), Ok(None));
            let stopped = fs::read_to_string(&messages).is_ok_and(|text| text.contains("KVM internal error"));
            works = fs::read(&log).is_ok_and(|text| String::from_utf8_lossy(&text).contains(BOOTED));
            if ended || stopped {
                break;
            }
        }
    }
    let _ = fs::remove_file(&log);
    let _ = fs::remove_file(&messages);
    works
}
