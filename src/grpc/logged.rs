//! Requests as etcd logs them, made what the engine judges.
//!
//! A logged request is a message of etcd's own (`InternalRaftRequest`): a header that says who asks,
//! and one field that holds the request, in the form in which the client sent it. What only
//! concerns members, versions or reading is passed over.

use bytes::Bytes;
use prost::Message;

use super::convert;
use crate::auth::{Asker, Change};
use crate::engine::alarm::By;
use crate::engine::command::Command;
use crate::engine::offline::{Logged, Request};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::snapshot::fields::{Field, Fields};

const NO_REQUEST: &str = "a request that is none";
const UNKNOWN: &str = "a request of a kind that no etcd 3.7 knows";

/// etcd before 3.5 logged passwords as they were, and hashed them, each time in another way, when it
/// took over what was logged.
const NO_HASH: &str = "a password that an etcd before 3.5 has yet to hash; start that etcd once more, stop it, and try again";

/// Reads a logged request; says what is wrong with one that no etcd logs.
pub fn read(bytes: &[u8]) -> Result<Logged, &'static str> {
    let mut asker = Asker::default();
    let mut found = None;
    for field in Fields(bytes) {
        match field.ok_or(NO_REQUEST)? {
            (1, Field::Number(_)) => {}
            (100, Field::Bytes(header)) => asker = read_header(header)?,
            (number, Field::Bytes(request)) => {
                // The API of etcd 2 knows fields of this number alone: its requests stand by
                // themselves, or within one of ours.
                if number == V2 {
                    found = Some((V2, request));
                    break;
                }
                if found.replace((number, request)).is_some() {
                    return Err("two requests in one");
                }
            }
            _ => return Err(NO_REQUEST),
        }
    }
    let request = match found {
        Some((number, bytes)) => read_request(number, bytes)?,
        None => Request::Nothing,
    };
    Ok(Logged { asker, request })
}

/// A request of etcd 2, or the method of one.
const V2: u64 = 2;

fn read_header(bytes: &[u8]) -> Result<Asker, &'static str> {
    const WHAT: &str = "a header that is none";
    let mut asker = Asker::default();
    for field in Fields(bytes) {
        match field.ok_or(WHAT)? {
            (2, Field::Bytes(user)) => {
                asker.user = std::str::from_utf8(user).map_err(|_| WHAT)?.to_owned();
            }
            (3, Field::Number(revision)) => asker.revision = revision,
            _ => {}
        }
    }
    Ok(asker)
}

fn read_request(number: u64, bytes: &[u8]) -> Result<Request, &'static str> {
    let bytes = Bytes::copy_from_slice(bytes);
    let command = match number {
        // Of etcd 2; reads; logins and other questions; what members and versions there are; a test's.
        V2 | 3 | 1012 | 1013 | 1102 | 1106 | 1107 | 1202 | 1300..=1302 | 9900 => {
            return Ok(Request::Nothing);
        }
        4 => Command::Put(taken(convert::put(decoded(bytes)?))?),
        5 => Command::DeleteRange(taken(convert::delete_range(decoded(bytes)?))?),
        6 => Command::Txn(taken(convert::logged_txn(decoded(bytes)?))?),
        7 => {
            let request: pb::CompactionRequest = decoded(bytes)?;
            Command::Compact {
                revision: request.revision,
                physical: false,
            }
        }
        8 => {
            let request: pb::LeaseGrantRequest = decoded(bytes)?;
            let (id, ttl_secs) = (request.id, request.ttl);
            // An id that is to be chosen is chosen before it is logged.
            if id == 0 {
                return Ok(Request::Nothing);
            }
            Command::Grant { id, ttl_secs }
        }
        9 => {
            let request: pb::LeaseRevokeRequest = decoded(bytes)?;
            Command::Revoke(request.id)
        }
        10 => match alarm(decoded(bytes)?) {
            Some(command) => command,
            None => return Ok(Request::Nothing),
        },
        11 => {
            let request: pb::LeaseCheckpointRequest = decoded(bytes)?;
            let left = request.checkpoints.into_iter();
            let left = left.map(|point| {
                let left_secs = u64::try_from(point.remaining_ttl).unwrap_or(0);
                (point.id, left_secs)
            });
            return Ok(Request::Left(left.collect()));
        }
        1000..=1299 => return Ok(Request::Auth(change(number, bytes)?)),
        _ => return Err(UNKNOWN),
    };
    Ok(Request::Command(command))
}

