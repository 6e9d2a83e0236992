//! A server as a process: started with etcd's flags, measured from /proc, killed with the bench.
//!
//! Every child stands in one list from its start to its end, so that a panic or a signal can end
//! them all. Each is its own process group: Ctrl-C reaches the bench alone, which then kills them.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Client, first_answer};
use crate::{Failure, block_on};

/// A server that takes longer to start, or ends meanwhile, fails the work item.
const START_MAX: Duration = Duration::from_secs(120);

/// A single piece of work (a compaction, all pages) that takes longer has failed.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// A server that used less of a core than this for a tenth of a second is quiet.
const QUIET_CPU: Duration = Duration::from_millis(10);
const QUIET_WATCHED: Duration = Duration::from_millis(100);

/// Longer than this the next turn does not wait.
const QUIET_WITHIN: Duration = Duration::from_secs(10);

/// Enough for all the data of a run; etcd's default of 2 GiB is close to what it writes.
const QUOTA_BYTES: u64 = 8 << 30;

static CHILDREN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends every server that still runs, removes `dir`, and exits. For signals and panics; a `Server`
/// dropped ends its own.
pub(crate) fn end_all(dir: &Path, code: i32) -> ! {
    // Held until the exit: no server is started after this, and no table tells of those that ended.
    let _out = io::stdout().lock();
    let children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    for pid in children.iter() {
        let _ = kill_process(*pid, Signal::KILL);
    }
    let _ = fs::remove_dir_all(dir);
    std::process::exit(code)
}

/// One running server and its data directory.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    binary: PathBuf,
    home: PathBuf,
    peer_port: u16,
    child: Child,
}

impl Server {
    /// Starts a server on a new data directory below `dir`, and waits for its first answer.
    pub(crate) fn start(name: &'static str, binary: &Path, dir: &Path) -> Result<Self, Failure> {
        let home = dir.join(name);
        fs::create_dir(&home)?;
        let (port, peer_port) = two_free_ports()?;
        let child = spawn(binary, &home, port, peer_port)?;
        let binary = binary.to_path_buf();
        let mut server = Self {
            name,
            port,
            binary,
            home,
            peer_port,
            child,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// `kill -9`, then the same command line again: the time from its start to its first answer.
    pub(crate) fn kill_and_restart(&mut self) -> Result<Duration, Failure> {
        self.kill();
        let begin = Instant::now();
        self.child = spawn(&self.binary, &self.home, self.port, self.peer_port)?;
        self.wait_ready()?;
        Ok(begin.elapsed())
    }

    pub(crate) fn client<T>(
        &self,
        work: impl AsyncFnOnce(Client) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let work = async { work(Client::open(self.port).await?).await };
        let answer = block_on(async { tokio::time::timeout(ANSWER_MAX, work).await });
        answer
            .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_MAX:?}").into()))
            .map_err(|error| self.explain(error))
    }

    /// What the kernel has counted for the process so far.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(&self.child.id().to_string())
    }

