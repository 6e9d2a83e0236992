//! The hub: the watchers of one network thread, and what waits for their clients.
//!
//! ```text
//! create ─► synced ◄──────────── settle          caught up
//!      └──► behind ─► plan ─► read ─┘ └─► compacted
//!             ▲  the outbox is full
//! advance ────┴─► outbox ─► take                 the client's pace
//! ```
//! Invariants:
//! - A synced watcher has been handed every event up to the hub's position, from its `next` on. It
//!   has not been handed a later one.
//! - A watcher that is behind has been handed every event below its `next`, and none from there on.
//! - Answers leave in the order in which they were put: so one about progress follows all events up
//!   to its revision, and one that cancels is a watcher's last.
//! - An outbox takes no events once it holds [`Limits::outbox_bytes`], and a stream no request.
//!
//! It is one state, moved by plain calls; nothing in it waits or reads the disk.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use slab::Slab;
use smallvec::SmallVec;

use super::answer::{Answer, End, Origin, Refusal};
use super::catch_up::{Plan, Reader, Slice};
use super::event::{self, Event};
use super::interest::Interest;
use super::watcher::{Create, State, Watcher};
use crate::storage;
use crate::storage::record::key_of;
use crate::storage::revision::Revision;
use crate::storage::view::View;

/// Watchers that share a slice.
const READERS_MAX: usize = 100;

/// Revisions by which watchers that share a slice may differ at its beginning.
const APART_MAX: u64 = 1000;

/// Watchers behind that are looked at for one plan.
const LOOKS_MAX: usize = 1000;

/// How much a hub does and holds at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size of an answer from which it is split, for those who want that; in bytes.
    pub fragment_bytes: usize,
    /// What waits for a client, in bytes, before its watchers fall behind and its requests wait.
    /// They catch up while half of that waits.
    pub outbox_bytes: usize,
    /// Rows that one step of [`Hub::advance`] takes.
    pub step_rows: usize,
    /// Bytes of events after which a step ends.
    pub step_bytes: usize,
    /// Pairs before an event that a step looks up itself, while that is likely quick.
    pub step_look_ups: usize,
    /// Rows that a slice of catching up looks at: a few milliseconds.
    pub slice_rows: usize,
    /// Those of a slice that is read from memory on the caller's thread.
    pub quick_slice_rows: usize,
}

impl Limits {
    /// The server's, for answers split from `fragment_bytes` on.
    pub fn new(fragment_bytes: usize) -> Limits {
        Limits {
            fragment_bytes,
            outbox_bytes: 1 << 20,
            step_rows: 1000,
            step_bytes: 1 << 20,
            step_look_ups: 64,
            slice_rows: 10_000,
            quick_slice_rows: 1000,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    origin: Origin,
    limits: Limits,
    position: u64,
    /// What is on its way to synced watchers: up to `position`.
    delivery: Option<Delivery>,
    streams: Slab<Stream>,
    watchers: Slab<Watcher>,
    /// The synced watchers.
    interest: Interest,
    /// Streams and watchers made so far.
    serials: u64,
    /// Streams that are to catch up.
    hungry: Vec<StreamKey>,
    /// How all streams end, those to come included.
    end: Option<End>,
}

/// A stream of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey {
    slot: usize,
    serial: u64,
}

impl StreamKey {
    /// A number that no other stream of the hub has.
    pub fn number(self) -> u64 {
        self.serial
    }
}

#[derive(Debug)]
struct Stream {
    serial: u64,
    ids: HashMap<i64, u32>,
    /// The smallest number that was never chosen.
    next_id: i64,
    outbox: VecDeque<Answer>,
    outbox_bytes: usize,
    /// Watchers behind, but for those of the plan that is being read.
    behind: VecDeque<u32>,
    /// Whether someone sees to it that they catch up.
    catching_up: bool,
    end: Option<End>,
    /// Waits for an answer.
    reader: Option<Waker>,
    /// Waits for room in the outbox.
    writer: Option<Waker>,
}

/// Events that are matched with their watchers, or are being matched.
#[derive(Debug, Default)]
struct Delivery {
    /// The first revision of it.
    first: u64,
    /// The last row that was looked at, while a revision is not yet whole.
    partial: Option<Revision>,
    events: Vec<Event>,
    /// Whether an event is wanted with the pair before it.
    with_prev: Vec<bool>,
    /// In order of events.
    matches: Vec<Match>,
}

#[derive(Debug)]
struct Match {
    slot: u32,
    serial: u64,
    event: u32,
}

/// What a step has left to do.
#[derive(Debug)]
pub enum Step {
    /// Nothing, until something is published.
    Idle,
    /// More steps.
    More,
    /// These are to be read, where that may take long, and given to [`Hub::looked_up`].
    LookUp(Prevs),
}

/// Events whose earlier pairs are to be read.
#[derive(Debug, Clone)]
pub struct Prevs {
    events: Vec<Event>,
    wanted: Vec<bool>,
    bytes_max: usize,
    kept: usize,
}

impl Prevs {
    /// Reads them.
    pub fn look_up(&mut self, view: &View) -> Result<(), storage::Error> {
        let wanted = |place: usize| self.wanted[place];
        self.kept = event::add_prev(view, &mut self.events, wanted, self.bytes_max)?;
        Ok(())
    }
}

impl Hub {
    /// A hub without watchers.
    pub fn new(origin: Origin, limits: Limits) -> Hub {
        Hub {
            origin,
            limits,
            position: 0,
            delivery: None,
            streams: Slab::new(),
            watchers: Slab::new(),
            interest: Interest::default(),
            serials: 0,
            hungry: Vec::new(),
            end: None,
        }
    }

