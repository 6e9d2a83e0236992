//! Events, in the wire's own bytes: written once, shared by all who get them.
//!
//! An event is kept as the whole field `events` of a `WatchResponse`, tag and length included, so
//! that an answer is put together by laying events one behind the other. A version record is a
//! `mvccpb.KeyValue` as it lies; that of a delete gets its revision here, which etcd does not store
//! either (docs/format.md).

use bytes::{BufMut, Bytes};

use crate::storage::record::Record;
use crate::storage::view::View;
use crate::storage::{self, Damaged, varint};

/// Field 11 of `WatchResponse`, a message.
const EVENTS: u8 = 11 << 3 | 2;
/// Field 1 of `Event`, a number.
const TYPE: u8 = 1 << 3;
const DELETE: u8 = 1;
/// Fields 2 and 3 of `Event`, messages.
const KV: u8 = 2 << 3 | 2;
const PREV_KV: u8 = 3 << 3 | 2;
/// Field 3 of `KeyValue`, a number.
const MOD_REVISION: u8 = 3 << 3;

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was written.
    Put,
    /// It was deleted, by a client or by the end of its lease.
    Delete,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Event {
    /// The main revision of the change.
    pub main: u64,
    /// What happened.
    pub kind: Kind,
    /// Whether the key was there before, unless it came and went in one revision.
    pub replaces: bool,
    /// The key.
    pub key: Bytes,
    /// The event without the pair before it.
    plain: Bytes,
    with_prev: Option<Bytes>,
}

impl Event {
    /// The event of the change that wrote `record` at revision `main`.
    pub fn of(main: u64, record: &[u8]) -> Result<Event, Damaged> {
        let parsed = Record::decode(record)?;
        let kind = match parsed.version {
            0 => Kind::Delete,
            _ => Kind::Put,
        };
        let kv_len = match kind {
            Kind::Put => record.len(),
            Kind::Delete => record.len() + 1 + varint::len(main),
        };
        let mut wire = begin(kind, kv_len, 0);
        let kv_at = wire.len();
        wire.put_slice(record);
        if kind == Kind::Delete {
            wire.put_u8(MOD_REVISION);
            varint::put(&mut wire, main);
        }
        assert_eq!(wire.len(), kv_at + kv_len, "the length was right");
        let plain = Bytes::from(wire);
        // Behind the key's tag and length.
        let key_at = kv_at + 1 + varint::len(parsed.key.len() as u64);
        Ok(Event {
            main,
            kind,
            replaces: kind == Kind::Delete || parsed.create != main,
            key: plain.slice(key_at..key_at + parsed.key.len()),
            plain,
            with_prev: None,
        })
    }

    /// Adds `prev`, the version record before the event.
    fn set_prev(&mut self, prev: &[u8]) {
        let prev_len = 1 + varint::len(prev.len() as u64) + prev.len();
        // The pair lies behind what begins the event, and ends it.
        let kv_len = self.kv().len();
        let mut wire = begin(self.kind, kv_len, prev_len);
        wire.put_slice(self.kv());
        wire.put_u8(PREV_KV);
        varint::put_bytes(&mut wire, prev);
        self.with_prev = Some(wire.into());
    }

    fn kv(&self) -> &[u8] {
        let mut rest = &self.plain[1..];
        let mut rest = varint::take_bytes(&mut rest).expect("the event was written here");
        if self.kind == Kind::Delete {
            rest = &rest[2..];
        }
        rest = &rest[1..];
        varint::take_bytes(&mut rest).expect("the pair was written here")
    }

    /// The event as a field of a `WatchResponse`, with the pair before it if that is wanted and
    /// there is one.
    pub fn field(&self, with_prev: bool) -> &Bytes {
        match &self.with_prev {
            Some(wire) if with_prev => wire,
            _ => &self.plain,
        }
    }

    /// Bytes that the event takes.
    pub fn bytes(&self) -> usize {
        self.plain.len() + self.with_prev.as_ref().map_or(0, Bytes::len)
    }
}

