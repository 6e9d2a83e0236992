//! What a database of etcd holds, bucket by bucket, with every row looked at.
//!
//! Of a file that etcd 3.4 to 3.7 has written nothing is lost in silence. What is not history is held
//! in memory, as the server holds it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::bbolt::reader::{self, Bucket, Reader, Seen, Source};
use super::fields::{Field, Fields};
use super::rows;
use super::save::TRAILER_BYTES;
use crate::storage::Damaged;
use crate::storage::record::Record;
use crate::storage::revision::Revision;
use crate::storage::row::{Change, HistoryRow, TTL_SECS_MAX};
use crate::storage::small::{self, Small};

/// The newest minor version of etcd's data format that is understood.
const MINOR_MAX: u64 = 7;

/// A file whose length leaves this, by 512, has a checksum at its end: so etcd's tools tell.
const TRAILER_REST: u64 = TRAILER_BYTES as u64;

/// The small buckets whose rows are kept as they are.
const TAKEN_OVER: [small::Bucket; 4] = [
    small::Bucket::Alarm,
    small::Bucket::Auth,
    small::Bucket::AuthRoles,
    small::Bucket::AuthUsers,
];

/// Most bytes of the small buckets: etcd holds them in memory as well.
const SMALL_BYTES_MAX: usize = 256 << 20;

/// Why a file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no sound database.
    #[error(transparent)]
    File(#[from] reader::Error),
    /// A row holds what etcd does not write.
    #[error("bucket {bucket}, page {page}: {what}")]
    Row {
        /// The bucket.
        bucket: &'static str,
        /// The row's page.
        page: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A bucket is missing.
    #[error("not a database of etcd: it has no bucket {0:?}")]
    NoBucket(&'static str),
    /// It was written by a newer etcd.
    #[error("version {0:?} is not supported: it is newer than etcd 3.{MINOR_MAX}")]
    Newer(String),
    /// The checksum at its end is not that of what is before it.
    #[error("expected sha256 {expected}, got {got}")]
    Checksum {
        /// At the end of the file.
        expected: String,
        /// Of the file.
        got: String,
    },
    /// There is no checksum at its end.
    #[error("snapshot missing hash but --skip-hash-check=false")]
    NoChecksum,
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a database holds beside its history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The last entry of etcd's log that is in it.
    pub consistent_index: u64,
    /// That entry's term.
    pub term: u64,
    /// The last compaction that was begun, and the last that was ended.
    pub scheduled: Option<u64>,
    /// See above.
    pub finished: Option<u64>,
    /// The version of the data format; none before etcd 3.6.
    pub storage_version: Option<String>,
    /// The members of the cluster.
    pub members: Vec<Member>,
    /// The leases that are granted.
    pub leases: Vec<Lease>,
    /// Alarms, users, roles, and whether authentication is on.
    pub small: Small,
}

/// A lease as etcd keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: i64,
    /// The TTL that was granted.
    pub ttl_secs: u64,
    /// What was left of it when etcd last kept that; of most leases it does not.
    pub left_secs: Option<u64>,
}

/// A member as its cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty until it has told it.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
}

/// What a walk over history ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Walked {
    /// Changes.
    pub changes: u64,
    /// The newest revision that stands in a row.
    pub revision: u64,
}

/// An open database: see the module.
#[derive(Debug)]
pub struct Database<S> {
    reader: Reader<S>,
    buckets: Vec<Bucket>,
    seen: Seen,
}

/// Opens the database of a file, which must not be written meanwhile. Behind a snapshot there is a
/// checksum, which is compared.
pub fn open_file(path: &Path, check_hash: bool) -> Result<Database<File>, Error> {
    let mut file = File::open(path)?;
    if check_hash {
        // What is no database is told at once, however long it is.
        Reader::open(file.try_clone()?)?;
        check_trailer(&mut file)?;
    }
    Database::open(file)
}

fn check_trailer(file: &mut File) -> Result<(), Error> {
    let size = file.metadata()?.len();
    if size % 512 != TRAILER_REST {
        return Err(Error::NoChecksum);
    }
    let (mut hash, mut left) = (Sha256::new(), size - TRAILER_REST);
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..length])?;
        hash.update(&buffer[..length]);
        left -= length as u64;
    }
    let mut expected = [0; TRAILER_BYTES];
    file.read_exact(&mut expected)?;
    let got = hash.finalize();
    if got.as_slice() != expected {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        return Err(Error::Checksum {
            expected: hex(&expected),
            got: hex(&got),
        });
    }
    Ok(())
}

impl<S: Source> Database<S> {
    /// Looks at the root.
    pub fn open(source: S) -> Result<Database<S>, Error> {
        let reader = Reader::open(source)?;
        let mut seen = Seen::default();
        let buckets = reader.buckets(&mut seen)?;
        Ok(Database {
            reader,
            buckets,
            seen,
        })
    }