    /// Opens a stream.
    pub fn open(&mut self) -> StreamKey {
        let serial = self.serial();
        let slot = self.streams.insert(Stream {
            serial,
            ids: HashMap::new(),
            next_id: 0,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            behind: VecDeque::new(),
            catching_up: false,
            end: self.end.clone(),
            reader: None,
            writer: None,
        });
        StreamKey { slot, serial }
    }

    /// Closes a stream; its watchers go with it.
    pub fn close(&mut self, key: StreamKey) {
        let stream = self.streams.remove(key.slot);
        let mut slots: Vec<u32> = stream.ids.into_values().collect();
        // The index finds those first that came last.
        slots.sort_unstable_by_key(|slot| std::cmp::Reverse(self.watchers[*slot as usize].serial));
        for slot in slots {
            self.drop_watcher(slot);
        }
    }

    fn drop_watcher(&mut self, slot: u32) {
        let watcher = self.watchers.remove(slot as usize);
        if watcher.state == State::Synced {
            self.interest.remove(&watcher.range, slot);
        }
    }

    /// Makes a watcher, or refuses it; either way the stream is told.
    pub fn create(&mut self, key: StreamKey, create: Create, view: &View) {
        let revision = view.revision;
        let answer = match self.try_create(key, create, revision) {
            Ok(id) => Answer::Created { id, revision },
            Err(refusal) => Answer::Refused { refusal, revision },
        };
        self.push(key.slot, answer);
        self.feed(key.slot);
    }

    fn try_create(
        &mut self,
        key: StreamKey,
        create: Create,
        revision: u64,
    ) -> Result<i64, Refusal> {
        let start = u64::try_from(create.start).map_err(|_| Refusal::NegativeStart)?;
        if create.range.bounds().is_none() {
            return Err(Refusal::EmptyRange);
        }
        let serial = self.serial();
        if self.is_idle() {
            self.position = revision;
        }
        let stream = &mut self.streams[key.slot];
        let id = match create.id {
            0 => {
                while stream.ids.contains_key(&stream.next_id) {
                    stream.next_id += 1;
                }
                stream.next_id += 1;
                stream.next_id - 1
            }
            id if stream.ids.contains_key(&id) => return Err(Refusal::DuplicateId),
            id => id,
        };
        let next = match start {
            0 => revision + 1,
            start => start,
        };
        let state = match next > self.position {
            true => State::Synced,
            false => State::Behind,
        };
        let slot = self.watchers.insert(Watcher {
            stream: key.slot,
            serial,
            id,
            range: create.range,
            wants: create.wants,
            fragment: create.fragment,
            progress_notify: create.progress_notify,
            start,
            next,
            state,
            heard: false,
        });
        let range = &self.watchers[slot].range;
        let slot = u32::try_from(slot).expect("memory ends long before 2^32 watchers");
        match state {
            State::Synced => self.interest.insert(range, slot),
            _ => stream.behind.push_back(slot),
        }
        stream.ids.insert(id, slot);
        Ok(id)
    }

