//! The proof that the files agree.
//!
//! Looks at every row of the tables and every batch of the log, and says of the first that should
//! not be there what is wrong with it. What it proves is what docs/format.md promises:
//! - `history` and `index` have a row each for every version, saying the same; beyond the revision
//!   that the tables have come to, rows stand in the log as well.
//! - The versions of a key form whole generations, cut only by compaction.
//! - What compaction at `meta.swept` removes is gone, and the floor is not above history.
//! - `meta` counts rows and bytes right.
//! - `attached` has a row for every key whose newest version names a lease, and no other. That the
//!   lease is there is counted, not demanded: an import can bring keys whose lease is not.
//! - The log begins where the tables end, and history runs on in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::disk::Disk;
use super::log::{self, Log};
use super::memtable::{self, Memtable};
use super::record::{Record, key_of};
use super::redb::meta::Meta;
use super::redb::{Database, LEASE_ID_BYTES, REVISION_BYTES, Reader};
use super::revision::Revision;
use super::row::{Change, HistoryRow, Version};
use super::small::Small;
use super::store::{DATABASE_FILE, Replayed};
use super::{Damaged, Error};

/// Memory for pages of the database while it is checked.
const CACHE_BYTES: usize = 64 << 20;

/// What was found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Versions in the tables.
    pub settled: u64,
    /// Changes in the log that the tables lack.
    pub unsettled: u64,
    /// The newest revision.
    pub revision: u64,
    /// Where history begins.
    pub floor: Option<u64>,
    /// Leases that are granted.
    pub leases: u64,
    /// Keys that name a lease that is not there. Only an import brings such: etcd keeps them for
    /// ever, and so does the store.
    pub strays: u64,
    /// The small state.
    pub small: Small,
    /// Bytes at the end of the log that no whole batch holds: a write that a crash cut off.
    pub torn_bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the store is sound")?;
        writeln!(f, "  versions in the tables   {}", self.settled)?;
        writeln!(f, "  changes in the log       {}", self.unsettled)?;
        writeln!(f, "  newest revision          {}", self.revision)?;
        writeln!(f, "  leases                   {}", self.leases)?;
        match self.floor {
            Some(floor) => write!(f, "  history begins at        {floor}")?,
            None => write!(f, "  history begins at        the first revision")?,
        }
        if self.strays > 0 {
            write!(f, "\n  keys of leases long gone {}", self.strays)?;
        }
        if self.torn_bytes > 0 {
            write!(f, "\n  torn bytes in the log    {}", self.torn_bytes)?;
        }
        Ok(())
    }
}

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// The files could not be read as what they are.
    #[error(transparent)]
    Unreadable(#[from] Error),
    /// Two of them contradict one another, or a promise of the format.
    #[error("{place}: {what}")]
    Wrong {
        /// The row or the batch.
        place: String,
        /// What should not be.
        what: &'static str,
    },
}

impl From<Damaged> for Finding {
    fn from(damaged: Damaged) -> Finding {
        Finding::Unreadable(damaged.into())
    }
}

fn wrong<T>(place: impl fmt::Display, what: &'static str) -> Result<T, Finding> {
    let place = place.to_string();
    Err(Finding::Wrong { place, what })
}

