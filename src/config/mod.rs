//! etcd's flags, with etcd's defaults, parsed once into exact types.
//!
//! ```text
//! words ─► settings (each value parsed by its kind) ◄─ environment
//!             └─► Config (checked against one another) ─► server
//! ```
//! What holds:
//! - The table in `flags` is the only list of flags: parser, defaults, variables and help read it.
//! - A flag that asks for safety, and that we cannot heed yet, is refused and never ignored.
//! - A refusal is one line, in etcd's words where etcd has words for it.
//!
//! What depends on the data folder is left to the server: see [`Config::check_bootstrap`].

mod bootstrap;
mod checks;
mod flags;
mod help;
pub mod ids;
mod settings;
mod tools;
mod url;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use settings::{Asked, Known, Settings};

pub use tools::{Format, SaveFrom, Tool};
pub use url::{ListenAddress, ListenUrl, peer_urls};

/// The version of etcd that we are in all that a client can see.
pub const ETCD_VERSION: &str = "3.7.3";

/// The version of the cluster: major and minor.
pub const CLUSTER_VERSION: (u64, u64) = (3, 7);

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// To serve.
    Serve(Box<Config>),
    /// To verify the files of a stopped server.
    Check {
        /// The data folder.
        data_dir: PathBuf,
        /// The log's folder, if it is not inside the data folder.
        wal_dir: Option<PathBuf>,
    },
    /// To work on files.
    Tool(Tool),
    /// To print this on stdout, and to end well.
    Print(String),
}

/// Why we do not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One line for stderr.
    pub message: String,
    /// The exit code: 2 for a command line that does not parse, else 1.
    pub code: u8,
}

/// All that the server is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The member's name.
    pub name: String,
    /// Where the store is.
    pub data_dir: PathBuf,
    /// Where the log is, if not inside `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// Where clients are served; at least one, none of them with TLS.
    pub listen_client_urls: Vec<ListenUrl>,
    /// Where clients are told to go; at least one.
    pub advertise_client_urls: Vec<String>,
    /// The peer URLs of MemberList, from which the ids are made; sorted, at least one.
    pub initial_advertise_peer_urls: Vec<String>,
    /// `name=url,…` of this one member.
    pub initial_cluster: String,
    /// Whether an empty data folder may be filled.
    pub initial_cluster_state: ClusterState,
    /// Goes into the ids.
    pub initial_cluster_token: String,
    /// Sets the shortest lease, and how long a stop may take.
    pub election_timeout: Duration,
    /// How often a watcher that asks for it is told how far it has heard.
    pub watch_progress_interval: Duration,
    /// The shortest lease is a whole number of these.
    pub heartbeat_interval: Duration,
    /// The largest request.
    pub max_request_bytes: usize,
    /// The most operations in a txn; 0 refuses every txn.
    pub max_txn_ops: usize,
    /// The most streams on a connection; `u32::MAX` is no limit, and is not sent to clients.
    pub max_concurrent_streams: u32,
    /// As given: 0 is the default of 2 GiB, and below 0 there is no limit.
    pub quota_backend_bytes: i64,
    /// What history is kept when nobody compacts; `None` is all.
    pub auto_compaction: Option<Retention>,
    /// For so many rows that it looks at, at least one, the sweep of a compaction
    pub sweep_rows: u64,
    /// has this rest.
    pub sweep_rest: Duration,
    /// What is logged.
    pub log_level: LogLevel,
    /// As what.
    pub log_format: LogFormat,
    /// And where.
    pub log_output: LogOutput,
    /// Threads that serve connections, at least one.
    pub network_threads: usize,
    /// Memory for pages of the tables.
    pub cache_bytes: u64,
    /// Changes in memory before a flush.
    pub flush_bytes: u64,
    /// The size of one file of the log.
    pub log_segment_bytes: u64,
    /// Disk space held back for a full disk.
    pub disk_reserve_bytes: u64,
    /// For the log, at level warn, once there is one.
    pub warnings: Vec<String>,
    /// For the log, at level info.
    pub notices: Vec<String>,
}

/// What automatic compaction keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// The history of this last time, which is not nothing.
    Period(Duration),
    /// So many of the last revisions, at least one.
    Revisions(u64),
}

