//! The compactor: what is compacted without being asked, by etcd's rules.
//!
//! ```text
//! by period P    newest revision sampled every min(P, 1 h) / 10 ─► compact to the oldest sample kept
//! by revisions N                      looked at every 5 minutes ─► compact to newest − N
//! ```
//! A compaction is a command in the writer's queue like any other, and its answer decides what
//! comes next: one that failed is asked anew at the next look. What always holds: by period, no
//! revision that was the newest within the last P is removed; by revisions, the last N are kept.
//! The samples are in memory alone: after a start the first compaction comes after P again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tracing::{info, warn};

use super::command::{Answer, Asked, Command, Reply};
use crate::clock::Clock;
use crate::mvcc::Error;

/// A long period is served every hour all the same.
const COMPACT_MICROS_MAX: u64 = 3_600_000_000;

/// So many samples are taken between two compactions by period.
const SAMPLES: u64 = 10;

/// A very short period does not keep the writer awake.
const SAMPLE_MICROS_MIN: u64 = 10_000;

/// How often a compaction by revisions is looked at.
const REVISIONS_MICROS: u64 = 300_000_000;

/// What history is kept, if nobody compacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// That of this last time.
    Period(Duration),
    /// So many of the last revisions.
    Revisions(u64),
}

/// Asks for the compactions of a [`Schedule`], and tells the operator.
#[derive(Debug)]
pub struct Compactor {
    schedule: Option<Schedule>,
    clock: Clock,
    asked: Option<Pending>,
}

/// A compaction that waits for its answer.
#[derive(Debug)]
struct Pending {
    revision: u64,
    since_micros: u64,
    answer: oneshot::Receiver<Result<Answer, Error>>,
}

impl Compactor {
    /// That of a server which starts now; without a policy it asks for nothing.
    pub fn new(policy: Option<Policy>, clock: Clock, newest: u64) -> Compactor {
        let now = clock.monotonic_micros();
        Compactor {
            schedule: policy.map(|policy| Schedule::new(policy, now, newest)),
            clock,
            asked: None,
        }
    }

    /// What is to be asked now.
    pub fn due(&mut self, newest: u64) -> Option<Asked> {
        let schedule = self.schedule.as_mut()?;
        let now = self.clock.monotonic_micros();
        if let Some(asked) = &mut self.asked {
            let outcome = match asked.answer.try_recv() {
                Ok(outcome) => outcome,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Closed) => Err(Error::Stopped),
            };
            let took = Duration::from_micros(now - asked.since_micros);
            let done = schedule.policy.tell_end(asked.revision, took, &outcome);
            schedule.answered(now, newest, done);
            self.asked = None;
        }
        let revision = schedule.due(now, newest)?;
        schedule.policy.tell_begin(revision);
        let (sender, answer) = oneshot::channel();
        self.asked = Some(Pending {
            revision,
            since_micros: now,
            answer,
        });
        Some(Asked {
            command: Command::Compact {
                revision: i64::try_from(revision).unwrap_or(i64::MAX),
                physical: false,
            },
            reply: Reply { sender, home: None },
            room: None,
        })
    }

    /// How long nothing is to be asked, but `patience` at most.
    pub fn pause(&self, patience: Duration) -> Duration {
        match &self.schedule {
            Some(schedule) if self.asked.is_none() => {
                let now = self.clock.monotonic_micros();
                patience.min(Duration::from_micros(schedule.look_at.saturating_sub(now)))
            }
            _ => patience,
        }
    }
}

/// The operator's lines, in etcd's words.
impl Policy {
    fn tell_begin(self, revision: u64) {
        match self {
            Policy::Period(period) => {
                info!(revision, "compact-period" = ?period, "starting auto periodic compaction");
            }
            Policy::Revisions(kept) => {
                info!(
                    revision,
                    "revision-compaction-retention" = kept,
                    "starting auto revision compaction"
                );
            }
        }
    }