/// The head of an event, up to where its pair begins.
fn begin(kind: Kind, kv_len: usize, prev_len: usize) -> Vec<u8> {
    let type_len = match kind {
        Kind::Put => 0,
        Kind::Delete => 2,
    };
    let event_len = type_len + 1 + varint::len(kv_len as u64) + kv_len + prev_len;
    let mut wire = Vec::with_capacity(1 + varint::len(event_len as u64) + event_len);
    wire.put_u8(EVENTS);
    varint::put(&mut wire, event_len as u64);
    if kind == Kind::Delete {
        wire.put_u8(TYPE);
        wire.put_u8(DELETE);
    }
    wire.put_u8(KV);
    varint::put(&mut wire, kv_len as u64);
    wire
}

/// Adds to `events`, where `wanted` says so, the pair that was there one revision before, as far
/// as history reaches: below the floor nothing is told, as in etcd (script `watch_prev_kv`).
///
/// Ends with a whole revision once all events together take `bytes_max`; answers how many it came
/// to.
pub fn add_prev(
    view: &View,
    events: &mut [Event],
    wanted: impl Fn(usize) -> bool,
    bytes_max: usize,
) -> Result<usize, storage::Error> {
    let mut bytes = 0;
    let mut last = None;
    for (place, event) in events.iter_mut().enumerate() {
        if bytes >= bytes_max && last.is_some_and(|last| last != event.main) {
            return Ok(place);
        }
        last = Some(event.main);
        let before = event.main - 1;
        if event.replaces
            && wanted(place)
            && view.floor.is_none_or(|floor| floor <= before)
            && let Some(met) = view.newest(&event.key, before)?
            && !met.version.tombstone
        {
            event.set_prev(&view.record(&met)?);
        }
        bytes += event.bytes();
    }
    Ok(events.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::WatchResponse;
    use crate::proto::mvccpb;
    use prost::Message;

    fn read(field: &Bytes) -> mvccpb::Event {
        let response = WatchResponse::decode(field.clone()).expect("it is an answer");
        assert_eq!(response.events.len(), 1);
        response.events[0].clone()
    }

    #[test]
    fn events_are_the_wire_s() {
        let long = vec![b'v'; 300];
        for (key, value) in [(&b"k"[..], &b""[..]), (b"key", b"value"), (&long, &long)] {
            let record = Record {
                key,
                create: 7,
                modified: 300,
                version: 2,
                value,
                lease: -1,
            };
            let before = Record {
                modified: 200,
                version: 1,
                ..record
            };
            let kv = |record: &Record<'_>| mvccpb::KeyValue {
                key: Bytes::copy_from_slice(record.key),
                create_revision: record.create as i64,
                mod_revision: record.modified as i64,
                version: record.version as i64,
                value: Bytes::copy_from_slice(record.value),
                lease: record.lease,
            };
            let mut put = Event::of(300, &record.encode()).expect("a sound record");
            assert!(put.replaces);
            assert_eq!(put.key, key);
            let mut expected = mvccpb::Event {
                r#type: 0,
                kv: Some(kv(&record)),
                prev_kv: None,
            };
            assert_eq!(read(put.field(false)), expected);
            assert_eq!(read(put.field(true)), expected);
            put.set_prev(&before.encode());
            assert_eq!(read(put.field(false)), expected);
            expected.prev_kv = Some(kv(&before));
            assert_eq!(read(put.field(true)), expected);

            let tombstone = Record::tombstone(key).encode();
            let mut delete = Event::of(300, &tombstone).expect("a sound record");
            assert_eq!(delete.key, key);
            delete.set_prev(&before.encode());
            let mut expected = mvccpb::Event {
                r#type: 1,
                kv: Some(mvccpb::KeyValue {
                    key: Bytes::copy_from_slice(key),
                    mod_revision: 300,
                    ..Default::default()
                }),
                prev_kv: None,
            };
            assert_eq!(read(delete.field(false)), expected);
            expected.prev_kv = Some(kv(&before));
            assert_eq!(read(delete.field(true)), expected);
        }
    }
}
