//! The settled state: what redb holds. The only place that names redb.
//!
//! ```text
//! memtable ─► flush ─► history, leases, index, then meta   in slices, each a durable txn
//!   floor ─► sweep ─► history, index, meta                in slices, each a durable txn
//! ```
//! What holds after every commit, and `storage::check` proves:
//! - Up to `meta.revision`, `history` and `index` have a row each for every version: neither has
//!   one alone. What lies beyond is from a flush that is under way, or that a crash cut short,
//!   and stands in the log as well.
//! - `leases` and `attached` say what held at `meta.revision`, but for rows that such a flush has
//!   changed: those say what the log says.
//! - `meta` counts all rows and bytes, and names the last batch of the log that they hold.
//! - Rows that compaction at `meta.swept` removes are gone.
//!
//! One background thread writes; any thread reads, through a [`Reader`] that sees one commit.

pub mod disk;
mod error;
pub mod meta;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use redb::{
    Cursor, Durability, Key, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, Value,
};

use self::disk::{Backend, Counters};
use self::meta::Meta;
use super::disk::DiskFile;
use super::memtable::Memtable;
use super::record::{Record, key_of};
use super::revision::Revision;
use super::row::{HistoryRow, LeaseRow, Version};
use super::small::{Bucket, Small};
use super::{Damaged, Error};

/// Rows of `history` that one slice of the sweep looks at, at least; it ends with a whole txn.
pub const SLICE_ROWS: usize = 200_000;

/// Older versions that a read steps over before it seeks past them.
const STEPS_MAX: usize = 8;

/// Size of redb's pages.
const PAGE_BYTES: usize = 4096;

/// Bytes that a `history` row's key takes, and an `index` row's revision.
pub const REVISION_BYTES: usize = 12;

/// Bytes that a lease's id takes as a key.
pub const LEASE_ID_BYTES: usize = 8;

/// What one row of `leases` counts for in a slice of a flush, in bytes: they lie densely.
const LEASE_SLICE_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct Database {
    /// `None` after it could not be opened anew for want of space.
    redb: Option<redb::Database>,
    file: Arc<dyn DiskFile>,
    counters: Arc<Counters>,
    cache_bytes: usize,
    /// Whether commits save what a quick start after a crash needs.
    quick_repair: bool,
    /// Every reader holds one too.
    alive: Arc<()>,
}

impl Database {
    /// Makes the tables in an empty file, which counts for nothing until it is whole and closed.
    pub fn create(
        file: Arc<dyn DiskFile>,
        cache_bytes: usize,
        meta: &Meta,
    ) -> Result<Database, Error> {
        let mut database = Database::open(file, cache_bytes)?;
        database.quick_repair = false;
        let txn = database.begin_write()?;
        txn.open_table(tables::HISTORY)?;
        txn.open_table(tables::INDEX)?;
        txn.open_table(tables::LEASES)?;
        txn.open_table(tables::ATTACHED)?;
        txn.open_table(tables::SMALL)?;
        meta.write(&mut txn.open_table(tables::META)?)?;
        txn.commit()?;
        Ok(database)
    }

    /// Opens the file's tables. After a crash this is as quick as after a clean stop.
    pub fn open(file: Arc<dyn DiskFile>, cache_bytes: usize) -> Result<Database, Error> {
        let counters = Arc::new(Counters::default());
        Ok(Database {
            redb: Some(open_redb(&file, &counters, cache_bytes)?),
            file,
            counters,
            cache_bytes,
            quick_repair: true,
            alive: Arc::default(),
        })
    }

    /// Closes it, as dropping it does, and tells of any failure. The file ends with its last page
    /// in use then.
    pub fn close(mut self) -> Result<(), Error> {
        match self.redb.take() {
            Some(redb) => Ok(redb.close()?),
            None => Err(Error::Closed),
        }
    }

    /// Closes the database and opens it again: redb answers nothing more once an I/O error has
    /// met it, a full disk included. Readers of before get [`Error::Closed`], and so does every
    /// call until opening succeeds.
    pub fn reopen(&mut self) -> Result<(), Error> {
        // What it did not commit is lost with it: the memtable and the log still hold that.
        self.redb = None;
        self.counters.full.store(false, Ordering::Relaxed);
        self.redb = Some(open_redb(&self.file, &self.counters, self.cache_bytes)?);
        Ok(())
    }

