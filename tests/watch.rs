//! Watches at their limits: clients that do not read, many watchers, a hub that comes late, wrong requests, the end.
//!
//! All but one test run against the real process.

mod common;

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::Server;
use metastore::clock::Clock;
use metastore::engine::watches::Watches;
use metastore::engine::{Compaction, Engine};
use metastore::lease::Timing;
use metastore::mvcc::request::Put;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::watch_client::WatchClient;
use metastore::proto::etcdserverpb::watch_request::RequestUnion;
use metastore::proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use metastore::proto::mvccpb::KeyValue;
use metastore::storage::disk::sim::SimDisk;
use metastore::storage::key_range::KeyRange;
use metastore::storage::revision::Revision;
use metastore::storage::store::{Identity, Settings};
use metastore::watch::answer::Answer;
use metastore::watch::watcher::{Create, Wants};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt, iter};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Nothing takes that long, unless something is waited for that never comes.
const STUCK: Duration = Duration::from_secs(120);
/// Little memory and small files, so that what grows is seen.
const FLAGS: [&str; 4] = [
    "--flush-size=4MiB",
    "--log-segment-size=4MiB",
    "--disk-reserve=1MiB",
    "--cache-size=4MiB",
];
/// How much a client lets the server send ahead that is going to stop reading.
const SMALL_WINDOW_BYTES: u32 = 64 << 10;
/// More than enough for a stuck client, and much less than what is written meanwhile.
const GROWTH_BYTES_MAX: u64 = 40 << 20;
const WRITERS: usize = 8;
const VALUE_BYTES: usize = 100 << 10;

fn start(dir: &TempDir) -> Server {
    let binary = Path::new(env!("CARGO_BIN_EXE_metastore"));
    Server::start(binary, &dir.path().join("data"), &FLAGS)
}

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be built")
}

/// Runs `test` against a server of its own.
fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Server) -> F) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let server = start(&dir);
    let ended = runtime().block_on(async { timeout(STUCK, test(server)).await });
    ended.expect("what is waited for comes");
}

/// A channel over which little is sent ahead.
fn narrow_channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.endpoint.clone());
    let endpoint = endpoint.expect("the endpoint is a URL");
    endpoint
        .initial_stream_window_size(SMALL_WINDOW_BYTES)
        .initial_connection_window_size(SMALL_WINDOW_BYTES)
        .connect_lazy()
}

fn create(create: WatchCreateRequest) -> WatchRequest {
    let request_union = Some(RequestUnion::CreateRequest(create));
    WatchRequest { request_union }
}

/// All keys.
fn everything() -> WatchCreateRequest {
    WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    }
}

async fn open(
    channel: Channel,
    requests: impl Stream<Item = WatchRequest> + Send + 'static,
) -> Streaming<WatchResponse> {
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let opened = client.watch(Request::new(requests)).await;
    opened.expect("a stream opens").into_inner()
}

/// An open stream, to be kept open, and one watcher, which is there.
async fn watch(
    channel: Channel,
    request: WatchCreateRequest,
) -> (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>) {
    let (requests, sent) = mpsc::channel(1);
    requests
        .send(create(request))
        .await
        .expect("there is room for one");
    let mut answers = open(channel, ReceiverStream::new(sent)).await;
    assert!(next(&mut answers).await.created);
    (requests, answers)
}

async fn next(answers: &mut Streaming<WatchResponse>) -> WatchResponse {
    let answer = answers.message().await.expect("the stream goes on");
    answer.expect("the stream does not end")
}

/// The next `count` events, which are puts, as revision and value.
async fn hear(answers: &mut Streaming<WatchResponse>, count: usize) -> Vec<(i64, Bytes)> {
    let mut heard = Vec::new();
    while heard.len() < count {
        for event in next(answers).await.events {
            let kv = event.kv.expect("an event has a pair");
            heard.push((kv.mod_revision, kv.value));
        }
    }
    assert_eq!(heard.len(), count);
    heard
}

async fn put(kv: &mut KvClient<Channel>, key: impl Into<Bytes>, value: Bytes) -> i64 {
    let put = PutRequest {
        key: key.into(),
        value,
        ..Default::default()
    };
    let answer = kv.put(put).await.expect("a put is answered").into_inner();
    answer.header.expect("an answer has a header").revision
}

/// Memory of the server's process.
fn resident_bytes(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.and_then(|kib| kib.parse().ok()).expect("it has memory");
    kib << 10
}

/// Writes `puts` values of 100 KiB with each of several writers.
async fn write_much(server: &Server, puts: usize) {
    let mut writing = Vec::new();
    for writer in 0..WRITERS {
        let mut kv = KvClient::new(server.channel());
        writing.push(tokio::spawn(async move {
            for number in 0..puts {
                let value = format!("{writer:2} {number:3} {}", ".".repeat(VALUE_BYTES));
                put(&mut kv, format!("{writer} {}", number % 10), value.into()).await;
            }
        }));
    }
    for writing in writing {
        writing.await.expect("a writer does not panic");
    }
}

