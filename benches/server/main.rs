//! The server bench: ours and a real etcd side by side, on one disk, with one client, in one run.
//!
//! ```text
//! cargo bench --bench server -- --etcd PATH [--only put-100,get-500] [--quick] [--targets]
//! ```
//! Both servers get the same flags and are driven in turn (etcd, ours, etcd, ours, …); a figure is
//! the median of the rounds, a maximum the greatest of them. The client shares the cores with the
//! server, as it does for both: only the ratios carry over to another machine, and the column
//! "client cores" tells how much of the machine the client took.

#![allow(
    clippy::disallowed_methods,
    reason = "a bench reads the wall clock and sleeps between its questions"
)]

mod audience;
mod background;
mod client;
mod keep_alive;
mod lease;
mod lease_end;
mod load;
mod machine;
mod maintenance;
mod meanwhile;
mod million;
mod process;
mod report;
mod requests;
mod stream;
mod watch;
mod watch_stream;
mod writer;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::process::Server;
use crate::report::Report;

/// Why a work item has no figures. It is told and the next item runs.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The columns of every pair: etcd first.
pub(crate) const NAMES: [&str; 2] = ["etcd", "metastore"];

/// Every work item and what it does, in the order of the run.
const ITEMS: [(&str, &str); 29] = [
    ("put-1", "1 client puts 256 B under random keys of 100,000"),
    ("put-100", "100 clients do"),
    ("put-1000", "1000 clients do"),
    ("get-1", "1 client gets random keys of 100,000"),
    ("get-500", "500 clients do"),
    ("list-100", "100 clients list prefixes of 100 keys"),
    ("list-10000", "10 clients list prefixes of 10,000 keys"),
    (
        "get-old",
        "100 clients get random keys at a revision 100,000 puts ago",
    ),
    ("txn-cas", "100 clients compare and swap, each its own key"),
    (
        "put-during-flush",
        "100 clients put 250,000 times, which fills and flushes a memtable",
    ),
    (
        "put-during-sweep",
        "100 clients put while a compaction of 100,000 revisions is swept",
    ),
    (
        "load-1m",
        "1000 clients load 1,000,000 keys: speed, memory, disk, restart after kill -9",
    ),
    (
        "pages",
        "1000 pages of 500 keys against one list of 500,000",
    ),
    (
        "watch-fanout",
        "1 client puts, 1000 watchers of one prefix hear it: events a second",
    ),
    (
        "watch-latency",
        "100 puts a second to 100 watchers: from sending a put to hearing of it",
    ),
    (
        "watch-catchup",
        "100 watchers read 100,000 revisions each, from revision 1",
    ),
    (
        "watch-idle",
        "10,000 watchers of keys that nobody writes: memory, and what puts cost",
    ),
    (
        "watch-stuck",
        "100 clients put 64 MiB; of 100 watchers one never reads its socket",
    ),
    (
        "lease-grant",
        "100 clients grant leases of ids that the server chooses",
    ),
    (
        "lease-put",
        "100 clients put 256 B, each with one of 1000 leases",
    ),
    (
        "lease-keepalive",
        "100 streams renew in a closed loop; then 100,000 leases, each every 5 s",
    ),
    (
        "lease-expiry",
        "2000 leases of 2 to 6 s, a key each, while 1000 clients put: how late keys go",
    ),
    (
        "lease-mass",
        "100,000 leases, a key each, end within a second while 10 clients put",
    ),
    (
        "lease-memory",
        "1,000,000 leases: memory, and again after kill -9 and restart",
    ),
    (
        "snapshot",
        "1,000,000 keys are streamed as a snapshot: time, memory",
    ),
    (
        "snapshot-put",
        "1000 puts a second, alone and while snapshots stream",
    ),
    (
        "compact-put",
        "the same while 1,000,000 revisions are compacted",
    ),
    (
        "defrag-put",
        "the same while what that left is defragmented",
    ),
    (
        "reuse",
        "the file after 1,000,000 puts, compacted, as much again, defragmented",
    ),
];

#[derive(Parser)]
#[command(about = "Ours and a real etcd side by side: one disk, one client, one run")]
struct Args {
    /// The etcd to compare with
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
    /// Ours [default: the one just built]
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_metastore"), hide_default_value = true)]
    metastore: PathBuf,
    /// Where both data directories are made, and removed
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Run these items; "put-" stands for all that begin with it
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// A short run with few keys, to see that everything works; its figures mean little
    #[arg(long)]
    quick: bool,
    /// Compare with the project's targets at the end
    #[arg(long)]
    targets: bool,
    /// Rounds of each item [default: 3; with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
    /// Threads of the client
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = 1..=2)]
    client_threads: i64,
    /// Seed of keys and values
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print the items and what they do
    #[arg(long)]
    list: bool,
    /// What cargo passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// What all items of a run share.
pub(crate) struct Plan {
    binaries: [PathBuf; 2],
    dir: PathBuf,
    items: Vec<&'static str>,
    pub(crate) scale: Scale,
    pub(crate) runs: u64,
    pub(crate) threads: usize,
    pub(crate) seed: u64,
}

