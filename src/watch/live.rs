//! The hub's live side: what is published, handed to the synced watchers.
//!
//! ```text
//! rows ─► matches ─► earlier pairs, if wanted ─► outboxes
//! ```
//! In bounded steps, between which the thread does other things. From the first of them on, the
//! hub's position is that of the last row that was looked at, so whoever comes or goes in between
//! is on one side of it: see [`Hub::hand_over`].

use std::sync::Arc;

use super::event::{self, Event};
use super::hub::{Hub, Limits};
use super::watcher::State;
use crate::storage;
use crate::storage::record::key_of;
use crate::storage::revision::Revision;
use crate::storage::view::View;

/// Events on their way to their watchers.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// The first revision of it.
    first: u64,
    stage: Stage,
    events: Vec<Event>,
    /// Whether an event is wanted with the pair before it.
    with_prev: Vec<bool>,
    /// By revision; within one, by event, and by watcher once all are found.
    matches: Vec<Match>,
}

/// How far a delivery has come.
#[derive(Debug, Default)]
enum Stage {
    /// Watchers are being found, up to this row: not all of its revision has been looked at.
    #[default]
    Begun,
    Within(Revision),
    /// Earlier pairs are being looked up, elsewhere.
    LookingUp,
    /// Handed over up to this match.
    HandingOver(usize),
}

/// A watcher that wants an event.
#[derive(Debug)]
struct Match {
    main: u64,
    serial: u64,
    slot: u32,
    event: u32,
}

/// What a step has left to do.
#[derive(Debug)]
pub enum Step {
    /// Nothing, until something is published.
    Idle,
    /// More steps.
    More,
    /// These are to be read, where that may take long, and given to [`Hub::looked_up`]; no step
    /// before that does anything.
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
    /// Whether there are synced watchers, who want to hear what is published.
    pub fn is_listening(&self) -> bool {
        !self.is_idle()
    }

    /// Hands what is published in `view`, and was not yet, to the synced watchers: one step.
    pub fn advance(&mut self, view: &View) -> Step {
        let (from, delivery) = match self.delivery.take() {
            None if self.is_idle() || self.position >= view.revision => return Step::Idle,
            None => {
                let first = self.position + 1;
                let begun = Delivery {
                    first,
                    ..Delivery::default()
                };
                (
                    Revision {
                        main: first,
                        sub: 0,
                    },
                    begun,
                )
            }
            Some(delivery) => match delivery.stage {
                Stage::Begun | Stage::LookingUp => {
                    self.delivery = Some(delivery);
                    return Step::Idle;
                }
                Stage::HandingOver(begun) => return self.hand_over_from(begun, delivery, view),
                Stage::Within(last) => {
                    let sub = last.sub + 1;
                    (Revision { sub, ..last }, delivery)
                }
            },
        };
        if !view.is_recent(from) {
            // So far behind that it lies in the tables: each goes on by itself.
            self.all_fall_behind(delivery.first, view.revision);
            return Step::Idle;
        }
        self.find_from(from, delivery, view)
    }

    /// Finds the watchers of one step's rows.
    fn find_from(&mut self, from: Revision, mut delivery: Delivery, view: &View) -> Step {
        let rows = self.limits.read_step(view, from);
        let matches_max = delivery.matches.len() + self.limits.step_matches;
        for (at, record) in &rows.changes {
            let whole = at.sub == 0 && at.main > delivery.first;
            if whole && delivery.matches.len() >= self.limits.step_matches {
                self.position = at.main - 1;
                return self.found(delivery, view);
            }
            self.find_watchers(&mut delivery, *at, record);
            if delivery.matches.len() >= matches_max {
                return self.pause_within(*at, delivery);
            }
        }
        match rows.changes.last() {
            Some((last, _)) if !rows.whole => self.pause_within(*last, delivery),
            _ => {
                self.position = rows.upto;
                self.found(delivery, view)
            }
        }
    }

    fn pause_within(&mut self, last: Revision, mut delivery: Delivery) -> Step {
        self.position = last.main;
        delivery.stage = Stage::Within(last);
        self.delivery = Some(delivery);
        Step::More
    }