/// A client that does not read holds up neither who writes nor who else watches, and costs little memory. When it reads
/// on, it has lost nothing.
#[test]
fn a_stuck_client_holds_up_nobody_and_loses_nothing() {
    /// Until memory is as full as it gets, and while clients are stuck.
    const PUTS: [usize; 2] = [40, 80];
    /// By so much a value is known.
    const HEAD_BYTES: usize = 6;
    with_server(|server| async move {
        write_much(&server, PUTS[0]).await;
        let before = resident_bytes(&server);
        let mut stuck = Vec::new();
        for _ in 0..3 {
            let request = WatchCreateRequest {
                prev_kv: true,
                ..everything()
            };
            stuck.push(watch(narrow_channel(&server), request).await);
        }
        let (_requests, mut healthy) = watch(server.channel(), everything()).await;
        let first = 2 + (WRITERS * PUTS[0]) as i64;
        let all = WRITERS * PUTS[1];
        let hearing = tokio::spawn(async move {
            let mut heads = Vec::new();
            for (place, (revision, value)) in (first..).zip(hear(&mut healthy, all).await) {
                assert_eq!(revision, place);
                heads.push(Bytes::copy_from_slice(&value[..HEAD_BYTES]));
            }
            heads
        });
        write_much(&server, PUTS[1]).await;
        let heads = hearing.await.expect("it hears all");
        let growth = resident_bytes(&server).saturating_sub(before);
        println!(
            "{} MiB written, {} KiB more in memory",
            (all * VALUE_BYTES) >> 20,
            growth >> 10
        );
        assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more in memory");
        let (_requests, answers) = &mut stuck[0];
        let mut place = 0;
        while place < all {
            for event in next(answers).await.events {
                let kv = event.kv.expect("an event has a pair");
                assert_eq!(kv.mod_revision, first + place as i64);
                assert_eq!(kv.value[..HEAD_BYTES], heads[place]);
                let prev = event.prev_kv.map(|prev| prev.version);
                assert_eq!(prev.unwrap_or(0), kv.version - 1);
                place += 1;
            }
        }
    });
}

/// A flush may come by before the hub does: then a watcher reads what it missed from the tables, though nobody asks for
/// anything any more. In this process, so that the hub is late for certain.
#[test]
fn a_watcher_that_a_flush_overtakes_hears_on() {
    let disk = SimDisk::new();
    let settings = Settings {
        data: disk.folder("data"),
        log: disk.folder("log"),
        cache_bytes: 1 << 20,
        flush_bytes: 1 << 20,
        segment_bytes: 1 << 20,
        reserve_bytes: 1 << 20,
        quota_bytes: None,
    };
    let clock = Clock::Manual(Arc::new(AtomicU64::new(1_000_000)));
    let identity = Identity {
        cluster_id: 1,
        member_id: 2,
        peer_urls: vec!["http://localhost:2380".to_owned()],
    };
    let engine = Engine::open(
        &settings,
        identity,
        Timing::default(),
        Compaction::default(),
        clock,
    );
    let engine = Arc::new(engine.expect("there is room"));
    let watches = Arc::new(Watches::new(Arc::clone(&engine), usize::MAX));
    let stream = watches.open();
    let next_answer = || poll_fn(|context| stream.poll_answer(context));
    let hear = async {
        let attending = tokio::spawn(Arc::clone(&watches).attend());
        stream.create(Create {
            id: 0,
            range: KeyRange::from_wire("key".into(), Bytes::new()),
            start: 0,
            wants: Wants::default(),
            fragment: false,
            progress_notify: false,
        });
        let created = next_answer().await;
        assert!(matches!(created, Ok(Answer::Created { .. })), "{created:?}");
        // Once it has handed on a put, the hub's task rests.
        write(&engine).await;
        let live = next_answer().await;
        assert!(
            matches!(live, Ok(Answer::Events { revision: 2, .. })),
            "{live:?}"
        );
        // While this thread waits, the hub does not get a turn.
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                runtime().block_on(async {
                    write(&engine).await;
                    // Answered once all before it is in the tables.
                    engine.compact(3, true).await.expect("there is room");
                });
            });
            writing.join().expect("writing does not panic");
        });
        let missed = Revision { main: 3, sub: 0 };
        assert!(!engine.view().is_recent(missed), "it is in the tables");
        let heard = next_answer().await;
        attending.abort();
        heard
    };
    let heard = runtime().block_on(async { timeout(STUCK, hear).await });
    let heard = heard.expect("it hears of the put");
    assert!(
        matches!(heard, Ok(Answer::Events { revision: 3, .. })),
        "{heard:?}"
    );
    drop(stream);
    engine.stop();
}

