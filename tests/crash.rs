//! The disk stops at each sync in turn, fills up, or fails: what was answered is there after. The
//! tables are copied into a new file meanwhile.
//!
//! ```text
//! workload ─► engine ─► simulated disk ─► stop ─► survivors(seed) ─► check, reopen, compare, go on
//! ```
//! The steps are a function of the seed, and so is what survives; how many syncs the background
//! thread takes in between is not, so a stop is named by number and found again by trying.
//!
//! `SEED=n` starts from another seed, `METASTORE_CRASH_STOPS=n` tries that many stops.

#![allow(clippy::disallowed_methods, reason = "tests poll, with a deadline")]

#[path = "crash/model.rs"]
mod model;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use metastore::clock::Clock;
use metastore::engine::alarm::{self, Alarm, Kind};
use metastore::engine::{Compaction, Engine};
use metastore::lease::Timing;
use metastore::mvcc;
use metastore::mvcc::request::{DeleteRange, Put};
use metastore::storage;
use metastore::storage::check::{self, Report};
use metastore::storage::disk::sim::{SimDisk, SplitMix};
use metastore::storage::disk::{Disk, DiskFile};
use metastore::storage::key_range::KeyRange;
use metastore::storage::store::{DATABASE_FILE, Identity, Settings};
use tokio::runtime::Runtime;

use model::{Ask, Model, Pair, Pairs, TTL_SECS, all_at, any_put, put_of};

/// Steps of the first life of a disk; later ones are shorter.
const STEPS: usize = 160;

/// How long anything may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

const SEGMENT_BYTES: u64 = 16 << 10;
const RESERVE_BYTES: u64 = 256 << 10;

fn settings(disk: &SimDisk) -> Settings {
    Settings {
        data: disk.folder("data"),
        log: disk.folder("log"),
        cache_bytes: 1 << 20,
        flush_bytes: 32 << 10,
        segment_bytes: SEGMENT_BYTES,
        reserve_bytes: RESERVE_BYTES,
        quota_bytes: None,
    }
}

fn open(disk: &SimDisk) -> Result<Arc<Engine>, storage::Error> {
    open_with(&settings(disk))
}

fn open_with(settings: &Settings) -> Result<Arc<Engine>, storage::Error> {
    open_at(settings, &Arc::new(AtomicU64::new(1_000_000)))
}

/// The time is in microseconds.
fn open_at(settings: &Settings, time: &Arc<AtomicU64>) -> Result<Arc<Engine>, storage::Error> {
    let identity = Identity {
        cluster_id: 1,
        member_id: 2,
        peer_urls: vec!["http://localhost:2380".to_owned()],
    };
    let clock = Clock::Manual(Arc::clone(time));
    Engine::open(
        settings,
        identity,
        Timing::default(),
        Compaction::default(),
        clock,
    )
    .map(Arc::new)
}

fn checked(disk: &SimDisk, story: &str) -> Report {
    let Settings { data, log, .. } = settings(disk);
    let report = check::check(&data, &log, |_, _| ());
    let report = report.unwrap_or_else(|finding| panic!("{story}: {finding}"));
    assert_eq!(
        report.strays, 0,
        "{story}: a lease is gone, and not all of its keys"
    );
    report
}

/// Before the first answer there need not be a store.
fn check_if_made(disk: &SimDisk, answered: usize, story: &str) {
    let names = disk.folder("data").list().expect("the disk works");
    if answered > 0 || names.iter().any(|name| name == DATABASE_FILE) {
        checked(disk, story);
    }
}

/// Stops the engine, and panics if that does not come to an end.
fn stop(engine: Arc<Engine>, story: &str) {
    let (done, ended) = mpsc::channel();
    let stopping = thread::spawn(move || {
        engine.stop();
        done.send(()).expect("the test waits");
    });
    let ended = ended.recv_timeout(PATIENCE);
    ended.unwrap_or_else(|_| panic!("{story}: the engine does not stop"));
    stopping.join().expect("stopping does not panic");
}

