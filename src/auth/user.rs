//! Users: who they are, what their password is known by, and which roles they have.

use bytes::Bytes;
use prost::Message;

use super::{Error, Hash, ROOT_ROLE, ROOT_USER, Row, check_name, is_on, role};
use crate::proto::authpb::{User, UserAddOptions};
use crate::storage::small::{Bucket, Small};

/// The user of that name.
pub(super) fn get(small: &Small, name: &str) -> Option<User> {
    User::decode(small.get(Bucket::AuthUsers, name.as_bytes())?).ok()
}

/// Whether a user may do everything. There need not be a role of that name.
pub(super) fn is_root(user: &User) -> bool {
    has(user, ROOT_ROLE)
}

pub(super) fn add(
    small: &Small,
    name: &str,
    hash: Option<&Hash>,
    no_password: bool,
) -> Result<Vec<Row>, Error> {
    check_name(name, Error::UserEmpty)?;
    if get(small, name).is_some() {
        return Err(Error::UserExists);
    }
    let user = User {
        name: name.as_bytes().to_vec().into(),
        password: password(hash, no_password)?,
        roles: Vec::new(),
        options: Some(UserAddOptions { no_password }),
    };
    Ok(vec![row(&user)])
}

pub(super) fn delete(small: &Small, name: &str) -> Result<Vec<Row>, Error> {
    if is_on(small) && name == ROOT_USER {
        return Err(Error::InvalidChange);
    }
    get(small, name).ok_or(Error::UserNotFound)?;
    Ok(vec![Row {
        bucket: Bucket::AuthUsers,
        key: name.as_bytes().to_vec(),
        value: None,
    }])
}

pub(super) fn change_password(
    small: &Small,
    name: &str,
    hash: Option<&Hash>,
) -> Result<Vec<Row>, Error> {
    let mut user = get(small, name).ok_or(Error::UserNotFound)?;
    let no_password = user.options.is_some_and(|options| options.no_password);
    user.password = password(hash, no_password)?;
    Ok(vec![row(&user)])
}

fn password(hash: Option<&Hash>, no_password: bool) -> Result<Bytes, Error> {
    match hash {
        _ if no_password => Ok(Bytes::new()),
        Some(Hash(hash)) => Ok(hash.clone().into()),
        None => Err(Error::InvalidHash),
    }
}

/// No row if the user has the role.
pub(super) fn grant(small: &Small, name: &str, role: &str) -> Result<Vec<Row>, Error> {
    let mut user = get(small, name).ok_or(Error::UserNotFound)?;
    if role != ROOT_ROLE && role::get(small, role).is_none() {
        return Err(Error::RoleNotFound);
    }
    if has(&user, role) {
        return Ok(Vec::new());
    }
    user.roles.push(role.to_owned());
    user.roles.sort();
    Ok(vec![row(&user)])
}

pub(super) fn revoke(small: &Small, name: &str, role: &str) -> Result<Vec<Row>, Error> {
    if is_on(small) && name == ROOT_USER && role == ROOT_ROLE {
        return Err(Error::InvalidChange);
    }
    let user = get(small, name).ok_or(Error::UserNotFound)?;
    let row = without(user, role).ok_or(Error::RoleNotGranted)?;
    Ok(vec![row])
}

/// Takes a role from all users that have it.
pub(super) fn revoke_from_all(small: &Small, role: &str) -> Vec<Row> {
    let users = small.rows(Bucket::AuthUsers);
    let users = users.filter_map(|(_, user)| User::decode(user).ok());
    users.filter_map(|user| without(user, role)).collect()
}

/// `None` if the user does not have the role.
fn without(mut user: User, role: &str) -> Option<Row> {
    if !has(&user, role) {
        return None;
    }
    user.roles.retain(|other| other != role);
    Some(row(&user))
}

fn has(user: &User, role: &str) -> bool {
    user.roles.iter().any(|other| other == role)
}

fn row(user: &User) -> Row {
    Row {
        bucket: Bucket::AuthUsers,
        key: user.name.to_vec(),
        value: Some(user.encode_to_vec()),
    }
}
