//! Between the wire's types and ours. The only file that names both.
//!
//! A request that the wire lets one say wrongly is refused here, in etcd's order of checks
//! (scripts `range_errors`, `txn_checks`, `error_order`); what comes out is exact.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::status;
use crate::auth::{Change, Hash};
use crate::engine::TimeToLive;
use crate::engine::alarm::{Alarm, Kind};
use crate::engine::command::Granted;
use crate::mvcc::Error;
use crate::mvcc::overlap;
use crate::mvcc::request::{
    Compare, Decided, DeleteRange, Deleted, Filters, Op, OpAnswer, Operand, Order, Put, Range,
    Ranged, Relation, Target, Txn, Written,
};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::mvccpb;
use crate::storage::key_range::KeyRange;
use crate::storage::record::KeyValue;
use crate::watch::answer::{Answer, Origin};
use crate::watch::watcher::{Create, Wants};

/// The number in answers that are of no watcher, or of all of a stream.
const NO_WATCHER: i64 = -1;

/// A read.
pub fn range(request: pb::RangeRequest) -> Result<Range, Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let order = match SortOrder::try_from(request.sort_order) {
        Ok(SortOrder::None) => Order::None,
        Ok(SortOrder::Ascend) => Order::Ascend,
        Ok(SortOrder::Descend) => Order::Descend,
        Err(_) => return Err(Error::InvalidSortOption),
    };
    let target = match SortTarget::try_from(request.sort_target) {
        Ok(SortTarget::Key) => Target::Key,
        Ok(SortTarget::Version) => Target::Version,
        Ok(SortTarget::Create) => Target::Create,
        Ok(SortTarget::Mod) => Target::Mod,
        Ok(SortTarget::Value) => Target::Value,
        Err(_) => return Err(Error::InvalidSortOption),
    };
    Ok(Range {
        range: KeyRange::from_wire(request.key, request.range_end),
        revision: request.revision,
        limit: usize::try_from(request.limit).unwrap_or(0),
        order,
        target,
        filters: Filters {
            min_mod: request.min_mod_revision,
            max_mod: request.max_mod_revision,
            min_create: request.min_create_revision,
            max_create: request.max_create_revision,
        },
        keys_only: request.keys_only,
        count_only: request.count_only,
    })
}

/// A write.
pub fn put(request: pb::PutRequest) -> Result<Put, Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

/// A delete.
pub fn delete_range(request: pb::DeleteRangeRequest) -> Result<DeleteRange, Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(DeleteRange {
        range: KeyRange::from_wire(request.key, request.range_end),
        prev_kv: request.prev_kv,
    })
}

/// A txn, with at most `ops_max` guards and operations a branch, those of the nested txns on the
/// way counted in.
pub fn txn(request: pb::TxnRequest, ops_max: usize) -> Result<Txn, Error> {
    let txn = txn_unless_overlapping(request, ops_max)?;
    overlap::check(&txn)?;
    Ok(txn)
}

/// A txn that an etcd has logged, and so checked before, by the rules of its time: earlier ones took
/// orders that there are none of, and each has other holes in its check for overlaps.
pub fn logged_txn(mut request: pb::TxnRequest) -> Result<Txn, Error> {
    forget_orders(&mut request);
    txn_unless_overlapping(request, usize::MAX)
}

fn forget_orders(txn: &mut pb::TxnRequest) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestRange(range)) => {
                range.sort_order = SortOrder::None.into();
                range.sort_target = SortTarget::Key.into();
            }
            Some(Request::RequestTxn(nested)) => forget_orders(nested),
            _ => {}
        }
    }
}

