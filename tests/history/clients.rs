//! Clients that write, compact and watch, and write down what they were told.
//!
//! What they do is drawn from the seed. They wait for the history to come so far, never for a time, and go on until the
//! server is killed under them, or until they have heard all up to the end.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::watch_client::WatchClient;
use metastore::proto::etcdserverpb::watch_create_request::FilterType;
use metastore::proto::etcdserverpb::watch_request::RequestUnion;
use metastore::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RequestOp,
    TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse, request_op, response_op,
};
use metastore::storage::disk::sim::SplitMix;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::check::{Heard, Op, OpAnswer, Session, Watch, What, Write};

/// Requests that a stream sends ahead; all watchers of one are created at once.
const REQUESTS_MAX: usize = 4096;
/// A progress request may go without an answer: how long to wait until the next.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the last writer rests.
const BELL: Duration = Duration::from_millis(20);
/// How much a slow client lets the server send ahead.
const SLOW_WINDOW_BYTES: u32 = 16 << 10;

const GROUPS: [&str; 3] = ["a", "b", "c"];
const KEYS: u64 = 6;
/// Keys that hold so much together that their delete, with what was there, is told in parts.
const BULK_KEYS: u64 = 64;
const BULK_BYTES: usize = 11 << 10;
const BULK_OPS: usize = 4;

/// How far it all has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Phase {
    /// The newest revision that the watcher of everything has heard.
    pub(crate) heard: i64,
    /// Where writing ends.
    pub(crate) target: i64,
    /// The server is being killed.
    pub(crate) killed: bool,
    /// Who has heard all up to here is done.
    pub(crate) end: Option<i64>,
    /// Everybody is done, and nobody writes any more.
    pub(crate) silent: bool,
    /// The last revision.
    pub(crate) last: Option<i64>,
}

impl Phase {
    fn is_over(&self) -> bool {
        self.killed || self.end.is_some()
    }
}

/// What the clients share.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) phase: watch::Sender<Phase>,
    /// The highest compaction that was asked for.
    floor: AtomicI64,
    /// The newest revision that a writer was told.
    told: AtomicI64,
}

impl World {
    /// The newest revision that a writer was told.
    pub(crate) fn told(&self) -> i64 {
        self.told.load(Ordering::Relaxed)
    }

    fn killed(&self) -> bool {
        self.phase.borrow().killed
    }

    /// Waits until history has come to `revision`, or ends.
    async fn comes_to(&self, revision: i64) {
        let mut phase = self.phase.subscribe();
        let come = phase.wait_for(|phase| phase.heard >= revision || phase.is_over());
        come.await.expect("the world outlives its clients");
    }

    fn expect<T>(&self, answer: Result<T, Status>, what: &str) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(_) if self.killed() => None,
            Err(status) => panic!("{what}: {status:?}"),
        }
    }
}

/// Compacts now and then, not far behind what the watcher of everything has heard.
pub(crate) async fn compact(world: Arc<World>, channel: Channel, mut random: SplitMix) {
    let mut kv = KvClient::new(channel);
    loop {
        let next = world.phase.borrow().heard + 40 + random.below(40) as i64;
        world.comes_to(next).await;
        let phase = world.phase.borrow().clone();
        if phase.is_over() {
            return;
        }
        let revision = phase.heard - random.below(30) as i64;
        world.floor.fetch_max(revision, Ordering::Relaxed);
        let physical = random.below(3) == 0;
        let compacted = kv.compact(CompactionRequest { revision, physical }).await;
        if world.expect(compacted, "a compaction").is_none() {
            return;
        }
    }
}

/// One who writes, one request after the other.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) client: usize,
    /// Begins with the keys that hold much.
    pub(crate) bulk: bool,
    /// Goes on, slowly, until everybody is done: a watcher that starts at the next revision holds back all progress of
    /// its stream until that is there (as in etcd).
    pub(crate) bell: bool,
    pub(crate) random: SplitMix,
    pub(crate) writes: Vec<Write>,
}

