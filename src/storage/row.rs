//! Rows: what the log and the tables hold of a change, and how each is written.
//!
//! ```text
//! change ─► HistoryRow   stamp and version record, whole        table `history`, and the log
//!      └──► Version      what the index needs to know of it     table `index`
//! lease  ─► LeaseRow     what of a lease outlives the process    table `leases`, and the log
//! ```
//! The log holds decisions: a [`LogRow`] is put back into the memtable as it stands, and nothing
//! is judged again. Decoding checks every byte and never panics; docs/format.md has the tables.

use std::sync::Arc;

use bytes::BufMut;

use super::record::{self, Record};
use super::revision::Revision;
use super::small::Bucket;
use super::{Damaged, varint};

/// The longest TTL of a lease, in seconds.
pub const TTL_SECS_MAX: u64 = 9_000_000_000;

const TOMBSTONE: u8 = 1;
const STAMPED: u8 = 2;

/// When a txn was decided, and for whom; it lies with the first change of the txn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Wall-clock milliseconds since 1970, as the server's clock had it. Not monotonic.
    pub millis: u64,
    /// The user that asked; none while authentication is off.
    pub author: Option<Arc<str>>,
}

/// One row of `history`, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRow<'a> {
    /// Whether the record is a tombstone.
    pub tombstone: bool,
    /// Milliseconds and author; only in the first row of a main revision.
    pub stamp: Option<(u64, &'a str)>,
    /// The version record: see [`Record`].
    pub record: &'a [u8],
}

impl<'a> HistoryRow<'a> {
    /// Appends the row to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        let mut flags = 0;
        if self.tombstone {
            flags |= TOMBSTONE;
        }
        if self.stamp.is_some() {
            flags |= STAMPED;
        }
        out.put_u8(flags);
        if let Some((millis, author)) = self.stamp {
            out.put_u64_le(millis);
            varint::put_bytes(out, author.as_bytes());
        }
        out.put_slice(self.record);
    }

    /// Bytes that [`HistoryRow::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let stamp = self.stamp.map_or(0, |(_, author)| {
            8 + varint::len(author.len() as u64) + author.len()
        });
        1 + stamp + self.record.len()
    }

    /// Reads a row; the record itself is left to [`Record::decode`].
    pub fn decode(bytes: &'a [u8]) -> Result<HistoryRow<'a>, Damaged> {
        const WHAT: Damaged = Damaged("a history row that no store writes");
        let (&flags, mut rest) = bytes.split_first().ok_or(WHAT)?;
        if flags & !(TOMBSTONE | STAMPED) != 0 {
            return Err(WHAT);
        }
        let stamp = if flags & STAMPED != 0 {
            let (millis, tail) = rest.split_first_chunk::<8>().ok_or(WHAT)?;
            rest = tail;
            let author = varint::take_bytes(&mut rest).ok_or(WHAT)?;
            let author = std::str::from_utf8(author).map_err(|_| WHAT)?;
            Some((u64::from_le_bytes(*millis), author))
        } else {
            None
        };
        Ok(HistoryRow {
            tombstone: flags & TOMBSTONE != 0,
            stamp,
            record: rest,
        })
    }
}

/// What the index knows of one version of a key: enough to count, compare and filter without
/// reading the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// When it was written.
    pub revision: Revision,
    /// Whether it ended the key's life; then all that follows is 0.
    pub tombstone: bool,
    /// Revision of the put that began this life.
    pub create: u64,
    /// Puts in this life, from 1.
    pub version: u64,
    /// The lease that holds the key; 0 is none.
    pub lease: i64,
    /// Bytes of the value.
    pub value_len: u32,
}

impl Version {
    /// What the index keeps of `record`, written at `revision`.
    pub fn of(record: &Record<'_>, revision: Revision) -> Version {
        Version {
            revision,
            tombstone: record.version == 0,
            create: record.create,
            version: record.version,
            lease: record.lease,
            value_len: u32::try_from(record.value.len()).expect("a value fits a gRPC message"),
        }
    }

