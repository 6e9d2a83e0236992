//! The hub's live side: what is published, handed to the synced watchers.
//!
//! ```text
//! rows ─► matches ─► earlier pairs ─► outboxes
//!     └─► a revision too large, a pair not at hand, an outbox full: those watchers fall behind
//! ```
//! In bounded steps, between which the thread does other things; none of them waits. From the
//! first of them on the hub's position is that of the last row that was looked at, so whoever
//! comes or goes in between is on one side of it: see [`Hub::hand_over`].

use std::sync::Arc;

use super::event::{self, Event};
use super::hub::{Hub, Limits};
use super::watcher::State;
use crate::storage::record::key_of;
use crate::storage::revision::Revision;
use crate::storage::view::View;

/// A revision of several changes with more matches than so many steps may have is too large for
/// one: what it takes is bounded, and so is the time to collect it.
const WIDE_STEPS: usize = 16;

/// Events on their way to their watchers.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A revision that is too large: who wants any of it falls behind. Its rows up to this one have
    /// been looked at.
    Scattering(Revision),
    /// Handed over up to a match.
    HandingOver(Found, usize),
}

/// Who wants what of some whole revisions.
#[derive(Debug, Default)]
pub(super) struct Found {
    events: Vec<Event>,
    /// Whether an event is wanted with the pair before it.
    with_prev: Vec<bool>,
    /// Whether those pairs could not be had.
    without_prev: bool,
    /// By revision and event; by revision and watcher where a revision has several events.
    matches: Vec<Match>,
}

/// A watcher that wants an event.
#[derive(Debug)]
struct Match {
    main: u64,
    serial: u64,
    slot: u32,
    event: u32,
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something is published.
    Idle,
    /// More steps.
    More,
}

impl Hub {
    /// Whether there are synced watchers, who want to hear what is published.
    pub fn is_listening(&self) -> bool {
        !self.is_idle()
    }

    /// Hands what is published in `view`, and was not yet, to the synced watchers: one step.
    pub fn advance(&mut self, view: &View) -> Step {
        let from = match self.delivery.take() {
            Some(Delivery::HandingOver(found, begun)) => {
                return self.hand_over_from(found, begun, view);
            }
            Some(Delivery::Scattering(last)) => Revision {
                sub: last.sub + 1,
                ..last
            },
            None if self.is_idle() || self.position >= view.revision => return Step::Idle,
            None => Revision {
                main: self.position + 1,
                sub: 0,
            },
        };
        if !view.is_recent(from) {
            // So far behind that it lies in the tables: each goes on by itself.
            self.all_fall_behind(from.main, view.revision);
            return Step::More;
        }
        let rows = self.limits.read_step(view, from);
        if from.sub > 0 || !rows.whole {
            return self.scatter(from.main, &rows);
        }
        self.find(&rows, view)
    }

    /// Lets all fall behind who want any of these rows of revision `main`.
    fn scatter(&mut self, main: u64, rows: &Rows) -> Step {
        self.position = main;
        for (at, record) in &rows.changes {
            if at.main > main {
                return Step::More;
            }
            let mut slots = Vec::new();
            self.interest.for_each(key_of(record), |slot| {
                if self.watchers[slot as usize].next <= main {
                    slots.push(slot);
                }
            });
            for slot in slots {
                self.falls_behind(slot, main);
            }
        }
        if !rows.whole
            && let Some((last, _)) = rows.changes.last()
        {
            self.delivery = Some(Delivery::Scattering(*last));
        }
        Step::More
    }

    /// Finds the watchers of one step's rows, and hands over to them.
    fn find(&mut self, rows: &Rows, view: &View) -> Step {
        let mut found = Found::default();
        let mut upto = rows.upto;
        let mut look_ups = 0;
        for revision in rows.changes.chunk_by(|a, b| a.0.main == b.0.main) {
            let main = revision[0].0.main;
            let full = found.matches.len() >= self.limits.step_matches
                || look_ups >= self.limits.step_look_ups;
            if full && !found.matches.is_empty() {
                upto = main - 1;
                break;
            }
            let before = (found.matches.len(), found.events.len());
            let wide = before.0 + WIDE_STEPS * self.limits.step_matches;
            for (at, record) in revision {
                self.find_watchers(&mut found, *at, record);
                if revision.len() > 1 && found.matches.len() > wide {
                    break;
                }
            }
            if revision.len() > 1 && found.matches.len() > wide {
                if before.0 == 0 {
                    return self.scatter(main, &Rows::of(revision));
                }
                found.matches.truncate(before.0);
                found.events.truncate(before.1);
                found.with_prev.truncate(before.1);
                upto = main - 1;
                break;
            }
            let wanted = found.with_prev[before.1..].iter();
            look_ups += wanted.filter(|wanted| **wanted).count();
            // A watcher gets all of a revision in one answer, in order.
            if revision.len() > 1 {
                found.matches[before.0..].sort_by_key(|found| found.slot);
            }
        }
        self.position = upto;
        self.look_up(&mut found, look_ups, view);
        self.hand_over_from(found, 0, view)
    }

