//! What must hold of a history, and of all that clients were told of it: plain functions over what was written down.
//!
//! The history is what one watcher of everything heard from the first revision on. It is believed only if it runs on
//! without gaps, every event follows from those before it, and each revision is explained by one write that a client
//! sent. Everything else is held against it: a write's answer, and every session of every watcher.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use metastore::proto::mvccpb::event::EventType;
use metastore::proto::mvccpb::{Event, KeyValue};
use metastore::storage::key_range::KeyRange;

/// The revision of an empty store; the first write gets the next.
pub(crate) const EMPTY: i64 = 1;

/// Ends a check that found something.
macro_rules! fail {
    ($($words:tt)*) => { return Err(format!($($words)*)) };
}

/// The pairs as of one revision.
pub(crate) type State = BTreeMap<Bytes, KeyValue>;

/// All changes, in order, each with the pair before it.
#[derive(Debug)]
pub(crate) struct History {
    changes: Vec<Event>,
    /// The newest revision.
    pub(crate) last: i64,
}

/// One operation of a write.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        prev_kv: bool,
    },
    Delete {
        key: Bytes,
        range_end: Bytes,
        prev_kv: bool,
    },
}

/// What was answered to an operation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct OpAnswer {
    pub(crate) deleted: i64,
    pub(crate) prevs: Vec<KeyValue>,
}

/// A put, a delete, or a txn of several, as a client sent it.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    /// Each client sends one after the other.
    pub(crate) client: usize,
    pub(crate) ops: Vec<Op>,
    /// The newest revision that any client had been told when it was sent.
    pub(crate) after: i64,
    /// The revision and the answers; nothing if the server was killed first.
    pub(crate) answer: Option<(i64, Vec<OpAnswer>)>,
}

/// What a watcher asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
    pub(crate) prev_kv: bool,
    pub(crate) fragment: bool,
    pub(crate) progress_notify: bool,
}

/// A watcher's life on one stream, from its creation on.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// As it was asked for; 0 is from now on.
    pub(crate) start: i64,
    pub(crate) heard: Vec<Heard>,
}

/// An answer to a watcher.
#[derive(Debug)]
pub(crate) struct Heard {
    /// How many answers came before it on the stream, for any watcher.
    pub(crate) place: usize,
    /// The highest compaction that anyone had asked for when it came.
    pub(crate) floor: i64,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Created(i64),
    Events {
        revision: i64,
        /// More of the same answer follows.
        more: bool,
        events: Vec<Event>,
    },
    /// For all watchers of the stream, or for this one.
    Progress {
        revision: i64,
        all: bool,
    },
    Compacted(i64),
    Canceled,
}

impl History {
    /// Believes what was heard if it runs on without gaps and every event follows from those before it.
    pub(crate) fn of(heard: &[Event]) -> Result<(History, State), String> {
        let mut state = State::new();
        let mut changes: Vec<Event> = Vec::new();
        let mut last = EMPTY;
        for event in heard {
            let kv = pair(event)?;
            let revision = kv.mod_revision;
            if revision != last && revision != last + 1 {
                fail!("after revision {last} comes {revision}");
            }
            let twice = |change: &Event| {
                change
                    .kv
                    .as_ref()
                    .is_some_and(|kv| kv.key == pair(event).expect("seen").key)
            };
            let same = changes
                .iter()
                .rev()
                .take_while(|change| mod_revision(change) == revision);
            if revision == EMPTY || same.clone().any(twice) {
                fail!("a second change of {:?} at {revision}", kv.key);
            }
            if event.prev_kv.is_some() {
                fail!("a pair before, which was not asked for: {event:?}");
            }
            let prev_kv = state.get(&kv.key).cloned();
            let is_put = event.r#type == EventType::Put as i32;
            let expected = match (is_put, &prev_kv) {
                (true, prev) => put(prev.as_ref(), &kv.key, &kv.value, revision),
                (false, Some(_)) => deleted(&kv.key, revision),
                (false, None) => fail!("a delete of what is not there: {event:?}"),
            };
            if *kv != expected {
                fail!("{kv:?} instead of {expected:?}");
            }
            match is_put {
                true => state.insert(kv.key.clone(), kv.clone()),
                false => state.remove(&kv.key),
            };
            last = revision;
            changes.push(Event {
                prev_kv,
                ..event.clone()
            });
        }
        Ok((History { changes, last }, state))
    }