    /// Cancels a watcher. Of a number that is not in use nothing is said, as in etcd (script
    /// `watch_cancel`).
    pub fn cancel(&mut self, key: StreamKey, id: i64, view: &View) {
        let stream = &mut self.streams[key.slot];
        let Some(slot) = stream.ids.remove(&id) else {
            return;
        };
        if self.watchers[slot as usize].state == State::Behind {
            stream.behind.retain(|behind| *behind != slot);
        }
        self.drop_watcher(slot);
        let revision = view.revision;
        self.push(key.slot, Answer::Canceled { id, revision });
    }

    /// Whether all up to `revision` has been handed to the synced watchers.
    pub fn has_come_to(&self, revision: u64) -> bool {
        self.is_idle() || self.position >= revision && self.delivery.is_none()
    }

    /// Tells the stream how far all of its watchers have heard, if that is as far as the hub; else
    /// nothing, as in etcd (script `watch_progress`).
    pub fn request_progress(&mut self, key: StreamKey) {
        let stream = &self.streams[key.slot];
        let current = |slot: &u32| self.is_current(&self.watchers[*slot as usize]);
        let told = !stream.ids.is_empty()
            && stream.ids.values().all(current)
            && stream.outbox_bytes < self.limits.outbox_bytes;
        if told {
            let revision = self.position;
            self.push(key.slot, Answer::Progress { id: None, revision });
        }
    }

    /// Tells those watchers of the stream that asked for it, and have heard nothing since the last
    /// time, how far they have heard.
    pub fn notify_progress(&mut self, key: StreamKey) {
        let slots: Vec<u32> = self.streams[key.slot].ids.values().copied().collect();
        for slot in slots {
            let watcher = &mut self.watchers[slot as usize];
            let heard = std::mem::take(&mut watcher.heard);
            let watcher = &self.watchers[slot as usize];
            let told = watcher.progress_notify
                && !heard
                && self.is_current(watcher)
                && self.streams[key.slot].outbox_bytes < self.limits.outbox_bytes;
            if told {
                let (id, revision) = (Some(watcher.id), self.position);
                self.push(key.slot, Answer::Progress { id, revision });
            }
        }
    }

    /// Whether a watcher has heard all up to the hub's position, and that is not before its start.
    fn is_current(&self, watcher: &Watcher) -> bool {
        watcher.state == State::Synced && watcher.start <= self.position && self.delivery.is_none()
    }

