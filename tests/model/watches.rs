//! The merge of history and hub: for any interleaving of writes, flushes, compactions, slow clients and slow reads,
//! what a watcher gets equals what history says.
//!
//! The hub is moved by hand, one step at a time, over the views of a real store: so a slice can be read from a view that
//! is long past, and a client can take its answers one by one. After a restart every watcher resumes behind what it heard.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::*;
use metastore::mvcc::model::Change;
use metastore::storage::view::View;
use metastore::watch::answer::{Answer as Told, Origin};
use metastore::watch::catch_up::{Plan, Slice};
use metastore::watch::hub::{Hub, Limits, StreamKey};
use metastore::watch::live::Step;
use metastore::watch::watcher::{Create, Wants};
use prost::Message;

const STREAMS: usize = 3;

/// Steps of the hub after which it must have come to rest.
const STEPS_TO_REST_MAX: usize = 100_000;

/// What happens to the store, to the hub, or at a client.
#[derive(Debug, Clone)]
enum Act {
    Store(Event),
    Create(usize, Create),
    Cancel(usize, i64),
    RequestProgress(usize),
    NotifyProgress(usize),
    Take(usize, usize),
    Close(usize),
    Advance,
    Plan,
    Read,
    Settle,
    /// Lets what is read next be read from the view of now.
    HoldView,
}

fn any_act() -> impl Strategy<Value = Act> {
    let stream = || 0..STREAMS;
    let id = || prop_oneof![6 => Just(0), 3 => 0..6i64, 1 => -2..0i64];
    let wants = (
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        any::<bool>(),
    );
    let wants = wants.prop_map(|(no_put, no_delete, prev_kv)| Wants {
        no_put,
        no_delete,
        prev_kv,
    });
    let create = (
        id(),
        any_range(),
        any_revision(),
        wants,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(id, range, start, wants, fragment, progress_notify)| Create {
                id,
                range,
                start,
                wants,
                fragment,
                progress_notify,
            },
        );
    prop_oneof![
        20 => any_event().prop_map(Act::Store),
        5 => (stream(), create).prop_map(|(stream, create)| Act::Create(stream, create)),
        1 => (stream(), id()).prop_map(|(stream, id)| Act::Cancel(stream, id)),
        2 => stream().prop_map(Act::RequestProgress),
        1 => stream().prop_map(Act::NotifyProgress),
        10 => (stream(), 1..6usize).prop_map(|(stream, answers)| Act::Take(stream, answers)),
        1 => stream().prop_map(Act::Close),
        10 => Just(Act::Advance),
        6 => Just(Act::Plan),
        6 => Just(Act::Read),
        6 => Just(Act::Settle),
        2 => Just(Act::HoldView),
    ]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let bytes = (200..3000usize, 300..6000usize, 100..5000usize);
    let rows = (1..30usize, 1..40usize, 1..20usize);
    (bytes, rows, 0..4usize, 1..10usize).prop_map(
        |(
            (fragment_bytes, outbox_bytes, step_bytes),
            (step_rows, slice_rows, quick_slice_rows),
            step_look_ups,
            step_matches,
        )| Limits {
            fragment_bytes,
            outbox_bytes,
            step_rows,
            step_bytes,
            step_look_ups,
            step_matches,
            slice_rows,
            quick_slice_rows,
        },
    )
}

/// A watcher as its client knows it.
#[derive(Debug)]
struct Hearing {
    create: Create,
    /// The first revision that it must hear.
    first: u64,
    heard: usize,
    /// The revision of the last whole answer.
    last: u64,
    part: Vec<mvccpb::Event>,
}

struct Client {
    key: StreamKey,
    /// Creates that are not answered yet, and the newest revision then.
    asked: VecDeque<(Create, u64)>,
    /// Watchers that were resumed, of which the stream has yet to tell.
    resumed: usize,
    hearings: HashMap<i64, Hearing>,
}

