//! Catching up: history, read in slices for watchers that are behind.
//!
//! ```text
//! hub.plan ─► read, on any thread, from one view ─► hub.settle
//! ```
//! One slice serves watchers of one stream that have come about equally far. It ends with a whole
//! revision, and it is bounded in rows, revisions and bytes; only a single revision may be larger.
//! The floor is checked with every slice, and who it has passed is told.

use std::collections::HashMap;

use bytes::Bytes;
use smallvec::SmallVec;

use super::event::{self, Event};
use super::hub::Limits;
use super::watcher::{Wants, Watcher};
use crate::storage::key_range::KeyRange;
use crate::storage::record::key_of;
use crate::storage::revision::Revision;
use crate::storage::view::View;
use crate::storage::{self, Damaged};

/// Watchers that share a slice.
const READERS_MAX: usize = 100;

/// Revisions by which watchers that share a slice may differ at its beginning.
const APART_MAX: u64 = 1000;

/// Most revisions with events in one slice; etcd's batches have as many.
const REVISIONS_MAX: usize = 1000;

/// What is to be read.
#[derive(Debug)]
pub struct Plan {
    /// From this revision on.
    from: u64,
    /// Who reads.
    pub(super) readers: Vec<Reader>,
    /// What they watch, each range once.
    ranges: Vec<KeyRange>,
    /// Bytes that all answers together may take, about.
    bytes_max: usize,
    /// Rows that it looks at.
    rows_max: usize,
    /// The same if it is to be quick.
    quick_rows_max: usize,
}

/// A watcher that reads.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) slot: u32,
    pub(super) serial: u64,
    /// The first revision it has not heard; the plan's or later.
    pub(super) next: u64,
    wants: Wants,
    /// What it watches, as a place in the plan's list.
    range: usize,
}

/// What came of reading.
#[derive(Debug)]
pub enum Slice {
    /// History begins at this floor, behind where the slice was to begin.
    Compacted(u64),
    /// This was read.
    Read(Read),
}

/// A part of history.
#[derive(Debug)]
pub struct Read {
    /// The last revision that was looked at.
    pub(super) to: u64,
    /// The newest revision of the view.
    pub(super) revision: u64,
    /// What any reader watches.
    events: Vec<Event>,
    /// For each range of the plan, the places of its events.
    heard: Vec<Vec<u32>>,
}

impl Plan {
    /// A plan without readers.
    pub(super) fn new(limits: &Limits) -> Plan {
        Plan {
            from: 0,
            readers: Vec::new(),
            ranges: Vec::new(),
            bytes_max: limits.outbox_bytes / 2,
            rows_max: limits.slice_rows,
            quick_rows_max: limits.quick_slice_rows,
        }
    }