    fn redb(&self) -> Result<&redb::Database, Error> {
        self.redb.as_ref().ok_or(Error::Closed)
    }

    /// Whether anybody holds a reader of it, who would get [`Error::Closed`] if it were dropped.
    pub fn is_read(&self) -> bool {
        Arc::strong_count(&self.alive) > 1
    }

    /// Length of the file, in bytes.
    pub fn file_bytes(&self) -> Result<u64, Error> {
        Ok(self.file.size()?)
    }

    /// Memory for pages, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// Whether it could not be opened anew.
    pub fn is_closed(&self) -> bool {
        self.redb.is_none()
    }

    /// Whether the last failure was a full disk.
    pub fn met_full_disk(&self) -> bool {
        self.counters.full.load(Ordering::Relaxed)
    }

    /// Whether the file failed, and not for want of space: then nothing of it is to be trusted.
    pub fn has_failed(&self) -> bool {
        self.counters.failed.load(Ordering::Relaxed)
    }

    /// The last commit, to read from.
    pub fn reader(&self) -> Result<Reader, Error> {
        let txn = self.redb()?.begin_read()?;
        Ok(Reader {
            meta: Meta::read(&txn.open_table(tables::META)?)?,
            file_bytes: self.file.allocated_bytes()?,
            counters: Arc::clone(&self.counters),
            _alive: Arc::clone(&self.alive),
            history: txn.open_table(tables::HISTORY)?,
            index: txn.open_table(tables::INDEX)?,
            leases: txn.open_table(tables::LEASES)?,
            attached: txn.open_table(tables::ATTACHED)?,
            small: txn.open_table(tables::SMALL)?,
        })
    }

    /// Writes another format's number into `meta`: what a newer program leaves behind, for tests.
    #[doc(hidden)]
    pub fn claim_format(&self, version: u64) -> Result<(), Error> {
        let txn = self.begin_write()?;
        txn.open_table(tables::META)?
            .insert("format", &version.to_be_bytes()[..])?;
        Ok(txn.commit()?)
    }

    /// Changes what `meta` says, and nothing else.
    pub fn update_meta(&self, change: impl FnOnce(&mut Meta)) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            change(&mut meta);
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    /// Moves all of `memtable` into the tables, and takes from `upto` how far the log, revision,
    /// floor and term had come when it was sealed, and what was the small state then.
    ///
    /// In slices, each a commit: redb writes pages twice when a commit has more of them than half
    /// its cache holds (measured over 1,000,000 random keys: 1410 bytes a put in one commit, 710
    /// in slices). First come the rows of `history`, in order of time, then what became of leases,
    /// then the rows of `index`, in order of keys, so that each page of it is in one slice; the
    /// last slice moves `meta.revision`. Until then rows of `history` and `index` are beyond it,
    /// and nobody looks there, and what `leases` and `attached` say is overruled by the memtable,
    /// which says the same; after a crash the next flush writes them again, as they were.
    pub fn flush(&self, memtable: &Memtable, upto: &Progress, small: &Small) -> Result<(), Error> {
        let slice_bytes = self.cache_bytes / 4;
        let mut place = 0;
        while place < memtable.len() {
            place = self.flush_history(memtable, place, slice_bytes)?;
        }
        self.flush_leases(memtable, slice_bytes)?;
        let mut rows = memtable.versions_behind(None, slice_bytes / PAGE_BYTES);
        loop {
            let last = rows.last().map(|(key, _)| Arc::clone(key));
            let next = match &last {
                Some(key) => memtable.versions_behind(Some(key_of(key)), slice_bytes / PAGE_BYTES),
                None => Vec::new(),
            };
            let upto = next.is_empty().then_some((upto, small));
            self.flush_index(&rows, upto)?;
            if next.is_empty() {
                return Ok(());
            }
            rows = next;
        }
    }

