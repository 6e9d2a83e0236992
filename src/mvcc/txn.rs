//! Txns: guards, then one branch, at one revision.
//!
//! ```text
//! choose   which branches are taken, nested ones too, all against the state before
//! check    what only the store can know of the operations that will run
//! run      in order, each on what the ones before it left
//! ```
//! All that can refuse a txn comes before its first change (as etcd: scripts `txn_*`).

use super::compare;
use super::counts::Counts;
use super::request::{Decided, Op, OpAnswer, Put, Range, Txn};
use super::write_txn::{NEWEST, WriteTxn};
use super::{Error, range};
use crate::storage::key_range::KeyRange;
use crate::storage::row::Stamp;
use crate::storage::store::Store;
use crate::storage::view::View;

/// Whether a lease exists.
pub type LeaseExists<'a> = &'a dyn Fn(i64) -> bool;

/// The branches that a txn takes: its own, then those of the nested txns on the way, depth first.
type Path = std::vec::IntoIter<bool>;

/// Runs a txn that can change something.
pub fn write(
    store: &mut Store,
    txn: &Txn,
    stamp: Stamp,
    lease_exists: LeaseExists<'_>,
) -> Result<Decided, Error> {
    let path = choose(store.view(), NEWEST, txn)?;
    let before = store.revision();
    Check::new(store.view(), before, lease_exists).ops(txn, &mut path.clone().into_iter())?;
    let mut write = WriteTxn::begin(store, stamp);
    let decided = run(&mut write, txn, &mut path.into_iter())?;
    write.end();
    Ok(decided)
}

/// Runs a txn that only reads, at the revision of `view`.
pub fn read(view: &View, txn: &Txn, counts: &Counts) -> Result<Decided, Error> {
    let path = choose(view, view.revision, txn)?;
    let no_puts = |_| unreachable!("a txn that only reads has no put");
    Check::new(view, view.revision, &no_puts).ops(txn, &mut path.clone().into_iter())?;
    let succeeded = path[0];
    let mut answers = Vec::new();
    for op in branch(txn, succeeded) {
        let Op::Range(request) = op else {
            unreachable!("a txn that only reads has ranges only");
        };
        let at = resolve(request, view.revision);
        let ranged = range::read(view, request, at, view.revision, counts)?;
        answers.push(OpAnswer::Range(ranged));
    }
    Ok(Decided {
        revision: view.revision,
        succeeded,
        answers,
    })
}

/// Refuses a put that names what is not there.
pub fn check_put(
    view: &View,
    at: u64,
    put: &Put,
    lease_exists: LeaseExists<'_>,
) -> Result<(), Error> {
    if put.lease != 0 && !lease_exists(put.lease) {
        return Err(Error::LeaseNotFound);
    }
    if put.ignore_value || put.ignore_lease {
        let there = view.newest(&put.key, at)?;
        if there.is_none_or(|met| met.version.tombstone) {
            return Err(Error::KeyNotFound);
        }
    }
    Ok(())
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

fn choose(view: &View, at: u64, txn: &Txn) -> Result<Vec<bool>, Error> {
    let mut path = Vec::new();
    extend(view, at, txn, &mut path)?;
    Ok(path)
}

fn extend(view: &View, at: u64, txn: &Txn, path: &mut Vec<bool>) -> Result<(), Error> {
    let mut succeeded = true;
    for guard in &txn.compare {
        succeeded = succeeded && compare::holds(view, at, guard)?;
    }
    path.push(succeeded);
    for op in branch(txn, succeeded) {
        if let Op::Txn(nested) = op {
            extend(view, at, nested, path)?;
        }
    }
    Ok(())
}

/// What is checked of the operations that will run, in their order.
struct Check<'a> {
    view: &'a View,
    before: u64,
    lease_exists: LeaseExists<'a>,
    deleted: Vec<&'a KeyRange>,
}

impl<'a> Check<'a> {
    fn new(view: &'a View, before: u64, lease_exists: LeaseExists<'a>) -> Check<'a> {
        Check {
            view,
            before,
            lease_exists,
            deleted: Vec::new(),
        }
    }

    fn ops(&mut self, txn: &'a Txn, path: &mut Path) -> Result<(), Error> {
        for op in branch(txn, step(path)) {
            match op {
                Op::Range(request) => check_revision(self.view, self.before, request.revision)?,
                Op::Put(put) => self.put(put)?,
                Op::DeleteRange(delete) => self.deleted.push(&delete.range),
                Op::Txn(nested) => self.ops(nested, path)?,
            }
        }
        Ok(())
    }

    fn put(&self, put: &Put) -> Result<(), Error> {
        check_put(self.view, self.before, put, self.lease_exists)?;
        // A delete of all keys from one on may come before a put of one of them (see `overlap`).
        // Then nothing is left to keep; etcd 3.7.3 dies of that.
        let keeps = put.ignore_value || put.ignore_lease;
        if keeps && self.deleted.iter().any(|range| range.contains(&put.key)) {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }
}

/// Within a txn a negative revision is compared with the floor like any other, which is -1 before
/// the first compaction (as etcd: script `txn_revisions`).
fn check_revision(view: &View, before: u64, revision: i64) -> Result<(), Error> {
    let floor = view.floor.map_or(-1, |floor| floor as i64);
    if revision > before as i64 {
        Err(Error::FutureRevision)
    } else if revision != 0 && revision < floor {
        Err(Error::Compacted)
    } else {
        Ok(())
    }
}

fn run(write: &mut WriteTxn<'_>, txn: &Txn, path: &mut Path) -> Result<Decided, Error> {
    let succeeded = step(path);
    let mut answers = Vec::new();
    for op in branch(txn, succeeded) {
        answers.push(match op {
            Op::Range(request) => {
                let at = resolve(request, NEWEST);
                let newest = write.revision();
                let counts = &Counts::default();
                OpAnswer::Range(range::read(write.view(), request, at, newest, counts)?)
            }
            Op::Put(put) => OpAnswer::Put(write.put(put)?),
            Op::DeleteRange(delete) => OpAnswer::DeleteRange(write.delete_range(delete)?),
            Op::Txn(nested) => OpAnswer::Txn(run(write, nested, path)?),
        });
    }
    Ok(Decided {
        revision: write.revision(),
        succeeded,
        answers,
    })
}

fn step(path: &mut Path) -> bool {
    path.next().expect("the path has a step for each txn on it")
}

/// At which revision an operation reads that was checked before.
fn resolve(request: &Range, newest: u64) -> u64 {
    u64::try_from(request.revision)
        .ok()
        .filter(|at| *at > 0)
        .unwrap_or(newest)
}
