//! Golden scripts on the wire: each file of `tests/scripts/` states a rule, the requests, and the answers.
//!
//! The files play against MetaStore. With `ETCD_BIN=path/to/etcd` they play unchanged against that etcd 3.7, and with
//! `UPDATE_GOLDENFILES=1` the answers are recorded anew; recordings come from etcd and are then read with care.
//!
//! Each script begins on a fresh server. A command refused on purpose begins with `!`. The commands:
//! ```text
//! get KEY [prefix | from_key | end=KEY] [rev=N] [limit=N] [sort=none|asc|desc] [target=key|version|create|mod|value]
//!         [min_mod=N] [max_mod=N] [min_create=N] [max_create=N] [keys_only] [count_only] [serializable]
//! stream  as get; shows the parts put together, and how many keys each part had
//!         [meanwhile=TXN] [meanwhile_compact=N]   happen after its first part has come
//! put KEY VALUE [lease=N] [prev_kv] [ignore_value] [ignore_lease]
//! del KEY [prefix | from_key | end=KEY] [prev_kv]
//! txn 'if version(k) = 0 { put k v; get k } else { if mod(k) > 3 { del k } }'     see request.rs
//! compact REVISION [physical]
//! fill PREFIX COUNT [value_size=N] [txn_ops=N]   puts PREFIX0000, PREFIX0001, ..., so many in a txn, 100 if not said
//! restart ["--FLAG=VALUE" ...]       kill -9, then a new process on the same data
//! hashkv [rev=N]                     the hash of history
//! status, members                    what the node says of itself
//! alarm get [none|nospace|corrupt|N], alarm activate|deactivate TYPE [member=ID]     the node's own alarm if not said
//! member list, member add URL ... [learner], member update ID URL ..., member remove ID, member promote ID
//! defragment
//! move_leader ID, downgrade validate|enable|cancel|N [VERSION]     an id may be `self`, a peer URL `own`
//! watch STREAM ...                   sends on a watch stream, which is opened by its first request:
//!     create KEY [prefix | from_key | end=KEY] [rev=N] [id=N] [filter=noput|nodelete|N]... [prev_kv] [fragment]
//!         [progress_notify] [nowait]
//!     cancel ID [nowait]             both show their answer at once, and nothing else; with `nowait` they do not wait
//!     progress                       one request, which may go without an answer
//!     empty                          a request that asks for nothing
//!     half_close, close              the client sends no more; ends the stream
//! see STREAM ...                     waits for all that it names, then shows all that came and was not shown yet:
//!     [events=N] [created=N] [canceled=N]
//!     [progress]                     asks for progress, again and again, until it is that of the store
//!     [notified=ID]                  the same of the periodic progress of that watcher, the last of which is shown
//! grant TTL [id=N], revoke ID, ttl ID [keys], leases
//! keep_alive ID ...                  all on one stream, which the client then ends
//! ended ID ...                       waits until these leases have run out and are gone
//! overdue ID                         waits until this lease has run out by more than a second and is still there
//! ```
//! Words with other than letters, digits and `-./@_` are quoted; `"\x00"` is one byte. `sort=`, `target=` and a guard's
//! target also take a number, to send what has no name. `key_size=N` and `value_size=N` stand for a long key or value.
//! How answers are shown is said in answer.rs; what bounds what on a watch stream, in watch.rs; what holds of each of
//! its answers, in watch_rules.rs.

#[path = "golden/answer.rs"]
mod answer;
mod common;
#[path = "golden/lease.rs"]
mod lease;
#[path = "golden/maintenance.rs"]
mod maintenance;
#[path = "golden/request.rs"]
mod request;
#[path = "golden/watch.rs"]
mod watch;
#[path = "golden/watch_rules.rs"]
mod watch_rules;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::future::Future;
use std::path::{Path, PathBuf};

use common::Server;
use metastore::proto::etcdserverpb::cluster_client::ClusterClient;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::request_op::Request;
use metastore::proto::etcdserverpb::{
    HashKvRequest, MemberListRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use request::{Meanwhile, Words};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// One test a script, so that a failure names it, and a test that no file is forgotten.
macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*

        #[test]
        fn every_script_is_played() {
            let listed = BTreeSet::from([$(format!("{}.txt", stringify!($name))),*]);
            let files = std::fs::read_dir(script_dir()).expect("the scripts can be listed");
            let found = files.map(|file| file.expect("a script can be seen").file_name().into_string().unwrap());
            assert_eq!(listed, found.collect());
        }
    };
}

