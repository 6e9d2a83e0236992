//! Who may do what: users, roles and their permissions, which are rows of the small state.
//!
//! ```text
//! change ─► decide: refused, or the rows to be set              user, role
//! asker  ─► rights: all that the roles of the user permit       permission
//! ```
//! Rows are etcd's own, byte for byte, and so are the rules: what is refused, how roles and
//! permissions are sorted, and when the revision of users and roles moves on. Everything here is a
//! function of the rows and of what is asked, and changes nothing itself. Passwords come as hashes;
//! tokens are not known here.
//!
//! A row that cannot be read is as if it were not there, and gives no right.

pub mod permission;
mod role;
mod user;

use std::fmt;

use bytes::Bytes;

use crate::proto::authpb::Permission;
use crate::storage::small::{Bucket, Small};

/// The user that there must be before authentication can be on.
pub const ROOT_USER: &str = "root";

/// The role that permits everything.
pub const ROOT_ROLE: &str = "root";

/// Keys of the bucket `auth`: whether authentication is on, and the revision of users and roles.
pub const ENABLED: &[u8] = b"authEnabled";
/// See [`ENABLED`].
pub const REVISION: &[u8] = b"authRevision";

/// Most bytes of a name. A longer one is no key of etcd's files: an etcd that is given one dies.
pub const NAME_BYTES_MAX: usize = 32768;

/// Who asks, and as of when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asker {
    /// The user; empty for nobody.
    pub user: String,
    /// The revision of users and roles when that was found to be true; 0 for nobody.
    pub revision: u64,
}

/// A change of users or roles, or of whether authentication is on.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Turn authentication on.
    Enable,
    /// Turn authentication off.
    Disable,
    /// Add a user, without roles.
    AddUser {
        /// Its name.
        name: String,
        /// What its password is known by; `None` if what was sent for that cannot be read.
        hash: Option<Hash>,
        /// Whether no password will do.
        no_password: bool,
    },
    /// Delete a user.
    DeleteUser(String),
    /// Change a user's password.
    ChangePassword {
        /// The user.
        name: String,
        /// As for [`Change::AddUser`]; passed over if no password will do.
        hash: Option<Hash>,
    },
    /// Give a role to a user.
    GrantRole {
        /// Who gets it.
        user: String,
        /// Which.
        role: String,
    },
    /// Take a role from a user.
    RevokeRole {
        /// Who loses it.
        user: String,
        /// Which.
        role: String,
    },
    /// Add a role, without permissions.
    AddRole(String),
    /// Delete a role, and take it from all users.
    DeleteRole(String),
    /// Give a permission to a role, or another type to one that it has.
    GrantPermission {
        /// Which gets it.
        role: String,
        /// Which.
        permission: Option<Permission>,
    },
    /// Take the permissions of a range from a role.
    RevokePermission {
        /// Which loses them.
        role: String,
        /// The range's key.
        key: Bytes,
        /// The range's end, as on the wire.
        range_end: Bytes,
    },
}

/// What a password is known by; empty for none that would do. It is in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(pub Vec<u8>);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(…)")
    }
}

