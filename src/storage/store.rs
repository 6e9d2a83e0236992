//! The store, as the one writer has it: decide, log, publish.
//!
//! ```text
//! begin_batch ─► push, … ─► commit ─► publish
//!                 memtable, rows        log       views
//!                        └─► take_back            as if the batch had never been
//! ```
//! Invariants:
//! - What is pushed stands at revisions that no published view reaches, until its batch is on disk.
//! - The log, the memtable and the tables agree: a change is in the log until it is in the tables.
//! - Sealing cuts all that is not settled at one batch of the log.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tracing::{info, warn};

use super::disk::Disk;
use super::log::{self, Log};
use super::memtable::Memtable;
use super::redb::meta::Meta;
use super::redb::{Database, Progress, Reader};
use super::revision::Revision;
use super::row::{Change, LeaseRow, LogRow};
use super::settler::Settler;
use super::small::{Bucket, Small};
use super::space::{self, Space};
use super::view::View;
use super::{Damaged, Error};

/// The database's file.
pub const DATABASE_FILE: &str = "data.redb";

/// The database's file while it is made.
pub(super) const NEW_DATABASE_FILE: &str = "data.redb.new";

/// Where a store lies, and how large its parts may grow.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the database.
    pub data: Arc<dyn Disk>,
    /// The folder of the log.
    pub log: Arc<dyn Disk>,
    /// Memory for pages of the database, in bytes.
    pub cache_bytes: usize,
    /// Size of a memtable at which it is flushed, in bytes.
    pub flush_bytes: usize,
    /// Size of a segment of the log, in bytes.
    pub segment_bytes: u64,
    /// Room kept in the data folder for a full disk, in bytes.
    pub reserve_bytes: u64,
    /// Most bytes of data, which the engine sees to; `None` is no limit.
    pub quota_bytes: Option<u64>,
}

/// Who the store is; fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The one member's id.
    pub member_id: u64,
    /// The peer URLs that both are made of.
    pub peer_urls: Vec<String>,
}

impl Identity {
    /// As the tables have it.
    fn of(meta: &Meta) -> Identity {
        Identity {
            cluster_id: meta.cluster_id,
            member_id: meta.member_id,
            peer_urls: meta.peer_urls.clone(),
        }
    }
}

/// The view that is current; one for all readers.
#[derive(Debug)]
pub struct Views {
    current: ArcSwap<View>,
    change: Mutex<()>,
}

impl Views {
    /// The current view.
    pub fn load(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Puts another view in its place. The writer and the background thread both do.
    pub(super) fn update(&self, change: impl FnOnce(&mut View)) {
        let _one_at_a_time = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = View::clone(&self.current.load());
        change(&mut view);
        self.current.store(Arc::new(view));
    }
}

/// A memtable that takes no more, on its way into the tables.
#[derive(Debug)]
pub struct Sealed {
    pub(super) memtable: Arc<Memtable>,
    pub(super) upto: Progress,
    pub(super) small: Arc<Small>,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    log: Log,
    views: Arc<Views>,
    space: Arc<Space>,
    identity: Identity,
    flush_bytes: usize,
    quota_bytes: Option<u64>,
    /// The newest state, this batch included.
    view: View,
    decided: Progress,
    committed: Progress,
    /// Changes in the active memtable when the batch began.
    changes_before: usize,
    leases_before: usize,
    rows: Vec<u8>,
    /// Bytes of rows that the log took since the last sealing.
    logged_bytes: usize,
}

/// Capacity of the row buffer that is kept from batch to batch.
const ROWS_KEPT_BYTES: usize = 4 << 20;

impl Store {
    /// Opens the store, or makes it with `identity`; replays what the log holds beyond the tables.
    /// The second half is for the background thread.
    pub fn open(settings: &Settings, identity: Identity) -> Result<(Store, Settler), Error> {
        let space = Arc::new(Space::find(settings)?);
        let database = space.in_need(|| open_database(settings, &identity))?;
        let reader = database.reader()?;
        let meta = reader.meta.clone();
        refuse_lost_log(&meta, settings.log.as_ref())?;
        let (log, replayed) = space.in_need(|| open_log(settings, &reader))?;
        let decided = replayed.decided;
        let replayed_bytes = replayed.memtable.bytes();
        if !replayed.memtable.is_empty() {
            let (batches, changes) = (decided.batch - meta.applied_batch, replayed.memtable.len());
            info!(batches, changes, "replayed the log");
        }
        if !meta.log_begun {
            database.update_meta(|meta| meta.log_begun = true)?;
        }
        let view = replayed.into_view(reader);
        let views = Arc::new(Views {
            current: ArcSwap::from_pointee(view.clone()),
            change: Mutex::default(),
        });
        space.restore()?;
        if space.is_full() {
            warn!("the disk is too full for the reserve: what adds data is refused");
        }
        let settler = Settler::new(
            database,
            Arc::clone(&views),
            log.segments(),
            Arc::clone(&space),
            settings,
        );
        let mut store = Store {
            log,
            views,
            space,
            identity: Identity::of(&meta),
            flush_bytes: settings.flush_bytes,
            quota_bytes: settings.quota_bytes,
            view,
            decided,
            committed: decided,
            changes_before: 0,
            leases_before: 0,
            rows: Vec::new(),
            logged_bytes: replayed_bytes,
        };
        store.begin_batch();
        store.decided.term += 1;
        LogRow::Term(store.decided.term).encode(&mut store.rows);
        store.count_command();
        store.commit()?;
        store.publish();
        Ok((store, settler))
    }

