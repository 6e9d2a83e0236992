//! The Watch service: a stream of requests, a stream of answers.
//!
//! Events come from the hub in the wire's own bytes, so this service has a codec of its own, which
//! lays them behind one another; the rest of an answer is a message as anywhere else.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready as unless_pending};
use std::time::Duration;

use prost::Message;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::Stream;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstDecoder;

use super::convert;
use crate::engine::watches::{WatchStream, Watches};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::watch::answer::{Answer, End, Origin};

/// Buffers of a stream, which is mostly idle: they grow with what it carries, and a frame is handed
/// on when it has more than the second number.
const READ_BUFFER_BYTES: usize = 512;
const WRITE_BUFFER_BYTES: usize = 1024;
const FRAME_BYTES: usize = 32 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub struct WatchService {
    /// Those of the network thread.
    pub watches: Arc<Watches>,
    /// How often a watcher that asks for it is told how far it has heard.
    pub progress_interval: Duration,
    /// Most bytes of a request.
    pub request_bytes_max: usize,
}

impl WatchService {
    /// Where the one method is called.
    pub const PATH: &str = "/etcdserverpb.Watch/Watch";

    /// Serves one stream.
    pub async fn call<B>(&self, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let codec = WatchCodec(self.watches.origin());
        Grpc::new(codec)
            .max_decoding_message_size(self.request_bytes_max)
            .max_encoding_message_size(usize::MAX)
            .streaming(self.clone(), request)
            .await
    }
}

impl StreamingService<pb::WatchRequest> for WatchService {
    type Response = Answer;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<pb::WatchRequest>>) -> Self::Future {
        let stream = Arc::new(self.watches.open());
        let fault = Arc::new(OnceLock::new());
        let reading = read(
            request.into_inner(),
            Arc::clone(&stream),
            self.progress_interval,
            Arc::clone(&fault),
        );
        let reading = tokio::spawn(reading).abort_handle();
        ready(Ok(Response::new(Answers {
            stream,
            fault,
            reading,
            ended: false,
        })))
    }
}

/// Reads a stream's requests, one after the other, and sees to its progress. The end of the
/// requests is not that of the stream (as etcd: script `watch_stream`).
async fn read(
    mut requests: Streaming<pb::WatchRequest>,
    stream: Arc<WatchStream>,
    interval: Duration,
    fault: Arc<OnceLock<Status>>,
) {
    let interval = spread(interval, stream.number());
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut open = true;
    loop {
        stream.room().await;
        let request = tokio::select! {
            request = requests.message(), if open => request,
            _ = ticks.tick() => {
                stream.notify_progress();
                continue;
            }
        };
        match request {
            Ok(Some(request)) => serve(&stream, request).await,
            Ok(None) => open = false,
            Err(status) => {
                let _ = fault.set(in_go_s_words(status));
                return stream.end(End::BadRequest);
            }
        }
    }
}

async fn serve(stream: &WatchStream, request: pb::WatchRequest) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => stream.create(convert::create(create)),
        Some(RequestUnion::CancelRequest(cancel)) => stream.cancel(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => stream.request_progress().await,
        None => {}
    }
}

/// Up to a tenth is added, so that not all streams tell their progress at once; as in etcd, once a
/// stream.
fn spread(interval: Duration, number: u64) -> Duration {
    // The fractional parts of multiples of the golden ratio lie apart.
    let part = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    interval + interval.mul_f64(part as f64 / 2f64.powi(32) / 10.0)
}

/// A message over the limit is OutOfRange to tonic, and ResourceExhausted to Go.
fn in_go_s_words(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted("grpc: received message larger than max"),
        _ => status,
    }
}

/// The answers of a stream. Dropping them closes the stream.
#[derive(Debug)]
pub struct Answers {
    stream: Arc<WatchStream>,
    /// Why reading requests failed, if it did.
    fault: Arc<OnceLock<Status>>,
    reading: AbortHandle,
    ended: bool,
}

impl Stream for Answers {
    type Item = Result<Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let end = match unless_pending!(self.stream.poll_answer(cx)) {
            Ok(answer) => return Poll::Ready(Some(Ok(answer))),
            Err(end) => end,
        };
        self.ended = true;
        let status = match (end, self.fault.get()) {
            (End::BadRequest, Some(status)) => status.clone(),
            _ => Status::unavailable("etcdserver: server stopped"),
        };
        Poll::Ready(Some(Err(status)))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Requests as messages, answers as the hub has them.
#[derive(Debug, Clone, Copy)]
struct WatchCodec(Origin);

impl Codec for WatchCodec {
    type Encode = Answer;
    type Decode = pb::WatchRequest;
    type Encoder = WatchCodec;
    type Decoder = ProstDecoder<pb::WatchRequest>;

    fn encoder(&mut self) -> WatchCodec {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(READ_BUFFER_BYTES, FRAME_BYTES))
    }
}

impl Encoder for WatchCodec {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match &answer {
            Answer::Events {
                id,
                revision,
                fragment,
                fields,
            } => {
                out.reserve(answer.bytes());
                self.0.encode_events(*id, *revision, *fragment, fields, out);
            }
            _ => {
                let message = convert::answer(answer, self.0);
                message.encode(out).expect("the buffer grows");
            }
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(WRITE_BUFFER_BYTES, FRAME_BYTES)
    }
}