fn change(number: u64, bytes: Bytes) -> Result<Change, &'static str> {
    Ok(match number {
        1000 => Change::Enable,
        1011 => Change::Disable,
        1100 => {
            let request: pb::AuthUserAddRequest = decoded(bytes)?;
            if request.options.is_none_or(|options| !options.no_password) {
                check_hashed(&request.password, &request.hashed_password)?;
            }
            convert::add_user(request)
        }
        1101 => Change::DeleteUser(decoded::<pb::AuthUserDeleteRequest>(bytes)?.name),
        1103 => {
            let request: pb::AuthUserChangePasswordRequest = decoded(bytes)?;
            check_hashed(&request.password, &request.hashed_password)?;
            convert::change_password(request)
        }
        1104 => convert::grant_role(decoded(bytes)?),
        1105 => convert::revoke_role(decoded(bytes)?),
        1200 => Change::AddRole(decoded::<pb::AuthRoleAddRequest>(bytes)?.name),
        1201 => Change::DeleteRole(decoded::<pb::AuthRoleDeleteRequest>(bytes)?.role),
        1203 => convert::grant_permission(decoded(bytes)?),
        1204 => convert::revoke_permission(decoded(bytes)?),
        _ => return Err(UNKNOWN),
    })
}

fn check_hashed(password: &str, hash: &str) -> Result<(), &'static str> {
    match hash.is_empty() && !password.is_empty() {
        true => Err(NO_HASH),
        false => Ok(()),
    }
}

/// Whoever raised it then, we do not clear it by ourselves.
fn alarm(request: pb::AlarmRequest) -> Option<Command> {
    let alarm = convert::alarm(request.member_id, request.alarm)?;
    match AlarmAction::try_from(request.action) {
        Ok(AlarmAction::Activate) => Some(Command::Raise(alarm, By::Client)),
        Ok(AlarmAction::Deactivate) => Some(Command::Clear(alarm)),
        _ => None,
    }
}

fn decoded<M: Message + Default>(bytes: Bytes) -> Result<M, &'static str> {
    M::decode(bytes).map_err(|_| NO_REQUEST)
}