    /// Writes one slice of `history`, from the `place`-th change on; answers where it ended.
    fn flush_history(
        &self,
        memtable: &Memtable,
        mut place: usize,
        slice_bytes: usize,
    ) -> Result<usize, Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut history = txn.open_table(tables::HISTORY)?;
            let mut value = Vec::new();
            let mut bytes = 0;
            while bytes < slice_bytes {
                let begun = place;
                place += memtable.with_run(place, |run| -> Result<usize, Error> {
                    for change in run {
                        value.clear();
                        change.history_row().encode(&mut value);
                        let at = (change.revision.main, change.revision.sub);
                        let row_bytes = REVISION_BYTES + value.len();
                        if history.insert(at, &value[..])?.is_none() {
                            meta.history_rows += 1;
                            meta.history_bytes += row_bytes as u64;
                        }
                        bytes += row_bytes;
                    }
                    Ok(run.len())
                })?;
                if place == begun {
                    break;
                }
            }
            meta.write(&mut table)?;
        }
        txn.commit()?;
        Ok(place)
    }

    /// Writes what became of leases, and of which keys they have.
    fn flush_leases(&self, memtable: &Memtable, slice_bytes: usize) -> Result<(), Error> {
        let count = (slice_bytes / LEASE_SLICE_BYTES).max(1);
        for place in (0..memtable.leases_len()).step_by(count) {
            // In order of ids, and of each the last.
            let rows = memtable.leases(place, count);
            self.flush_lease_rows(rows.into_iter().collect())?;
        }
        for pairs in memtable
            .attachments()
            .chunks((slice_bytes / PAGE_BYTES).max(1))
        {
            self.flush_attached(pairs)?;
        }
        Ok(())
    }

    fn flush_lease_rows(&self, rows: BTreeMap<i64, Option<LeaseRow>>) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut leases = txn.open_table(tables::LEASES)?;
            for (id, row) in rows {
                let before = match row {
                    Some(row) => {
                        let value = row.to_vec();
                        meta.lease_rows += 1;
                        meta.lease_bytes += (LEASE_ID_BYTES + value.len()) as u64;
                        leases.insert(id, &value[..])?
                    }
                    None => leases.remove(id)?,
                };
                if let Some(before) = before {
                    meta.lease_rows -= 1;
                    meta.lease_bytes -= (LEASE_ID_BYTES + before.value().len()) as u64;
                }
            }
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    fn flush_attached(&self, pairs: &[(i64, Arc<[u8]>, bool)]) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut attached = txn.open_table(tables::ATTACHED)?;
            for (lease, record, together) in pairs {
                let row = (*lease, key_of(record));
                let row_bytes = (LEASE_ID_BYTES + row.1.len()) as u64;
                if *together && attached.insert(row, ())?.is_none() {
                    meta.attached_rows += 1;
                    meta.lease_bytes += row_bytes;
                } else if !together && attached.remove(row)?.is_some() {
                    meta.attached_rows -= 1;
                    meta.lease_bytes -= row_bytes;
                }
            }
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    /// Writes one slice of `index`; the last one also says how far the tables have come.
    fn flush_index(
        &self,
        rows: &[(Arc<[u8]>, Version)],
        upto: Option<(&Progress, &Small)>,
    ) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut index = txn.open_table(tables::INDEX)?;
            for (record, version) in rows {
                let key = key_of(record);
                let value = version.encode();
                let at = version.revision.encode_descending();
                if index.insert((key, &at), &value[..])?.is_none() {
                    meta.index_rows += 1;
                    meta.index_bytes += (key.len() + REVISION_BYTES + value.len()) as u64;
                }
            }
            if let Some((upto, small)) = upto {
                write_small(&txn, small)?;
                assert!(upto.batch >= meta.applied_batch, "the log runs on");
                assert!(upto.revision >= meta.revision, "history runs on");
                meta.applied_batch = upto.batch;
                meta.applied_index = upto.index;
                meta.revision = upto.revision;
                meta.floor = upto.floor;
                meta.term = upto.term;
                meta.served = upto.served;
            }
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    /// Adds rows to the end of `history`, in one commit: see [`crate::storage::bulk`] and
    /// [`crate::storage::defragment`].
    pub fn append_history(&self, rows: &[(Revision, Vec<u8>)]) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut history = txn.open_table(tables::HISTORY)?;
            for (at, value) in rows {
                history.insert((at.main, at.sub), &value[..])?;
                meta.history_rows += 1;
                meta.history_bytes += (REVISION_BYTES + value.len()) as u64;
            }
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    /// Adds rows to `leases`, likewise.
    pub fn append_leases(&self, rows: Vec<(i64, LeaseRow)>) -> Result<(), Error> {
        let some = |(id, row)| (id, Some(row));
        self.flush_lease_rows(rows.into_iter().map(some).collect())
    }

    /// Adds rows to the end of `attached`, likewise.
    pub fn append_attached(&self, rows: &[(i64, Vec<u8>)]) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut attached = txn.open_table(tables::ATTACHED)?;
            for (lease, key) in rows {
                attached.insert((*lease, &key[..]), ())?;
                meta.attached_rows += 1;
                meta.lease_bytes += (LEASE_ID_BYTES + key.len()) as u64;
            }
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    /// Makes the small state what `small` says.
    pub fn set_small(&self, small: &Small) -> Result<(), Error> {
        let txn = self.begin_write()?;
        write_small(&txn, small)?;
        Ok(txn.commit()?)
    }

    /// The same of `index`: key, descending revision, value. Anywhere in it, though pages are full
    /// only where all rows come in order.
    pub fn append_index(&self, rows: &[(Vec<u8>, [u8; 12], Vec<u8>)]) -> Result<(), Error> {
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut index = txn.open_table(tables::INDEX)?;
            for (key, at, value) in rows {
                index.insert((&key[..], at), &value[..])?;
                meta.index_rows += 1;
                meta.index_bytes += (key.len() + REVISION_BYTES + value.len()) as u64;
            }
            meta.write(&mut table)?;
        }
        Ok(txn.commit()?)
    }

    /// Completes a copy of `source` that has all of `history` and `index` up to its revision: adds
    /// the tables that a flush changes in place, and what `meta` says of all but those two.
    pub fn complete(&self, source: &Reader) -> Result<(), Error> {
        self.fill(tables::LEASES, &source.leases)?;
        self.fill(tables::ATTACHED, &source.attached)?;
        self.fill(tables::SMALL, &source.small)?;
        let (rows, bytes) = source.unfinished()?;
        let counts = self.reader()?.meta;
        let all = &source.meta;
        if counts.index_rows != counts.history_rows
            || counts.history_rows + rows != all.history_rows
            || counts.history_bytes + bytes != all.history_bytes
        {
            return Err(Damaged("a copy of the tables has not the rows that meta counts").into());
        }
        self.update_meta(|meta| {
            *meta = Meta {
                history_rows: counts.history_rows,
                history_bytes: counts.history_bytes,
                index_rows: counts.index_rows,
                index_bytes: counts.index_bytes,
                ..all.clone()
            };
        })
    }

    /// Fills an empty table with the rows of another, in order, in slices.
    fn fill<K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
        source: &ReadOnlyTable<K, V>,
    ) -> Result<(), Error> {
        let rows_max = (self.cache_bytes / PAGE_BYTES / 4).max(1);
        let mut rows = source.iter()?.peekable();
        while rows.peek().is_some() {
            let txn = self.begin_write()?;
            {
                let mut table = txn.open_table(table)?;
                for row in rows.by_ref().take(rows_max) {
                    let (key, value) = row?;
                    table.insert(key.value(), value.value())?;
                }
            }
            txn.commit()?;
        }
        Ok(())
    }

    /// Removes a slice of what compaction at the floor removes; `false` once nothing is left.
    ///
    /// Walks history from where the last slice ended, that txn included, up to the floor. A change
    /// supersedes at most one older version of its key, since what that one superseded is gone;
    /// a tombstone below the floor goes too, one at the floor stays until the next compaction (as
    /// etcd: script `compact`). So the work is that of the changes in between, not of the keys.
    pub fn sweep_slice(&self) -> Result<bool, Error> {
        let reader = self.reader()?;
        let floor = reader.meta.floor.unwrap_or(0);
        if reader.meta.swept >= floor {
            return Ok(false);
        }
        let Slice { victims, swept } = reader.slice(floor)?;
        let txn = self.begin_write()?;
        {
            let mut table = txn.open_table(tables::META)?;
            let mut meta = Meta::read(&table)?;
            let mut index = txn.open_table(tables::INDEX)?;
            let mut history = txn.open_table(tables::HISTORY)?;
            for (key, at) in victims.iter() {
                let value = index.remove((&key[..], &at.encode_descending()))?;
                let value = value.ok_or(Damaged("the index lacks a version"))?;
                let bytes = key.len() + REVISION_BYTES + value.value().len();
                meta.index_bytes -= bytes as u64;
            }
            let mut in_order: Vec<Revision> = victims.iter().map(|(_, at)| *at).collect();
            in_order.sort_unstable();
            for at in in_order {
                let value = history.remove((at.main, at.sub))?;
                let value = value.ok_or(Damaged("history lacks a version of the index"))?;
                meta.history_bytes -= (REVISION_BYTES + value.value().len()) as u64;
            }
            meta.history_rows -= victims.len() as u64;
            meta.index_rows -= victims.len() as u64;
            meta.swept = swept;
            meta.write(&mut table)?;
        }
        txn.commit()?;
        Ok(swept < floor)
    }

    /// Every commit is durable, and saves what a quick start after a crash needs, unless nothing
    /// would start from the file.
    fn begin_write(&self) -> Result<redb::WriteTransaction, Error> {
        let mut txn = self.redb()?.begin_write()?;
        txn.set_durability(Durability::Immediate)
            .expect("no savepoint forbids durability");
        txn.set_quick_repair(self.quick_repair);
        Ok(txn)
    }
}

