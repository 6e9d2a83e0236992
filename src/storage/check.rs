//! The proof that the files agree.
//!
//! Looks at every row of the tables and every batch of the log, and says of the first that should
//! not be there what is wrong with it. What it proves is what docs/format.md promises:
//! - `history` and `index` have a row each for every version, saying the same.
//! - The versions of a key form whole generations, cut only by compaction.
//! - What compaction at `meta.swept` removes is gone, and the floor is not above history.
//! - `meta` counts rows and bytes right.
//! - The log begins where the tables end, and history runs on in it.

use std::fmt;
use std::sync::Arc;

use super::disk::Disk;
use super::log::{self, Log};
use super::memtable::Memtable;
use super::record::Record;
use super::redb::meta::Meta;
use super::redb::{Database, Progress, REVISION_BYTES, Reader};
use super::revision::Revision;
use super::row::{HistoryRow, Version};
use super::store::{self, DATABASE_FILE};
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
    /// Bytes at the end of the log that no whole batch holds: a write that a crash cut off.
    pub torn_bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the store is sound")?;
        writeln!(f, "  versions in the tables   {}", self.settled)?;
        writeln!(f, "  changes in the log       {}", self.unsettled)?;
        writeln!(f, "  newest revision          {}", self.revision)?;
        match self.floor {
            Some(floor) => write!(f, "  history begins at        {floor}")?,
            None => write!(f, "  history begins at        the first revision")?,
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
    log: &Arc<dyn Disk>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Finding> {
    let file = data.open(DATABASE_FILE).map_err(Error::from)?;
    let database = Database::open(file, CACHE_BYTES)?;
    let reader = database.reader()?;
    let meta = &reader.meta;
    if meta.floor > Some(meta.revision) || meta.swept > meta.floor.unwrap_or(0) {
        return wrong("meta", "the floor or the sweep is ahead of history");
    }
    let rows = 2 * meta.rows;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, rows);
    };
    check_history(&reader, &mut step)?;
    check_index(&reader, &mut step)?;
    let (unsettled, progress, torn_bytes) = check_log(log.as_ref(), &reader)?;
    Ok(Report {
        settled: meta.rows,
        unsettled,
        revision: progress.revision,
        floor: progress.floor,
        torn_bytes,
    })
}

/// Each row of history is well formed, in its place, and has its row in the index.
fn check_history(reader: &Reader, step: &mut impl FnMut()) -> Result<(), Finding> {
    let (mut rows, mut bytes) = (0, 0);
    let mut last: Option<Revision> = None;
    let mut finding = Ok(());
    reader.for_each_history(|at, value| {
        rows += 1;
        bytes += (REVISION_BYTES + value.len()) as u64;
        let checked = check_history_row(reader, last, at, value);
        last = Some(at);
        step();
        let sound = checked.is_ok();
        finding = checked;
        Ok(sound)
    })?;
    finding?;
    if (rows, bytes) != (reader.meta.rows, reader.meta.history_bytes) {
        return wrong("meta", "rows or bytes of history are not as counted");
    }
    Ok(())
}

fn check_history_row(
    reader: &Reader,
    last: Option<Revision>,
    at: Revision,
    value: &[u8],
) -> Result<(), Finding> {
    let place = format_args!("history {at}").to_string();
    let row = HistoryRow::decode(value)?;
    let record = Record::decode(row.record)?;
    let tombstone = record.version == 0;
    if at.main > reader.meta.revision {
        return wrong(place, "newer than the newest revision");
    }
    if row.stamp.is_some() != (at.sub == 0) {
        return wrong(
            place,
            "a stamp lies with the first change of a txn, and only there",
        );
    }
    if tombstone != row.tombstone || !tombstone && record.modified != at.main {
        return wrong(place, "the record contradicts its row");
    }
    let whole_txn_kept = Some(at.main) > Some(reader.meta.swept);
    let runs_on = match last {
        Some(last) if last.main == at.main => at.sub == last.sub + 1,
        Some(last) => at.main == last.main + 1 && at.sub == 0,
        None => at.sub == 0,
    };
    if whole_txn_kept && last.is_some_and(|last| last.main > reader.meta.swept) && !runs_on {
        return wrong(place, "a change before it is missing");
    }
    match reader.index_row(record.key, at)? {
        None => wrong(place, "the index has no row for it"),
        Some(indexed) if indexed != Version::of(&record, at, tombstone) => {
            wrong(place, "the index says something else")
        }
        Some(_) => Ok(()),
    }
}

/// The versions of each key form whole generations. With as many rows as history, each of which
/// has one here, there is none too many.
fn check_index(reader: &Reader, step: &mut impl FnMut()) -> Result<(), Finding> {
    let (mut rows, mut bytes) = (0, 0);
    let mut newer: Option<(Vec<u8>, Version)> = None;
    let mut finding = Ok(());
    reader.for_each_index(|key, at, value| {
        rows += 1;
        bytes += (key.len() + REVISION_BYTES + value.len()) as u64;
        let version = Version::decode(at, value)?;
        let checked = match &newer {
            Some((newer_key, newer)) if newer_key == key => {
                check_follows(newer, &version, reader.meta.swept)
            }
            Some((_, oldest)) => check_oldest(oldest, &reader.meta),
            None => Ok(()),
        };
        newer = Some((key.to_vec(), version));
        step();
        let sound = checked.is_ok();
        finding = checked;
        Ok(sound)
    })?;
    finding?;
    if let Some((_, oldest)) = &newer {
        check_oldest(oldest, &reader.meta)?;
    }
    if (rows, bytes) != (reader.meta.rows, reader.meta.index_bytes) {
        return wrong("meta", "rows or bytes of the index are not as counted");
    }
    Ok(())
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

/// The log goes on where the tables end, and each of its changes continues its key.
fn check_log(disk: &dyn Disk, reader: &Reader) -> Result<(u64, Progress, u64), Finding> {
    let memtable = Memtable::default();
    let mut progress = Progress::of(&reader.meta);
    let summary = Log::read(disk, reader.meta.applied_batch, &mut |batch: log::Batch<
        '_,
    >| {
        Ok(store::replay(&memtable, &mut progress, &batch)?)
    });
    let summary = summary.map_err(Error::from)?;
    let mut finding = Ok(());
    let mut last: Option<(Vec<u8>, Version)> = None;
    memtable.for_each_by_key(|key, version| -> Result<(), Finding> {
        let settled;
        let before = match &last {
            Some((last_key, before)) if last_key == key => Some(before),
            _ => {
                settled = reader.newest(key, u64::MAX)?;
                settled.as_ref()
            }
        };
        if finding.is_ok() && !continues(version, before) {
            let place = format!("log, version {}", version.revision);
            finding = wrong(place, "it does not follow the version before it");
        }
        last = Some((key.to_vec(), *version));
        Ok(())
    })?;
    finding?;
    Ok((memtable.len() as u64, progress, summary.torn_bytes))
}
