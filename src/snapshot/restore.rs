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
use super::rows;
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
    let revision = newest + options.bump;
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
        auth_is_on: rows::auth_is_on(&found.small),
        alarms: count(Bucket::Alarm),
    })
}
