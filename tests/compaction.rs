//! Compaction that nobody asks for: the floor follows the clock, which the tests move.
//!
//! The rule itself is proved in `engine/compactor.rs`; here it is the writer that follows it.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::store::TestStore;
use metastore::engine::Compaction;
use metastore::engine::compactor::Policy;
use metastore::mvcc::request::Put;

/// Seconds; a tenth of it is the time between two looks.
const PERIOD: u64 = 100;

fn store(policy: Policy) -> TestStore {
    TestStore::compacting(Compaction {
        policy: Some(policy),
        ..Compaction::default()
    })
}

fn put(store: &TestStore) -> u64 {
    let put = Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    store.put(put).expect("a put").revision
}

/// Lets the writer come round: it looks for what is due behind each put, hears what came of that
/// behind the next, and has shown it when it answers the third.
fn let_the_writer_come_round(store: &TestStore) {
    for _ in 0..3 {
        put(store);
    }
}

/// Moves the clock look by look; answers (seconds, newest revision before, floor behind) of each.
fn pass(store: &TestStore, looks: u64, secs: u64) -> Vec<(u64, u64, u64)> {
    let mut seen = Vec::new();
    for look in 1..=looks {
        let newest = put(store);
        store.move_clock(secs);
        let_the_writer_come_round(store);
        seen.push((look * secs, newest, store.view().floor.unwrap_or(0)));
    }
    seen
}

#[test]
fn the_floor_follows_a_period_behind() {
    let mut store = store(Policy::Period(Duration::from_secs(PERIOD)));
    let begin = put(&store);
    for _life in 0..2 {
        let before = store.view().floor.unwrap_or(0);
        let seen = pass(&store, 45, PERIOD / 10);
        for (secs, _, floor) in &seen {
            let newest_at = |then: u64| {
                let earlier = seen.iter().rfind(|(secs, ..)| *secs <= then + PERIOD / 10);
                earlier.map_or(u64::MAX, |(_, newest, _)| *newest)
            };
            match secs.checked_sub(PERIOD) {
                None => assert_eq!(*floor, before, "after {secs} s"),
                Some(then) => assert!(*floor <= newest_at(then), "after {secs} s: {floor}"),
            }
            // What is not compacted by now waits for the next time, and then for its sample.
            if let Some(long_ago) = secs.checked_sub(2 * PERIOD + 2 * PERIOD / 10) {
                let expected = if long_ago == 0 {
                    begin
                } else {
                    newest_at(long_ago - PERIOD / 10)
                };
                assert!(*floor >= expected, "after {secs} s: {floor}");
            }
        }
        assert!(store.view().floor > Some(before));
        // What was sampled is forgotten.
        store.restart();
    }
}

#[test]
fn the_floor_follows_some_revisions_behind() {
    let store = store(Policy::Revisions(20));
    for (secs, newest, floor) in pass(&store, 20, 300) {
        let expected = newest.saturating_sub(20);
        // Behind the clock come three puts, of which the look may see some.
        assert!(
            (expected..=expected + 3).contains(&floor) || floor == 0 && newest <= 23,
            "after {secs} s: {floor} of {newest}"
        );
    }
}

#[test]
fn nothing_is_compacted_unless_asked_for() {
    let store = TestStore::new();
    for (secs, _, floor) in pass(&store, 10, 3600) {
        assert_eq!(floor, 0, "after {secs} s");
    }
}
