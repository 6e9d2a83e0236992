//! What changes of users and roles do to the rows, as etcd's auth store does it.

use prost::Message;

use super::*;
use crate::proto::authpb::{Role, User};

/// Rows, and who asks for what changes them.
#[derive(Default)]
struct Rows {
    small: Small,
    asker: Asker,
}

impl Rows {
    /// Decides a change and makes it; answers what of the revision has become of it.
    fn change(&mut self, change: Change) -> Result<u64, Error> {
        let before = revision(&self.small);
        for row in decide(&self.small, &self.asker, &change)? {
            self.small.set(row.bucket, &row.key, row.value.as_deref());
        }
        Ok(revision(&self.small) - before)
    }

    /// Makes a change that moves the revision on.
    fn make(&mut self, change: Change) {
        let story = format!("{change:?}");
        assert_eq!(self.change(change), Ok(1), "{story}");
    }

    fn refuse(&mut self, change: Change, error: Error) {
        let (story, before) = (format!("{change:?}"), self.small.clone());
        assert_eq!(self.change(change), Err(error), "{story}");
        assert_eq!(self.small, before);
    }

    /// A user as it is kept.
    fn user(&self, name: &str) -> User {
        let row = self.small.get(Bucket::AuthUsers, name.as_bytes());
        User::decode(row.expect("it is there")).expect("it is one")
    }

    /// Type, key and end of a role's permissions.
    fn permissions(&self, role: &str) -> Vec<(i32, String)> {
        let row = self.small.get(Bucket::AuthRoles, role.as_bytes());
        let role = Role::decode(row.expect("it is there")).expect("it is one");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let permissions = role.key_permission.iter();
        permissions
            .map(|p| (p.perm_type, text(&p.key) + "-" + &text(&p.range_end)))
            .collect()
    }
}

fn add_user(name: &str) -> Change {
    Change::AddUser {
        name: name.to_owned(),
        hash: Some(Hash(b"$2a$".to_vec())),
        no_password: false,
    }
}

fn change_password(name: &str, hash: Option<&str>) -> Change {
    Change::ChangePassword {
        name: name.to_owned(),
        hash: hash.map(|hash| Hash(hash.into())),
    }
}

fn grant_role(user: &str, role: &str) -> Change {
    let (user, role) = (user.to_owned(), role.to_owned());
    Change::GrantRole { user, role }
}

fn revoke_role(user: &str, role: &str) -> Change {
    let (user, role) = (user.to_owned(), role.to_owned());
    Change::RevokeRole { user, role }
}

fn delete_user(name: &str) -> Change {
    Change::DeleteUser(name.to_owned())
}

fn add_role(name: &str) -> Change {
    Change::AddRole(name.to_owned())
}

fn delete_role(name: &str) -> Change {
    Change::DeleteRole(name.to_owned())
}

fn grant(role: &str, perm_type: i32, key: &str, range_end: &str) -> Change {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    Change::GrantPermission {
        role: role.to_owned(),
        permission: Some(Permission {
            perm_type,
            key,
            range_end,
        }),
    }
}

fn revoke(role: &str, key: &str, range_end: &str) -> Change {
    Change::RevokePermission {
        role: role.to_owned(),
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
    }
}

#[test]
fn users_come_and_go() {
    let mut rows = Rows::default();
    rows.refuse(add_user(""), Error::UserEmpty);
    rows.refuse(
        add_user(&"n".repeat(NAME_BYTES_MAX + 1)),
        Error::NameTooLong,
    );
    rows.make(add_user("bob"));
    rows.refuse(add_user("bob"), Error::UserExists);
    let no_password = |name: &str, no_password| Change::AddUser {
        name: name.to_owned(),
        hash: None,
        no_password,
    };
    rows.refuse(no_password("bob", false), Error::UserExists);
    rows.refuse(no_password("alice", false), Error::InvalidHash);
    rows.make(no_password("alice", true));
    // As etcd writes them: its options are there even if they say nothing.
    let kept: [(&str, &[u8]); 2] = [
        ("bob", b"\x0a\x03bob\x12\x04$2a$\x22\x00"),
        ("alice", b"\x0a\x05alice\x22\x02\x08\x01"),
    ];
    for (name, row) in kept {
        let found = rows.small.get(Bucket::AuthUsers, name.as_bytes());
        assert_eq!(found, Some(row));
    }

    rows.refuse(change_password("carol", None), Error::UserNotFound);
    rows.refuse(change_password("bob", None), Error::InvalidHash);
    rows.make(change_password("bob", Some("")));
    assert_eq!(rows.user("bob").password, "");
    rows.make(change_password("bob", Some("new")));
    rows.make(change_password("bob", Some("new")));
    assert_eq!(rows.user("bob").password, "new");
    rows.make(change_password("alice", Some("new")));
    rows.make(change_password("alice", None));
    assert_eq!(rows.user("alice").password, "");

    rows.refuse(delete_user("carol"), Error::UserNotFound);
    rows.make(delete_user("bob"));
    rows.refuse(delete_user("bob"), Error::UserNotFound);
    assert_eq!(revision(&rows.small), 9);
}

