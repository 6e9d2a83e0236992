//! A watcher: what one client wants to hear, and how far it has heard.

use crate::storage::key_range::KeyRange;

use super::event::{Event, Kind};

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its number on the stream; 0 lets the hub choose.
    pub id: i64,
    /// The keys.
    pub range: KeyRange,
    /// The first revision; 0 is the next one.
    pub start: i64,
    /// Which events.
    pub wants: Wants,
    /// Whether a large answer may be split.
    pub fragment: bool,
    /// Whether to tell from time to time how far it has heard.
    pub progress_notify: bool,
}

/// Which events a watcher wants, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// Leaves out puts.
    pub no_put: bool,
    /// Leaves out deletes.
    pub no_delete: bool,
    /// With the pair that was there before.
    pub prev_kv: bool,
}

impl Wants {
    /// Whether `event` passes.
    pub fn pass(&self, event: &Event) -> bool {
        match event.kind {
            Kind::Put => !self.no_put,
            Kind::Delete => !self.no_delete,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    /// The slot of its stream.
    pub stream: usize,
    /// No other watcher of the hub ever has this number.
    pub serial: u64,
    /// Its number on the stream.
    pub id: i64,
    /// The keys.
    pub range: KeyRange,
    /// Which events.
    pub wants: Wants,
    /// Whether a large answer may be split.
    pub fragment: bool,
    /// Whether to tell from time to time how far it has heard.
    pub progress_notify: bool,
    /// The first revision it asked for; 0 if it asked for none.
    pub start: u64,
    /// The first revision it has not heard.
    pub next: u64,
    /// Where it hears.
    pub state: State,
    /// Where it stands in the index, while it is synced.
    pub place: u32,
    /// Whether it has got events since the last look at its progress.
    pub heard: bool,
}

/// Where a watcher hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// From the hub: all up to its position.
    Synced,
    /// From history, by itself.
    Behind,
    /// Nowhere: compaction was faster. Its number is in use until the client cancels it too.
    Compacted,
}
