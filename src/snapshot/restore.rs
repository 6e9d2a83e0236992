//! A new store of ours, filled from a database of etcd.
//!
//! ```text
//! database ─► fill ─► (what etcd's log has beyond it) ─► prove ─► a store
//! ```
//! When all is written the new store is checked row by row, so that damage that no row shows by
//! itself, such as a change that is missing, is found as well. Only then is it a store: until the
//! caller puts it in its place nothing starts from it.

use std::sync::Arc;

use super::bbolt::reader::Source;
use super::load::{self, Database, Lease, State};
use crate::auth;
use crate::lease::expiry::{ELSEWHERE_MILLIS, row_with_left};
use crate::storage::bulk::{Bulk, Reached};
use crate::storage::check::{self, Finding};
use crate::storage::disk::Disk;
use crate::storage::redb::meta::Meta;
use crate::storage::row::LeaseRow;
use crate::storage::small::Bucket;
use crate::storage::store::Identity;
use crate::storage::{self, Damaged};

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be read.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// Its rows do not make a history.
    #[error("its history is damaged: {0}")]
    Unsound(#[from] Finding),
    /// Its revisions would pass the last that there can be.
    #[error("its newest revision is {newest}, which cannot be bumped by {bump}")]
    Bump {
        /// In the database.
        newest: u64,
        /// What was asked for.
        bump: u64,
    },
    /// The new store could not be written.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl From<Damaged> for Error {
    fn from(damaged: Damaged) -> Error {
        Error::Storage(damaged.into())
    }
}

/// What is done to history on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Revisions that are passed over, so that no client sees one twice; all before are compacted.
    pub bump: u64,
}

/// What was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Changes that history holds.
    pub changes: u64,
    /// The newest revision.
    pub revision: u64,
    /// Where history begins.
    pub floor: Option<u64>,
    /// Leases that are granted.
    pub leases: u64,
    /// Keys that name a lease that is not there: they stay, as in etcd.
    pub strays: u64,
    /// Users that there are.
    pub users: u64,
    /// Roles that there are.
    pub roles: u64,
    /// Whether authentication is on.
    pub auth_is_on: bool,
    /// Alarms that are raised.
    pub alarms: u64,
}

/// Fills the folder, which is empty, with a database. `progress` is told of bytes done, of all.
pub fn fill<S: Source>(
    mut database: Database<S>,
    state: State,
    identity: &Identity,
    options: Options,
    data: &Arc<dyn Disk>,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let meta = Meta::new(
        identity.cluster_id,
        identity.member_id,
        identity.peer_urls.clone(),
    );
    let mut bulk = Bulk::begin(data, &meta)?;
    let (mut done, all) = (0, database.bytes());
    let walked = database.history::<Error>(|at, record| {
        done += record.len() as u64;
        progress(done, all);
        Ok(bulk.push(at, record)?)
    })?;
    database.finish()?;
    let floor = state.scheduled.max(state.finished);
    let newest = walked.revision.max(floor.unwrap_or(0)).max(1);
    let revision = bumped(newest, options.bump)?;
    let leases = state.leases.iter().map(|lease| (lease.id, row_of(lease)));
    bulk.finish(Reached {
        revision,
        floor: if options.bump > 0 {
            Some(revision)
        } else {
            floor
        },
        swept: state.finished.unwrap_or(0),
        index: state.consistent_index,
        term: state.term,
        served: ELSEWHERE_MILLIS,
        leases: leases.collect(),
        small: state.small,
    })?;
    Ok(())
}

/// Clients count revisions as signed numbers.
fn bumped(newest: u64, bump: u64) -> Result<u64, Error> {
    let revision = newest.checked_add(bump);
    let possible = revision.filter(|revision| i64::try_from(*revision).is_ok());
    possible.ok_or(Error::Bump { newest, bump })
}

/// What is kept of a lease that was seen just now; or of which as much is left as etcd says.
fn row_of(lease: &Lease) -> LeaseRow {
    match lease.left_secs {
        Some(left_secs) => row_with_left(lease.ttl_secs, left_secs, ELSEWHERE_MILLIS),
        None => LeaseRow {
            ttl_secs: lease.ttl_secs,
            seen_millis: ELSEWHERE_MILLIS,
        },
    }
}

