//! Taking over the data of an etcd: a store of ours is made beside it, and not a byte of it changed.
//!
//! ```text
//! DATA/member/snap/db   its database, locked while it is read ─┐
//! DATA/member/wal/      its log: whose it is, what is newer ───┴─► DATA/metastore
//! ```
//! So the way back is open: etcd starts from its own files as it left them.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::{Error, data_dir};
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::offline::Offline;
use crate::grpc::logged;
use crate::lease::Timing;
use crate::snapshot::load::{self, Member, State};
use crate::snapshot::restore::{self, Options, Report};
use crate::snapshot::wal::{self, Content, Log, MemberChange};
use crate::storage::disk::Disk;
use crate::storage::store::{Identity, Settings};

/// Size of a segment of the log that the new store has while it is made.
const SEGMENT_BYTES: u64 = 8 << 20;

/// Whether the folder is that of an etcd.
pub fn is_etcds(data_dir: &Path) -> bool {
    database_of(data_dir).is_file()
}

fn database_of(data_dir: &Path) -> PathBuf {
    data_dir.join("member/snap/db")
}

/// What was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// What the store holds.
    pub report: Report,
    /// Entries of the etcd's log that its database lacked.
    pub log_entries: u64,
}

/// Makes a store of ours in the data folder of the etcd that was served from it until now.
pub fn take_over(config: &Config) -> Result<(), Error> {
    let data_dir = &config.data_dir;
    info!(
        path = %data_dir.display(),
        "this is the data directory of an etcd: importing it"
    );
    let begun = Clock::System.monotonic_millis();
    let Imported {
        report,
        log_entries,
    } = import_folder(data_dir, config, |_, _| ())?;
    let took_millis = Clock::System.monotonic_millis() - begun;
    let Report {
        changes,
        revision,
        leases,
        users,
        roles,
        alarms,
        ..
    } = report;
    let floor = report.floor.unwrap_or(0);
    info!(
        changes,
        revision,
        floor,
        leases,
        users,
        roles,
        alarms,
        log_entries,
        took_millis,
        "imported the etcd's data; its own files are as they were"
    );
    if report.strays > 0 {
        let keys = report.strays;
        warn!(keys, "keys name leases that are not there: they stay");
    }
    Ok(())
}

