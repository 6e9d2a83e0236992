//! The Cluster service: a cluster of one.
//!
//! As etcd: answers about members name no revision (script `member`).

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::Context;
use super::status::Refused;
use crate::config;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::cluster_server::Cluster;

/// See the module.
#[derive(Debug, Clone)]
pub struct ClusterService(pub Arc<Context>);

impl ClusterService {
    fn is_ours(&self, id: u64) -> bool {
        id == self.0.engine.identity().member_id
    }

    fn members(&self) -> Vec<pb::Member> {
        let member = self.0.member();
        vec![pb::Member {
            id: member.id,
            name: member.name,
            peer_ur_ls: member.peer_urls,
            client_ur_ls: member.client_urls,
            is_learner: false,
        }]
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        Ok(Response::new(pb::MemberListResponse {
            header: Some(self.0.header(0)),
            members: self.members(),
        }))
    }

    /// Refused in the end: there is no way to serve with a second member.
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let urls = config::peer_urls(&request.into_inner().peer_ur_ls);
        let urls = urls.map_err(|_| Refused::BadUrls)?;
        // Both lists can be as long as a request: each of the one is not held against each of the other.
        let ours = HashSet::<String>::from_iter(self.0.member().peer_urls);
        if urls.iter().any(|url| ours.contains(url)) {
            return Err(Refused::UrlExists.into());
        }
        Err(Refused::NotEnoughStarted.into())
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        match self.is_ours(request.into_inner().id) {
            true => Err(Refused::NotEnoughStarted.into()),
            false => Err(Refused::NoMember.into()),
        }
    }

    /// As etcd: whatever the URLs are.
    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        self.0.check_size(request.encoded_len())?;
        if !self.is_ours(request.id) {
            return Err(Refused::NoMember.into());
        }
        self.0.engine.update_member(request.peer_ur_ls).await?;
        Ok(Response::new(pb::MemberUpdateResponse {
            header: Some(self.0.header(0)),
            members: self.members(),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        match self.is_ours(request.into_inner().id) {
            true => Err(Refused::NotALearner.into()),
            false => Err(Refused::NoMember.into()),
        }
    }
}
