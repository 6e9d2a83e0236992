//! The hub's other side: watchers that are behind, and how they come back.
//!
//! For each stream with watchers behind and room for what they hear, plans are made, read and
//! settled one after the other. Whoever was served last stands last in the next plan.

use super::answer::Answer;
use super::catch_up::{Plan, Read, Reader, Slice};
use super::hub::{Hub, StreamKey};
use super::watcher::{State, Watcher};

/// Watchers behind that are passed over for one plan.
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

    /// A synced watcher goes on by itself, from revision `next` on.
    pub(super) fn falls_behind(&mut self, slot: u32, next: u64) {
        self.forget(slot);
        let watcher = &mut self.watchers[slot as usize];
        watcher.state = State::Behind;
        watcher.next = watcher.next.max(next);
        let (stream, serial) = (watcher.stream, watcher.serial);
        self.streams[stream].behind.push_back((slot, serial));
        self.feed(stream);
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
            self.falls_behind(slot, next);
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
        let mut plan = Plan::new(&self.limits);
        let mut passed_over = Vec::new();
        while has_room && !stream.is_ending() && !plan.is_full() && passed_over.len() < LOOKS_MAX {
            let Some((slot, serial)) = stream.behind.pop_front() else {
                break;
            };
            let watcher = self.watchers.get(slot as usize);
            let Some(watcher) = watcher.filter(|watcher| watcher.serial == serial) else {
                continue;
            };
            if !plan.add(slot, watcher) {
                passed_over.push((slot, serial));
            }
        }
        // Those that are served stand last when they come back, so all get their turn.
        for passed_over in passed_over.into_iter().rev() {
            stream.behind.push_front(passed_over);
        }
        if plan.is_empty() {
            stream.catching_up = false;
            return None;
        }
        Some(plan)
    }

    /// Hands out what was read; whoever has come to the hub's position joins it.
    pub fn settle(&mut self, key: StreamKey, plan: &Plan, slice: Slice) {
        let open = self.streams.get(key.slot);
        if open.is_none_or(|stream| stream.serial != key.serial) {
            return;
        }
        for reader in &plan.readers {
            // It may have been cancelled meanwhile.
            let watcher = self.watchers.get_mut(reader.slot as usize);
            let Some(watcher) = watcher.filter(|watcher| watcher.serial == reader.serial) else {
                continue;
            };
            let goes_on = match &slice {
                Slice::Compacted(floor) if watcher.next < *floor => {
                    watcher.state = State::Compacted;
                    let (id, floor) = (watcher.id, *floor);
                    self.push(key.slot, Answer::Compacted { id, floor });
                    false
                }
                Slice::Compacted(_) => true,
                Slice::Read(read) => self.settle_read(key.slot, reader, read),
            };
            if goes_on {
                let behind = &mut self.streams[key.slot].behind;
                behind.push_back((reader.slot, reader.serial));
            }
        }
    }

    /// Hands a reader what it has read, if there is still room; whether it goes on reading.
    fn settle_read(&mut self, stream: usize, reader: &Reader, read: &Read) -> bool {
        let full = self.streams[stream].waiting_bytes() >= self.limits.outbox_bytes;
        if full || reader.next > read.to {
            return true;
        }
        self.watchers[reader.slot as usize].next = read.to + 1;
        let fields = read.fields(reader);
        if !fields.is_empty() {
            self.push_events(reader.slot, read.revision, fields);
        }
        if self.is_idle() {
            self.position = read.to;
        }
        let joins = read.to + 1 > self.position;
        if joins {
            self.listen(reader.slot);
        }
        !joins
    }
}