    /// The views that readers take.
    pub fn views(&self) -> Arc<Views> {
        Arc::clone(&self.views)
    }

    /// The state of the disk's space.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Who the store is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Most bytes of data; `None` is no limit.
    pub fn quota_bytes(&self) -> Option<u64> {
        self.quota_bytes
    }

    /// How often it was opened: etcd's raft term.
    pub fn term(&self) -> u64 {
        self.committed.term
    }

    /// The newest state, this batch included, when read at
    /// [`NEWEST`](crate::mvcc::write_txn::NEWEST).
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The newest revision that is decided.
    pub fn revision(&self) -> u64 {
        self.decided.revision
    }

    /// Begins a batch on what has been published, by either thread.
    pub fn begin_batch(&mut self) {
        assert!(
            self.rows.is_empty(),
            "the last batch was committed or taken back"
        );
        self.view = View::clone(&self.views.current.load());
        self.changes_before = self.view.active.len();
        self.leases_before = self.view.active.leases_len();
    }

    /// Adds a change to the batch, newer than all before it.
    pub fn push(&mut self, change: Change) {
        let row = LogRow::Change(change.revision, change.history_row());
        row.encode(&mut self.rows);
        self.view.active.push(change);
    }

    /// The change that was pushed last took its key from `lease`.
    pub fn leave(&mut self, lease: i64) {
        LogRow::Left(lease).encode(&mut self.rows);
        self.view.active.leave(lease);
    }

    /// Keeps a lease, as part of the batch: granted, or seen alive.
    pub fn keep_lease(&mut self, id: i64, row: LeaseRow) {
        LogRow::Lease(id, row).encode(&mut self.rows);
        self.view.active.push_lease(id, Some(row));
    }

    /// Removes a lease, as part of the batch.
    pub fn remove_lease(&mut self, id: i64) {
        LogRow::Revoke(id).encode(&mut self.rows);
        self.view.active.push_lease(id, None);
    }

    /// Milliseconds that the server has run in all, as far as they were kept.
    pub fn served(&self) -> u64 {
        self.decided.served
    }

    /// Keeps, as part of the batch, how long the server has run in all.
    pub fn keep_served(&mut self, millis: u64) {
        assert!(millis >= self.decided.served, "time runs on");
        self.decided.served = millis;
        LogRow::Served(millis).encode(&mut self.rows);
    }