struct Watching {
    pair: Pair,
    limits: Limits,
    hub: Hub,
    clients: Vec<Client>,
    plans: Vec<(StreamKey, Plan, Option<Slice>)>,
    held: Option<Arc<View>>,
}

impl Watching {
    fn new(limits: Limits) -> Watching {
        let mut watching = Watching {
            pair: Pair::new(),
            limits,
            hub: Hub::new(Origin::default(), limits),
            clients: Vec::new(),
            plans: Vec::new(),
            held: None,
        };
        watching.clients = (0..STREAMS).map(|_| watching.client()).collect();
        watching
    }

    fn client(&mut self) -> Client {
        Client {
            key: self.hub.open(),
            asked: VecDeque::new(),
            resumed: 0,
            hearings: HashMap::new(),
        }
    }

    fn view(&self) -> Arc<View> {
        self.pair.store.view()
    }

    fn happens(&mut self, act: Act) -> TestCaseResult {
        match act {
            Act::Store(event @ (Event::Restart | Event::Crash)) => {
                self.held = None;
                self.pair.happens(event)?;
                self.resume();
            }
            // One that waits for a file of before would wait for the view that is held here.
            Act::Store(Event::Defragment { .. }) if self.held.is_some() => {
                self.pair.happens(Event::Defragment { waits: false })?;
            }
            Act::Store(event) => self.pair.happens(event)?,
            Act::Create(stream, create) => self.create(stream, create),
            Act::Cancel(stream, id) => {
                let view = self.view();
                self.hub.cancel(self.clients[stream].key, id, &view);
            }
            Act::RequestProgress(stream) => self.hub.request_progress(self.clients[stream].key),
            Act::NotifyProgress(stream) => self.hub.notify_progress(self.clients[stream].key),
            Act::Take(stream, answers) => {
                for _ in 0..answers {
                    self.take(stream)?;
                }
            }
            Act::Close(stream) => {
                self.hub.close(self.clients[stream].key);
                self.clients[stream] = self.client();
            }
            Act::Advance => {
                self.advance();
            }
            Act::Plan => {
                for key in self.hub.take_hungry() {
                    if let Some(plan) = self.hub.plan(key) {
                        self.plans.push((key, plan, None));
                    }
                }
            }
            Act::Read => self.read(),
            Act::Settle => self.settle(),
            Act::HoldView => self.held = Some(self.view()),
        }
        Ok(())
    }

    fn create(&mut self, stream: usize, mut create: Create) {
        create.start = Aim(create.start).at(&self.pair.model);
        let key = self.clients[stream].key;
        if self.hub.poll_room(key, &context()).is_pending() {
            return;
        }
        let view = self.view();
        self.clients[stream]
            .asked
            .push_back((create.clone(), view.revision));
        self.hub.create(key, create, &view);
    }

    fn advance(&mut self) -> bool {
        self.hub.advance(&self.view()) == Step::More
    }

    fn read(&mut self) {
        // A view may be older than the plan: then it looks at less.
        let view = self.held.take().unwrap_or_else(|| self.view());
        for (_, plan, slice) in &mut self.plans {
            if slice.is_none() {
                let quick = plan.is_quick(&view);
                let tried = plan.read(&view, quick).expect("the store can be read");
                let read = || plan.read(&view, false).expect("the store can be read");
                *slice = tried.or_else(read);
            }
        }
    }

    fn settle(&mut self) {
        for (key, plan, slice) in std::mem::take(&mut self.plans) {
            let Some(slice) = slice else {
                self.plans.push((key, plan, None));
                continue;
            };
            self.hub.settle(key, &plan, slice);
            if let Some(plan) = self.hub.plan(key) {
                self.plans.push((key, plan, None));
            }
        }
    }

