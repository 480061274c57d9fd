// SPDX-License-Identifier: GPL-2.0
//! The subcommands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::boot::{Boot, End, Interrupts, Message, Outcome};
use crate::complaint::Complaint;
use crate::initramfs::{self, Sources};
use crate::kvm;
use crate::machine::{Accel, Machine, Ports, Size};
use crate::runs;
use crate::terminal::{Terminal, seconds};

mod bench;
mod has_kvm;
mod kunit;
mod profile;
mod selftest;
mod test;

pub use bench::{BenchArgs, bench};
pub use has_kvm::{HasKvmArgs, has_kvm};
pub use kunit::{KunitArgs, kunit};
pub use profile::{ProfileArgs, profile};
pub use selftest::{SelftestArgs, selftest};
pub use test::{TestArgs, test};

/// Where everything is. toolchain/qemu gives these.
#[derive(Clone, clap::Args)]
pub struct Places {
    /// Image of the kernel to boot
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's modules (.../lib/modules/RELEASE)
    #[arg(long, value_name = "DIR")]
    modules: PathBuf,
    /// rnbd.ko
    #[arg(long, value_name = "FILE", default_value = "/build/module/rnbd.ko")]
    module: PathBuf,
    /// rnbd is part of that kernel, and not a module. Most tests want --append rnbd.nbds_max=2
    #[arg(long, conflicts_with = "module")]
    built_in: bool,
    /// The kernel's own nbd.ko, uncompressed
    #[arg(long, value_name = "FILE")]
    c_module: PathBuf,
    /// Root that the guest's programs are taken from
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysroot: PathBuf,
    /// Where initramfs and logs are kept
    #[arg(long, value_name = "DIR", default_value = "/build")]
    work: PathBuf,
    /// The name of --work outside of this root, for messages
    #[arg(long, value_name = "DIR")]
    work_outside: Option<PathBuf>,
    /// The test program; by default the one beside this program
    #[arg(long, value_name = "FILE")]
    test_program: Option<PathBuf>,
    /// What the kernel is called in messages
    #[arg(long, value_name = "NAME", default_value = "stock kernel")]
    kernel_name: String,
    #[command(flatten)]
    size: Size,
    /// Seconds after which the machine is killed; the last word counts
    #[arg(long, value_name = "SECONDS", default_value_t = 1200, overrides_with = "time_limit")]
    time_limit: u64,
    /// How many times longer than usual the guest's tests wait before they give up
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    patience: u32,
}

/// A driver, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Drivers {
    /// The Rust driver.
    Rnbd,
    /// The kernel's own C driver, to see what it does.
    Nbd,
    /// One after the other, each in a boot of its own.
    Both,
}

/// Options of `demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    #[command(flatten)]
    places: Places,
    /// The driver to show: rnbd, or nbd alone
    #[arg(long, default_value = "rnbd")]
    driver: Drivers,
}

/// Options of `shell`.
#[derive(clap::Args)]
pub struct ShellArgs {
    #[command(flatten)]
    places: Places,
    /// The driver to load
    #[arg(long, default_value = "rnbd")]
    driver: Drivers,
}

impl Drivers {
    fn each(self) -> &'static [&'static str] {
        match self {
            Drivers::Rnbd => &["rnbd"],
            Drivers::Nbd => &["nbd"],
            Drivers::Both => &["rnbd", "nbd"],
        }
    }
}

/// What a boot needs, found and checked.
struct Prepared<'a> {
    places: &'a Places,
    kernel: PathBuf,
    folder: PathBuf,
    initramfs: PathBuf,
    accel: Accel,
    note: String,
    time_limit: u64,
}

fn exists(option: &str, path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("{option}: {} is not there", path.display()))
}

/// A program that is built together with this one.
fn beside(name: &str) -> Result<PathBuf> {
    exists(name, &std::env::current_exe()?.with_file_name(name))
}

impl Places {
    /// Makes the folder for logs and the initramfs with `job`, a shell script.
    fn prepare(
        &self,
        name: &str,
        job: &str,
        needs_module: bool,
        terminal: &Terminal,
    ) -> Result<Prepared<'_>> {
        let kernel = exists("--kernel", &self.kernel)?;
        let modules = exists("--modules", &self.modules)?;
        let release = modules.file_name().context("--modules: the directory's name is the release")?;
        let module = if self.built_in {
            None
        } else if needs_module {
            Some(exists("--module", &self.module).context("rnbd.ko has to be built first: make")?)
        } else {
            self.module.canonicalize().ok()
        };
        // toolchain/qemu does not build it for the demo, which does not use it.
        let control_program = (name != "demo").then(|| beside("rnbdctl")).transpose()?;
        let sources = Sources {
            sysroot: &exists("--sysroot", &self.sysroot)?,
            modules: &modules,
            release: &release.to_string_lossy(),
            module: module.as_deref(),
            c_module: &exists("--c-module", &self.c_module)?,
            test_program: &self.test_program()?,
            control_program: control_program.as_deref(),
        };
        let folder = runs::next(&self.work.join("runs"), name)?;
        terminal.busy("initramfs");
        let initramfs = folder.join("initramfs");
        // One for each kernel, or each would undo what is kept for the other.
        let store = self.work.join("initramfs").join(release);
        initramfs::build(&sources, job, &store, &initramfs)?;
        let (accel, note) = kvm::choose(&self.size, &kernel, &store);
        let note = note.unwrap_or_else(|| format!("{accel:?}").to_uppercase());
        Ok(Prepared { places: self, kernel, folder, initramfs, accel, note, time_limit: self.time_limit })
    }

    fn test_program(&self) -> Result<PathBuf> {
        match &self.test_program {
            Some(path) => exists("--test-program", path),
            None => beside("rnbd-test"),
        }
    }

    /// A path as it is called outside.
    fn outside(&self, path: &Path) -> String {
        let outside = match (&self.work_outside, path.strip_prefix(&self.work)) {
            (Some(outside), Ok(rest)) => outside.join(rest),
            _ => path.to_owned(),
        };
        outside.display().to_string()
    }
}