    /// The value of an `index` row; the revision is part of the row's key.
    pub fn encode(&self) -> Vec<u8> {
        if self.tombstone {
            return vec![TOMBSTONE];
        }
        let mut out = Vec::with_capacity(16);
        out.push(0);
        varint::put(&mut out, self.revision.main - self.create);
        varint::put(&mut out, self.version);
        varint::put(&mut out, u64::from(self.value_len));
        varint::put(&mut out, self.lease as u64);
        out
    }

    /// Reads the value of the `index` row of `revision`.
    pub fn decode(revision: Revision, bytes: &[u8]) -> Result<Version, Damaged> {
        const WHAT: Damaged = Damaged("an index row that no store writes");
        let (&flags, mut rest) = bytes.split_first().ok_or(WHAT)?;
        let mut version = Version {
            revision,
            tombstone: flags == TOMBSTONE,
            create: 0,
            version: 0,
            lease: 0,
            value_len: 0,
        };
        if flags == 0 {
            let age = varint::take(&mut rest).ok_or(WHAT)?;
            version.create = revision.main.checked_sub(age).ok_or(WHAT)?;
            version.version = varint::take(&mut rest).filter(|n| *n > 0).ok_or(WHAT)?;
            let value_len = varint::take(&mut rest).ok_or(WHAT)?;
            version.value_len = u32::try_from(value_len).map_err(|_| WHAT)?;
            version.lease = varint::take(&mut rest).ok_or(WHAT)? as i64;
        } else if flags != TOMBSTONE {
            return Err(WHAT);
        }
        if rest.is_empty() {
            Ok(version)
        } else {
            Err(WHAT)
        }
    }
}

/// What of a lease outlives the process. When it ends is known only while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRow {
    /// The TTL that was granted, in seconds, from 1 to [`TTL_SECS_MAX`].
    pub ttl_secs: u64,
    /// The last sign of life that was kept: a time on the scale of [`LogRow::Served`].
    pub seen_millis: u64,
}

impl LeaseRow {
    /// Appends the row to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        varint::put(out, self.ttl_secs);
        varint::put(out, self.seen_millis);
    }

    /// The value of a `leases` row.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12);
        self.encode(&mut out);
        out
    }

    fn take(rest: &mut &[u8]) -> Option<LeaseRow> {
        Some(LeaseRow {
            ttl_secs: varint::take(rest).filter(|secs| (1..=TTL_SECS_MAX).contains(secs))?,
            seen_millis: varint::take(rest)?,
        })
    }

    /// Reads the value of a `leases` row.
    pub fn decode(mut bytes: &[u8]) -> Result<LeaseRow, Damaged> {
        let row = LeaseRow::take(&mut bytes).filter(|_| bytes.is_empty());
        row.ok_or(Damaged("a lease row that no store writes"))
    }
}

/// One decision in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRow<'a> {
    /// A key changed.
    Change(Revision, HistoryRow<'a>),
    /// History begins at this revision from now on.
    Floor(u64),
    /// The server started, for the n-th time on this data: etcd's raft term.
    Term(u64),
    /// A lease, granted or seen alive.
    Lease(i64, LeaseRow),
    /// The lease is gone.
    Revoke(i64),
    /// The change before this row took its key from this lease.
    Left(i64),
    /// The server has run for so many milliseconds in all, on this data: the time that leases
    /// live by. Downtime does not count.
    Served(u64),
    /// A row of the small state; `None` is gone.
    Small(Bucket, &'a [u8], Option<&'a [u8]>),
}

const CHANGE: u8 = 1;
const FLOOR: u8 = 2;
const TERM: u8 = 3;
const LEASE: u8 = 4;
const REVOKE: u8 = 5;
const LEFT: u8 = 6;
const SERVED: u8 = 7;
const SMALL: u8 = 8;
const SMALL_GONE: u8 = 9;

