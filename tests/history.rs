//! Many clients write, compact and watch at once, while the server is killed and started again: what each was told is
//! held against the one history that all of it must come from.
//!
//! `SEED=n` draws the same choices again; how the clients interleave is left to chance. The proof is in
//! `history/check.rs`, what the clients do in `history/clients.rs`.

#[path = "history/check.rs"]
mod check;
#[path = "history/clients.rs"]
mod clients;
mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use check::{EMPTY, History, Session, State, Watch, What, Write, check_watcher, check_writes};
use clients::{Listener, Manner, Phase, Watcher, World, Writer, compact};
use common::Server;
use metastore::proto::etcdserverpb::RangeRequest;
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::mvccpb::Event;
use metastore::storage::disk::sim::SplitMix;
use tonic::transport::{Channel, Endpoint};

/// How often the server is killed.
const KILLS: usize = 2;
/// Revisions until then.
const REVISIONS: i64 = 300;
const WRITERS: usize = 6;
/// Watchers of the one stream that has many.
const CROWD: usize = 300;
/// Nothing takes that long, unless something is waited for that never comes.
const STUCK: Duration = Duration::from_secs(120);

/// Flushes and new segments within a round, cold reads, answers in parts from 576 KiB on, and progress at once.
const FLAGS: [&str; 7] = [
    "--flush-size=1MiB",
    "--log-segment-size=1MiB",
    "--disk-reserve=1MiB",
    "--cache-size=1MiB",
    "--max-request-bytes=65536",
    "--watch-progress-notify-interval=100ms",
    "--network-threads=2",
];

#[test]
fn all_that_clients_are_told_comes_from_one_history() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    let mut random = SplitMix(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut told = Told::default();
    let world = Arc::new(World::default());
    world.phase.send_modify(|phase| phase.heard = EMPTY);
    let mut server = start(dir.path());
    for round in 0..=KILLS {
        let whole = tokio::time::timeout;
        let played = runtime.block_on(async {
            whole(STUCK, told.play(&world, &mut server, &mut random, round)).await
        });
        assert!(played.is_ok(), "SEED={seed}: round {round} does not end");
        if round < KILLS {
            server = start(dir.path());
        }
    }
    let state = runtime.block_on(async { everything(server.channel()).await });
    let end = world.phase.borrow().end.expect("it was played to the end");
    told.check(end, state)
        .unwrap_or_else(|what| panic!("SEED={seed}: {what}"));
}

fn start(dir: &Path) -> Server {
    let binary = Path::new(env!("CARGO_BIN_EXE_metastore"));
    Server::start(binary, &dir.join("data"), &FLAGS)
}

async fn everything(channel: Channel) -> State {
    let all = RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    let answer = KvClient::new(channel).range(all).await;
    let kvs = answer.expect("the server answers").into_inner().kvs;
    kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect()
}

/// What the clients were told.
#[derive(Default)]
struct Told {
    writes: Vec<Write>,
    /// The first is the watcher of everything.
    listeners: Vec<Listener>,
}

impl Told {
    /// One round: until the server is killed, or, in the last one, until all have heard all.
    async fn play(
        &mut self,
        world: &Arc<World>,
        server: &mut Server,
        random: &mut SplitMix,
        round: usize,
    ) {
        world.phase.send_modify(|phase| {
            phase.killed = false;
            phase.silent = false;
            phase.last = None;
            phase.target = phase.heard + REVISIONS;
        });
        let phase = world.phase.borrow().clone();
        if round == 0 {
            self.listeners = listeners(random, &phase);
        }
        let endpoint = Endpoint::from_shared(server.endpoint.clone()).expect("it is a URL");
        let mut listening: Vec<_> = std::mem::take(&mut self.listeners)
            .into_iter()
            .map(|listener| tokio::spawn(listener.run(Arc::clone(world), endpoint.clone())))
            .collect();
        let observing = listening.remove(0);
        let compacting = tokio::spawn(compact(
            Arc::clone(world),
            server.channel(),
            SplitMix(random.draw()),
        ));
        let mut writing = Vec::new();
        for client in 0..WRITERS {
            let writer = Writer {
                client,
                bulk: client == 0,
                bell: client == WRITERS - 1,
                random: SplitMix(random.draw()),
                writes: Vec::new(),
            };
            writing.push(tokio::spawn(
                writer.run(Arc::clone(world), server.channel()),
            ));
        }
        if round < KILLS {
            let mut phases = world.phase.subscribe();
            let kill_at = phase.target - random.below(REVISIONS as u64 / 2) as i64;
            let come = phases.wait_for(|phase| phase.heard >= kill_at);
            drop(come.await.expect("the world is here"));
            world.phase.send_modify(|phase| phase.killed = true);
            server.kill();
        }
        // The last of them goes on until all others are done.
        let bell = writing.pop().expect("there are writers");
        for writing in writing {
            let writer = writing.await.expect("a writer does not panic");
            self.writes.extend(writer.writes);
        }
        if round == KILLS {
            world
                .phase
                .send_modify(|phase| phase.end = Some(world.told()));
        }
        compacting.await.expect("compacting does not panic");
        for listening in listening {
            let listener = listening.await.expect("a listener does not panic");
            self.listeners.push(listener);
        }
        world.phase.send_modify(|phase| phase.silent = true);
        let bell = bell.await.expect("a writer does not panic");
        self.writes.extend(bell.writes);
        world
            .phase
            .send_modify(|phase| phase.last = Some(world.told()));
        let observer = observing.await.expect("the observer does not panic");
        self.listeners.insert(0, observer);
    }

