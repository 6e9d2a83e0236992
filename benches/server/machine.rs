//! The machine, the disk and the two versions: what a figure means nothing without.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::field;
use crate::{Failure, NAMES};

/// Syncs in a row that the disk is tried with.
const SYNCS: usize = 200;

/// Prints it all as a list.
pub(crate) fn describe(dir: &Path, binaries: &[PathBuf; 2]) -> Result<(), Failure> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("of an unknown model", |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    let memory_kib = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal:")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let (typical, rare) = sync_times(dir)?;
    println!("- CPU: {model}, {cores} cores; load average at the start {load}");
    println!(
        "- memory: {:.1} GiB; kernel: {}",
        memory_kib as f64 / (1 << 20) as f64,
        kernel.trim()
    );
    println!("- file system of the data: {}", file_system(dir)?);
    println!(
        "- append and fdatasync of 4 KiB there: p50 {} µs, p99 {} µs",
        typical.as_micros(),
        rare.as_micros()
    );
    for (name, binary) in NAMES.iter().zip(binaries) {
        println!("- {name}: {}", version(binary)?);
    }
    Ok(())
}

fn version(binary: &Path) -> Result<String, Failure> {
    let output = Command::new(binary)
        .arg("--version")
        .output()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Ok(if lines.is_empty() {
        "says no version".into()
    } else {
        lines.join(", ")
    })
}

/// The type and the device of the mount that holds `dir`.
fn file_system(dir: &Path) -> Result<String, Failure> {
    let dir = dir.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut best = (0, "unknown".to_string());
    for mount in mounts.lines() {
        let Some((place, device)) = mount.split_once(" - ") else {
            continue;
        };
        let Some(point) = place.split(' ').nth(4) else {
            continue;
        };
        let mut device = device.split(' ');
        // Of two mounts on one point the later one hides the earlier.
        if dir.starts_with(point) && point.len() >= best.0 {
            let kind = device.next().unwrap_or_default();
            best = (
                point.len(),
                format!("{kind} on {}", device.next().unwrap_or_default()),
            );
        }
    }
    Ok(best.1)
}

/// The median and the 99th percentile of an append with its sync.
fn sync_times(dir: &Path) -> Result<(Duration, Duration), Failure> {
    let path = dir.join("sync");
    let mut file = File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begin = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    fs::remove_file(path)?;
    times.sort();
    Ok((times[SYNCS / 2], times[SYNCS * 99 / 100]))
}
