//! A new database, filled from changes in order of time: what import and restore make.
//!
//! ```text
//! change ─► history, as it comes
//!       └─► its row of the index ─► sorted in memory ─► run, a file ─┐
//!                                                     finish: merge ─┴─► index, in order
//!            lease of each key's newest version ─► sorted likewise ──┴─► attached, in order
//! ```
//! Each table is written front to back, so that its pages are full; memory is that of one run, or of
//! a small buffer a run. The database has another name until it is whole.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use super::record::Record;
use super::redb::Database;
use super::redb::meta::Meta;
use super::revision::Revision;
use super::row::{HistoryRow, LeaseRow, Version};
use super::small::Small;
use super::store::{DATABASE_FILE, NEW_DATABASE_FILE};
use super::{Damaged, Error, varint};

/// Bytes of rows in one commit.
const SLICE_BYTES: usize = 8 << 20;

/// Memory for pages of the database.
const CACHE_BYTES: usize = 64 << 20;

/// Bytes of rows of the index that are sorted at once.
const RUN_BYTES: usize = 48 << 20;

/// Bytes of a run that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Names of the runs.
const INDEX_RUN: &str = "index.run.";
const ATTACHED_RUN: &str = "attached.run.";

/// Rows of leases in one commit.
const SLICE_LEASES: usize = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Bulk {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    database: Database,
    /// Rows of history that wait for a commit.
    rows: Vec<(Revision, Vec<u8>)>,
    rows_bytes: usize,
    sorter: Sorter,
}

/// How far what was filled in has come, and what there is beside history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reached {
    /// The newest revision ever given.
    pub revision: u64,
    /// Where history begins.
    pub floor: Option<u64>,
    /// What compaction up to here removes is not among the rows.
    pub swept: u64,
    /// The last command.
    pub index: u64,
    /// How often the server has started.
    pub term: u64,
    /// Milliseconds that it has run in all.
    pub served: u64,
    /// The leases that are granted.
    pub leases: BTreeMap<i64, LeaseRow>,
    /// The small state.
    pub small: Small,
}

impl Bulk {
    /// Begins a database on an empty folder.
    pub fn begin(disk: &Arc<dyn Disk>, meta: &Meta) -> Result<Bulk, Error> {
        let file = disk.create(NEW_DATABASE_FILE, 0)?;
        Ok(Bulk {
            database: Database::create(Arc::clone(&file), CACHE_BYTES, meta)?,
            sorter: Sorter::new(Arc::clone(disk), INDEX_RUN),
            disk: Arc::clone(disk),
            file,
            rows: Vec::new(),
            rows_bytes: 0,
        })
    }

    /// Adds the change that wrote `record`, which must be newer than all before it. When it was made
    /// nobody knows any more.
    pub fn push(&mut self, at: Revision, bytes: &[u8]) -> Result<(), Error> {
        let record = Record::decode(bytes)?;
        let version = Version::of(&record, at);
        let row = HistoryRow {
            tombstone: version.tombstone,
            stamp: (at.sub == 0).then_some((0, "")),
            record: bytes,
        };
        let mut value = Vec::with_capacity(row.encoded_len());
        row.encode(&mut value);
        self.rows_bytes += value.len();
        self.rows.push((at, value));
        if self.rows_bytes >= SLICE_BYTES {
            self.write_history()?;
        }
        self.sorter.push(record.key, at, &version.encode())
    }

    fn write_history(&mut self) -> Result<(), Error> {
        self.database.append_history(&self.rows)?;
        self.rows.clear();
        self.rows_bytes = 0;
        Ok(())
    }

    /// Writes all that remains, removes what compaction at the floor removes, and gives the database
    /// its name.
    pub fn finish(mut self, reached: Reached) -> Result<(), Error> {
        self.write_history()?;
        let attached = self.write_index()?;
        self.write_attached(attached)?;
        let mut leases = reached.leases.into_iter().peekable();
        while leases.peek().is_some() {
            let slice = leases.by_ref().take(SLICE_LEASES);
            self.database.append_leases(slice.collect())?;
        }
        self.database.set_small(&reached.small)?;
        self.database.update_meta(|meta| {
            meta.revision = reached.revision;
            meta.floor = reached.floor;
            meta.swept = reached.swept;
            meta.applied_index = reached.index;
            meta.term = reached.term;
            meta.served = reached.served;
        })?;
        while self.database.sweep_slice()? {}
        drop(self.database);
        self.file.sync()?;
        self.disk.rename(NEW_DATABASE_FILE, DATABASE_FILE)?;
        Ok(self.disk.sync_dir()?)
    }

