//! Answers, as scripts show them.
//!
//! A header is shown by what it carries, because that is part of the answer:
//! ```text
//! rev=5     cluster id, member id, term and the revision
//! rev=none  cluster id, member id and term, but no revision
//! (rev=5)   the revision alone: an operation inside a txn
//! ()        present and empty: a txn inside a txn
//! absent    not there
//! ```
//! Answers on a watch stream are shown by watcher, since between watchers there is no order. `rev>=5` stands where
//! history was read: events up to 5, in any number of answers, each at some revision from its last event on.
//!
//! Ids and terms are never shown. A version, a lease and `more` are shown where they are not zero or false.

use std::fmt::Write as _;

use metastore::proto::etcdserverpb::response_op::Response;
use metastore::proto::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, ResponseOp, TxnResponse,
    WatchResponse,
};
use metastore::proto::mvccpb::event::EventType;
use metastore::proto::mvccpb::{Event, KeyValue};
use tonic::{Code, Status};

use super::request::FILLING;
use super::watch_rules::{Answer, Kind};

/// Bytes longer than this are shown by their length.
const SHOWN_BYTES_MAX: usize = 64;
/// Of more keys than this the first and the last are shown. They come from `fill`, and are all alike.
const SHOWN_KEYS_MAX: usize = 12;
/// Of more events than this the first and the last are shown.
const SHOWN_EVENTS_MAX: usize = 16;
/// More equal responses in a row than this are shown by their number.
const SHOWN_EQUALS_MAX: usize = 3;

pub(crate) fn header(header: Option<&ResponseHeader>) -> String {
    let Some(ResponseHeader {
        cluster_id,
        member_id,
        revision,
        raft_term,
    }) = header
    else {
        return "absent".into();
    };
    let ids = [*cluster_id != 0, *member_id != 0, *raft_term != 0];
    match (ids, revision) {
        ([true, true, true], 0) => "rev=none".into(),
        ([true, true, true], revision) => format!("rev={revision}"),
        ([false, false, false], 0) => "()".into(),
        ([false, false, false], revision) => format!("(rev={revision})"),
        (ids, revision) => format!("cluster,member,term={ids:?} rev={revision}"),
    }
}

pub(crate) fn range(answer: &RangeResponse) -> String {
    let RangeResponse {
        header: head,
        kvs,
        more,
        count,
    } = answer;
    let more = if *more { " more" } else { "" };
    let mut text = format!("{} count={count}{more}", header(head.as_ref()));
    if kvs.len() > SHOWN_KEYS_MAX {
        let (first, last) = (&kvs[0], &kvs[kvs.len() - 1]);
        let _ = write!(
            text,
            "\n  {}\n  ... {} in all ...\n  {}",
            key_value(first),
            kvs.len(),
            key_value(last)
        );
        return text;
    }
    for kv in kvs {
        let _ = write!(text, "\n  {}", key_value(kv));
    }
    text
}

pub(crate) fn put(answer: &PutResponse) -> String {
    let previous = answer
        .prev_kv
        .as_ref()
        .map(|kv| format!("\n  was {}", key_value(kv)));
    header(answer.header.as_ref()) + &previous.unwrap_or_default()
}

pub(crate) fn delete(answer: &DeleteRangeResponse) -> String {
    let mut text = format!(
        "{} deleted={}",
        header(answer.header.as_ref()),
        answer.deleted
    );
    for kv in &answer.prev_kvs {
        let _ = write!(text, "\n  was {}", key_value(kv));
    }
    text
}

pub(crate) fn txn(answer: &TxnResponse) -> String {
    let branch = if answer.succeeded {
        "succeeded"
    } else {
        "failed"
    };
    let mut text = format!("{} {branch}", header(answer.header.as_ref()));
    for equals in answer.responses.chunk_by(|one, next| one == next) {
        let shown = operation(&equals[0]).replace('\n', "\n  ");
        match equals.len() {
            many if many > SHOWN_EQUALS_MAX => {
                let _ = write!(text, "\n  {many} times {shown}");
            }
            few => text += &format!("\n  {shown}").repeat(few),
        }
    }
    text
}

fn operation(answer: &ResponseOp) -> String {
    match &answer.response {
        Some(Response::ResponseRange(answer)) => format!("get {}", range(answer)),
        Some(Response::ResponsePut(answer)) => format!("put {}", put(answer)),
        Some(Response::ResponseDeleteRange(answer)) => format!("del {}", delete(answer)),
        Some(Response::ResponseTxn(answer)) => format!("txn {}", txn(answer)),
        None => "nothing".into(),
    }
}