    fn at(&self, revision: i64) -> &[Event] {
        let from = self
            .changes
            .partition_point(|change| mod_revision(change) < revision);
        let to = self
            .changes
            .partition_point(|change| mod_revision(change) <= revision);
        &self.changes[from..to]
    }

    /// What a watcher is to hear from `revision` on.
    fn expected<'a>(
        &'a self,
        watch: &Watch,
        revision: i64,
    ) -> impl Iterator<Item = &'a Event> + Clone + use<'a> {
        let from = self
            .changes
            .partition_point(|change| mod_revision(change) < revision);
        let range = KeyRange::from_wire(watch.key.clone(), watch.range_end.clone());
        let (no_put, no_delete) = (watch.no_put, watch.no_delete);
        self.changes[from..].iter().filter(move |change| {
            let left_out = match change.r#type == EventType::Put as i32 {
                true => no_put,
                false => no_delete,
            };
            !left_out && change.kv.as_ref().is_some_and(|kv| range.contains(&kv.key))
        })
    }
}

fn pair(event: &Event) -> Result<&KeyValue, String> {
    event
        .kv
        .as_ref()
        .ok_or_else(|| format!("without a pair: {event:?}"))
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn put(prev: Option<&KeyValue>, key: &Bytes, value: &Bytes, revision: i64) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: prev.map_or(revision, |prev| prev.create_revision),
        mod_revision: revision,
        version: prev.map_or(1, |prev| prev.version + 1),
        value: value.clone(),
        lease: 0,
    }
}

fn deleted(key: &Bytes, revision: i64) -> KeyValue {
    KeyValue {
        key: key.clone(),
        mod_revision: revision,
        ..KeyValue::default()
    }
}

impl Write {
    /// Whether it changed anything, as far as was answered: then the revision is its own.
    fn changed(&self, answers: &[OpAnswer]) -> bool {
        let puts = self.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        puts || answers.iter().any(|answer| answer.deleted > 0)
    }

    /// What it does to `state` at `revision`, and what is answered.
    fn apply(&self, state: &mut State, revision: i64) -> (Vec<Event>, Vec<OpAnswer>) {
        let (mut events, mut answers) = (Vec::new(), Vec::new());
        for op in &self.ops {
            let mut answer = OpAnswer::default();
            match op {
                Op::Put {
                    key,
                    value,
                    prev_kv,
                } => {
                    let kv = put(state.get(key), key, value, revision);
                    let prev = state.insert(key.clone(), kv.clone());
                    answer.prevs.extend(prev.clone().filter(|_| *prev_kv));
                    events.push(event(EventType::Put, kv, prev));
                }
                Op::Delete {
                    key,
                    range_end,
                    prev_kv,
                } => {
                    let range = KeyRange::from_wire(key.clone(), range_end.clone());
                    let keys: Vec<Bytes> = state
                        .keys()
                        .filter(|key| range.contains(key))
                        .cloned()
                        .collect();
                    answer.deleted = keys.len() as i64;
                    for key in keys {
                        let prev = state.remove(&key);
                        answer.prevs.extend(prev.clone().filter(|_| *prev_kv));
                        events.push(event(EventType::Delete, deleted(&key, revision), prev));
                    }
                }
            }
            answers.push(answer);
        }
        (events, answers)
    }
}

fn event(kind: EventType, kv: KeyValue, prev_kv: Option<KeyValue>) -> Event {
    Event {
        r#type: kind as i32,
        kv: Some(kv),
        prev_kv,
    }
}