/// Checks the store in two folders that no process has open. `progress` is told of rows done, of
/// all rows.
pub fn check(
    data: &Arc<dyn Disk>,
    log_disk: &Arc<dyn Disk>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Finding> {
    let file = data.open(DATABASE_FILE).map_err(Error::from)?;
    let database = Database::open(file, CACHE_BYTES)?;
    let reader = &database.reader()?;
    let meta = &reader.meta;
    if meta.floor > Some(meta.revision) || meta.swept > meta.floor.unwrap_or(0) {
        return wrong("meta", "the floor or the sweep is ahead of history");
    }
    if meta.log_begun
        && !log_disk
            .list()
            .map_err(Error::from)?
            .iter()
            .any(|name| log::is_segment(name))
    {
        return wrong("log", "its files are missing");
    }
    let mut replayed = Replayed::onto(reader)?;
    let summary = Log::read(log_disk.as_ref(), meta.applied_batch, &mut |batch| {
        Ok(replayed.take(&batch)?)
    });
    let Replayed {
        memtable,
        decided: upto,
        small,
    } = replayed;
    let summary = summary.map_err(Error::from)?;
    let pairs = memtable.attachments().into_iter();
    let tables = Tables {
        reader,
        unsettled: unsettled(&memtable),
        pairs: pairs
            .map(|(lease, record, together)| ((lease, key_of(&record).to_vec()), together))
            .collect(),
    };
    let rows = meta.history_rows + meta.index_rows + meta.attached_rows;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, rows);
    };
    let in_history = tables.check_history(&mut step)?;
    let indexed = tables.check_index(&mut step)?;
    if in_history != indexed.rows {
        return wrong("index", "it has rows that history lacks");
    }
    let (leases, strays) = tables.check_leases(&memtable, indexed.held, &mut step)?;
    check_log(&memtable, reader)?;
    Ok(Report {
        settled: in_history,
        unsettled: memtable.len() as u64,
        revision: upto.revision,
        floor: upto.floor,
        leases,
        strays,
        small,
        torn_bytes: summary.torn_bytes,
    })
}

/// The changes of the log that the tables need not have yet.
fn unsettled(memtable: &Memtable) -> BTreeMap<Revision, Change> {
    let mut changes = BTreeMap::new();
    let mut place = 0;
    while place < memtable.len() {
        place += memtable.with_run(place, |run| {
            let run_changes = run.iter().map(|change| (change.revision, change.clone()));
            changes.extend(run_changes);
            run.len()
        });
    }
    changes
}

/// The tables, and what a flush that a crash cut short may have put into them already.
struct Tables<'a> {
    reader: &'a Reader,
    unsettled: BTreeMap<Revision, Change>,
    /// Leases and keys that changes in the log put together or took apart: a flush may have
    /// written of them already. Whether they are together after the last.
    pairs: BTreeMap<(i64, Vec<u8>), bool>,
}

/// What the index holds up to the revision that the tables have come to.
struct Indexed {
    rows: u64,
    /// Keys whose newest version names a lease, but for those of which the log knows more.
    held: u64,
}