    /// The next answer for the client, or the stream's end; and whether someone is to catch up now.
    pub fn take(&mut self, key: StreamKey, context: &Context<'_>) -> Poll<Result<Answer, End>> {
        let stream = &mut self.streams[key.slot];
        let Some(answer) = stream.outbox.pop_front() else {
            if let Some(end) = &stream.end {
                return Poll::Ready(Err(end.clone()));
            }
            stream.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        stream.outbox_bytes -= answer.bytes();
        if stream.outbox_bytes < self.limits.outbox_bytes
            && let Some(writer) = stream.writer.take()
        {
            writer.wake();
        }
        self.feed(key.slot);
        Poll::Ready(Ok(answer))
    }

    /// Whether the stream's outbox has room for the answer to a request.
    pub fn poll_room(&mut self, key: StreamKey, context: &Context<'_>) -> Poll<()> {
        let stream = &mut self.streams[key.slot];
        if stream.outbox_bytes < self.limits.outbox_bytes {
            return Poll::Ready(());
        }
        stream.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Ends a stream, behind what waits in its outbox.
    pub fn end(&mut self, key: StreamKey, end: End) {
        self.streams[key.slot].end(end);
    }

    /// Ends all streams, and those to come.
    pub fn end_all(&mut self, end: End) {
        for (_, stream) in &mut self.streams {
            stream.end(end.clone());
        }
        self.end = Some(end);
    }

    fn serial(&mut self) -> u64 {
        self.serials += 1;
        self.serials
    }

    /// Whether nobody waits for the hub: then its position says nothing.
    fn is_idle(&self) -> bool {
        self.interest.is_empty() && self.delivery.is_none()
    }

    fn push(&mut self, slot: usize, answer: Answer) {
        let stream = &mut self.streams[slot];
        stream.outbox_bytes += answer.bytes();
        stream.outbox.push_back(answer);
        if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
    }

    /// Hands events to a watcher, in as many answers as it wants.
    fn push_events(&mut self, slot: u32, revision: u64, mut fields: SmallVec<[Bytes; 1]>) {
        let watcher = &mut self.watchers[slot as usize];
        watcher.heard = true;
        let (stream, id) = (watcher.stream, watcher.id);
        if watcher.fragment && fields.len() > 1 {
            let whole: usize = fields.iter().map(Bytes::len).sum();
            if whole + self.origin.head_len(id, revision, false) >= self.limits.fragment_bytes {
                let head_len = self.origin.head_len(id, revision, true);
                let mut bytes = head_len;
                let mut part = SmallVec::new();
                for field in fields {
                    if !part.is_empty() && bytes + field.len() >= self.limits.fragment_bytes {
                        let fields = std::mem::take(&mut part);
                        let fragment = true;
                        self.push(
                            stream,
                            Answer::Events {
                                id,
                                revision,
                                fragment,
                                fields,
                            },
                        );
                        bytes = head_len;
                    }
                    bytes += field.len();
                    part.push(field);
                }
                fields = part;
            }
        }
        let fragment = false;
        self.push(
            stream,
            Answer::Events {
                id,
                revision,
                fragment,
                fields,
            },
        );
    }
}

/// The live side.
impl Hub {
    /// Whether there are synced watchers, who want to hear what is published.
    pub fn is_listening(&self) -> bool {
        !self.is_idle()
    }

    /// Hands what is published in `view`, and was not yet, to the synced watchers: one bounded step.
    pub fn advance(&mut self, view: &View) -> Step {
        if self.is_idle() {
            return Step::Idle;
        }
        let mut delivery = match self.delivery.take() {
            Some(delivery) => delivery,
            None if self.position >= view.revision => return Step::Idle,
            None => Delivery {
                first: self.position + 1,
                ..Delivery::default()
            },
        };
        let from = match delivery.partial.take() {
            Some(last) => Revision {
                sub: last.sub + 1,
                ..last
            },
            None => Revision {
                main: delivery.first,
                sub: 0,
            },
        };
        if !view.is_recent(from) {
            // So far behind that it lies in the tables: each goes on by itself.
            self.all_fall_behind(delivery.first, view.revision);
            return Step::Idle;
        }
        let rows = self.limits.read_step(view, from);
        for (at, record) in &rows.changes {
            self.find_watchers(&mut delivery, *at, record);
        }
        self.position = rows.upto;
        if rows.partial {
            delivery.partial = rows.changes.last().map(|(at, _)| *at);
            self.delivery = Some(delivery);
            return Step::More;
        }
        let wanted = delivery.with_prev.iter().filter(|wanted| **wanted).count();
        if wanted == 0 {
            self.deliver(&delivery);
            return self.rest(view);
        }
        let mut prevs = Prevs {
            events: std::mem::take(&mut delivery.events),
            wanted: std::mem::take(&mut delivery.with_prev),
            bytes_max: self.limits.step_bytes,
            kept: 0,
        };
        self.delivery = Some(delivery);
        if wanted > self.limits.step_look_ups || view.settled().is_cold() {
            return Step::LookUp(prevs);
        }
        match prevs.look_up(view) {
            Ok(()) => {
                self.looked_up(prevs);
                self.rest(view)
            }
            // Whoever reads it apart deals with a database that was closed, or failed.
            Err(_) => Step::LookUp(prevs),
        }
    }

    fn rest(&self, view: &View) -> Step {
        match self.position < view.revision {
            true => Step::More,
            false => Step::Idle,
        }
    }

    /// Goes on with a step whose earlier pairs have been read.
    pub fn looked_up(&mut self, prevs: Prevs) {
        let Some(mut delivery) = self.delivery.take() else {
            return;
        };
        delivery.events = prevs.events;
        if let Some(cut) = delivery.events.get(prevs.kept) {
            // What does not fit is met again.
            self.position = cut.main - 1;
            delivery.matches.retain(|m| (m.event as usize) < prevs.kept);
        }
        self.deliver(&delivery);
    }

    fn find_watchers(&mut self, delivery: &mut Delivery, at: Revision, record: &Arc<[u8]>) {
        let Hub {
            interest, watchers, ..
        } = self;
        let mut event = None;
        let place = delivery.events.len() as u32;
        let mut with_prev = false;
        interest.for_each(key_of(record), |slot| {
            let watcher = &watchers[slot as usize];
            if at.main < watcher.next {
                return;
            }
            let event = event.get_or_insert_with(|| {
                Event::of(at.main, record).expect("the memtable holds what was decided")
            });
            if watcher.wants.pass(event) {
                with_prev |= watcher.wants.prev_kv && event.replaces;
                delivery.matches.push(Match {
                    slot,
                    serial: watcher.serial,
                    event: place,
                });
            }
        });
        if let Some(event) = event {
            delivery.events.push(event);
            delivery.with_prev.push(with_prev);
        }
    }

    fn deliver(&mut self, delivery: &Delivery) {
        let events = &delivery.events;
        let main = |m: &Match| events[m.event as usize].main;
        for matches in delivery.matches.chunk_by(|a, b| main(a) == main(b)) {
            let revision = main(&matches[0]);
            if matches[0].event == matches[matches.len() - 1].event {
                for m in matches {
                    self.hand_over(revision, std::slice::from_ref(m), events);
                }
                continue;
            }
            // A watcher gets all of a revision in one answer, in order.
            let mut by_watcher: Vec<&Match> = matches.iter().collect();
            by_watcher.sort_by_key(|m| m.slot);
            for matches in by_watcher.chunk_by(|a, b| a.slot == b.slot) {
                self.hand_over(revision, matches.iter().copied(), events);
            }
        }
    }

    fn hand_over<'a>(
        &mut self,
        revision: u64,
        matches: impl IntoIterator<Item = &'a Match>,
        events: &[Event],
    ) {
        let mut matches = matches.into_iter().peekable();
        let Some(&&Match { slot, serial, .. }) = matches.peek() else {
            return;
        };
        // In the meantime it may have been cancelled, fallen behind, or caught up.
        let Some(watcher) = self.watchers.get_mut(slot as usize).filter(|watcher| {
            watcher.serial == serial && watcher.state == State::Synced && watcher.next <= revision
        }) else {
            return;
        };
        let stream = &mut self.streams[watcher.stream];
        if stream.outbox_bytes >= self.limits.outbox_bytes {
            watcher.state = State::Behind;
            watcher.next = revision;
            self.interest.remove(&watcher.range, slot);
            stream.behind.push_back(slot);
            return;
        }
        let prev_kv = watcher.wants.prev_kv;
        let fields = matches.map(|m| events[m.event as usize].field(prev_kv).clone());
        let fields = fields.collect();
        self.push_events(slot, revision, fields);
    }

    /// All synced watchers go on by themselves, from `next` on; the hub goes on at `position`.
    fn all_fall_behind(&mut self, next: u64, position: u64) {
        for (slot, watcher) in &mut self.watchers {
            // One that begins later than the hub's next position has nothing to catch up.
            if watcher.state == State::Synced && watcher.next <= position {
                watcher.state = State::Behind;
                watcher.next = watcher.next.max(next);
                self.interest.remove(&watcher.range, slot as u32);
                self.streams[watcher.stream].behind.push_back(slot as u32);
            }
        }
        self.position = position;
        let slots: Vec<usize> = self.streams.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.feed(slot);
        }
    }
}

/// One step's rows: whole revisions, or a part of one.
struct Rows {
    changes: Vec<(Revision, Arc<[u8]>)>,
    /// The last revision of it.
    upto: u64,
    /// Whether that goes on.
    partial: bool,
}

impl Limits {
    fn read_step(&self, view: &View, from: Revision) -> Rows {
        let mut changes: Vec<(Revision, Arc<[u8]>)> = Vec::new();
        let mut bytes = 0;
        let mut full = false;
        view.recent(from, |at, record| {
            full = changes.len() >= self.step_rows || bytes >= self.step_bytes;
            if !full {
                bytes += record.len();
                changes.push((at, Arc::clone(record)));
            }
            !full
        });
        let last = changes.last().map_or(view.revision, |(at, _)| at.main);
        if !full {
            return Rows {
                changes,
                upto: view.revision,
                partial: false,
            };
        }
        let whole = changes.partition_point(|(at, _)| at.main < last);
        if whole == 0 {
            return Rows {
                changes,
                upto: last,
                partial: true,
            };
        }
        changes.truncate(whole);
        let upto = last - 1;
        Rows {
            changes,
            upto,
            partial: false,
        }
    }
}

/// The side that catches up.
impl Hub {
    /// The streams that are to catch up from now on: for each, plans are to be read until there is
    /// none.
    pub fn take_hungry(&mut self) -> Vec<StreamKey> {
        std::mem::take(&mut self.hungry)
    }

