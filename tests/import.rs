//! Data of earlier etcds, taken over: all that the etcd itself told of them, whatever stops it.
//!
//! `tests/fixtures/etcd-3.4` to `3.6` are data directories of etcds that were killed, with changes in
//! their logs alone; `facts` is what each said when it was started again. `tests/fixtures/etcd/make`
//! makes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use metastore::config::{self, Config, Parsed};
use metastore::mvcc::hash::hash_kv;
use metastore::proto::authpb::permission::Type;
use metastore::proto::authpb::{Role, User};
use metastore::server::import::{Imported, Source};
use metastore::snapshot::restore::{self, Options};
use metastore::storage::disk::Disk;
use metastore::storage::disk::real::RealDisk;
use metastore::storage::disk::sim::{SimDisk, SplitMix};
use metastore::storage::record::Record;
use metastore::storage::revision::Revision;
use metastore::storage::small::Bucket;
use metastore::storage::store::{Stopped, read_stopped};
use prost::Message;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_metastore");
const VERSIONS: [&str; 3] = ["3.4", "3.5", "3.6"];
const CACHE_BYTES: usize = 1 << 20;

fn fixture(version: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(format!("etcd-{version}"))
}

fn folder() -> TempDir {
    TempDir::new().expect("a folder for the test can be made")
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    let command = command.args(args).env_clear();
    command.output().expect("the binary runs")
}

/// A copy of a fixture, since its database is locked while it is read.
fn copied(version: &str) -> TempDir {
    let copy = folder();
    for (path, content) in files(&fixture(version)) {
        let path = path.strip_prefix(fixture(version)).expect("it is below");
        let path = copy.path().join(path);
        fs::create_dir_all(path.parent().expect("it is below")).expect("there is room");
        fs::write(path, content).expect("there is room");
    }
    copy
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// What a store holds, as `facts` has it of an etcd.
fn facts(stopped: &Stopped) -> String {
    let Stopped { view, identity, .. } = stopped;
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("text takes all");
    line(format!(
        "member {:x} cluster {:x}",
        identity.member_id, identity.cluster_id
    ));
    let hashed = hash_kv(view, 0, || true).expect("it can be read");
    line(format!(
        "revision {} compacted {} hash {}",
        view.revision, hashed.compact_revision, hashed.hash
    ));
    let quoted = |bytes: &[u8]| format!("'{}'", String::from_utf8_lossy(bytes));
    let pair = |bytes: &[u8]| {
        let record = Record::decode(bytes).expect("the store wrote it");
        let (key, value) = (quoted(record.key), quoted(record.value));
        let (create, modified) = (record.create, record.modified);
        let (version, lease) = (record.version, record.lease);
        format!("{key} = {value} create={create} mod={modified} version={version} lease={lease}")
    };
    let mut alive = BTreeMap::new();
    let mut events = Vec::new();
    let floor = view.floor.expect("it is compacted");
    let read = view.history(Revision { main: 0, sub: 0 }, |at, bytes| {
        let record = Record::decode(bytes).expect("the store wrote it");
        let is_delete = record.version == 0;
        let told = match is_delete {
            true => format!("delete {}", quoted(record.key)),
            false => pair(bytes),
        };
        match is_delete {
            true => alive.remove(record.key),
            false => alive.insert(record.key.to_vec(), told.clone()),
        };
        if at.main >= floor {
            events.push(format!("event {} {told}", at.main));
        }
        true
    });
    read.expect("it can be read");
    alive.into_values().for_each(&mut line);
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let read = view.for_each_lease(|id, row| {
        let row = row.expect("it is in the tables");
        let keys = view.attached(id, view.revision).expect("it can be read");
        let keys = list(keys.iter().map(|key| quoted(key)).collect());
        line(format!("lease {id} ttl={} {keys}", row.ttl_secs));
    });
    read.expect("it can be read");
    for (name, row) in view.small.rows(Bucket::AuthUsers) {
        let user = User::decode(row).expect("it is one");
        let no_password = user.options.is_some_and(|options| options.no_password);
        assert_eq!(no_password, name == b"bob");
        assert_eq!(user.password.starts_with(b"$2a$"), !no_password);
        let roles = user.roles.iter().map(|role| quoted(role.as_bytes()));
        let name = String::from_utf8_lossy(name);
        line(format!("user {name} {}", list(roles.collect())));
    }
    for (name, row) in view.small.rows(Bucket::AuthRoles) {
        let name = String::from_utf8_lossy(name);
        for right in Role::decode(row).expect("it is one").key_permission {
            let kind = Type::try_from(right.perm_type).expect("it is one");
            let (key, end) = (quoted(&right.key), quoted(&right.range_end));
            line(format!("role {name} {} {key} {end}", kind.as_str_name()));
        }
    }
    events.into_iter().for_each(&mut line);
    out
}

/// All but the version, which comes first.
fn expected(version: &str) -> String {
    let facts = fs::read_to_string(fixture(version).join("facts"));
    let facts = facts.expect("the fixture has it");
    let (program, facts) = facts.split_once('\n').expect("it has lines");
    assert!(program.contains(version), "{program}");
    facts.to_owned()
}

fn open([data, log]: [&Arc<dyn Disk>; 2]) -> Stopped {
    read_stopped(data, log, CACHE_BYTES).expect("it opens")
}

fn open_folder(data_dir: &Path) -> Stopped {
    let open_disk =
        |path: PathBuf| -> Arc<dyn Disk> { Arc::new(RealDisk::open(&path).expect("it is there")) };
    let ours = data_dir.join("metastore");
    open([&open_disk(ours.clone()), &open_disk(ours.join("log"))])
}

/// Names and contents of all files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let content = fs::read(&path).expect("it can be read");
            found.insert(path, content);
        }
    }
    found
}