impl Writer {
    /// Writes until the history has come to its target.
    pub(crate) async fn run(mut self, world: Arc<World>, channel: Channel) -> Writer {
        let mut kv = KvClient::new(channel);
        let mut planned: VecDeque<Vec<Op>> = match self.bulk {
            true => self.bulk_ops().into(),
            false => VecDeque::new(),
        };
        loop {
            let phase = world.phase.borrow().clone();
            if phase.killed || phase.silent {
                return self;
            }
            if planned.is_empty() && phase.heard >= phase.target {
                match self.bell {
                    true => tokio::time::sleep(BELL).await,
                    false => return self,
                }
            }
            let ops = planned.pop_front().unwrap_or_else(|| self.draw_ops());
            let after = world.told();
            let answer = world.expect(self.send(&mut kv, &ops).await, "a write");
            if let Some((revision, _)) = &answer {
                world.told.fetch_max(*revision, Ordering::Relaxed);
            }
            let gone = answer.is_none();
            self.writes.push(Write {
                client: self.client,
                ops,
                after,
                answer,
            });
            if gone {
                return self;
            }
        }
    }

    fn bulk_ops(&mut self) -> Vec<Vec<Op>> {
        let mut puts = Vec::new();
        for number in 0..BULK_KEYS {
            let value = self.value(BULK_BYTES);
            puts.push(Op::Put {
                key: format!("z/{number:02}").into(),
                value,
                prev_kv: false,
            });
        }
        let mut planned: Vec<Vec<Op>> = puts.chunks(BULK_OPS).map(<[Op]>::to_vec).collect();
        planned.push(vec![Op::Delete {
            key: "z/".into(),
            range_end: "z0".into(),
            prev_kv: false,
        }]);
        planned
    }

    fn draw_ops(&mut self) -> Vec<Op> {
        match self.random.below(10) {
            0..5 => vec![self.draw_put()],
            5 | 6 => vec![self.draw_delete()],
            7 => {
                let group = GROUPS[self.random.below(3) as usize];
                let (first, last) = (self.random.below(KEYS), self.random.below(KEYS + 1));
                vec![Op::Delete {
                    key: format!("{group}/{first}").into(),
                    range_end: format!("{group}/{}", first.max(last) + 1).into(),
                    prev_kv: self.random.below(2) == 0,
                }]
            }
            _ => {
                // Of no key twice, which is refused.
                let mut ops: Vec<Op> = Vec::new();
                for _ in 0..2 + self.random.below(5) {
                    let op = match self.random.below(3) {
                        0 => self.draw_delete(),
                        _ => self.draw_put(),
                    };
                    if ops.iter().all(|other| key_of(other) != key_of(&op)) {
                        ops.push(op);
                    }
                }
                ops
            }
        }
    }

    fn draw_put(&mut self) -> Op {
        let bytes = match self.random.below(16) {
            0 => 3000,
            _ => self.random.below(400) as usize,
        };
        Op::Put {
            key: draw_key(&mut self.random),
            value: match self.random.below(8) {
                0 => Bytes::new(),
                _ => self.value(bytes),
            },
            prev_kv: self.random.below(2) == 0,
        }
    }

    fn draw_delete(&mut self) -> Op {
        Op::Delete {
            key: draw_key(&mut self.random),
            range_end: Bytes::new(),
            prev_kv: self.random.below(2) == 0,
        }
    }

    /// Unlike any other.
    fn value(&mut self, bytes: usize) -> Bytes {
        format!("{}:{:x} {:.<bytes$}", self.client, self.random.draw(), "").into()
    }

    /// The revision, and what was answered to each of `ops`.
    async fn send(
        &mut self,
        kv: &mut KvClient<Channel>,
        ops: &[Op],
    ) -> Result<(i64, Vec<OpAnswer>), Status> {
        let (header, answers) = match ops {
            [op] if self.random.below(4) > 0 => match request_of(op) {
                request_op::Request::RequestPut(put) => {
                    let answer = kv.put(put).await?.into_inner();
                    (answer.header, vec![of_put(answer)])
                }
                request_op::Request::RequestDeleteRange(delete) => {
                    let answer = kv.delete_range(delete).await?.into_inner();
                    (answer.header, vec![of_delete(answer)])
                }
                other => unreachable!("no write: {other:?}"),
            },
            ops => {
                let request = |op| RequestOp {
                    request: Some(request_of(op)),
                };
                let success = ops.iter().map(request).collect();
                let txn = TxnRequest {
                    success,
                    ..Default::default()
                };
                let answer = kv.txn(txn).await?.into_inner();
                let answers = answer.responses.into_iter().map(|one| match one.response {
                    Some(response_op::Response::ResponsePut(put)) => of_put(put),
                    Some(response_op::Response::ResponseDeleteRange(delete)) => of_delete(delete),
                    other => panic!("not what was asked: {other:?}"),
                });
                (answer.header, answers.collect())
            }
        };
        Ok((header.expect("an answer has a header").revision, answers))
    }
}

