//! The server: starts each part in order, and stops it in order. It decides nothing.
//!
//! ```text
//! listeners bound ─► data folder taken ─► store opened ─► network threads ─► ready
//! signal ─► connections drained ─► store settled ─► end
//! ```
//! The first network thread is the caller's; each has a runtime of its own.

pub mod check;
pub mod connection;
pub mod data_dir;
pub mod dispatch;
pub mod import;
pub mod logging;
pub mod tools;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::connection::{Bound, Serving, bind};
use self::data_dir::DataDir;
use self::dispatch::Services;
use crate::auth;
use crate::clock::Clock;
use crate::config::{Config, Refusal, Retention};
use crate::engine::compactor::Policy;
use crate::engine::{
    Compaction, Engine, LONG_READ_THREADS, Pace, READ_THREADS, WATCH_THREADS, replies,
};
use crate::grpc::Context;
use crate::lease::Timing;
use crate::snapshot::{load, restore, wal};
use crate::storage;
use crate::storage::store::{Identity, Settings};

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flags do not fit what there is.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A listener could not be had.
    #[error("cannot listen on {url}: {cause}")]
    Listen {
        /// As given.
        url: String,
        /// Why.
        cause: io::Error,
    },
    /// A folder could not be had.
    #[error("cannot use {}: {cause}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another process has the folder.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The folder holds files that we did not put there.
    #[error(
        "{} is not a data directory of MetaStore: it holds {}",
        path.display(),
        found.display()
    )]
    ForeignFolder {
        /// Which.
        path: PathBuf,
        /// One of the files.
        found: PathBuf,
    },
    /// A new store would go where something is.
    #[error("{} is not empty: nothing is overwritten, so choose another", path.display())]
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be read as etcd's.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: load::Error,
    },
    /// The log of an etcd cannot be read.
    #[error(
        "cannot import: {0}; start etcd on it once more, which repairs what can be, and stop it, or restore a snapshot"
    )]
    EtcdsLog(#[from] wal::Error),
    /// Data of an etcd cannot be taken over.
    #[error("cannot import {}: {cause}", path.display())]
    Import {
        /// The database.
        path: PathBuf,
        /// Why.
        cause: restore::Error,
    },
    /// The etcd is still running.
    #[error("cannot import {}: an etcd has it open; stop that first", path.display())]
    EtcdRuns {
        /// The data folder.
        path: PathBuf,
    },
    /// The etcd is one of several members.
    #[error(
        "cannot import {}: it is that of one of {members} members, and others may know more; take a snapshot of the \
         cluster with etcdctl and import that file",
        path.display()
    )]
    SeveralMembers {
        /// The data folder.
        path: PathBuf,
        /// How many.
        members: usize,
    },
    /// Authentication is on.
    #[error(
        "{}: authentication is on, and cannot be served yet: without it everybody could read and write all; \
         metastore export takes the data out",
        path.display()
    )]
    AuthIsOn {
        /// The data folder.
        path: PathBuf,
    },
    /// A snapshot could not be saved.
    #[error("cannot save {}: {why}", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is nothing to check.
    #[error("{} holds no store", path.display())]
    NoStore {
        /// Which.
        path: PathBuf,
    },
    /// The check has found something.
    #[error("{} is damaged: {finding}", path.display())]
    Unsound {
        /// The data folder.
        path: PathBuf,
        /// What.
        finding: storage::check::Finding,
    },
    /// The store could not be opened, or has failed.
    #[error("{}: {cause}", path.display())]
    Store {
        /// The data folder.
        path: PathBuf,
        /// Why.
        cause: storage::Error,
    },
    /// The disk failed while the server ran.
    #[error("the store has failed: {0}")]
    Failed(String),
    /// The runtime could not be made.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// Reflection could not read our own descriptors.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// How a server ended that was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By SIGTERM.
    Terminated,
    /// By SIGINT.
    Interrupted,
}

/// Serves until a signal ends it. Blocks.
pub fn run(config: &Config) -> Result<Ended, Error> {
    for notice in &config.notices {
        info!("{notice}");
    }
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let ours = config
        .listen_client_urls
        .iter()
        .map(bind)
        .collect::<Result<Vec<_>, _>>()?;
    let mut listeners = Vec::new();
    for _ in 1..config.network_threads {
        let mut shared = Vec::new();
        for bound in &ours {
            shared.extend(bound.share()?);
        }
        listeners.push(shared);
    }
    listeners.insert(0, ours);
    if !data_dir::has_store(&config.data_dir) {
        if import::is_etcds(&config.data_dir) {
            import::take_over(config)?;
        } else {
            config.check_bootstrap()?;
        }
    }
    let folders = DataDir::open(&config.data_dir, config.wal_dir.as_deref())?;
    let engine = Arc::new(open_engine(config, &folders)?);
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(config, Arc::clone(&engine), listeners));
    // Reads that still run on threads of their own have nobody to answer to.
    runtime.shutdown_background();
    info!("closing the store");
    engine.stop();
    info!("closed the store");
    ended
}