    /// Bytes of the database.
    pub fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    /// Reads all that is not history.
    pub fn state(&mut self) -> Result<State, Error> {
        let mut state = State::default();
        self.bucket("meta", true, |key, value| {
            match key {
                b"consistent_index" => state.consistent_index = number(value)?,
                b"term" => state.term = number(value)?,
                b"scheduledCompactRev" => state.scheduled = Some(revision(value)?),
                b"finishedCompactRev" => state.finished = Some(revision(value)?),
                b"storageVersion" => state.storage_version = Some(text(value)?),
                _ => {}
            }
            Ok(())
        })?;
        if let Some(version) = &state.storage_version
            && !is_known(version)
        {
            return Err(Error::Newer(version.clone()));
        }
        self.bucket("members", false, |_, value| {
            state.members.push(member(value)?);
            Ok(())
        })?;
        self.bucket("lease", false, |key, value| {
            state.leases.push(lease(key, value)?);
            Ok(())
        })?;
        for bucket in TAKEN_OVER {
            self.bucket(bucket.name(), false, |key, value| {
                rows::check(bucket, key, value)?;
                state.small.set(bucket, key, Some(value));
                match state.small.bytes() {
                    ..=SMALL_BYTES_MAX => Ok(()),
                    _ => Err(Damaged("there is far more of it than etcd can work with")),
                }
            })?;
        }
        Ok(state)
    }

    /// Visits every change in order of time: when, and the version record. Once only.
    pub fn history<E: From<Error>>(
        &mut self,
        mut visit: impl FnMut(Revision, &[u8]) -> Result<(), E>,
    ) -> Result<Walked, E> {
        const NAME: &str = "key";
        let mut walked = Walked::default();
        let Some(bucket) = find(&self.buckets, NAME) else {
            return Err(Error::NoBucket(NAME).into());
        };
        let mut rows = self
            .reader
            .rows(bucket, &mut self.seen)
            .map_err(Error::from)?;
        loop {
            let page = rows.next_page().map_err(Error::from)?;
            let Some((key, value)) = rows.next().map_err(Error::from)? else {
                return Ok(walked);
            };
            let wrong = |damaged: Damaged| Error::Row {
                bucket: NAME,
                page,
                what: damaged.0,
            };
            let (at, tombstone) = place(key).map_err(wrong)?;
            walked.revision = at.main;
            // What `--bump-revision` leaves: a revision, and no change.
            if value.is_empty() {
                continue;
            }
            let row = HistoryRow {
                tombstone,
                stamp: None,
                record: value,
            };
            Change::from_log(at, &row).map_err(wrong)?;
            visit(at, value)?;
            walked.changes += 1;
        }
    }

    /// After all buckets were read: that none of their pages is free.
    pub fn finish(mut self) -> Result<(), Error> {
        Ok(self.reader.check_freelist(&mut self.seen)?)
    }

    fn bucket(
        &mut self,
        name: &'static str,
        needed: bool,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Damaged>,
    ) -> Result<(), Error> {
        let Some(bucket) = find(&self.buckets, name) else {
            return match needed {
                true => Err(Error::NoBucket(name)),
                false => Ok(()),
            };
        };
        let mut rows = self.reader.rows(bucket, &mut self.seen)?;
        loop {
            let page = rows.next_page()?;
            let Some((key, value)) = rows.next()? else {
                return Ok(());
            };
            visit(key, value).map_err(|damaged| Error::Row {
                bucket: name,
                page,
                what: damaged.0,
            })?;
        }
    }
}

fn find<'a>(buckets: &'a [Bucket], name: &str) -> Option<&'a Bucket> {
    buckets.iter().find(|bucket| bucket.name == name.as_bytes())
}

/// What a key of the bucket `key` says: when, and whether it is a tombstone.
fn place(key: &[u8]) -> Result<(Revision, bool), Damaged> {
    const WHAT: Damaged = Damaged("a key that is no revision");
    let (revision, tombstone) = match key {
        [revision @ .., b't'] if key.len() == 18 => (revision, true),
        _ => (key, false),
    };
    let (main, rest) = revision.split_first_chunk::<8>().ok_or(WHAT)?;
    let (mark, sub) = rest.split_first().ok_or(WHAT)?;
    let sub: [u8; 8] = sub.try_into().map_err(|_| WHAT)?;
    let (main, sub) = (u64::from_be_bytes(*main), u64::from_be_bytes(sub));
    let main = (*mark == b'_' && i64::try_from(main).is_ok()).then_some(main);
    let at = Revision {
        main: main.ok_or(WHAT)?,
        sub: u32::try_from(sub).map_err(|_| WHAT)?,
    };
    Ok((at, tombstone))
}

