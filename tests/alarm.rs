//! Alarms beyond what etcd can show: the quota's clears itself, there is a bound, and leases stay.

#![allow(clippy::disallowed_methods, reason = "tests poll, with a deadline")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::store::TestStore;
use metastore::engine::alarm::{ALARMS_MAX, Alarm, Kind};
use metastore::mvcc::Error;
use metastore::mvcc::request::{DeleteRange, Put};
use metastore::snapshot::contents::Member;
use metastore::storage::key_range::KeyRange;

/// So small that the store does not flush by itself before it is reached.
const QUOTA_BYTES: u64 = 32_000;
const VALUE_BYTES: usize = 1000;

/// That of our own member, which test stores give the id 2.
const OWN: Alarm = Alarm {
    member: 2,
    kind: Kind::NoSpace,
};

/// How long anything may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn cost(value_bytes: usize) -> u64 {
    256 + 4 + value_bytes as u64
}

/// As the service does it: held against the quota first.
fn put(store: &TestStore, key: usize, value_bytes: usize) -> Result<u64, Error> {
    store.check_quota(cost(value_bytes))?;
    let written = store.put(Put {
        key: format!("{key:04}").into(),
        value: vec![b'x'; value_bytes].into(),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    });
    written.map(|written| written.revision)
}

fn delete(store: &TestStore, keys: std::ops::Range<usize>) -> u64 {
    let key = |key: usize| format!("{key:04}").into();
    let deleted = store.delete_range(DeleteRange {
        range: KeyRange::from_wire(key(keys.start), key(keys.end)),
        prev_kv: false,
    });
    deleted.expect("deletes go on").revision
}

/// Puts until the quota refuses one; answers how many it took.
fn fill(store: &TestStore) -> usize {
    let mut count = 0;
    let refused = loop {
        match put(store, count, VALUE_BYTES) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    assert_eq!(store.alarms(), [OWN]);
    assert!(count > 5);
    count
}

fn is_refused(outcome: Result<u64, Error>) -> bool {
    matches!(outcome, Err(Error::NoSpace))
}

/// The writer has looked up meanwhile, and more than once.
fn let_the_writer_look(store: &TestStore) {
    for _ in 0..3 {
        delete(store, 9000..9001);
    }
}

/// Once the request that was refused would be taken, nobody need clear the alarm. What makes room is
/// compaction, and it need not be a physical one.
#[test]
fn the_alarm_of_the_quota_clears_itself() {
    for physical in [false, true] {
        let store = TestStore::with_quota(QUOTA_BYTES);
        let count = fill(&store);
        assert!(is_refused(put(&store, 0, 1)), "the alarm refuses it");
        let revision = delete(&store, 0..count);
        assert_eq!(store.alarms(), [OWN], "a delete makes no room yet");
        let compacted = store.compact(revision as i64, physical);
        compacted.expect("compaction goes on");
        eventually("the alarm is cleared", || store.alarms().is_empty());
        put(&store, 0, VALUE_BYTES).expect("there is room");
        // And it is raised again.
        fill(&store);
    }
}

/// Where a small request would be taken again, but not the one that was refused, the alarm stays.
#[test]
fn the_alarm_stays_until_what_was_refused_fits() {
    let store = TestStore::with_quota(QUOTA_BYTES);
    let most = (0..).find(|count| put(&store, *count, VALUE_BYTES).is_err());
    store.clear(OWN).expect("it can be cleared");
    // Most of all that may be there.
    let large = 8 * VALUE_BYTES;
    assert!(is_refused(put(&store, 0, large)));
    let revision = delete(&store, 0..2);
    store.compact(revision as i64, true).expect("it goes on");
    let_the_writer_look(&store);
    assert_eq!(store.alarms(), [OWN]);
    let revision = delete(&store, 0..most.expect("the quota is reached"));
    store.compact(revision as i64, true).expect("it goes on");
    eventually("the alarm is cleared", || store.alarms().is_empty());
    put(&store, 0, large).expect("it fits");
}

/// What a client raises stays until a client clears it, even if the server had raised it before.
#[test]
fn an_alarm_of_a_client_stays() {
    let mut store = TestStore::with_quota(QUOTA_BYTES);
    store.raise(OWN);
    let_the_writer_look(&store);
    assert_eq!(store.alarms(), [OWN]);
    assert!(store.clear(OWN).expect("it can be cleared"));
    assert!(!store.clear(OWN).expect("and that be asked again"));

    let count = fill(&store);
    store.raise(OWN);
    let revision = delete(&store, 0..count);
    store.compact(revision as i64, true).expect("it goes on");
    let_the_writer_look(&store);
    store.restart_with_quota(None);
    let_the_writer_look(&store);
    assert_eq!(store.alarms(), [OWN]);
    assert!(is_refused(put(&store, 0, 1)));
    store.clear(OWN).expect("it can be cleared");
    put(&store, 0, 1).expect("nothing stands against it");
}

/// An alarm stays through stops and crashes; with a larger quota, or none, it is over at once.
#[test]
fn a_larger_quota_clears_the_alarm() {
    for quota in [Some(QUOTA_BYTES * 2), None] {
        let mut store = TestStore::with_quota(QUOTA_BYTES);
        fill(&store);
        store.crash();
        let_the_writer_look(&store);
        assert_eq!(store.alarms(), [OWN]);
        store.restart();
        let_the_writer_look(&store);
        assert_eq!(store.alarms(), [OWN]);
        assert!(is_refused(put(&store, 0, 1)));
        store.restart_with_quota(quota);
        eventually("the alarm is cleared", || store.alarms().is_empty());
        put(&store, 0, 1).expect("there is room");
        store.crash();
        assert!(store.alarms().is_empty());
    }
}

/// Disarmed while there is no room, it is raised by the next request that does not fit.
#[test]
fn a_disarmed_alarm_is_raised_again() {
    let store = TestStore::with_quota(QUOTA_BYTES);
    fill(&store);
    store.clear(OWN).expect("it can be cleared");
    assert!(store.alarms().is_empty());
    assert!(is_refused(put(&store, 0, VALUE_BYTES)));
    assert_eq!(store.alarms(), [OWN]);
}

/// Of thousands that are refused at once one raises the alarm.
#[test]
fn the_alarm_is_raised_once() {
    const CLIENTS: usize = 5000;
    let store = TestStore::with_quota(QUOTA_BYTES);
    let before = store.view().index;
    store.wait_for(async {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let engine = Arc::clone(store.engine());
            clients.spawn(async move { engine.check_quota(QUOTA_BYTES).await });
        }
        for refused in clients.join_all().await {
            assert!(matches!(refused, Err(Error::NoSpace)));
        }
    });
    assert_eq!(store.alarms(), [OWN]);
    assert_eq!(store.view().index, before + 1);
}