    fn find_watchers(&self, delivery: &mut Delivery, at: Revision, record: &Arc<[u8]>) {
        let mut event = None;
        let mut with_prev = false;
        let place = delivery.events.len() as u32;
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
                delivery.matches.push(Match {
                    main: at.main,
                    serial: watcher.serial,
                    slot,
                    event: place,
                });
            }
        });
        if let Some(event) = event {
            delivery.events.push(event);
            delivery.with_prev.push(with_prev);
        }
    }

    /// All watchers are found, of whole revisions.
    fn found(&mut self, mut delivery: Delivery, view: &View) -> Step {
        for matches in delivery.matches.chunk_by_mut(|a, b| a.main == b.main) {
            // A watcher gets all of a revision in one answer, in order.
            if matches[0].event != matches[matches.len() - 1].event {
                matches.sort_by_key(|found| found.slot);
            }
        }
        let wanted = delivery.with_prev.iter().filter(|wanted| **wanted).count();
        if wanted == 0 {
            return self.hand_over_from(0, delivery, view);
        }
        let mut prevs = Prevs {
            events: std::mem::take(&mut delivery.events),
            wanted: std::mem::take(&mut delivery.with_prev),
            bytes_max: self.limits.step_bytes,
            kept: 0,
        };
        delivery.stage = Stage::LookingUp;
        self.delivery = Some(delivery);
        let quick = wanted <= self.limits.step_look_ups && !view.settled().is_cold();
        // Whoever reads it elsewhere deals with a database that was closed, or failed.
        if !quick || prevs.look_up(view).is_err() {
            return Step::LookUp(prevs);
        }
        self.looked_up(prevs);
        Step::More
    }

    /// Goes on with events whose earlier pairs have been read.
    pub fn looked_up(&mut self, prevs: Prevs) {
        let Some(delivery) = &mut self.delivery else {
            return;
        };
        delivery.events = prevs.events;
        delivery.stage = Stage::HandingOver(0);
        if let Some(cut) = delivery.events.get(prevs.kept).map(|event| event.main) {
            // What does not fit is met again.
            delivery.matches.retain(|found| found.main < cut);
            self.position = cut - 1;
        }
    }

    /// Hands over the matches from the `begun`-th on, about as many as a step may.
    fn hand_over_from(&mut self, begun: usize, mut delivery: Delivery, view: &View) -> Step {
        let mut place = begun;
        let together = |a: &Match, b: &Match| (a.main, a.slot) == (b.main, b.slot);
        for matches in delivery.matches[begun..].chunk_by(together) {
            if place - begun >= self.limits.step_matches {
                delivery.stage = Stage::HandingOver(place);
                self.delivery = Some(delivery);
                return Step::More;
            }
            self.hand_over(matches, &delivery.events);
            place += matches.len();
        }
        match self.position < view.revision {
            true => Step::More,
            false => Step::Idle,
        }
    }

    /// Hands a watcher what it wants of a revision; or lets it fall behind, if its stream is full.
    ///
    /// Since it was found it may have been cancelled, fallen behind, or fallen behind and caught
    /// up: then it has heard this, or will, and its `next` says so.
    fn hand_over(&mut self, matches: &[Match], events: &[Event]) {
        let Match {
            main, serial, slot, ..
        } = matches[0];
        let Some(watcher) = self.watchers.get_mut(slot as usize).filter(|watcher| {
            watcher.serial == serial && watcher.state == State::Synced && watcher.next <= main
        }) else {
            return;
        };
        if self.streams[watcher.stream].waiting_bytes() >= self.limits.outbox_bytes {
            watcher.next = main;
            self.falls_behind(slot);
            return;
        }
        let prev_kv = watcher.wants.prev_kv;
        let fields = matches.iter().map(|found| {
            let event = &events[found.event as usize];
            event.field(prev_kv).clone()
        });
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

impl Limits {
    /// As many whole revisions as a step may take, or a part of one.
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
        let upto = match changes.last() {
            Some((last, _)) if full => last.main,
            _ => view.revision,
        };
        let earlier = changes.partition_point(|(at, _)| at.main < upto);
        if full && earlier > 0 {
            changes.truncate(earlier);
            return Rows {
                changes,
                upto: upto - 1,
                whole: true,
            };
        }
        Rows {
            changes,
            upto,
            whole: !full,
        }
    }
}
