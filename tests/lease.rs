//! Leases over time: what ends when, what a start gives and what it does not, and many at once.
//!
//! Time moves when a test moves it. What leases do to keys is for the scripts and the model.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::Server;
use common::store::{Answer, TestStore, Write};
use metastore::engine::KeptAlive;
use metastore::lease::Standing;
use metastore::mvcc::request::{Filters, Order, Put, Range, Target};
use metastore::proto::etcdserverpb::lease_client::LeaseClient;
use metastore::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest,
};
use metastore::storage::key_range::{End, KeyRange};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

fn put_of(key: impl Into<Bytes>, lease: i64) -> Put {
    Put {
        key: key.into(),
        value: Bytes::from_static(b"v"),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn put(store: &TestStore, key: impl Into<Bytes>, lease: i64) -> u64 {
    store.put(put_of(key, lease)).expect("a put").revision
}

fn keys(store: &TestStore) -> u64 {
    let all = Range {
        range: KeyRange {
            start: Bytes::from_static(b"\0"),
            end: End::Unbounded,
        },
        revision: 0,
        limit: 0,
        order: Order::None,
        target: Target::Key,
        filters: Filters::default(),
        keys_only: false,
        count_only: true,
    };
    store.range(all).expect("a count").count
}

fn left(store: &TestStore, id: i64) -> Option<i64> {
    let answer = store.time_to_live(id).expect("an answer");
    answer.standing.map(|standing| standing.left_secs)
}

/// Lets the writer come round: it asks itself what is due at the first put, and has answered that
/// when it answers the second.
fn let_the_writer_come_round(store: &TestStore) {
    put(store, "round", 0);
    put(store, "round", 0);
}

#[test]
fn a_lease_ends_with_its_ttl_and_not_before() {
    let store = TestStore::new();
    store.grant(1, 10).expect("a lease");
    put(&store, "k", 1);
    store.pass(9);
    assert_eq!(left(&store, 1), Some(0));
    store.keep_alive(1).expect("an answer");
    store.pass(9);
    assert_eq!(keys(&store), 1);
    store.pass(1);
    assert_eq!((keys(&store), left(&store, 1)), (0, None));
}

/// Nobody has looked since it ran out; the keep-alive comes first, and yet too late.
#[test]
fn a_keep_alive_that_comes_too_late_answers_when_all_is_gone() {
    let store = TestStore::new();
    store.grant(1, 10).expect("a lease");
    let revision = put(&store, "k", 1);
    store.move_clock(10);
    let kept = store.keep_alive(1).expect("an answer");
    assert_eq!(kept.ttl_secs, 0);
    assert_eq!((keys(&store), left(&store, 1)), (0, None));
    assert_eq!(put(&store, "l", 0), revision + 2);
    // Granted anew it is another lease.
    store.grant(1, 20).expect("the id is free");
    let expected = KeptAlive {
        ttl_secs: 20,
        revision: revision + 2,
    };
    assert_eq!(store.keep_alive(1).expect("an answer"), expected);
}

/// A keep-alive and the expiry meet in any order: never do both have their way.
#[test]
fn a_keep_alive_or_the_expiry_wins() {
    let store = TestStore::new();
    for round in 0..200 {
        store.grant(1, 2).expect("a lease");
        put(&store, "k", 1);
        store.move_clock(1 + round % 2);
        // The writer is looking for what is due meanwhile.
        let together = vec![Write::Put(put_of("a", 0)), Write::Put(put_of("b", 0))];
        let answers = store.write_together(together);
        assert!(
            answers
                .iter()
                .all(|answer| matches!(answer, Ok(Answer::Put(_))))
        );
        let kept = store.keep_alive(1).expect("an answer").ttl_secs;
        assert_eq!(kept, if round % 2 == 0 { 2 } else { 0 });
        store.pass(1);
        let there = round % 2 == 0;
        assert_eq!(left(&store, 1).is_some(), there);
        assert_eq!(keys(&store), 2 + u64::from(there));
        store.pass(2);
    }
}

#[test]
fn a_start_gives_all_of_the_time_again() {
    for crash in [false, true] {
        let mut store = TestStore::new();
        store.grant(1, 10).expect("a lease");
        put(&store, "k", 1);
        store.pass(9);
        // Downtime does not count.
        match crash {
            true => store.crash(),
            false => store.restart(),
        }
        let standing = store.time_to_live(1).expect("an answer").standing;
        let expected = Standing {
            left_secs: 10,
            ttl_secs: 10,
        };
        assert_eq!(standing, Some(expected));
        store.pass(10);
        assert_eq!(keys(&store), 1);
        store.pass(1);
        assert_eq!(keys(&store), 0);
    }
}

/// A server that starts over and over does not keep a lease alive whose holder is gone: it ends
/// within the bounds of docs/compatibility.md. A holder who gives signs of life keeps it.
#[test]
fn starts_without_end_do_not_keep_a_lease() {
    for crash in [false, true] {
        let mut store = TestStore::new();
        store.grant(1, 10).expect("a lease");
        store.grant(2, 10).expect("a lease");
        put(&store, "k", 1);
        let mut ended = None;
        for life in 0..60 {
            store.keep_alive(2).expect("an answer");
            store.pass(4);
            let_the_writer_come_round(&store);
            if ended.is_none() && left(&store, 1).is_none() {
                ended = Some(4 * (life + 1));
            }
            match crash {
                true => store.crash(),
                false => store.restart(),
            }
        }
        let ended = ended.expect("it ends");
        // The TTL and a second once at least; a minute, two TTLs and a second at most.
        assert!((11..=81 + 4).contains(&ended), "after {ended} s");
        assert!(left(&store, 2).is_some());
    }
}

/// Who could not reach the server at all loses nothing by its starts.
#[test]
fn lives_too_short_for_anybody_do_not_count() {
    let mut store = TestStore::new();
    store.grant(1, 10).expect("a lease");
    for _ in 0..100 {
        put(&store, "k", 1);
        store.crash();
    }
    assert_eq!(left(&store, 1), Some(10));
}

/// Signs of life are kept now and then, and outlive a crash.
#[test]
fn a_lease_that_is_kept_alive_has_all_of_its_time_after_any_start() {
    let mut store = TestStore::new();
    store.grant(1, 10).expect("a lease");
    for _ in 0..40 {
        for _ in 0..5 {
            store.pass(5);
            assert_eq!(store.keep_alive(1).expect("an answer").ttl_secs, 10);
            let_the_writer_come_round(&store);
        }
        store.crash();
        assert_eq!(left(&store, 1), Some(10));
    }
}

/// Many leases that end at once go in parts, and puts have their turn in between.
#[test]
fn mass_expiry_holds_nobody_up() {
    const LEASES: i64 = 20_000;
    let store = TestStore::new();
    for begin in (1..=LEASES).step_by(2000) {
        let mut writes = Vec::new();
        for id in begin..begin + 2000 {
            writes.push(Write::Grant { id, ttl_secs: 10 });
            writes.push(Write::Put(put_of(format!("{id:05}"), id)));
        }
        let answers = store.write_together(writes);
        assert!(answers.iter().all(Result::is_ok));
    }
    assert_eq!(keys(&store), LEASES as u64);
    store.move_clock(10);
    // Each put is answered behind one part at most of those that were left when it came.
    let (mut turns, first) = (0, put(&store, "k", 0));
    let mut last = first;
    while keys(&store) > 1 {
        last = put(&store, "k", 0);
        turns += 1;
    }
    assert!(turns > 3, "{turns} puts were answered meanwhile");
    // A revision for each lease.
    assert!(last - first <= LEASES as u64 + turns);
    assert!(store.leases().expect("an answer").is_empty());
}

/// The keys of a lease can be many bytes, and who asks may never take them.
#[test]
fn many_keys_of_a_lease_take_room_for_large_answers() {
    const KEYS: usize = 1000;
    let store = TestStore::new();
    store.grant(1, 10).expect("a lease");
    let look = || {
        let runtime = runtime();
        let answer = runtime.block_on(store.engine().time_to_live(1, true));
        let (answer, room) = answer.expect("an answer");
        let room = room.map_or(0, |room| room.num_permits());
        (answer.keys.len(), room)
    };
    put(&store, "k", 1);
    assert_eq!(look(), (1, 0));
    let keys = (1..KEYS).map(|number| format!("{number:02048}"));
    let writes = keys.map(|key| Write::Put(put_of(key, 1))).collect();
    let answers = store.write_together(writes);
    assert!(answers.iter().all(Result::is_ok));
    let (keys, room) = look();
    assert_eq!(keys, KEYS);
    // In KiB.
    assert!((2000..2100).contains(&room), "{room}");
}

fn start(folder: &TempDir) -> Server {
    let binary = Path::new(env!("CARGO_BIN_EXE_metastore"));
    Server::start(binary, &folder.path().join("data"), &[])
}

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be built")
}

/// However far ahead a client sends, and however small its messages are, it is held up and not sent
/// away; and each request has its answer once the client takes them.
#[test]
fn a_client_that_sends_far_ahead_is_held_up() {
    const REQUESTS: usize = 200_000;
    let folder = TempDir::new().expect("a folder");
    let server = start(&folder);
    runtime().block_on(async {
        let mut leases = LeaseClient::new(server.channel());
        for id in [i64::MIN, 1] {
            let grant = LeaseGrantRequest { id, ttl: 1000 };
            leases.lease_grant(grant).await.expect("a lease");
            let sent = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&sent);
            let requests = std::iter::repeat_with(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                LeaseKeepAliveRequest { id }
            });
            let requests = tokio_stream::iter(requests.take(REQUESTS));
            let stream = leases.lease_keep_alive(requests).await;
            let mut answers = stream.expect("a stream").into_inner();
            // On the same connection, behind what was sent before.
            let mut seen = usize::MAX;
            while seen != sent.load(Ordering::Relaxed) {
                seen = sent.load(Ordering::Relaxed);
                for _ in 0..3 {
                    let look = LeaseTimeToLiveRequest { id, keys: false };
                    leases.lease_time_to_live(look).await.expect("an answer");
                }
            }
            assert!(seen < REQUESTS, "it is held up");
            for number in 0..REQUESTS {
                let answer = answers.message().await;
                let answer = answer.unwrap_or_else(|error| panic!("after {number}: {error}"));
                let answer = answer.map(|answer| (answer.id, answer.ttl));
                assert_eq!(answer, Some((id, 1000)));
            }
            assert!(answers.message().await.expect("an end").is_none());
        }
    });
}