impl<'a> LogRow<'a> {
    /// Appends the row to a batch.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            LogRow::Change(revision, row) => {
                out.push(CHANGE);
                varint::put(out, revision.main);
                varint::put(out, u64::from(revision.sub));
                varint::put(out, row.encoded_len() as u64);
                row.encode(out);
            }
            LogRow::Floor(main) => {
                out.push(FLOOR);
                varint::put(out, *main);
            }
            LogRow::Term(term) => {
                out.push(TERM);
                varint::put(out, *term);
            }
            LogRow::Lease(id, row) => {
                out.push(LEASE);
                varint::put(out, *id as u64);
                row.encode(out);
            }
            LogRow::Revoke(id) => {
                out.push(REVOKE);
                varint::put(out, *id as u64);
            }
            LogRow::Left(id) => {
                out.push(LEFT);
                varint::put(out, *id as u64);
            }
            LogRow::Served(millis) => {
                out.push(SERVED);
                varint::put(out, *millis);
            }
            LogRow::Small(bucket, key, value) => {
                out.push(value.map_or(SMALL_GONE, |_| SMALL));
                varint::put_bytes(out, bucket.name().as_bytes());
                varint::put_bytes(out, key);
                if let Some(value) = value {
                    varint::put_bytes(out, value);
                }
            }
        }
    }

    /// Takes the next row off a batch.
    pub fn take(rest: &mut &'a [u8]) -> Result<LogRow<'a>, Damaged> {
        const WHAT: Damaged = Damaged("a log row that no store writes");
        let (&tag, tail) = rest.split_first().ok_or(WHAT)?;
        *rest = tail;
        let mut number = || varint::take(rest).ok_or(WHAT);
        let lease = |id: u64| if id == 0 { Err(WHAT) } else { Ok(id as i64) };
        match tag {
            CHANGE => {
                let main = number()?;
                let sub = u32::try_from(number()?).map_err(|_| WHAT)?;
                let row = varint::take_bytes(rest).ok_or(WHAT)?;
                let row = HistoryRow::decode(row)?;
                Ok(LogRow::Change(Revision { main, sub }, row))
            }
            FLOOR => Ok(LogRow::Floor(number()?)),
            TERM => Ok(LogRow::Term(number()?)),
            LEASE => {
                let id = lease(number()?)?;
                Ok(LogRow::Lease(id, LeaseRow::take(rest).ok_or(WHAT)?))
            }
            REVOKE => Ok(LogRow::Revoke(lease(number()?)?)),
            LEFT => Ok(LogRow::Left(lease(number()?)?)),
            SERVED => Ok(LogRow::Served(number()?)),
            SMALL | SMALL_GONE => {
                let bucket = Bucket::named(varint::take_bytes(rest).ok_or(WHAT)?)?;
                let key = varint::take_bytes(rest).ok_or(WHAT)?;
                let value = match tag {
                    SMALL => Some(varint::take_bytes(rest).ok_or(WHAT)?),
                    _ => None,
                };
                Ok(LogRow::Small(bucket, key, value))
            }
            _ => Err(WHAT),
        }
    }
}

/// A change, decided and owned: 56 bytes beside its record, since a memtable holds many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When it was made.
    pub revision: Revision,
    /// The version record, in an allocation of its own.
    pub record: Arc<[u8]>,
    /// With the first change of a txn.
    pub stamp: Option<Stamp>,
}

impl Change {
    /// The change that writes `record` at `revision`.
    pub fn new(revision: Revision, record: &Record<'_>, stamp: Option<Stamp>) -> Change {
        Change {
            revision,
            record: record.encode().into(),
            stamp,
        }
    }

    /// The change that a log row tells of.
    pub fn from_log(revision: Revision, row: &HistoryRow<'_>) -> Result<Change, Damaged> {
        let record = Record::decode(row.record)?;
        let tombstone = record.version == 0;
        let stamp = row.stamp.map(|(millis, author)| Stamp {
            millis,
            author: (!author.is_empty()).then(|| author.into()),
        });
        let agrees = if tombstone {
            record == Record::tombstone(record.key)
        } else {
            record.modified == revision.main && (1..=revision.main).contains(&record.create)
        };
        if tombstone != row.tombstone || !agrees {
            return Err(Damaged("a change whose record contradicts its row"));
        }
        Ok(Change {
            revision,
            record: row.record.into(),
            stamp,
        })
    }

    /// Its key.
    pub fn key(&self) -> &[u8] {
        record::key_of(&self.record)
    }

    /// What the index keeps of it.
    pub fn version(&self) -> Version {
        let record = Record::decode(&self.record).expect("the store wrote it");
        Version::of(&record, self.revision)
    }

