//! The Lease service.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Context, convert, held};
use crate::mvcc::Error;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::lease_server::Lease;

/// What a grant adds, as etcd reckons it.
const GRANT_COST: u64 = 64;

/// Answers of a keep-alive stream that wait for the client to take them.
const ANSWERS_WAITING_MAX: usize = 16;

/// See the module.
#[derive(Debug, Clone)]
pub struct LeaseService(pub Arc<Context>);

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        self.0.engine.check_quota(GRANT_COST).await?;
        let granted = self.0.engine.grant(request.id, request.ttl).await?;
        let header = self.0.header(granted.revision);
        Ok(Response::new(convert::granted(granted, header)))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let revision = self.0.engine.revoke(request.into_inner().id).await?;
        let header = Some(self.0.header(revision));
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (sender, answers) = mpsc::channel(ANSWERS_WAITING_MAX);
        let context = Arc::clone(&self.0);
        let requests = request.into_inner();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = keep_alive(&context, requests, &sender) => ended,
                () = context.stopped() => Err(Error::Stopped.into()),
            };
            if let Err(status) = ended {
                // One who has gone needs no answer.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let (answer, room) = self.0.engine.time_to_live(id, keys).await?;
        let header = self.0.header(answer.revision);
        Ok(held(convert::time_to_live(id, answer, header), room))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let (ids, revision, room) = self.0.engine.leases().await?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id });
        let answer = pb::LeaseLeasesResponse {
            header: Some(self.0.header(revision)),
            leases: leases.collect(),
        };
        Ok(held(answer, room))
    }
}

/// Answers each request in turn, until the client has no more.
async fn keep_alive(
    context: &Context,
    mut requests: Streaming<pb::LeaseKeepAliveRequest>,
    answers: &mpsc::Sender<Result<pb::LeaseKeepAliveResponse, Status>>,
) -> Result<(), Status> {
    while let Some(request) = requests.message().await? {
        let kept = context.engine.keep_alive(request.id).await?;
        let answer = pb::LeaseKeepAliveResponse {
            header: Some(context.header(kept.revision)),
            id: request.id,
            ttl: kept.ttl_secs as i64,
        };
        if answers.send(Ok(answer)).await.is_err() {
            break;
        }
    }
    Ok(())
}
