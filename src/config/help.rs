//! The texts of `--help` and `--version`, the first made from the table of flags.

use std::env::consts::{ARCH, OS};
use std::fmt::Write;

use super::ETCD_VERSION;
use super::flags::{self, Flag, GROUPS, Group};
use super::settings::Known;
use super::values::Kind;

const SERVER: &str = "\
MetaStore, a durable single-node etcd.

Usage:
  metastore [flags]          serve
  metastore check [flags]    verify the files of a stopped server
  metastore snapshot save|status|restore FILE [flags]
  metastore import FILE_OR_DIR [flags]     make a store of etcd's data
  metastore export FILE [flags]            make etcd's snapshot file of a store

A flag is written --x v or --x=v, with one dash or two; a switch only --b or --b=false. Each flag
can be given by its environment variable instead, but not by both.
";

const CHECK: &str = "\
Verifies the log and the tables of a stopped server.

Usage:
  metastore check [flags]
";

/// The help for the server, or for a subcommand that knows only some flags.
pub(super) fn help(known: Known) -> String {
    let mut text = String::from(if known.0.is_none() { SERVER } else { CHECK });
    for group in GROUPS {
        let flags: Vec<&Flag> = group
            .flags
            .iter()
            .filter(|flag| known.holds(flag))
            .collect();
        if !flags.is_empty() {
            let _ = writeln!(text, "\n{}:", group.heading);
        }
        for flag in flags {
            write_flag(&mut text, group, flag);
        }
    }
    text
}

/// The four lines of etcd, whose first is read by tools, and ours.
pub(super) fn version() -> String {
    let os = if OS == "macos" { "darwin" } else { OS };
    let arch = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: Not provided\nGo Version: none (Rust)\nGo OS/Arch: {os}/{arch}\n\
         MetaStore Version: {}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn write_flag(text: &mut String, group: &Group, flag: &Flag) {
    let usage = match flag.kind {
        Kind::Ignored => format!("--{}", flag.name),
        kind if kind.is_switch() => format!("--{}[=BOOL]", flag.name),
        kind => format!("--{} {}", flag.name, kind.word()),
    };
    let default = if flag.default.is_empty() {
        "\"\""
    } else {
        flag.default
    };
    let variable = match flag.name {
        "version" => String::new(),
        _ => format!(" [env: {}]", flags::env_name(group, flag)),
    };
    let _ = writeln!(text, "  {usage:<42} [default: {default}]{variable}");
    if !flag.about.is_empty() {
        let _ = writeln!(text, "        {}", flag.about);
    }
}
