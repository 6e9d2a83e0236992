//! The process is killed under load, again and again on the same data: what was answered is there after. Its tables are
//! copied into a new file all the while.
//!
//! `METASTORE_KILL_ROUNDS=n` kills that many times, `SEED=n` starts from another seed.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::Server;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::{
    DefragmentRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use metastore::storage::disk::sim::SplitMix;
use tonic::Code;
use tonic::transport::Channel;

/// Clients that write at once, each to keys of its own.
const CLIENTS: u64 = 8;

/// Keys of a client.
const KEYS: u64 = 5;

/// Small, so that flushes and new segments happen within a round.
const FLAGS: [&str; 2] = ["--flush-size=1MiB", "--log-segment-size=1MiB"];

/// What one client knows of its keys.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Key, and its last answered value with the revision of that answer.
    answered: BTreeMap<String, (i64, String)>,
    /// What was sent last and not answered: it may or may not be there.
    pending: Option<Vec<(String, String)>>,
    sent: u64,
}

/// Writes until the server goes away.
async fn write(channel: Channel, client: u64, mut known: Known, mut random: SplitMix) -> Known {
    let mut kv = KvClient::new(channel);
    loop {
        known.sent += 1;
        let padding = "x".repeat(random.below(3000) as usize);
        let value = format!("{} {padding}", known.sent);
        let key = |n: u64| format!("client {client} key {n}");
        let first = random.below(KEYS);
        let mut writes = vec![(key(first), value.clone())];
        let revision = if random.below(3) > 0 {
            known.pending = Some(writes.clone());
            let answer = kv.put(put_of(&writes[0])).await;
            answer.map(|answer| answer.into_inner().header)
        } else {
            writes.push((key((first + 1) % KEYS), value));
            known.pending = Some(writes.clone());
            let put = |write| RequestOp {
                request: Some(request_op::Request::RequestPut(put_of(write))),
            };
            let txn = TxnRequest {
                success: writes.iter().map(put).collect(),
                ..Default::default()
            };
            let answer = kv.txn(txn).await;
            answer.map(|answer| answer.into_inner().header)
        };
        let Ok(header) = revision else {
            return known;
        };
        let revision = header.expect("an answer has a header").revision;
        known.pending = None;
        for (key, value) in writes {
            known.answered.insert(key, (revision, value));
        }
    }
}

/// Has the tables copied into a new file, again and again, until the server goes away.
async fn defragment(channel: Channel) {
    let mut maintenance = MaintenanceClient::new(channel);
    loop {
        match maintenance.defragment(DefragmentRequest {}).await {
            Ok(answer) => assert_eq!(answer.into_inner().header, None),
            Err(status) => return assert_ne!(status.code(), Code::ResourceExhausted),
        }
    }
}

fn put_of((key, value): &(String, String)) -> PutRequest {
    PutRequest {
        key: key.clone().into(),
        value: value.clone().into(),
        ..Default::default()
    }
}

/// Every answered write is there at its revision; one that was not answered is there whole, or not
/// at all.
async fn verify(server: &Server, known: &mut Known, story: &str) {
    let mut kv = KvClient::new(server.channel());
    let mut pending_there = Vec::new();
    for (key, (revision, value)) in &known.answered {
        let at = RangeRequest {
            key: key.clone().into(),
            revision: *revision,
            ..Default::default()
        };
        let then = kv.range(at.clone()).await.expect(story).into_inner();
        assert_eq!(then.kvs.len(), 1, "{story}: {key} at {revision}");
        assert_eq!(then.kvs[0].mod_revision, *revision, "{story}: {key}");
        assert_eq!(then.kvs[0].value, value.as_bytes(), "{story}: {key}");
    }
    let Some(pending) = known.pending.take() else {
        return;
    };
    for (key, value) in &pending {
        let newest = RangeRequest {
            key: key.clone().into(),
            ..Default::default()
        };
        let newest = kv.range(newest).await.expect(story).into_inner();
        let found = newest.kvs.first();
        let before = known.answered.get(key).map(|(revision, _)| *revision);
        match found {
            Some(kv) if kv.value == value.as_bytes() => {
                assert!(Some(kv.mod_revision) > before, "{story}: {key}");
                pending_there.push((key.clone(), kv.mod_revision, value.clone()));
            }
            found => assert_eq!(found.map(|kv| kv.mod_revision), before, "{story}: {key}"),
        }
    }
    assert!(
        pending_there.is_empty() || pending_there.len() == pending.len(),
        "{story}: half a txn"
    );
    for (key, revision, value) in pending_there {
        known.answered.insert(key, (revision, value));
    }
}

fn check(binary: &Path, data_dir: &Path, story: &str) {
    let output = Command::new(binary)
        .arg("check")
        .arg(format!("--data-dir={}", data_dir.display()))
        .output()
        .expect("the binary runs");
    assert!(
        output.status.success(),
        "{story}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_killed_server_keeps_every_answer() {
    let rounds: u64 = number_from("METASTORE_KILL_ROUNDS", 3);
    let seed = number_from("SEED", 1);
    println!("SEED={seed} METASTORE_KILL_ROUNDS={rounds}");
    let mut random = SplitMix(seed);
    let binary = Path::new(env!("CARGO_BIN_EXE_metastore"));
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let data_dir = dir.path().join("data");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let mut all = vec![Known::default(); CLIENTS as usize];
    for round in 0..=rounds {
        let story = format!("SEED={seed}, round {round}");
        let mut server = Server::start(binary, &data_dir, &FLAGS);
        runtime.block_on(async {
            for known in &mut all {
                verify(&server, known, &story).await;
            }
        });
        if round == rounds {
            break;
        }
        let terminates = round % 3 == 2;
        let millis = 20 + random.below(400);
        let seeds: Vec<u64> = all.iter().map(|_| random.draw()).collect();
        all = runtime.block_on(async {
            let mut writing = Vec::new();
            for ((client, known), seed) in (0..).zip(all).zip(seeds) {
                let channel = server.channel();
                writing.push(tokio::spawn(write(channel, client, known, SplitMix(seed))));
            }
            let defragmenting = tokio::spawn(defragment(server.channel()));
            tokio::time::sleep(Duration::from_millis(millis)).await;
            if terminates {
                server.terminate();
            } else {
                server.kill();
            }
            let mut all = Vec::new();
            for writing in writing {
                all.push(writing.await.expect("writing does not panic"));
            }
            defragmenting
                .await
                .expect("it is answered, or the server gone");
            all
        });
        server.wait();
        check(binary, &data_dir, &story);
    }
    let answered: usize = all.iter().map(|known| known.answered.len()).sum();
    assert!(answered > 0, "something was answered");
    let sent: u64 = all.iter().map(|known| known.sent).sum();
    println!("{sent} writes");
}

fn number_from(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => default,
    }
}