/// etcd checks a request before it logs it.
fn taken<T, E>(checked: Result<T, E>) -> Result<T, &'static str> {
    checked.map_err(|_| "a request that no etcd takes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Hash;
    use crate::proto::authpb::{Permission, UserAddOptions};
    use crate::storage::varint;

    /// A logged request of one field.
    fn logged(number: u64, request: &[u8]) -> Vec<u8> {
        let mut bytes = vec![1 << 3, 77];
        let mut header = vec![1 << 3, 77, 2 << 3 | 2, 5];
        header.extend_from_slice(b"alice");
        header.extend_from_slice(&[3 << 3, 9]);
        for (number, message) in [(number, request), (100, &header)] {
            varint::put(&mut bytes, number << 3 | 2);
            varint::put_bytes(&mut bytes, message);
        }
        bytes
    }

    fn read_request(number: u64, request: &impl Message) -> Request {
        let read = read(&logged(number, &request.encode_to_vec())).expect("it is one");
        let asker = Asker {
            user: "alice".to_owned(),
            revision: 9,
        };
        assert_eq!(read.asker, asker);
        read.request
    }

    #[test]
    fn requests_become_commands() {
        let put = pb::PutRequest {
            key: "k".into(),
            lease: -1,
            ..Default::default()
        };
        let put = read_request(4, &put);
        assert!(matches!(put, Request::Command(Command::Put(put)) if put.lease == -1));
        let delete = pb::DeleteRangeRequest {
            key: "k".into(),
            ..Default::default()
        };
        let delete = read_request(5, &delete);
        assert!(matches!(delete, Request::Command(Command::DeleteRange(_))));
        let compaction = pb::CompactionRequest {
            revision: -7,
            physical: true,
        };
        let compaction = read_request(7, &compaction);
        let (revision, physical) = (-7, false);
        assert!(
            matches!(compaction, Request::Command(Command::Compact { revision: r, physical: p })
                if (r, p) == (revision, physical))
        );
        let grant = pb::LeaseGrantRequest { id: 5, ttl: 60 };
        let grant = read_request(8, &grant);
        assert!(
            matches!(
                grant,
                Request::Command(Command::Grant {
                    id: 5,
                    ttl_secs: 60
                })
            ),
            "{grant:?}"
        );
        let revoke = read_request(9, &pb::LeaseRevokeRequest { id: 5 });
        assert!(matches!(revoke, Request::Command(Command::Revoke(5))));
        let point = pb::LeaseCheckpoint {
            id: 5,
            remaining_ttl: 30,
        };
        let checkpoints = vec![point];
        let left = read_request(11, &pb::LeaseCheckpointRequest { checkpoints });
        assert!(matches!(left, Request::Left(left) if left == [(5, 30)]));
        let alarm = pb::AlarmRequest {
            action: 1,
            member_id: 3,
            alarm: 1,
        };
        let alarm = read_request(10, &alarm);
        assert!(matches!(alarm, Request::Command(Command::Raise(..))));
        let get = read_request(10, &pb::AlarmRequest::default());
        assert!(matches!(get, Request::Nothing));
        let enable = read_request(1000, &pb::AuthEnableRequest {});
        assert!(matches!(enable, Request::Auth(Change::Enable)));
        let login = read_request(1012, &pb::AuthenticateRequest::default());
        assert!(matches!(login, Request::Nothing));
        assert!(matches!(
            read(b"").expect("it is empty").request,
            Request::Nothing
        ));
    }

    #[test]
    fn changes_of_users_and_roles_become_ours() {
        let hash = |text: &str| Hash(text.into());
        let named = || "bob".to_owned();
        let add = pb::AuthUserAddRequest {
            name: named(),
            // Bits that are too many, and line ends.
            hashed_password: "JDJ\r\nh\nJB==".to_owned(),
            ..Default::default()
        };
        let no_password = pb::AuthUserAddRequest {
            options: Some(UserAddOptions { no_password: true }),
            password: "passed over".to_owned(),
            ..add.clone()
        };
        let added = |no_password| Change::AddUser {
            name: named(),
            hash: Some(hash("$2a$")),
            no_password,
        };
        let new_password = |text: &str| pb::AuthUserChangePasswordRequest {
            name: named(),
            hashed_password: text.to_owned(),
            ..Default::default()
        };
        let changed = |hash| Change::ChangePassword {
            name: named(),
            hash,
        };
        let (user, role) = (named(), "reader".to_owned());
        let grant = pb::AuthUserGrantRoleRequest { user, role };
        let (name, role) = (named(), "reader".to_owned());
        let revoke = pb::AuthUserRevokeRoleRequest { name, role };
        let (user, role) = (named(), "reader".to_owned());
        let granted = Change::GrantRole { user, role };
        let (user, role) = (named(), "reader".to_owned());
        let revoked = Change::RevokeRole { user, role };
        let permission = Permission {
            perm_type: 9,
            key: "k".into(),
            range_end: "l".into(),
        };
        let grant_permission = pb::AuthRoleGrantPermissionRequest {
            name: named(),
            perm: Some(permission.clone()),
        };
        let granted_permission = Change::GrantPermission {
            role: named(),
            permission: Some(permission),
        };
        let revoke_permission = pb::AuthRoleRevokePermissionRequest {
            role: named(),
            key: "k".into(),
            range_end: "l".into(),
        };
        let revoked_permission = Change::RevokePermission {
            role: named(),
            key: "k".into(),
            range_end: "l".into(),
        };
        let name = named;
        for (number, request, change) in [
            (1011, Vec::new(), Change::Disable),
            (1100, add.encode_to_vec(), added(false)),
            (1100, no_password.encode_to_vec(), added(true)),
            (
                1101,
                pb::AuthUserDeleteRequest { name: name() }.encode_to_vec(),
                Change::DeleteUser(name()),
            ),
            (
                1103,
                new_password("JDJhJA==").encode_to_vec(),
                changed(Some(hash("$2a$"))),
            ),
            (
                1103,
                new_password("").encode_to_vec(),
                changed(Some(hash(""))),
            ),
            (1103, new_password("JDJhJA").encode_to_vec(), changed(None)),
            (1104, grant.encode_to_vec(), granted),
            (1105, revoke.encode_to_vec(), revoked),
            (
                1200,
                pb::AuthRoleAddRequest { name: name() }.encode_to_vec(),
                Change::AddRole(name()),
            ),
            (
                1201,
                pb::AuthRoleDeleteRequest { role: name() }.encode_to_vec(),
                Change::DeleteRole(name()),
            ),
            (1203, grant_permission.encode_to_vec(), granted_permission),
            (1204, revoke_permission.encode_to_vec(), revoked_permission),
        ] {
            let read = read(&logged(number, &request)).expect("it is one");
            assert!(
                matches!(&read.request, Request::Auth(found) if *found == change),
                "{number}: {read:?}, not {change:?}"
            );
        }
        let in_clear = pb::AuthUserAddRequest {
            name: name(),
            password: "pw".to_owned(),
            ..Default::default()
        };
        let refused = read(&logged(1100, &in_clear.encode_to_vec()));
        assert!(matches!(refused, Err(NO_HASH)));
    }

    /// What etcd took at some time is taken, though we would refuse it now.
    #[test]
    fn a_txn_was_checked_when_it_was_logged() {
        let range = pb::RangeRequest {
            key: "k".into(),
            sort_order: 9,
            ..Default::default()
        };
        let put = pb::PutRequest {
            key: "k".into(),
            ..Default::default()
        };
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        use pb::request_op::Request as Op;
        let mut ops = vec![op(Op::RequestRange(range)); 200];
        ops.extend([op(Op::RequestPut(put.clone())), op(Op::RequestPut(put))]);
        let inner = pb::TxnRequest {
            success: ops,
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            failure: vec![op(Op::RequestTxn(inner))],
            ..Default::default()
        };
        let txn = read_request(6, &txn);
        assert!(matches!(txn, Request::Command(Command::Txn(_))));
    }

    #[test]
    fn requests_of_etcd_2_are_passed_over() {
        let mut alone = vec![1 << 3, 77];
        for (number, text) in [(2, "PUT"), (3, "/0/members/1/attributes"), (4, "{}")] {
            varint::put(&mut alone, number << 3 | 2);
            varint::put_bytes(&mut alone, text.as_bytes());
        }
        alone.extend_from_slice(&[5 << 3, 0]);
        for bytes in [&alone, &logged(2, &alone)] {
            let read = read(bytes).expect("it is one");
            assert!(matches!(read.request, Request::Nothing));
        }
    }

    #[test]
    fn what_no_etcd_logs_is_refused() {
        let nameless = pb::PutRequest::default().encode_to_vec();
        let mut twice = logged(7, b"");
        twice.extend_from_slice(&logged(7, b"")[2..]);
        for bytes in [
            logged(4, &nameless),
            logged(99, b""),
            logged(4, b"?"),
            twice,
            vec![1],
        ] {
            assert!(read(&bytes).is_err(), "{bytes:?}");
        }
    }
}
