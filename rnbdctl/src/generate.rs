// SPDX-License-Identifier: GPL-2.0
//! Manual pages and completions, of the command line as it is.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::{Cli, EXAMPLES, EXIT_STATUS, GenerateArgs, Generated};

pub fn run(args: &GenerateArgs) -> Result<()> {
    let directory = &args.directory;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let shell = match args.what {
        Generated::Man => return manual(directory),
        Generated::Bash => Shell::Bash,
        Generated::Zsh => Shell::Zsh,
        Generated::Fish => Shell::Fish,
    };
    clap_complete::generate_to(shell, &mut Cli::command(), "rnbdctl", directory)
        .with_context(|| format!("write to {}", directory.display()))?;
    Ok(())
}

/// `rnbdctl.8`, and a page for each subcommand.
fn manual(directory: &Path) -> Result<()> {
    // What `rnbdctl help` does needs no page.
    let mut command = Cli::command().after_help("").after_long_help("").disable_help_subcommand(true);
    command.build();
    let main = page_of(&command);
    let mut page = Vec::new();
    main.render_title(&mut page)?;
    main.render_name_section(&mut page)?;
    main.render_synopsis_section(&mut page)?;
    main.render_description_section(&mut page)?;
    main.render_options_section(&mut page)?;
    main.render_subcommands_section(&mut page)?;
    listing(&mut page, "EXIT STATUS", EXIT_STATUS)?;
    listing(&mut page, "EXAMPLES", EXAMPLES)?;
    prose(&mut page, "FILES", &FILES)?;
    prose(&mut page, "SEE ALSO", &["nbd-client(8), qemu-nbd(8), nbd-server(1)"])?;
    write(directory, "rnbdctl.8", &page)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let name = subcommand.get_name();
        let mut page = Vec::new();
        page_of(subcommand).render(&mut page)?;
        prose(&mut page, "SEE ALSO", &["rnbdctl(8)"])?;
        write(directory, &format!("rnbdctl-{name}.8"), &page)?;
    }
    Ok(())
}

fn page_of(command: &clap::Command) -> Man {
    let source = format!("rnbdctl {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).section("8").manual("System Administration").source(source)
}

const FILES: [&str; 3] = [
    "/sys/block/nbdN/nbd/: what state a device of rnbd's is in, one value a file",
    "/sys/kernel/debug/nbd/nbdN/: its connections and requests, for root",
    "/sys/block/nbdN/pid: who attached it, with either driver",
];

/// What is laid out already, but for its headline.
fn listing(page: &mut Vec<u8>, title: &str, text: &str) -> Result<()> {
    let lines: Vec<_> = text.lines().skip(1).map(|line| roman(line.trim_start())).collect();
    let mut roff = Roff::new();
    roff.control("SH", [title]).control("nf", []);
    for line in lines {
        roff.text([line]);
    }
    roff.control("fi", []);
    Ok(roff.to_writer(page)?)
}

fn prose(page: &mut Vec<u8>, title: &str, paragraphs: &[&str]) -> Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for paragraph in paragraphs {
        roff.control("PP", []).text([roman(*paragraph)]);
    }
    Ok(roff.to_writer(page)?)
}

fn write(directory: &Path, name: &str, page: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(file.write_all(page)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_are_written() {
        let directory = std::env::temp_dir().join(format!("rnbdctl-generate-{}", std::process::id()));
        for what in [Generated::Man, Generated::Bash, Generated::Zsh, Generated::Fish] {
            run(&GenerateArgs { what, directory: directory.clone() }).unwrap();
        }
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let page = read("rnbdctl.8");
        assert!(page.contains(".TH rnbdctl 8"), "{page}");
        assert!(page.contains("EXIT STATUS") && page.contains("rnbdctl\\-connect(8)"), "{page}");
        assert!(!page.contains("help(8)"), "a page that is not there is named: {page}");
        assert!(!page.contains("generate"), "a hidden command is in the manual: {page}");
        let page = read("rnbdctl-connect.8");
        assert!(page.contains(".TH rnbdctl-connect 8") && page.contains("dead\\-timeout"), "{page}");
        assert!(page.contains("rnbdctl connect"), "{page}");
        for completions in ["rnbdctl.bash", "_rnbdctl", "rnbdctl.fish"] {
            assert!(read(completions).contains("handover"), "{completions}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