/// How an empty data folder is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// As the start of a cluster.
    New,
    /// As a member that joins others, which cannot be.
    Existing,
}

/// The least grave event that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "etcd's names")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    Panic,
    Fatal,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// Columns, parted by tabs.
    Console,
}

/// The place of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogOutput {
    Stderr,
    Stdout,
}

/// The shortest interval between a watcher's progress answers; what is shorter is raised, as in etcd.
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The flags of `metastore check`.
const CHECK: Known = Known(Some(&["name", "data-dir", "wal-dir"]));

const RECOMMENDED_REQUEST_BYTES: u64 = 10 << 20;
/// etcd's quota where none is set.
const QUOTA_BYTES_DEFAULT: i64 = 2 << 30;
const RECOMMENDED_QUOTA_BYTES: i64 = 8 << 30;

/// Parses the words after the program's name, and the environment.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Parsed, Refusal> {
    let words = args.into_iter().map(word).collect::<Result<Vec<_>, _>>()?;
    match words.first().map(String::as_str) {
        Some("check") => return parse_check(&words[1..], env),
        Some("snapshot" | "import" | "export") => return tools::parse(&words),
        Some(command @ ("gateway" | "grpc-proxy")) => {
            return Err(Refusal::new(format!(
                "{command} is not supported: run the proxy of etcd itself"
            )));
        }
        _ => {}
    }
    let Asked::Run(mut settings) = Settings::read(&words, Known(None))? else {
        return Ok(Parsed::Print(help::help(Known(None))));
    };
    refuse_positional(&settings)?;
    if settings.bool("version") {
        return Ok(Parsed::Print(help::version()));
    }
    settings.read_env(variables(env)?)?;
    Ok(Parsed::Serve(Box::new(Config::new(settings)?)))
}