fn open_engine(config: &Config, folders: &DataDir) -> Result<Engine, Error> {
    let settings = Settings {
        data: Arc::clone(&folders.data),
        log: Arc::clone(&folders.log),
        cache_bytes: config.cache_bytes as usize,
        flush_bytes: config.flush_bytes as usize,
        segment_bytes: config.log_segment_bytes,
        reserve_bytes: config.disk_reserve_bytes,
        quota_bytes: config.quota_bytes(),
    };
    let identity = Identity {
        cluster_id: config.cluster_id(),
        member_id: config.member_id(),
        peer_urls: config.initial_advertise_peer_urls.clone(),
    };
    let begun = Clock::System.monotonic_millis();
    let timing = Timing::new(config.election_timeout, config.heartbeat_interval);
    let compaction = Compaction {
        policy: config.auto_compaction.map(|retention| match retention {
            Retention::Period(period) => Policy::Period(period),
            Retention::Revisions(revisions) => Policy::Revisions(revisions),
        }),
        pace: Pace {
            rows: config.sweep_rows,
            rest: config.sweep_rest,
        },
    };
    let engine = Engine::open(&settings, identity, timing, compaction, Clock::System);
    let engine = engine.map_err(|cause| Error::Store {
        path: config.data_dir.clone(),
        cause,
    })?;
    if auth::is_on(&engine.view().small) {
        engine.stop();
        let path = config.data_dir.clone();
        return Err(Error::AuthIsOn { path });
    }
    let took_millis = Clock::System.monotonic_millis() - begun;
    let revision = engine.view().revision;
    info!(took_millis, revision, "opened the store");
    Ok(engine)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(READ_THREADS + WATCH_THREADS + LONG_READ_THREADS)
        .build()
}

async fn serve(
    config: &Config,
    engine: Arc<Engine>,
    listeners: Vec<Vec<Bound>>,
) -> Result<Ended, Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // As etcd, these do not end us.
    let _ignored = [
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
    ];
    let (stop, stopping) = watch::channel(false);
    let context = Arc::new(Context {
        engine: Arc::clone(&engine),
        txn_ops_max: config.max_txn_ops,
        request_bytes_max: config.max_request_bytes,
        quota_bytes: config.quota_reported(),
        name: config.name.clone(),
        client_urls: config.advertise_client_urls.clone(),
        stopping: stopping.clone(),
    });
    let services = || Services::new(Arc::clone(&context), config.watch_progress_interval);
    let serving = Serving {
        services: services().await?,
        streams_max: Some(config.max_concurrent_streams).filter(|max| *max != u32::MAX),
        stopping,
        connections: TaskTracker::new(),
    };
    let mut threads = Vec::new();
    let mut listeners = listeners.into_iter();
    let ours = listeners.next().unwrap_or_default();
    for (number, bound) in listeners.enumerate() {
        let serving = Serving {
            services: services().await?,
            ..serving.clone()
        };
        let runtime = runtime()?;
        let name = format!("network {}", number + 1);
        threads.push(thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(drain(serving, bound));
            runtime.shutdown_background();
        })?);
    }
    let drained = tokio::spawn(drain(serving, ours));
    for url in &config.listen_client_urls {
        info!(
            traffic = "grpc",
            address = url.text,
            "serving client traffic insecurely; this is strongly discouraged!"
        );
    }
    let member_id = format!("{:x}", engine.identity().member_id);
    let cluster_id = format!("{:x}", engine.identity().cluster_id);
    info!(member_id, cluster_id, "ready to serve client requests");
    let ended = tokio::select! {
        _ = terminate.recv() => Ended::Terminated,
        _ = interrupt.recv() => Ended::Interrupted,
        reason = engine.failed() => return Err(Error::Failed(reason)),
    };
    info!(signal = ?ended, "received signal; shutting down");
    stop.send_replace(true);
    // As in etcd: calls under way get this long to end.
    let patience = Duration::from_secs(5) + 2 * config.election_timeout;
    let all = async {
        // It only fails if it panicked.
        let _ = drained.await;
        let joined = threads.into_iter().map(|thread| thread.join().is_ok());
        tokio::task::spawn_blocking(move || joined.count()).await
    };
    if tokio::time::timeout(patience, all).await.is_err() {
        warn!("calls are still under way; ending all the same");
    }
    Ok(ended)
}

/// One network thread's work: accepts and serves until the server stops and all calls have ended.
async fn drain(serving: Serving, listeners: Vec<Bound>) {
    let attending = tokio::spawn(replies::attend());
    let watches = Arc::clone(serving.services.watches());
    let watching = tokio::spawn(Arc::clone(&watches).attend());
    let stopped = serving.clone().stopped();
    let ending = tokio::spawn(async move {
        stopped.await;
        // Clients go on elsewhere, or here again, from where they are.
        watches.stop();
    });
    // Counted by thread, so that each waits for its own.
    let serving = Serving {
        connections: TaskTracker::new(),
        ..serving
    };
    let accepting = TaskTracker::new();
    for bound in listeners {
        let serving = serving.clone();
        accepting.spawn(async move {
            if let Err(error) = serving.accept(bound).await {
                warn!(%error, "a listener has ended");
            }
        });
    }
    accepting.close();
    accepting.wait().await;
    serving.connections.close();
    serving.connections.wait().await;
    for task in [attending, watching, ending] {
        task.abort();
    }
}