/// Makes the small state in the table what `small` says, row by row where they differ.
fn write_small(txn: &redb::WriteTransaction, small: &Small) -> Result<(), Error> {
    let mut table = txn.open_table(tables::SMALL)?;
    let before = read_small(&table)?;
    for (bucket, key, _) in before.all() {
        if small.get(bucket, key).is_none() {
            table.remove((bucket.name(), key))?;
        }
    }
    for (bucket, key, value) in small.all() {
        if before.get(bucket, key) != Some(value) {
            table.insert((bucket.name(), key), value)?;
        }
    }
    Ok(())
}

fn read_small(
    table: &impl ReadableTable<(&'static str, &'static [u8]), &'static [u8]>,
) -> Result<Small, Error> {
    let mut small = Small::default();
    for row in table.iter()? {
        let (place, value) = row?;
        let (bucket, key) = place.value();
        let bucket = Bucket::named(bucket.as_bytes())?;
        small.set(bucket, key, Some(value.value()));
    }
    Ok(small)
}

fn open_redb(
    file: &Arc<dyn DiskFile>,
    counters: &Arc<Counters>,
    cache_bytes: usize,
) -> Result<redb::Database, Error> {
    let backend = Backend::new(Arc::clone(file), Arc::clone(counters));
    let mut builder = redb::Builder::new();
    builder.set_cache_size(cache_bytes);
    Ok(builder.create_with_backend(backend)?)
}