scripts! {
    alarm alarm_corrupt alarm_nospace alarm_restart compact compact_restart defragment delete downgrade empty_keys error_order flags
    lease_attach lease_expiry lease_grant lease_keep_alive lease_restart lease_revoke lease_txn
    hash hash_compact limits member move_leader put put_ignore quota
    range_errors range_filters range_intervals range_keys_only range_limits range_past range_sort range_stream
    revisions status stream_errors stream_pinned
    txn_branches txn_checks txn_compare txn_headers txn_nested txn_overlap txn_revisions unknown_enums
    watch_cancel watch_compacted watch_events watch_filters watch_fragment watch_history watch_ids watch_notify
    watch_prev_kv watch_progress watch_ranges watch_refused watch_restart watch_silence watch_start watch_streams
    watch_twice watch_txn
}

fn script_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

fn play(name: &str) {
    let path = script_dir().join(format!("{name}.txt"));
    if let Err(error) = goldenscript::run(&mut Player::new(), path) {
        panic!("{name}.txt: {error}");
    }
}

/// Sends what a script asks to a server of its own.
struct Player {
    runtime: Runtime,
    binary: PathBuf,
    server: Server,
    channel: Channel,
    streams: BTreeMap<String, watch::Stream>,
    dir: TempDir,
}

impl Player {
    fn new() -> Self {
        let binary =
            env::var_os("ETCD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_metastore").into());
        let binary = PathBuf::from(binary);
        let dir = TempDir::new().expect("a temporary directory can be made");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime can be built");
        let server = Server::start(&binary, &dir.path().join("data"), &[]);
        let channel = runtime.block_on(async { server.channel() });
        Self {
            runtime,
            binary,
            server,
            channel,
            streams: BTreeMap::new(),
            dir,
        }
    }

    fn restart(&mut self, flags: &[&str]) -> Result<(), request::Error> {
        self.close_streams()?;
        self.server.kill();
        self.server = Server::start(&self.binary, &self.dir.path().join("data"), flags);
        self.channel = self.runtime.block_on(async { self.server.channel() });
        Ok(())
    }

    fn close_streams(&mut self) -> Result<(), request::Error> {
        std::mem::take(&mut self.streams)
            .into_values()
            .try_for_each(watch::Stream::close)
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Waits for an answer; a refusal becomes the command's error.
    fn ask<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, request::Error> {
        let answer = self.runtime.block_on(call);
        answer
            .map(Response::into_inner)
            .map_err(|status| answer::refusal(&status).into())
    }

    fn stream(&self, words: Words<'_>) -> Result<String, request::Error> {
        let (request, meanwhile) = request::stream(words)?;
        // Asked first, because the stream stands still at the revision it began at.
        let plain = self.runtime.block_on(self.kv().range(request.clone()));
        let (whole, sizes) = self
            .runtime
            .block_on(merged_stream(self.kv(), request, meanwhile))?;
        let plain = plain.expect("what a stream takes a get takes").into_inner();
        assert!(
            whole == plain,
            "a stream and a get differ: {whole:?}, {plain:?}"
        );
        Ok(format!("parts={sizes:?} {}", answer::range(&whole)))
    }

    fn fill(&self, words: Words<'_>) -> Result<String, request::Error> {
        let (puts, ops_max) = request::fill(words)?;
        let ops: Vec<_> = puts
            .into_iter()
            .map(|put| RequestOp {
                request: Some(Request::RequestPut(put)),
            })
            .collect();
        let mut revision = String::new();
        for success in ops.chunks(ops_max) {
            let txn = TxnRequest {
                success: success.to_vec(),
                ..Default::default()
            };
            revision = answer::header(self.ask(self.kv().txn(txn))?.header.as_ref());
        }
        Ok(revision)
    }

    fn watch(&mut self, words: Words<'_>) -> Result<String, request::Error> {
        let (name, step) = watch::step(words)?;
        if let watch::Step::Send { request, waits } = step {
            return self.runtime.block_on(async {
                let open = || watch::Stream::open(self.server.channel());
                let stream = self.streams.entry(name.to_owned()).or_insert_with(open);
                stream.send(request, waits).await
            });
        }
        let stream = self.streams.remove(name);
        let mut stream = stream.ok_or_else(|| format!("there is no stream {name:?}"))?;
        match step {
            watch::Step::HalfClose => {
                stream.half_close();
                self.streams.insert(name.to_owned(), stream);
            }
            _ => stream.close()?,
        }
        Ok(String::new())
    }

    fn see(&mut self, words: Words<'_>) -> Result<String, request::Error> {
        let (name, awaited) = watch::awaited(words)?;
        let revision = match awaited.is_for_progress() {
            true => self.revision()?,
            false => 0,
        };
        let stream = self.streams.get_mut(name);
        let stream = stream.ok_or_else(|| format!("there is no stream {name:?}"))?;
        self.runtime.block_on(stream.see(&awaited, revision))
    }

    /// The store's revision, as a read tells it.
    fn revision(&self) -> Result<i64, request::Error> {
        let request = RangeRequest {
            key: "k".into(),
            count_only: true,
            ..Default::default()
        };
        let header = self.ask(self.kv().range(request))?.header;
        Ok(header.expect("an answer has a header").revision)
    }

    fn hash_kv(&self, mut words: Words<'_>) -> Result<String, request::Error> {
        let revision = words.number("rev")?;
        let request = words.done(HashKvRequest { revision })?;
        let hashed = self.ask(MaintenanceClient::new(self.channel.clone()).hash_kv(request))?;
        Ok(format!(
            "{} hash={} at={} compacted={}",
            answer::header(hashed.header.as_ref()),
            hashed.hash,
            hashed.hash_revision,
            hashed.compact_revision
        ))
    }

    fn members(&self) -> Result<String, request::Error> {
        let request = MemberListRequest { linearizable: true };
        let list = self.ask(ClusterClient::new(self.channel.clone()).member_list(request))?;
        let header = list.header.as_ref();
        let mut text = answer::header(header);
        for member in &list.members {
            let answered = header.is_some_and(|header| header.member_id == member.id);
            let listens = member.client_ur_ls == [self.server.endpoint.as_str()];
            let (name, peers, learner) = (&member.name, member.peer_ur_ls.len(), member.is_learner);
            text += &format!(
                "\n  name={name} answered={answered} listens={listens} peers={peers} learner={learner}"
            );
        }
        Ok(text)
    }
}