    fn check(&self, end: i64, state: State) -> Result<(), String> {
        let observer = &self.listeners[0].watchers[0];
        let heard: Vec<Event> = events(&observer.sessions).cloned().collect();
        let (history, last_state) = History::of(&heard)?;
        if last_state != state {
            return Err(format!(
                "the server has {state:?}, the history {last_state:?}"
            ));
        }
        check_writes(&history, &self.writes)?;
        let mut seen = Seen::default();
        for (number, listener) in self.listeners.iter().enumerate() {
            for watcher in &listener.watchers {
                let (watch, sessions) = (&watcher.watch, &watcher.sessions);
                let heard = check_watcher(&history, watch, sessions, Some(end));
                heard.map_err(|what| format!("{:?} {number}: {what}", listener.manner))?;
                seen.count(&watcher.sessions);
            }
        }
        let unanswered = self
            .writes
            .iter()
            .filter(|write| write.answer.is_none())
            .count();
        println!(
            "{} revisions, {unanswered} writes unanswered, {seen:?}",
            history.last
        );
        seen.is_enough()
    }
}

fn listeners(random: &mut SplitMix, phase: &Phase) -> Vec<Listener> {
    let all = Watch {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Watch::default()
    };
    let mut listeners = vec![Listener {
        manner: Manner::Observer,
        watchers: vec![Watcher::new(all, EMPTY)],
        random: SplitMix(random.draw()),
    }];
    let mut add = |manner, watchers, wide| {
        let mut drawn = Vec::new();
        for number in 0..watchers {
            let mut watcher = Watcher::draw(random, wide, phase);
            // Some choose a number, far from those that the server chooses.
            if random.below(3) == 0 {
                watcher.number = 1000 + number as i64;
            }
            drawn.push(watcher);
        }
        listeners.push(Listener {
            manner,
            watchers: drawn,
            random: SplitMix(random.draw()),
        });
    };
    add(Manner::Steady, CROWD, false);
    for _ in 0..4 {
        add(Manner::Steady, 1, true);
        add(Manner::Steady, 8, true);
        add(Manner::Restless, 5, true);
        add(Manner::Slow, 20, true);
    }
    listeners
}

fn events(sessions: &[Session]) -> impl Iterator<Item = &Event> {
    let heard = sessions.iter().flat_map(|session| &session.heard);
    heard.flat_map(|heard| match &heard.what {
        What::Events { events, .. } => &events[..],
        _ => &[],
    })
}

/// How often the watchers met what the test is about.
#[derive(Debug, Default)]
struct Seen {
    events: usize,
    sessions: usize,
    prevs: usize,
    /// Several revisions in one answer: it was read from history.
    slices: usize,
    parts: usize,
    compacted: usize,
    progress: usize,
    notified: usize,
}

impl Seen {
    fn count(&mut self, sessions: &[Session]) {
        self.sessions += sessions.len();
        for heard in sessions.iter().flat_map(|session| &session.heard) {
            match &heard.what {
                What::Events { events, more, .. } => {
                    let at = |event: &Event| event.kv.as_ref().map(|kv| kv.mod_revision);
                    let slice = events.first().map(at) != events.last().map(at);
                    self.events += events.len();
                    self.prevs += events
                        .iter()
                        .filter(|event| event.prev_kv.is_some())
                        .count();
                    self.slices += usize::from(slice);
                    self.parts += usize::from(*more);
                }
                What::Compacted(_) => self.compacted += 1,
                What::Progress { all: true, .. } => self.progress += 1,
                What::Progress { all: false, .. } => self.notified += 1,
                What::Created(_) | What::Canceled => {}
            }
        }
    }

    fn is_enough(&self) -> Result<(), String> {
        let counts = [
            self.prevs,
            self.slices,
            self.parts,
            self.compacted,
            self.progress,
            self.notified,
        ];
        match counts.contains(&0) {
            true => Err(format!(
                "the test did not meet all that it is about: {self:?}"
            )),
            false => Ok(()),
        }
    }
}