/// Makes a store of the stopped etcd's `folder`, where `config` says.
pub fn import_folder(
    folder: &Path,
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<Imported, Error> {
    let source = Source::of_folder(folder, config)?;
    make(source, Options::default(), config, progress)
}

/// Makes a store of a snapshot file, where `config` says and as the member that it says.
pub fn import_file(
    file: &Path,
    check_hash: bool,
    options: Options,
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<Imported, Error> {
    let source = Source::of_file(file, check_hash, config)?;
    make(source, options, config, progress)
}

fn make(
    source: Source,
    options: Options,
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<Imported, Error> {
    data_dir::make_store(&config.data_dir, config.wal_dir.as_deref(), |disks| {
        source.fill(options, config, disks, progress)
    })
}

/// What a store is made of: nothing is written before all that can be refused is known.
#[derive(Debug)]
pub struct Source {
    /// Of the database.
    path: PathBuf,
    database: load::Database<File>,
    state: State,
    log: Option<Log>,
    identity: Identity,
    /// Held, so that no etcd begins meanwhile.
    _lock: Option<File>,
}

impl Source {
    /// The folder of a stopped etcd.
    pub fn of_folder(folder: &Path, config: &Config) -> Result<Source, Error> {
        let path = database_of(folder);
        let cannot = |cause| Error::Folder {
            path: path.clone(),
            cause,
        };
        // etcd has the same lock while it runs.
        let lock = File::open(&path).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = folder.to_owned();
                return Err(Error::EtcdRuns { path });
            }
            Err(TryLockError::Error(cause)) => return Err(cannot(cause)),
        }
        let (database, state) = open(&path, false)?;
        let inside = folder.join("member/wal");
        let log = match &config.wal_dir {
            Some(wal_dir) if !inside.is_dir() => wal_dir,
            _ => &inside,
        };
        let log = Log::open(log, state.consistent_index)?;
        let identity = Identity {
            cluster_id: log.cluster_id,
            member_id: log.member_id,
            peer_urls: only_member(folder, &state, &log)?
                .unwrap_or_else(|| config.initial_advertise_peer_urls.clone()),
        };
        Ok(Source {
            path,
            database,
            state,
            log: Some(log),
            identity,
            _lock: Some(lock),
        })
    }

    /// A snapshot file, for the member that `config` says.
    pub fn of_file(file: &Path, check_hash: bool, config: &Config) -> Result<Source, Error> {
        let (database, state) = open(file, check_hash)?;
        Ok(Source {
            path: file.to_owned(),
            database,
            state,
            log: None,
            identity: Identity {
                cluster_id: config.cluster_id(),
                member_id: config.member_id(),
                peer_urls: config.initial_advertise_peer_urls.clone(),
            },
            _lock: None,
        })
    }

    /// Fills two empty folders, that of the database and that of the log. Once it has answered they
    /// are a store, whole, proven and on disk; unless it does they must not become one.
    pub fn fill(
        self,
        options: Options,
        config: &Config,
        disks: [&Arc<dyn Disk>; 2],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Imported, Error> {
        let Source {
            path,
            database,
            state,
            log,
            identity,
            _lock,
        } = self;
        let import = |cause| Error::Import {
            path: path.clone(),
            cause,
        };
        let last = (state.consistent_index, state.term);
        let filled = restore::fill(database, state, &identity, options, disks[0], &mut progress);
        filled.map_err(import)?;
        let log = log.filter(|log| log.newer() > 0);
        if let Some(log) = &log {
            take_newer(log, last, config, disks, &mut progress)?;
        }
        Ok(Imported {
            report: restore::prove(disks, &mut progress).map_err(import)?,
            log_entries: log.map_or(0, |log| log.newer()),
        })
    }
}

fn open(path: &Path, check_hash: bool) -> Result<(load::Database<File>, State), Error> {
    let unreadable = |cause| Error::Unreadable {
        path: path.to_owned(),
        cause,
    };
    let mut database = load::open_file(path, check_hash).map_err(unreadable)?;
    let state = database.state().map_err(unreadable)?;
    Ok((database, state))
}

/// The peer URLs of the etcd, if it knows them, which must be its cluster's only member.
fn only_member(folder: &Path, state: &State, log: &Log) -> Result<Option<Vec<String>>, Error> {
    let members = state.members.iter();
    let mut members: BTreeMap<u64, Member> =
        members.map(|member| (member.id, member.clone())).collect();
    log.entries(|entry| {
        if let Content::Members(change) = entry.content {
            match wal::member_change(change).map_err(|what| entry.damaged(what))? {
                MemberChange::Is(member) => members.insert(member.id, member),
                MemberChange::Gone(id) => members.remove(&id),
            };
        }
        Ok::<_, wal::Error>(())
    })?;
    let own = members.remove(&log.member_id);
    // Where none is known, the log was begun and nothing of it is in the database yet.
    if members.is_empty() {
        return Ok(own.map(|own| own.peer_urls));
    }
    Err(Error::SeveralMembers {
        path: folder.to_owned(),
        members: members.len() + 1,
    })
}

/// Adds to the new store what the log of the etcd holds beyond its database, whose last entry
/// is given with its term.
fn take_newer(
    log: &Log,
    (mut index, mut term): (u64, u64),
    config: &Config,
    [data, log_disk]: [&Arc<dyn Disk>; 2],
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let newer = log.newer();
    let failed = |cause| Error::Store {
        path: config.data_dir.clone(),
        cause,
    };
    let settings = Settings {
        data: Arc::clone(data),
        log: Arc::clone(log_disk),
        cache_bytes: config.cache_bytes as usize,
        flush_bytes: config.flush_bytes as usize,
        segment_bytes: SEGMENT_BYTES,
        reserve_bytes: 0,
        quota_bytes: None,
    };
    let timing = Timing::new(config.election_timeout, config.heartbeat_interval);
    let mut store = Offline::open(settings, timing).map_err(failed)?;
    let mut done = 0;
    log.entries(|entry| {
        (index, term) = (entry.index, term.max(entry.term));
        done += 1;
        progress(done, newer);
        let Content::Request(request) = entry.content else {
            return Ok(());
        };
        let logged = logged::read(request).map_err(|what| entry.damaged(what))?;
        store.take(&logged).map_err(failed)
    })?;
    store.end(index, term).map_err(failed)
}
