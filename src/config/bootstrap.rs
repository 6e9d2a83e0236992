//! What only counts for a new store: the cluster that it starts.
//!
//! etcd asks for a list of members, and starts only if this member is in it with its own URLs.
//! Here the list has one member. Hosts are compared by their text, and not looked up.

use std::collections::BTreeSet;

use super::settings::Settings;
use super::url::{self, Url};
use super::{ClusterState, Config, Refusal};

impl Config {
    /// Whether a store may be made in an empty data folder. With data in it this does not count.
    pub fn check_bootstrap(&self) -> Result<(), Refusal> {
        let refused = |message| Err(Refusal::new(message));
        let urls = initial_urls(&self.initial_cluster, &self.name)
            .map_err(|why| Refusal::new(format!("error setting up initial cluster: {why}")))?;
        if urls.is_empty() {
            return refused(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                self.name
            ));
        }
        if self.initial_cluster_state == ClusterState::Existing {
            return refused(
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
                    .into(),
            );
        }
        let (name, advertised) = (&self.name, &self.initial_advertise_peer_urls);
        let prefixed = |urls: &[&String]| {
            let pairs = urls.iter().map(|url| format!("{name}={url}"));
            pairs.collect::<Vec<_>>().join(",")
        };
        let initial: Vec<&String> = urls.iter().map(|url| &url.text).collect();
        let unadvertised: Vec<&String> = initial
            .iter()
            .copied()
            .filter(|url| !advertised.contains(url))
            .collect();
        if !unadvertised.is_empty() {
            return refused(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
                prefixed(&unadvertised),
                advertised.join(",")
            ));
        }
        let uninitial: Vec<&String> = advertised
            .iter()
            .filter(|url| !initial.contains(url))
            .collect();
        if !uninitial.is_empty() {
            let missing = uninitial
                .iter()
                .map(|url| url.as_str())
                .collect::<Vec<_>>()
                .join(",");
            return refused(format!(
                "--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={}",
                prefixed(&initial)
            ));
        }
        Ok(())
    }
}

/// As given; with a name and no cluster, that name at the advertised URLs.
pub(super) fn initial_cluster(
    s: &Settings,
    name: &str,
    peer_urls: &[String],
) -> Result<String, Refusal> {
    let given = s.text("initial-cluster");
    let members: BTreeSet<&str> = members(given).map(|(member, _)| member).collect();
    if members.len() > 1 {
        return Err(Refusal::new(format!(
            "--initial-cluster names {} members: only a single member is supported",
            members.len()
        )));
    }
    // As etcd, which compares the text with its default, whoever wrote it.
    if name != "default" && given == "default=http://localhost:2380" {
        let pairs = peer_urls.iter().map(|url| format!("{name}={url}"));
        return Ok(pairs.collect::<Vec<_>>().join(","));
    }
    Ok(given.into())
}

/// The URLs of a member in a text such as `a=http://h:1,a=http://h:2`.
fn initial_urls(initial_cluster: &str, name: &str) -> Result<Vec<Url>, String> {
    let urls: Vec<&str> = members(initial_cluster).map(|(_, url)| url).collect();
    let parsed = url::list(urls.into_iter())?;
    let is_there = members(initial_cluster).any(|(member, _)| member == name);
    Ok(if is_there { parsed } else { Vec::new() })
}

fn members(initial_cluster: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = initial_cluster.split(',').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}