    /// Writes the index; answers which key the newest version of which gives it to which lease.
    fn write_index(&mut self) -> Result<Sorter, Error> {
        let mut attached = Sorter::new(Arc::clone(&self.disk), ATTACHED_RUN);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut newest_of: Option<Vec<u8>> = None;
        let mut merged = self.sorter.merge()?;
        while let Some(row) = merged.next()? {
            // The newest version of a key comes first.
            if newest_of.as_ref() != Some(&row.key) {
                let version = Version::decode(Revision::decode_descending(&row.at), &row.value)?;
                if version.lease != 0 {
                    attached.push(&pair(version.lease, &row.key), ANY, b"")?;
                }
                newest_of = Some(row.key.clone());
            }
            bytes += row.key.len() + row.value.len();
            rows.push((row.key, row.at, row.value));
            if bytes >= SLICE_BYTES {
                self.database.append_index(&rows)?;
                rows.clear();
                bytes = 0;
            }
        }
        self.database.append_index(&rows)?;
        drop(merged);
        self.sorter.remove_runs()?;
        Ok(attached)
    }

    fn write_attached(&self, mut attached: Sorter) -> Result<(), Error> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut merged = attached.merge()?;
        while let Some(row) = merged.next()? {
            bytes += row.key.len();
            rows.push(split_pair(row.key));
            if bytes >= SLICE_BYTES {
                self.database.append_attached(&rows)?;
                rows.clear();
                bytes = 0;
            }
        }
        self.database.append_attached(&rows)?;
        drop(merged);
        Ok(attached.remove_runs()?)
    }
}

/// Where no order is asked for beyond that of the keys.
const ANY: Revision = Revision { main: 0, sub: 0 };

/// A lease and a key as one key, in the order of the table.
fn pair(lease: i64, key: &[u8]) -> Vec<u8> {
    let lease = lease ^ i64::MIN;
    [&lease.to_be_bytes(), key].concat()
}

fn split_pair(pair: Vec<u8>) -> (i64, Vec<u8>) {
    let (lease, key) = pair
        .split_first_chunk()
        .expect("a pair begins with a lease");
    (i64::from_be_bytes(*lease) ^ i64::MIN, key.to_vec())
}

/// Rows in any order, to be handed out in that of the table.
#[derive(Debug)]
struct Sorter {
    disk: Arc<dyn Disk>,
    /// What the names of its runs begin with.
    run: &'static str,
    /// Encoded one behind the other, and where each begins.
    bytes: Vec<u8>,
    places: Vec<usize>,
    runs: Vec<Arc<dyn DiskFile>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    key: Vec<u8>,
    at: [u8; 12],
    value: Vec<u8>,
}

impl Sorter {
    fn new(disk: Arc<dyn Disk>, run: &'static str) -> Sorter {
        Sorter {
            disk,
            run,
            bytes: Vec::new(),
            places: Vec::new(),
            runs: Vec::new(),
        }
    }

    fn push(&mut self, key: &[u8], at: Revision, value: &[u8]) -> Result<(), Error> {
        self.places.push(self.bytes.len());
        varint::put_bytes(&mut self.bytes, key);
        self.bytes.extend_from_slice(&at.encode_descending());
        varint::put_bytes(&mut self.bytes, value);
        if self.bytes.len() >= RUN_BYTES {
            self.write_run()?;
        }
        Ok(())
    }

    fn write_run(&mut self) -> Result<(), Error> {
        let name = format!("{}{}", self.run, self.runs.len());
        let file = self.disk.create(&name, 0)?;
        self.sort();
        let (mut out, mut offset) = (Vec::with_capacity(SLICE_BYTES), 0);
        for place in &self.places {
            out.extend_from_slice(encoded(&self.bytes[*place..]));
            if out.len() >= SLICE_BYTES {
                file.write_at(&out, offset)?;
                offset += out.len() as u64;
                out.clear();
            }
        }
        file.write_at(&out, offset)?;
        self.runs.push(file);
        self.bytes.clear();
        self.places.clear();
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let order = |place: &usize| {
            let (key, at, ..) = split(&bytes[*place..]).expect("it was written here");
            (key, at)
        };
        self.places.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
    }

    /// All rows in order; none may be added any more.
    fn merge(&mut self) -> Result<Merge, Error> {
        if !self.runs.is_empty() {
            self.write_run()?;
        }
        self.sort();
        let mut merge = Merge {
            heads: BinaryHeap::new(),
            runs: Vec::new(),
        };
        let mut memory = Vec::new();
        for place in &self.places {
            memory.extend_from_slice(encoded(&self.bytes[*place..]));
        }
        self.bytes = Vec::new();
        self.places = Vec::new();
        merge.add(Run {
            file: None,
            size: 0,
            offset: 0,
            buffer: memory,
            taken: 0,
        })?;
        for file in &self.runs {
            merge.add(Run {
                size: file.size()?,
                file: Some(Arc::clone(file)),
                offset: 0,
                buffer: Vec::new(),
                taken: 0,
            })?;
        }
        Ok(merge)
    }

    fn remove_runs(&self) -> io::Result<()> {
        let mut numbers = 0..self.runs.len();
        numbers.try_for_each(|number| self.disk.remove(&format!("{}{number}", self.run)))
    }
}

/// A row, and the bytes that it takes.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8], usize);