#[test]
fn all_that_an_earlier_etcd_tells_is_there() {
    for version in VERSIONS {
        let (folder, from) = (folder(), copied(version));
        let data_dir = folder.path().join("data");
        let before = files(from.path());
        let out = run(&["import", text(from.path()), "--data-dir", text(&data_dir)]);
        let stdout = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{version}: {out:?}");
        for told in ["revision 26", "3 leases, 2 users, 1 roles", "of the log"] {
            assert!(stdout.contains(told), "{version}: {stdout}");
        }
        assert_eq!(facts(&open_folder(&data_dir)), expected(version));
        assert!(files(from.path()) == before, "{version} is changed");
    }
}

fn config() -> Config {
    let parsed = config::parse(["--cache-size=1MiB".into(), "--flush-size=1MiB".into()], []);
    match parsed.expect("the flags are right") {
        Parsed::Serve(config) => *config,
        other => unreachable!("flags alone ask to serve, not for {other:?}"),
    }
}

/// Imports into a simulated disk.
fn import(disk: &SimDisk) -> Result<Imported, String> {
    let (config, from) = (config(), copied("3.6"));
    let source = Source::of_folder(from.path(), &config).expect("it can be read");
    let (data, log) = (disk.folder("data"), disk.folder("log"));
    let filled = source.fill(Options::default(), &config, [&data, &log], |_, _| ());
    filled.map_err(|error| error.to_string())
}

/// Until all of it is on disk it says that it has failed, so nobody gives the folder its name.
#[test]
fn a_stop_at_any_sync_leaves_no_store_or_a_whole_one() {
    let disk = SimDisk::new();
    import(&disk).expect("nothing stops it");
    let syncs = disk.syncs();
    assert!(syncs > 10, "it syncs {syncs} times");
    let mut failed = 0;
    for stop in 1..=syncs + 1 {
        let disk = SimDisk::new();
        disk.stop_at_sync(stop);
        if import(&disk).is_err() {
            failed += 1;
            continue;
        }
        for seed in 0..3 {
            let disk = disk.survivors(seed);
            let (data, log) = (disk.folder("data"), disk.folder("log"));
            restore::prove([&data, &log], |_, _| ()).expect("it is sound");
            let story = format!("stop {stop}, seed {seed}");
            assert_eq!(facts(&open([&data, &log])), expected("3.6"), "{story}");
        }
    }
    // The last ones are those of closing what is on disk already.
    assert!(failed > syncs / 2, "{failed} of {syncs} stops are told");
}

#[test]
fn a_full_disk_is_told() {
    let disk = SimDisk::new();
    import(&disk).expect("there is room");
    let whole = disk.used_bytes();
    let mut refused = 0;
    for bytes in (0..).step_by(200_000) {
        let disk = SimDisk::new();
        disk.set_capacity(Some(bytes));
        match import(&disk) {
            Ok(_) => break,
            Err(why) => {
                let is_told = why.contains("full") || why.contains("no storage space");
                assert!(is_told, "{bytes} bytes: {why}");
                refused += 1;
            }
        }
    }
    assert!(refused > 2, "a store of {whole} bytes goes anywhere");
}

/// A restore that is killed leaves nothing that starts, and is not in the way of the next.
#[test]
fn a_killed_restore_leaves_nothing_that_starts() {
    let database = fixture("3.6").join("member/snap/db");
    let mut random = SplitMix(1);
    let mut killed = 0;
    for round in 0..20 {
        let folder = folder();
        let data_dir = folder.path().join("data");
        let restore = [
            "snapshot",
            "restore",
            text(&database),
            "--skip-hash-check",
            "--data-dir",
            text(&data_dir),
        ];
        let mut child = Command::new(BINARY)
            .args(restore)
            .env_clear()
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary runs");
        #[allow(clippy::disallowed_methods, reason = "it is killed at any time")]
        thread::sleep(Duration::from_micros(random.below(40_000)));
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        let check = run(&["check", "--data-dir", text(&data_dir)]);
        if !data_dir.join("metastore").exists() {
            killed += 1;
            assert!(!check.status.success(), "round {round}: {check:?}");
            if data_dir.join("metastore.part").exists() {
                let urls = ["--listen-client-urls", "--advertise-client-urls"];
                let urls = urls.map(|flag| format!("{flag}=http://127.0.0.1:0"));
                let start = run(&["--data-dir", text(&data_dir), &urls[0], &urls[1]]);
                let why = String::from_utf8_lossy(&start.stderr);
                assert!(why.contains("is not a data directory"), "{why}");
            }
            let again = run(&restore);
            assert!(again.status.success(), "round {round}: {again:?}");
        } else {
            assert!(check.status.success(), "round {round}: {check:?}");
        }
    }
    assert!(killed > 0, "it is quicker than any kill");
}
