// SPDX-License-Identifier: GPL-2.0
//! Kernel modules and what they need, by the kernel's own `modules.dep`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// `modules.dep`: file of each module, and the files that it needs.
pub struct Dependencies(BTreeMap<String, (String, Vec<String>)>);

impl Dependencies {
    /// Reads `modules.dep`.
    pub fn parse(text: &str) -> Dependencies {
        let line = |line: &str| {
            let (file, needs) = line.split_once(':')?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            Some((module_name(file), (file.to_owned(), needs)))
        };
        Dependencies(text.lines().filter_map(line).collect())
    }

    /// Files of `modules` and of all they need. A module that the kernel does not have is left out: it may
    /// be built in, or a test that wants it skips.
    pub fn closure(&self, modules: &[&str]) -> Result<BTreeSet<String>> {
        let mut files = BTreeSet::new();
        let mut pending: Vec<String> = modules.iter().map(|name| module_name(name)).collect();
        while let Some(name) = pending.pop() {
            let Some((file, needs)) = self.0.get(&name) else { continue };
            if files.insert(file.clone()) {
                for need in needs {
                    let name = module_name(need);
                    ensure!(
                        self.0.contains_key(&name),
                        "modules.dep: {file} needs {need}, which is not there"
                    );
                    pending.push(name);
                }
            }
        }
        Ok(files)
    }
}

/// `kernel/drivers/md/dm-mod.ko.xz` is `dm_mod`: the kernel takes `-` and `_` for the same.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Makes `out/lib/modules/RELEASE` with `wanted` and what they need, uncompressed, ready for modprobe.
pub fn stage(modules: &Path, release: &str, wanted: &[&str], out: &Path) -> Result<PathBuf> {
    let list = modules.join("modules.dep");
    let text = fs::read_to_string(&list).with_context(|| {
        format!("read {} (made by `depmod`): is --modules the stock kernel's?", list.display())
    })?;
    let files = Dependencies::parse(&text).closure(wanted)?;
    let staged = out.join("lib/modules").join(release);
    if staged.exists() {
        fs::remove_dir_all(&staged).with_context(|| format!("remove {}", staged.display()))?;
    }
    for file in &files {
        unpack(&modules.join(file), &staged.join(plain_name(file)))?;
    }
    // depmod wants these two, and finds them in a whole tree alone.
    for name in ["modules.builtin", "modules.order"] {
        let text = fs::read(modules.join(name)).unwrap_or_default();
        fs::create_dir_all(&staged)?;
        fs::write(staged.join(name), text)?;
    }
    run(Command::new("depmod").arg("-b").arg(out).arg(release))?;
    Ok(staged)
}

fn plain_name(file: &str) -> &str {
    file.strip_suffix(".xz").or_else(|| file.strip_suffix(".zst")).unwrap_or(file)
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a module's file has a directory")?)?;
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
            return Ok(());
        }
    };
    let out = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    run(Command::new(program).arg("-dc").arg(from).stdout(out))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let output = output.with_context(|| format!("start {command:?}"))?.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/a.ko.xz:\n\
        kernel/md/dm-mod.ko.xz: kernel/lib/x_y.ko.xz\n\
        kernel/md/dm-log.ko.xz: kernel/md/dm-mod.ko.xz kernel/lib/x_y.ko.xz\n\
        kernel/lib/x_y.ko.xz:\n\
        kernel/broken.ko: kernel/absent.ko\n";

    fn closure(names: &[&str]) -> Result<Vec<String>> {
        Ok(Dependencies::parse(DEP).closure(names)?.into_iter().collect())
    }

    #[test]
    fn closure_follows_needs_and_takes_dash_for_underscore() {
        let want = ["kernel/lib/x_y.ko.xz", "kernel/md/dm-log.ko.xz", "kernel/md/dm-mod.ko.xz"];
        assert_eq!(closure(&["dm_log"]).unwrap(), want);
        assert_eq!(closure(&["dm-log", "x-y"]).unwrap(), want);
        assert_eq!(closure(&["a"]).unwrap(), ["kernel/fs/a.ko.xz"]);
    }

    #[test]
    fn unknown_modules_are_left_out_and_missing_needs_are_an_error() {
        assert!(closure(&["built_in"]).unwrap().is_empty());
        let error = closure(&["broken"]).unwrap_err().to_string();
        assert!(error.contains("absent.ko"), "{error}");
    }

    #[test]
    fn staged_modules_are_uncompressed() {
        assert_eq!(plain_name("kernel/a.ko.xz"), "kernel/a.ko");
        assert_eq!(plain_name("kernel/a.ko.zst"), "kernel/a.ko");
        assert_eq!(plain_name("kernel/a.ko"), "kernel/a.ko");
    }
}
