//! What holds of every answer on a watch stream, whatever the script: checked as the answers come.
//!
//! How history is cut into answers, and at which revision it was read, is the server's choice. So scripts show the events
//! alone, and the rest is a rule:
//! - the first answer for a watcher is its created one, in the order of the requests; after the last, nothing comes;
//! - its revisions ascend from answer to answer, so that each is whole in one, and none is below what was asked for;
//! - a header stands at the last event or later; for a live watcher exactly there, and each revision has its answer;
//! - after progress at P come only events after P, and progress is told to no watcher that still waits for its start;
//! - parts of a fragmented answer follow one another, alike but for their events, and are small or a single event.
//!
//! A watcher is known to be live if it started after the store's revision, or once it has heard of progress.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use metastore::proto::etcdserverpb::watch_request::RequestUnion;
use metastore::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use prost::Message;

use super::answer;

/// The watcher of a refused create, and of progress that was asked for.
const NO_WATCHER: i64 = -1;
/// Parts of more than one event are smaller: `--max-request-bytes` and 512 KiB.
const PART_BYTES_MAX: usize = 2 << 20;

/// An answer with its parts put together.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: WatchResponse,
    pub(crate) kind: Kind,
    pub(crate) parts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To a create request, be it refused.
    Created,
    /// Whether asked for or not.
    Canceled,
    /// Asked for.
    Progress,
    /// Periodic.
    Notified,
    /// Events of one revision, to a live watcher.
    Live,
    /// Events to a watcher that may still read history.
    History,
}

impl Answer {
    pub(crate) fn revision(&self) -> i64 {
        revision(&self.response)
    }
}

fn revision(response: &WatchResponse) -> i64 {
    let header = response.header.as_ref();
    header.expect("every answer has a header").revision
}

/// What is known of a stream.
#[derive(Default)]
pub(crate) struct Rules {
    creates: VecDeque<WatchCreateRequest>,
    /// Each id that the client asked to cancel, ever.
    cancels: BTreeSet<i64>,
    watchers: BTreeMap<i64, Watcher>,
    /// The parts that came of an answer that is not whole yet.
    parts: Option<Answer>,
}

struct Watcher {
    request: WatchCreateRequest,
    /// All events up to here have come, or were not asked for.
    told: i64,
    live: bool,
    /// Canceled by a compaction; its id stays in use until the client cancels it too.
    over: bool,
}