impl Prepared<'_> {
    fn boot(
        &self,
        terminal: &Terminal,
        interrupts: &Interrupts,
        watch: &mut dyn FnMut(Message),
    ) -> Result<Outcome> {
        let size = &self.places.size;
        terminal.busy("boot");
        let boot = Boot {
            size,
            accel: self.accel,
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            folder: &self.folder,
            limit: Duration::from_secs(self.time_limit),
        };
        let result = boot.run(interrupts, &mut |message| {
            match &message {
                Message::Started(after, release) => {
                    let machine = format!("{} CPUs, {} MiB, {}", size.cpus, size.memory, self.note);
                    let text = format!("the {} {release} boots", self.places.kernel_name);
                    terminal.good(&format!("{text:<78} {:>7}", seconds(*after)));
                    terminal.detail(&machine);
                    terminal.busy("");
                }
                Message::Running(Some(test)) => terminal.busy(test),
                Message::Complaint(complaint) => {
                    let test =
                        complaint.test.as_ref().map(|test| format!(", during {test}")).unwrap_or_default();
                    terminal.note("kernel", &format!("{}{test}", complaint.text));
                }
                _ => {}
            }
            watch(message);
        });
        terminal.idle();
        // It is big, and made of what is still there.
        let _ = std::fs::remove_file(&self.initramfs);
        result
    }

    /// The console's log, from the folder of all runs.
    fn log_name(&self) -> String {
        let folder = self.folder.file_name().unwrap_or_default().to_string_lossy();
        format!("{folder}/console.log")
    }

    fn console(&self) -> String {
        self.places.outside(&self.folder.join("console.log"))
    }
}

/// `demo`.
pub fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let interrupts = Interrupts::install()?;
    let terminal = Terminal::new();
    let driver = args.driver.each()[0];
    let job = format!("job() {{ rnbd-test demo --driver {driver} --modules /modules; }}\n");
    let prepared = args.places.prepare("demo", &job, driver == "rnbd", &terminal)?;
    let outcome = prepared.boot(&terminal, &interrupts, &mut |message| {
        if let Message::Line(line) = message {
            match line.strip_prefix("  ok     ") {
                Some(step) => terminal.good(step),
                None => terminal.line(line),
            }
        }
    })?;
    // What the C driver's kernel says while the C driver is shown is its own affair.
    let about_nbd =
        |complaint: &Complaint| complaint.test.as_ref().is_some_and(|step| step.starts_with("nbd.ko:"));
    let complaints = outcome.complaints.iter().filter(|complaint| !about_nbd(complaint)).count();
    let good = outcome.end == End::Job(0) && complaints == 0;
    if !good {
        terminal.bad(&match &outcome.end {
            End::Job(0) => "the kernel complained".to_owned(),
            End::Job(status) => format!("the demo ended with status {status}"),
            End::Early => "the guest ended before the demo did".to_owned(),
            End::Panic(panic) => panic.clone(),
            End::TimeLimit(limit) => format!("not done after {} s: the machine was killed", limit.as_secs()),
            End::Interrupted => "interrupted".to_owned(),
        });
        terminal.line("  the console's last lines:");
        outcome.tail.iter().for_each(|line| terminal.detail(line));
    }
    terminal.line(&format!("  console log: {}", prepared.console()));
    Ok(match (good, outcome.end) {
        (true, _) => ExitCode::SUCCESS,
        (_, End::Interrupted) => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    })
}

/// `shell`.
pub fn shell(args: &ShellArgs) -> Result<ExitCode> {
    let driver = args.driver.each();
    ensure!(driver.len() == 1, "--driver both: only one of them can be loaded; say rnbd or nbd");
    let driver = driver[0];
    let terminal = Terminal::new();
    let job = format!(
        "driver={driver}\n{}",
        "interactive() {\n\
         \tinsmod /modules/$driver.ko || echo \"$driver.ko could not be loaded: see dmesg\"\n\
         \techo\n\
         \techo \"$driver.ko is loaded: /dev/nbd0 ... Try: qemu-img create -f qcow2 /tmp/a 64M; qemu-nbd -c /dev/nbd0 /tmp/a\"\n\
         \techo \"rnbd-test list shows the tests. exit (or Ctrl-A X) ends the machine.\"\n\
         \tcd /root; setsid -c sh -l\n\
         }\n"
    );
    let prepared = args.places.prepare("shell", &job, driver == "rnbd", &terminal)?;
    terminal.idle();
    terminal.line(&format!("  booting ({}); console log: {}", prepared.note, prepared.console()));
    let log = prepared.folder.join("console.log");
    let mut size_quiet = args.places.size.append.clone();
    size_quiet.push_str(" loglevel=4");
    let size = Size { append: size_quiet, ..args.places.size };
    let messages = prepared.folder.join("qemu.log");
    let mut machine = Machine::start(
        &size,
        prepared.accel,
        &prepared.kernel,
        Some(&prepared.initramfs),
        &Ports::Terminal { log: &log },
        &messages,
    )?;
    let status = machine.wait()?;
    let _ = std::fs::remove_file(&prepared.initramfs);
    ensure!(status.success(), "QEMU: {status}; its messages: {}", args.places.outside(&messages));
    Ok(ExitCode::SUCCESS)
}