/// A million leases take 200 MB at most, as they are granted and after a start.
#[test]
#[ignore = "takes minutes"]
fn a_million_leases_fit_in_little_memory() {
    const LEASES: i64 = 1_000_000;
    const CLIENTS: i64 = 250;
    let folder = TempDir::new().expect("a folder");
    let mut server = start(&folder);
    let empty = resident_kib(&server);
    let runtime = runtime();
    runtime.block_on(async {
        let channel = server.channel();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let mut leases = LeaseClient::new(channel.clone());
            clients.spawn(async move {
                for number in 0..LEASES / CLIENTS {
                    let id = 1 + client * (LEASES / CLIENTS) + number;
                    let grant = LeaseGrantRequest { id, ttl: 100_000 };
                    leases.lease_grant(grant).await.expect("a lease");
                }
            });
        }
        clients.join_all().await;
    });
    let granted = resident_kib(&server);
    server.kill();
    let server = start(&folder);
    let started = resident_kib(&server);
    let listed = runtime.block_on(async {
        let leases = LeaseClient::new(server.channel());
        let mut leases = leases.max_decoding_message_size(usize::MAX);
        let answer = leases.lease_leases(LeaseLeasesRequest {}).await;
        answer.expect("an answer").into_inner().leases.len()
    });
    assert_eq!(listed, LEASES as usize);
    let mib = |kib: u64| kib.saturating_sub(empty) / 1024;
    let (granted, started) = (mib(granted), mib(started));
    println!("MiB above the empty server: {granted} when granted, {started} after a start");
    assert!(granted.max(started) <= 200);
}

fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    let number = number.expect("it says so").parse();
    number.expect("a number")
}