    /// Waits until the server has finished what the turn before left it (a flush, a collection), so
    /// that the next turn, which may be the other server's, does not pay for it.
    pub(crate) fn wait_quiet(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut before = self.usage()?;
        while begin.elapsed() < QUIET_WITHIN {
            std::thread::sleep(QUIET_WATCHED);
            let now = self.usage()?;
            if now.since(before).cpu <= QUIET_CPU {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// What the data directory takes on disk, as `du` counts it.
    pub(crate) fn disk_bytes(&self) -> io::Result<u64> {
        disk_bytes(&self.home.join("data"))
    }

    /// What the file of the database alone takes, under its name in either server.
    pub(crate) fn database_bytes(&self) -> Result<u64, Failure> {
        let data = self.home.join("data");
        let mut files = ["member/snap/db", "metastore/data.redb"]
            .map(|name| data.join(name))
            .into_iter();
        let file = files.find(|file| file.is_file());
        Ok(disk_bytes(&file.ok_or("no file of the database")?)?)
    }

    /// Adds to an error what the server said last.
    pub(crate) fn explain(&self, error: Failure) -> Failure {
        let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        let said = last.into_iter().rev().collect::<Vec<_>>().join("\n    ");
        format!("{}: {error}\n    {said}", self.name).into()
    }

    fn wait_ready(&mut self) -> Result<(), Failure> {
        let port = self.port;
        let child = &mut self.child;
        let ready = block_on(async {
            let begin = Instant::now();
            let mut answer = std::pin::pin!(first_answer(port));
            while begin.elapsed() < START_MAX {
                let patience = Duration::from_millis(100);
                if tokio::time::timeout(patience, answer.as_mut())
                    .await
                    .is_ok()
                {
                    return Ok(());
                }
                if let Some(status) = child.try_wait()? {
                    return Err(format!("ended while starting: {status}").into());
                }
            }
            Err("did not answer in time".into())
        });
        ready.map_err(|error| self.explain(error))
    }

    fn kill(&mut self) {
        let pid = Pid::from_child(&self.child);
        let _ = self.child.kill();
        let _ = self.child.wait();
        CHILDREN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|child| *child != pid);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn spawn(binary: &Path, home: &Path, port: u16, peer_port: u16) -> Result<Child, Failure> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(home.join("log"))?;
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(binary);
    command
        .arg("--name=bench")
        .arg(format!("--data-dir={}", home.join("data").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=bench={peer}"))
        .arg(format!("--quota-backend-bytes={QUOTA_BYTES}"))
        // Below errors, etcd would write a line for each request that a busy machine delays.
        .arg("--log-level=error")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    // Held over the spawn, so that a signal finds either no child or a listed one.
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    children.push(Pid::from_child(&child));
    Ok(child)
}

/// Both are held until both are known, so that they differ.
fn two_free_ports() -> io::Result<(u16, u16)> {
    let client = TcpListener::bind("127.0.0.1:0")?;
    let peer = TcpListener::bind("127.0.0.1:0")?;
    Ok((client.local_addr()?.port(), peer.local_addr()?.port()))
}

fn disk_bytes(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    // A block of `st_blocks` is 512 bytes, whatever the file system.
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// What the kernel counts for a process: all its threads, also those that ended.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) written_bytes: u64,
    pub(crate) resident_bytes: u64,
    /// Without the pages of mapped files, which the kernel can take back.
    pub(crate) anonymous_bytes: u64,
    pub(crate) peak_bytes: u64,
}

impl Usage {
    pub(crate) fn of_self() -> Result<Self, Failure> {
        Self::of("self")
    }

    fn of(process: &str) -> Result<Self, Failure> {
        let read = |file| fs::read_to_string(format!("/proc/{process}/{file}"));
        let stat = read("stat")?;
        // The second field is the command in parentheses, which may hold anything; utime and stime
        // are the 14th and 15th.
        let (_, fields) = stat
            .rsplit_once(") ")
            .ok_or("/proc/PID/stat without a command")?;
        let mut ticks = 0;
        for field in fields.split(' ').skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
        let status = read("status")?;
        let kib = |name| Ok::<u64, Failure>(field(&status, name)? * 1024);
        Ok(Self {
            cpu: Duration::from_secs_f64(
                ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            ),
            written_bytes: field(&read("io")?, "write_bytes:")?,
            resident_bytes: kib("VmRSS:")?,
            anonymous_bytes: kib("RssAnon:")?,
            peak_bytes: kib("VmHWM:")?,
        })
    }

    /// Counts since `earlier`; memory as it is now.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            written_bytes: self.written_bytes - earlier.written_bytes,
            ..self
        }
    }
}

/// What a stretch of time cost both sides.
pub(crate) struct Span {
    begin: Instant,
    server: Usage,
    client: Usage,
}

pub(crate) struct Spent {
    pub(crate) secs: f64,
    pub(crate) server_cpu: Duration,
    pub(crate) client_cores: f64,
}

impl Span {
    pub(crate) fn begin(server: &Server) -> Result<Self, Failure> {
        Ok(Self {
            server: server.usage()?,
            client: Usage::of_self()?,
            begin: Instant::now(),
        })
    }

    pub(crate) fn end(self, server: &Server) -> Result<Spent, Failure> {
        let secs = self.begin.elapsed().as_secs_f64();
        let client = Usage::of_self()?.since(self.client).cpu;
        Ok(Spent {
            secs,
            server_cpu: server.usage()?.since(self.server).cpu,
            client_cores: client.as_secs_f64() / secs,
        })
    }
}

/// The number behind a name at the start of a line.
pub(crate) fn field(text: &str, name: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number
        .ok_or_else(|| format!("no {name} in /proc"))?
        .parse()?)
}