    /// Whether [`Hub::take_hungry`] has any.
    pub fn has_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Has the stream catch up, if it has watchers behind and room for what they hear.
    fn feed(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        if !stream.catching_up && !stream.behind.is_empty() && stream.has_appetite(&self.limits) {
            stream.catching_up = true;
            self.hungry.push(StreamKey {
                slot,
                serial: stream.serial,
            });
        }
    }

    /// What is to be read next for the stream; `None` ends its catching up, for now.
    pub fn plan(&mut self, key: StreamKey) -> Option<Plan> {
        let stream = self.streams.get_mut(key.slot)?;
        if stream.serial != key.serial {
            return None;
        }
        let first = match stream.has_appetite(&self.limits) && stream.end.is_none() {
            true => stream.behind.front(),
            false => None,
        };
        let Some(first) = first else {
            stream.catching_up = false;
            return None;
        };
        // Whoever was served last stands last, so that all get their turn.
        let from = self.watchers[*first as usize].next;
        let mut readers = Vec::new();
        for _ in 0..stream.behind.len().min(LOOKS_MAX) {
            let Some(slot) = stream.behind.pop_front() else {
                break;
            };
            let watcher = &self.watchers[slot as usize];
            let near = (from..=from.saturating_add(APART_MAX)).contains(&watcher.next);
            if !near || readers.len() == READERS_MAX {
                stream.behind.push_back(slot);
                continue;
            }
            readers.push(Reader {
                slot,
                serial: watcher.serial,
                range: watcher.range.clone(),
                wants: watcher.wants,
                next: watcher.next,
            });
        }
        let bytes_max = self.limits.outbox_bytes / 2 / readers.len();
        Some(Plan {
            from,
            readers,
            bytes_max,
            rows_max: self.limits.slice_rows,
            quick_rows_max: self.limits.quick_slice_rows,
        })
    }