/// How far the log had come when a memtable was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The last batch.
    pub batch: u64,
    /// The last command: etcd's raft index.
    pub index: u64,
    /// The newest revision.
    pub revision: u64,
    /// Where history begins; `None` before the first compaction.
    pub floor: Option<u64>,
    /// How often the server has started.
    pub term: u64,
    /// Milliseconds that it has run in all, as far as they were kept.
    pub served: u64,
}

impl Progress {
    /// How far the tables have come.
    pub fn of(meta: &Meta) -> Progress {
        Progress {
            batch: meta.applied_batch,
            index: meta.applied_index,
            revision: meta.revision,
            floor: meta.floor,
            term: meta.term,
            served: meta.served,
        }
    }
}

/// What one slice of the sweep removes: key and revision, in the order of `index`.
struct Slice {
    victims: BTreeSet<(Vec<u8>, Revision)>,
    swept: u64,
}

/// One commit, read by any number of threads.
#[derive(Debug)]
pub struct Reader {
    /// What `meta` said.
    pub meta: Meta,
    /// Bytes that the file took on the disk.
    pub file_bytes: u64,
    counters: Arc<Counters>,
    _alive: Arc<()>,
    history: ReadOnlyTable<(u64, u32), &'static [u8]>,
    index: ReadOnlyTable<(&'static [u8], &'static [u8; 12]), &'static [u8]>,
    leases: ReadOnlyTable<i64, &'static [u8]>,
    attached: ReadOnlyTable<(i64, &'static [u8]), ()>,
    small: ReadOnlyTable<(&'static str, &'static [u8]), &'static [u8]>,
}

type IndexCursor<'a> = Cursor<'a, (&'static [u8], &'static [u8; 12]), &'static [u8]>;

impl Reader {
    /// Whether reads have lately had to wait for the disk.
    pub fn is_cold(&self) -> bool {
        self.counters.is_cold()
    }