    /// Puts a row of the small state in the place of the one of its key, as part of the batch; `None`
    /// removes that.
    pub fn set_small(&mut self, bucket: Bucket, key: &[u8], value: Option<&[u8]>) {
        LogRow::Small(bucket, key, value).encode(&mut self.rows);
        Arc::make_mut(&mut self.view.small).set(bucket, key, value);
    }

    /// Counts a command that changed something without a revision: etcd's raft index.
    pub fn count_command(&mut self) {
        self.decided.index += 1;
    }

    /// Ends a txn: `revision` is the newest from here on.
    pub fn advance_to(&mut self, revision: u64) {
        assert!(revision >= self.decided.revision, "history runs on");
        if revision > self.decided.revision {
            self.decided.revision = revision;
            self.count_command();
        }
    }

    /// Raises the floor to `revision`, as part of the batch.
    pub fn raise_floor(&mut self, revision: u64) {
        assert!(Some(revision) > self.decided.floor, "the floor only rises");
        assert!(
            revision <= self.decided.revision,
            "the floor is no future revision"
        );
        self.decided.floor = Some(revision);
        self.view.floor = Some(revision);
        LogRow::Floor(revision).encode(&mut self.rows);
        self.count_command();
    }

    /// Bytes that the batch takes in the log.
    pub fn batch_bytes(&self) -> usize {
        self.rows.len()
    }

    /// Puts the batch on disk. After [`Error::NoSpace`] the batch can be taken back; any other
    /// error is the end.
    pub fn commit(&mut self) -> Result<(), Error> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.decided.batch = self.log.append(self.decided.index, &self.rows)?;
        self.logged_bytes += self.rows.len();
        self.rows.clear();
        self.rows.shrink_to(ROWS_KEPT_BYTES);
        Ok(())
    }

    /// Shows the batch to readers.
    pub fn publish(&mut self) {
        if self.decided != self.committed {
            self.committed = self.decided;
            let Progress {
                revision,
                floor,
                index,
                ..
            } = self.committed;
            let small = Arc::clone(&self.view.small);
            self.views.update(|view| {
                view.small = small;
                view.revision = revision;
                view.floor = floor;
                view.index = index;
                view.active_leases = view.active.leases_len();
            });
        }
    }

    /// Takes the batch back, which was not committed.
    pub fn take_back(&mut self) {
        self.view.active.truncate(self.changes_before);
        self.view.active.truncate_leases(self.leases_before);
        self.rows.clear();
        self.decided = self.committed;
        self.view.floor = self.committed.floor;
        self.view.small = Arc::clone(&self.views.current.load().small);
    }

    /// Whether the active memtable should be sealed by its size, or that of its log.
    pub fn is_due(&self) -> bool {
        self.view.active.bytes().max(self.logged_bytes) >= self.flush_bytes
    }

    /// Whether no more should be taken until a flush is done.
    pub fn is_overdue(&self) -> bool {
        self.view.active.bytes().max(self.logged_bytes) >= 2 * self.flush_bytes
    }

    /// Whether anything is logged that the tables lack.
    pub fn has_unsettled(&self) -> bool {
        self.logged_bytes > 0
    }

    /// Seals the active memtable between two batches, and begins another; `None` while the one
    /// before is still being flushed.
    pub fn seal(&mut self) -> Option<Sealed> {
        assert_eq!(self.decided, self.committed, "sealed between two batches");
        self.begin_batch();
        if self.view.sealed.is_some() {
            return None;
        }
        let memtable = Arc::clone(&self.view.active);
        let active = Arc::new(Memtable::default());
        self.views.update(|view| {
            view.active = active;
            view.active_leases = 0;
            view.sealed = Some(Arc::clone(&memtable));
        });
        self.logged_bytes = 0;
        self.begin_batch();
        Some(Sealed {
            memtable,
            upto: self.committed,
            small: Arc::clone(&self.view.small),
        })
    }
}

/// A store that no process has open.
#[derive(Debug)]
pub struct Stopped {
    /// The newest state.
    pub view: View,
    /// Who the store is.
    pub identity: Identity,
    /// How often it was opened.
    pub term: u64,
    /// Closed last: the view reads from it.
    _database: Database,
}