async fn write(engine: &Engine) {
    let put = Put {
        key: "key".into(),
        value: Bytes::new(),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    engine.put(put).await.expect("there is room");
}

/// Watchers of one stream, half of them from the beginning, half from now on.
#[test]
fn each_of_five_hundred_watchers_of_a_stream_hears_all() {
    const WATCHERS: usize = 500;
    const PUTS: usize = 50;
    with_server(|server| async move {
        let mut kv = KvClient::new(server.channel());
        for number in 0..PUTS {
            put(&mut kv, format!("{number}"), Bytes::new()).await;
        }
        let (requests, sent) = mpsc::channel(WATCHERS);
        let mut answers = open(server.channel(), ReceiverStream::new(sent)).await;
        for number in 0..WATCHERS {
            let start_revision = (number % 2) as i64;
            let request = WatchCreateRequest {
                start_revision,
                ..everything()
            };
            requests
                .send(create(request))
                .await
                .expect("the stream is open");
        }
        let mut next_of: Vec<i64> = Vec::new();
        let last = 1 + 2 * PUTS as i64;
        let mut written = false;
        while !written || next_of.iter().any(|next| *next <= last) {
            let answer = next(&mut answers).await;
            if answer.created {
                assert_eq!(answer.watch_id, next_of.len() as i64);
                let present = answer.header.expect("an answer has a header").revision + 1;
                next_of.push(if next_of.len() % 2 == 1 { 2 } else { present });
            }
            let next = &mut next_of[answer.watch_id as usize];
            for event in answer.events {
                assert_eq!(event.kv.expect("an event has a pair").mod_revision, *next);
                *next += 1;
            }
            if !written && next_of.len() == WATCHERS {
                for number in 0..PUTS {
                    put(&mut kv, format!("{number}"), Bytes::new()).await;
                }
                written = true;
            }
        }
    });
}

/// The process ends though streams are open, and tells them so.
#[test]
fn a_stop_ends_streams() {
    with_server(|mut server| async move {
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(watch(server.channel(), everything()).await);
        }
        server.terminate();
        for (_requests, answers) in &mut streams {
            let ended = answers.message().await.expect_err("the stream ends");
            assert_eq!(ended.code(), Code::Unavailable);
            assert_eq!(ended.message(), "etcdserver: server stopped");
        }
        // The clients keep their connections and their halves of the streams.
        assert!(server.wait().code().is_none(), "it ends by the signal");
        let log = server.log_tail();
        assert!(log.contains("closed the store"), "{log}");
        assert!(!log.contains("still under way"), "{log}");
        drop(streams);
    });
}

/// Behind what was heard before.
#[test]
fn what_is_no_request_ends_the_stream() {
    with_server(|server| async move {
        let mut grpc = tonic::client::Grpc::new(server.channel());
        grpc.ready().await.expect("the server is there");
        // As a request it would be one to create, of which these bytes are no encoding.
        let key = Bytes::from_static(b"\xff\xff");
        let wrong = KeyValue {
            key,
            ..Default::default()
        };
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::<KeyValue, WatchResponse>::default();
        let opened = grpc
            .streaming(Request::new(iter([wrong])), path, codec)
            .await;
        let ended = match opened {
            Ok(answers) => answers.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(
            ended.map_err(|status: Status| status.code()),
            Err(Code::Internal)
        );
    });
}

#[test]
fn a_half_closed_stream_goes_on_hearing() {
    with_server(|server| async move {
        let mut answers = open(server.channel(), iter([create(everything())])).await;
        assert!(next(&mut answers).await.created);
        let mut kv = KvClient::new(server.channel());
        for number in 0..3 {
            let revision = put(&mut kv, "key", format!("{number}").into()).await;
            let heard = hear(&mut answers, 1).await;
            assert_eq!(heard, [(revision, format!("{number}").into())]);
        }
    });
}

/// Who asks on and on and does not read the answers is not read from. Once it reads, each request has its answer.
#[test]
fn requests_wait_for_a_client_that_does_not_read() {
    const REQUESTS: usize = 40_000;
    with_server(|server| async move {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        // Of one number, so that all but the first are refused.
        let request = create(WatchCreateRequest {
            key: vec![b'k'; 1 << 10].into(),
            watch_id: 7,
            ..Default::default()
        });
        let requests = iter(0..REQUESTS).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            request.clone()
        });
        let before = resident_bytes(&server);
        let mut answers = open(narrow_channel(&server), requests).await;
        // The server goes on with others, and comes no further here.
        let mut kv = KvClient::new(server.channel());
        let mut unmoved = 0;
        while unmoved < 100 {
            let seen = sent.load(Ordering::Relaxed);
            put(&mut kv, "other", Bytes::new()).await;
            unmoved = match sent.load(Ordering::Relaxed) == seen {
                true => unmoved + 1,
                false => 0,
            };
        }
        let taken = sent.load(Ordering::Relaxed);
        assert!(taken < REQUESTS, "all were taken");
        let growth = resident_bytes(&server).saturating_sub(before);
        println!(
            "{taken} requests taken, {} KiB more in memory",
            growth >> 10
        );
        assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more in memory");
        for number in 0..REQUESTS {
            let answer = next(&mut answers).await;
            assert!(answer.created);
            assert_eq!(answer.canceled, number > 0);
        }
    });
}