async fn soon<T>(future: impl Future<Output = T>, story: &str) -> T {
    let outcome = tokio::time::timeout(PATIENCE, future).await;
    outcome.unwrap_or_else(|_| panic!("{story}: it hangs"))
}

fn eventually(story: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{story}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn alarm_of(member: u64) -> Alarm {
    let kind = Kind::NoSpace;
    Alarm { member, kind }
}

/// The revision that is answered.
async fn ask(engine: &Arc<Engine>, ask: Ask) -> Result<u64, mvcc::Error> {
    match ask {
        Ask::Put(put) => Ok(engine.put(put).await?.revision),
        Ask::Delete(delete) => Ok(engine.delete_range(delete).await?.revision),
        Ask::Txn(txn) => Ok(engine.txn(txn, 100).await?.revision),
        Ask::Compact { revision, physical } => engine.compact(revision as i64, physical).await,
        Ask::Grant(id) => Ok(engine.grant(id, TTL_SECS).await?.revision),
        Ask::Revoke(id) => engine.revoke(id).await,
        Ask::Raise(member) => engine.raise(alarm_of(member)).await,
        Ask::Clear(member) => Ok(engine.clear(alarm_of(member)).await?.1),
    }
}

/// Takes steps by chance, some of them at once; how many steps of the model are answered.
async fn work(
    engine: &Arc<Engine>,
    model: &mut Model,
    steps: usize,
    random: &mut SplitMix,
    story: &str,
) -> usize {
    let mut answered = model.steps();
    let end = model.steps() + steps;
    while model.steps() < end {
        let mut asked = Vec::new();
        for _ in 0..=random.below(6) {
            let request = model.step(random);
            let physical = matches!(request, Ask::Compact { physical: true, .. });
            let engine = Arc::clone(engine);
            let task = tokio::spawn(async move { ask(&engine, request).await });
            asked.push((model.steps(), physical, task));
        }
        let mut stopped = false;
        for (step, physical, task) in asked {
            match soon(task, story).await.expect("asking does not panic") {
                Ok(revision) => {
                    assert!(!stopped || physical, "{story}: answered after a stop");
                    assert_eq!(revision, model.places[step].0, "{story}, step {step}");
                    answered = answered.max(step);
                }
                Err(mvcc::Error::Stopped) => stopped |= !physical,
                Err(error) => panic!("{story}, step {step}: {error}"),
            }
        }
        if stopped {
            break;
        }
    }
    answered
}

/// The pairs at a revision, as the engine reads them.
async fn pairs_at(engine: &Arc<Engine>, revision: u64) -> Result<Pairs, mvcc::Error> {
    let (ranged, _) = engine.range(all_at(revision)).await?;
    let pairs = ranged.kvs.into_iter().map(|kv| {
        let pair = Pair {
            create: kv.create,
            modified: kv.modified,
            version: kv.version,
            value: kv.value,
            lease: kv.lease,
        };
        (kv.key, pair)
    });
    Ok(pairs.collect())
}

/// Cuts the model at where the store stands, which is behind all that was answered, and compares
/// all of history.
async fn compare(
    engine: &Arc<Engine>,
    disk: &SimDisk,
    model: &mut Model,
    answered: usize,
    story: &str,
) {
    let view = engine.view();
    let place = (view.revision, view.floor);
    let leases = engine.leases().await.expect("it needs no disk").0;
    let leases = BTreeSet::from_iter(leases);
    let alarms: BTreeSet<u64> = alarm::raised(&view.small)
        .map(|alarm| alarm.member)
        .collect();
    let mut possible = answered..=model.steps();
    let fits = |step: &usize| {
        model.places[*step] == place
            && model.leases[*step] == leases
            && model.alarms[*step] == alarms
    };
    let Some(step) = possible.find(fits) else {
        panic!(
            "{story}: at {place:?} with {leases:?} and {alarms:?}, answered {:?} with {:?} and {:?}, sent {:?}",
            model.places[answered],
            model.leases[answered],
            model.alarms[answered],
            model.place()
        );
    };
    model.truncate(step);
    for id in leases {
        let answer = match engine.time_to_live(id, true).await {
            Ok((answer, _room)) => answer,
            Err(_) if disk.is_stopped() => return,
            Err(error) => panic!("{story}, lease {id}: {error}"),
        };
        let pairs = model.pairs[view.revision as usize].iter();
        let attached = pairs.filter(|(_, pair)| pair.lease == id);
        let attached: Vec<_> = attached.map(|(key, _)| key.to_vec()).collect();
        assert_eq!(answer.keys, attached, "{story}, lease {id}");
    }
    for revision in view.floor.unwrap_or(1).max(1)..=view.revision {
        let pairs = match pairs_at(engine, revision).await {
            Ok(pairs) => pairs,
            // A flush of what was replayed may have met the stop.
            Err(_) if disk.is_stopped() => return,
            Err(error) => panic!("{story}, revision {revision}: {error}"),
        };
        assert_eq!(
            pairs, model.pairs[revision as usize],
            "{story}, revision {revision}"
        );
    }
}

/// One life of a disk: open, compare with what was answered before, work, and stop, unless the
/// disk stops before. Answers how many steps of the model are answered by then.
fn live(
    runtime: &Runtime,
    disk: &SimDisk,
    model: &mut Model,
    answered: usize,
    steps: usize,
    seed: u64,
    story: &str,
) -> usize {
    let engine = match open(disk) {
        Ok(engine) => engine,
        Err(error) => {
            assert!(disk.is_stopped(), "{story}: {error}");
            return answered;
        }
    };
    let answered = runtime.block_on(async {
        let mut random = SplitMix(seed);
        compare(&engine, disk, model, answered, story).await;
        // What a reader was shown stays, too.
        let halves = [steps / 2, steps - steps / 2];
        let mut answered = work(&engine, model, halves[0], &mut random, story).await;
        if !disk.is_stopped() {
            let defragmenting = Arc::clone(&engine);
            let defragmenting = tokio::spawn(async move { defragmenting.defragment().await });
            answered = work(&engine, model, halves[1], &mut random, story).await;
            let defragmented = soon(defragmenting, story).await.expect("no panic");
            let ended = disk.is_stopped() && matches!(defragmented, Err(mvcc::Error::Stopped));
            assert!(ended || defragmented.is_ok(), "{story}: {defragmented:?}");
        }
        if disk.is_stopped() {
            soon(engine.failed(), story).await;
            let refused = soon(engine.put(put_of("key", "value")), story).await;
            assert!(
                matches!(refused, Err(mvcc::Error::Stopped)),
                "{story}: {refused:?}"
            );
        }
        answered
    });
    stop(engine, story);
    answered
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

fn number_from(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => default,
    }
}

/// Wherever the disk stops, all that was answered is there after, whatever else survives; and so
/// it is when the disk stops again during the recovery, or just after it.
#[test]
fn a_stop_at_any_sync_keeps_every_answer() {
    let runtime = runtime();
    let seed = number_from("SEED", 1);
    let stops = number_from("METASTORE_CRASH_STOPS", 120);
    println!("SEED={seed} METASTORE_CRASH_STOPS={stops}");
    let disk = SimDisk::new();
    live(
        &runtime,
        &disk,
        &mut Model::with_alarms(),
        0,
        STEPS,
        seed,
        "no stop",
    );
    let syncs = disk.syncs();
    assert!(syncs > 60, "the workload syncs: {syncs}");
    let mut random = SplitMix(seed);
    for round in 0..stops {
        // The start and each part of the rest alike.
        let at = if round < stops.min(20) {
            round + 1
        } else {
            1 + random.below(syncs)
        };
        let disk = SimDisk::new();
        disk.stop_at_sync(at);
        let mut model = Model::with_alarms();
        let story = format!("SEED={seed}, stop {at}");
        let answered = live(&runtime, &disk, &mut model, 0, STEPS, seed, &story);
        for fate in 0..3 {
            let story = format!("{story}, fate {fate}");
            // A killed process leaves what it had not synced to the next, whose disk may stop too.
            let survivors = match fate {
                0 => disk.revived(),
                _ => disk.survivors(seed + fate),
            };
            check_if_made(&survivors.revived(), answered, &story);
            let mut model = model.clone();
            let again = 1 + random.below(25);
            survivors.stop_at_sync(again);
            let story = format!("{story}, again {again}");
            let answered = live(
                &runtime, &survivors, &mut model, answered, 20, again, &story,
            );
            let disk = survivors.survivors(seed + 7 * fate);
            check_if_made(&disk.revived(), answered, &story);
            live(&runtime, &disk, &mut model, answered, 10, at, &story);
            checked(&disk, &story);
        }
    }
}

fn delete_of(key: String) -> DeleteRange {
    DeleteRange {
        range: KeyRange::single(key.into()),
        prev_kv: true,
    }
}

/// Puts until the disk is full; the model takes those that are answered.
async fn fill(engine: &Arc<Engine>, model: &mut Model, random: &mut SplitMix, story: &str) {
    for _ in 0..10_000 {
        let request = Ask::Put(any_put(random));
        match soon(ask(engine, request.clone()), story).await {
            Ok(revision) => {
                model.take(&request);
                assert_eq!(revision, model.place().0, "{story}");
            }
            Err(mvcc::Error::NoSpace) => return,
            Err(error) => panic!("{story}: {error}"),
        }
    }
    panic!("{story}: the disk is never full");
}

/// What must go on whatever the disk says, and frees room. Answers what refused it.
async fn free(engine: &Arc<Engine>, model: &mut Model, story: &str) -> Result<(), mvcc::Error> {
    for key in 0..8 {
        let delete = Ask::Delete(delete_of(format!("key {key}")));
        let revision = soon(ask(engine, delete.clone()), story).await?;
        model.take(&delete);
        assert_eq!(revision, model.place().0, "{story}");
    }
    let (revision, floor) = model.place();
    if Some(revision) > floor {
        let physical = false;
        let compact = Ask::Compact { revision, physical };
        soon(ask(engine, compact.clone()), story).await?;
        model.take(&compact);
    }
    Ok(())
}

/// There is room again: puts are taken without a restart, and nothing was lost.
async fn recover(engine: &Arc<Engine>, disk: &SimDisk, model: &mut Model, story: &str) {
    disk.set_capacity(None);
    let deadline = Instant::now() + PATIENCE;
    let request = Ask::Put(put_of("key 0", "there is room"));
    loop {
        match soon(ask(engine, request.clone()), story).await {
            Ok(_) => break model.take(&request),
            Err(mvcc::Error::NoSpace) => {}
            Err(error) => panic!("{story}: {error}"),
        }
        assert!(Instant::now() < deadline, "{story}: puts are refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let steps = model.steps();
    compare(engine, disk, model, steps, story).await;
    let answered = work(engine, model, 40, &mut SplitMix(9), story).await;
    assert_eq!(answered, model.steps(), "{story}");
}

/// After a stop all is there, and sound.
fn reopen(runtime: &Runtime, disk: &SimDisk, model: &mut Model, story: &str) {
    checked(disk, story);
    let steps = model.steps();
    live(runtime, disk, model, steps, 20, 5, story);
    checked(disk, story);
}

/// Of any size the disk fills up in one way or another, at the start or later, in the log or in a
/// flush.
#[test]
fn a_full_disk_refuses_what_adds_and_goes_on() {
    let runtime = runtime();
    for kib in [0, 60, 150, 400, 450, 500, 700, 900, 1300] {
        let story = format!("{kib} KiB");
        let disk = SimDisk::new();
        disk.set_capacity(Some(kib << 10));
        let mut model = Model::new();
        let mut random = SplitMix(kib);
        let engine = match open(&disk) {
            Ok(engine) => engine,
            Err(storage::Error::NoSpace) => {
                assert!(kib < 400, "{story}: the reserve fits");
                disk.set_capacity(None);
                open(&disk).unwrap_or_else(|error| panic!("{story}: {error}"))
            }
            Err(error) => panic!("{story}: {error}"),
        };
        runtime.block_on(async {
            disk.set_capacity(Some(kib << 10));
            if kib > 0 {
                for _ in 0..4 {
                    fill(&engine, &mut model, &mut random, &story).await;
                    let freed = free(&engine, &mut model, &story).await;
                    assert!(kib < 400 || freed.is_ok(), "{story}: {freed:?}");
                }
            }
            recover(&engine, &disk, &mut model, &story).await;
        });
        stop(engine, &story);
        reopen(&runtime, &disk, &mut model, &story);
    }
}

/// Not even the reserve helps: others have taken all there was. The log takes what fits, the
/// flush waits, and reads go on.
#[test]
fn a_disk_without_any_room_refuses_and_waits() {
    const MANY: usize = 300;
    let runtime = runtime();
    for (seed, stops_full) in [(1, false), (2, true), (3, true)] {
        let story = format!("seed {seed}");
        let disk = SimDisk::new();
        let mut model = Model::new();
        let engine = open(&disk).expect("there is room");
        runtime.block_on(async {
            work(&engine, &mut model, 60, &mut SplitMix(seed), &story).await;
            for number in 0..MANY {
                let put = Ask::Put(put_of(format!("many {number}"), "x"));
                let put_too = soon(ask(&engine, put.clone()), &story).await;
                put_too.expect("there is room");
                model.take(&put);
            }
            disk.set_capacity(Some(0));
            fill(&engine, &mut model, &mut SplitMix(seed), &story).await;
            let granted = soon(engine.grant(77, TTL_SECS), &story).await;
            let no_space = matches!(granted, Err(mvcc::Error::NoSpace));
            assert!(no_space, "{story}: {granted:?}");
            for id in &model.leases[model.steps()] {
                let kept = soon(engine.keep_alive(*id), &story).await;
                let kept = kept.expect("it costs no space").ttl_secs;
                assert_eq!(kept as i64, TTL_SECS, "{story}");
            }
            let mut refused = None;
            for number in 0..MANY {
                let delete = Ask::Delete(delete_of(format!("many {number}")));
                match soon(ask(&engine, delete.clone()), &story).await {
                    Ok(_) => model.take(&delete),
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            let refused = refused.expect("a segment has no room for so many");
            assert!(
                matches!(refused, mvcc::Error::NoSpace),
                "{story}: {refused}"
            );
            let steps = model.steps();
            compare(&engine, &disk, &mut model, steps, &story).await;
            if !stops_full {
                recover(&engine, &disk, &mut model, &story).await;
            }
        });
        stop(engine, &story);
        if stops_full {
            // Nor can it start; but it does no harm to try.
            let error = open(&disk).expect_err("a new segment needs room");
            assert!(matches!(error, storage::Error::NoSpace), "{story}: {error}");
            checked(&disk.survivors(seed), &story);
            disk.set_capacity(None);
        }
        reopen(&runtime, &disk, &mut model, &story);
    }
}

/// Without any room nothing can be removed: who asks for a lease that has run out is told that, and
/// not that it is gone. Those of others are renewed all the same.
#[test]
fn a_lease_that_runs_out_on_a_full_disk_goes_when_there_is_room() {
    const MANY: usize = 300;
    let story = "run out";
    let disk = SimDisk::new();
    let time = Arc::new(AtomicU64::new(1_000_000));
    let engine = open_at(&settings(&disk), &time).expect("there is room");
    let is_full = |refused: &Result<(), mvcc::Error>| matches!(refused, Err(mvcc::Error::NoSpace));
    runtime().block_on(async {
        for (id, ttl_secs) in [(1, 10), (2, 1000)] {
            engine.grant(id, ttl_secs).await.expect("a lease");
        }
        let put = |key: String, lease| {
            let put = Put {
                lease,
                ..put_of(key, "x")
            };
            soon(engine.put(put), story)
        };
        put("held".into(), 1).await.expect("there is room");
        for number in 0..MANY {
            let put_too = put(format!("many {number}"), 0).await;
            put_too.expect("there is room");
        }
        disk.set_capacity(Some(0));
        let mut refused = Ok(());
        while !is_full(&refused) {
            refused = put("more".into(), 0).await.map(|_| ());
        }
        let mut keys = 0..MANY;
        refused = Ok(());
        while !is_full(&refused) {
            let number = keys.next().expect("a segment has no room for so many");
            let delete = engine.delete_range(delete_of(format!("many {number}")));
            refused = soon(delete, story).await.map(|_| ());
        }
        time.fetch_add(10_000_000, Ordering::Relaxed);
        let kept = soon(engine.keep_alive(1), story).await;
        assert!(is_full(&kept.map(|_| ())));
        let look = soon(engine.time_to_live(1, true), story).await;
        let (look, _room) = look.expect("it costs no space");
        let left = look.standing.map(|standing| standing.left_secs);
        assert_eq!((left, look.keys), (Some(0), vec![b"held".to_vec()]));
        let other = soon(engine.keep_alive(2), story).await;
        assert_eq!(other.expect("it costs no space").ttl_secs, 1000);
        disk.set_capacity(None);
        let kept = soon(engine.keep_alive(1), story).await;
        assert_eq!(kept.expect("there is room").ttl_secs, 0);
        let look = soon(engine.time_to_live(1, true), story).await;
        assert_eq!(look.expect("an answer").0.standing, None);
    });
    stop(engine, story);
    checked(&disk, story);
}

/// A server starts on a full disk with what it kept for this; deletes are taken at once.
#[test]
fn a_start_on_a_full_disk_gives_up_the_reserve() {
    let runtime = runtime();
    let disk = SimDisk::new();
    let mut model = Model::new();
    let engine = open(&disk).expect("there is room");
    runtime.block_on(work(&engine, &mut model, 60, &mut SplitMix(1), "before"));
    stop(engine, "before");
    disk.set_capacity(Some(disk.used_bytes()));
    let engine = open(&disk).expect("the reserve is room enough");
    let story = "full";
    runtime.block_on(async {
        fill(&engine, &mut model, &mut SplitMix(2), story).await;
        free(&engine, &mut model, story)
            .await
            .expect("it frees room");
        recover(&engine, &disk, &mut model, story).await;
    });
    stop(engine, story);
    reopen(&runtime, &disk, &mut model, story);
}

/// The flush meets a full disk: the database is opened anew, and the flush is tried again.
#[test]
fn a_flush_on_a_full_disk_is_tried_again() {
    let runtime = runtime();
    let disk = SimDisk::new();
    let mut model = Model::new();
    let engine = open(&disk).expect("there is room");
    runtime.block_on(async {
        work(&engine, &mut model, 30, &mut SplitMix(3), "before").await;
        let put = Ask::Put(put_of("key 1", vec![1; 20_000]));
        while engine.view().settled().meta.history_rows == 0 {
            soon(ask(&engine, put.clone()), "before")
                .await
                .expect("there is room");
            model.take(&put);
        }
        // The log has its segment, the database has nothing.
        disk.set_capacity(Some(disk.used_bytes() + SEGMENT_BYTES));
        fill(&engine, &mut model, &mut SplitMix(4), "full").await;
        recover(&engine, &disk, &mut model, "full").await;
    });
    let before = engine.view().settled().meta.applied_batch;
    runtime.block_on(async {
        let put = Ask::Put(put_of("key 1", vec![1; 40_000]));
        for _ in 0..3 {
            soon(ask(&engine, put.clone()), "after")
                .await
                .expect("there is room");
            model.take(&put);
        }
    });
    eventually("a flush is done", || {
        engine.view().settled().meta.applied_batch > before
    });
    stop(engine, "after");
    reopen(&runtime, &disk, &mut model, "after");
}

/// The sweep meets a full disk: it ends with what was kept for this; where that is not enough, when
/// there is room.
#[test]
fn a_sweep_on_a_full_disk_is_tried_again() {
    let runtime = runtime();
    for reserve_bytes in [RESERVE_BYTES, 0] {
        let story = &format!("a reserve of {reserve_bytes} bytes");
        let disk = SimDisk::new();
        let settings = Settings {
            reserve_bytes,
            ..settings(&disk)
        };
        let mut model = Model::new();
        let engine = open_with(&settings).expect("there is room");
        runtime.block_on(async {
            for number in 0..400 {
                let put = put_of(format!("key {}", number % 8), vec![number as u8; 2000]);
                let put = Ask::Put(put);
                soon(ask(&engine, put.clone()), story)
                    .await
                    .expect("there is room");
                model.take(&put);
            }
            // All of it is in the tables then.
            let physical = true;
            let settle = Ask::Compact {
                revision: 1,
                physical,
            };
            soon(ask(&engine, settle.clone()), story)
                .await
                .expect("revision 1 is past");
            model.take(&settle);
            disk.set_capacity(Some(disk.used_bytes()));
            let compact = Ask::Compact {
                revision: model.place().0,
                physical,
            };
            let (asked, sweeping) = (compact.clone(), Arc::clone(&engine));
            let sweeping = tokio::spawn(async move { ask(&sweeping, asked).await });
            // The log has room; so it is the sweep that has found none.
            let deadline = Instant::now() + PATIENCE;
            let tiny = Ask::Put(put_of("tiny", ""));
            while soon(ask(&engine, tiny.clone()), story).await.is_ok() {
                model.take(&tiny);
                assert!(Instant::now() < deadline, "{story}: nothing is refused");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if reserve_bytes == 0 {
                disk.set_capacity(None);
            }
            let swept = soon(sweeping, story).await.expect("it does not panic");
            swept.expect("compaction always works");
            model.take(&compact);
            recover(&engine, &disk, &mut model, story).await;
        });
        stop(engine, story);
        reopen(&runtime, &disk, &mut model, story);
    }
}

/// A page that cannot be read ends the engine, though nothing is being written: calls do not wait
/// for a database that nobody opens anew.
#[test]
fn a_failed_read_ends_the_engine() {
    let story = "a read fails";
    let disk = SimDisk::new();
    let engine = open(&disk).expect("the disk works");
    runtime().block_on(async {
        // More than the cache holds, and all of it in the tables.
        for number in 0..300 {
            let put = put_of(format!("key{number}"), vec![number as u8; 10_000]);
            soon(engine.put(put), story).await.expect("there is room");
        }
        soon(engine.compact(1, true), story)
            .await
            .expect("revision 1 is past");
        disk.stop();
        let read = soon(engine.range(all_at(0)), story).await;
        assert!(read.is_err(), "{story}");
        soon(engine.failed(), story).await;
        let refused = soon(engine.put(put_of("key", "value")), story).await;
        assert!(refused.is_err(), "{story}: {refused:?}");
    });
    stop(engine, story);
}

/// A sync that fails once is the end: what the file then holds is not known.
#[test]
fn a_failed_sync_ends_the_engine() {
    let runtime = runtime();
    for steps in [1, 10, 50, 100] {
        let story = format!("{steps} steps");
        let disk = SimDisk::new();
        let mut model = Model::new();
        let engine = open(&disk).expect("the disk works");
        let answered = runtime.block_on(async {
            let mut random = SplitMix(steps);
            work(&engine, &mut model, steps as usize, &mut random, &story).await;
            disk.fail_next_sync();
            let answered = work(&engine, &mut model, 200, &mut random, &story).await;
            soon(engine.failed(), &story).await;
            let refused = soon(engine.put(put_of("key", "value")), &story).await;
            assert!(
                matches!(refused, Err(mvcc::Error::Stopped)),
                "{story}: {refused:?}"
            );
            answered
        });
        stop(engine, &story);
        for seed in 0..6 {
            let story = format!("{story}, seed {seed}");
            let disk = disk.survivors(seed);
            checked(&disk, &story);
            live(
                &runtime,
                &disk,
                &mut model.clone(),
                answered,
                20,
                seed,
                &story,
            );
            checked(&disk, &story);
        }
    }
}

fn database_bytes(disk: &SimDisk) -> u64 {
    let file = disk.folder("data").open(DATABASE_FILE);
    let size = file.and_then(|file| file.size());
    size.expect("the database is there")
}

/// Whoever asks for a defragmentation gets one that begins then. It goes on when they have gone.
#[test]
fn a_defragmentation_is_shared_and_needs_nobody() {
    let runtime = runtime();
    let story = "defragment";
    let disk = SimDisk::new();
    let mut model = Model::new();
    let engine = open(&disk).expect("there is room");
    let mut random = SplitMix(11);
    runtime.block_on(async {
        work(&engine, &mut model, 400, &mut random, story).await;
        let before = database_bytes(&disk);
        let asked = engine.clone();
        let asked = tokio::spawn(async move { asked.defragment().await });
        tokio::task::yield_now().await;
        asked.abort();
        let gone = soon(asked, story).await.expect_err("it was ended");
        assert!(gone.is_cancelled());
        eventually("the file is smaller", || database_bytes(&disk) < before);
        let mut asked = Vec::new();
        for _ in 0..20 {
            let engine = Arc::clone(&engine);
            asked.push(tokio::spawn(async move { engine.defragment().await }));
        }
        for asked in asked {
            let done = soon(asked, story).await.expect("no panic");
            done.expect("there is room");
        }
        let steps = model.steps();
        compare(&engine, &disk, &mut model, steps, story).await;
        // One that waits when the server stops is not begun, and one that has begun is given up.
        for _ in 0..3 {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { engine.defragment().await });
        }
        tokio::task::yield_now().await;
    });
    stop(engine, story);
    assert_eq!(
        disk.folder("data").list().expect("the disk works"),
        [DATABASE_FILE, "reserve"]
    );
    reopen(&runtime, &disk, &mut model, story);
}

/// There is room for all but a copy: that is refused, and nothing else.
#[test]
fn a_defragmentation_without_room_is_refused() {
    let runtime = runtime();
    let story = "no room";
    let disk = SimDisk::new();
    let mut model = Model::new();
    let engine = open(&disk).expect("there is room");
    runtime.block_on(async {
        let mut random = SplitMix(12);
        work(&engine, &mut model, 100, &mut random, story).await;
        disk.set_capacity(Some(disk.used_bytes() + 2 * SEGMENT_BYTES));
        for _ in 0..3 {
            let refused = soon(engine.defragment(), story).await;
            assert!(
                matches!(refused, Err(mvcc::Error::NoRoom)),
                "{story}: {refused:?}"
            );
        }
        let put = Ask::Put(put_of("key 1", "small"));
        let answer = soon(ask(&engine, put.clone()), story).await;
        answer.expect("there is room for a put");
        model.take(&put);
        disk.set_capacity(None);
        let done = soon(engine.defragment(), story).await;
        done.expect("there is room");
    });
    stop(engine, story);
    reopen(&runtime, &disk, &mut model, story);
}

/// A log folder that takes its time to remove a segment.
#[derive(Debug)]
struct SlowToRemove(Arc<dyn Disk>);

impl Disk for SlowToRemove {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(name, len)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        thread::sleep(Duration::from_millis(30));
        self.0.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

/// The next memtable is full while the log is still being cut behind the last.
#[test]
fn a_flush_waits_until_the_log_is_cut_behind_the_last() {
    let runtime = runtime();
    let disk = SimDisk::new();
    let slow = Settings {
        log: Arc::new(SlowToRemove(disk.folder("log"))),
        ..settings(&disk)
    };
    let engine = open_with(&slow).expect("there is room");
    let mut model = Model::new();
    runtime.block_on(async {
        let put = Ask::Put(put_of("key", vec![1; 40_000]));
        for _ in 0..20 {
            let answer = soon(ask(&engine, put.clone()), "slow").await;
            answer.expect("there is room");
            model.take(&put);
        }
    });
    stop(engine, "slow");
    reopen(&runtime, &disk, &mut model, "slow");
}