fn draw_key(random: &mut SplitMix) -> Bytes {
    let group = GROUPS[random.below(3) as usize];
    format!("{group}/{}", random.below(KEYS)).into()
}

fn key_of(op: &Op) -> &Bytes {
    match op {
        Op::Put { key, .. } | Op::Delete { key, .. } => key,
    }
}

fn request_of(op: &Op) -> request_op::Request {
    match op.clone() {
        Op::Put {
            key,
            value,
            prev_kv,
        } => request_op::Request::RequestPut(PutRequest {
            key,
            value,
            prev_kv,
            ..Default::default()
        }),
        Op::Delete {
            key,
            range_end,
            prev_kv,
        } => request_op::Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv,
        }),
    }
}

fn of_put(answer: PutResponse) -> OpAnswer {
    OpAnswer {
        deleted: 0,
        prevs: answer.prev_kv.into_iter().collect(),
    }
}

fn of_delete(answer: DeleteRangeResponse) -> OpAnswer {
    OpAnswer {
        deleted: answer.deleted,
        prevs: answer.prev_kvs,
    }
}

/// How a client of a stream behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Watches everything, and says how far it has heard. It is never compacted.
    Observer,
    Steady,
    /// Leaves after a few answers, and comes back.
    Restless,
    /// Stops reading for a while, again and again.
    Slow,
}

/// One who watches, on one stream at a time.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) manner: Manner,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) random: SplitMix,
}

#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) watch: Watch,
    /// The number it asks for; 0 leaves that to the server.
    pub(crate) number: i64,
    pub(crate) sessions: Vec<Session>,
    /// Where the next session starts.
    pub(crate) next: i64,
    /// Its number on the stream, while it is there.
    current: Option<i64>,
}

impl Watcher {
    pub(crate) fn new(watch: Watch, start: i64) -> Watcher {
        Watcher {
            watch,
            number: 0,
            sessions: Vec::new(),
            next: start,
            current: None,
        }
    }

    /// A single key, or a range of several if it may be `wide`; from now on, from the past or from the future.
    pub(crate) fn draw(random: &mut SplitMix, wide: bool, phase: &Phase) -> Watcher {
        let key = draw_key(random);
        let group = GROUPS[random.below(3) as usize];
        let (key, range_end): (Bytes, Bytes) = match (random.below(8), wide) {
            (0, true) => ("\0".into(), "\0".into()),
            (1, true) => (key, "\0".into()),
            (2, true) => ("z/".into(), "z0".into()),
            (3, true) => ("a/3".into(), "c/2".into()),
            (4 | 5, true) | (0, false) => (format!("{group}/").into(), format!("{group}0").into()),
            _ => (key, Bytes::new()),
        };
        let watch = Watch {
            key,
            range_end,
            no_put: random.below(6) == 0,
            no_delete: random.below(6) == 0,
            prev_kv: random.below(2) == 0,
            fragment: random.below(2) == 0,
            progress_notify: random.below(3) == 0,
        };
        let start = match random.below(6) {
            0 | 1 => 0,
            2 => 1,
            3 => (phase.heard + random.below(60) as i64).min(phase.target),
            _ => 1 + random.below(phase.heard.max(1) as u64) as i64,
        };
        Watcher::new(watch, start)
    }

    fn request(&self) -> WatchCreateRequest {
        let watch = self.watch.clone();
        let mut filters = Vec::new();
        filters.extend(watch.no_put.then_some(FilterType::Noput as i32));
        filters.extend(watch.no_delete.then_some(FilterType::Nodelete as i32));
        WatchCreateRequest {
            key: watch.key,
            range_end: watch.range_end,
            start_revision: self.next,
            progress_notify: watch.progress_notify,
            filters,
            prev_kv: watch.prev_kv,
            watch_id: self.number,
            fragment: watch.fragment,
        }
    }

