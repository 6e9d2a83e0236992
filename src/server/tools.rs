//! `metastore snapshot`, `import` and `export`: etcd's files in and out.

use std::error::{self, Error as _};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::runtime::Builder;
use tonic::Status;
use tonic::transport::Endpoint;

use super::data_dir::{DataDir, has_store, refuse_full};
use super::import::Imported;
use super::{Error, import};
use crate::config::{Format, SaveFrom, Tool};
use crate::proto::etcdserverpb::SnapshotRequest;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::snapshot::contents::Member;
use crate::snapshot::load;
use crate::snapshot::restore::{Options, Report};
use crate::snapshot::save;
use crate::storage::store::read_stopped;

/// Memory for pages of a stopped store.
const CACHE_BYTES: usize = 64 << 20;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After how much silence a server is asked whether it is still there, and how long it may take to say
/// so. etcd sends clients away that ask twice as often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(6);

/// Does it; answers what there is to say. Draws progress on stderr if told to.
pub fn run(tool: &Tool, draw: bool) -> Result<String, Error> {
    let bar = bar(draw);
    let mut calls = 0u64;
    let progress = |done: u64, all: u64| {
        calls += 1;
        if calls % 1024 == 1 {
            bar.set_length(all);
            bar.set_position(done);
        }
    };
    let said = match tool {
        Tool::Save { file, from } => save(file, from, progress),
        Tool::Status { file, format } => status(file, *format),
        Tool::Restore {
            file,
            check_hash,
            bump,
            config,
        } => {
            refuse_full(&config.data_dir)?;
            let options = Options { bump: *bump };
            let imported = import::import_file(file, *check_hash, options, config, progress)?;
            Ok(told(&imported, &config.data_dir))
        }
        Tool::Import { from, config } => {
            refuse_full(&config.data_dir)?;
            let imported = if from.is_dir() {
                import::import_folder(from, config, progress)?
            } else {
                import::import_file(from, true, Options::default(), config, progress)?
            };
            Ok(told(&imported, &config.data_dir))
        }
    };
    bar.finish_and_clear();
    said
}

