//! Watch streams of a script: what is sent on them, and waiting for what comes back.
//!
//! A script waits for conditions, so it must know what bounds what. Of one stream, on every server:
//! - created and canceled answers come in the order of their requests;
//! - a progress answer at P comes after all events up to P, of all watchers that were there when it was asked for;
//! - requests are done one after another: once a later one is answered, an earlier one is done with.
//!
//! So silence is proved by a fence:
//! - of events, by `see S progress`;
//! - of answers to a create or cancel, by another create or cancel;
//! - of a progress request that must stay without answer, by a later create, then an event of a watcher that was synced
//!   all along: an answer would have come before that event.
//!
//! Every answer is held against `watch_rules.rs` as it comes. What came and was not shown fails the script.

use std::time::Duration;

use metastore::proto::etcdserverpb::watch_client::WatchClient;
use metastore::proto::etcdserverpb::watch_create_request::FilterType;
use metastore::proto::etcdserverpb::watch_request::RequestUnion;
use metastore::proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::answer;
use super::request::{Error, Words};
use super::watch_rules::{Answer, Kind, Rules};

/// How long to wait for what a script says must come.
const WAIT: Duration = Duration::from_secs(20);
/// How long to wait for progress before it is asked for again: a request may go without an answer.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What `watch STREAM ...` asks for.
pub(crate) enum Step {
    Send { request: WatchRequest, waits: bool },
    HalfClose,
    Close,
}

/// `watch STREAM ...`: the stream's name, and what to do with it.
pub(crate) fn step(mut words: Words<'_>) -> Result<(&str, Step), Error> {
    let stream = words.first("the stream")?;
    let step = match words.first("what to do")? {
        "create" => send(create(&mut words)?, !words.flag("nowait")),
        "cancel" => {
            let watch_id = words.first("the watcher")?.parse()?;
            let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id });
            send(Some(cancel), !words.flag("nowait"))
        }
        "progress" => {
            let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
            send(Some(progress), false)
        }
        "empty" => send(None, false),
        "half_close" => Step::HalfClose,
        "close" => Step::Close,
        word => return Err(format!("a stream cannot {word:?}").into()),
    };
    words.done((stream, step))
}

fn send(request_union: Option<RequestUnion>, waits: bool) -> Step {
    Step::Send {
        request: WatchRequest { request_union },
        waits,
    }
}

fn create(words: &mut Words<'_>) -> Result<Option<RequestUnion>, Error> {
    let key = words.key()?;
    let request = WatchCreateRequest {
        range_end: words.range_end(&key)?,
        key,
        start_revision: words.number("rev")?,
        progress_notify: words.flag("progress_notify"),
        filters: filters(words)?,
        prev_kv: words.flag("prev_kv"),
        watch_id: words.number("id")?,
        fragment: words.flag("fragment"),
    };
    Ok(Some(RequestUnion::CreateRequest(request)))
}

fn filters(words: &mut Words<'_>) -> Result<Vec<i32>, Error> {
    let mut filters = Vec::new();
    while let Some(filter) = words.named("filter") {
        filters.push(match filter {
            "noput" => FilterType::Noput as i32,
            "nodelete" => FilterType::Nodelete as i32,
            number => number.parse()?,
        });
    }
    Ok(filters)
}

/// What `see STREAM ...` waits for: at least so many of each kind.
#[derive(Debug)]
pub(crate) struct Awaited {
    events: usize,
    created: usize,
    canceled: usize,
    progress: bool,
    /// A periodic answer of this watcher.
    notified: Option<i64>,
}

/// `see STREAM ...`: the stream's name, and what must have come.
pub(crate) fn awaited(mut words: Words<'_>) -> Result<(&str, Awaited), Error> {
    let stream = words.first("the stream")?;
    let mut count = |name| -> Result<usize, Error> {
        let one = usize::from(words.flag(name));
        Ok(words
            .named(name)
            .map(str::parse)
            .transpose()?
            .unwrap_or(one))
    };
    let awaited = Awaited {
        events: count("events")?,
        created: count("created")?,
        canceled: count("canceled")?,
        progress: words.flag("progress"),
        notified: words.named("notified").map(str::parse).transpose()?,
    };
    words.done((stream, awaited))
}

impl Awaited {
    /// Whether it waits for progress, which must then be that of the store.
    pub(crate) fn is_for_progress(&self) -> bool {
        self.progress || self.notified.is_some()
    }

    fn has_come(&self, answers: &[Answer], revision: i64) -> bool {
        let count = |kind| answers.iter().filter(|answer| answer.kind == kind).count();
        let told = |kind, watch_id: Option<i64>| {
            let mut told = answers.iter().filter(|answer| answer.kind == kind);
            told.any(|answer| {
                let response = &answer.response;
                watch_id.is_none_or(|id| id == response.watch_id) && answer.revision() >= revision
            })
        };
        let events: usize = answers.iter().map(|a| a.response.events.len()).sum();
        events >= self.events
            && count(Kind::Created) >= self.created
            && count(Kind::Canceled) >= self.canceled
            && (!self.progress || told(Kind::Progress, None))
            && (self.notified.is_none() || told(Kind::Notified, self.notified))
    }
}

/// An open stream, on a connection of its own so that it holds up no other request.
pub(crate) struct Stream {
    /// Nothing once the client has closed its half.
    requests: Option<mpsc::Sender<WatchRequest>>,
    answers: mpsc::Receiver<Result<WatchResponse, Status>>,
    rules: Rules,
    /// What came and was not shown yet.
    unseen: Vec<Answer>,
    /// So many progress answers more may come, because progress was asked for again.
    spare_progress: usize,
}