/// What came on a watch stream, each watcher by itself.
pub(crate) fn watch(answers: &[Answer]) -> String {
    let mut answers: Vec<&Answer> = answers.iter().collect();
    // Stable, so that a watcher's answers stay in order. Refused creates and progress have one id, and no order.
    answers.sort_by_key(|answer| (answer.response.watch_id, answer.kind != Kind::Created));
    let is_history = |answer: &&Answer| answer.kind == Kind::History;
    let one_history = |a: &&Answer, b: &&Answer| {
        is_history(a) && is_history(b) && a.response.watch_id == b.response.watch_id
    };
    let shown = answers.chunk_by(one_history).map(|equals| match equals {
        [answer] if !is_history(answer) => watch_answer(answer),
        history => {
            let all = history.iter().flat_map(|answer| &answer.response.events);
            let all: Vec<&Event> = all.collect();
            let id = history[0].response.watch_id;
            let last = all.last().and_then(|event| event.kv.as_ref());
            let last = last.map_or(0, |kv| kv.mod_revision);
            format!("id={id} rev>={last}{}", events(&all))
        }
    });
    shown.collect::<Vec<_>>().join("\n")
}

fn watch_answer(answer: &Answer) -> String {
    let WatchResponse {
        header: head,
        watch_id,
        created,
        canceled,
        compact_revision,
        cancel_reason,
        fragment: _,
        events: all,
    } = &answer.response;
    let mut text = format!("id={watch_id} {}", header(head.as_ref()));
    for (word, set) in [("created", *created), ("canceled", *canceled)] {
        if set {
            let _ = write!(text, " {word}");
        }
    }
    if *compact_revision != 0 {
        let _ = write!(text, " compact={compact_revision}");
    }
    if !cancel_reason.is_empty() {
        let _ = write!(text, " reason={cancel_reason:?}");
    }
    if answer.parts > 1 {
        let _ = write!(text, " parts={}", answer.parts);
    }
    text + &events(&all.iter().collect::<Vec<_>>())
}

/// Each event on a line, and of many the first and the last.
fn events(events: &[&Event]) -> String {
    if let [first, .., last] = events
        && events.len() > SHOWN_EVENTS_MAX
    {
        let at = |event: &&Event| event.kv.as_ref().map(|kv| kv.mod_revision);
        let revisions = events.chunk_by(|a, b| at(a) == at(b)).count();
        let count = events.len();
        return format!(
            "{}\n  ... {count} in all, of {revisions} revisions ...{}",
            event(first),
            event(last)
        );
    }
    events.iter().map(|one| event(one)).collect()
}

fn event(event: &Event) -> String {
    let kind = match event.r#type() {
        EventType::Put => "put",
        EventType::Delete => "del",
    };
    let show = |kv: &Option<KeyValue>| kv.as_ref().map_or("absent".into(), key_value);
    let mut text = format!("\n  {kind} {}", show(&event.kv));
    if event.prev_kv.is_some() {
        let _ = write!(text, "\n    was {}", show(&event.prev_kv));
    }
    text
}

fn key_value(kv: &KeyValue) -> String {
    let KeyValue {
        key,
        value,
        create_revision,
        mod_revision,
        version,
        lease,
    } = kv;
    let lease = if *lease == 0 {
        String::new()
    } else {
        format!(" lease={lease}")
    };
    let (key, value) = (bytes(key), bytes(value));
    format!("{key}={value} create={create_revision} mod={mod_revision} version={version}{lease}")
}

pub(crate) fn bytes(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./@".contains(byte);
    if bytes.len() > SHOWN_BYTES_MAX && bytes.iter().all(|byte| *byte == FILLING) {
        return format!("<{} bytes>", bytes.len());
    }
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    format!("\"{}\"", bytes.escape_ascii())
}

/// A refusal: code and text. The texts of gRPC itself differ from library to library, so they are left out.
pub(crate) fn refusal(status: &Status) -> String {
    let (code, text) = (status.code(), status.message());
    let by_etcd =
        text.starts_with("etcdserver: ") || text.starts_with("RangeStream does not support ");
    match by_etcd || code == Code::Unknown {
        true => format!("{code:?} {text:?}"),
        false => format!("{code:?}"),
    }
}
