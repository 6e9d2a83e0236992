//! The Cluster service: a cluster of one.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Context, not_built};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::cluster_server::Cluster;

/// See the module.
#[derive(Debug, Clone)]
pub struct ClusterService(pub Arc<Context>);

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let identity = self.0.engine.identity();
        // As etcd: answers about members name no revision.
        let header = self.0.header(0);
        Ok(Response::new(pb::MemberListResponse {
            header: Some(header),
            members: vec![pb::Member {
                id: identity.member_id,
                name: self.0.name.clone(),
                peer_ur_ls: identity.peer_urls.clone(),
                client_ur_ls: self.0.client_urls.clone(),
                is_learner: false,
            }],
        }))
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        not_built("MemberAdd")
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        not_built("MemberRemove")
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        not_built("MemberUpdate")
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        not_built("MemberPromote")
    }
}
