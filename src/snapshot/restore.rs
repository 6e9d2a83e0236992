//! A new store of ours, filled from a database of etcd.
//!
//! What can be refused is refused before anything is written; when all is written the new store is
//! checked row by row, so that damage that no row shows by itself, such as a change that is missing,
//! is found as well. Only then is it a store: until the caller puts it in its place nothing starts
//! from it.

use std::sync::Arc;

use super::bbolt::reader::Source;
use super::load::{self, Database, State};
use crate::storage::bulk::{Bulk, Reached};
use crate::storage::check::{self, Finding};
use crate::storage::disk::Disk;
use crate::storage::redb::meta::Meta;
use crate::storage::store::Identity;
use crate::storage::{self, Damaged};

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be read.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// It holds what a store cannot take yet.
    #[error("it holds {count} {what}, which cannot be taken over yet")]
    NotYet {
        /// How many.
        count: u64,
        /// Of what.
        what: &'static str,
    },
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
    /// Changes in the database.
    pub changes: u64,
    /// The newest revision.
    pub revision: u64,
    /// Where history begins.
    pub floor: Option<u64>,
    /// Alarms, which were left behind.
    pub alarms: u64,
}

/// What cannot be taken over yet, told before anything is written.
pub fn check_state(state: &State) -> Result<(), Error> {
    for (count, what) in [
        (state.leases, "leases"),
        (state.users, "users"),
        (state.roles, "roles"),
        (u64::from(state.auth_enabled), "setting of authentication"),
    ] {
        if count > 0 {
            return Err(Error::NotYet { count, what });
        }
    }
    Ok(())
}

/// Fills the two folders, which are empty, and checks them. `progress` is told of bytes or rows done, of
/// all: first while it is read, then while it is checked.
pub fn restore<S: Source>(
    mut database: Database<S>,
    state: &State,
    identity: &Identity,
    options: Options,
    [data, log]: [&Arc<dyn Disk>; 2],
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    check_state(state)?;
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
    let reached = Reached {
        revision,
        floor: if options.bump > 0 {
            Some(revision)
        } else {
            floor
        },
        swept: state.finished.unwrap_or(0),
        index: state.consistent_index,
        term: state.term,
    };
    bulk.finish(&reached)?;
    let report = check::check(data, log, progress)?;
    Ok(Report {
        changes: walked.changes,
        revision: report.revision,
        floor: report.floor,
        alarms: state.alarms,
    })
}