/// Key, revision and value of the row that `bytes` begin with.
fn split(bytes: &[u8]) -> Option<Split<'_>> {
    let mut rest = bytes;
    let key = varint::take_bytes(&mut rest)?;
    let (at, tail) = rest.split_at_checked(12)?;
    rest = tail;
    let value = varint::take_bytes(&mut rest)?;
    Some((key, at, value, bytes.len() - rest.len()))
}

/// The bytes of the row that `bytes` begin with.
fn encoded(bytes: &[u8]) -> &[u8] {
    let (_, _, _, length) = split(bytes).expect("it was written here");
    &bytes[..length]
}

/// A walk over all runs at once.
struct Merge {
    heads: BinaryHeap<Head>,
    runs: Vec<Run>,
}

/// The next row of a run; the least of all is the greatest here.
#[derive(PartialEq, Eq)]
struct Head {
    row: Row,
    run: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Head) -> Ordering {
        (&other.row.key, other.row.at).cmp(&(&self.row.key, self.row.at))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Merge {
    fn add(&mut self, mut run: Run) -> Result<(), Error> {
        let number = self.runs.len();
        let head = run.next()?;
        self.heads.extend(head.map(|row| Head { row, run: number }));
        self.runs.push(run);
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Row>, Error> {
        let Some(Head { row, run }) = self.heads.pop() else {
            return Ok(None);
        };
        let next = self.runs[run].next()?;
        self.heads.extend(next.map(|row| Head { row, run }));
        Ok(Some(row))
    }
}

struct Run {
    /// None for what is in memory as a whole.
    file: Option<Arc<dyn DiskFile>>,
    size: u64,
    offset: u64,
    buffer: Vec<u8>,
    taken: usize,
}

impl Run {
    fn next(&mut self) -> Result<Option<Row>, Error> {
        loop {
            let rest = &self.buffer[self.taken..];
            if let Some((key, at, value, length)) = split(rest) {
                let row = Row {
                    key: key.to_vec(),
                    at: at.try_into().expect("twelve bytes"),
                    value: value.to_vec(),
                };
                self.taken += length;
                return Ok(Some(row));
            }
            let left = self.size - self.offset;
            match &self.file {
                Some(file) if left > 0 => {
                    self.buffer.drain(..self.taken);
                    self.taken = 0;
                    let begun = self.buffer.len();
                    let length = left.min(READ_BYTES as u64);
                    self.buffer.resize(begun + length as usize, 0);
                    file.read_at(&mut self.buffer[begun..], self.offset)?;
                    self.offset += length;
                }
                _ if rest.is_empty() => return Ok(None),
                _ => return Err(Damaged("a sorted run has lost its end").into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::real::RealDisk;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_in_the_order_of_their_table() {
        let mut pairs = Vec::new();
        for lease in [i64::MIN, -2, -1, 1, 2, i64::MAX] {
            for key in [&b""[..], b"\0", b"a", b"\xff"] {
                pairs.push((lease, key.to_vec()));
            }
        }
        let joined: Vec<_> = pairs.iter().map(|(lease, key)| pair(*lease, key)).collect();
        assert!(joined.is_sorted());
        let split: Vec<_> = joined.into_iter().map(split_pair).collect();
        assert_eq!(split, pairs);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever comes in comes out in order, from memory or from runs.
        #[test]
        fn rows_come_out_in_the_order_of_the_table(
            rows in prop::collection::btree_map(
                (prop::collection::vec(any::<u8>(), 1..4), 0..50u64), prop::collection::vec(any::<u8>(), 0..9), 0..200),
            seed in any::<u64>(),
            run_rows in 1..100usize,
        ) {
            let folder = tempfile::tempdir().expect("a folder for the test can be made");
            let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(folder.path()).expect("it opens"));
            let mut sorter = Sorter::new(Arc::clone(&disk), INDEX_RUN);
            let mut shuffled: Vec<_> = rows.iter().collect();
            shuffled.sort_by_key(|((key, main), _)| crc32c::crc32c(&[&key[..], &(main ^ seed).to_le_bytes()].concat()));
            for (place, ((key, main), value)) in shuffled.iter().enumerate() {
                sorter.push(key, Revision { main: *main, sub: 0 }, value).expect("it takes all");
                if place % run_rows == run_rows - 1 {
                    sorter.write_run().expect("there is room");
                }
            }
            let mut merged = sorter.merge().expect("there is room");
            let mut found = Vec::new();
            while let Some(row) = merged.next().expect("the runs are there") {
                found.push((row.key, row.at, row.value));
            }
            let mut expected: Vec<_> = rows
                .into_iter()
                .map(|((key, main), value)| (key, Revision { main, sub: 0 }.encode_descending(), value))
                .collect();
            expected.sort();
            prop_assert_eq!(found, expected);
            sorter.remove_runs().expect("the runs are there");
            prop_assert_eq!(disk.list().expect("it is there"), Vec::<String>::new());
        }
    }
}
