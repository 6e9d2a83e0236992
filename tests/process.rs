//! The process as an operator meets it: how it starts, refuses to start, and ends.

mod common;

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use common::Server;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::lease_client::LeaseClient;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, StatusRequest,
};
use metastore::proto::v3lockpb::UnlockRequest;
use metastore::proto::v3lockpb::lock_client::LockClient;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const BINARY: &str = env!("CARGO_BIN_EXE_metastore");

/// Small files, so that a start is cheap.
const SMALL: [&str; 2] = ["--log-segment-size=1MiB", "--disk-reserve=1MiB"];

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .env_clear()
        .output()
        .expect("the binary runs")
}

/// The one line on stderr of a start that was refused, without the log's lines before it.
fn refused(args: &[&str], code: i32) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "nothing on stdout");
    let mut lines = stderr.lines().filter(|line| !line.starts_with('{'));
    let line = lines.next().expect("a reason").to_owned();
    assert_eq!(lines.next(), None, "one line says why");
    line
}

fn start(folder: &TempDir) -> Server {
    Server::start(Path::new(BINARY), &folder.path().join("data"), &SMALL)
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

fn put(runtime: &Runtime, server: &Server, key: &str) -> i64 {
    let request = PutRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    let answer = runtime.block_on(async { KvClient::new(server.channel()).put(request).await });
    answer
        .expect("a put")
        .into_inner()
        .header
        .expect("a header")
        .revision
}

#[test]
fn the_version_comes_first() {
    let output = run(&["--version"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success());
    assert_eq!(text.lines().next(), Some("etcd Version: 3.7.3"));
    let ours = format!("MetaStore Version: {}", env!("CARGO_PKG_VERSION"));
    assert!(text.lines().any(|line| line == ours), "{text}");
}

#[test]
fn what_does_not_parse_is_refused_with_one_line() {
    assert!(refused(&["--foo"], 2).contains("flag provided but not defined: -foo"));
    let url = ["--listen-client-urls", "localhost:2379"];
    assert!(refused(&url, 2).contains("URL scheme must be http"));
    assert!(refused(&["--cert-file=x"], 1).contains("not supported yet"));
}

/// A keep-alive stream has no end of its own: a stop ends it, and need not wait for it.
#[test]
fn a_stop_ends_keep_alive_streams() {
    let folder = TempDir::new().expect("a folder");
    let mut server = start(&folder);
    let runtime = runtime();
    let status = runtime.block_on(async {
        let mut leases = LeaseClient::new(server.channel());
        let grant = LeaseGrantRequest { id: 1, ttl: 60 };
        leases.lease_grant(grant).await.expect("a lease");
        let (requests, sent) = tokio::sync::mpsc::channel(1);
        let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
        let answers = leases.lease_keep_alive(sent).await.expect("a stream");
        let mut answers = answers.into_inner();
        let keep = LeaseKeepAliveRequest { id: 1 };
        requests.send(keep).await.expect("the stream is open");
        let answer = answers.message().await.expect("an answer").expect("one");
        assert_eq!((answer.id, answer.ttl), (1, 60));
        server.terminate();
        answers.message().await.expect_err("the server has stopped")
    });
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "etcdserver: server stopped");
    assert_eq!(server.wait().signal(), Some(15));
}

#[test]
fn an_occupied_port_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let data = folder.path().join("data");
    let line = refused(
        &[
            &format!("--data-dir={}", data.display()),
            &format!("--listen-client-urls={url}"),
            &format!("--advertise-client-urls={url}"),
        ],
        1,
    );
    assert!(
        line.contains(&url) && line.to_lowercase().contains("in use"),
        "{line}"
    );
    assert!(!data.exists(), "nothing was made");
}

/// Starts on `folder`, with whatever port is free, and expects a refusal.
fn refused_folder(folder: &Path) -> String {
    let url = "http://127.0.0.1:0";
    refused(
        &[
            &format!("--data-dir={}", folder.display()),
            &format!("--listen-client-urls={url}"),
            &format!("--advertise-client-urls={url}"),
        ],
        1,
    )
}

