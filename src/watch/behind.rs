//! The hub's other side: watchers that are behind, and how they come back.
//!
//! For each stream with watchers behind and room for what they hear, plans are made, read and
//! settled one after the other. Whoever was served last stands last in the next plan.

use bytes::Bytes;
use smallvec::SmallVec;

use super::answer::Answer;
use super::catch_up::{Plan, Reader, Slice};
use super::hub::{Hub, StreamKey};
use super::watcher::{State, Watcher};

/// Watchers that share a slice.
const READERS_MAX: usize = 100;

/// Revisions by which watchers that share a slice may differ at its beginning.
const APART_MAX: u64 = 1000;

/// Watchers behind that are looked at for one plan.
const LOOKS_MAX: usize = 1000;

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
    pub(super) fn feed(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        let has_room = stream.waiting_bytes() < self.limits.outbox_bytes / 2;
        if has_room && !stream.catching_up && !stream.behind.is_empty() {
            stream.catching_up = true;
            self.hungry.push(StreamKey {
                slot,
                serial: stream.serial,
            });
        }
    }

    /// A synced watcher goes on by itself.
    pub(super) fn falls_behind(&mut self, slot: u32) {
        self.forget(slot);
        let watcher = &mut self.watchers[slot as usize];
        watcher.state = State::Behind;
        self.streams[watcher.stream].behind.push_back(slot);
    }

    /// All synced watchers go on by themselves, from `next` on; the hub goes on at `position`.
    pub(super) fn all_fall_behind(&mut self, next: u64, position: u64) {
        // One that begins later than the hub's next position has nothing to catch up.
        let behind = |watcher: &Watcher| watcher.state == State::Synced && watcher.next <= position;
        let slots: Vec<u32> = self
            .watchers
            .iter()
            .filter_map(|(slot, watcher)| behind(watcher).then_some(slot as u32))
            .collect();
        for slot in slots {
            self.falls_behind(slot);
            let watcher = &mut self.watchers[slot as usize];
            watcher.next = watcher.next.max(next);
            let stream = watcher.stream;
            self.feed(stream);
        }
        self.position = position;
    }

    /// What is to be read next for the stream; `None` ends its catching up, for now.
    pub fn plan(&mut self, key: StreamKey) -> Option<Plan> {
        let stream = self.streams.get_mut(key.slot)?;
        if stream.serial != key.serial {
            return None;
        }
        let has_room = stream.waiting_bytes() < self.limits.outbox_bytes / 2;
        let first = match has_room && !stream.is_ending() {
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
        match to + 1 > self.position {
            true => self.listen(reader.slot),
            false => self.streams[stream].behind.push_back(reader.slot),
        }
    }

    /// The reader's watcher, unless it was cancelled while the slice was read.
    fn reading(&mut self, reader: &Reader) -> Option<&mut Watcher> {
        let watcher = self.watchers.get_mut(reader.slot as usize)?;
        (watcher.serial == reader.serial).then_some(watcher)
    }
}