    /// Also answers whether it is done, be it by another.
    fn tell_end(self, revision: u64, took: Duration, outcome: &Result<Answer, Error>) -> bool {
        match (self, outcome) {
            (_, Err(Error::Stopped)) => false,
            (Policy::Period(period), Ok(_) | Err(Error::Compacted)) => {
                info!(revision, "compact-period" = ?period, ?took, "completed auto periodic compaction");
                true
            }
            (Policy::Revisions(kept), Ok(_) | Err(Error::Compacted)) => {
                info!(
                    revision,
                    "revision-compaction-retention" = kept,
                    ?took,
                    "completed auto revision compaction"
                );
                true
            }
            (Policy::Period(period), Err(error)) => {
                let retry = Duration::from_micros(self.look_micros());
                warn!(revision, "compact-period" = ?period, "retry-interval" = ?retry, %error, "failed auto periodic compaction");
                false
            }
            (Policy::Revisions(kept), Err(error)) => {
                let retry = Duration::from_micros(self.look_micros());
                warn!(revision, "revision-compaction-retention" = kept, "retry-interval" = ?retry, %error, "failed auto revision compaction");
                false
            }
        }
    }

    fn look_micros(self) -> u64 {
        match self {
            Policy::Period(period) => (compact_micros(period) / SAMPLES).max(SAMPLE_MICROS_MIN),
            Policy::Revisions(_) => REVISIONS_MICROS,
        }
    }

    /// As etcd: between two looks, so that the oldest sample is a period old and a look.
    fn samples_max(self) -> usize {
        match self {
            Policy::Period(period) => (micros(period) / self.look_micros()) as usize + 1,
            Policy::Revisions(_) => 0,
        }
    }
}

