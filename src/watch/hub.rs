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

use std::task::{Context, Poll};

use bytes::Bytes;
use slab::Slab;
use smallvec::SmallVec;

use super::answer::{Answer, End, Origin, Refusal};
use super::interest::Interest;
use super::live::Delivery;
use super::stream::Stream;
use super::watcher::{Create, State, Watcher};
use crate::storage::view::View;

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
    /// Watchers that it finds, or hands something to: about a millisecond.
    pub step_matches: usize,
    /// Pairs before an event that it looks up, while that is likely quick.
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
            step_matches: 4000,
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
    pub(super) limits: Limits,
    pub(super) position: u64,
    /// What is on its way to synced watchers: up to `position`.
    pub(super) delivery: Option<Delivery>,
    pub(super) streams: Slab<Stream>,
    pub(super) watchers: Slab<Watcher>,
    /// The synced watchers.
    pub(super) interest: Interest,
    /// Streams and watchers made so far.
    serials: u64,
    /// Streams that are to catch up.
    pub(super) hungry: Vec<StreamKey>,
    /// How all streams end, those to come included.
    end: Option<End>,
}

/// A stream of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

impl StreamKey {
    /// A number that no other stream of the hub has.
    pub fn number(self) -> u64 {
        self.serial
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
        let slot = self.streams.insert(Stream::new(serial, self.end.clone()));
        StreamKey { slot, serial }
    }

    /// Closes a stream; its watchers go with it.
    pub fn close(&mut self, key: StreamKey) {
        let stream = self.streams.remove(key.slot);
        for slot in stream.ids.into_values() {
            self.drop_watcher(slot);
        }
    }

    fn drop_watcher(&mut self, slot: u32) {
        if self.watchers[slot as usize].state == State::Synced {
            self.forget(slot);
        }
        self.watchers.remove(slot as usize);
    }

    /// Lets a watcher hear what is published from here on.
    pub(super) fn listen(&mut self, slot: u32) {
        let watcher = &mut self.watchers[slot as usize];
        watcher.state = State::Synced;
        watcher.place = self.interest.insert(&watcher.range, slot);
    }

    /// Takes a synced watcher out of the index.
    pub(super) fn forget(&mut self, slot: u32) {
        let Watcher { range, place, .. } = &self.watchers[slot as usize];
        let place = *place;
        if let Some(moved) = self.interest.remove(range, place) {
            self.watchers[moved as usize].place = place;
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
            0 => stream.choose_id(),
            id if stream.ids.contains_key(&id) => return Err(Refusal::DuplicateId),
            id => id,
        };
        let next = match start {
            0 => revision + 1,
            start => start,
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
            state: State::Behind,
            place: 0,
            heard: false,
        });
        let slot = u32::try_from(slot).expect("memory ends long before 2^32 watchers");
        stream.ids.insert(id, slot);
        match next > self.position {
            true => self.listen(slot),
            false => stream.behind.push_back((slot, serial)),
        }
        Ok(id)
    }

    /// Cancels a watcher. Of a number that is not in use nothing is said, as in etcd (script
    /// `watch_cancel`).
    pub fn cancel(&mut self, key: StreamKey, id: i64, view: &View) {
        let stream = &mut self.streams[key.slot];
        let Some(slot) = stream.ids.remove(&id) else {
            return;
        };
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
            && stream.waiting_bytes() < self.limits.outbox_bytes;
        if told {
            let revision = self.position;
            self.push(key.slot, Answer::Progress { id: None, revision });
        }
    }

    /// Tells those watchers of the stream that asked for it, and have heard nothing since the last
    /// time, how far they have heard: as far as the outbox has room, beginning where the last time
    /// ended.
    pub fn notify_progress(&mut self, key: StreamKey) {
        let mut slots: Vec<u32> = self.streams[key.slot].ids.values().copied().collect();
        let begin = self.streams[key.slot].looks % slots.len().max(1);
        slots.rotate_left(begin);
        for slot in slots {
            if self.streams[key.slot].waiting_bytes() >= self.limits.outbox_bytes {
                return;
            }
            self.streams[key.slot].looks += 1;
            let watcher = &mut self.watchers[slot as usize];
            let heard = std::mem::take(&mut watcher.heard);
            let watcher = &self.watchers[slot as usize];
            if watcher.progress_notify && !heard && self.is_current(watcher) {
                let (id, revision) = (Some(watcher.id), self.position);
                self.push(key.slot, Answer::Progress { id, revision });
            }
        }
    }

    /// Whether a watcher has heard all up to the hub's position, and that is not before its start.
    fn is_current(&self, watcher: &Watcher) -> bool {
        watcher.state == State::Synced && watcher.start <= self.position && self.delivery.is_none()
    }

    /// The next answer for the client, or the stream's end.
    pub fn take(&mut self, key: StreamKey, context: &Context<'_>) -> Poll<Result<Answer, End>> {
        let answer = self.streams[key.slot].take(self.limits.outbox_bytes, context);
        self.feed(key.slot);
        answer
    }

    /// Whether the stream's outbox has room for the answer to a request.
    pub fn poll_room(&mut self, key: StreamKey, context: &Context<'_>) -> Poll<()> {
        self.streams[key.slot].poll_room(self.limits.outbox_bytes, context)
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
    pub(super) fn is_idle(&self) -> bool {
        self.interest.is_empty() && self.delivery.is_none()
    }

    pub(super) fn push(&mut self, slot: usize, answer: Answer) {
        self.streams[slot].push(answer);
    }

    /// Hands events to a watcher, in parts if it asked for that.
    pub(super) fn push_events(
        &mut self,
        slot: u32,
        revision: u64,
        mut fields: SmallVec<[Bytes; 1]>,
    ) {
        let watcher = &mut self.watchers[slot as usize];
        watcher.heard = true;
        let (id, split) = (watcher.id, watcher.fragment && fields.len() > 1);
        let stream = &mut self.streams[watcher.stream];
        let mut push = |fragment, fields| {
            stream.push(Answer::Events {
                id,
                revision,
                fragment,
                fields,
            });
        };
        let bytes_max = self.limits.fragment_bytes;
        let whole = || fields.iter().map(Bytes::len).sum::<usize>();
        if split && whole() + self.origin.head_len(id, revision, false) >= bytes_max {
            let head_len = self.origin.head_len(id, revision, true);
            let mut bytes = head_len;
            let mut part = SmallVec::new();
            for field in fields {
                if !part.is_empty() && bytes + field.len() >= bytes_max {
                    push(true, std::mem::take(&mut part));
                    bytes = head_len;
                }
                bytes += field.len();
                part.push(field);
            }
            fields = part;
        }
        push(false, fields);
    }
}