    fn hear(&mut self, heard: Heard) {
        let session = self.sessions.last_mut().expect("it was created");
        match &heard.what {
            What::Created(revision) if session.start == 0 => self.next = revision + 1,
            What::Events { more: true, .. } | What::Created(_) | What::Canceled => {}
            What::Events { events, .. } => {
                let last = events.last().and_then(|event| event.kv.as_ref());
                self.next = last.expect("an event has a pair").mod_revision + 1;
            }
            What::Progress { revision, .. } => self.next = revision + 1,
            What::Compacted(floor) => self.next = *floor,
        }
        session.heard.push(heard);
    }
}

/// Why a stream is over.
enum Over {
    /// The client left.
    Left,
    /// The server was killed.
    Killed,
    /// All was heard.
    Done,
}

impl Listener {
    /// Watches, on one stream after the other.
    pub(crate) async fn run(mut self, world: Arc<World>, endpoint: Endpoint) -> Listener {
        let endpoint = match self.manner {
            Manner::Slow => endpoint
                .initial_stream_window_size(SLOW_WINDOW_BYTES)
                .initial_connection_window_size(4 * SLOW_WINDOW_BYTES),
            _ => endpoint,
        };
        let mut channel = endpoint.connect_lazy();
        loop {
            match self.watch(&world, channel.clone()).await {
                Over::Killed | Over::Done => return self,
                // The connection may stay, and with it what waits in it.
                Over::Left if self.random.below(2) == 0 => channel = endpoint.connect_lazy(),
                Over::Left => {}
            }
        }
    }

    async fn watch(&mut self, world: &World, channel: Channel) -> Over {
        let (requests, sent) = mpsc::channel(REQUESTS_MAX);
        let mut stream = Stream {
            listener: self,
            requests,
            creating: VecDeque::new(),
            numbers: HashMap::new(),
            answers: 0,
        };
        for watcher in 0..stream.listener.watchers.len() {
            stream.listener.watchers[watcher].current = None;
            stream.create(watcher);
        }
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let opened = client.watch(Request::new(ReceiverStream::new(sent))).await;
        match world.expect(opened, "a stream") {
            Some(answers) => stream.listen(world, answers.into_inner()).await,
            None => Over::Killed,
        }
    }
}

/// An open stream.
struct Stream<'a> {
    listener: &'a mut Listener,
    requests: mpsc::Sender<WatchRequest>,
    /// Watchers whose creation is not answered yet.
    creating: VecDeque<usize>,
    /// Watchers by their numbers on the stream.
    numbers: HashMap<i64, usize>,
    /// How many came.
    answers: usize,
}