/// Looks at every row of the new store. `progress` is told of rows done, of all.
pub fn prove(
    [data, log]: [&Arc<dyn Disk>; 2],
    progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    let found = check::check(data, log, progress)?;
    let count = |bucket| found.small.rows(bucket).count() as u64;
    Ok(Report {
        changes: found.settled,
        revision: found.revision,
        floor: found.floor,
        leases: found.leases,
        strays: found.strays,
        users: count(Bucket::AuthUsers),
        roles: count(Bucket::AuthRoles),
        auth_is_on: auth::is_on(&found.small),
        alarms: count(Bucket::Alarm),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;

    use super::*;
    use crate::lease::Timing;
    use crate::lease::expiry::deadline_at_start;
    use crate::mvcc::write_txn::NEWEST;
    use crate::snapshot::bbolt::writer::{Size, Writer};
    use crate::storage::disk::real::RealDisk;
    use crate::storage::record::Record;
    use crate::storage::store::read_stopped;

    type Buckets = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

    fn file(buckets: &Buckets) -> Vec<u8> {
        fn write<W: std::io::Write>(mut writer: Writer<W>, buckets: &Buckets) -> Size {
            for (name, rows) in buckets {
                writer.bucket(name.as_bytes()).expect("memory takes all");
                for (key, value) in rows {
                    writer.put(key, value).expect("memory takes all");
                }
            }
            writer.finish().expect("memory takes all")
        }
        let size = write(Writer::sizing(), buckets);
        let mut file = Vec::new();
        let writer = Writer::begin(&mut file, size).expect("memory takes all");
        write(writer, buckets);
        file
    }

    /// A row of the bucket `key`.
    fn put(main: u64, key: &str, lease: i64) -> (Vec<u8>, Vec<u8>) {
        let record = Record {
            key: key.as_bytes(),
            create: main,
            modified: main,
            version: 1,
            value: b"",
            lease,
        };
        let at = [&main.to_be_bytes()[..], b"_", &[0; 8]].concat();
        (at, record.encode().to_vec())
    }

    fn lease(id: i64, fields: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let id = [&[1 << 3, id as u8], fields].concat();
        (u64::from(id[1]).to_be_bytes().to_vec(), id)
    }

    fn state_of(leases: &[(Vec<u8>, Vec<u8>)]) -> Result<State, load::Error> {
        let rows = leases.iter().cloned().collect();
        let file = file(&BTreeMap::from([
            ("lease", rows),
            ("meta", BTreeMap::new()),
        ]));
        Database::open(&file[..])?.state()
    }

    #[test]
    fn leases_come_with_what_is_left_of_them_and_with_their_keys() {
        const TTL: u8 = 2 << 3;
        const LEFT: u8 = 3 << 3;
        let keys = [
            put(2, "a", 1),
            put(3, "b", 2),
            put(4, "c", 1),
            put(5, "d", 3),
            put(6, "e", 0),
        ];
        let leases = [
            lease(1, &[TTL, 100]),
            lease(2, &[TTL, 100, LEFT, 40]),
            // Below the least TTL, which it gets at the start.
            lease(4, &[TTL, 0]),
        ];
        let file = file(&BTreeMap::from([
            ("key", keys.into()),
            ("lease", leases.into()),
            ("meta", BTreeMap::new()),
        ]));
        let folder = TempDir::new().expect("a folder for the test can be made");
        let open = |name| -> Arc<dyn Disk> {
            let disk = RealDisk::open(&folder.path().join(name));
            Arc::new(disk.expect("a folder can be opened"))
        };
        let (data, log) = (open("data"), open("log"));
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
            peer_urls: Vec::new(),
        };
        let mut database = Database::open(&file[..]).expect("it is one");
        let state = database.state().expect("it is sound");
        let options = Options::default();
        fill(database, state, &identity, options, &data, |_, _| ()).expect("there is room");
        let report = prove([&data, &log], |_, _| ()).expect("it is sound");
        // The lease of "d" is not there.
        assert_eq!((report.leases, report.strays), (3, 1));
        let stopped = read_stopped(&data, &log, 1 << 20).expect("it opens");
        let timing = Timing::default();
        let mut left = Vec::new();
        let read = stopped.view.for_each_lease(|id, row| {
            let row = row.expect("it is in the tables");
            let deadline = deadline_at_start(&row, ELSEWHERE_MILLIS, &timing);
            left.push((id, deadline - ELSEWHERE_MILLIS - timing.extension_millis));
        });
        read.expect("it can be read");
        assert_eq!(left, [(1, 100_000), (2, 40_000), (4, 1000)]);
        let keys_of = |lease| {
            stopped
                .view
                .attached(lease, NEWEST)
                .expect("it can be read")
        };
        assert_eq!(keys_of(1), [b"a", b"c"]);
        assert_eq!(keys_of(2), [b"b"]);
        assert_eq!(keys_of(3), [b"d"]);
    }

    #[test]
    fn no_bump_passes_the_last_revision() {
        let last = i64::MAX as u64;
        assert_eq!(bumped(last - 5, 5).unwrap(), last);
        for (newest, bump) in [(last - 5, 6), (last, u64::MAX), (1, u64::MAX)] {
            assert!(bumped(newest, bump).is_err(), "{newest} {bump}");
        }
    }

    #[test]
    fn a_lease_that_etcd_does_not_write_is_refused() {
        const TTL: u8 = 2 << 3;
        assert_eq!(state_of(&[lease(1, &[TTL, 9])]).unwrap().leases.len(), 1);
        let mut other_key = lease(1, &[TTL, 9]);
        other_key.0[7] = 2;
        let too_long = [&[TTL][..], &[0xff; 8], &[0x7f]].concat();
        for wrong in [
            lease(0, &[TTL, 9]),
            lease(1, &[TTL]),
            lease(1, &[4 << 3, 9]),
            lease(1, &too_long),
            other_key,
        ] {
            assert!(state_of(std::slice::from_ref(&wrong)).is_err(), "{wrong:?}");
        }
    }
}