impl Tables<'_> {
    /// Each row of history is well formed, in its place, and has its row in the index. Answers how
    /// many there are up to the revision that the tables have come to.
    fn check_history(&self, step: &mut impl FnMut()) -> Result<u64, Finding> {
        let meta = &self.reader.meta;
        let (mut rows, mut bytes, mut settled) = (0, 0, 0);
        let mut last: Option<Revision> = None;
        let mut finding = Ok(());
        self.reader.for_each_history(|at, value| {
            rows += 1;
            bytes += (REVISION_BYTES + value.len()) as u64;
            let checked = if at.main > meta.revision {
                self.check_unfinished(at, value)
            } else {
                settled += 1;
                let checked = self.check_history_row(last, at, value);
                last = Some(at);
                checked
            };
            step();
            let sound = checked.is_ok();
            finding = checked;
            Ok(sound)
        })?;
        finding?;
        let newest = last.map_or(1, |last| last.main);
        if newest < meta.revision && meta.revision > meta.swept {
            return wrong("history", "its newest changes are missing");
        }
        if (rows, bytes) != (meta.history_rows, meta.history_bytes) {
            return wrong("meta", "rows or bytes of history are not as counted");
        }
        Ok(settled)
    }

    fn check_history_row(
        &self,
        last: Option<Revision>,
        at: Revision,
        value: &[u8],
    ) -> Result<(), Finding> {
        let swept = self.reader.meta.swept;
        let place = format!("history {at}");
        let row = HistoryRow::decode(value)?;
        let record = Record::decode(row.record)?;
        let tombstone = record.version == 0;
        if row.stamp.is_some() != (at.sub == 0) {
            return wrong(
                place,
                "a stamp lies with the first change of a txn, and only there",
            );
        }
        if tombstone != row.tombstone || !tombstone && record.modified != at.main {
            return wrong(place, "the record contradicts its row");
        }
        let runs_on = match last {
            Some(last) if last.main == at.main => at.sub == last.sub + 1,
            Some(last) if last.main > swept => at.main == last.main + 1 && at.sub == 0,
            // Revision 1 is the empty store.
            _ => at.main == swept.max(1) + 1 && at.sub == 0,
        };
        if at.main > swept && !runs_on {
            return wrong(place, "a change before it is missing");
        }
        match self.reader.index_row(record.key, at)? {
            None => wrong(place, "the index has no row for it"),
            Some(indexed) if indexed != Version::of(&record, at) => {
                wrong(place, "the index says something else")
            }
            Some(_) => Ok(()),
        }
    }

    /// A row of history beyond the revision that the tables have come to stands in the log too.
    fn check_unfinished(&self, at: Revision, value: &[u8]) -> Result<(), Finding> {
        let row = HistoryRow::decode(value)?;
        match self.unsettled.get(&at) {
            Some(change) if change.history_row() == row => Ok(()),
            _ => wrong(
                format!("history {at}"),
                "newer than the tables, and not in the log",
            ),
        }
    }

    /// The versions of each key form whole generations. With as many rows as history, each of
    /// which has one here, there is none too many.
    fn check_index(&self, step: &mut impl FnMut()) -> Result<Indexed, Finding> {
        let meta = &self.reader.meta;
        let (mut rows, mut bytes, mut settled, mut held) = (0, 0, 0, 0);
        let mut newer: Option<(Vec<u8>, Version)> = None;
        let mut finding = Ok(());
        self.reader.for_each_index(|key, at, value| {
            rows += 1;
            bytes += (key.len() + REVISION_BYTES + value.len()) as u64;
            step();
            let version = Version::decode(at, value)?;
            let checked = if at.main > meta.revision {
                match self.unsettled.get(&at) {
                    Some(change) if change.key() == key && change.version() == version => Ok(()),
                    _ => wrong(
                        format!("index {at}"),
                        "newer than the tables, and not in the log",
                    ),
                }
            } else {
                settled += 1;
                let checked = match &newer {
                    Some((newer_key, newer)) if newer_key == key => {
                        check_follows(newer, &version, meta.swept)
                    }
                    before => {
                        held += u64::from(self.is_held(key, &version));
                        let oldest = before.as_ref().map(|(_, oldest)| oldest);
                        let checked = oldest.map_or(Ok(()), |oldest| check_oldest(oldest, meta));
                        checked.and_then(|()| self.check_attached(key, &version))
                    }
                };
                newer = Some((key.to_vec(), version));
                checked
            };
            let sound = checked.is_ok();
            finding = checked;
            Ok(sound)
        })?;
        finding?;
        if let Some((_, oldest)) = &newer {
            check_oldest(oldest, meta)?;
        }
        if (rows, bytes) != (meta.index_rows, meta.index_bytes) {
            return wrong("meta", "rows or bytes of the index are not as counted");
        }
        Ok(Indexed {
            rows: settled,
            held,
        })
    }

    /// Whether `attached` must have a row for the key with this newest version.
    fn is_held(&self, key: &[u8], newest: &Version) -> bool {
        let lease = newest.lease;
        lease != 0 && !self.pairs.contains_key(&(lease, key.to_vec()))
    }

    fn check_attached(&self, key: &[u8], newest: &Version) -> Result<(), Finding> {
        if self.is_held(key, newest) && !self.reader.is_attached(newest.lease, key)? {
            let place = format!("index, version {}", newest.revision);
            return wrong(place, "its lease does not have the key");
        }
        Ok(())
    }

    /// Every key that has a lease is attached to it, of which there are `held`; no other is. Answers
    /// how many leases there are, and how many keys have one that is not there.
    fn check_leases(
        &self,
        memtable: &Memtable,
        held: u64,
        step: &mut impl FnMut(),
    ) -> Result<(u64, u64), Finding> {
        let meta = &self.reader.meta;
        let (mut leases, mut rows, mut bytes) = (BTreeSet::new(), 0, 0);
        self.reader.for_each_lease(|id, row| {
            rows += 1;
            bytes += (LEASE_ID_BYTES + row.to_vec().len()) as u64;
            leases.insert(id);
            Ok(())
        })?;
        if rows != meta.lease_rows {
            return wrong("meta", "rows of leases are not as counted");
        }
        for (id, row) in memtable.leases(0, usize::MAX) {
            match row {
                Some(_) => leases.insert(id),
                None => leases.remove(&id),
            };
        }
        let (mut attached_rows, mut attached, mut strays) = (0, 0, 0);
        self.reader.for_each_attached(None, |lease, key| {
            attached_rows += 1;
            bytes += (LEASE_ID_BYTES + key.len()) as u64;
            step();
            if !self.pairs.contains_key(&(lease, key.to_vec())) {
                attached += 1;
                strays += u64::from(!leases.contains(&lease));
            }
            Ok(())
        })?;
        for ((lease, _), together) in &self.pairs {
            strays += u64::from(*together && !leases.contains(lease));
        }
        if attached != held {
            return wrong("attached", "it has rows of keys that are not held so");
        }
        if (attached_rows, bytes) != (meta.attached_rows, meta.lease_bytes) {
            return wrong(
                "meta",
                "rows of attached or bytes of leases are not as counted",
            );
        }
        Ok((leases.len() as u64, strays))
    }
}