#[test]
fn a_folder_in_use_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let _server = start(&folder);
    let line = refused_folder(&folder.path().join("data"));
    assert!(line.contains("in use by another process"), "{line}");
}

#[test]
fn a_folder_of_others_is_refused_and_left_alone() {
    let folder = TempDir::new().expect("a folder");
    fs::write(folder.path().join("letter.txt"), "dear").expect("a file");
    let line = refused_folder(folder.path());
    assert!(line.contains("letter.txt"), "{line}");
    assert_eq!(fs::read_dir(folder.path()).expect("its files").count(), 1);
}

#[test]
fn a_damaged_etcd_is_refused_and_left_alone() {
    let folder = TempDir::new().expect("a folder");
    let snap = folder.path().join("member/snap");
    fs::create_dir_all(&snap).expect("a folder");
    fs::write(snap.join("db"), [7; 100_000]).expect("a file");
    let line = refused_folder(folder.path());
    assert!(line.contains("member/snap/db"), "{line}");
    assert!(line.contains("not a bbolt file"), "{line}");
    assert_eq!(fs::read_dir(folder.path()).expect("its files").count(), 1);
}

#[test]
fn what_is_no_database_is_refused() {
    let folder = TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("metastore")).expect("a folder");
    for content in [&b"not a database"[..], &[0; 100_000], &[0xff; 100_000]] {
        fs::write(folder.path().join("metastore/data.redb"), content).expect("a file");
        let line = refused_folder(folder.path());
        assert!(line.contains("data"), "{line}");
    }
}

#[test]
fn a_lost_log_is_refused() {
    let folder = TempDir::new().expect("a folder");
    start(&folder).kill();
    let data = folder.path().join("data");
    fs::remove_dir_all(data.join("metastore/log")).expect("the log");
    assert!(
        refused_folder(&data).contains("log"),
        "its absence is named"
    );
    // Nor is a snapshot made of what is left.
    fs::remove_dir_all(data.join("metastore/log")).expect("the log");
    let file = folder.path().join("snapshot.db");
    let flag = format!("--data-dir={}", data.display());
    let line = refused(&["export", &file.display().to_string(), &flag], 1);
    assert!(line.contains("log's files are missing"), "{line}");
    assert!(!file.exists(), "nothing was made");
}

#[test]
fn a_snapshot_is_its_owners_alone() {
    let folder = TempDir::new().expect("a folder");
    let server = start(&folder);
    let file = folder.path().join("snapshot.db");
    // What an earlier try has left.
    let part = folder.path().join("snapshot.db.part");
    fs::write(&part, "another's").expect("a file");
    fs::set_permissions(&part, Permissions::from_mode(0o644)).expect("it is ours");
    let endpoints = format!("--endpoints={}", server.endpoint);
    let name = file.display().to_string();
    assert!(
        run(&["snapshot", "save", &name, &endpoints])
            .status
            .success()
    );
    let mode = fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!part.exists());
}

/// It is not read to its end first, which takes hours.
#[test]
fn what_is_no_snapshot_is_refused_at_once() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("snapshot.db");
    let hole = fs::File::create(&file).expect("a file");
    // As long as one that has a checksum at its end.
    hole.set_len((1 << 42) + 32).expect("a file of a hole");
    let flag = format!("--data-dir={}", folder.path().join("data").display());
    let line = refused(
        &["snapshot", "restore", &file.display().to_string(), &flag],
        1,
    );
    assert!(line.contains("not a bbolt file"), "{line}");
    assert!(!folder.path().join("data").exists(), "nothing was made");
}

#[test]
fn a_server_that_is_not_there_is_named_with_the_reason() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("snapshot.db").display().to_string();
    let line = refused(&["snapshot", "save", &file, "--endpoints=127.0.0.1:1"], 1);
    assert!(line.contains("http://127.0.0.1:1: "), "{line}");
    assert!(line.contains("Connection refused"), "{line}");
    // It takes the connection, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    let endpoints = format!("--endpoints={address}");
    let line = refused(&["snapshot", "save", &file, &endpoints], 1);
    assert!(line.contains("timed out"), "{line}");
    assert_eq!(fs::read_dir(folder.path()).expect("it").count(), 0);
}

