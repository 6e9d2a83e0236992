//! Permissions: which keys a user may read and write.
//!
//! What the roles of a user permit is merged into ranges that do not touch. So a request for several
//! keys is permitted if one of them holds all of it, whichever roles it is from.

use crate::proto::authpb::{Permission, permission::Type};
use crate::storage::key_range::{End, KeyRange};
use crate::storage::small::Small;

use super::{Asker, Error, is_on, revision, role, user};

/// What is to be done with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// They are read.
    Read,
    /// They are written or deleted.
    Write,
}

/// What somebody may do.
#[derive(Debug)]
pub struct Rights(Permitted);

#[derive(Debug)]
enum Permitted {
    All,
    Some { read: Ranges, write: Ranges },
}

impl Rights {
    /// What `asker` may do; refuses who may do nothing at all.
    pub fn of(small: &Small, asker: &Asker) -> Result<Rights, Error> {
        if !is_on(small) {
            return Ok(Rights(Permitted::All));
        }
        if asker.revision == 0 {
            return Err(Error::UserEmpty);
        }
        if asker.revision < revision(small) {
            return Err(Error::OldRevision);
        }
        let user = user::get(small, &asker.user).ok_or(Error::Denied)?;
        if user::is_root(&user) {
            return Ok(Rights(Permitted::All));
        }
        let roles = user.roles.iter().filter_map(|name| role::get(small, name));
        let permissions: Vec<_> = roles.flat_map(|role| role.key_permission).collect();
        let of = |kind: Type| {
            let permits = move |permission: &&Permission| {
                let found = Type::try_from(permission.perm_type);
                found.is_ok_and(|found| found == kind || found == Type::Readwrite)
            };
            Ranges::of(permissions.iter().filter(permits))
        };
        Ok(Rights(Permitted::Some {
            read: of(Type::Read),
            write: of(Type::Write),
        }))
    }

    /// Refuses access that is not permitted to all keys of a range, whether they are there or not.
    /// An empty range needs what its first key needs.
    pub fn permit(&self, access: Access, range: &KeyRange) -> Result<(), Error> {
        let permitted = match (&self.0, access) {
            (Permitted::All, _) => true,
            (Permitted::Some { read, .. }, Access::Read) => read.hold(range),
            (Permitted::Some { write, .. }, Access::Write) => write.hold(range),
        };
        permitted.then_some(()).ok_or(Error::Denied)
    }
}

/// Whether the range of a permission holds any key, which those of new ones must.
pub(super) fn is_valid(permission: &Permission) -> bool {
    bounds(permission).is_some()
}

/// The first key, and the first behind that is not meant, if there is one.
type Bounds = (Vec<u8>, Option<Vec<u8>>);

/// `None` for a range that holds no key: older etcds have kept such.
fn bounds(permission: &Permission) -> Option<Bounds> {
    let key = permission.key.to_vec();
    if key.is_empty() {
        return None;
    }
    let end = match &permission.range_end[..] {
        [] => Some([&key[..], &[0]].concat()),
        [0] => None,
        end if *end > key[..] => Some(end.to_vec()),
        _ => return None,
    };
    Some((key, end))
}

/// Ranges of keys in order, of which no two touch.
#[derive(Debug)]
struct Ranges(Vec<Bounds>);

