//! Taking over the data of an etcd: a store of ours is made beside it, and not a byte of it changed.
//!
//! ```text
//! DATA/member/snap/db   its database, locked while it is read ─┐
//! DATA/member/wal/      its log: whose it is, what is newer ───┴─► DATA/metastore
//! ```
//! So the way back is open: etcd starts from its own files as it left them.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::{Error, data_dir};
use crate::clock::Clock;
use crate::config::Config;
use crate::snapshot::restore::{self, Options, Report};
use crate::snapshot::{load, wal};
use crate::storage::store::Identity;

/// Whether the folder is that of an etcd.
pub fn is_etcds(data_dir: &Path) -> bool {
    database_of(data_dir).is_file()
}

fn database_of(data_dir: &Path) -> PathBuf {
    data_dir.join("member/snap/db")
}

/// Makes a store of ours in the data folder of the etcd that was served from it until now.
pub fn take_over(config: &Config) -> Result<(), Error> {
    let data_dir = &config.data_dir;
    info!(
        path = %data_dir.display(),
        "this is the data directory of an etcd: importing it"
    );
    let begun = Clock::System.monotonic_millis();
    let report = import_folder(data_dir, config, |_, _| ())?;
    let took_millis = Clock::System.monotonic_millis() - begun;
    let Report {
        changes, revision, ..
    } = report;
    let floor = report.floor.unwrap_or(0);
    info!(
        changes,
        revision, floor, took_millis, "imported the etcd's data; its own files are as they were"
    );
    if report.alarms > 0 {
        warn!("alarms of the etcd are not taken over");
    }
    Ok(())
}

/// Makes a store of the stopped etcd's `folder`, where `config` says.
pub fn import_folder(
    folder: &Path,
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    let path = || folder.to_owned();
    let database_path = database_of(folder);
    let cannot = |cause| Error::Folder {
        path: database_path.clone(),
        cause,
    };
    // etcd has the same lock while it runs.
    let lock = File::open(&database_path).map_err(cannot)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::EtcdRuns { path: path() }),
        Err(TryLockError::Error(cause)) => return Err(cannot(cause)),
    }
    let unreadable = |cause| Error::Unreadable {
        path: database_path.clone(),
        cause,
    };
    let mut database = load::open_file(&database_path, false).map_err(unreadable)?;
    let state = database.state().map_err(unreadable)?;
    let inside = folder.join("member/wal");
    let log = match &config.wal_dir {
        Some(wal_dir) if !inside.is_dir() => wal_dir,
        _ => &inside,
    };
    let log = wal::read(log, state.consistent_index)?;
    if state.members.len() > 1 {
        return Err(Error::SeveralMembers {
            path: path(),
            members: state.members.len(),
        });
    }
    if log.newer > 0 {
        return Err(Error::Unapplied {
            path: path(),
            newer: log.newer,
        });
    }
    let urls = state.members.first().map(|member| &member.peer_urls);
    let identity = Identity {
        cluster_id: log.cluster_id,
        member_id: log.member_id,
        peer_urls: urls.unwrap_or(&config.initial_advertise_peer_urls).clone(),
    };
    fill(
        database,
        &database_path,
        &state,
        &identity,
        Options::default(),
        config,
        progress,
    )
}

/// Makes a store of a snapshot file, where `config` says and as the member that it says.
pub fn import_file(
    file: &Path,
    check_hash: bool,
    options: Options,
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    let unreadable = |cause| Error::Unreadable {
        path: file.to_owned(),
        cause,
    };
    let mut database = load::open_file(file, check_hash).map_err(unreadable)?;
    let state = database.state().map_err(unreadable)?;
    let identity = Identity {
        cluster_id: config.cluster_id(),
        member_id: config.member_id(),
        peer_urls: config.initial_advertise_peer_urls.clone(),
    };
    fill(database, file, &state, &identity, options, config, progress)
}

fn fill(
    database: load::Database<File>,
    path: &Path,
    state: &load::State,
    identity: &Identity,
    options: Options,
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    let import = |cause| Error::Import {
        path: path.to_owned(),
        cause,
    };
    // Before a folder is made.
    restore::check_state(state).map_err(import)?;
    data_dir::make_store(&config.data_dir, config.wal_dir.as_deref(), |disks| {
        restore::restore(database, state, identity, options, disks, progress).map_err(import)
    })
}