fn txn_unless_overlapping(request: pb::TxnRequest, ops_max: usize) -> Result<Txn, Error> {
    let lists = [
        request.compare.len(),
        request.success.len(),
        request.failure.len(),
    ];
    let longest = lists.into_iter().max().unwrap_or(0);
    let nested_max = ops_max.checked_sub(longest).ok_or(Error::TooManyOps)?;
    if request.compare.iter().any(|guard| guard.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    let ops = |ops: Vec<pb::RequestOp>| {
        let ops = ops.into_iter().map(|op| op_of(op, nested_max));
        ops.collect::<Result<Vec<_>, _>>()
    };
    Ok(Txn {
        compare: request.compare.into_iter().map(compare).collect(),
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

fn op_of(op: pb::RequestOp, ops_max: usize) -> Result<Op, Error> {
    Ok(match op.request {
        Some(Request::RequestRange(request)) => Op::Range(range(request)?),
        Some(Request::RequestPut(request)) => Op::Put(put(request)?),
        Some(Request::RequestDeleteRange(request)) => Op::DeleteRange(delete_range(request)?),
        Some(Request::RequestTxn(request)) => Op::Txn(txn_unless_overlapping(request, ops_max)?),
        None => return Err(Error::KeyNotFound),
    })
}

/// A guard. The operand is that of the target; where another is given, or none, it is 0 or empty.
fn compare(guard: pb::Compare) -> Compare {
    let relation = match CompareResult::try_from(guard.result) {
        Ok(CompareResult::Equal) => Relation::Equal,
        Ok(CompareResult::Greater) => Relation::Greater,
        Ok(CompareResult::Less) => Relation::Less,
        Ok(CompareResult::NotEqual) => Relation::NotEqual,
        Err(_) => Relation::Unknown,
    };
    let operand = match (CompareTarget::try_from(guard.target), guard.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(n))) => Operand::Version(n),
        (Ok(CompareTarget::Version), _) => Operand::Version(0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(n))) => Operand::Create(n),
        (Ok(CompareTarget::Create), _) => Operand::Create(0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(n))) => Operand::Mod(n),
        (Ok(CompareTarget::Mod), _) => Operand::Mod(0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(value))) => Operand::Value(value),
        (Ok(CompareTarget::Value), _) => Operand::Value(Default::default()),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(n))) => Operand::Lease(n),
        (Ok(CompareTarget::Lease), _) => Operand::Lease(0),
        (Err(_), _) => Operand::Unknown,
    };
    Compare {
        range: KeyRange::from_wire(guard.key, guard.range_end),
        relation,
        operand,
    }
}

/// A watcher. An empty key is the key of one zero byte, as in etcd (script `watch_ranges`).
pub fn create(request: pb::WatchCreateRequest) -> Create {
    let key = match request.key.is_empty() {
        true => Bytes::from_static(b"\0"),
        // It lives longer than the buffer that it came in.
        false => Bytes::copy_from_slice(&request.key),
    };
    let range_end = Bytes::copy_from_slice(&request.range_end);
    let leaves_out = |filter: FilterType| request.filters.contains(&filter.into());
    Create {
        id: request.watch_id,
        range: KeyRange::from_wire(key, range_end),
        start: request.start_revision,
        wants: Wants {
            no_put: leaves_out(FilterType::Noput),
            no_delete: leaves_out(FilterType::Nodelete),
            prev_kv: request.prev_kv,
        },
        fragment: request.fragment,
        progress_notify: request.progress_notify,
    }
}

/// What a stream of watches says, but for events: those are written as they lie.
pub fn answer(answer: Answer, origin: Origin) -> pb::WatchResponse {
    let header = |revision: u64| {
        Some(pb::ResponseHeader {
            cluster_id: origin.cluster_id,
            member_id: origin.member_id,
            revision: revision as i64,
            raft_term: origin.term,
        })
    };
    match answer {
        Answer::Created { id, revision } => pb::WatchResponse {
            header: header(revision),
            watch_id: id,
            created: true,
            ..Default::default()
        },
        Answer::Refused { refusal, revision } => pb::WatchResponse {
            header: header(revision),
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason: status::refusal(&refusal).to_owned(),
            ..Default::default()
        },
        Answer::Canceled { id, revision } => pb::WatchResponse {
            header: header(revision),
            watch_id: id,
            canceled: true,
            ..Default::default()
        },
        // As etcd: this one names no revision (script `watch_compacted`).
        Answer::Compacted { id, floor } => pb::WatchResponse {
            header: header(0),
            watch_id: id,
            canceled: true,
            compact_revision: floor as i64,
            ..Default::default()
        },
        Answer::Progress { id, revision } => pb::WatchResponse {
            header: header(revision),
            watch_id: id.unwrap_or(NO_WATCHER),
            ..Default::default()
        },
        Answer::Events { .. } => unreachable!("events are written as they lie"),
    }
}

/// A user to be added, whose password was hashed before.
pub fn add_user(request: pb::AuthUserAddRequest) -> Change {
    Change::AddUser {
        name: request.name,
        hash: hash(&request.hashed_password),
        no_password: request.options.is_some_and(|options| options.no_password),
    }
}

/// A user's new password, which was hashed before.
pub fn change_password(request: pb::AuthUserChangePasswordRequest) -> Change {
    Change::ChangePassword {
        name: request.name,
        hash: hash(&request.hashed_password),
    }
}

/// A role for a user.
pub fn grant_role(request: pb::AuthUserGrantRoleRequest) -> Change {
    let pb::AuthUserGrantRoleRequest { user, role } = request;
    Change::GrantRole { user, role }
}

/// A role no longer for a user.
pub fn revoke_role(request: pb::AuthUserRevokeRoleRequest) -> Change {
    Change::RevokeRole {
        user: request.name,
        role: request.role,
    }
}