/// Each answered write is in the history as it was answered; each that was not is there at most once; nothing else is.
/// The writes of a client stand in the order in which it sent them.
pub(crate) fn check_writes(history: &History, writes: &[Write]) -> Result<(), String> {
    let mut changed: HashMap<i64, &Write> = HashMap::new();
    let mut unchanged: HashMap<i64, Vec<&Write>> = HashMap::new();
    // With the revision before which each was done, if it was.
    let mut unanswered: Vec<(i64, &Write)> = Vec::new();
    let mut before: HashMap<usize, i64> = HashMap::new();
    for write in writes.iter().rev() {
        let before = before.entry(write.client).or_insert(i64::MAX);
        match &write.answer {
            None => unanswered.push((*before, write)),
            Some((revision, answers)) if write.changed(answers) => {
                if *revision <= write.after || *revision >= *before {
                    fail!(
                        "at {revision}, after {} and before {before}: {write:?}",
                        write.after
                    );
                }
                *before = *revision;
                if let Some(other) = changed.insert(*revision, write) {
                    fail!("two writes at {revision}: {write:?} {other:?}");
                }
            }
            Some((revision, _)) => {
                if *revision < write.after || *revision >= *before {
                    fail!(
                        "at {revision}, after {} and before {before}: {write:?}",
                        write.after
                    );
                }
                unchanged.entry(*revision).or_default().push(write);
            }
        }
    }
    let mut state = State::new();
    for revision in EMPTY..=history.last {
        if revision > EMPTY {
            let events = history.at(revision);
            let does = |write: &Write| write.apply(&mut state.clone(), revision).0 == events;
            let write = match changed.remove(&revision) {
                Some(write) => write,
                None => {
                    let possible = unanswered.iter().enumerate();
                    let possible = possible.filter(|(_, (before, write))| {
                        write.after < revision && revision < *before && does(write)
                    });
                    let Some((place, _)) = possible.min_by_key(|(_, (before, _))| *before) else {
                        fail!("nobody wrote what is at {revision}: {events:?}");
                    };
                    unanswered.swap_remove(place).1
                }
            };
            let (does, answers) = write.apply(&mut state, revision);
            if does != events {
                fail!("at {revision} there is {events:?}, written was {write:?}");
            }
            answered(write, &answers)?;
        }
        for write in unchanged.remove(&revision).unwrap_or_default() {
            let (does, answers) = write.apply(&mut state.clone(), revision + 1);
            if !does.is_empty() {
                fail!("it said it changed nothing: {write:?}");
            }
            answered(write, &answers)?;
        }
    }
    match changed.values().chain(unchanged.values().flatten()).next() {
        Some(lost) => Err(format!("answered and not there: {lost:?}")),
        None => Ok(()),
    }
}

fn answered(write: &Write, expected: &[OpAnswer]) -> Result<(), String> {
    match &write.answer {
        Some((_, answers)) if answers != expected => {
            Err(format!("expected {expected:?}: {write:?}"))
        }
        _ => Ok(()),
    }
}

/// Through all its sessions, a watcher heard what it asked for: each event once, in order, whole revisions, nothing else
/// and nothing less; each session goes on where the last one ended. With `end`, it has heard all up to there.
pub(crate) fn check_watcher(
    history: &History,
    watch: &Watch,
    sessions: &[Session],
    end: Option<i64>,
) -> Result<(), String> {
    let mut next: Option<i64> = None;
    for (number, session) in sessions.iter().enumerate() {
        let start = session.start;
        if next.is_some_and(|next| next != start) {
            fail!("session {number} goes on at {start}, not at {next:?}");
        }
        let heard = check_session(history, watch, session);
        next = Some(heard.map_err(|what| {
            format!(
                "session {number} of {}, from {start}: {what}",
                sessions.len()
            )
        })?);
    }
    match (end, next) {
        (Some(end), next) if next.is_none_or(|next| next <= end) => {
            Err(format!("heard up to {next:?}, and not to {end}"))
        }
        _ => Ok(()),
    }
}