    /// As clients do that have lost the server: each watcher goes on behind the last revision it has heard whole.
    fn resume(&mut self) {
        self.hub = Hub::new(Origin::default(), self.limits);
        self.plans.clear();
        let old = std::mem::take(&mut self.clients);
        let view = self.view();
        for client in old {
            let mut new = self.client();
            for (id, mut hearing) in client.hearings {
                hearing.part.clear();
                hearing.create.id = id;
                hearing.create.start = (hearing.last + 1).max(hearing.first) as i64;
                if id != 0 {
                    // It is not known from which revision on a new watcher of this number would hear.
                    let create = hearing.create.clone();
                    self.hub.create(new.key, create, &view);
                    new.hearings.insert(id, hearing);
                    new.resumed += 1;
                }
            }
            self.clients.push(new);
        }
    }

    fn take(&mut self, stream: usize) -> Result<bool, TestCaseError> {
        let key = self.clients[stream].key;
        let Poll::Ready(answer) = self.hub.take(key, &context()) else {
            return Ok(false);
        };
        let model = &self.pair.model;
        let client = &mut self.clients[stream];
        match answer.expect("nobody ends the stream") {
            Told::Created { .. } if client.resumed > 0 => client.resumed -= 1,
            Told::Created { id, revision } => {
                let (create, newest) = client.asked.pop_front().expect("it was asked for");
                prop_assert_eq!(revision, newest);
                let first = match create.start {
                    0 => newest + 1,
                    start => start as u64,
                };
                let hearing = Hearing {
                    create,
                    first,
                    heard: 0,
                    last: 0,
                    part: Vec::new(),
                };
                let before = client.hearings.insert(id, hearing);
                prop_assert!(before.is_none(), "two watchers {id}");
            }
            Told::Refused { revision, .. } => {
                let (create, newest) = client.asked.pop_front().expect("it was asked for");
                prop_assert_eq!(revision, newest);
                let in_use = create.id != 0;
                prop_assert!(create.start < 0 || create.range.bounds().is_none() || in_use);
            }
            Told::Canceled { id, .. } => {
                client.hearings.remove(&id);
            }
            Told::Compacted { id, floor } => {
                let hearing = client.hearings.remove(&id).expect("it is heard of");
                prop_assert!(Some(floor) <= model.floor());
                prop_assert!(hearing.first.max(hearing.last + 1) < floor);
            }
            Told::Progress { id, revision } => {
                prop_assert!(revision <= model.revision());
                let told = |other: &i64| id.is_none_or(|id| id == *other);
                for (other, hearing) in &client.hearings {
                    if told(other) {
                        let owed = hearing.owed(model);
                        let next = owed.get(hearing.heard).map(|change| change.main);
                        prop_assert!(
                            next.is_none_or(|next| next > revision),
                            "{:?} {}",
                            hearing,
                            revision
                        );
                        prop_assert!(hearing.create.start <= revision as i64);
                    }
                }
            }
            Told::Events {
                id,
                revision,
                fragment,
                fields,
            } => {
                let hearing = client.hearings.get_mut(&id).expect("created comes first");
                prop_assert!(!fragment || hearing.create.fragment);
                let wire = fields.concat();
                let few = fields.len() == 1 || wire.len() < self.limits.fragment_bytes;
                prop_assert!(
                    few || !hearing.create.fragment,
                    "{} in {}",
                    wire.len(),
                    fields.len()
                );
                let response = pb::WatchResponse::decode(&wire[..]).expect("it is a message");
                hearing.part.extend(response.events);
                if !fragment {
                    hearing.hears(revision, model)?;
                }
            }
        }
        Ok(true)
    }

    /// All goes its way until nothing moves any more: then every watcher has heard all.
    fn comes_to_rest(&mut self) -> TestCaseResult {
        self.held = None;
        for _ in 0..STEPS_TO_REST_MAX {
            let mut moved = self.advance();
            self.happens(Act::Plan)?;
            moved |= !self.plans.is_empty();
            self.read();
            self.settle();
            for stream in 0..STREAMS {
                while self.take(stream)? {
                    moved = true;
                }
            }
            if !moved {
                return self.is_complete();
            }
        }
        Err(TestCaseError::fail("the hub does not come to rest"))
    }

