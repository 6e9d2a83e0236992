//! Downgrades: which version could be gone back to, if it could.

use super::status::Refused;
use crate::config::CLUSTER_VERSION;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::downgrade_request::DowngradeAction;

/// What etcd says of it. There never is a downgrade under way: to enable one is refused behind all
/// that etcd refuses.
pub fn judge(request: &pb::DowngradeRequest) -> Result<(), Refused> {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Validate) => check_target(&request.version),
        Ok(DowngradeAction::Enable) => {
            check_target(&request.version)?;
            Err(Refused::NoWayBack)
        }
        // As etcd: without one to cancel as well, and whatever the version (script `downgrade`).
        Ok(DowngradeAction::Cancel) => Ok(()),
        Err(_) => Err(Refused::UnknownMethod),
    }
}

fn check_target(version: &str) -> Result<(), Refused> {
    let numbers = numbers(version).or_else(|| numbers(&format!("{version}.0")));
    let (major, minor) = numbers.ok_or(Refused::NoVersion)?;
    if (major, minor + 1) != CLUSTER_VERSION {
        return Err(Refused::NotTheVersionBefore);
    }
    Ok(())
}

/// Major and minor of a semantic version, as the library that etcd uses reads it: leading zeros and
/// empty suffixes pass.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let (version, build) = version.split_once('+').unwrap_or((version, ""));
    let (version, release) = version.split_once('-').unwrap_or((version, ""));
    let is_suffix = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if !build.chars().all(is_suffix) || !release.chars().all(is_suffix) {
        return None;
    }
    let mut parts = version.splitn(3, '.').map(|part| {
        let number: i64 = part.parse().ok()?;
        u64::try_from(number).ok()
    });
    let (major, minor, _patch) = (parts.next()??, parts.next()??, parts.next()??);
    Some((major, minor))
}