/// Checks one session, and tells where the next goes on.
fn check_session(history: &History, watch: &Watch, session: &Session) -> Result<i64, String> {
    let Some((created, rest)) = session.heard.split_first() else {
        return Ok(session.start);
    };
    let mut next = match (&created.what, session.start) {
        (What::Created(revision), 0) => revision + 1,
        (What::Created(_), start) => start,
        (what, _) => fail!("its first answer is {what:?}"),
    };
    let mut expected = history.expected(watch, next).peekable();
    let mut over = false;
    // The revision and the place of an answer's part, if more follow.
    let mut part: Option<(i64, usize)> = None;
    for Heard { place, floor, what } in rest {
        if over {
            fail!("after its last answer came {what:?}");
        }
        if let Some((at, before)) = part {
            let goes_on = matches!(what, What::Events { revision, .. } if *revision == at);
            if !goes_on || *place != before + 1 {
                fail!("between two parts of an answer came another, or: {what:?}");
            }
        }
        match what {
            What::Created(_) => fail!("created twice"),
            What::Events {
                revision,
                more,
                events,
            } => {
                for event in events {
                    match expected.next() {
                        Some(expected) => same_event(watch, event, expected, *floor)?,
                        None => fail!("{event:?} is not in the history"),
                    }
                }
                let Some(last) = events.last().map(mod_revision) else {
                    fail!("an answer without events at {revision}");
                };
                if *revision < last {
                    fail!("{last} in an answer at {revision}");
                }
                if *more && !watch.fragment {
                    fail!("a part at {revision}, which was not asked for");
                }
                part = more.then_some((*revision, *place));
                if !more {
                    if let Some(rest) = expected.peek().filter(|event| mod_revision(event) == last)
                    {
                        fail!("{last} is cut before {rest:?}");
                    }
                    next = last + 1;
                }
            }
            What::Progress { revision, all } => {
                if !all && !watch.progress_notify {
                    fail!("progress at {revision}, which was not asked for");
                }
                if *revision < next - 1 || *revision < session.start {
                    fail!("progress at {revision}, though it is to go on at {next}");
                }
                if let Some(event) = expected
                    .peek()
                    .filter(|event| mod_revision(event) <= *revision)
                {
                    fail!("progress at {revision} without {event:?}");
                }
                next = revision + 1;
            }
            What::Compacted(compacted) => {
                if *compacted <= next {
                    fail!("compacted at {compacted}, though it is to go on at {next}");
                }
                if *compacted > *floor {
                    fail!("compacted at {compacted}, which nobody asked for");
                }
                next = *compacted;
                over = true;
            }
            What::Canceled => over = true,
        }
    }
    Ok(next)
}