impl Rules {
    pub(crate) fn sent(&mut self, request: &WatchRequest) {
        match &request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.creates.push_back(create.clone()),
            Some(RequestUnion::CancelRequest(cancel)) => drop(self.cancels.insert(cancel.watch_id)),
            Some(RequestUnion::ProgressRequest(_)) | None => {}
        }
    }

    /// Checks what came, and gives the answer once it is whole.
    pub(crate) fn take(&mut self, part: WatchResponse) -> Option<Answer> {
        let mut whole = self.join(part)?;
        whole.kind = self.kind_of(&whole.response);
        match whole.kind {
            Kind::Created => self.created(&whole.response),
            Kind::Canceled => self.canceled(&whole.response),
            Kind::Progress => {
                let watchers = self.watchers.values_mut();
                assert!(watchers.len() > 0, "there is no watcher: {whole:?}");
                watchers.for_each(|watcher| watcher.progress(&whole.response));
            }
            Kind::Notified => {
                let watcher = self.watcher(&whole.response);
                assert!(watcher.request.progress_notify, "not wanted: {whole:?}");
                watcher.progress(&whole.response);
            }
            Kind::Live | Kind::History => self.watcher(&whole.response).events(&whole.response),
        }
        Some(whole)
    }

    fn join(&mut self, part: WatchResponse) -> Option<Answer> {
        let by_watcher = self.watchers.get(&part.watch_id);
        let fragments = by_watcher.is_some_and(|watcher| watcher.request.fragment);
        assert!(
            !part.fragment || fragments,
            "not to be fragmented: {}",
            part.watch_id
        );
        let (bytes, events) = (part.encoded_len(), part.events.len());
        assert!(
            !fragments || bytes < PART_BYTES_MAX || events == 1,
            "{events} events in a part of {bytes} bytes"
        );
        let more = part.fragment;
        let mut answer = match self.parts.take() {
            None => Answer {
                response: part,
                kind: Kind::History,
                parts: 1,
            },
            Some(mut answer) => {
                let first = &mut answer.response;
                assert_eq!(
                    (part.watch_id, &part.header),
                    (first.watch_id, &first.header),
                    "between two parts of an answer came another"
                );
                first.events.extend(part.events);
                answer.parts += 1;
                answer
            }
        };
        answer.response.fragment = more;
        if more {
            self.parts = Some(answer);
            return None;
        }
        Some(answer)
    }

    fn kind_of(&self, response: &WatchResponse) -> Kind {
        let live = |watcher: &Watcher| watcher.live;
        match response {
            response if response.created => Kind::Created,
            response if response.canceled => Kind::Canceled,
            response if response.events.is_empty() => match response.watch_id {
                NO_WATCHER => Kind::Progress,
                _ => Kind::Notified,
            },
            response if self.watchers.get(&response.watch_id).is_some_and(live) => Kind::Live,
            _ => Kind::History,
        }
    }

    fn watcher(&mut self, response: &WatchResponse) -> &mut Watcher {
        let watcher = self.watchers.get_mut(&response.watch_id);
        let there = watcher.filter(|watcher| !watcher.over);
        there.unwrap_or_else(|| panic!("no such watcher, or no more: {}", shown(response)))
    }

    fn created(&mut self, response: &WatchResponse) {
        let request = self.creates.pop_front();
        let request = request.unwrap_or_else(|| panic!("not asked for: {}", shown(response)));
        assert!(response.events.is_empty(), "{}", shown(response));
        if response.canceled {
            assert_eq!(response.watch_id, NO_WATCHER, "{}", shown(response));
            return;
        }
        let asked = [0, response.watch_id].contains(&request.watch_id);
        assert!(
            asked,
            "another id than {}: {}",
            request.watch_id,
            shown(response)
        );
        let revision = revision(response);
        let (live, told) = match request.start_revision {
            0 => (true, revision),
            start => (start > revision, start - 1),
        };
        let watcher = Watcher {
            request,
            told,
            live,
            over: false,
        };
        let before = self.watchers.insert(response.watch_id, watcher);
        assert!(before.is_none(), "in use: {}", shown(response));
    }

    fn canceled(&mut self, response: &WatchResponse) {
        assert!(response.events.is_empty(), "{}", shown(response));
        if response.compact_revision != 0 {
            let watcher = self.watcher(response);
            let start = watcher.told + 1;
            assert!(
                !watcher.live,
                "a live watcher lost nothing: {}",
                shown(response)
            );
            assert!(
                start < response.compact_revision,
                "from {start}: {}",
                shown(response)
            );
            watcher.over = true;
            return;
        }
        let asked = self.cancels.contains(&response.watch_id);
        let there = self.watchers.remove(&response.watch_id).is_some();
        assert!(
            asked && there,
            "not asked for, or not there: {}",
            shown(response)
        );
    }
}

impl Watcher {
    fn progress(&mut self, response: &WatchResponse) {
        let revision = revision(response);
        let start = self.request.start_revision;
        assert!(
            !self.over,
            "a watcher of the stream is over: {}",
            shown(response)
        );
        assert!(
            revision >= start,
            "before the start {start}: {}",
            shown(response)
        );
        assert!(
            revision >= self.told,
            "after {}: {}",
            self.told,
            shown(response)
        );
        self.told = revision;
        self.live = true;
    }

    fn events(&mut self, response: &WatchResponse) {
        let revision = revision(response);
        let revisions = response.events.iter().map(|event| {
            let kv = event.kv.as_ref();
            kv.expect("an event has a key").mod_revision
        });
        let (first, last) = (revisions.clone().next(), revisions.clone().next_back());
        let (first, last) = (first.unwrap_or(0), last.unwrap_or(0));
        assert!(first > self.told, "{first} after {}", self.told);
        assert!(revisions.is_sorted(), "{}", shown(response));
        assert!(revision >= last, "{last} at {}", shown(response));
        assert!(
            !self.live || first == revision,
            "{first} to {last} for a live watcher: {}",
            shown(response)
        );
        assert_eq!(
            answer::header(response.header.as_ref()),
            format!("rev={revision}"),
            "ids and term are set"
        );
        self.told = last;
    }
}