fn micros(period: Duration) -> u64 {
    u64::try_from(period.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn compact_micros(period: Duration) -> u64 {
    micros(period).min(COMPACT_MICROS_MAX)
}

/// When to compact, and to what: plain arithmetic over a clock, in microseconds.
#[derive(Debug)]
struct Schedule {
    policy: Policy,
    look_at: u64,
    /// What was the newest revision at the last looks, oldest first; one in six minutes at most for
    /// a period of an hour or more.
    samples: VecDeque<u64>,
    /// When the last compaction was done, or the server started.
    since: u64,
    /// How long after that the next one is due.
    pause: u64,
    /// What was compacted to, and is not again.
    compacted: u64,
    /// What was asked for, and is not answered yet.
    asked: Option<u64>,
}

impl Schedule {
    fn new(policy: Policy, now: u64, newest: u64) -> Schedule {
        let pause = match policy {
            Policy::Period(period) => micros(period),
            Policy::Revisions(_) => 0,
        };
        let mut schedule = Schedule {
            policy,
            look_at: 0,
            samples: VecDeque::new(),
            since: now,
            pause,
            compacted: 0,
            asked: None,
        };
        schedule.rest(now, newest);
        schedule
    }

    /// The revision to compact to, if that is to be asked now.
    fn due(&mut self, now: u64, newest: u64) -> Option<u64> {
        if self.asked.is_some() || now < self.look_at {
            return None;
        }
        let target = match self.policy {
            Policy::Period(_) if now - self.since < self.pause => None,
            Policy::Period(_) => self.samples.front().copied(),
            Policy::Revisions(kept) => newest.checked_sub(kept).filter(|target| *target > 0),
        };
        self.asked = target.filter(|target| *target != self.compacted);
        match (self.asked, self.policy) {
            (None, _) => self.rest(now, newest),
            // Only before the first a whole period is waited for, be it longer than an hour.
            (Some(_), Policy::Period(period)) => self.pause = compact_micros(period),
            (Some(_), Policy::Revisions(_)) => {}
        }
        self.asked
    }

    /// What came of the revision that was asked for.
    fn answered(&mut self, now: u64, newest: u64, done: bool) {
        let asked = self.asked.take().expect("an answer follows what was asked");
        if done {
            self.compacted = asked;
            self.since = now;
        }
        self.rest(now, newest);
    }

    /// Takes a sample, and waits for the next look.
    fn rest(&mut self, now: u64, newest: u64) {
        self.samples.push_back(newest);
        if self.samples.len() > self.policy.samples_max() {
            self.samples.pop_front();
        }
        self.look_at = now.saturating_add(self.policy.look_micros());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;

    /// What a schedule asks for while every look finds `newest(now)`, and all is done at once.
    fn asked(policy: Policy, until: u64, newest: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
        let mut schedule = Schedule::new(policy, 0, newest(0));
        let mut asked = Vec::new();
        while schedule.look_at <= until {
            let now = schedule.look_at;
            if let Some(revision) = schedule.due(now, newest(now)) {
                asked.push((now, revision));
                schedule.answered(now, newest(now), true);
            }
        }
        asked
    }

    #[test]
    fn a_short_period_is_served_once_a_period() {
        let policy = Policy::Period(Duration::from_mins(10));
        // One revision a minute.
        let found = asked(policy, 40 * MINUTE, |now| 1 + now / MINUTE);
        assert_eq!(
            found,
            [
                (10 * MINUTE, 1),
                (20 * MINUTE, 1 + 9),
                (30 * MINUTE, 1 + 19),
                (40 * MINUTE, 1 + 29)
            ]
        );
    }

    #[test]
    fn a_long_period_is_served_every_hour() {
        let policy = Policy::Period(Duration::from_hours(5));
        let found = asked(policy, 8 * HOUR, |now| 1 + now / (6 * MINUTE));
        // 10 samples an hour, and the oldest of 51 at the second compaction and after it.
        assert_eq!(
            found,
            [
                (5 * HOUR, 1),
                (6 * HOUR, 1 + 9),
                (7 * HOUR, 1 + 19),
                (8 * HOUR, 1 + 29)
            ]
        );
    }

    #[test]
    fn what_does_not_change_is_compacted_once() {
        let policy = Policy::Period(Duration::from_secs(10));
        let found = asked(policy, HOUR, |now| if now < 15 * SECOND { 5 } else { 9 });
        // The sample of second 15 is the oldest 11 seconds later.
        assert_eq!(found, [(10 * SECOND, 5), (26 * SECOND, 9)]);
    }

    #[test]
    fn revisions_are_counted_every_five_minutes() {
        let policy = Policy::Revisions(100);
        let newest = |now| {
            if now <= 10 * MINUTE {
                now / (3 * SECOND)
            } else {
                250
            }
        };
        let found = asked(policy, HOUR, newest);
        // 100 at five minutes: nothing is before them.
        assert_eq!(found, [(10 * MINUTE, 100), (15 * MINUTE, 150)]);
    }

    #[test]
    fn what_failed_is_asked_at_the_next_look() {
        let mut schedule = Schedule::new(Policy::Period(Duration::from_secs(10)), 0, 1);
        for second in 1..10 {
            assert_eq!(schedule.due(second * SECOND, 1 + second), None);
        }
        for (second, oldest) in [(10, 1), (11, 1), (12, 2)] {
            assert_eq!(schedule.due(second * SECOND, 1 + second), Some(oldest));
            assert_eq!(
                schedule.due(second * SECOND, 1 + second),
                None,
                "it is asked once"
            );
            schedule.answered(second * SECOND, 1 + second, false);
        }
        assert_eq!(schedule.due(13 * SECOND, 14), Some(3));
        schedule.answered(13 * SECOND, 14, true);
        assert_eq!(schedule.due(22 * SECOND, 15), None);
        assert_eq!(schedule.due(23 * SECOND, 15), Some(5));
    }

    #[test]
    fn a_period_of_nothing_much_has_its_pauses() {
        let found = asked(Policy::Period(Duration::from_nanos(1)), SECOND, |now| {
            1 + now
        });
        assert_eq!(found.len(), 100);
        let long = Policy::Period(Duration::from_nanos(i64::MAX as u64));
        assert_eq!(asked(long, 10_000 * HOUR, |now| 1 + now), []);
    }

    /// The rule as it reads, over everything that was ever sampled.
    #[derive(Default)]
    struct Model {
        /// (when, newest) at the start and behind every look.
        samples: Vec<(u64, u64)>,
        /// (when, revision) of all that is done.
        done: Vec<(u64, u64)>,
        tried: bool,
    }

    impl Model {
        fn target(&self, policy: Policy, now: u64, newest: u64) -> Option<u64> {
            let last = self.done.last();
            let target = match policy {
                Policy::Revisions(kept) if newest > kept => newest - kept,
                Policy::Revisions(_) => return None,
                Policy::Period(period) => {
                    let period = period.as_micros() as u64;
                    let between = if self.tried { period.min(HOUR) } else { period };
                    if now < last.map_or(0, |(when, _)| *when) + between {
                        return None;
                    }
                    let looks = (period / (period.min(HOUR) / 10)) as usize + 1;
                    self.samples[self.samples.len().saturating_sub(looks)].1
                }
            };
            (last.map(|(_, revision)| *revision) != Some(target)).then_some(target)
        }
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        prop_oneof![
            (1..200u64).prop_map(|tenths| Policy::Period(Duration::from_millis(100 * tenths))),
            (1..200u64).prop_map(|minutes| Policy::Period(Duration::from_mins(minutes))),
            (0..500u64).prop_map(Policy::Revisions),
        ]
    }

    proptest! {
        /// Whatever the clock, the revisions and the outcomes do, the schedule does what the model
        /// does, and keeps what its policy says.
        #[test]
        fn a_schedule_does_as_the_model(
            policy in any_policy(),
            steps in vec((0..3u64, 0..60u64, 0..4u8), 1..400),
        ) {
            let (mut now, mut newest) = (0, 1);
            let mut schedule = Schedule::new(policy, now, newest);
            let mut model = Model { samples: vec![(now, newest)], ..Model::default() };
            for (late, written, outcome) in steps {
                prop_assert_eq!(schedule.due(schedule.look_at - 1, newest), None);
                now = schedule.look_at + late * policy.look_micros() / 7;
                newest += written;
                let target = model.target(policy, now, newest);
                prop_assert_eq!(schedule.due(now, newest), target);
                if let Some(target) = target {
                    model.tried = true;
                    match policy {
                        Policy::Period(period) => {
                            let then = now.checked_sub(period.as_micros() as u64).expect("a period has passed");
                            let newest_then = model.samples.iter().rfind(|(when, _)| *when <= then);
                            prop_assert!(target <= newest_then.expect("it was sampled").1);
                        }
                        Policy::Revisions(kept) => prop_assert_eq!(target, newest - kept),
                    }
                    // The answer takes its time, and others write meanwhile.
                    now += u64::from(outcome) * SECOND / 3;
                    newest += u64::from(outcome);
                    let done = outcome != 0;
                    if done {
                        model.done.push((now, target));
                    }
                    schedule.answered(now, newest, done);
                }
                model.samples.push((now, newest));
            }
        }
    }

    /// The answer to what was asked; what the writer would say.
    fn answer(asked: Asked, outcome: Result<Answer, Error>) -> i64 {
        let Command::Compact {
            revision,
            physical: false,
        } = asked.command
        else {
            panic!("{:?} is no compaction", asked.command);
        };
        assert!(asked.room.is_none());
        asked
            .reply
            .sender
            .send(outcome)
            .expect("the compactor waits");
        revision
    }

    #[test]
    fn answers_are_heard_at_the_next_look_of_the_writer() {
        let time = Arc::new(AtomicU64::new(77 * SECOND));
        let clock = Clock::Manual(Arc::clone(&time));
        let policy = Some(Policy::Period(Duration::from_secs(1)));
        let mut compactor = Compactor::new(policy, clock.clone(), 3);
        let patience = Duration::from_secs(1);
        assert_eq!(compactor.pause(patience), Duration::from_millis(100));
        for tenth in 1..10 {
            time.fetch_add(SECOND / 10, Ordering::Relaxed);
            assert!(compactor.due(3 + tenth).is_none());
        }
        time.fetch_add(SECOND / 10, Ordering::Relaxed);
        let asked = compactor.due(20).expect("a period has passed");
        assert_eq!(
            compactor.pause(patience),
            patience,
            "its answer wakes the writer"
        );
        assert!(compactor.due(20).is_none());
        assert_eq!(answer(asked, Err(Error::NoSpace)), 3);
        assert!(compactor.due(20).is_none());
        time.fetch_add(SECOND / 10, Ordering::Relaxed);
        let asked = compactor.due(20).expect("it failed");
        // By a client meanwhile: that counts.
        assert_eq!(answer(asked, Err(Error::Compacted)), 3);
        assert!(compactor.due(20).is_none());
        assert_eq!(compactor.pause(patience), Duration::from_millis(100));
        // A queue that is closed takes nothing.
        time.fetch_add(SECOND, Ordering::Relaxed);
        drop(compactor.due(20).expect("a period has passed"));
        assert!(compactor.due(20).is_none());
        let mut off = Compactor::new(None, clock, 3);
        assert!(off.due(20).is_none());
        assert_eq!(off.pause(patience), patience);
    }
}