    /// The newest version of `key` at or before revision `main`.
    pub fn newest(&self, key: &[u8], main: u64) -> Result<Option<Version>, Error> {
        self.version_from(key, Revision::last_of(main))
    }

    /// The newest version of `key` at or before `at`.
    fn version_from(&self, key: &[u8], at: Revision) -> Result<Option<Version>, Error> {
        let mut cursor = self.seek(key, at)?;
        let Some((found, value)) = cursor.next()? else {
            return Ok(None);
        };
        let (found, at) = found.value();
        if found != key {
            return Ok(None);
        }
        Ok(Some(Version::decode(
            Revision::decode_descending(at),
            value.value(),
        )?))
    }

    fn seek(&self, key: &[u8], at: Revision) -> Result<IndexCursor<'_>, Error> {
        let at = at.encode_descending();
        Ok(self.index.lower_bound(Bound::Included((key, &at)))?)
    }

    /// The version record of the change at `at`, in an allocation of its own.
    pub fn record(&self, at: Revision) -> Result<Bytes, Error> {
        let row = self.history.get((at.main, at.sub))?;
        let row = row.ok_or(Damaged("history lacks a version of the index"))?;
        Ok(Bytes::copy_from_slice(
            HistoryRow::decode(row.value())?.record,
        ))
    }

