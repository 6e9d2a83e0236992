//! The small state: alarms, users, roles and what else there is little of.
//!
//! Its rows are those of etcd's own small buckets, byte for byte: so what an etcd wrote is kept as
//! it is, and goes into a snapshot as it is. All of it lies in memory, one copy for all readers of a
//! moment; a change makes a copy, since changes are rare.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Damaged;

/// A small bucket of etcd's; the order is that of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    /// Alarms that are raised.
    Alarm,
    /// Whether authentication is on, and how often its state has changed.
    Auth,
    /// Roles by name.
    AuthRoles,
    /// Users by name.
    AuthUsers,
    /// What the member was told of itself after its first start.
    Members,
}

impl Bucket {
    /// All buckets, in order.
    pub const ALL: [Bucket; 5] = [
        Bucket::Alarm,
        Bucket::Auth,
        Bucket::AuthRoles,
        Bucket::AuthUsers,
        Bucket::Members,
    ];

    /// etcd's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Bucket::Alarm => "alarm",
            Bucket::Auth => "auth",
            Bucket::AuthRoles => "authRoles",
            Bucket::AuthUsers => "authUsers",
            Bucket::Members => "members",
        }
    }

    /// The bucket of that name.
    pub fn named(name: &[u8]) -> Result<Bucket, Damaged> {
        let found = Bucket::ALL
            .into_iter()
            .find(|bucket| bucket.name().as_bytes() == name);
        found.ok_or(Damaged("a small bucket that no store has"))
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Small {
    rows: BTreeMap<(Bucket, Vec<u8>), Arc<[u8]>>,
    bytes: usize,
}

impl Small {
    /// Puts a row in the place of the one of its key; `None` removes that.
    pub fn set(&mut self, bucket: Bucket, key: &[u8], value: Option<&[u8]>) {
        let place = (bucket, key.to_vec());
        let before = match value {
            Some(value) => {
                self.bytes += key.len() + value.len();
                self.rows.insert(place, value.into())
            }
            None => self.rows.remove(&place),
        };
        if let Some(before) = before {
            self.bytes -= key.len() + before.len();
        }
    }

    /// The value of a row.
    pub fn get(&self, bucket: Bucket, key: &[u8]) -> Option<&[u8]> {
        self.rows
            .get(&(bucket, key.to_vec()))
            .map(|value| &value[..])
    }

    /// The rows of a bucket, in order of their keys.
    pub fn rows(&self, bucket: Bucket) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.rows
            .range((bucket, Vec::new())..)
            .take_while(move |((of, _), _)| *of == bucket)
            .map(|((_, key), value)| (&key[..], &value[..]))
    }

    /// All rows, in order.
    pub fn all(&self) -> impl Iterator<Item = (Bucket, &[u8], &[u8])> {
        self.rows
            .iter()
            .map(|((bucket, key), value)| (*bucket, &key[..], &value[..]))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_apart_by_bucket_and_counted() {
        let mut small = Small::default();
        small.set(Bucket::AuthUsers, b"root", Some(b"abc"));
        small.set(Bucket::AuthUsers, b"alice", Some(b"d"));
        small.set(Bucket::AuthRoles, b"root", Some(b""));
        small.set(Bucket::AuthUsers, b"root", Some(b"ab"));
        let users: Vec<_> = small.rows(Bucket::AuthUsers).collect();
        assert_eq!(users, [(&b"alice"[..], &b"d"[..]), (b"root", b"ab")]);
        assert_eq!(small.rows(Bucket::Auth).count(), 0);
        assert_eq!(small.rows(Bucket::AuthRoles).count(), 1);
        assert_eq!(small.bytes(), 5 + 1 + 4 + 4 + 2);
        for key in [&b"alice"[..], b"root", b"nobody"] {
            small.set(Bucket::AuthUsers, key, None);
            small.set(Bucket::AuthRoles, key, None);
        }
        assert_eq!(small, Small::default());
        for bucket in Bucket::ALL {
            assert_eq!(Bucket::named(bucket.name().as_bytes()), Ok(bucket));
        }
        assert!(Bucket::ALL.is_sorted());
        assert!(Bucket::ALL.is_sorted_by_key(|bucket| bucket.name()));
        assert!(Bucket::named(b"key").is_err());
    }
}
