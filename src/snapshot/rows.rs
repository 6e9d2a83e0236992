//! Rows of etcd's small buckets: what makes one sound.
//!
//! They are kept byte for byte, and written out again as they are; so a row that etcd would not
//! read is refused before it is kept.

use prost::Message;

use crate::auth;
use crate::proto::authpb::{Role, User};
use crate::proto::etcdserverpb::AlarmMember;
use crate::storage::Damaged;
use crate::storage::small::Bucket;

/// Refuses a row that etcd does not write.
pub fn check(bucket: Bucket, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
    let (sound, what) = match bucket {
        Bucket::Alarm => {
            let sound = AlarmMember::decode(key).is_ok() && value.is_empty();
            (sound, "an alarm that is none")
        }
        Bucket::Auth => {
            let sound = match key {
                auth::ENABLED => matches!(value, [0 | 1]),
                auth::REVISION => value.len() == 8,
                _ => false,
            };
            (sound, "a setting of authentication that is none")
        }
        Bucket::AuthRoles => {
            let sound = Role::decode(value).is_ok_and(|role| role.name == key);
            (sound, "a role that is none")
        }
        Bucket::AuthUsers => {
            let sound = User::decode(value).is_ok_and(|user| user.name == key);
            (sound, "a user that is none")
        }
        Bucket::Members => (true, ""),
    };
    sound.then_some(()).ok_or(Damaged(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::authpb::{Permission, UserAddOptions};

    #[test]
    fn rows_of_etcd_are_sound_and_others_are_not() {
        let user = User {
            name: "alice".into(),
            password: "$2a$".into(),
            roles: vec!["reader".to_owned(), "root".to_owned()],
            options: Some(UserAddOptions { no_password: true }),
        };
        let role = Role {
            name: "reader".into(),
            key_permission: vec![
                Permission::default(),
                Permission {
                    perm_type: 2,
                    key: "a".into(),
                    range_end: "\0".into(),
                },
            ],
        };
        let alarm = AlarmMember {
            member_id: u64::MAX,
            alarm: 1,
        };
        let (user, role, alarm) = (
            user.encode_to_vec(),
            role.encode_to_vec(),
            alarm.encode_to_vec(),
        );
        let eight = [0, 0, 0, 0, 0, 0, 0, 9];
        let sound: [(Bucket, &[u8], &[u8]); 6] = [
            (Bucket::AuthUsers, b"alice", &user),
            (Bucket::AuthRoles, b"reader", &role),
            (Bucket::Alarm, &alarm, b""),
            (Bucket::Auth, b"authEnabled", &[1]),
            (Bucket::Auth, b"authEnabled", &[0]),
            (Bucket::Auth, b"authRevision", &eight),
        ];
        for (bucket, key, value) in sound {
            assert_eq!(check(bucket, key, value), Ok(()), "{bucket:?}");
        }
        let wrong: [(Bucket, &[u8], &[u8]); 8] = [
            (Bucket::AuthUsers, b"bob", &user),
            (Bucket::AuthUsers, b"alice", &user[1..]),
            (Bucket::AuthRoles, b"alice", &user),
            (Bucket::AuthRoles, b"", &role),
            (Bucket::Alarm, &alarm, b"?"),
            (Bucket::Alarm, b"?", b""),
            (Bucket::Auth, b"authEnabled", &[2]),
            (Bucket::Auth, b"authRevision", &eight[1..]),
        ];
        for (bucket, key, value) in wrong {
            assert!(check(bucket, key, value).is_err(), "{bucket:?} {value:?}");
        }
    }
}