/// A permission for a role.
pub fn grant_permission(request: pb::AuthRoleGrantPermissionRequest) -> Change {
    Change::GrantPermission {
        role: request.name,
        permission: request.perm,
    }
}

/// A permission no longer for a role.
pub fn revoke_permission(request: pb::AuthRoleRevokePermissionRequest) -> Change {
    Change::RevokePermission {
        role: request.role,
        key: request.key,
        range_end: request.range_end,
    }
}

/// As etcd's decoder: line ends are passed over, and so are the bits that are too many.
fn hash(text: &str) -> Option<Hash> {
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let decoder = GeneralPurpose::new(&alphabet::STANDARD, config);
    let text: Vec<u8> = text
        .bytes()
        .filter(|c| !matches!(c, b'\r' | b'\n'))
        .collect();
    decoder.decode(text).ok().map(Hash)
}

/// An alarm; `None` is of no kind, or of one that does not exist.
pub fn alarm(member: u64, kind: i32) -> Option<Alarm> {
    let kind = match pb::AlarmType::try_from(kind) {
        Ok(pb::AlarmType::Nospace) => Kind::NoSpace,
        Ok(pb::AlarmType::Corrupt) => Kind::Corrupt,
        Ok(pb::AlarmType::None) | Err(_) => return None,
    };
    Some(Alarm { member, kind })
}

/// An alarm, answered.
pub fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        Kind::NoSpace => pb::AlarmType::Nospace,
        Kind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember {
        member_id: alarm.member,
        alarm: kind.into(),
    }
}

/// An alarm as Status tells it: protobuf's text, which leaves out what is 0.
pub fn alarm_text(alarm: Alarm) -> String {
    let kind = alarm_member(alarm).alarm().as_str_name();
    match alarm.member {
        0 => format!("alarm:{kind}"),
        member => format!("memberID:{member} alarm:{kind}"),
    }
}

/// A pair.
pub fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create as i64,
        mod_revision: kv.modified as i64,
        version: kv.version as i64,
        value: kv.value,
        lease: kv.lease,
    }
}

/// The answer to a read.
pub fn ranged(ranged: Ranged, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: ranged.kvs.into_iter().map(key_value).collect(),
        more: ranged.more,
        count: ranged.count as i64,
    }
}

/// The answer to a write.
pub fn written(written: Written, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse {
        header: Some(header),
        prev_kv: written.prev_kv.map(key_value),
    }
}

/// The answer to a delete.
pub fn deleted(deleted: Deleted, header: pb::ResponseHeader) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: deleted.deleted as i64,
        prev_kvs: deleted.prev_kvs.into_iter().map(key_value).collect(),
    }
}

/// The answer to a grant.
pub fn granted(granted: Granted, header: pb::ResponseHeader) -> pb::LeaseGrantResponse {
    pb::LeaseGrantResponse {
        header: Some(header),
        id: granted.id,
        ttl: granted.ttl_secs as i64,
        error: String::new(),
    }
}

/// The answer to the question how long a lease has to live: -1 is none.
pub fn time_to_live(
    id: i64,
    answer: TimeToLive,
    header: pb::ResponseHeader,
) -> pb::LeaseTimeToLiveResponse {
    let (ttl, granted_ttl) = match answer.standing {
        Some(standing) => (standing.left_secs, standing.ttl_secs as i64),
        None => (-1, 0),
    };
    pb::LeaseTimeToLiveResponse {
        header: Some(header),
        id,
        ttl,
        granted_ttl,
        keys: answer.keys.into_iter().map(Into::into).collect(),
    }
}

/// The answer to a txn. Within it headers name a revision only, and that of a nested txn is empty
/// (as etcd: script `txn_headers`).
pub fn decided(decided: Decided, header: pb::ResponseHeader) -> pb::TxnResponse {
    let only = |revision: u64| pb::ResponseHeader {
        revision: revision as i64,
        ..Default::default()
    };
    let answer = |answer: OpAnswer| match answer {
        OpAnswer::Range(answer) => {
            let header = only(answer.revision);
            Response::ResponseRange(ranged(answer, header))
        }
        OpAnswer::Put(answer) => {
            let header = only(answer.revision);
            Response::ResponsePut(written(answer, header))
        }
        OpAnswer::DeleteRange(answer) => {
            let header = only(answer.revision);
            Response::ResponseDeleteRange(deleted(answer, header))
        }
        OpAnswer::Txn(answer) => {
            let empty = pb::ResponseHeader::default();
            Response::ResponseTxn(self::decided(answer, empty))
        }
    };
    let responses = decided.answers.into_iter().map(|op| pb::ResponseOp {
        response: Some(answer(op)),
    });
    pb::TxnResponse {
        header: Some(header),
        succeeded: decided.succeeded,
        responses: responses.collect(),
    }
}