#[test]
fn sigterm_settles_everything_and_the_check_passes() {
    let folder = TempDir::new().expect("a folder");
    let runtime = runtime();
    let mut server = start(&folder);
    assert_eq!(put(&runtime, &server, "a"), 2);
    server.terminate();
    assert_eq!(
        server.wait().signal(),
        Some(15),
        "it dies of the signal, as etcd does"
    );
    let data = format!("--data-dir={}", folder.path().join("data").display());
    let check = run(&["check", &data]);
    let report = String::from_utf8(check.stdout).expect("text");
    assert!(check.status.success(), "{report}");
    assert!(report.contains("changes in the log       0"), "{report}");

    let server = start(&folder);
    assert_eq!(put(&runtime, &server, "b"), 3, "revisions go on");
}

#[test]
fn the_check_names_what_is_wrong() {
    let folder = TempDir::new().expect("a folder");
    let data = folder.path().join("data");
    let flag = format!("--data-dir={}", data.display());
    assert!(refused(&["check", &flag], 1).contains("holds no store"));

    let runtime = runtime();
    let mut server = start(&folder);
    for key in ["a", "b", "c"] {
        put(&runtime, &server, key);
    }
    server.kill();
    let check = run(&["check", &flag]);
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stderr)
    );
    // One bit of the first batch.
    let log = data.join("metastore/log/0000000000000001.log");
    let mut bytes = fs::read(&log).expect("the segment");
    bytes[32 + 24] ^= 1;
    fs::write(&log, bytes).expect("written");
    let line = refused(&["check", &flag], 1);
    assert!(line.contains("0000000000000001.log at byte 32"), "{line}");
}

#[test]
fn what_is_common_to_all_services() {
    let folder = TempDir::new().expect("a folder");
    let server = start(&folder);
    runtime().block_on(async {
        let mut health = HealthClient::new(server.channel());
        let serving = health
            .check(HealthCheckRequest::default())
            .await
            .expect("an answer");
        assert_eq!(serving.into_inner().status, 1);

        let status = MaintenanceClient::new(server.channel())
            .status(StatusRequest {})
            .await;
        let status = status.expect("an answer").into_inner();
        assert_eq!(status.version, "3.7.3");
        assert!(status.db_size > 0 && status.db_size < 13 * 4096 - 320);
        assert!(status.raft_term >= 2 && status.raft_index > 0);

        let mut locks = LockClient::new(server.channel());
        let unlock = locks.unlock(UnlockRequest::default());
        assert_eq!(
            unlock.await.expect_err("not built").code(),
            Code::Unimplemented
        );

        let mut reflection = ServerReflectionClient::new(server.channel());
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = reflection
            .server_reflection_info(tokio_stream::once(ask))
            .await;
        let mut answers = answers.expect("a stream").into_inner();
        let answer = answers.message().await.expect("an answer").expect("one");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("a list of services");
        };
        let names: Vec<_> = list
            .service
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        for service in [
            "etcdserverpb.KV",
            "etcdserverpb.Watch",
            "v3electionpb.Election",
        ] {
            assert!(names.contains(&service), "{names:?}");
        }
    });
}

#[test]
fn a_socket_file_serves_as_well() {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("kv.sock");
    let url = format!("unix://{}", socket.display());
    let listeners = format!("--listen-client-urls={url}");
    let mut server = Server::start(
        Path::new(BINARY),
        &folder.path().join("data"),
        &[SMALL[0], SMALL[1]],
    );
    server.kill();
    let mut child = Command::new(BINARY)
        .args([SMALL[0], SMALL[1], &listeners])
        .arg(format!("--advertise-client-urls={url}"))
        .arg(format!(
            "--data-dir={}",
            folder.path().join("data").display()
        ))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary runs");
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(child.try_wait().expect("our child").is_none(), "it goes on");
        std::thread::yield_now();
    }
    child.kill().expect("our child");
    child.wait().expect("our child");
}
