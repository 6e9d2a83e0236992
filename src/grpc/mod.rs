//! etcd's gRPC services. Each method translates, calls the engine once, translates back.

pub mod cluster;
pub mod convert;
mod downgrade;
pub mod kv;
pub mod lease;
pub mod logged;
pub mod maintenance;
mod range_stream;
pub mod status;
pub mod watch;

use std::sync::Arc;

use tokio::sync::watch::Receiver;
use tonic::Response;

use crate::engine::{AnswerRoom, Engine};
use crate::mvcc::Error;
use crate::proto::etcdserverpb as pb;
use crate::snapshot::contents::Member;

/// What the services share.
#[derive(Debug)]
pub struct Context {
    /// The store's engine.
    pub engine: Arc<Engine>,
    /// Most guards and operations of a txn.
    pub txn_ops_max: usize,
    /// Most bytes of a request that is logged.
    pub request_bytes_max: usize,
    /// Most bytes of data, as Status tells; below 0 is no quota.
    pub quota_bytes: i64,
    /// The member's name.
    pub name: String,
    /// URLs offered to clients.
    pub client_urls: Vec<String>,
    /// Turns true when the server stops: streams that have no end of their own end then.
    pub stopping: Receiver<bool>,
}

/// Bytes that etcd wraps around a request in its log; a request may be that much smaller than the
/// limit, give or take the one byte by which etcd's own varies.
const ENVELOPE_BYTES: usize = 18;

/// An answer that holds its room until it is sent.
fn held<T>(answer: T, room: AnswerRoom) -> Response<T> {
    let mut response = Response::new(answer);
    if room.is_some() {
        response.extensions_mut().insert::<AnswerRoom>(room);
    }
    response
}

impl Context {
    /// Resolves when the server stops.
    pub async fn stopped(&self) {
        // It only fails if the server has already gone.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// A header with all four fields.
    pub fn header(&self, revision: u64) -> pb::ResponseHeader {
        let identity = self.engine.identity();
        pb::ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision: revision as i64,
            raft_term: self.engine.term(),
        }
    }

    /// The one member, as it stands.
    pub fn member(&self) -> Member {
        let (engine, view) = (&self.engine, self.engine.view());
        Member {
            name: self.name.clone(),
            client_urls: self.client_urls.clone(),
            ..Member::of(&view, engine.identity(), engine.term())
        }
    }

    /// Refuses a request that etcd's log would not take.
    pub fn check_size(&self, encoded_len: usize) -> Result<(), Error> {
        if encoded_len + ENVELOPE_BYTES > self.request_bytes_max {
            return Err(Error::RequestTooLarge);
        }
        Ok(())
    }
}
