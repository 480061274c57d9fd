// SPDX-License-Identifier: GPL-2.0
//! The virtual machine: QEMU's command line, its process.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// KVM where it works, else TCG.
    Auto,
    /// The processor itself.
    Kvm,
    /// QEMU's emulation.
    Tcg,
    /// The same, one processor at a time, with the guest's clock counting instructions: a nanosecond each.
    Icount,
}

impl Accel {
    /// QEMU's words for it.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Accel::Kvm => &["-accel", "kvm", "-cpu", "max"],
            // The emulation counts each step of a `rep movsb` as an instruction, so that a page would cost 4096: without
            // these two the kernel copies by words, which comes closer to what a processor takes.
            Accel::Icount => {
                &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max,-erms,-fsrm"]
            }
            Accel::Auto | Accel::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

/// The machine's size.
#[derive(Clone, clap::Args)]
pub struct Size {
    /// Processors of the guest
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..))]
    pub memory: u32,
    /// What runs the guest's instructions
    #[arg(long, default_value = "auto")]
    pub accel: Accel,
    /// More for the kernel's command line
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    pub append: String,
}

/// Where the guest's two serial ports lead.
pub enum Ports<'a> {
    /// Console and results, each to a unix socket that we listen on.
    Sockets {
        /// For ttyS0.
        console: &'a Path,
        /// For ttyS1.
        results: &'a Path,
    },
    /// The console to a file, and no results.
    File {
        /// The log.
        log: &'a Path,
    },
    /// The console to our own terminal and to a log, for a person.
    Terminal {
        /// The log.
        log: &'a Path,
    },
}

/// Command line of the kernel. Everything that hangs or breaks must end as a message on the console: an oops ends the
/// machine, a task that is stuck is reported early, and marks from user space are not dropped.
fn kernel_arguments(size: &Size) -> String {
    let fixed = "console=ttyS0,115200 panic=-1 oops=panic printk.devkmsg=on sysctl.kernel.hung_task_timeout_secs=30 \
                 sysctl.kernel.hung_task_warnings=-1 no_timer_check tsc=reliable rcupdate.rcu_cpu_stall_timeout=60";
    format!("{fixed} {}", size.append).trim_end().to_owned()
}

/// A running QEMU; dropped, it is killed.
pub struct Machine(Child);

impl Machine {
    /// Starts QEMU. What it says itself goes to `messages`.
    pub fn start(
        size: &Size,
        accel: Accel,
        kernel: &Path,
        initramfs: Option<&Path>,
        ports: &Ports,
        messages: &Path,
    ) -> Result<Machine> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-name", "rnbd", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "q35,smm=off,vmport=off,usb=off"]);
        command.args(accel.arguments());
        command.args(["-smp", &size.cpus.to_string(), "-m", &format!("{}M", size.memory)]);
        command.arg("-kernel").arg(kernel);
        if let Some(initramfs) = initramfs {
            command.arg("-initrd").arg(initramfs);
        }
        command.args(["-append", &kernel_arguments(size)]);
        let port = |command: &mut Command, device: &str| {
            command.args(["-chardev", device, "-serial"]);
        };
        match ports {
            Ports::Sockets { console, results } => {
                for (name, path) in [("console", console), ("results", results)] {
                    port(&mut command, &format!("socket,id={name},path={}", path.display()));
                    command.arg(format!("chardev:{name}"));
                }
                command.stdin(Stdio::null()).stdout(Stdio::null());
            }
            Ports::File { log } => {
                port(&mut command, &format!("file,id=console,path={}", log.display()));
                command.arg("chardev:console").stdin(Stdio::null()).stdout(Stdio::null());
            }
            Ports::Terminal { log } => {
                port(&mut command, &format!("stdio,id=console,mux=on,signal=off,logfile={}", log.display()));
                command.args(["chardev:console", "-mon", "console"]);
            }
        }
        let messages = File::create(messages).with_context(|| format!("create {}", messages.display()))?;
        command.stderr(messages);
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                // However we end, QEMU ends too.
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                if nix::unistd::getppid() != parent {
                    return Err(io::Error::other("the harness has ended"));
                }
                Ok(())
            });
        }
        let child = command.spawn().context("start qemu-system-x86_64 (package qemu-system-x86)")?;
        Ok(Machine(child))
    }

    /// Has it ended?
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}
