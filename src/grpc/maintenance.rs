//! The Maintenance service.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::Refused;
use super::{Context, convert, downgrade};
use crate::config::{CLUSTER_VERSION, ETCD_VERSION};
use crate::engine::alarm::{self, Alarm};
use crate::engine::quota;
use crate::mvcc::Error;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::snapshot::STORAGE_VERSION;

/// Parts of a snapshot that wait for the connection to take them.
const PARTS_WAITING_MAX: usize = 1;

type Part = Result<pb::SnapshotResponse, Status>;

/// See the module.
#[derive(Debug, Clone)]
pub struct MaintenanceService(pub Arc<Context>);

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let view = self.0.engine.view();
        let header = self.0.header(view.revision);
        Ok(Response::new(pb::StatusResponse {
            version: ETCD_VERSION.into(),
            db_size: quota::file_bytes(&view) as i64,
            db_size_in_use: quota::used_bytes(&view) as i64,
            leader: header.member_id,
            raft_index: view.index,
            raft_applied_index: view.index,
            raft_term: header.raft_term,
            errors: alarm::raised(&view.small)
                .map(convert::alarm_text)
                .collect(),
            is_learner: false,
            storage_version: STORAGE_VERSION.into(),
            db_size_quota: self.0.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
            header: Some(header),
        }))
    }

    /// As etcd: an alarm of no kind is neither raised nor cleared, and of a kind that does not exist
    /// there is none (script `alarm`). Other than etcd we do not raise such a one, which would mean
    /// nothing, and do not die of an action that is none.
    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        let request = request.into_inner();
        let alarm = convert::alarm(request.member_id, request.alarm);
        let (alarms, revision) = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let view = self.0.engine.view();
                let is_asked = |raised: &Alarm| {
                    request.alarm == 0 || alarm.is_some_and(|alarm| alarm.kind == raised.kind)
                };
                let alarms = alarm::raised(&view.small).filter(is_asked).collect();
                (alarms, view.revision)
            }
            Ok(AlarmAction::Activate) => match alarm {
                Some(alarm) => (vec![alarm], self.0.engine.raise(alarm).await?),
                None if request.alarm == 0 => (Vec::new(), self.0.engine.view().revision),
                None => {
                    let kind = request.alarm;
                    let text = format!("there is no kind {kind} of alarms");
                    return Err(Status::invalid_argument(text));
                }
            },
            Ok(AlarmAction::Deactivate) => match alarm {
                Some(alarm) => {
                    let (was_there, revision) = self.0.engine.clear(alarm).await?;
                    (Vec::from_iter(was_there.then_some(alarm)), revision)
                }
                None => (Vec::new(), self.0.engine.view().revision),
            },
            Err(_) => {
                let action = request.action;
                let text = format!("there is no action {action} on alarms");
                return Err(Status::invalid_argument(text));
            }
        };
        Ok(Response::new(pb::AlarmResponse {
            header: Some(self.0.header(revision)),
            alarms: alarms.into_iter().map(convert::alarm_member).collect(),
        }))
    }

    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        tokio::select! {
            defragmented = self.0.engine.defragment() => defragmented?,
            () = self.0.stopped() => return Err(Error::Stopped.into()),
        }
        Ok(Response::new(pb::DefragmentResponse::default()))
    }

    async fn hash(
        &self,
        _: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        let (hash, newest) = self.0.engine.hash(self.0.member()).await?;
        Ok(Response::new(pb::HashResponse {
            header: Some(self.0.header(newest)),
            hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let hashed = self.0.engine.hash_kv(request.into_inner().revision).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.0.header(hashed.newest)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.hash_revision,
        }))
    }

    type SnapshotStream = ReceiverStream<Part>;

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let (sender, parts) = mpsc::channel(PARTS_WAITING_MAX);
        let context = Arc::clone(&self.0);
        tokio::spawn(async move {
            // What is done for a client ends with it, at once.
            tokio::select! {
                () = sender.closed() => {}
                sent = send_snapshot(&context, &sender) => {
                    if let Err(error) = sent {
                        let _ = sender.send(Err(error.into())).await;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    /// To the one member there is.
    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        if request.into_inner().target_id != self.0.engine.identity().member_id {
            return Err(Refused::BadTransferee.into());
        }
        // As etcd: without a header (script `move_leader`).
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        downgrade::judge(&request.into_inner())?;
        let (major, minor) = CLUSTER_VERSION;
        Ok(Response::new(pb::DowngradeResponse {
            header: Some(self.0.header(self.0.engine.view().revision)),
            version: format!("{major}.{minor}"),
        }))
    }
}

/// Sends the database, and its checksum in a part of its own.
async fn send_snapshot(context: &Context, sender: &mpsc::Sender<Part>) -> Result<(), Error> {
    let mut snapshot = context.engine.snapshot(context.member()).await?;
    let mut remaining = snapshot.bytes();
    while let Some(blob) = snapshot.next().await? {
        remaining = remaining.saturating_sub(blob.len() as u64);
        let part = pb::SnapshotResponse {
            header: None,
            remaining_bytes: remaining,
            blob,
            version: STORAGE_VERSION.into(),
        };
        if sender.send(Ok(part)).await.is_err() {
            break;
        }
    }
    Ok(())
}
