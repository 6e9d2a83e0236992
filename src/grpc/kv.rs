//! The KV service.

use std::sync::Arc;

use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Context, convert, held, range_stream};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::request_op;

/// See the module.
#[derive(Debug, Clone)]
pub struct KvService(pub Arc<Context>);

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let request = convert::range(request.into_inner())?;
        let (ranged, room) = self.0.engine.range(request).await?;
        let header = self.0.header(ranged.revision);
        Ok(held(convert::ranged(ranged, header), room))
    }

    type RangeStreamStream = ReceiverStream<Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let stream = range_stream::begin(&self.0, request.into_inner())?;
        Ok(Response::new(stream))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let request = request.into_inner();
        let size = request.encoded_len();
        self.0.engine.check_quota(put_cost(&request)).await?;
        let put = convert::put(request)?;
        self.0.check_size(size)?;
        let written = self.0.engine.put(put).await?;
        let header = self.0.header(written.revision);
        Ok(Response::new(convert::written(written, header)))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        let size = request.encoded_len();
        let delete = convert::delete_range(request)?;
        self.0.check_size(size)?;
        let deleted = self.0.engine.delete_range(delete).await?;
        let header = self.0.header(deleted.revision);
        Ok(Response::new(convert::deleted(deleted, header)))
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let request = request.into_inner();
        let size = request.encoded_len();
        self.0.engine.check_quota(txn_cost(&request)).await?;
        let txn = convert::txn(request, self.0.txn_ops_max)?;
        if !txn.is_read_only() {
            self.0.check_size(size)?;
        }
        let decided = self.0.engine.txn(txn, size).await?;
        let header = self.0.header(decided.revision);
        Ok(Response::new(convert::decided(decided, header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = request.into_inner();
        let newest = self
            .0
            .engine
            .compact(request.revision, request.physical)
            .await?;
        let header = Some(self.0.header(newest));
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}

/// What a put adds, as etcd reckons it, before anything of it is checked.
fn put_cost(put: &pb::PutRequest) -> u64 {
    256 + (put.key.len() + put.value.len()) as u64
}

/// What a txn adds at most: the greater of its branches.
fn txn_cost(txn: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| -> u64 {
        let cost = |op: &pb::RequestOp| match &op.request {
            Some(request_op::Request::RequestPut(put)) => put_cost(put),
            Some(request_op::Request::RequestTxn(txn)) => txn_cost(txn),
            _ => 0,
        };
        ops.iter().map(cost).sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}