/// A row to be set.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// In which bucket.
    pub bucket: Bucket,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value; `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// Without the value, which may hold a hash.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.value.is_some() { "set" } else { "gone" };
        write!(f, "{} {:?} {what}", self.bucket.name(), self.key)
    }
}

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A user is to be added without a name, or nobody asks for what only a user may do.
    #[error("no user is named")]
    UserEmpty,
    /// A role is to be added without a name.
    #[error("no role is named")]
    RoleEmpty,
    /// A name is longer than [`NAME_BYTES_MAX`].
    #[error("the name is too long")]
    NameTooLong,
    /// There is no user `root`.
    #[error("there is no user root")]
    NoRootUser,
    /// The user `root` lacks the role `root`.
    #[error("the user root lacks the role root")]
    RootWithoutRole,
    /// There is such a user already.
    #[error("the user is there already")]
    UserExists,
    /// There is no such user.
    #[error("the user is not there")]
    UserNotFound,
    /// There is such a role already.
    #[error("the role is there already")]
    RoleExists,
    /// There is no such role.
    #[error("the role is not there")]
    RoleNotFound,
    /// The user does not have the role.
    #[error("the user does not have the role")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("the role does not have the permission")]
    PermissionNotGranted,
    /// No permission is given.
    #[error("no permission is given")]
    PermissionNotGiven,
    /// It would lock everybody out, or a range is none.
    #[error("users and roles cannot be changed so")]
    InvalidChange,
    /// What is sent for a hash cannot be read.
    #[error("the hash of the password is none")]
    InvalidHash,
    /// Users or roles have changed since it was found out who asks.
    #[error("users or roles have changed meanwhile")]
    OldRevision,
    /// The user may not do that.
    #[error("the user may not do that")]
    Denied,
}

/// Whether authentication is on.
pub fn is_on(small: &Small) -> bool {
    small.get(Bucket::Auth, ENABLED) == Some(&[1])
}

/// How often users, roles and whether authentication is on have changed, from 1.
pub fn revision(small: &Small) -> u64 {
    let row = small.get(Bucket::Auth, REVISION);
    let number = row.and_then(|row| row.try_into().ok());
    number.map_or(0, u64::from_be_bytes).max(1)
}

/// Refuses who may not change users and roles. What has changed since it was found out who asks does
/// not matter (as etcd).
pub fn check_admin(small: &Small, asker: &Asker) -> Result<(), Error> {
    if !is_on(small) {
        return Ok(());
    }
    if asker.user.is_empty() {
        return Err(Error::UserEmpty);
    }
    let user = user::get(small, &asker.user).ok_or(Error::UserNotFound)?;
    match user::is_root(&user) {
        true => Ok(()),
        false => Err(Error::Denied),
    }
}

/// Decides a change: which rows are to be set. There are none if all is as it should be already.
pub fn decide(small: &Small, asker: &Asker, change: &Change) -> Result<Vec<Row>, Error> {
    check_admin(small, asker)?;
    let mut rows = match change {
        // Alone in that the revision does not move on.
        Change::Enable => return enable(small),
        Change::Disable if is_on(small) => vec![enabled_row(false)],
        Change::Disable => Vec::new(),
        Change::AddUser {
            name,
            hash,
            no_password,
        } => user::add(small, name, hash.as_ref(), *no_password)?,
        Change::DeleteUser(name) => user::delete(small, name)?,
        Change::ChangePassword { name, hash } => user::change_password(small, name, hash.as_ref())?,
        Change::GrantRole { user, role } => user::grant(small, user, role)?,
        Change::RevokeRole { user, role } => user::revoke(small, user, role)?,
        Change::AddRole(name) => role::add(small, name)?,
        Change::DeleteRole(name) => role::delete(small, name)?,
        Change::GrantPermission { role, permission } => {
            role::grant(small, role, permission.as_ref())?
        }
        Change::RevokePermission {
            role,
            key,
            range_end,
        } => role::revoke(small, role, key, range_end)?,
    };
    if !rows.is_empty() {
        rows.push(revision_row(revision(small).wrapping_add(1)));
    }
    Ok(rows)
}

fn enable(small: &Small) -> Result<Vec<Row>, Error> {
    if is_on(small) {
        return Ok(Vec::new());
    }
    let root = user::get(small, ROOT_USER).ok_or(Error::NoRootUser)?;
    match user::is_root(&root) {
        true => Ok(vec![enabled_row(true)]),
        false => Err(Error::RootWithoutRole),
    }
}

fn enabled_row(enabled: bool) -> Row {
    Row {
        bucket: Bucket::Auth,
        key: ENABLED.to_vec(),
        value: Some(vec![u8::from(enabled)]),
    }
}

fn revision_row(revision: u64) -> Row {
    Row {
        bucket: Bucket::Auth,
        key: REVISION.to_vec(),
        value: Some(revision.to_be_bytes().to_vec()),
    }
}

/// Refuses a name that no new user or role may have.
fn check_name(name: &str, empty: Error) -> Result<(), Error> {
    match name.len() {
        0 => Err(empty),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(Error::NameTooLong),
    }
}

#[cfg(test)]
mod tests;