/// The parts of a stream put together, and how many keys each had. Only the last part has more than keys.
async fn merged_stream(
    mut kv: KvClient<Channel>,
    request: RangeRequest,
    meanwhile: Meanwhile,
) -> Result<(RangeResponse, Vec<usize>), request::Error> {
    let refused = |status| answer::refusal(&status);
    let parts = kv.range_stream(request).await.map_err(refused)?;
    let mut parts = parts.into_inner();
    let (mut whole, mut sizes) = (RangeResponse::default(), Vec::new());
    let mut next = parts.message().await.map_err(refused)?;
    if let Some(txn) = meanwhile.txn {
        kv.txn(txn).await.map_err(refused)?;
    }
    if let Some(compact) = meanwhile.compact {
        kv.compact(compact).await.map_err(refused)?;
    }
    while let Some(part) = next {
        assert!(whole.header.is_none(), "a part followed the last");
        let part = part.range_response.expect("a part is an answer");
        assert!(
            part.header.is_some() || (!part.more && part.count == 0),
            "only the last part counts: {part:?}"
        );
        sizes.push(part.kvs.len());
        whole.kvs.extend(part.kvs);
        (whole.header, whole.more, whole.count) = (part.header, part.more, part.count);
        let refused = |status| answer::refusal(&status) + " after some parts";
        next = parts.message().await.map_err(refused)?;
    }
    assert!(whole.header.is_some(), "the last part has a header");
    Ok((whole, sizes))
}

impl goldenscript::Runner for Player {
    type Command = goldenscript::Command;

    fn end_script(&mut self) -> Result<(), request::Error> {
        self.close_streams()
    }

    fn run(
        &mut self,
        command: &Self::Command,
        _: &goldenscript::Context,
    ) -> Result<String, request::Error> {
        let words = Words::new(&command.args);
        let of_leases = lease::run(self.channel.clone(), &command.name, words);
        if let Some(said) = self.runtime.block_on(of_leases) {
            return said;
        }
        let words = Words::new(&command.args);
        let of_the_node = maintenance::run(self.channel.clone(), &command.name, words);
        if let Some(said) = self.runtime.block_on(of_the_node) {
            return said;
        }
        let words = Words::new(&command.args);
        Ok(match command.name.as_str() {
            "get" => answer::range(&self.ask(self.kv().range(request::range(words)?))?),
            "stream" => self.stream(words)?,
            "put" => answer::put(&self.ask(self.kv().put(request::put(words)?))?),
            "del" => answer::delete(&self.ask(self.kv().delete_range(request::delete(words)?))?),
            "txn" => answer::txn(&self.ask(self.kv().txn(request::txn(words)?))?),
            "compact" => answer::header(
                self.ask(self.kv().compact(request::compact(words)?))?
                    .header
                    .as_ref(),
            ),
            "hashkv" => self.hash_kv(words)?,
            "fill" => self.fill(words)?,
            "watch" => self.watch(words)?,
            "see" => self.see(words)?,
            "members" => self.members()?,
            "restart" => {
                self.restart(&words.rest())?;
                String::new()
            }
            name => return Err(format!("there is no command {name:?}").into()),
        })
    }
}
