//! The client: the generated tonic clients over a bare HTTP/2 connection.
//!
//! It shares the machine with the server it measures, so it leaves out what tonic's `Channel` adds
//! for comfort: no buffer task, no reconnecting, no layers. An error ends the work item.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use metastore::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore::proto::etcdserverpb::kv_client::KvClient;
use metastore::proto::etcdserverpb::lease_client::LeaseClient;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::request_op::Request as Op;
use metastore::proto::etcdserverpb::response_op::Response as OpResponse;
use metastore::proto::etcdserverpb::{
    CompactionRequest, Compare, DefragmentRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, SnapshotRequest, TxnRequest,
};
use tokio::net::TcpStream;
use tonic::body::Body;
use tower::Service;

use crate::Failure;

/// Lists of 500,000 keys come in one message.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// One HTTP/2 connection; its clones share it.
#[derive(Clone)]
pub(crate) struct Connection(SendRequest<Body>);

impl Connection {
    /// Connects once. The connection's own task ends with the runtime, or with the peer.
    pub(crate) async fn open(port: u16) -> Result<Self, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await?;
        // A broken connection shows in the requests that it carried.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self(sender))
    }
}

impl Service<hyper::Request<Body>> for Connection {
    type Response = hyper::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// What the work items ask of a server, in etcd's messages.
#[derive(Clone)]
pub(crate) struct Client {
    kv: KvClient<Connection>,
    leases: LeaseClient<Connection>,
    maintenance: MaintenanceClient<Connection>,
}

impl Client {
    pub(crate) fn new(connection: Connection, port: u16) -> Self {
        let origin: Uri = format!("http://127.0.0.1:{port}")
            .parse()
            .expect("an address and a port make a URI");
        let leases = LeaseClient::with_origin(connection.clone(), origin.clone());
        let maintenance = MaintenanceClient::with_origin(connection.clone(), origin.clone());
        let kv =
            KvClient::with_origin(connection, origin).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self {
            kv,
            leases,
            maintenance,
        }
    }

    pub(crate) async fn open(port: u16) -> Result<Self, Failure> {
        Ok(Self::new(Connection::open(port).await?, port))
    }

    pub(crate) async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        self.put_with_lease(key, value, 0).await
    }

    /// A key that ends with its lease; 0 is none.
    pub(crate) async fn put_with_lease(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: i64,
    ) -> Result<(), Failure> {
        let request = PutRequest {
            key,
            value,
            lease,
            ..PutRequest::default()
        };
        self.kv.put(request).await?;
        Ok(())
    }

    /// Grants a lease, of an id that the server chooses if it is 0; answers the id.
    pub(crate) async fn grant(&mut self, id: i64, ttl_secs: u64) -> Result<i64, Failure> {
        let ttl = ttl_secs as i64;
        let request = LeaseGrantRequest { id, ttl };
        let answer = self.leases.lease_grant(request).await?.into_inner();
        if answer.ttl != ttl {
            return Err(format!("granted {} s instead of {ttl}", answer.ttl).into());
        }
        Ok(answer.id)
    }

    pub(crate) async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        Ok(self.kv.range(request).await?.into_inner())
    }

    /// One key, now or at an old revision. The key need not exist.
    pub(crate) async fn get(
        &mut self,
        key: Bytes,
        revision: i64,
    ) -> Result<RangeResponse, Failure> {
        self.range(RangeRequest {
            key,
            revision,
            ..RangeRequest::default()
        })
        .await
    }

    /// The store's newest revision.
    pub(crate) async fn revision(&mut self) -> Result<i64, Failure> {
        let answer = self.get(Bytes::from_static(b"/"), 0).await?;
        let header = answer.header.ok_or("an answer without a header")?;
        Ok(header.revision)
    }

    /// Writes if the key still stands at `expected`; answers whether it did, and where it stands now.
    pub(crate) async fn compare_and_swap(
        &mut self,
        key: Bytes,
        expected: i64,
        value: Bytes,
    ) -> Result<(bool, i64), Failure> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(expected)),
            ..Compare::default()
        };
        let put = PutRequest {
            key: key.clone(),
            value,
            ..PutRequest::default()
        };
        let get = RangeRequest {
            key,
            ..RangeRequest::default()
        };
        let request = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp {
                request: Some(Op::RequestPut(put)),
            }],
            failure: vec![RequestOp {
                request: Some(Op::RequestRange(get)),
            }],
        };
        let answer = self.kv.txn(request).await?.into_inner();
        let header = answer.header.ok_or("an answer without a header")?;
        if answer.succeeded {
            return Ok((true, header.revision));
        }
        match answer
            .responses
            .into_iter()
            .next()
            .and_then(|answer| answer.response)
        {
            Some(OpResponse::ResponseRange(range)) => {
                Ok((false, range.kvs.first().map_or(0, |kv| kv.mod_revision)))
            }
            other => Err(format!("a failed swap answered {other:?}").into()),
        }
    }

    /// Compacts, and waits until the rows have left the disk.
    pub(crate) async fn compact(&mut self, revision: i64) -> Result<(), Failure> {
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        self.kv.compact(request).await?;
        Ok(())
    }

    pub(crate) async fn defragment(&mut self) -> Result<(), Failure> {
        let defragmented = self.maintenance.defragment(DefragmentRequest {}).await;
        defragmented.map_err(|status| format!("Defragment: {status}"))?;
        Ok(())
    }

    /// Reads a snapshot to its end, and keeps nothing of it; answers its bytes.
    pub(crate) async fn snapshot(&mut self) -> Result<u64, Failure> {
        let mut parts = self
            .maintenance
            .snapshot(SnapshotRequest {})
            .await?
            .into_inner();
        let (mut bytes, mut left) = (0, None);
        while let Some(part) = parts.message().await? {
            bytes += part.blob.len() as u64;
            left = Some(part.remaining_bytes);
        }
        match left {
            Some(0) => Ok(bytes),
            _ => Err(format!("a snapshot ended with {left:?} bytes to come").into()),
        }
    }
}

/// Asks again, a millisecond apart, until the server answers a Get or the deadline passes.
pub(crate) async fn first_answer(port: u16) -> Client {
    loop {
        if let Ok(mut client) = Client::open(port).await
            && client.revision().await.is_ok()
        {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