/// The pair before may be missing at a revision that was the floor or below it.
fn same_event(watch: &Watch, heard: &Event, expected: &Event, floor: i64) -> Result<(), String> {
    let same = heard.r#type == expected.r#type && heard.kv == expected.kv;
    let same_prev = match &heard.prev_kv {
        Some(_) => watch.prev_kv && heard.prev_kv == expected.prev_kv,
        None => !watch.prev_kv || expected.prev_kv.is_none() || mod_revision(expected) <= floor,
    };
    match same && same_prev {
        true => Ok(()),
        false => Err(format!(
            "heard {heard:?} and not {expected:?} (watch {watch:?}, floor {floor})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client of `writes` did: a put, two puts, a range delete, a delete of nothing, a put that was not answered.
    fn writes() -> Vec<Write> {
        let put = |key: &'static str, value: &'static str| Op::Put {
            key: key.into(),
            value: value.into(),
            prev_kv: true,
        };
        let delete = |key: &'static str, range_end: &'static str| Op::Delete {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: true,
        };
        let sent = [
            vec![put("a", "1")],
            vec![put("a", "2"), put("b", "")],
            vec![delete("a", "c")],
            vec![delete("x", "")],
            vec![put("c", "3")],
        ];
        let mut state = State::new();
        let mut last = EMPTY;
        let mut writes = Vec::new();
        for ops in sent {
            let after = last;
            let mut write = Write {
                client: 0,
                ops,
                after,
                answer: None,
            };
            let (events, answers) = write.apply(&mut state, last + 1);
            last += i64::from(!events.is_empty());
            write.answer = Some((last, answers));
            writes.push(write);
        }
        writes[4].answer = None;
        writes
    }

    fn heard() -> Vec<Event> {
        let mut state = State::new();
        let mut events = Vec::new();
        for (write, revision) in writes().iter().zip([2, 3, 4, 5, 5]) {
            let (does, _) = write.apply(&mut state, revision);
            events.extend(does.into_iter().map(|event| Event {
                prev_kv: None,
                ..event
            }));
        }
        events
    }

    fn history() -> History {
        History::of(&heard()).expect("it is sound").0
    }

    fn everything() -> Watch {
        Watch {
            key: "\0".into(),
            range_end: "\0".into(),
            prev_kv: true,
            fragment: true,
            ..Watch::default()
        }
    }

    fn events(from: i64, to: i64) -> What {
        What::Events {
            revision: to,
            more: false,
            events: history()
                .changes
                .into_iter()
                .filter(|event| (from..=to).contains(&mod_revision(event)))
                .collect(),
        }
    }

    fn progress(revision: i64) -> What {
        What::Progress {
            revision,
            all: true,
        }
    }

    fn session(start: i64, whats: Vec<What>) -> Session {
        let heard = whats.into_iter().enumerate();
        let heard = heard.map(|(place, what)| Heard {
            place,
            floor: 0,
            what,
        });
        Session {
            start,
            heard: heard.collect(),
        }
    }

    fn check(sessions: &[Session]) -> Result<(), String> {
        check_watcher(&history(), &everything(), sessions, Some(5))
    }

    fn check_one(whats: Vec<What>) -> Result<(), String> {
        check(&[session(1, joined(vec![What::Created(5)], whats))])
    }

    fn joined<T>(first: Vec<T>, rest: Vec<T>) -> Vec<T> {
        first.into_iter().chain(rest).collect()
    }

    /// One answer as several parts.
    fn split(what: What) -> Vec<What> {
        let What::Events {
            revision, events, ..
        } = what
        else {
            unreachable!()
        };
        let count = events.len();
        let part = |(place, event)| What::Events {
            revision,
            more: place + 1 < count,
            events: vec![event],
        };
        events.into_iter().enumerate().map(part).collect()
    }

    fn edit(what: What, edit: impl FnOnce(&mut Vec<Event>)) -> What {
        let What::Events {
            revision,
            more,
            mut events,
        } = what
        else {
            unreachable!()
        };
        edit(&mut events);
        What::Events {
            revision,
            more,
            events,
        }
    }

    #[test]
    fn sound_histories_pass() {
        check_writes(&history(), &writes()).unwrap();
        check_one(vec![events(2, 5)]).unwrap();
        check_one(vec![
            events(2, 2),
            events(3, 3),
            progress(3),
            progress(3),
            events(4, 5),
            progress(5),
        ])
        .unwrap();
        check_one(split(events(2, 5))).unwrap();
        let resumed = [
            session(0, vec![What::Created(1), events(2, 3)]),
            session(4, vec![]),
            session(
                4,
                vec![What::Created(5), events(4, 4), progress(4), What::Canceled],
            ),
            session(5, vec![What::Created(5), events(5, 5)]),
        ];
        check(&resumed).unwrap();
        let mut cut_part = split(events(2, 5));
        cut_part.truncate(2);
        cut_part.insert(0, What::Created(5));
        check(&[
            session(1, cut_part),
            session(1, vec![What::Created(5), events(2, 5)]),
        ])
        .unwrap();
    }

    #[test]
    fn a_history_that_does_not_follow_from_itself_is_found() {
        type Edit = fn(&mut Vec<Event>);
        let edits: [(&str, Edit); 8] = [
            ("a lost revision", |heard| drop(heard.remove(0))),
            ("a lost last-but-one", |heard| drop(heard.drain(3..5))),
            ("one that came again", |heard| {
                heard.insert(1, heard[0].clone())
            }),
            ("another order", |heard| heard.swap(0, 1)),
            ("a wrong version", |heard| {
                heard[1].kv.as_mut().unwrap().version += 1
            }),
            ("a wrong creation", |heard| {
                heard[1].kv.as_mut().unwrap().create_revision += 1
            }),
            ("a delete of nothing", |heard| {
                heard[3].kv.as_mut().unwrap().key = "q".into()
            }),
            ("a value in a delete", |heard| {
                heard[3].kv.as_mut().unwrap().value = "q".into()
            }),
        ];
        for (what, edit) in edits {
            let mut heard = heard();
            edit(&mut heard);
            assert!(History::of(&heard).is_err(), "{what}");
        }
    }

    #[test]
    fn writes_that_do_not_make_the_history_are_found() {
        type Edit = fn(&mut Vec<Write>);
        let edits: [(&str, Edit); 9] = [
            ("one that nobody sent", |writes| drop(writes.remove(1))),
            ("an answered one that is not there", |writes| {
                let answer = Some((6, vec![OpAnswer::default()]));
                writes.push(Write {
                    after: 5,
                    answer,
                    ..writes[0].clone()
                });
            }),
            ("two at one revision", |writes| {
                writes.insert(
                    0,
                    Write {
                        client: 1,
                        ..writes[0].clone()
                    },
                );
            }),
            ("another value", |writes| {
                let Op::Put { value, .. } = &mut writes[1].ops[1] else {
                    unreachable!()
                };
                *value = "?".into();
            }),
            ("half of it", |writes| drop(writes[1].ops.pop())),
            ("a wrong count", |writes| {
                writes[2].answer.as_mut().unwrap().1[0].deleted = 1
            }),
            ("a wrong pair before", |writes| {
                writes[1].answer.as_mut().unwrap().1[0].prevs.clear()
            }),
            ("a revision that had been answered before", |writes| {
                writes[2].after = 4
            }),
            ("a delete of nothing that was something", |writes| {
                writes[3].ops[0] = Op::Delete {
                    key: "c".into(),
                    range_end: Bytes::new(),
                    prev_kv: false,
                };
                writes[3].answer = Some((5, vec![OpAnswer::default()]));
            }),
        ];
        for (what, edit) in edits {
            let mut writes = writes();
            edit(&mut writes);
            assert!(check_writes(&history(), &writes).is_err(), "{what}");
        }
    }

    #[test]
    fn an_unanswered_write_is_there_once_at_most() {
        let mut heard = heard();
        let mut again = heard[5].clone();
        let kv = again.kv.as_mut().unwrap();
        (kv.mod_revision, kv.version) = (6, 2);
        heard.push(again);
        let (history, _) = History::of(&heard).unwrap();
        assert!(check_writes(&history, &writes()).is_err());
        let twice = Write {
            client: 1,
            ..writes()[4].clone()
        };
        check_writes(&history, &joined(writes(), vec![twice])).unwrap();
    }

    #[test]
    fn what_a_watcher_must_not_hear_is_found() {
        let compacted = What::Compacted(4);
        let bad: Vec<(&str, Vec<What>)> = vec![
            ("lost at the end", vec![events(2, 4)]),
            ("lost in between", vec![events(2, 2), events(4, 5)]),
            ("lost, and progress", vec![events(2, 3), progress(5)]),
            ("repeated", vec![events(2, 3), events(3, 5)]),
            (
                "another order",
                vec![events(3, 3), events(2, 2), events(4, 5)],
            ),
            (
                "another order in a revision",
                vec![edit(events(2, 5), |events| events.swap(1, 2))],
            ),
            (
                "a revision that is cut",
                vec![
                    events(2, 2),
                    edit(events(3, 3), |events| drop(events.pop())),
                    edit(events(3, 5), |events| drop(events.remove(0))),
                ],
            ),
            (
                "an event after progress",
                vec![events(2, 2), progress(3), events(3, 5)],
            ),
            (
                "progress before the last event",
                vec![events(2, 5), progress(4)],
            ),
            (
                "progress that runs back",
                vec![events(2, 5), progress(6), progress(5)],
            ),
            (
                "progress it did not ask for",
                vec![
                    events(2, 5),
                    What::Progress {
                        revision: 5,
                        all: false,
                    },
                ],
            ),
            (
                "a wrong pair before",
                vec![edit(events(2, 5), |events| {
                    events[1].prev_kv = events[2].kv.clone()
                })],
            ),
            (
                "no pair before",
                vec![edit(events(2, 5), |events| events[1].prev_kv = None)],
            ),
            (
                "a put as a delete",
                vec![edit(events(2, 5), |events| {
                    events[0].r#type = EventType::Delete as i32
                })],
            ),
            (
                "a header before its events",
                vec![What::Events {
                    revision: 4,
                    more: false,
                    events: history().changes,
                }],
            ),
            ("nothing in it", vec![events(2, 5), events(6, 6)]),
            ("created twice", vec![What::Created(5), events(2, 5)]),
            (
                "after its end",
                vec![events(2, 4), What::Canceled, events(5, 5)],
            ),
            (
                "compacted where it need not be",
                vec![events(2, 3), What::Compacted(4), events(4, 5)],
            ),
            (
                "compacted, and nobody asked for that",
                vec![events(2, 2), compacted],
            ),
            (
                "a part, and no more",
                split(events(2, 5)).into_iter().take(5).collect(),
            ),
            ("something between parts", {
                let mut parts = split(events(2, 5));
                parts.insert(2, progress(1));
                parts
            }),
        ];
        for (what, whats) in bad {
            assert!(check_one(whats).is_err(), "{what}");
        }
        let another_s = |place: usize| place + usize::from(place > 2);
        let mut parts = session(1, joined(vec![What::Created(5)], split(events(2, 5))));
        parts
            .heard
            .iter_mut()
            .for_each(|heard| heard.place = another_s(heard.place));
        assert!(
            check(&[parts]).is_err(),
            "another watcher's answer between parts"
        );
        let gap = [
            session(1, vec![What::Created(5), events(2, 3)]),
            session(5, vec![What::Created(5), events(5, 5)]),
        ];
        assert!(check(&gap).is_err(), "it goes on too late");
        let early = session(4, vec![What::Created(2), progress(3), events(4, 5)]);
        assert!(check(&[early]).is_err(), "progress before its start");
    }

    #[test]
    fn filters_ranges_and_compaction_are_held_to() {
        let deletes = Watch {
            no_put: true,
            prev_kv: false,
            ..everything()
        };
        let only = |edit: fn(&mut Event) -> bool| {
            let What::Events {
                revision,
                more,
                mut events,
            } = events(2, 5)
            else {
                unreachable!()
            };
            events.retain_mut(edit);
            vec![session(
                1,
                vec![
                    What::Created(5),
                    What::Events {
                        revision,
                        more,
                        events,
                    },
                    progress(5),
                ],
            )]
        };
        let is_delete = |event: &mut Event| {
            event.prev_kv = None;
            event.r#type == EventType::Delete as i32
        };
        let check = |watch: &Watch, sessions: &[Session]| {
            check_watcher(&history(), watch, sessions, Some(5))
        };
        check(&deletes, &only(is_delete)).unwrap();
        let b = Watch {
            key: "b".into(),
            range_end: Bytes::new(),
            ..everything()
        };
        let is_b = |event: &mut Event| event.kv.as_ref().is_some_and(|kv| kv.key == "b");
        check(&b, &only(is_b)).unwrap();
        check(&everything(), &only(is_b)).unwrap_err();
        check(&b, &only(|_| true)).unwrap_err();
        check(&deletes, &only(|_| true)).unwrap_err();

        let mut compacted = [
            session(1, vec![What::Created(5), events(2, 2), What::Compacted(4)]),
            session(
                4,
                vec![
                    What::Created(5),
                    edit(events(4, 5), |events| events[0].prev_kv = None),
                ],
            ),
        ];
        check(&everything(), &compacted).unwrap_err();
        for heard in compacted.iter_mut().flat_map(|session| &mut session.heard) {
            heard.floor = 4;
        }
        check(&everything(), &compacted).unwrap();
    }
}
