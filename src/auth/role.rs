//! Roles: named lists of permissions.

use prost::Message;

use super::{Error, ROOT_ROLE, Row, check_name, is_on, permission, user};
use crate::proto::authpb::{Permission, Role};
use crate::storage::small::{Bucket, Small};

/// The role of that name.
pub(super) fn get(small: &Small, name: &str) -> Option<Role> {
    Role::decode(small.get(Bucket::AuthRoles, name.as_bytes())?).ok()
}

pub(super) fn add(small: &Small, name: &str) -> Result<Vec<Row>, Error> {
    check_name(name, Error::RoleEmpty)?;
    if get(small, name).is_some() {
        return Err(Error::RoleExists);
    }
    let role = Role {
        name: name.as_bytes().to_vec().into(),
        key_permission: Vec::new(),
    };
    Ok(vec![row(&role)])
}

pub(super) fn delete(small: &Small, name: &str) -> Result<Vec<Row>, Error> {
    if is_on(small) && name == ROOT_ROLE {
        return Err(Error::InvalidChange);
    }
    get(small, name).ok_or(Error::RoleNotFound)?;
    let mut rows = user::revoke_from_all(small, name);
    rows.push(Row {
        bucket: Bucket::AuthRoles,
        key: name.as_bytes().to_vec(),
        value: None,
    });
    Ok(rows)
}

/// As etcd, which compares with the first permission of that key only: another of the same range
/// behind it stays, and so does what it permits.
pub(super) fn grant(
    small: &Small,
    name: &str,
    given: Option<&Permission>,
) -> Result<Vec<Row>, Error> {
    let given = given.ok_or(Error::PermissionNotGiven)?;
    if !permission::is_valid(given) {
        return Err(Error::InvalidChange);
    }
    let mut role = get(small, name).ok_or(Error::RoleNotFound)?;
    let permissions = &mut role.key_permission;
    let first = permissions.partition_point(|other| other.key < given.key);
    match permissions.get_mut(first) {
        Some(same) if same.key == given.key && same.range_end == given.range_end => {
            same.perm_type = given.perm_type;
        }
        _ => {
            permissions.push(given.clone());
            permissions.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }
    Ok(vec![row(&role)])
}

pub(super) fn revoke(
    small: &Small,
    name: &str,
    key: &[u8],
    range_end: &[u8],
) -> Result<Vec<Row>, Error> {
    let mut role = get(small, name).ok_or(Error::RoleNotFound)?;
    let before = role.key_permission.len();
    let is_other = |other: &Permission| other.key != key || other.range_end != range_end;
    role.key_permission.retain(is_other);
    if role.key_permission.len() == before {
        return Err(Error::PermissionNotGranted);
    }
    Ok(vec![row(&role)])
}

fn row(role: &Role) -> Row {
    Row {
        bucket: Bucket::AuthRoles,
        key: role.name.to_vec(),
        value: Some(role.encode_to_vec()),
    }
}
