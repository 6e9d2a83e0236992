//! Watches as a network thread has them: who is woken when, and who waits for whom.

mod common;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use common::store::TestStore;
use metastore::engine::watches::{WatchStream, Watches};
use metastore::mvcc::request::Put;
use metastore::storage::key_range::KeyRange;
use metastore::watch::answer::Answer;
use metastore::watch::watcher::{Create, Wants};
use tokio::runtime::{Builder, Runtime};

/// How long an answer may take that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network thread, which moves when the test waits for an answer, and at no other time.
struct Network {
    runtime: Runtime,
    watches: Arc<Watches>,
}

impl Network {
    fn new(store: &TestStore) -> Network {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be built");
        let watches = Arc::new(Watches::new(Arc::clone(store.engine()), 2 << 20));
        runtime.spawn(Arc::clone(&watches).attend());
        Network { runtime, watches }
    }

    fn next(&self, stream: &WatchStream) -> Answer {
        let answer = poll_fn(|context| stream.poll_answer(context));
        let answer = async { tokio::time::timeout(PATIENCE, answer).await };
        let answer = self.runtime.block_on(answer).expect("an answer comes");
        answer.expect("nobody ends the stream")
    }

    fn is_silent(&self, stream: &WatchStream) -> bool {
        let poll = poll_fn(|context| Poll::Ready(stream.poll_answer(context).is_pending()));
        self.runtime.block_on(poll)
    }
}

fn put(key: &str, value: &str) -> Put {
    Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn from_now(key: &'static str, prev_kv: bool) -> Create {
    Create {
        id: 0,
        range: KeyRange::single(Bytes::from_static(key.as_bytes())),
        start: 0,
        wants: Wants {
            prev_kv,
            ..Wants::default()
        },
        fragment: false,
        progress_notify: false,
    }
}

fn revision(answer: &Answer) -> u64 {
    match answer {
        Answer::Created { revision, .. } | Answer::Events { revision, .. } => *revision,
        other => panic!("{other:?}"),
    }
}

/// While a network thread stands still its hub's next changes may be flushed: then its watchers go on from the tables,
/// though nothing is published any more.
#[test]
fn a_hub_that_a_flush_has_overtaken_misses_nothing() {
    let store = TestStore::new();
    let network = Network::new(&store);
    let streams = [false, true].map(|prev_kv| {
        let stream = network.watches.open();
        stream.create(from_now("k", prev_kv));
        assert_eq!(revision(&network.next(&stream)), 1);
        stream
    });
    store.put(put("k", "1")).expect("it is taken");
    for stream in &streams {
        assert_eq!(revision(&network.next(stream)), 2);
    }
    store.put(put("k", "2")).expect("it is taken");
    // Answers when all is in the tables.
    store.compact(1, true).expect("it is taken");
    for stream in &streams {
        assert_eq!(revision(&network.next(stream)), 3);
        assert!(network.is_silent(stream));
    }
    store.put(put("k", "3")).expect("it is taken");
    for stream in &streams {
        assert_eq!(revision(&network.next(stream)), 4);
    }
}
