//! Version records: what the store keeps of one change, in etcd's own bytes.
//!
//! A record is a `mvccpb.KeyValue` as a Go encoder writes it: fields in ascending number, zero
//! fields left out. A tombstone holds the key alone. So a record goes to a client, into a backup
//! and into HashKV as it lies, and a reader takes key and value out of it without a copy.
//!
//! What holds: `Record::encode` and [`Record::decode`] are inverse; decoding accepts exactly what
//! encoding writes (any other bytes are damage), and never panics.

use bytes::{BufMut, Bytes};

use super::Damaged;
use super::varint;

const KEY: u8 = 1 << 3 | 2;
const CREATE_REVISION: u8 = 2 << 3;
const MOD_REVISION: u8 = 3 << 3;
const VERSION: u8 = 4 << 3;
const VALUE: u8 = 5 << 3 | 2;
const LEASE: u8 = 6 << 3;

/// One version of a key, or the tombstone that ended its life (`version` 0).
///
/// Borrows from where it was decoded; all numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The key; never empty.
    pub key: &'a [u8],
    /// Revision of the put that began this life.
    pub create: u64,
    /// Revision of this change.
    pub modified: u64,
    /// Puts in this life, from 1; 0 in a tombstone.
    pub version: u64,
    /// The value.
    pub value: &'a [u8],
    /// The lease that holds the key; 0 is none.
    pub lease: i64,
}

impl<'a> Record<'a> {
    /// The tombstone of `key`.
    pub fn tombstone(key: &'a [u8]) -> Record<'a> {
        Record {
            key,
            create: 0,
            modified: 0,
            version: 0,
            value: &[],
            lease: 0,
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        assert!(!self.key.is_empty(), "a record has a key");
        let mut out = Vec::with_capacity(self.encoded_len());
        out.put_u8(KEY);
        varint::put(&mut out, self.key.len() as u64);
        out.put_slice(self.key);
        for (tag, number) in [
            (CREATE_REVISION, self.create),
            (MOD_REVISION, self.modified),
            (VERSION, self.version),
        ] {
            if number != 0 {
                out.put_u8(tag);
                varint::put(&mut out, number);
            }
        }
        if !self.value.is_empty() {
            out.put_u8(VALUE);
            varint::put(&mut out, self.value.len() as u64);
            out.put_slice(self.value);
        }
        if self.lease != 0 {
            out.put_u8(LEASE);
            varint::put(&mut out, self.lease as u64);
        }
        assert_eq!(out.len(), self.encoded_len(), "the length was right");
        out
    }

    fn encoded_len(&self) -> usize {
        let number = |n: u64| if n == 0 { 0 } else { 1 + varint::len(n) };
        let bytes = |b: &[u8]| 1 + varint::len(b.len() as u64) + b.len();
        bytes(self.key)
            + number(self.create)
            + number(self.modified)
            + number(self.version)
            + if self.value.is_empty() {
                0
            } else {
                bytes(self.value)
            }
            + number(self.lease as u64)
    }

    /// Reads what [`Record::encode`] wrote.
    pub fn decode(mut bytes: &'a [u8]) -> Result<Record<'a>, Damaged> {
        const WHAT: Damaged = Damaged("a version record that no store writes");
        let rest = &mut bytes;
        let key = field(rest, KEY)
            .and_then(varint::take_bytes)
            .filter(|key| !key.is_empty())
            .ok_or(WHAT)?;
        let mut record = Record::tombstone(key);
        for (tag, number) in [
            (CREATE_REVISION, &mut record.create),
            (MOD_REVISION, &mut record.modified),
            (VERSION, &mut record.version),
        ] {
            if let Some(rest) = field(rest, tag) {
                *number = varint::take(rest).filter(|n| *n != 0).ok_or(WHAT)?;
            }
        }
        if let Some(rest) = field(rest, VALUE) {
            let value = varint::take_bytes(rest).filter(|value| !value.is_empty());
            record.value = value.ok_or(WHAT)?;
        }
        if let Some(rest) = field(rest, LEASE) {
            record.lease = varint::take(rest).filter(|n| *n != 0).ok_or(WHAT)? as i64;
        }
        if rest.is_empty() {
            Ok(record)
        } else {
            Err(WHAT)
        }
    }
}

/// The key of a record, without a look at the rest. For records that [`Record::encode`] wrote.
pub fn key_of(record: &[u8]) -> &[u8] {
    let mut rest = &record[1..];
    varint::take_bytes(&mut rest).expect("a record begins with its key")
}

/// Steps over `tag` if it comes next.
fn field<'r, 'a>(rest: &'r mut &'a [u8], tag: u8) -> Option<&'r mut &'a [u8]> {
    let (first, tail) = rest.split_first()?;
    if *first != tag {
        return None;
    }
    *rest = tail;
    Some(rest)
}

/// A stored version with what it shares: what a read answers with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Revision of the put that began this life.
    pub create: u64,
    /// Revision of this change.
    pub modified: u64,
    /// Puts in this life, from 1.
    pub version: u64,
    /// The value.
    pub value: Bytes,
    /// The lease that holds the key; 0 is none.
    pub lease: i64,
}

impl KeyValue {
    /// Key and value as slices of `record`.
    pub fn of(record: &Bytes) -> Result<KeyValue, Damaged> {
        let parsed = Record::decode(record)?;
        Ok(KeyValue {
            key: record.slice_ref(parsed.key),
            create: parsed.create,
            modified: parsed.modified,
            version: parsed.version,
            value: if parsed.value.is_empty() {
                Bytes::new()
            } else {
                record.slice_ref(parsed.value)
            },
            lease: parsed.lease,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mvccpb;
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        /// The bytes are those of any protobuf encoder, and come back as they were.
        #[test]
        fn a_record_is_the_wire_s_message(
            key in prop::collection::vec(any::<u8>(), 1..20),
            value in prop::collection::vec(any::<u8>(), 0..200),
            create in any::<u64>(), modified in 0..1000u64, version in 0..3u64,
            lease in prop_oneof![Just(0), any::<i64>()],
        ) {
            let record = Record { key: &key, create, modified, version, value: &value, lease };
            let bytes = record.encode();
            let message = mvccpb::KeyValue {
                key: Bytes::from(key.clone()),
                create_revision: create as i64,
                mod_revision: modified as i64,
                version: version as i64,
                value: Bytes::from(value.clone()),
                lease,
            };
            prop_assert_eq!(&bytes[..], &message.encode_to_vec()[..]);
            prop_assert_eq!(Record::decode(&bytes)?, record);
        }

        /// Whatever is accepted is what encoding would have written.
        #[test]
        fn nothing_else_is_accepted(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(&record.encode()[..], &bytes[..]);
            }
        }
    }
}
