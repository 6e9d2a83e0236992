//! One command, judged: refused, or its rows decided.
//!
//! A refused command leaves no trace: all that can refuse it comes before its first change.

use super::command::{Answer, Command, Expire, Granted};
use super::{alarm, quota};
use crate::lease::pending::{Pending, Signs};
use crate::mvcc::Error;
use crate::mvcc::txn::{self, check_put};
use crate::mvcc::write_txn::{Detached, WriteTxn};
use crate::snapshot::contents;
use crate::storage::log;
use crate::storage::row::Stamp;
use crate::storage::small::Bucket;
use crate::storage::store::Store;

/// Most leases that one command expires, and keys of theirs, and bytes in the log, after which it
/// takes no other: the commands that wait get their turn in between.
const EXPIRED_LEASES_MAX: usize = 500;
const EXPIRED_KEYS_MAX: usize = 4096;
const EXPIRED_BYTES_MAX: usize = 4 << 20;

/// Bytes in the log after which the keys that are left of a lease go in another revision: half of
/// what a batch may take, so that nothing keeps a lease from expiring.
const EXPIRED_PART_BYTES: usize = log::BATCH_BYTES_MAX / 2;

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
    alarm::check(&store.view().small, command)?;
    if command.adds() && command.is_change() && quota::is_used_up(store) {
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
        // It decides nothing: it waits its turn, and what was compacted before it can go first.
        Command::Defragment => Ok(Answer::Defragmented),
        Command::Grant { id, ttl_secs } => grant(store, leases, *id, *ttl_secs),
        Command::Revoke(id) => {
            if !leases.exists(*id) {
                return Err(Error::LeaseNotFound);
            }
            revoke(store, leases, *id, stamp, usize::MAX)?;
            Ok(Answer::Revoked(store.revision()))
        }
        Command::Expire(Expire::One(id)) => {
            if leases.is_due(*id) {
                revoke(store, leases, *id, stamp, EXPIRED_PART_BYTES)?;
            }
            Ok(Answer::Expired)
        }
        Command::Expire(Expire::Next) => {
            let (mut keys, begin) = (0, store.batch_bytes());
            for id in leases.due(EXPIRED_LEASES_MAX) {
                keys += revoke(store, leases, id, stamp.clone(), EXPIRED_PART_BYTES)?.keys;
                if keys >= EXPIRED_KEYS_MAX || store.batch_bytes() - begin >= EXPIRED_BYTES_MAX {
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
        Command::Raise(alarm, by) => Ok(Answer::Raised {
            is_new: alarm::raise(store, *alarm, *by)?,
            revision: store.revision(),
        }),
        Command::Clear(alarm) => Ok(Answer::Cleared {
            was_there: alarm::clear(store, *alarm),
            revision: store.revision(),
        }),
        Command::ClearOwn => Ok(Answer::Cleared {
            was_there: quota::clear(store),
            revision: store.revision(),
        }),
        Command::UpdateMember(peer_urls) => {
            let (key, value) = contents::member_row(store.identity().member_id, peer_urls);
            store.set_small(Bucket::Members, &key, Some(&value));
            store.count_command();
            Ok(Answer::UpdatedMember)
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

/// Removes a lease and, in one revision, its keys; or as many of them as go into one batch.
fn revoke(
    store: &mut Store,
    leases: &mut Pending,
    id: i64,
    stamp: Stamp,
    part_bytes: usize,
) -> Result<Detached, Error> {
    let batch_bytes_max = store.batch_bytes().saturating_add(part_bytes);
    let mut write = WriteTxn::begin(store, stamp);
    let detached = write.delete_attached(id, batch_bytes_max)?;
    write.end();
    if detached.all {
        if detached.keys == 0 {
            store.count_command();
        }
        store.remove_lease(id);
        leases.revoke(id);
    }
    Ok(detached)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;
    use crate::lease::{Leases, Timing};
    use crate::mvcc::request::{DeleteRange, Put};
    use crate::storage::disk::sim::SimDisk;
    use crate::storage::key_range::KeyRange;
    use crate::storage::store::{Identity, Settings};

    /// A store, its leases, and the time in microseconds.
    fn begin() -> (Store, Pending, Arc<AtomicU64>) {
        begin_with_quota(None)
    }

    fn begin_with_quota(quota_bytes: Option<u64>) -> (Store, Pending, Arc<AtomicU64>) {
        let disk = SimDisk::new();
        let settings = Settings {
            data: disk.folder("data"),
            log: disk.folder("log"),
            cache_bytes: 1 << 20,
            flush_bytes: 64 << 20,
            segment_bytes: 64 << 10,
            reserve_bytes: 0,
            quota_bytes,
        };
        let identity = Identity {
            cluster_id: 1,
            member_id: 1,
            peer_urls: Vec::new(),
        };
        let (store, _settler) = Store::open(&settings, identity).expect("a store");
        let micros = Arc::new(AtomicU64::new(0));
        let clock = Clock::Manual(Arc::clone(&micros));
        let leases = Arc::new(Leases::new(Timing::default(), clock, 0));
        (store, Pending::new(leases), micros)
    }

    /// Judges `command` as a batch of its own.
    fn decide(store: &mut Store, leases: &mut Pending, command: &Command) {
        store.begin_batch();
        judge(store, leases, command, 0).expect("nothing refuses it");
        store.commit().expect("there is room");
        leases.publish(|| store.publish());
    }

    fn grant_with_keys(store: &mut Store, leases: &mut Pending, id: i64, keys: &[Vec<u8>]) {
        decide(store, leases, &Command::Grant { id, ttl_secs: 10 });
        for key in keys {
            decide(store, leases, &Command::Put(put(key, b"", id)));
        }
    }

    fn put(key: &[u8], value: &[u8], lease: i64) -> Put {
        Put {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }

    /// However many were let into the queue before one of them was refused, and be it in one batch.
    #[test]
    fn the_quota_is_passed_by_one_command_at_most() {
        const VALUE_BYTES: usize = 1000;
        let (mut store, mut leases, _) = begin_with_quota(Some(quota::EMPTY_BYTES + 4500));
        let command = Command::Put(put(b"k", &[7; VALUE_BYTES], 0));
        let mut taken = 0;
        store.begin_batch();
        for _ in 0..100 {
            match judge(&mut store, &mut leases, &command, 0) {
                Ok(_) => taken += 1,
                Err(error) => assert!(matches!(error, Error::NoSpace)),
            }
        }
        assert!((4..=5).contains(&taken), "{taken}");
        let grant = Command::Grant { id: 1, ttl_secs: 1 };
        assert!(judge(&mut store, &mut leases, &grant, 0).is_err());
        // What makes room goes on.
        let range = KeyRange::single(Bytes::from_static(b"k"));
        let prev_kv = false;
        for command in [
            Command::DeleteRange(DeleteRange { range, prev_kv }),
            Command::Compact {
                revision: 2,
                physical: false,
            },
        ] {
            judge(&mut store, &mut leases, &command, 0).expect("it adds nothing");
        }
        store.commit().expect("there is room");
        leases.publish(|| store.publish());
    }

    /// Leases whose keys are long must not end up in a batch that is too large.
    #[test]
    fn an_expiry_takes_no_other_lease_once_it_has_many_bytes() {
        let (mut store, mut leases, micros) = begin();
        for id in 1..=4 {
            let key = vec![id as u8; EXPIRED_BYTES_MAX / 2];
            grant_with_keys(&mut store, &mut leases, id, &[key]);
        }
        micros.store(10_000_000, Ordering::Relaxed);
        for left in [2, 0] {
            decide(&mut store, &mut leases, &Command::Expire(Expire::Next));
            assert_eq!(leases.leases().len(), left);
        }
    }

    /// The keys of a lease go in parts if they are too many for a batch, and then the lease.
    #[test]
    fn a_lease_with_too_many_keys_goes_in_parts() {
        let (mut store, mut leases, _) = begin();
        let keys: Vec<_> = (0..5).map(|number| vec![number; 100]).collect();
        grant_with_keys(&mut store, &mut leases, 1, &keys);
        let begin = store.revision();
        for (part, (keys, all)) in [(2, false), (2, false), (1, true)].into_iter().enumerate() {
            store.begin_batch();
            let detached = revoke(&mut store, &mut leases, 1, Stamp::default(), 200);
            assert_eq!(detached.ok(), Some(Detached { keys, all }));
            assert_eq!(store.revision(), begin + 1 + part as u64);
            store.commit().expect("there is room");
            leases.publish(|| store.publish());
            assert_eq!(leases.leases().is_empty(), all);
        }
    }
}
