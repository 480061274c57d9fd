// SPDX-License-Identifier: GPL-2.0
//! The command line. Help, manual page and completions are made of this.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::address::Address;
use crate::driver::parse_device;

pub const EXIT_STATUS: &str = "\
Exit status:
  0  it is done
  1  the driver refused, or something else went wrong
  2  the command line is wrong
  3  there are no privileges for it
  4  there is no driver, or no such device
  5  the server cannot be reached, or refuses";

pub const EXAMPLES: &str = "\
Examples:
  rnbdctl status
  rnbdctl connect storage:10809 --export disk
  rnbdctl connect /run/nbd.sock --device nbd0 --connections 4 --dead-timeout 30
  rnbdctl handover nbd0 /run/next.sock
  rnbdctl disconnect nbd0";

const SERVER: &str = "HOST, HOST:PORT, [IPV6]:PORT, or the path of a UNIX socket";

const STYLES: Styles =
    Styles::styled().header(AnsiColor::Green.on_default().bold()).literal(AnsiColor::Cyan.on_default());

/// Shows, attaches and detaches network block devices.
///
/// Works with rnbd.ko, and with the kernel's nbd.ko as far as that tells what it is at. Exports are attached over the
/// drivers' netlink family: the device stays when rnbdctl has ended, until it is disconnected.
#[derive(Parser)]
#[command(name = "rnbdctl", version, styles = STYLES, after_help = EXIT_STATUS)]
#[command(after_long_help = format!("{EXAMPLES}\n\n{EXIT_STATUS}"), arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show all devices, or all that is known of one: also why it is refused or stuck, and what to do
    Status(StatusArgs),
    /// Attach a device to an export of a server
    Connect(ConnectArgs),
    /// Give an attached device connections for its dead ones, or other settings
    Reconfigure(ReconfigureArgs),
    /// Move an attached device to another server of the same image, while it is in use (rnbd only)
    Handover(HandoverArgs),
    /// Detach devices
    Disconnect(DisconnectArgs),
    /// Show what changes: states, connections that die
    Watch(WatchArgs),
    /// Write the manual pages, or the completions of a shell, to a directory
    #[command(hide = true)]
    Generate(GenerateArgs),
}

#[derive(Args)]
pub struct StatusArgs {
    /// The device: nbd0, /dev/nbd0 or 0
    #[arg(value_name = "DEV", value_parser = parse_device)]
    pub device: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A server's export.
#[derive(Args)]
pub struct ExportArgs {
    /// Name of the export; without one the server's own choice
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub export: String,
    /// Seconds that connecting and the handshake may take, for each connection
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub handshake_timeout: u64,
}

#[derive(Args)]
pub struct ConnectArgs {
    #[arg(help = SERVER)]
    pub server: Address,
    #[command(flatten)]
    pub export: ExportArgs,
    /// The device: nbd0, /dev/nbd0 or 0; without this, the first that is free
    #[arg(short, long, value_name = "DEV", value_parser = parse_device)]
    pub device: Option<u32>,
    /// How many connections to make, to an export that allows several (NBD_FLAG_CAN_MULTI_CONN)
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub connections: u16,
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
    /// Logical block size in bytes; without this, 512 or the least that the server takes
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u32>,
    /// Attach it read-only
    #[arg(long)]
    pub read_only: bool,
    /// Detach it when it is closed for the last time
    #[arg(long)]
    pub disconnect_on_close: bool,
    /// Remove the device when it is detached
    #[arg(long)]
    pub destroy_on_disconnect: bool,
    /// Name this backend, which whoever reconfigures the device must name too
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TimeoutArgs {
    /// Seconds that a request may take; 0, the default, for no bound
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Seconds that requests wait for a new connection when all are dead; 0, the default, to fail them at once
    #[arg(long, value_name = "SECONDS")]
    pub dead_timeout: Option<u64>,
}

#[derive(Args)]
pub struct ReconfigureArgs {
    /// The device: nbd0, /dev/nbd0 or 0
    #[arg(value_name = "DEV", value_parser = parse_device)]
    pub device: u32,
    #[arg(help = format!("{SERVER}; without this, only settings are changed"))]
    #[arg(required_unless_present_any = ["timeout", "dead_timeout"])]
    pub server: Option<Address>,
    #[command(flatten)]
    pub export: ExportArgs,
    /// How many connections to make; without this, as many as are dead, or 1 if the driver does not tell
    #[arg(short, long, value_name = "N", requires = "server", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub connections: Option<u16>,
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
    /// Let the device have the export's size, if that has changed
    #[arg(long, requires = "server")]
    pub resize: bool,
    /// The backend that was named when the device was attached
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct HandoverArgs {
    /// The device: nbd0, /dev/nbd0 or 0
    #[arg(value_name = "DEV", value_parser = parse_device)]
    pub device: u32,
    #[arg(help = SERVER)]
    pub server: Address,
    #[command(flatten)]
    pub export: ExportArgs,
    /// How many connections to hand over; without this, all
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub connections: Option<u16>,
    /// The backend that was named when the device was attached
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct DisconnectArgs {
    /// The devices: nbd0, /dev/nbd0 or 0
    #[arg(value_name = "DEV", required = true, value_parser = parse_device)]
    pub devices: Vec<u32>,
    /// Also under a mounted filesystem, swap, or another device: what is written to it is lost
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct WatchArgs {
    /// The device: nbd0, /dev/nbd0 or 0; without this, all
    #[arg(value_name = "DEV", value_parser = parse_device)]
    pub device: Option<u32>,
    /// Seconds between two looks; connections that die are told at once
    #[arg(short = 'n', long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
    /// Print a line of JSON a change
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct GenerateArgs {
    /// What to write
    pub what: Generated,
    /// Where to
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Generated {
    /// Manual pages
    Man,
    Bash,
    Zsh,
    Fish,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reconfigure_of_nothing_is_refused() {
        assert!(Cli::try_parse_from(["rnbdctl", "reconfigure", "nbd0"]).is_err());
        assert!(Cli::try_parse_from(["rnbdctl", "reconfigure", "nbd0", "--timeout", "5"]).is_ok());
        assert!(
            Cli::try_parse_from(["rnbdctl", "reconfigure", "nbd0", "--timeout", "5", "--resize"]).is_err()
        );
    }
}