fn bar(draw: bool) -> ProgressBar {
    let bar = if draw {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("{wide_bar} {percent}%, {eta} left");
    bar.set_style(style.expect("the template is well formed"));
    bar
}

fn told(imported: &Imported, data_dir: &Path) -> String {
    let report = &imported.report;
    let Report {
        changes, revision, ..
    } = report;
    let begins = match report.floor {
        Some(floor) => format!("history begins at {floor}"),
        None => "all of history".to_owned(),
    };
    let mut rest = String::new();
    for (count, what) in [
        (report.leases, "leases"),
        (report.users, "users"),
        (report.roles, "roles"),
        (report.alarms, "alarms"),
        (report.strays, "keys of leases that are not there"),
        (imported.log_entries, "entries of the log among it"),
    ] {
        if count > 0 {
            rest.push_str(&format!(", {count} {what}"));
        }
    }
    if report.auth_is_on {
        rest.push_str("; authentication is on");
    }
    format!(
        "took over {changes} changes up to revision {revision}, {begins}{rest}, into {}",
        data_dir.display()
    )
}

fn status(file: &Path, format: Format) -> Result<String, Error> {
    let status = load::status(file).map_err(|cause| Error::Unreadable {
        path: file.to_owned(),
        cause,
    })?;
    let load::Status {
        hash,
        revision,
        keys,
        bytes,
        version,
    } = status;
    let size = readable(bytes);
    Ok(match format {
        Format::Simple => format!("{hash:x}, {revision}, {keys}, {size}, {version}"),
        Format::Json => {
            let json = json!({
                "hash": hash,
                "revision": revision,
                "totalKey": keys,
                "totalSize": bytes,
                "version": version,
            });
            json.to_string()
        }
        Format::Fields => {
            let numbers =
                format!("\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {keys}");
            format!("{numbers}\n\"Size\" : {bytes}\n\"Version\" : {version}")
        }
        Format::Table => table([
            ("HASH", format!("{hash:x}")),
            ("REVISION", revision.to_string()),
            ("TOTAL KEYS", keys.to_string()),
            ("TOTAL SIZE", size),
            ("VERSION", version),
        ]),
    })
}

/// One row and its header, as etcdutl draws them.
fn table<const N: usize>(columns: [(&str, String); N]) -> String {
    let columns = columns.map(|(name, value)| {
        let width = name.len().max(value.chars().count());
        let line = "─".repeat(width + 2);
        (
            line,
            format!(" {name:^width$} "),
            format!(" {value:>width$} "),
        )
    });
    let lines = columns.each_ref().map(|(line, _, _)| &line[..]);
    let names = columns.each_ref().map(|(_, name, _)| &name[..]);
    let values = columns.each_ref().map(|(_, _, value)| &value[..]);
    [
        format!("┌{}┐", lines.join("┬")),
        format!("│{}│", names.join("│")),
        format!("├{}┤", lines.join("┼")),
        format!("│{}│", values.join("│")),
        format!("└{}┘", lines.join("┴")),
    ]
    .join("\n")
}

/// As etcdutl writes sizes.
fn readable(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for larger in ["kB", "MB", "GB", "TB"] {
        if size >= 1000.0 {
            (size, unit) = (size / 1000.0, larger);
        }
    }
    // Rounded before it is known how many digits are told.
    let size = (size * 10.0).round() / 10.0;
    match unit {
        "B" => format!("{bytes} B"),
        _ if size < 10.0 => format!("{size:.1} {unit}"),
        _ => format!("{size:.0} {unit}"),
    }
}

/// Writes beside the file, and gives it its name once it is whole and on disk.
fn save(path: &Path, from: &SaveFrom, progress: impl FnMut(u64, u64)) -> Result<String, Error> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |why: String| Error::Save {
        path: path.to_owned(),
        why,
    };
    let saved = create(&part)
        .map_err(|error| failed(error.to_string()))
        .and_then(|file| {
            match from {
                SaveFrom::Endpoint(url) => save_online(&file, url, progress).map_err(failed)?,
                SaveFrom::Folder { data_dir, wal_dir } => {
                    save_stopped(&file, data_dir, wal_dir.as_deref(), progress, failed)?;
                }
            }
            load::open_file(&part, true).map_err(|error| failed(error.to_string()))?;
            file.sync_all()
                .and_then(|()| fs::rename(&part, path))
                .and_then(|()| sync_above(path))
                .map_err(|error| failed(error.to_string()))
        });
    if let Err(error) = saved {
        // What is left of it is no snapshot; that it cannot be removed is not the first trouble.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    Ok(format!("Snapshot saved at {}", path.display()))
}

/// A file for its owner alone, as etcdctl makes it: it holds all that the store does.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(path)?;
    // It may have been there, and anybody's to read.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes the name of `path` durable.
fn sync_above(path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    File::open(above)?.sync_all()
}

fn save_online(
    mut file: &File,
    url: &str,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let refused = |error| format!("cannot reach {url}{}", cause(Some(&error)));
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(refused)?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let mut client = MaintenanceClient::new(endpoint.connect().await.map_err(refused)?);
        let told =
            |status: Status| format!("{url}: {}{}", status.message(), cause(status.source()));
        let stream = client.snapshot(SnapshotRequest {}).await.map_err(told)?;
        let (mut stream, mut done) = (stream.into_inner(), 0);
        while let Some(part) = stream.message().await.map_err(told)? {
            file.write_all(&part.blob)
                .map_err(|error| error.to_string())?;
            done += part.blob.len() as u64;
            progress(done, done + part.remaining_bytes);
        }
        Ok(())
    })
}

/// The last cause, behind a colon: what a transport says of itself does not tell why.
fn cause(mut error: Option<&(dyn error::Error + 'static)>) -> String {
    let mut last = String::new();
    while let Some(cause) = error {
        last = format!(": {cause}");
        error = cause.source();
    }
    last
}

fn save_stopped(
    file: &File,
    data_dir: &Path,
    wal_dir: Option<&Path>,
    mut progress: impl FnMut(u64, u64),
    failed: impl Fn(String) -> Error,
) -> Result<(), Error> {
    let path = || data_dir.to_owned();
    if !has_store(data_dir) {
        return Err(Error::NoStore { path: path() });
    }
    let folders = DataDir::open(data_dir, wal_dir)?;
    let read = read_stopped(&folders.data, &folders.log, CACHE_BYTES);
    let stopped = read.map_err(|cause| Error::Store {
        path: path(),
        cause,
    })?;
    let view = &stopped.view;
    let member = Member::of(view, &stopped.identity, stopped.term);
    let mut out = Counted {
        out: BufWriter::with_capacity(1 << 20, file),
        done: 0,
        all: 0,
        progress: &mut progress,
    };
    let saved = save::size(view, &member, || true).and_then(|size| {
        out.all = size.bytes();
        save::write(view, &member, size, &mut out, || true)
    });
    saved.map_err(|error| failed(error.to_string()))
}

/// Tells of what it passes on.
struct Counted<'a, W> {
    out: W,
    done: u64,
    all: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.done += written as u64;
        (self.progress)(self.done, self.all);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
