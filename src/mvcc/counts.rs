//! Counts of ranges, remembered from page to page.
//!
//! Every page of a list says how many keys the rest of the range holds. Counted anew for each,
//! paging through n keys would cost n²/page. But what is there at a revision never changes: the
//! count behind a page is the count at its start less the pairs that the page held.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::storage::key_range::{End, KeyRange};

/// Lists that can be under way at once without counting twice.
const LISTS_MAX: usize = 64;

/// Counts of the most recent pages; see the module.
#[derive(Debug, Default)]
pub struct Counts {
    known: Mutex<VecDeque<Known>>,
}

#[derive(Debug)]
struct Known {
    start: Bytes,
    end: End,
    revision: u64,
    count: u64,
}

impl Counts {
    /// How many keys `range` has at `revision`, if a page ended right before it.
    pub fn find(&self, range: &KeyRange, revision: u64) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|known| {
            known.revision == revision && known.start == range.start && known.end == range.end
        });
        Some(found?.count)
    }

    /// Remembers that `count` keys of `range` at `revision` come behind `last`.
    pub fn remember(&self, range: &KeyRange, last: &[u8], revision: u64, count: u64) {
        let mut start = Vec::with_capacity(last.len() + 1);
        start.extend_from_slice(last);
        start.push(0);
        let next = Known {
            start: start.into(),
            end: range.end.clone(),
            revision,
            count,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The page that was just answered has served: its list goes on behind it.
        known.retain(|known| {
            !(known.revision == revision && known.start == range.start && known.end == range.end)
        });
        if known.len() == LISTS_MAX {
            known.pop_front();
        }
        known.push_back(next);
    }
}