/// For messages: without the events, of which there may be many megabytes.
fn shown(response: &WatchResponse) -> String {
    let events = response.events.len();
    let head = WatchResponse {
        events: Vec::new(),
        ..response.clone()
    };
    format!("{head:?} and {events} events")
}

#[cfg(test)]
mod tests {
    use metastore::proto::etcdserverpb::ResponseHeader;
    use metastore::proto::mvccpb::{Event, KeyValue};

    use super::*;

    fn answer(watch_id: i64, revision: i64) -> WatchResponse {
        let header = Some(ResponseHeader {
            cluster_id: 1,
            member_id: 1,
            revision,
            raft_term: 1,
        });
        WatchResponse {
            header,
            watch_id,
            ..Default::default()
        }
    }

    fn events(watch_id: i64, revision: i64, at: &[i64]) -> WatchResponse {
        let event = |mod_revision: &i64| {
            let kv = Some(KeyValue {
                mod_revision: *mod_revision,
                ..Default::default()
            });
            Event {
                kv,
                ..Default::default()
            }
        };
        WatchResponse {
            events: at.iter().map(event).collect(),
            ..answer(watch_id, revision)
        }
    }

    /// A stream at revision 5 with one watcher.
    fn watching(create: WatchCreateRequest) -> Rules {
        let mut rules = Rules::default();
        let request_union = Some(RequestUnion::CreateRequest(create));
        rules.sent(&WatchRequest { request_union });
        let created = true;
        rules.take(WatchResponse {
            created,
            ..answer(0, 5)
        });
        rules
    }

    fn from(start_revision: i64) -> WatchCreateRequest {
        WatchCreateRequest {
            start_revision,
            fragment: true,
            ..Default::default()
        }
    }

    #[test]
    fn history_may_be_cut_anywhere_between_revisions() {
        let mut rules = watching(from(2));
        let history = [events(0, 5, &[2, 3, 3]), events(0, 6, &[5])];
        for answer in history {
            assert_eq!(rules.take(answer).unwrap().kind, Kind::History);
        }
        rules.take(answer(NO_WATCHER, 6));
        assert_eq!(rules.take(events(0, 7, &[7])).unwrap().kind, Kind::Live);
    }

    #[test]
    fn parts_are_put_together() {
        let mut rules = watching(from(2));
        let fragment = true;
        let part = WatchResponse {
            fragment,
            ..events(0, 5, &[2, 3])
        };
        assert!(rules.take(part).is_none());
        let whole = rules.take(events(0, 5, &[3, 4])).unwrap();
        assert_eq!((whole.parts, whole.response.events.len()), (2, 4));
    }

    #[test]
    fn what_breaks_a_rule_is_found() {
        let canceled = true;
        let fragment = true;
        let broken = [
            ("below its start", vec![events(0, 5, &[1])]),
            (
                "a cut revision",
                vec![events(0, 5, &[2]), events(0, 5, &[2])],
            ),
            ("out of order", vec![events(0, 5, &[3, 2])]),
            ("later than its header", vec![events(0, 5, &[6])]),
            (
                "after progress",
                vec![answer(NO_WATCHER, 5), events(0, 6, &[5])],
            ),
            (
                "two revisions live",
                vec![answer(NO_WATCHER, 5), events(0, 7, &[6, 7])],
            ),
            ("nobody's", vec![events(1, 5, &[5])]),
            ("unwanted progress", vec![answer(0, 5)]),
            (
                "a cancel nobody asked for",
                vec![WatchResponse {
                    canceled,
                    ..answer(0, 5)
                }],
            ),
            (
                "between two parts",
                vec![
                    WatchResponse {
                        fragment,
                        ..events(0, 5, &[2])
                    },
                    answer(NO_WATCHER, 5),
                ],
            ),
        ];
        for (what, answers) in broken {
            let play = || {
                let mut rules = watching(from(2));
                for answer in answers {
                    rules.take(answer);
                }
            };
            let play = std::panic::AssertUnwindSafe(play);
            assert!(std::panic::catch_unwind(play).is_err(), "{what}");
        }
    }
}