    /// Hands out what was read; whoever has come to the hub's position joins it.
    pub fn settle(&mut self, key: StreamKey, plan: &Plan, slice: Slice) {
        let open = self.streams.get(key.slot);
        if open.is_none_or(|stream| stream.serial != key.serial) {
            return;
        }
        match slice {
            Slice::Compacted(floor) => {
                for reader in &plan.readers {
                    self.settle_compacted(reader, floor);
                }
            }
            Slice::Read {
                to,
                revision,
                fields,
            } => {
                for (reader, fields) in plan.readers.iter().zip(fields) {
                    self.settle_read(reader, to, revision, fields);
                }
            }
        }
    }

    fn settle_compacted(&mut self, reader: &Reader, floor: u64) {
        let Some(watcher) = self.reading(reader) else {
            return;
        };
        let (stream, id) = (watcher.stream, watcher.id);
        if watcher.next < floor {
            watcher.state = State::Compacted;
            self.push(stream, Answer::Compacted { id, floor });
        } else {
            self.streams[stream].behind.push_back(reader.slot);
        }
    }

    fn settle_read(
        &mut self,
        reader: &Reader,
        to: u64,
        revision: u64,
        fields: SmallVec<[Bytes; 1]>,
    ) {
        let Some(watcher) = self.reading(reader) else {
            return;
        };
        let stream = watcher.stream;
        if watcher.next > to {
            self.streams[stream].behind.push_back(reader.slot);
            return;
        }
        watcher.next = to + 1;
        if !fields.is_empty() {
            self.push_events(reader.slot, revision, fields);
        }
        if self.is_idle() {
            self.position = to;
        }
        let watcher = &mut self.watchers[reader.slot as usize];
        if watcher.next > self.position {
            watcher.state = State::Synced;
            self.interest.insert(&watcher.range, reader.slot);
        } else {
            self.streams[stream].behind.push_back(reader.slot);
        }
    }

    /// The reader's watcher, unless it was cancelled while the slice was read.
    fn reading(&mut self, reader: &Reader) -> Option<&mut Watcher> {
        let watcher = self.watchers.get_mut(reader.slot as usize)?;
        (watcher.serial == reader.serial).then_some(watcher)
    }
}

impl Stream {
    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn has_appetite(&self, limits: &Limits) -> bool {
        self.outbox_bytes < limits.outbox_bytes / 2
    }
}