impl Stream {
    /// Must be called in a runtime.
    pub(crate) fn open(channel: Channel) -> Self {
        let (requests, sent) = mpsc::channel(1);
        let (came, answers) = mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                () = came.closed() => {}
                () = read(channel, sent, &came) => {}
            }
        });
        Self {
            requests: Some(requests),
            answers,
            rules: Rules::default(),
            unseen: Vec::new(),
            spare_progress: 0,
        }
    }

    /// Sends a request. If it waits, the answer to it, and nothing else, is shown at once.
    pub(crate) async fn send(
        &mut self,
        request: WatchRequest,
        waits: bool,
    ) -> Result<String, Error> {
        let kind = match request.request_union {
            Some(RequestUnion::CreateRequest(_)) => Kind::Created,
            _ => Kind::Canceled,
        };
        self.rules.sent(&request);
        let requests = self.requests.as_ref().ok_or("the half is closed")?;
        requests.send(request).await?;
        if !waits {
            return Ok(String::new());
        }
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(at) = self.unseen.iter().position(|answer| answer.kind == kind) {
                return Ok(answer::watch(&[self.unseen.remove(at)]));
            }
            if !self.receive(deadline).await? {
                self.fail(kind);
            }
        }
    }

    pub(crate) fn half_close(&mut self) {
        self.requests = None;
    }

    /// Waits, for progress until it is at `revision` or later, and shows all that came until then.
    pub(crate) async fn see(&mut self, awaited: &Awaited, revision: i64) -> Result<String, Error> {
        let deadline = Instant::now() + WAIT;
        if awaited.progress {
            self.ask_for_progress().await?;
        }
        let mut ask_again = Instant::now() + ASK_AGAIN;
        while !awaited.has_come(&self.unseen, revision) {
            let next = if awaited.progress {
                ask_again
            } else {
                deadline
            };
            if self.receive(next.min(deadline)).await? {
                continue;
            }
            if Instant::now() >= deadline {
                self.fail(awaited);
            }
            self.ask_for_progress().await?;
            self.spare_progress += 1;
            ask_again = Instant::now() + ASK_AGAIN;
        }
        let mut seen = std::mem::take(&mut self.unseen);
        self.drop_spare_progress(&mut seen, usize::from(awaited.progress));
        drop_notified(&mut seen, awaited.notified);
        Ok(answer::watch(&seen))
    }

    async fn ask_for_progress(&mut self) -> Result<(), Error> {
        let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
        let request_union = Some(progress);
        self.send(WatchRequest { request_union }, false).await?;
        Ok(())
    }

    /// Takes the next answer, or says that none came in time.
    async fn receive(&mut self, deadline: Instant) -> Result<bool, Error> {
        let Ok(next) = timeout_at(deadline, self.answers.recv()).await else {
            return Ok(false);
        };
        let part = next.ok_or("the stream is over")?;
        let part = part.map_err(|status| answer::refusal(&status))?;
        self.unseen.extend(self.rules.take(part));
        Ok(true)
    }

    fn fail(&self, awaited: impl std::fmt::Debug) -> ! {
        let came = answer::watch(&self.unseen);
        panic!("{awaited:?} did not come within {WAIT:?}, but this did:\n{came}");
    }

    /// Of more progress answers than were wanted the first are dropped, as far as asking again explains them.
    fn drop_spare_progress(&mut self, seen: &mut Vec<Answer>, wanted: usize) {
        let is_progress = |answer: &Answer| answer.kind == Kind::Progress;
        let surplus = seen.iter().filter(|answer| is_progress(answer)).count();
        let mut surplus = surplus.saturating_sub(wanted).min(self.spare_progress);
        self.spare_progress -= surplus;
        seen.retain(|answer| {
            let dropped = surplus > 0 && is_progress(answer);
            surplus -= usize::from(dropped);
            !dropped
        });
    }

    /// Ends the stream. Nothing may have come that the script did not see.
    pub(crate) fn close(mut self) -> Result<(), Error> {
        while let Ok(Ok(part)) = self.answers.try_recv() {
            self.unseen.extend(self.rules.take(part));
        }
        let mut unseen = std::mem::take(&mut self.unseen);
        self.drop_spare_progress(&mut unseen, 0);
        drop_notified(&mut unseen, None);
        match unseen.as_slice() {
            [] => Ok(()),
            unseen => Err(format!("nothing waited for\n{}", answer::watch(unseen)).into()),
        }
    }
}

/// How many periodic answers come is a matter of time: one is kept, the last of the watcher that was waited for.
fn drop_notified(seen: &mut Vec<Answer>, wanted: Option<i64>) {
    let is_wanted =
        |answer: &Answer| answer.kind == Kind::Notified && Some(answer.response.watch_id) == wanted;
    let last = seen.iter().rposition(is_wanted);
    let mut at = 0..;
    seen.retain(|answer| {
        let at = at.next();
        answer.kind != Kind::Notified || at == last
    });
}

/// Opens the stream and hands on what comes. Not a step of the script, because etcd answers nothing, not even headers,
/// before the first request.
async fn read(
    channel: Channel,
    sent: mpsc::Receiver<WatchRequest>,
    came: &mpsc::Sender<Result<WatchResponse, Status>>,
) {
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut answers = match client.watch(ReceiverStream::new(sent)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return drop(came.send(Err(status)).await),
    };
    while let Some(part) = answers.message().await.transpose() {
        if came.send(part).await.is_err() {
            return;
        }
    }
}
