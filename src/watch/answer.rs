//! What a stream tells its client.

use bytes::{BufMut, Bytes};
use smallvec::SmallVec;

use crate::storage::varint;

/// Bytes that an answer takes beside its events, about: in memory, and on the wire.
pub const ANSWER_BYTES: usize = 128;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A watcher was made.
    Created {
        /// Its number on the stream.
        id: i64,
        /// The newest revision.
        revision: u64,
    },
    /// A watcher was not made.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The newest revision.
        revision: u64,
    },
    /// A watcher was cancelled by the client.
    Canceled {
        /// Its number on the stream.
        id: i64,
        /// The newest revision.
        revision: u64,
    },
    /// A watcher was cancelled because what it has yet to hear is compacted.
    Compacted {
        /// Its number on the stream.
        id: i64,
        /// Where history begins.
        floor: u64,
    },
    /// All up to `revision` has been told.
    Progress {
        /// The watcher; `None` is all of the stream.
        id: Option<i64>,
        /// The revision.
        revision: u64,
    },
    /// Events of one watcher: whole revisions, unless it is a fragment.
    Events {
        /// Its number on the stream.
        id: i64,
        /// How far the watcher has heard now, at least the revision of the last event.
        revision: u64,
        /// Whether more of the same answer follows.
        fragment: bool,
        /// Fields `events` of a `WatchResponse`, whole.
        fields: SmallVec<[Bytes; 1]>,
    },
}

impl Answer {
    /// Bytes it takes, about.
    pub fn bytes(&self) -> usize {
        match self {
            Answer::Events { fields, .. } => {
                let field_bytes = |field: &Bytes| size_of::<Bytes>() + field.len();
                ANSWER_BYTES + fields.iter().map(field_bytes).sum::<usize>()
            }
            _ => ANSWER_BYTES,
        }
    }
}

/// Why a watcher is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The start revision is below 0.
    NegativeStart,
    /// No key is in the range.
    EmptyRange,
    /// The number is in use on the stream.
    DuplicateId,
}

/// How a stream ends before its client ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server stops.
    Stopped,
    /// The client has sent what is no request.
    BadRequest,
}

/// What every header says of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The member's id.
    pub member_id: u64,
    /// etcd's raft term.
    pub term: u64,
}

/// Field 1 of `WatchResponse`, a message.
const HEADER: u8 = 1 << 3 | 2;
/// Fields 2 and 7 of `WatchResponse`, numbers.
const WATCH_ID: u8 = 2 << 3;
const FRAGMENT: u8 = 7 << 3;

impl Origin {
    /// Writes an answer with events, as a `WatchResponse`.
    pub fn encode_events(
        &self,
        id: i64,
        revision: u64,
        fragment: bool,
        fields: &[Bytes],
        out: &mut impl BufMut,
    ) {
        let numbers = self.numbers(revision);
        out.put_u8(HEADER);
        varint::put(out, numbers.iter().map(number_len).sum::<usize>() as u64);
        let watch_id = (WATCH_ID, id as u64);
        let fragment = (FRAGMENT, u64::from(fragment));
        for (tag, number) in numbers.into_iter().chain([watch_id, fragment]) {
            if number != 0 {
                out.put_u8(tag);
                varint::put(out, number);
            }
        }
        for field in fields {
            out.put_slice(field);
        }
    }

    /// Bytes that [`Origin::encode_events`] writes before the events.
    pub fn head_len(&self, id: i64, revision: u64, fragment: bool) -> usize {
        let header_len = self.numbers(revision).iter().map(number_len).sum::<usize>();
        let watch_id = number_len(&(WATCH_ID, id as u64));
        let fragment = number_len(&(FRAGMENT, u64::from(fragment)));
        1 + varint::len(header_len as u64) + header_len + watch_id + fragment
    }

    /// Tag and value of each field of the header.
    fn numbers(&self, revision: u64) -> [(u8, u64); 4] {
        [
            (1 << 3, self.cluster_id),
            (2 << 3, self.member_id),
            (3 << 3, revision),
            (4 << 3, self.term),
        ]
    }
}

fn number_len((_, number): &(u8, u64)) -> usize {
    match number {
        0 => 0,
        number => 1 + varint::len(*number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{ResponseHeader, WatchResponse};
    use prost::Message;

    #[test]
    fn an_answer_with_events_is_the_wire_s() {
        let big = Origin {
            cluster_id: u64::MAX,
            member_id: 1 << 40,
            term: 3,
        };
        for origin in [Origin::default(), big] {
            for (id, revision, fragment) in [(0, 0, false), (7, 300, true), (-1, 1 << 50, false)] {
                let mut wire = Vec::new();
                origin.encode_events(id, revision, fragment, &[], &mut wire);
                assert_eq!(wire.len(), origin.head_len(id, revision, fragment));
                let expected = WatchResponse {
                    header: Some(ResponseHeader {
                        cluster_id: origin.cluster_id,
                        member_id: origin.member_id,
                        revision: revision as i64,
                        raft_term: origin.term,
                    }),
                    watch_id: id,
                    fragment,
                    ..Default::default()
                };
                assert_eq!(wire, expected.encode_to_vec());
            }
        }
    }
}