/// Whether `newer` can come right after `older`.
fn check_follows(newer: &Version, older: &Version, swept: u64) -> Result<(), Finding> {
    let place = format!("index, versions {} and {}", older.revision, newer.revision);
    if newer.revision.main <= swept {
        return wrong(place, "the older one should have been swept");
    }
    if !continues(newer, Some(older)) {
        return wrong(place, "they do not follow one another");
    }
    Ok(())
}

/// Whether nothing is missing before the oldest version of a key.
fn check_oldest(oldest: &Version, meta: &Meta) -> Result<(), Finding> {
    let place = format!("index, version {}", oldest.revision);
    let main = oldest.revision.main;
    if main > meta.swept && !continues(oldest, None) {
        return wrong(place, "the version before it is missing");
    }
    if main < meta.swept && oldest.tombstone {
        return wrong(place, "the tombstone should have been swept");
    }
    Ok(())
}

/// Whether `version` can come right after `before`, the version or tombstone that its key had.
fn continues(version: &Version, before: Option<&Version>) -> bool {
    let alive = before.filter(|before| !before.tombstone);
    match alive {
        _ if version.tombstone => alive.is_some(),
        Some(before) => version.version == before.version + 1 && version.create == before.create,
        None => version.version == 1 && version.create == version.revision.main,
    }
}

/// Each change of the log continues its key.
fn check_log(memtable: &Memtable, reader: &Reader) -> Result<(), Finding> {
    let mut last: Option<(Arc<[u8]>, Version)> = None;
    loop {
        let from = last.as_ref().map(|(record, _)| key_of(record));
        let versions = memtable.versions_behind(from, memtable::CHUNK);
        if versions.is_empty() {
            return Ok(());
        }
        last = None;
        for (record, version) in versions {
            let key = key_of(&record);
            let before = match &last {
                Some((last, before)) if key_of(last) == key => Some(*before),
                _ => reader.newest(key, reader.meta.revision)?,
            };
            if !continues(&version, before.as_ref()) {
                let place = format!("log, version {}", version.revision);
                return wrong(place, "it does not follow the version before it");
            }
            last = Some((record, version));
        }
    }
}