    fn is_complete(&mut self) -> TestCaseResult {
        let model = &self.pair.model;
        prop_assert!(self.hub.has_come_to(model.revision()));
        for client in &self.clients {
            prop_assert!(client.asked.is_empty());
            for (id, hearing) in &client.hearings {
                let owed = hearing.owed(model);
                prop_assert!(owed.len() == hearing.heard, "{id}: {hearing:?}, {owed:?}");
            }
        }
        Ok(())
    }
}

impl Hearing {
    /// All events that it has to hear, as far as history has come.
    fn owed(&self, model: &Model) -> Vec<Change> {
        let Wants {
            no_put, no_delete, ..
        } = self.create.wants;
        let mut owed = model.history(0);
        owed.retain(|change| {
            change.main >= self.first
                && self.create.range.contains(&change.key)
                && match &change.pair {
                    Some(_) => !no_put,
                    None => !no_delete,
                }
        });
        owed
    }

    fn hears(&mut self, revision: u64, model: &Model) -> TestCaseResult {
        let owed = self.owed(model);
        for event in std::mem::take(&mut self.part) {
            let kv = event.kv.as_ref().expect("an event has a pair");
            let change = loop {
                let change = owed.get(self.heard);
                prop_assert!(change.is_some(), "{:?} is not owed", event);
                let change = change.expect("it was looked at");
                self.heard += 1;
                // At the floor what the same revision has superseded is gone.
                let superseded = owed[self.heard..]
                    .iter()
                    .any(|later| later.main == change.main && later.key == change.key);
                let skipped = superseded && model.floor() >= Some(change.main);
                if !(skipped && wire_of(change) != (event.r#type, kv.clone())) {
                    break change;
                }
            };
            prop_assert_eq!(wire_of(change), (event.r#type, kv.clone()));
            prop_assert!(
                change.main > self.last,
                "a revision in parts, or out of order"
            );
            self.check_prev(&event, change, model)?;
        }
        let last = owed[self.heard - 1].main;
        let next = owed.get(self.heard).map(|change| change.main);
        prop_assert!(
            next.is_none_or(|next| next > last),
            "a revision is not whole"
        );
        prop_assert!(revision >= last);
        self.last = last;
        Ok(())
    }

    fn check_prev(&self, event: &mvccpb::Event, change: &Change, model: &Model) -> TestCaseResult {
        let history = model.history(0);
        let before = history
            .iter()
            .rev()
            .find(|other| other.key == change.key && other.main < change.main);
        let before = before.and_then(|before| before.pair.clone());
        let created = change
            .pair
            .as_ref()
            .is_some_and(|kv| kv.create == change.main);
        let owed = before.filter(|_| self.create.wants.prev_kv && !created);
        match &event.prev_kv {
            Some(prev) => prop_assert_eq!(Some(prev.clone()), owed.map(convert::key_value)),
            // It may have been out of reach when it was looked up, and no floor falls.
            None => prop_assert!(owed.is_none() || model.floor() >= Some(change.main)),
        }
        Ok(())
    }
}

fn wire_of(change: &Change) -> (i32, mvccpb::KeyValue) {
    match &change.pair {
        Some(pair) => (0, convert::key_value(pair.clone())),
        None => {
            let kv = mvccpb::KeyValue {
                key: change.key.clone(),
                mod_revision: change.main as i64,
                ..Default::default()
            };
            (1, kv)
        }
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

proptest! {
    #![proptest_config(config(CASES * 2))]

    #[test]
    fn watchers_hear_what_history_says(
        limits in any_limits(),
        acts in vec(any_act(), 1..150),
    ) {
        let mut watching = Watching::new(limits);
        for act in acts {
            watching.happens(act)?;
        }
        watching.comes_to_rest()?;
    }
}