    /// Its row in `history` and in the log.
    pub fn history_row(&self) -> HistoryRow<'_> {
        HistoryRow {
            tombstone: self.version().tombstone,
            stamp: self
                .stamp
                .as_ref()
                .map(|stamp| (stamp.millis, stamp.author.as_deref().unwrap_or(""))),
            record: &self.record,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_change() -> impl Strategy<Value = Change> {
        let key = prop::collection::vec(any::<u8>(), 1..30);
        let value = prop::collection::vec(any::<u8>(), 0..50);
        let stamp = prop::option::of((any::<u64>(), "[a-z]{0,5}"));
        (
            key,
            value,
            2..1000u64,
            0..3u32,
            0..5u64,
            any::<i64>(),
            stamp,
        )
            .prop_map(|(key, value, main, sub, version, lease, stamp)| {
                let mut record = Record::tombstone(&key);
                if version > 0 {
                    record.value = &value;
                    record.create = main.saturating_sub(version).max(1);
                    record.modified = main;
                    record.version = version;
                    record.lease = lease;
                }
                let stamp = stamp.map(|(millis, author)| Stamp {
                    millis,
                    author: (!author.is_empty()).then(|| author.into()),
                });
                Change::new(Revision { main, sub }, &record, stamp)
            })
    }

    #[test]
    fn a_record_that_contradicts_its_row_is_damage() {
        let at = Revision { main: 5, sub: 0 };
        let sound = Record {
            key: b"k",
            create: 4,
            modified: 5,
            version: 2,
            value: b"v",
            lease: 0,
        };
        let read = |record: Record<'_>| {
            let tombstone = record.version == 0;
            let record = record.encode();
            let row = HistoryRow {
                tombstone,
                stamp: None,
                record: &record,
            };
            Change::from_log(at, &row).map(|change| change.version())
        };
        assert_eq!(read(sound), Ok(Version::of(&sound, at)));
        let tombstone = Record::tombstone(b"k");
        assert_eq!(read(tombstone), Ok(Version::of(&tombstone, at)));
        let contradictions = [
            Record { create: 6, ..sound },
            Record { create: 0, ..sound },
            Record {
                modified: 4,
                ..sound
            },
            Record {
                value: b"v",
                ..tombstone
            },
            Record {
                lease: 7,
                ..tombstone
            },
            Record {
                create: 4,
                ..tombstone
            },
        ];
        for record in contradictions {
            assert!(read(record).is_err(), "{record:?}");
        }
    }

    proptest! {
        #[test]
        fn rows_come_back_as_they_were(change in any_change()) {
            let revision = change.revision;
            let mut batch = Vec::new();
            LogRow::Floor(7).encode(&mut batch);
            LogRow::Change(revision, change.history_row()).encode(&mut batch);
            LogRow::Term(3).encode(&mut batch);
            let lease = LeaseRow { ttl_secs: 60, seen_millis: revision.main };
            let others = [
                LogRow::Lease(i64::MIN, lease),
                LogRow::Revoke(-1),
                LogRow::Left(i64::MAX),
                LogRow::Served(0),
                LogRow::Small(Bucket::Alarm, b"key", Some(b"")),
                LogRow::Small(Bucket::AuthUsers, b"", None),
            ];
            for row in &others {
                row.encode(&mut batch);
            }
            let rest = &mut &batch[..];
            prop_assert_eq!(LogRow::take(rest)?, LogRow::Floor(7));
            let LogRow::Change(at, row) = LogRow::take(rest)? else { panic!("a change") };
            prop_assert_eq!(Change::from_log(at, &row)?, change.clone());
            prop_assert_eq!(LogRow::take(rest)?, LogRow::Term(3));
            for row in others {
                prop_assert_eq!(LogRow::take(rest)?, row);
            }
            prop_assert_eq!(LeaseRow::decode(&lease.to_vec())?, lease);
            prop_assert!(rest.is_empty());
            let index = change.version().encode();
            prop_assert_eq!(Version::decode(revision, &index)?, change.version());
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let rest = &mut &bytes[..];
            while let Ok(row) = LogRow::take(rest) {
                if let LogRow::Change(revision, row) = row {
                    let _ = Change::from_log(revision, &row);
                }
            }
            let _ = Version::decode(Revision { main: 5, sub: 0 }, &bytes);
        }
    }
}