fn parse_check(
    words: &[String],
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Parsed, Refusal> {
    let Asked::Run(mut settings) = Settings::read(words, CHECK)? else {
        return Ok(Parsed::Print(help::help(CHECK)));
    };
    refuse_positional(&settings)?;
    settings.fill_from_env(&variables(env)?, CHECK)?;
    Ok(Parsed::Check {
        data_dir: data_dir(&settings),
        wal_dir: wal_dir(&settings),
    })
}

fn word(arg: OsString) -> Result<String, Refusal> {
    arg.into_string()
        .map_err(|arg| Refusal::syntax(format!("argument is not UTF-8: {}", arg.to_string_lossy())))
}

/// The part of the environment that could be meant for us.
fn variables(
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut ours = BTreeMap::new();
    for (name, value) in env {
        let Some(name) = name
            .to_str()
            .filter(|name| ["ETCD_", "METASTORE_"].iter().any(|p| name.starts_with(p)))
        else {
            continue;
        };
        let value = value
            .into_string()
            .map_err(|_| Refusal::new(format!("{name} is not UTF-8")))?;
        ours.insert(name.to_string(), value);
    }
    Ok(ours)
}

fn refuse_positional(settings: &Settings) -> Result<(), Refusal> {
    match &settings.positional {
        Some(word) => Err(Refusal::new(format!("{word:?} is not a valid flag"))),
        None => Ok(()),
    }
}

impl Refusal {
    /// The values do not do.
    fn new(message: String) -> Refusal {
        Refusal {
            message: one_line(&message),
            code: 1,
        }
    }

    /// The command line does not parse.
    fn syntax(message: String) -> Refusal {
        Refusal {
            message: one_line(&message),
            code: 2,
        }
    }
}

/// What others wrote may hold line ends and worse.
fn one_line(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().collect()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

impl Config {
    /// The id that a new store of this configuration gets. An older store keeps the one it has.
    pub fn member_id(&self) -> u64 {
        ids::member_id(
            &self.initial_advertise_peer_urls,
            &self.initial_cluster_token,
        )
    }

    /// The id of the cluster that a new store of this configuration gets.
    pub fn cluster_id(&self) -> u64 {
        ids::cluster_id(self.member_id())
    }

    fn new(mut settings: Settings) -> Result<Config, Refusal> {
        checks::check_effects(&mut settings)?;
        let s = &settings;
        checks::check_used_alone(s)?;
        checks::check_peer_files(s)?;
        let (log_level, log_format, log_output) = checks::log(s)?;
        checks::check_bindable(s.urls("listen-peer-urls"))?;
        let listen_client_urls = checks::check_bindable(s.urls("listen-client-urls"))?;
        checks::check_tls(s)?;
        let advertise_client_urls = checks::advertised_client_urls(s)?;
        let peer_urls = checks::advertised_peer_urls(s)?;
        checks::check_timing(s)?;
        let auto_compaction = checks::auto_compaction(s)?;
        let (sweep_rows, sweep_rest) = checks::sweep_pace(s)?;

        let name = s.text("name").to_string();
        let initial_cluster = bootstrap::initial_cluster(s, &name, &peer_urls)?;
        let mut config = Config {
            data_dir: data_dir(s),
            wal_dir: wal_dir(s),
            listen_client_urls,
            advertise_client_urls,
            initial_advertise_peer_urls: peer_urls,
            initial_cluster,
            initial_cluster_state: match s.text("initial-cluster-state") {
                "existing" => ClusterState::Existing,
                _ => ClusterState::New,
            },
            initial_cluster_token: s.text("initial-cluster-token").into(),
            election_timeout: Duration::from_millis(s.uint("election-timeout")),
            watch_progress_interval: watch_progress_interval(s),
            heartbeat_interval: Duration::from_millis(s.uint("heartbeat-interval")),
            max_request_bytes: usize::try_from(s.uint("max-request-bytes")).unwrap_or(usize::MAX),
            max_txn_ops: usize::try_from(s.uint("max-txn-ops")).unwrap_or(usize::MAX),
            max_concurrent_streams: u32::try_from(s.uint("max-concurrent-streams"))
                .unwrap_or(u32::MAX),
            quota_backend_bytes: s.int("quota-backend-bytes"),
            auto_compaction,
            sweep_rows,
            sweep_rest,
            log_level,
            log_format,
            log_output,
            network_threads: usize::try_from(s.uint("network-threads")).unwrap_or(1),
            cache_bytes: s.uint("cache-size"),
            flush_bytes: s.uint("flush-size"),
            log_segment_bytes: s.uint("log-segment-size"),
            disk_reserve_bytes: s.uint("disk-reserve"),
            warnings: settings.warnings,
            notices: settings.notices,
            name,
        };
        config.warn_of_unwise_values();
        Ok(config)
    }

    /// The quota as Status shows it.
    pub fn quota_reported(&self) -> i64 {
        match self.quota_backend_bytes {
            0 => QUOTA_BYTES_DEFAULT,
            set => set,
        }
    }

    /// The quota in force; `None` is no limit.
    pub fn quota_bytes(&self) -> Option<u64> {
        u64::try_from(self.quota_reported()).ok()
    }

    fn warn_of_unwise_values(&mut self) {
        if self.name == "default" {
            self.warnings.push(
                "it isn't recommended to use default name, please set a value for --name".into(),
            );
        }
        if self.max_request_bytes as u64 > RECOMMENDED_REQUEST_BYTES {
            self.warnings.push(
                "exceeded recommended request limit: --max-request-bytes is above 10 MiB".into(),
            );
        }
        if self.quota_backend_bytes > RECOMMENDED_QUOTA_BYTES {
            self.warnings.push(
                "quota exceeds the maximum value: --quota-backend-bytes is above 8 GiB".into(),
            );
        }
    }
}

fn data_dir(s: &Settings) -> PathBuf {
    match s.text("data-dir") {
        "" => format!("{}.etcd", s.text("name")).into(),
        given => given.into(),
    }
}

fn wal_dir(s: &Settings) -> Option<PathBuf> {
    Some(s.text("wal-dir"))
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
}

fn watch_progress_interval(s: &Settings) -> Duration {
    let nanos = u64::try_from(s.int("watch-progress-notify-interval")).unwrap_or(0);
    Duration::from_nanos(nanos).max(WATCH_PROGRESS_INTERVAL_MIN)
}
