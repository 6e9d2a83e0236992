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
use super::watcher::Wants;
use crate::storage::key_range::KeyRange;
use crate::storage::record::key_of;
use crate::storage::revision::Revision;
use crate::storage::view::View;
use crate::storage::{self, Damaged};

/// Most revisions with events in one slice; etcd's batches have as many.
const REVISIONS_MAX: usize = 1000;

/// What is to be read.
#[derive(Debug)]
pub struct Plan {
    /// From this revision on.
    pub(super) from: u64,
    /// Who reads.
    pub(super) readers: Vec<Reader>,
    /// Bytes of events after which the slice ends.
    pub(super) bytes_max: usize,
    /// Rows that it looks at.
    pub(super) rows_max: usize,
    /// The same if it is to be quick.
    pub(super) quick_rows_max: usize,
}

/// A watcher that reads.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) slot: u32,
    pub(super) serial: u64,
    pub(super) range: KeyRange,
    pub(super) wants: Wants,
    /// The first revision it has not heard; the plan's or later.
    pub(super) next: u64,
}

/// What was read.
#[derive(Debug)]
pub enum Slice {
    /// History begins at this floor, behind where the slice was to begin.
    Compacted(u64),
    /// All up to `to`.
    Read {
        /// The last revision that was looked at.
        to: u64,
        /// The newest revision of the view.
        revision: u64,
        /// For each reader, in order, its events as fields of an answer.
        fields: Vec<SmallVec<[Bytes; 1]>>,
    },
}

impl Plan {
    /// Whether it can be read from memory in about a tenth of a millisecond.
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

    /// Reads the slice. `quick` makes it short.
    pub fn read(&self, view: &View, quick: bool) -> Result<Slice, storage::Error> {
        if let Some(floor) = view.floor.filter(|floor| *floor > self.from) {
            return Ok(Slice::Compacted(floor));
        }
        let rows_max = match quick {
            true => self.quick_rows_max,
            false => self.rows_max,
        };
        let mut audience = Audience::of(&self.readers);
        let mut events = Vec::new();
        let mut to = self.scan(view, rows_max, &mut audience, &mut events)?;
        if view.floor.is_some_and(|floor| floor == self.from) {
            audience.forget_superseded(&events, self.from);
        }
        let with_prev = audience.with_prev(&self.readers, events.len());
        let wanted = |place: usize| with_prev[place];
        let kept = event::add_prev(view, &mut events, wanted, 2 * self.bytes_max)?;
        if let Some(cut) = events.get(kept) {
            to = cut.main - 1;
        }
        Ok(Slice::Read {
            to,
            revision: view.revision,
            fields: audience.fields(&self.readers, &events[..kept]),
        })
    }

    /// Collects the events that any reader wants; answers the last revision that it looked at.
    fn scan(
        &self,
        view: &View,
        rows_max: usize,
        audience: &mut Audience<'_>,
        events: &mut Vec<Event>,
    ) -> Result<u64, storage::Error> {
        let (mut rows, mut bytes, mut revisions) = (0, 0, 0);
        let mut last = None;
        let mut cut = None;
        let mut damaged: Option<Damaged> = None;
        view.history(self.first(), |at, record| {
            if last != Some(at.main) {
                if rows >= rows_max || bytes >= self.bytes_max || revisions >= REVISIONS_MAX {
                    cut = last;
                    return false;
                }
                last = Some(at.main);
            }
            rows += 1;
            let place = events.len();
            if !audience.hear(key_of(record), place as u32) {
                return true;
            }
            match Event::of(at.main, record) {
                Ok(event) => {
                    if events.last().is_none_or(|last| last.main != at.main) {
                        revisions += 1;
                    }
                    bytes += event.bytes();
                    events.push(event);
                    true
                }
                Err(what) => {
                    damaged = Some(what);
                    false
                }
            }
        })?;
        match damaged {
            Some(what) => Err(what.into()),
            None => Ok(cut.unwrap_or(view.revision)),
        }
    }
}

/// The readers of a slice by what they watch, and what each group hears.
struct Audience<'a> {
    groups: Vec<Group<'a>>,
}

struct Group<'a> {
    range: &'a KeyRange,
    /// Places in the plan's list.
    readers: Vec<usize>,
    /// Places in the slice's list.
    events: Vec<u32>,
}

impl<'a> Audience<'a> {
    fn of(readers: &'a [Reader]) -> Audience<'a> {
        let mut by_range: HashMap<&KeyRange, usize> = HashMap::new();
        let mut groups: Vec<Group<'a>> = Vec::new();
        for (place, reader) in readers.iter().enumerate() {
            let group = *by_range.entry(&reader.range).or_insert_with(|| {
                groups.push(Group {
                    range: &reader.range,
                    readers: Vec::new(),
                    events: Vec::new(),
                });
                groups.len() - 1
            });
            groups[group].readers.push(place);
        }
        Audience { groups }
    }

    /// Whether anyone hears of `key`; then they get the event of that place.
    fn hear(&mut self, key: &[u8], event: u32) -> bool {
        let mut heard = false;
        for group in &mut self.groups {
            if group.range.contains(key) {
                group.events.push(event);
                heard = true;
            }
        }
        heard
    }

    /// At the floor only the last change of a key is left, if it changed twice in that revision:
    /// whether the sweep has come by or not.
    fn forget_superseded(&mut self, events: &[Event], floor: u64) {
        let mut last = HashMap::new();
        for (place, event) in events.iter().enumerate() {
            if event.main == floor {
                last.insert(&event.key, place as u32);
            }
        }
        for group in &mut self.groups {
            group.events.retain(|place| {
                let event = &events[*place as usize];
                event.main > floor || last[&event.key] == *place
            });
        }
    }

    /// For each event, whether a reader wants the pair before it.
    fn with_prev(&self, readers: &[Reader], events: usize) -> Vec<bool> {
        let mut wanted = vec![false; events];
        for group in &self.groups {
            if group
                .readers
                .iter()
                .any(|place| readers[*place].wants.prev_kv)
            {
                for place in &group.events {
                    wanted[*place as usize] = true;
                }
            }
        }
        wanted
    }

    fn fields(&self, readers: &[Reader], events: &[Event]) -> Vec<SmallVec<[Bytes; 1]>> {
        let mut fields = vec![SmallVec::new(); readers.len()];
        for group in &self.groups {
            for place in &group.readers {
                let reader = &readers[*place];
                let heard = group
                    .events
                    .iter()
                    .filter_map(|at| events.get(*at as usize));
                let heard =
                    heard.filter(|event| event.main >= reader.next && reader.wants.pass(event));
                fields[*place] = heard
                    .map(|event| event.field(reader.wants.prev_kv).clone())
                    .collect();
            }
        }
        fields
    }
}