/// Reads what the log holds beyond the tables, and changes neither.
pub fn read_stopped(
    data: &Arc<dyn Disk>,
    log_disk: &Arc<dyn Disk>,
    cache_bytes: usize,
) -> Result<Stopped, Error> {
    let database = Database::open(data.open(DATABASE_FILE)?, cache_bytes)?;
    let reader = database.reader()?;
    refuse_lost_log(&reader.meta, log_disk.as_ref())?;
    let mut replayed = Replayed::onto(&reader)?;
    Log::read(log_disk.as_ref(), reader.meta.applied_batch, &mut |batch| {
        Ok(replayed.take(&batch)?)
    })?;
    let identity = Identity::of(&reader.meta);
    let term = replayed.decided.term;
    let view = replayed.into_view(reader);
    Ok(Stopped {
        view,
        identity,
        term,
        _database: database,
    })
}

/// A log that was begun always has a file, so without one what it held is lost, or is elsewhere.
fn refuse_lost_log(meta: &Meta, log_disk: &dyn Disk) -> Result<(), Error> {
    let has_log = log_disk.list()?.iter().any(|name| log::is_segment(name));
    if meta.log_begun && !has_log {
        return Err(Damaged("the log's files are missing").into());
    }
    Ok(())
}

/// Removes the log of a store that no process has open, and all of whose log the tables hold; changes
/// what `meta` says besides. What a stop leaves of this is no store.
pub fn forget_log(settings: &Settings, change: impl FnOnce(&mut Meta)) -> Result<(), Error> {
    let file = settings.data.open(DATABASE_FILE)?;
    let database = Database::open(file, settings.cache_bytes)?;
    database.update_meta(|meta| {
        meta.log_begun = false;
        meta.applied_batch = 0;
        change(meta);
    })?;
    for name in settings.log.list()? {
        if log::is_segment(&name) || name == space::RESERVE_FILE {
            settings.log.remove(&name)?;
        }
    }
    Ok(settings.log.sync_dir()?)
}

/// Opens the log, and replays what it holds beyond the tables.
fn open_log(settings: &Settings, reader: &Reader) -> Result<(Log, Replayed), Error> {
    let mut replayed = Replayed::onto(reader)?;
    let log_settings = log::Settings {
        segment_bytes: settings.segment_bytes,
    };
    let log = Log::open(
        Arc::clone(&settings.log),
        log_settings,
        reader.meta.applied_batch,
        &mut |batch| Ok(replayed.take(&batch)?),
    )?;
    Ok((log, replayed))
}

/// What the log holds beyond the tables; nothing of it is judged again.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// Changes and leases.
    pub memtable: Memtable,
    /// The small state, whole.
    pub small: Small,
    /// How far it goes.
    pub decided: Progress,
}

impl Replayed {
    /// Nothing, of a log with nothing before it.
    pub fn from_the_first() -> Replayed {
        Replayed {
            memtable: Memtable::default(),
            small: Small::default(),
            decided: Progress::of(&Meta::new(0, 0, Vec::new())),
        }
    }

    /// Nothing, yet, of what is behind the tables.
    pub fn onto(reader: &Reader) -> Result<Replayed, Error> {
        Ok(Replayed {
            memtable: Memtable::default(),
            small: reader.small()?,
            decided: Progress::of(&reader.meta),
        })
    }

    /// The first view of the store.
    fn into_view(self, reader: Reader) -> View {
        let decided = self.decided;
        View {
            revision: decided.revision,
            floor: decided.floor,
            index: decided.index,
            small: Arc::new(self.small),
            active_leases: self.memtable.leases_len(),
            active: Arc::new(self.memtable),
            sealed: None,
            settled: Arc::new(reader),
        }
    }