/// Clients raise so many and no more; the server's own finds its place.
#[test]
fn alarms_have_a_bound() {
    let store = TestStore::with_quota(QUOTA_BYTES);
    let alarm = |member: usize| Alarm {
        member: 100 + member as u64,
        kind: Kind::NoSpace,
    };
    let outcomes = store.wait_for(async {
        let mut clients = tokio::task::JoinSet::new();
        for member in 0..ALARMS_MAX + 10 {
            let engine = Arc::clone(store.engine());
            clients.spawn(async move { engine.raise(alarm(member)).await });
        }
        clients.join_all().await
    });
    let refused = outcomes.into_iter().filter_map(Result::err);
    let refused: Vec<Error> = refused.collect();
    let is_bound = |error: &Error| matches!(error, Error::TooManyAlarms);
    assert!(refused.len() == 10 && refused.iter().all(is_bound));
    assert_eq!(store.alarms().len(), ALARMS_MAX);
    store.raise(alarm(3));
    assert!(is_refused(put(&store, 0, QUOTA_BYTES as usize)));
    assert_eq!(store.alarms().len(), ALARMS_MAX + 1);
    assert!(store.alarms().contains(&OWN));
    store.clear(alarm(3)).expect("it can be cleared");
    store.clear(alarm(4)).expect("it can be cleared");
    store.raise(alarm(5000));
}

/// While the data are said to be corrupt no lease ends, and nobody is told that one has; those that
/// have not run out are renewed.
#[test]
fn leases_end_when_the_alarm_is_cleared() {
    const CORRUPT: Alarm = Alarm {
        member: 7,
        kind: Kind::Corrupt,
    };
    let store = TestStore::new();
    store.grant(1, 10).expect("a lease");
    store.grant(2, 1000).expect("a lease");
    store.raise(CORRUPT);
    assert!(matches!(store.grant(3, 10), Err(Error::Corrupt)));
    store.move_clock(11);
    assert!(matches!(store.keep_alive(1), Err(Error::Corrupt)));
    assert_eq!(store.keep_alive(2).expect("an answer").ttl_secs, 1000);
    for _ in 0..3 {
        assert!(matches!(store.revoke(1), Err(Error::Corrupt)));
    }
    assert_eq!(store.leases().expect("a list"), [1, 2]);
    store.clear(CORRUPT).expect("it can be cleared");
    // By itself, when the writer tries anew.
    store.move_clock(2);
    eventually("it ends", || store.leases().expect("a list") == [2]);
    assert_eq!(store.keep_alive(1).expect("an answer").ttl_secs, 0);
}

/// In what others get to see, an alarm is a row as etcd writes it, whoever has raised it; and the
/// member's peer URLs are those that it was told last.
#[test]
fn snapshots_tell_of_alarms_and_members_as_etcd_does() {
    let mut store = TestStore::with_quota(QUOTA_BYTES);
    let member = |store: &TestStore| {
        let engine = store.engine();
        Member::of(&store.view(), engine.identity(), engine.term())
    };
    let hash = |store: &TestStore| {
        let hash = store.wait_for(store.engine().hash(member(store)));
        hash.expect("a hash").0
    };
    let without = hash(&store);
    assert!(is_refused(put(&store, 0, QUOTA_BYTES as usize)));
    let by_the_server = hash(&store);
    store.raise(OWN);
    assert_ne!(by_the_server, without);
    assert_eq!(hash(&store), by_the_server);
    store.clear(OWN).expect("it can be cleared");
    assert_eq!(hash(&store), without);

    assert_eq!(member(&store).peer_urls, ["http://localhost:2380"]);
    for urls in [&["http://a:1", "http://b:2"][..], &[], &["what\"ever"]] {
        let urls: Vec<String> = urls.iter().map(|url| url.to_string()).collect();
        let updated = store.engine().update_member(urls.clone());
        store.wait_for(updated).expect("it is kept");
        assert_eq!(member(&store).peer_urls, urls);
        assert_ne!(hash(&store), without);
        store.crash();
        assert_eq!(member(&store).peer_urls, urls);
    }
}
