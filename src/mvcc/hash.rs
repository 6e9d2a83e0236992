//! HashKV: a checksum over history, equal to etcd's for equal history.
//!
//! As etcd's function of the same name, at a revision R with the floor C: the CRC-32C of the word
//! `key`, then of every change up to R, its key and its record. Of those at or before C only what is
//! alive at R counts, unless nothing is; tombstones at C never do (script `hash_compact`).

use bytes::Bytes;

use super::Error;
use super::history::{self, is_newest, stays};
use crate::storage::key_range::KeyRange;
use crate::storage::view::View;

/// What was hashed, and of which revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed {
    /// The checksum.
    pub hash: u32,
    /// The floor, or -1.
    pub compact_revision: i64,
    /// Up to where.
    pub hash_revision: i64,
    /// The newest revision meanwhile.
    pub newest: u64,
}

/// Hashes history up to `revision`; 0 is all of it. `go_on` is asked now and then.
pub fn hash_kv(view: &View, revision: i64, go_on: impl Fn() -> bool) -> Result<Hashed, Error> {
    let compact_revision = view.floor.map_or(-1, |floor| floor as i64);
    if revision > 0 && revision < compact_revision {
        return Err(Error::Compacted);
    }
    if revision > view.revision as i64 {
        return Err(Error::FutureRevision);
    }
    let hash_revision = match revision {
        0 => view.revision as i64,
        asked => asked,
    };
    let mut hash = crc32c::crc32c(b"key");
    // Nothing lies at or before a negative revision (as etcd: script `hash`).
    if let Ok(at) = u64::try_from(hash_revision) {
        let any_alive = any_alive(view, at, &go_on)?;
        history::each(view, at, |met| {
            if !go_on() {
                return Err(Error::Stopped);
            }
            if Some(met.at.main) <= view.floor {
                let counts = if met.is_tombstone() {
                    // Below the floor it counts if it is there, and it is not.
                    false
                } else if any_alive {
                    is_newest(view, &met, at)?
                } else {
                    stays(view, &met)?
                };
                if !counts {
                    return Ok(());
                }
            }
            hash = crc32c::crc32c_append(hash, met.key().as_bytes());
            hash = crc32c::crc32c_append(hash, met.bytes);
            Ok(())
        })?;
    }
    Ok(Hashed {
        hash,
        compact_revision,
        hash_revision,
        newest: view.revision,
    })
}

/// Whether any key is there at revision `at`.
fn any_alive(view: &View, at: u64, go_on: impl Fn() -> bool) -> Result<bool, Error> {
    let all = KeyRange::from_wire(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    let (mut alive, mut wanted) = (false, true);
    view.walk(&all, at, |_, met| {
        alive = !met.version.tombstone;
        wanted = go_on();
        wanted && !alive
    })?;
    wanted.then_some(alive).ok_or(Error::Stopped)
}
