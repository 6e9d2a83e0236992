//! One command, judged: refused, or its rows decided.
//!
//! A refused command leaves no trace: all that can refuse it comes before its first change.

use super::command::{Answer, Command, Expire, Granted};
use crate::lease::pending::{Pending, Signs};
use crate::mvcc::Error;
use crate::mvcc::txn::{self, check_put};
use crate::mvcc::write_txn::WriteTxn;
use crate::storage::row::Stamp;
use crate::storage::store::Store;

/// Most leases that one command expires, and keys of theirs after which it takes no other: the
/// commands that wait get their turn in between.
const EXPIRED_LEASES_MAX: usize = 500;
const EXPIRED_KEYS_MAX: usize = 4096;

/// Most signs of life that one command keeps.
const SIGNS_MAX: usize = 4096;

/// Judges one command against all that were judged before it.
pub fn judge(
    store: &mut Store,
    leases: &mut Pending,
    command: &Command,
    millis: u64,
) -> Result<Answer, Error> {
    if command.adds() && store.space().is_full() {
        return Err(Error::NoSpace);
    }
    let stamp = Stamp {
        millis,
        author: None,
    };
    let lease_exists = &|id| leases.exists(id);
    match command {
        Command::Put(put) => {
            check_put(store.view(), store.revision(), put, lease_exists)?;
            let mut write = WriteTxn::begin(store, stamp);
            let written = write.put(put)?;
            write.end();
            Ok(Answer::Put(written))
        }
        Command::DeleteRange(delete) => {
            let mut write = WriteTxn::begin(store, stamp);
            let deleted = write.delete_range(delete)?;
            write.end();
            Ok(Answer::DeleteRange(deleted))
        }
        Command::Txn(request) => txn::write(store, request, stamp, lease_exists).map(Answer::Txn),
        Command::Compact { revision, .. } => compact(store, *revision),
        Command::Grant { id, ttl_secs } => grant(store, leases, *id, *ttl_secs),
        Command::Revoke(id) => {
            if !leases.exists(*id) {
                return Err(Error::LeaseNotFound);
            }
            revoke(store, leases, *id, stamp)?;
            Ok(Answer::Revoked(store.revision()))
        }
        Command::Expire(Expire::One(id)) => {
            if leases.is_due(*id) {
                revoke(store, leases, *id, stamp)?;
            }
            Ok(Answer::Expired)
        }
        Command::Expire(Expire::Next) => {
            let mut keys = 0;
            for id in leases.due(EXPIRED_LEASES_MAX) {
                keys += revoke(store, leases, id, stamp.clone())?;
                if keys >= EXPIRED_KEYS_MAX {
                    break;
                }
            }
            Ok(Answer::Expired)
        }
        Command::KeepSigns => {
            let Signs { rows, upto_millis } = leases.keep_signs(SIGNS_MAX);
            for (id, row) in rows {
                store.keep_lease(id, row);
            }
            if let Some(upto_millis) = upto_millis {
                store.keep_served(upto_millis);
            }
            let more = upto_millis.is_none();
            Ok(Answer::KeptSigns { more })
        }
    }
}

/// As etcd: a TTL that is too long is refused before an id that is taken (script `lease_grant`).
fn grant(store: &mut Store, leases: &mut Pending, id: i64, ttl_secs: i64) -> Result<Answer, Error> {
    let ttl_secs = leases.leases().timing().grant(ttl_secs);
    let ttl_secs = ttl_secs.ok_or(Error::LeaseTooLong)?;
    if leases.exists(id) {
        return Err(Error::LeaseExists);
    }
    let id = if id == 0 { leases.unused_id() } else { id };
    store.keep_lease(id, leases.grant(id, ttl_secs));
    store.count_command();
    Ok(Answer::Granted(Granted {
        id,
        ttl_secs,
        revision: store.revision(),
    }))
}

/// Removes a lease and, in one revision, its keys; answers how many.
fn revoke(store: &mut Store, leases: &mut Pending, id: i64, stamp: Stamp) -> Result<usize, Error> {
    let mut write = WriteTxn::begin(store, stamp);
    let keys = write.delete_attached(id)?;
    write.end();
    if keys == 0 {
        store.count_command();
    }
    store.remove_lease(id);
    leases.revoke(id);
    Ok(keys)
}

/// Below the first revision there is only 0, where compaction succeeds once (as etcd: script
/// `compact`).
fn compact(store: &mut Store, revision: i64) -> Result<Answer, Error> {
    let newest = store.revision();
    let asked = u64::try_from(revision).map_err(|_| Error::Compacted)?;
    if Some(asked) <= store.view().floor {
        return Err(Error::Compacted);
    }
    if asked > newest {
        return Err(Error::FutureRevision);
    }
    store.raise_floor(asked);
    Ok(Answer::Compact(newest))
}