    fn find_watchers(&self, found: &mut Found, at: Revision, record: &Arc<[u8]>) {
        let mut event = None;
        let mut with_prev = false;
        let place = found.events.len() as u32;
        self.interest.for_each(key_of(record), |slot| {
            let watcher = &self.watchers[slot as usize];
            if at.main < watcher.next {
                return;
            }
            let event = event.get_or_insert_with(|| {
                Event::of(at.main, record).expect("the memtable holds what was decided")
            });
            if watcher.wants.pass(event) {
                with_prev |= watcher.wants.prev_kv && event.replaces;
                found.matches.push(Match {
                    main: at.main,
                    serial: watcher.serial,
                    slot,
                    event: place,
                });
            }
        });
        if let Some(event) = event {
            found.events.push(event);
            found.with_prev.push(with_prev);
        }
    }

    /// Looks up the pairs before the events, if that is likely quick; otherwise those who want
    /// them fall behind, and have it done elsewhere.
    fn look_up(&self, found: &mut Found, look_ups: usize, view: &View) {
        if look_ups == 0 {
            return;
        }
        let quick = look_ups <= 2 * self.limits.step_look_ups && !view.settled().is_cold();
        let Found {
            events, with_prev, ..
        } = found;
        let wanted = |place: usize| with_prev[place];
        // The step is short, so all of it is looked up. One that catches up deals with a database
        // that was closed, or has failed.
        let done = quick && event::add_prev(view, events, wanted, usize::MAX).is_ok();
        found.without_prev = !done;
    }

    /// Hands over the matches from the `begun`-th on, about as many as a step may.
    fn hand_over_from(&mut self, found: Found, begun: usize, view: &View) -> Step {
        let mut place = begun;
        let together = |a: &Match, b: &Match| (a.main, a.slot) == (b.main, b.slot);
        for matches in found.matches[begun..].chunk_by(together) {
            if place - begun >= self.limits.step_matches {
                self.delivery = Some(Delivery::HandingOver(found, place));
                return Step::More;
            }
            self.hand_over(matches, &found);
            place += matches.len();
        }
        match self.position < view.revision {
            true => Step::More,
            false => Step::Idle,
        }
    }

    /// Hands a watcher what it wants of a revision; or lets it fall behind.
    ///
    /// Since it was found it may have been cancelled, fallen behind, or fallen behind and caught
    /// up: then it has heard this, or will, and its `next` says so.
    fn hand_over(&mut self, matches: &[Match], found: &Found) {
        let Match {
            main, serial, slot, ..
        } = matches[0];
        let Some(watcher) = self.watchers.get(slot as usize).filter(|watcher| {
            watcher.serial == serial && watcher.state == State::Synced && watcher.next <= main
        }) else {
            return;
        };
        let full = self.streams[watcher.stream].waiting_bytes() >= self.limits.outbox_bytes;
        let prev_kv = watcher.wants.prev_kv;
        let event = |found_here: &Match| &found.events[found_here.event as usize];
        let lacks_prev =
            prev_kv && found.without_prev && matches.iter().any(|matched| event(matched).replaces);
        if full || lacks_prev {
            self.falls_behind(slot, main);
            return;
        }
        let fields = matches
            .iter()
            .map(|matched| event(matched).field(prev_kv).clone());
        let fields = fields.collect();
        self.push_events(slot, main, fields);
    }
}

/// The rows of one step.
struct Rows {
    changes: Vec<(Revision, Arc<[u8]>)>,
    /// The last revision of it.
    upto: u64,
    /// Whether all of that revision is there.
    whole: bool,
}

impl Rows {
    /// One revision.
    fn of(revision: &[(Revision, Arc<[u8]>)]) -> Rows {
        Rows {
            changes: revision.to_vec(),
            upto: revision[0].0.main,
            whole: true,
        }
    }
}

impl Limits {
    /// As many whole revisions as a step may take, or a part of one.
    fn read_step(&self, view: &View, from: Revision) -> Rows {
        let mut changes: Vec<(Revision, Arc<[u8]>)> = Vec::new();
        let mut bytes = 0;
        // The first row that is too much.
        let mut next = None;
        view.recent(from, |at, record| {
            if changes.len() >= self.step_rows || bytes >= self.step_bytes {
                next = Some(at.main);
                return false;
            }
            bytes += record.len();
            changes.push((at, Arc::clone(record)));
            true
        });
        let Some(next) = next else {
            return Rows {
                changes,
                upto: view.revision,
                whole: true,
            };
        };
        let whole = changes.partition_point(|(at, _)| at.main < next);
        if whole == 0 {
            return Rows {
                changes,
                upto: next,
                whole: false,
            };
        }
        changes.truncate(whole);
        Rows {
            changes,
            upto: next - 1,
            whole: true,
        }
    }
}
