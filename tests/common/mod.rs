//! A server as a process of its own: started on a data directory, asked over the wire, killed or stopped.
//!
//! The same function starts MetaStore and etcd, because both take the same flags. It returns once the server
//! answers requests, and a server that is dropped is killed.

#![allow(clippy::disallowed_methods, reason = "tests poll, with a deadline")]
#![allow(dead_code, reason = "each test binary uses its part of this module")]

pub(crate) mod mortal_disk;
pub(crate) mod store;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use metastore::proto::etcdserverpb::RangeRequest;
use metastore::proto::etcdserverpb::StatusRequest;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long a server may take until it answers.
const READY_SECS_MAX: u64 = 30;
/// How often a start is tried again because another process took a port first.
const STARTS_MAX: usize = 8;
/// How long to wait between two looks at a starting server.
const POLL: Duration = Duration::from_millis(10);

/// A running server process with one client listener.
pub(crate) struct Server {
    /// Where clients connect: `http://127.0.0.1:port`.
    pub(crate) endpoint: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `binary` on `data_dir`, which may be missing or hold the data of an earlier server, and waits until it
    /// answers. What the server logs goes to a file beside `data_dir`.
    pub(crate) fn start(binary: &Path, data_dir: &Path, extra_flags: &[&str]) -> Self {
        for _ in 0..STARTS_MAX {
            let mut server = Self::spawn(binary, data_dir, extra_flags);
            match server.wait_until_ready() {
                Ok(()) => return server,
                Err(_) if server.lost_its_port() => {}
                Err(why) => panic!(
                    "{} {why}; its log:\n{}",
                    binary.display(),
                    server.log_tail()
                ),
            }
        }
        panic!(
            "{} found its ports taken {STARTS_MAX} times",
            binary.display()
        );
    }

    fn spawn(binary: &Path, data_dir: &Path, extra_flags: &[&str]) -> Self {
        let [client, peer] = free_ports();
        let endpoint = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let log = data_dir.with_extension("log");
        let open_log =
            || File::create(&log).expect("the directory of the data directory is writable");
        let child = Command::new(binary)
            .arg(format!("--data-dir={}", data_dir.display()))
            .arg(format!("--listen-client-urls={endpoint}"))
            .arg(format!("--advertise-client-urls={endpoint}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .args(extra_flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(open_log())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", binary.display()));
        Self {
            endpoint,
            child,
            log,
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(READY_SECS_MAX);
        while Instant::now() < deadline {
            if let Some(status) = self
                .child
                .try_wait()
                .expect("our own child can be waited for")
            {
                return Err(format!("ended before it was ready: {status}"));
            }
            if answers(&self.endpoint) {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        Err(format!("was not ready after {READY_SECS_MAX} s"))
    }

    fn lost_its_port(&self) -> bool {
        self.log_tail()
            .to_lowercase()
            .contains("address already in use")
    }

    /// The last of what it logged.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned()
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A channel to the server, connected at its first request.
    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(self.endpoint.clone())
            .expect("the endpoint is a URL")
            .connect_lazy()
    }

    /// Ends the process at once, as `kill -9` does, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.wait();
    }

    /// Asks the process to end, as `kill -TERM` does.
    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a process id is a positive i32");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("our own child can be signalled");
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("our own child can be waited for")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that were free a moment ago; the start is tried again if another process takes one meanwhile.
fn free_ports() -> [u16; 2] {
    let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    listeners.map(|listener| {
        listener
            .local_addr()
            .expect("a bound listener has an address")
            .port()
    })
}

/// Whether the server answers, be it with a refusal. Asked on a thread of its own, so that the caller may be async.
fn answers(endpoint: &str) -> bool {
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .expect("a runtime can be built")
                .block_on(ask(endpoint))
        });
        asking.join().expect("asking does not panic")
    })
}

async fn ask(endpoint: &str) -> bool {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("the endpoint is a URL");
    let Ok(channel) = endpoint.timeout(Duration::from_secs(10)).connect().await else {
        return false;
    };
    let status = MaintenanceClient::new(channel.clone())
        .status(StatusRequest {})
        .await;
    // A linearizable read also waits until a one-node cluster has elected itself.
    let read = RangeRequest {
        key: "0".into(),
        count_only: true,
        ..Default::default()
    };
    is_answer(status) && is_answer(KvClient::new(channel).range(read).await)
}

fn is_answer<T>(result: Result<T, Status>) -> bool {
    match result {
        Ok(_) => true,
        Err(status) => !matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        ),
    }
}