    /// Walks the keys within `bounds` that have a version at or before `main`, in order.
    pub fn keys<'a>(
        &'a self,
        (start, end): (Bound<&[u8]>, Bound<&'a [u8]>),
        main: u64,
    ) -> Result<Keys<'a>, Error> {
        let cursor = match start {
            Bound::Included(key) => self.seek(key, Revision::last_of(u64::MAX))?,
            Bound::Excluded(key) => self.seek(key, Revision { main: 0, sub: 0 })?,
            Bound::Unbounded => self
                .index
                .lower_bound(Bound::<(&[u8], &[u8; 12])>::Unbounded)?,
        };
        Ok(Keys {
            reader: self,
            cursor,
            end,
            at: Revision::last_of(main),
            key: Vec::new(),
        })
    }

    /// Visits the changes from `from` up to `meta.revision` in order of time, until `visit` says
    /// `false`: when, and the version record.
    pub fn history_from(
        &self,
        from: Revision,
        mut visit: impl FnMut(Revision, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let upto = Revision::last_of(self.meta.revision);
        if from > upto {
            return Ok(());
        }
        let rows = self
            .history
            .range((from.main, from.sub)..=(upto.main, upto.sub))?;
        for row in rows {
            let (at, value) = row?;
            let (main, sub) = at.value();
            let record = HistoryRow::decode(value.value())?.record;
            if !visit(Revision { main, sub }, record) {
                break;
            }
        }
        Ok(())
    }

    /// Visits the rows of `history` in order, until `visit` says `false`.
    pub fn for_each_history(
        &self,
        visit: impl FnMut(Revision, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        self.history_behind(Revision { main: 0, sub: 0 }, visit)
    }

    /// The same of the rows behind `place`, at which no change is or which is passed over.
    pub fn history_behind(
        &self,
        place: Revision,
        mut visit: impl FnMut(Revision, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let behind = Bound::Excluded((place.main, place.sub));
        let rows = self
            .history
            .range::<(u64, u32)>((behind, Bound::Unbounded))?;
        for row in rows {
            let (at, value) = row?;
            let (main, sub) = at.value();
            if !visit(Revision { main, sub }, value.value())? {
                break;
            }
        }
        Ok(())
    }

    /// Visits the rows of `index` in order, until `visit` says `false`: key, revision, value.
    pub fn for_each_index(
        &self,
        visit: impl FnMut(&[u8], Revision, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        // No key is empty.
        self.index_behind(b"", Revision { main: 0, sub: 0 }, visit)
    }

    /// The same of the rows behind the one of `key` and `at`.
    pub fn index_behind(
        &self,
        key: &[u8],
        at: Revision,
        mut visit: impl FnMut(&[u8], Revision, &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let behind = Bound::Excluded((key, &at.encode_descending()));
        let rows = self
            .index
            .range::<(&[u8], &[u8; 12])>((behind, Bound::Unbounded))?;
        for row in rows {
            let (key, value) = row?;
            let (key, at) = key.value();
            if !visit(key, Revision::decode_descending(at), value.value())? {
                break;
            }
        }
        Ok(())
    }

    /// Rows of `history` beyond `meta.revision`, and their bytes: of a flush that was cut short.
    fn unfinished(&self) -> Result<(u64, u64), Error> {
        let (mut rows, mut bytes) = (0, 0);
        self.history_behind(Revision::last_of(self.meta.revision), |_, value| {
            rows += 1;
            bytes += (REVISION_BYTES + value.len()) as u64;
            Ok(true)
        })?;
        Ok((rows, bytes))
    }

    /// Visits the rows of `leases` in order.
    pub fn for_each_lease(
        &self,
        mut visit: impl FnMut(i64, LeaseRow) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for row in self.leases.iter()? {
            let (id, value) = row?;
            visit(id.value(), LeaseRow::decode(value.value())?)?;
        }
        Ok(())
    }

    /// Visits the rows of `attached` in order, those of one lease or all of them.
    pub fn for_each_attached(
        &self,
        lease: Option<i64>,
        mut visit: impl FnMut(i64, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let first = (lease.unwrap_or(i64::MIN), &b""[..]);
        for row in self.attached.range(first..)? {
            let (pair, _) = row?;
            let (id, key) = pair.value();
            if lease.is_some_and(|lease| lease != id) {
                break;
            }
            visit(id, key)?;
        }
        Ok(())
    }

    /// Whether `attached` has a row of this lease and key.
    pub fn is_attached(&self, lease: i64, key: &[u8]) -> Result<bool, Error> {
        Ok(self.attached.get((lease, key))?.is_some())
    }

    /// The small state, all of it.
    pub fn small(&self) -> Result<Small, Error> {
        read_small(&self.small)
    }

    /// The value of the `index` row of `key` at exactly `at`.
    pub fn index_row(&self, key: &[u8], at: Revision) -> Result<Option<Version>, Error> {
        let row = self.index.get((key, &at.encode_descending()))?;
        Ok(row
            .map(|row| Version::decode(at, row.value()))
            .transpose()?)
    }

    fn slice(&self, floor: u64) -> Result<Slice, Error> {
        let mut victims = BTreeSet::new();
        let mut swept = self.meta.swept;
        let rows = self.history.range((swept, 0)..=(floor, u32::MAX))?;
        for (seen, row) in rows.enumerate() {
            let (at, value) = row?;
            let (main, sub) = at.value();
            if seen >= SLICE_ROWS && main > swept && swept > self.meta.swept {
                return Ok(Slice { victims, swept });
            }
            swept = main;
            let row = HistoryRow::decode(value.value())?;
            let key = Record::decode(row.record)?.key;
            if let Some(before) = (Revision { main, sub }).before()
                && let Some(older) = self.version_from(key, before)?
            {
                victims.insert((key.to_vec(), older.revision));
            }
            if row.tombstone && main < floor {
                victims.insert((key.to_vec(), Revision { main, sub }));
            }
        }
        Ok(Slice {
            victims,
            swept: floor,
        })
    }
}

/// A walk over keys: see [`Reader::keys`].
pub struct Keys<'a> {
    reader: &'a Reader,
    cursor: IndexCursor<'a>,
    end: Bound<&'a [u8]>,
    at: Revision,
    /// The key that the last step found; its further rows are passed over.
    key: Vec<u8>,
}

impl Keys<'_> {
    /// The key that the last step found.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Steps to the next key: its newest version at or before the revision asked for.
    pub fn step(&mut self) -> Result<Option<Version>, Error> {
        let mut steps = 0;
        loop {
            let Some((row_key, value)) = self.cursor.next()? else {
                return Ok(None);
            };
            let (key, at) = row_key.value();
            let at = Revision::decode_descending(at);
            // No key is empty, so at first none is passed.
            let passed = key == self.key;
            if !passed && at <= self.at {
                let beyond = match self.end {
                    Bound::Included(end) => key > end,
                    Bound::Excluded(end) => key >= end,
                    Bound::Unbounded => false,
                };
                if beyond {
                    return Ok(None);
                }
                self.key.clear();
                self.key.extend_from_slice(key);
                return Ok(Some(Version::decode(at, value.value())?));
            }
            steps += 1;
            if steps > STEPS_MAX {
                let past = Revision { main: 0, sub: 0 };
                self.cursor = self.reader.seek(key, if passed { past } else { self.at })?;
                steps = 0;
            }
        }
    }
}
