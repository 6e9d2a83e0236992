//! Who a member is: ids made from its first peer URLs, as etcd makes them.

use sha1::{Digest, Sha1};

/// The id of a member with these peer URLs. Its name does not count.
pub fn member_id(peer_urls: &[String], cluster_token: &str) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url);
    }
    hash.update(cluster_token);
    first_eight(hash)
}

/// The id of the cluster of this one member.
pub fn cluster_id(member_id: u64) -> u64 {
    let mut hash = Sha1::new();
    hash.update(member_id.to_be_bytes());
    first_eight(hash)
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_etcd() {
        for (url, token, member, cluster) in [
            (
                "http://localhost:2380",
                "etcd-cluster",
                0x8e9e05c52164694d,
                0xcdf818194e3a8c32,
            ),
            (
                "http://127.0.0.1:24701",
                "etcd-cluster",
                0x49e1ca0eb3d50d2e,
                0xfc47065035a97574,
            ),
            (
                "http://127.0.0.1:24701",
                "t",
                0xefbeef547e8d812f,
                0xab6649a599f4703c,
            ),
        ] {
            let id = member_id(&[url.into()], token);
            assert_eq!((id, cluster_id(id)), (member, cluster), "{url} {token}");
        }
    }

    #[test]
    fn the_order_of_urls_does_not_count() {
        let [a, b] = ["http://a:1".to_string(), "http://b:1".to_string()];
        assert_eq!(
            member_id(&[a.clone(), b.clone()], "t"),
            member_id(&[b, a], "t")
        );
    }
}