/// How much of everything.
pub(crate) struct Scale {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// Keys of the store that requests meet.
    pub(crate) keys: u64,
    /// Puts that fill and flush a memtable.
    pub(crate) flush_puts: u64,
    pub(crate) swept_revisions: u64,
    pub(crate) million: u64,
    /// Puts that lie in the log when the large store is killed.
    pub(crate) tail_puts: u64,
    pub(crate) pages: u64,
    pub(crate) page_keys: u64,
    /// History that late watchers read.
    pub(crate) caught_up_revisions: u64,
    pub(crate) idle_watchers: usize,
    /// Puts that a stuck watcher does not hear of.
    pub(crate) stuck_puts: u64,
    /// Leases that are renewed by the clock.
    pub(crate) renewed_leases: u64,
    /// Leases that end one by one.
    pub(crate) ending_leases: u64,
    /// Leases that end within one second.
    pub(crate) mass_leases: u64,
}

const WHOLE: Scale = Scale {
    warm_up: Duration::from_secs(1),
    measured: Duration::from_secs(5),
    keys: 100_000,
    flush_puts: 250_000,
    swept_revisions: 100_000,
    million: 1_000_000,
    tail_puts: 100_000,
    pages: 1000,
    page_keys: 500,
    caught_up_revisions: 100_000,
    idle_watchers: 10_000,
    stuck_puts: 65_536,
    renewed_leases: 100_000,
    ending_leases: 2_000,
    mass_leases: 100_000,
};

const QUICK: Scale = Scale {
    warm_up: Duration::from_millis(200),
    measured: Duration::from_secs(1),
    keys: 20_000,
    flush_puts: 40_000,
    swept_revisions: 20_000,
    million: 50_000,
    tail_puts: 10_000,
    pages: 50,
    page_keys: 500,
    caught_up_revisions: 5_000,
    idle_watchers: 1_000,
    stuck_puts: 4_096,
    renewed_leases: 10_000,
    ending_leases: 250,
    mass_leases: 5_000,
};

impl Plan {
    pub(crate) fn has(&self, item: &str) -> bool {
        self.items.contains(&item)
    }

    /// Both servers, on new data directories.
    pub(crate) fn start(&self) -> Result<[Server; 2], Failure> {
        Ok([self.start_one(0)?, self.start_one(1)?])
    }

    /// One server, on a new data directory.
    pub(crate) fn start_one(&self, index: usize) -> Result<Server, Failure> {
        Server::start(NAMES[index], &self.binaries[index], &self.dir)
    }
}

fn main() -> ExitCode {
    match bench() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("{failures} failures, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs it all; answers how many work items failed.
fn bench() -> Result<usize, Failure> {
    let args = Args::parse();
    if args.list {
        for (name, does) in ITEMS {
            println!("{name:17} {does}");
        }
        return Ok(0);
    }
    let Some(etcd) = args.etcd else {
        // `cargo bench` without arguments runs this too.
        println!("The server bench needs an etcd: cargo bench --bench server -- --etcd PATH");
        return Ok(0);
    };
    let items = chosen(&args.only)?;
    let dir = tempfile::Builder::new()
        .prefix("server-bench-")
        .tempdir_in(&args.dir)?;
    end_on_signal_or_panic(dir.path());
    let plan = Plan {
        binaries: [etcd, args.metastore],
        dir: dir.path().to_path_buf(),
        items,
        scale: if args.quick { QUICK } else { WHOLE },
        runs: args.runs.unwrap_or(if args.quick { 1 } else { 3 }),
        threads: args.client_threads as usize,
        seed: args.seed,
    };
    machine::describe(&plan.dir, &plan.binaries)?;
    println!(
        "- {} rounds, {} client threads, seed {}{}",
        plan.runs,
        plan.threads,
        plan.seed,
        if args.quick {
            ", **quick: few keys, short rounds**"
        } else {
            ""
        }
    );
    let mut report = Report::default();
    for part in [
        requests::run,
        background::run,
        million::run,
        watch::run,
        lease::run,
        maintenance::run,
    ] {
        if let Err(error) = part(&plan, &mut report) {
            report.failed(error);
        }
    }
    if args.targets {
        report.targets();
    }
    Ok(report.failures())
}

fn chosen(only: &[String]) -> Result<Vec<&'static str>, Failure> {
    let matches =
        |name: &str, word: &str| name == word || (word.ends_with('-') && name.starts_with(word));
    let names = ITEMS.map(|(name, _)| name);
    for word in only {
        if !names.iter().any(|name| matches(name, word)) {
            return Err(format!("no item {word}; --list shows them").into());
        }
    }
    let wanted = |name: &&str| only.is_empty() || only.iter().any(|word| matches(name, word));
    Ok(names.into_iter().filter(wanted).collect())
}

/// No server and no data outlive the bench.
fn end_on_signal_or_panic(dir: &Path) {
    let (told, panicked) = (dir.to_path_buf(), dir.to_path_buf());
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        process::end_all(&panicked, 101);
    }));
    std::thread::spawn(move || {
        block_on(async {
            let mut terminated = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
        });
        process::end_all(&told, 130);
    });
}

/// Runs a future on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .expect("a runtime without threads starts")
        .block_on(future)
}