#[test]
fn roles_are_granted_in_order() {
    let mut rows = Rows::default();
    rows.make(add_user("bob"));
    rows.make(add_user("root"));
    rows.refuse(add_role(""), Error::RoleEmpty);
    rows.refuse(
        add_role(&"n".repeat(NAME_BYTES_MAX + 1)),
        Error::NameTooLong,
    );
    rows.make(add_role("writer"));
    rows.make(add_role("reader"));
    rows.refuse(add_role("reader"), Error::RoleExists);
    rows.refuse(grant_role("carol", "reader"), Error::UserNotFound);
    rows.refuse(grant_role("bob", "none"), Error::RoleNotFound);
    rows.make(grant_role("bob", "writer"));
    rows.make(grant_role("bob", "reader"));
    // There is no such role.
    rows.make(grant_role("bob", "root"));
    rows.make(grant_role("root", "writer"));
    assert_eq!(rows.change(grant_role("bob", "reader")), Ok(0));
    assert_eq!(rows.user("bob").roles, ["reader", "root", "writer"]);

    rows.refuse(revoke_role("carol", "reader"), Error::UserNotFound);
    rows.refuse(revoke_role("root", "reader"), Error::RoleNotGranted);
    rows.make(revoke_role("bob", "reader"));
    rows.refuse(delete_role("none"), Error::RoleNotFound);
    let before = rows.user("bob");
    // From all users at once.
    rows.make(delete_role("writer"));
    let after = rows.user("bob");
    assert_eq!(
        (&after.roles[..], rows.user("root").roles.len()),
        (&["root".to_owned()][..], 0)
    );
    assert_eq!(
        (after.password, after.options),
        (before.password, before.options)
    );
    rows.refuse(revoke_role("bob", "writer"), Error::RoleNotGranted);
    rows.make(delete_role("reader"));
}

#[test]
fn permissions_stand_in_order_of_their_keys() {
    let mut rows = Rows::default();
    rows.make(add_role("r"));
    let nothing = Change::GrantPermission {
        role: "none".to_owned(),
        permission: None,
    };
    rows.refuse(nothing, Error::PermissionNotGiven);
    for (key, range_end) in [("", ""), ("", "\0"), ("b", "a"), ("b", "b")] {
        rows.refuse(grant("none", 0, key, range_end), Error::InvalidChange);
    }
    rows.refuse(grant("none", 0, "a", ""), Error::RoleNotFound);
    rows.make(grant("r", 0, "b", "c"));
    rows.make(grant("r", 1, "a", "\0"));
    rows.make(grant("r", 77, "b", ""));
    // The type of the same range is replaced, and one of another range is not looked at.
    rows.make(grant("r", 2, "b", "c"));
    rows.make(grant("r", 2, "b", "c"));
    rows.make(grant("r", 1, "b", ""));
    let kept = rows.permissions("r");
    let kept: Vec<_> = kept
        .iter()
        .map(|(kind, range)| (*kind, &range[..]))
        .collect();
    assert_eq!(kept, [(1, "a-\0"), (2, "b-c"), (77, "b-"), (1, "b-")]);

    rows.refuse(revoke("none", "a", ""), Error::RoleNotFound);
    rows.refuse(revoke("r", "a", ""), Error::PermissionNotGranted);
    rows.make(revoke("r", "b", ""));
    rows.make(revoke("r", "a", "\0"));
    assert_eq!(rows.permissions("r"), [(2, "b-c".to_owned())]);
}

#[test]
fn it_is_turned_on_for_root_and_off_by_root() {
    let mut rows = Rows::default();
    rows.refuse(Change::Enable, Error::NoRootUser);
    assert_eq!(rows.change(Change::Disable), Ok(0));
    rows.make(add_user("root"));
    rows.refuse(Change::Enable, Error::RootWithoutRole);
    rows.make(grant_role("root", "root"));
    assert!(!is_on(&rows.small));
    assert_eq!(rows.change(Change::Enable), Ok(0));
    assert!(is_on(&rows.small));

    // Whoever asks, that comes before what is asked.
    for (user, error) in [("", Error::UserEmpty), ("bob", Error::UserNotFound)] {
        rows.asker.user = user.to_owned();
        for change in [Change::Enable, add_user(""), delete_user("root")] {
            rows.refuse(change, error);
        }
    }
    rows.asker.user = "root".to_owned();
    rows.make(add_user("bob"));
    rows.asker.user = "bob".to_owned();
    rows.refuse(add_user("bob"), Error::Denied);
    rows.refuse(Change::Disable, Error::Denied);

    // Its own revision is not looked at.
    rows.asker.user = "root".to_owned();
    rows.asker.revision = 1;
    rows.refuse(delete_user("root"), Error::InvalidChange);
    rows.refuse(revoke_role("root", "root"), Error::InvalidChange);
    rows.refuse(delete_role("root"), Error::InvalidChange);
    rows.make(add_role("root"));
    rows.make(grant_role("bob", "root"));
    rows.make(revoke_role("bob", "root"));
    assert_eq!(rows.change(Change::Enable), Ok(0));
    rows.make(Change::Disable);
    assert_eq!(rows.change(Change::Disable), Ok(0));
    rows.asker.user.clear();
    rows.make(delete_role("root"));
    assert_eq!(rows.user("root").roles.len(), 0);
    rows.make(delete_user("root"));
}

/// A file may hold it.
#[test]
fn the_last_revision_is_no_end() {
    let mut rows = Rows::default();
    rows.small
        .set(Bucket::Auth, REVISION, Some(&u64::MAX.to_be_bytes()));
    let row = decide(&rows.small, &rows.asker, &add_role("r")).expect("it is new");
    assert_eq!(
        row.last().and_then(|row| row.value.as_deref()),
        Some(&[0; 8][..])
    );
}

/// A hash is not for logs.
#[test]
fn no_hash_is_shown() {
    let rows = Rows::default();
    let change = add_user("bob");
    let decided = decide(&rows.small, &rows.asker, &change).expect("it is new");
    let shown = format!("{change:?} {decided:?}");
    assert!(shown.contains("bob") || shown.contains("98"), "{shown}");
    assert!(
        !shown.contains("$2a$") && !shown.contains("36, 50, 97"),
        "{shown}"
    );
}