impl Stream<'_> {
    fn send(&self, request: RequestUnion) {
        let request_union = Some(request);
        let sent = self.requests.try_send(WatchRequest { request_union });
        // The server may be gone.
        assert!(
            !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
            "too many requests"
        );
    }

    fn create(&mut self, watcher: usize) {
        self.creating.push_back(watcher);
        let watcher = &mut self.listener.watchers[watcher];
        let request = watcher.request();
        watcher.sessions.push(Session {
            start: watcher.next,
            heard: Vec::new(),
        });
        self.send(RequestUnion::CreateRequest(request));
    }

    fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    fn ask_for_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    async fn listen(&mut self, world: &World, mut answers: Streaming<WatchResponse>) -> Over {
        let end_of = match self.listener.manner {
            Manner::Observer => |phase: &Phase| phase.last,
            _ => |phase: &Phase| phase.end,
        };
        let mut phase = world.phase.subscribe();
        let mut end = None;
        while end.is_none_or(|end| !self.has_heard(end)) {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                ended = phase.wait_for(|phase| end_of(phase).is_some()), if end.is_none() => {
                    end = end_of(&ended.expect("the world outlives its clients"));
                    continue;
                }
                () = tokio::time::sleep(ASK_AGAIN), if end.is_some() => {
                    self.ask_for_progress();
                    continue;
                }
            };
            match world.expect(answer, "an answer") {
                Some(Some(answer)) => self.take(answer, world.floor.load(Ordering::Relaxed)),
                Some(None) if !world.killed() => panic!("a stream ended without a word"),
                _ => return Over::Killed,
            }
            self.report(world);
            if end.is_none() && self.leaves(world).await {
                return Over::Left;
            }
        }
        Over::Done
    }

    /// Whether all watchers have heard all up to `end`.
    fn has_heard(&self, end: i64) -> bool {
        let mut watchers = self.listener.watchers.iter();
        watchers.all(|watcher| watcher.current.is_some() && watcher.next > end)
    }

    /// The watcher of everything says how far it has heard.
    fn report(&self, world: &World) {
        if self.listener.manner == Manner::Observer {
            let heard = self.listener.watchers[0].next - 1;
            let phase = &world.phase;
            phase.send_if_modified(|phase| std::mem::replace(&mut phase.heard, heard) != heard);
        }
    }

    /// Writes down an answer, and does what a client must do upon it.
    fn take(&mut self, answer: WatchResponse, floor: i64) {
        self.answers += 1;
        let revision = answer
            .header
            .as_ref()
            .expect("an answer has a header")
            .revision;
        let number = answer.watch_id;
        if answer.created {
            assert!(!answer.canceled, "refused: {answer:?}");
            let watcher = self.creating.pop_front().expect("a create was sent");
            let asked = self.listener.watchers[watcher].number;
            assert!(
                [0, number].contains(&asked),
                "asked for {asked}: {answer:?}"
            );
            let in_use = self.numbers.insert(number, watcher);
            assert!(in_use.is_none(), "in use: {answer:?}");
            self.listener.watchers[watcher].current = Some(number);
            return self.hear(watcher, floor, What::Created(revision));
        }
        if number == -1 {
            assert!(answer.events.is_empty() && !answer.canceled, "{answer:?}");
            for watcher in 0..self.listener.watchers.len() {
                if self.listener.watchers[watcher].current.is_some() {
                    self.hear(
                        watcher,
                        floor,
                        What::Progress {
                            revision,
                            all: true,
                        },
                    );
                }
            }
            return;
        }
        let watcher = self.numbers.get(&number).copied();
        let watcher = watcher.unwrap_or_else(|| panic!("nobody's: {answer:?}"));
        let current = self.listener.watchers[watcher].current == Some(number);
        if answer.canceled && answer.compact_revision == 0 {
            self.numbers.remove(&number);
            if current {
                self.hear(watcher, floor, What::Canceled);
                self.listener.watchers[watcher].current = None;
                self.create(watcher);
            }
            return;
        }
        assert!(current, "it was canceled: {answer:?}");
        if answer.canceled {
            self.hear(watcher, floor, What::Compacted(answer.compact_revision));
            self.listener.watchers[watcher].current = None;
            self.cancel(number);
            return self.create(watcher);
        }
        let what = match answer.events.is_empty() && !answer.fragment {
            true => What::Progress {
                revision,
                all: false,
            },
            false => What::Events {
                revision,
                more: answer.fragment,
                events: answer.events,
            },
        };
        self.hear(watcher, floor, what);
    }

    fn hear(&mut self, watcher: usize, floor: i64, what: What) {
        let place = self.answers;
        self.listener.watchers[watcher].hear(Heard { place, floor, what });
    }

    /// Does now and then what clients do. Whether it leaves.
    async fn leaves(&mut self, world: &World) -> bool {
        let manner = self.listener.manner;
        let mut one_in = |bound: u64| self.listener.random.below(bound) == 0;
        let asks = one_in(100);
        let cancels = one_in(200);
        let stalls = manner == Manner::Slow && one_in(150);
        let leaves = match manner {
            Manner::Restless => one_in(100),
            _ => one_in(3000),
        };
        if asks {
            self.ask_for_progress();
        }
        if cancels {
            let place = self
                .listener
                .random
                .below(self.listener.watchers.len() as u64) as usize;
            if let Some(number) = self.listener.watchers[place].current {
                self.cancel(number);
            }
        }
        if stalls {
            let phase = world.phase.borrow().clone();
            let further = phase.heard + 100 + self.listener.random.below(150) as i64;
            world.comes_to(further.min(phase.target)).await;
        }
        leaves
    }
}