    /// Takes the decisions of the next batch.
    pub fn take(&mut self, batch: &log::Batch<'_>) -> Result<(), Damaged> {
        let decided = &mut self.decided;
        let rest = &mut &batch.rows[..];
        // The last change of this batch: a txn never spans two.
        let mut last = None;
        while !rest.is_empty() {
            match LogRow::take(rest)? {
                LogRow::Change(revision, row) => {
                    let next_txn = revision.main == decided.revision + 1 && revision.sub == 0;
                    let same_txn = last.is_some_and(|last: Revision| {
                        revision.main == last.main && revision.sub == last.sub + 1
                    });
                    if !next_txn && !same_txn {
                        return Err(Damaged("history does not run on in the log"));
                    }
                    last = Some(revision);
                    decided.revision = revision.main;
                    self.memtable.push(Change::from_log(revision, &row)?);
                }
                LogRow::Floor(floor) => {
                    if Some(floor) <= decided.floor || floor > decided.revision {
                        return Err(Damaged("the log has a floor out of place"));
                    }
                    decided.floor = Some(floor);
                }
                LogRow::Term(term) => decided.term = term,
                LogRow::Lease(id, row) => self.memtable.push_lease(id, Some(row)),
                LogRow::Revoke(id) => self.memtable.push_lease(id, None),
                LogRow::Left(lease) => {
                    if last.is_none() {
                        return Err(Damaged("a key leaves a lease in no change"));
                    }
                    self.memtable.leave(lease);
                }
                LogRow::Served(millis) => {
                    if millis < decided.served {
                        return Err(Damaged("the server's time goes back in the log"));
                    }
                    decided.served = millis;
                }
                LogRow::Small(bucket, key, value) => self.small.set(bucket, key, value),
            }
        }
        decided.batch = batch.number;
        decided.index = batch.index;
        Ok(())
    }
}

fn open_database(settings: &Settings, identity: &Identity) -> Result<Database, Error> {
    let disk = &settings.data;
    let names = disk.list()?;
    let exists = |name: &str| names.iter().any(|other| other == name);
    if exists(NEW_DATABASE_FILE) {
        disk.remove(NEW_DATABASE_FILE)?;
    }
    if !exists(DATABASE_FILE) {
        if settings
            .log
            .list()?
            .iter()
            .any(|name| log::is_segment(name))
        {
            return Err(Damaged("the log is there, but not the database").into());
        }
        let meta = Meta::new(
            identity.cluster_id,
            identity.member_id,
            identity.peer_urls.clone(),
        );
        let file = disk.create(NEW_DATABASE_FILE, 0)?;
        drop(Database::create(
            Arc::clone(&file),
            settings.cache_bytes,
            &meta,
        )?);
        file.sync()?;
        disk.rename(NEW_DATABASE_FILE, DATABASE_FILE)?;
    }
    // Always: a process that was killed may have renamed it and not synced.
    disk.sync_dir()?;
    Database::open(disk.open(DATABASE_FILE)?, settings.cache_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::record::Record;

    fn replay_changes(places: &[(u64, u32)]) -> Result<u64, Damaged> {
        let mut rows = Vec::new();
        for &(main, sub) in places {
            let at = Revision { main, sub };
            let change = Change::new(at, &Record::tombstone(b"k"), None);
            LogRow::Change(at, change.history_row()).encode(&mut rows);
        }
        let mut replayed = Replayed::from_the_first();
        let batch = log::Batch {
            number: 1,
            index: 1,
            rows: &rows,
        };
        replayed.take(&batch)?;
        Ok(replayed.decided.revision)
    }

    #[test]
    fn a_batch_in_which_history_does_not_run_on_is_damage() {
        assert_eq!(replay_changes(&[(2, 0), (2, 1), (3, 0)]), Ok(3));
        let broken: [&[(u64, u32)]; 5] = [
            &[(3, 0)],
            &[(2, 1)],
            &[(2, 0), (2, 0)],
            &[(2, 0), (2, 2)],
            &[(2, 0), (2, 1), (2, 1)],
        ];
        for places in broken {
            let replayed = replay_changes(places);
            assert!(replayed.is_err(), "{places:?}: {replayed:?}");
        }
        // Of the revision before the batch, but a txn never spans batches.
        assert!(replay_changes(&[(1, 1)]).is_err());
    }
}
