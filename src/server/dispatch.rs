//! From a request's path to its service, and what is common to all calls.
//!
//! One comparison of the path and one call: no router between hyper and the generated services,
//! since each layer there costs every request (docs/performance.md).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

use super::Error;
use crate::engine::AnswerRoom;
use crate::engine::watches::Watches;
use crate::grpc::Context;
use crate::grpc::cluster::ClusterService;
use crate::grpc::kv::KvService;
use crate::grpc::lease::LeaseService;
use crate::grpc::maintenance::MaintenanceService;
use crate::grpc::watch::WatchService;
use crate::proto::DESCRIPTORS;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;

/// What a request may be larger than its limit in the log, before gRPC refuses it.
const OVERHEAD_BYTES: usize = 512 << 10;

/// Most bytes of an answer, as in etcd.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// Bytes of a large answer that are handed to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// How long a large answer may hold its room; a client that takes longer to read it does so beyond
/// the bound.
const ROOM_HELD_MAX: Duration = Duration::from_secs(60);

/// Services that etcd has and we do not yet.
const NOT_BUILT: [&str; 3] = [
    "/etcdserverpb.Auth/",
    "/v3lockpb.Lock/",
    "/v3electionpb.Election/",
];

/// All services, as one network thread has them.
#[derive(Debug, Clone)]
pub struct Services {
    kv: KvServer<KvService>,
    watch: WatchService,
    lease: LeaseServer<LeaseService>,
    /// What is called seldom.
    others: Routes,
}

impl Services {
    /// The services over one store, with watches of their own.
    pub async fn new(
        context: Arc<Context>,
        progress_interval: Duration,
    ) -> Result<Services, Error> {
        let request_bytes_max = context.request_bytes_max.saturating_add(OVERHEAD_BYTES);
        // An answer that is split has parts below what a request may take, as in etcd.
        let watches = Watches::new(Arc::clone(&context.engine), request_bytes_max);
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let mut others = Routes::builder();
        others
            .add_service(MaintenanceServer::new(MaintenanceService(Arc::clone(
                &context,
            ))))
            .add_service(ClusterServer::new(ClusterService(Arc::clone(&context))))
            .add_service(health)
            .add_service(reflection().build_v1().map_err(Error::Reflection)?)
            .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?);
        let lease = LeaseServer::new(LeaseService(Arc::clone(&context)))
            .max_encoding_message_size(ANSWER_BYTES_MAX);
        Ok(Services {
            watch: WatchService {
                watches: Arc::new(watches),
                progress_interval,
                request_bytes_max,
            },
            lease,
            kv: KvServer::new(KvService(context))
                .max_decoding_message_size(request_bytes_max)
                .max_encoding_message_size(ANSWER_BYTES_MAX),
            others: others.routes().prepare(),
        })
    }

    /// The watches of the thread, which must be attended to.
    pub fn watches(&self) -> &Arc<Watches> {
        &self.watch.watches
    }

    /// Answers one call.
    pub async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let headers = request.headers();
        if let Some(version) = headers.get("client-api-version")
            && std::str::from_utf8(version.as_bytes()).is_err()
        {
            let text = "etcdserver: invalid client api version";
            return Status::invalid_argument(text).into_http();
        }
        let patience = headers.get("grpc-timeout").and_then(timeout);
        let answer = self.route(request);
        let response = match patience {
            None => answer.await,
            Some(patience) => match tokio::time::timeout(patience, answer).await {
                Ok(response) => response,
                Err(_) => Status::deadline_exceeded("context deadline exceeded").into_http(),
            },
        };
        finish(response)
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let answer = if path.starts_with("/etcdserverpb.KV/") {
            self.kv.clone().call(request).await
        } else if path == WatchService::PATH {
            return self.watch.call(request).await;
        } else if path.starts_with("/etcdserverpb.Lease/") {
            self.lease.clone().call(request).await
        } else if NOT_BUILT.iter().any(|service| path.starts_with(service)) {
            let text = format!("{} is not supported yet", path.trim_start_matches('/'));
            return Status::unimplemented(text).into_http();
        } else {
            self.others.clone().call(request).await
        };
        answer.unwrap_or_else(|never| match never {})
    }
}

/// What every answer gets on its way out.
fn finish(mut response: Response<Body>) -> Response<Body> {
    if let Some(status) = response.headers_mut().get_mut("grpc-status") {
        // A message over the limit is OutOfRange to tonic, and ResourceExhausted to Go.
        let too_large = status == "11"
            && response
                .headers()
                .get("grpc-message")
                .is_some_and(|text| text.as_bytes().starts_with(b"Error,"));
        if too_large {
            return Status::new(
                Code::ResourceExhausted,
                "grpc: received message larger than max",
            )
            .into_http();
        }
    }
    if let Some(room) = response.extensions_mut().remove::<AnswerRoom>() {
        let room = Arc::new(Mutex::new(room));
        let held = Arc::downgrade(&room);
        // Who stops reading must not keep all others from large answers.
        tokio::spawn(async move {
            tokio::time::sleep(ROOM_HELD_MAX).await;
            if let Some(room) = held.upgrade() {
                *room.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        });
        return response.map(|body| {
            Body::new(Pieces {
                body,
                rest: Bytes::new(),
                _room: room,
            })
        });
    }
    response
}

/// The time that the client gives, as gRPC writes it: up to eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value
        .to_str()
        .ok()?
        .split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A large answer, handed over in pieces as the client takes them, so that its room is held until
/// nearly all of it is sent.
struct Pieces {
    body: Body,
    rest: Bytes,
    _room: Arc<Mutex<AnswerRoom>>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        let of = |text: &str| timeout(&HeaderValue::from_str(text).expect("a header value"));
        assert_eq!(of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            of("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "S", "5", "5x", "-5S", "123456789S", "5ä"] {
            let value = HeaderValue::from_bytes(wrong.as_bytes()).expect("a header value");
            assert!(
                timeout(&value).is_none_or(|t| wrong == "S" && t.is_zero()),
                "{wrong}"
            );
        }
    }
}
