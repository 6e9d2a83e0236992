//! One command, judged: refused, or its rows decided.
//!
//! A refused command leaves no trace: all that can refuse it comes before its first change.

use super::command::{Answer, Command};
use crate::mvcc::Error;
use crate::mvcc::txn::{self, check_put};
use crate::mvcc::write_txn::WriteTxn;
use crate::storage::row::Stamp;
use crate::storage::store::Store;

/// Judges one command against all that were judged before it.
pub fn judge(store: &mut Store, command: &Command, millis: u64) -> Result<Answer, Error> {
    if command.adds() && store.space().is_full() {
        return Err(Error::NoSpace);
    }
    let stamp = Stamp {
        millis,
        author: None,
    };
    // Leases come with their own part of the store; until then none exists.
    let lease_exists = &|_| false;
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
    }
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