impl Ranges {
    fn of<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Ranges {
        let mut all: Vec<Bounds> = permissions.filter_map(bounds).collect();
        all.sort();
        let mut merged: Vec<Bounds> = Vec::new();
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    if end.is_none() || last.is_some() && end > *last {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Ranges(merged)
    }

    fn hold(&self, range: &KeyRange) -> bool {
        let behind = self
            .0
            .partition_point(|(start, _)| start[..] <= range.start);
        let Some((_, end)) = behind.checked_sub(1).map(|at| &self.0[at]) else {
            return false;
        };
        let Some(end) = end else { return true };
        match &range.end {
            End::Unbounded => false,
            End::Before(before) if *before > range.start => before[..] <= end[..],
            End::Single | End::Before(_) => range.start < end[..],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;
    use proptest::sample::select;
    use prost::Message;

    use super::*;
    use crate::auth::{ENABLED, REVISION};
    use crate::proto::authpb::{Role, User};
    use crate::storage::small::Bucket;

    /// A store of users and roles in which `user` has the roles, at revision 5.
    fn small(roles: &[Vec<Permission>]) -> Small {
        let mut small = Small::default();
        let mut user = User {
            name: "user".into(),
            ..Default::default()
        };
        for (number, permissions) in roles.iter().enumerate() {
            let name = format!("role {number}");
            let role = Role {
                name: name.clone().into(),
                key_permission: permissions.clone(),
            };
            let row = role.encode_to_vec();
            small.set(Bucket::AuthRoles, name.as_bytes(), Some(&row));
            user.roles.push(name);
        }
        // One that is gone, or was never there.
        user.roles.push("role z".to_owned());
        let rows: [(Bucket, &[u8], &[u8]); 3] = [
            (Bucket::AuthUsers, b"user", &user.encode_to_vec()),
            (Bucket::Auth, ENABLED, &[1]),
            (Bucket::Auth, REVISION, &5u64.to_be_bytes()),
        ];
        for (bucket, key, value) in rows {
            small.set(bucket, key, Some(value));
        }
        small
    }

    fn permission(perm_type: i32, key: &[u8], range_end: &[u8]) -> Permission {
        Permission {
            perm_type,
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(range_end),
        }
    }

    fn asker(user: &str, revision: u64) -> Asker {
        let user = user.to_owned();
        Asker { user, revision }
    }

    fn may(rights: &Rights, access: Access, key: &[u8], range_end: &[u8]) -> bool {
        let wire = Bytes::copy_from_slice;
        let range = KeyRange::from_wire(wire(key), wire(range_end));
        rights.permit(access, &range).is_ok()
    }

    #[test]
    fn ranges_of_several_roles_join_where_they_touch() {
        let (read, write, both) = (0, 1, 2);
        let small = small(&[
            vec![
                permission(read, b"a", b"b"),
                permission(both, b"x", b""),
                permission(7, b"q", b"r"),
            ],
            vec![
                permission(read, b"b", b"c"),
                permission(write, b"x\0", b"\0"),
            ],
        ]);
        let rights = Rights::of(&small, &asker("user", 5)).expect("the user is there");
        for (access, key, range_end, permitted) in [
            (Access::Read, &b"a"[..], &b"c"[..], true),
            (Access::Read, b"a", b"c\0", false),
            (Access::Read, b"a", b"\0", false),
            (Access::Read, b"b", b"", true),
            (Access::Read, b"c", b"", false),
            (Access::Read, b"c", b"c", false),
            (Access::Read, b"b", b"b", true),
            (Access::Read, b"b", b"a", true),
            (Access::Read, b"q", b"", false),
            (Access::Read, b"x", b"x\0", true),
            (Access::Read, b"x", b"x\0\0", false),
            (Access::Write, b"a", b"", false),
            (Access::Write, b"x", b"\0", true),
            (Access::Write, b"x", b"zzz", true),
            (Access::Write, b"w", b"\0", false),
        ] {
            let found = may(&rights, access, key, range_end);
            assert_eq!(found, permitted, "{access:?} {key:?} {range_end:?}");
        }
    }

    #[test]
    fn who_asks_is_looked_at_before_the_keys() {
        let mut small = small(&[]);
        let of = |small: &Small, user, revision| {
            let rights = Rights::of(small, &asker(user, revision))?;
            rights.permit(Access::Read, &KeyRange::single("k".into()))
        };
        for (user, revision, error) in [
            ("", 0, Error::UserEmpty),
            ("user", 0, Error::UserEmpty),
            ("user", 4, Error::OldRevision),
            ("nobody", 4, Error::OldRevision),
            ("nobody", 5, Error::Denied),
            ("user", 6, Error::Denied),
        ] {
            assert_eq!(of(&small, user, revision), Err(error), "{user} {revision}");
        }
        let root = User {
            name: "user".into(),
            roles: vec!["root".to_owned()],
            ..Default::default()
        };
        small.set(Bucket::AuthUsers, b"user", Some(&root.encode_to_vec()));
        assert_eq!(of(&small, "user", 4), Err(Error::OldRevision));
        assert_eq!(of(&small, "user", 5), Ok(()));
        small.set(Bucket::Auth, ENABLED, Some(&[0]));
        assert_eq!(of(&small, "", 0), Ok(()));
    }

    /// What older etcds have kept: they hold no key, and take nothing from others.
    #[test]
    fn permissions_of_no_key_permit_nothing() {
        let none = [
            permission(2, b"", b"\0"),
            permission(2, b"", b"z"),
            permission(2, b"m", b"m"),
            permission(2, b"m", b"c"),
        ];
        for permission in &none {
            assert!(!is_valid(permission), "{permission:?}");
        }
        let mut all = none.to_vec();
        all.push(permission(2, b"d", b"p"));
        let small = small(&[all]);
        let rights = Rights::of(&small, &asker("user", 5)).expect("the user is there");
        assert!(may(&rights, Access::Write, b"d", b"p"));
        assert!(!may(&rights, Access::Write, b"c", b""));
        assert!(!may(&rights, Access::Write, b"p", b""));
    }

    /// All keys of up to so many letters of two, the least letter being one.
    fn keys(letters_max: usize) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
        for letters in 0..letters_max {
            let longest = keys.iter().filter(|key| key.len() == letters);
            let longer = longest.flat_map(|key| [0, b'b'].map(|last| [&key[..], &[last]].concat()));
            keys.extend(longer.collect::<Vec<_>>());
        }
        keys.split_off(1)
    }

    /// One key, all from it on, or up to another one.
    fn any_range() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let end = prop_oneof![Just(Vec::new()), Just(vec![0]), select(keys(2))];
        (select(keys(2)), end)
    }

    /// The keys that a range means, as the wire has it, as far as they have three letters at most.
    /// Since ranges begin and end with at most two, or right behind such a key, none holds a part
    /// only of what lies between two of these keys.
    fn meant(key: &[u8], range_end: &[u8]) -> BTreeSet<Vec<u8>> {
        let mut keys = keys(3);
        keys.retain(|found| match range_end {
            [] => found == key,
            [0] => &found[..] >= key,
            end => &found[..] >= key && &found[..] < end,
        });
        keys.into_iter().collect()
    }

    proptest! {
        /// Permitted is what asks for nothing but keys that some permission names.
        #[test]
        fn rights_are_those_of_a_set_of_keys(
            roles in prop::collection::vec(
                prop::collection::vec((0..4, any_range()), 0..5), 0..4,
            ),
            (key, end) in any_range(),
        ) {
            let roles: Vec<Vec<_>> = roles
                .into_iter()
                .map(|role| {
                    let role = role.into_iter();
                    role.map(|(kind, (key, end))| permission(kind, &key, &end)).collect()
                })
                .collect();
            let mut asked = meant(&key, &end);
            if asked.is_empty() {
                asked.insert(key.clone());
            }
            let small = small(&roles);
            let rights = Rights::of(&small, &asker("user", 5)).expect("the user is there");
            for (access, kind) in [(Access::Read, 0), (Access::Write, 1)] {
                let permissions = roles.iter().flatten();
                let permitted: BTreeSet<_> = permissions
                    .filter(|found| found.perm_type == kind || found.perm_type == 2)
                    .flat_map(|found| meant(&found.key, &found.range_end))
                    .collect();
                let expected = asked.is_subset(&permitted);
                prop_assert_eq!(may(&rights, access, &key, &end), expected);
            }
        }
    }
}