fn number(value: &[u8]) -> Result<u64, Damaged> {
    let bytes = value.try_into();
    let bytes = bytes.map_err(|_| Damaged("a number that is not eight bytes long"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn revision(value: &[u8]) -> Result<u64, Damaged> {
    Ok(place(value)?.0.main)
}

fn text(value: &[u8]) -> Result<String, Damaged> {
    let text = std::str::from_utf8(value).map_err(|_| Damaged("a text that is none"))?;
    Ok(text.to_owned())
}

/// Whether `version` is that of an etcd 3 that is no newer than what we know.
fn is_known(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u64>);
    matches!((parts.next(), parts.next()), (Some(Ok(3)), Some(Ok(minor))) if minor <= MINOR_MAX)
}

/// A row of the bucket `lease`.
fn lease(key: &[u8], value: &[u8]) -> Result<Lease, Damaged> {
    const WHAT: Damaged = Damaged("a lease that is none");
    let (mut id, mut ttl, mut left) = (0, 0, 0);
    for field in Fields(value) {
        match field.ok_or(WHAT)? {
            (1, Field::Number(number)) => id = number,
            (2, Field::Number(number)) => ttl = number as i64,
            (3, Field::Number(number)) => left = number as i64,
            _ => return Err(WHAT),
        }
    }
    // A lease below the least TTL gets that at the start, as in etcd.
    let ttl_secs = u64::try_from(ttl).unwrap_or(0).max(1);
    if key != id.to_be_bytes() || id == 0 || ttl_secs > TTL_SECS_MAX {
        return Err(WHAT);
    }
    Ok(Lease {
        id: id as i64,
        ttl_secs,
        left_secs: u64::try_from(left).ok().filter(|left| *left > 0),
    })
}

/// A member as etcd writes it, in JSON.
pub(super) fn member(value: &[u8]) -> Result<Member, Damaged> {
    const WHAT: Damaged = Damaged("a member that is none");
    let json: Value = serde_json::from_slice(value).map_err(|_| WHAT)?;
    let urls = match &json["peerURLs"] {
        Value::Array(urls) => urls.clone(),
        Value::Null => Vec::new(),
        _ => return Err(WHAT),
    };
    let url = |url: Value| url.as_str().map(str::to_owned).ok_or(WHAT);
    Ok(Member {
        id: json["id"].as_u64().ok_or(WHAT)?,
        name: json["name"].as_str().unwrap_or_default().to_owned(),
        peer_urls: urls.into_iter().map(url).collect::<Result<_, _>>()?,
    })
}

/// What `etcdutl snapshot status` tells of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Of all rows of all buckets.
    pub hash: u32,
    /// The newest revision that stands in a row.
    pub revision: u64,
    /// Keys that are there.
    pub keys: u64,
    /// Bytes of the database.
    pub bytes: u64,
    /// The version of the data format; empty before etcd 3.6.
    pub version: String,
}

/// Reads all of a file. Of each key that is there 16 bytes of a hash are held in memory; etcdutl holds
/// the keys themselves.
pub fn status(path: &Path) -> Result<Status, Error> {
    let reader = Reader::open(File::open(path)?)?;
    let mut seen = Seen::default();
    let mut status = Status {
        bytes: reader.bytes(),
        ..Status::default()
    };
    let mut alive = HashSet::new();
    for bucket in reader.buckets(&mut seen)? {
        status.hash = crc32c::crc32c_append(status.hash, &bucket.name);
        let (is_history, is_meta) = (bucket.name == b"key", bucket.name == b"meta");
        let mut rows = reader.rows(&bucket, &mut seen)?;
        loop {
            let page = rows.next_page()?;
            let Some((key, value)) = rows.next()? else {
                break;
            };
            status.hash = crc32c::crc32c_append(status.hash, key);
            status.hash = crc32c::crc32c_append(status.hash, value);
            let mut look = || -> Result<(), Damaged> {
                if is_meta && key == b"storageVersion" {
                    status.version = text(value)?;
                }
                if is_history {
                    let (at, tombstone) = place(key)?;
                    status.revision = at.main;
                    // As etcdutl: what `--bump-revision` leaves counts as a key, the empty one.
                    let key = match value {
                        [] => value,
                        _ => Record::decode(value)?.key,
                    };
                    let digest = Sha256::digest(key);
                    let digest: [u8; 16] = digest[..16].try_into().expect("16 of 32 bytes");
                    match tombstone {
                        true => alive.remove(&digest),
                        false => alive.insert(digest),
                    };
                }
                Ok(())
            };
            look().map_err(|damaged| Error::Row {
                bucket: if is_history { "key" } else { "meta" },
                page,
                what: damaged.0,
            })?;
        }
    }
    reader.check_freelist(&mut seen)?;
    status.keys = alive.len() as u64;
    Ok(status)
}