    /// Whether it has no readers.
    pub(super) fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }

    /// Whether it takes no more readers.
    pub(super) fn is_full(&self) -> bool {
        self.readers.len() == READERS_MAX
    }

    /// Adds a reader, if it has come about as far as the first one, and no less.
    pub(super) fn add(&mut self, slot: u32, watcher: &Watcher) -> bool {
        if self.is_empty() {
            self.from = watcher.next;
        }
        let near = self.from..=self.from.saturating_add(APART_MAX);
        if !near.contains(&watcher.next) {
            return false;
        }
        let known = self.ranges.iter().position(|range| *range == watcher.range);
        let range = known.unwrap_or_else(|| {
            self.ranges.push(watcher.range.clone());
            self.ranges.len() - 1
        });
        self.readers.push(Reader {
            slot,
            serial: watcher.serial,
            next: watcher.next,
            wants: watcher.wants,
            range,
        });
        true
    }

    /// Whether it can be read from memory, or at least can be tried.
    pub fn is_quick(&self, view: &View) -> bool {
        let prev_kv = self.readers.iter().any(|reader| reader.wants.prev_kv);
        !prev_kv && view.is_recent(self.first())
    }

    fn first(&self) -> Revision {
        Revision {
            main: self.from,
            sub: 0,
        }
    }

    /// Reads the slice. If it is to be `quick`, it is short, or `None` if it cannot be.
    pub fn read(&self, view: &View, quick: bool) -> Result<Option<Slice>, storage::Error> {
        if let Some(floor) = view.floor.filter(|floor| *floor > self.from) {
            return Ok(Some(Slice::Compacted(floor)));
        }
        let mut read = Read {
            to: view.revision,
            revision: view.revision,
            events: Vec::new(),
            heard: vec![Vec::new(); self.ranges.len()],
        };
        if !self.scan(view, quick, &mut read)? {
            return Ok(None);
        }
        if view.floor == Some(self.from) {
            read.forget_superseded(self.from);
        }
        let with_prev = self.with_prev(&read);
        let wanted = |place: usize| with_prev[place];
        let kept = event::add_prev(view, &mut read.events, wanted, self.bytes_max)?;
        if let Some(cut) = read.events.get(kept) {
            read.end_before(cut.main);
        }
        Ok(Some(Slice::Read(read)))
    }

    /// Collects the events that any reader watches; whether that was quick enough.
    fn scan(&self, view: &View, quick: bool, read: &mut Read) -> Result<bool, storage::Error> {
        let rows_max = match quick {
            // Each row is held against each range.
            true => (self.quick_rows_max / self.ranges.len()).max(1),
            false => self.rows_max,
        };
        let bytes_max = self.bytes_max / self.readers.len();
        let (mut rows, mut bytes, mut revisions) = (0, 0, 0);
        let mut last = 0;
        let mut cut = None;
        let mut too_long = false;
        let mut damaged: Option<Damaged> = None;
        view.history(self.first(), |at, record| {
            let full = rows >= rows_max
                || at.main > last && (bytes >= bytes_max || revisions >= REVISIONS_MAX);
            if full && at.main > self.from {
                cut = Some(at.main);
                return false;
            }
            // A single revision is read to its end, wherever that lies.
            too_long = full && quick;
            if too_long {
                return false;
            }
            rows += 1;
            last = at.main;
            if !read.hear(&self.ranges, key_of(record)) {
                return true;
            }
            match Event::of(at.main, record) {
                Ok(event) => {
                    let begins = read.events.last().is_none_or(|last| last.main != at.main);
                    revisions += usize::from(begins);
                    bytes += event.bytes();
                    read.events.push(event);
                }
                Err(what) => damaged = Some(what),
            }
            damaged.is_none()
        })?;
        if let Some(what) = damaged {
            return Err(what.into());
        }
        if let Some(cut) = cut {
            read.end_before(cut);
        }
        Ok(!too_long)
    }

    /// For each event, whether a reader wants the pair before it.
    fn with_prev(&self, read: &Read) -> Vec<bool> {
        let mut wanted = vec![false; read.events.len()];
        for reader in self.readers.iter().filter(|reader| reader.wants.prev_kv) {
            for place in &read.heard[reader.range] {
                wanted[*place as usize] = true;
            }
        }
        wanted
    }
}

impl Read {
    /// Whether a range has `key`; then the next event is theirs.
    fn hear(&mut self, ranges: &[KeyRange], key: &[u8]) -> bool {
        let place = self.events.len() as u32;
        let mut heard = false;
        for (range, places) in ranges.iter().zip(&mut self.heard) {
            if range.contains(key) {
                places.push(place);
                heard = true;
            }
        }
        heard
    }

    /// Ends with the last revision before `main`.
    fn end_before(&mut self, main: u64) {
        self.to = main - 1;
        let kept = self.events.partition_point(|event| event.main < main);
        self.events.truncate(kept);
        for places in &mut self.heard {
            places.truncate(places.partition_point(|place| (*place as usize) < kept));
        }
    }

    /// At the floor only the last change of a key is left, if it changed twice in that revision:
    /// whether the sweep has come by or not.
    fn forget_superseded(&mut self, floor: u64) {
        let events = &self.events;
        let at_floor = events.partition_point(|event| event.main <= floor);
        let places = events[..at_floor].iter().enumerate();
        let last: HashMap<&Bytes, usize> =
            places.map(|(place, event)| (&event.key, place)).collect();
        for places in &mut self.heard {
            places.retain(|place| {
                let place = *place as usize;
                place >= at_floor || last[&events[place].key] == place
            });
        }
    }

    /// What a reader has heard: fields of an answer.
    pub(super) fn fields(&self, reader: &Reader) -> SmallVec<[Bytes; 1]> {
        let heard = self.heard[reader.range].iter();
        let events = heard.map(|place| &self.events[*place as usize]);
        events
            .filter(|event| event.main >= reader.next && reader.wants.pass(event))
            .map(|event| event.field(reader.wants.prev_kv).clone())
            .collect()
    }
}
