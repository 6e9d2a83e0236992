//! Every flag, in one table: its name, its kind, its default, and what it does here.
//!
//! The parser, the defaults, the environment and the text of `--help` are all read from this
//! table, so none of them can say what another does not. Names and defaults are those of etcd
//! 3.7; only the group of [`OWN`] is ours.

use super::values::Kind::{self, *};

/// A heading of `--help`, and the flags below it.
pub(super) struct Group {
    pub(super) heading: &'static str,
    /// How the names of the environment variables begin.
    pub(super) env_prefix: &'static str,
    pub(super) flags: &'static [Flag],
}

/// One flag.
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// As it would be written on the command line.
    pub(super) default: &'static str,
    pub(super) about: &'static str,
    pub(super) effect: Effect,
}

/// What becomes of a value that parses.
#[derive(Clone, Copy)]
pub(super) enum Effect {
    /// It is looked at, if only to be checked against others.
    Used,
    /// Nothing depends on it: on a single node, or in our store, there is nothing for it to change.
    None,
    /// Nothing depends on it, and whoever gives it is told `--name` and this.
    Warned(&'static str),
    /// Only these values are taken, as they ask for what is so anyway; any other is refused with
    /// `--name` and this reason. A request for safety is never swallowed.
    Only(&'static [&'static str], &'static str),
}

const NOT_YET: &str = "is not supported yet";
const SINGLE: &str = "cannot be used: only a single member is supported";
const NO_PEERS: &str = "has no effect: there are no peers, and no peer port is opened";
const OF_OLD: &str = "is no longer a flag of etcd 3.7: ignored";

const ETCD: &str = "ETCD_";
/// The group of our own flags.
const OWN: &str = "METASTORE_";

const fn flag(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        about,
        effect: Effect::Used,
    }
}

const fn idle(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        about,
        effect: Effect::None,
    }
}

const fn warned(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    about: &'static str,
    warning: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        about,
        effect: Effect::Warned(warning),
    }
}

const fn only(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    accepted: &'static [&'static str],
    reason: &'static str,
    about: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        about,
        effect: Effect::Only(accepted, reason),
    }
}

const fn of_old(name: &'static str) -> Flag {
    Flag {
        name,
        kind: Ignored,
        default: "",
        about: "",
        effect: Effect::Warned(OF_OLD),
    }
}

/// All flags.
pub(super) fn flags() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

/// The environment variable of a flag of `group`: `--some-flag` is `ETCD_SOME_FLAG`.
pub(super) fn env_name(group: &Group, flag: &Flag) -> String {
    format!(
        "{}{}",
        group.env_prefix,
        flag.name.to_uppercase().replace('-', "_")
    )
}

/// Whether `name`, given as `--experimental-name` by a manifest for etcd 3.5, is known as `--name`.
pub(super) fn was_experimental(name: &str) -> bool {
    let groups = GROUPS.iter().filter(|group| group.env_prefix == ETCD);
    groups
        .flat_map(|group| group.flags)
        .any(|flag| flag.name == name && !matches!(flag.kind, Ignored | Gone))
}

// One flag a line, to be read as a table.
#[rustfmt::skip]
pub(super) static GROUPS: &[Group] = &[
    Group {
        heading: "Member",
        env_prefix: ETCD,
        flags: &[
            flag("name", Text, "default", "The member's name."),
            flag("data-dir", Text, "", "The data folder; ${name}.etcd if empty."),
            flag("wal-dir", Text, "", "A folder of its own for the log; inside the data folder if empty."),
            flag("listen-client-urls", Urls, "http://localhost:2379", "Where clients are served: http://IP:PORT or unix:PATH."),
            flag("advertise-client-urls", Urls, "http://localhost:2379", "The client URLs told to others. Needed with --listen-client-urls."),
            flag("version", Bool, "false", "Print the version and exit."),
        ],
    },
    Group {
        heading: "Limits",
        env_prefix: ETCD,
        flags: &[
            flag("max-request-bytes", Uint, "1572864", "The largest request that is taken."),
            flag("max-txn-ops", Uint, "128", "The most operations in a txn."),
            flag("max-concurrent-streams", Uint32, "4294967295", "The most streams open at a time on one connection."),
            flag("quota-backend-bytes", Int, "0", "The size from which the store takes only reads, deletes and compactions; 0 is 2 GiB, -1 no limit."),
        ],
    },
    Group {
        heading: "Logging",
        env_prefix: ETCD,
        flags: &[
            flag("logger", Text, "zap", "Only zap: the structured log."),
            flag("log-level", Text, "info", "debug, info, warn, error, panic or fatal."),
            flag("log-format", Text, "json", "json or console."),
            flag("log-outputs", Text, "default", "stderr (the default) or stdout."),
        ],
    },
    Group {
        heading: "MetaStore's own",
        env_prefix: OWN,
        flags: &[
            flag("cache-size", Bytes, "64MiB", "Memory for pages read from the tables."),
            flag("flush-size", Bytes, "48MiB", "Changes kept in memory before they are moved into the tables."),
            flag("log-segment-size", Bytes, "64MiB", "The size of one file of the log."),
            flag("disk-reserve", Bytes, "128MiB", "Disk space held back, so that a full disk can still be tidied."),
            flag("network-threads", Count, "1", "Threads that serve connections."),
        ],
    },
    Group {
        heading: "Identity: sets the ids and what MemberList shows",
        env_prefix: ETCD,
        flags: &[
            flag("initial-advertise-peer-urls", Urls, "http://localhost:2380", "This member's peer URLs."),
            flag("initial-cluster", Text, "default=http://localhost:2380", "NAME=URL of this one member."),
            flag("initial-cluster-state", OneOf(&["new", "existing"]), "new", "An empty data folder needs new."),
            flag("initial-cluster-token", Text, "etcd-cluster", "Told apart from other clusters by this."),
            flag("listen-peer-urls", Urls, "http://localhost:2380", "Checked, and not listened on."),
        ],
    },
    Group {
        heading: "Timing",
        env_prefix: ETCD,
        flags: &[
            flag("heartbeat-interval", Uint, "100", "Milliseconds; only checked against the next."),
            flag("election-timeout", Uint, "1000", "Milliseconds; the shortest lease is 1.5 times as long."),
            flag("watch-progress-notify-interval", Duration, "10m", "How often a watcher is told how far it has heard; 100ms at least."),
            flag("compact-hash-check-time", Duration, "1m", "Checked to be above 0."),
            flag("auto-compaction-mode", Text, "periodic", "periodic or revision."),
            flag("auto-compaction-retention", Text, "0", "What automatic compaction keeps: by period, a duration, or hours if it is a bare number; by revision, so many of them. 0 is off."),
            flag("compaction-batch-limit", Int, "1000", "For so many revisions that compaction looks at, it rests once; 0 is 1000. Rests are taken together, one for 200,000 revisions."),
            flag("compaction-sleep-interval", Duration, "10ms", "That rest; 0 is 10ms."),
        ],
    },
    Group {
        heading: "Accepted, and without effect on a single node or in this store",
        env_prefix: ETCD,
        flags: &[
            flag("feature-gates", Gates, "", "etcd's gates: Name=true,…"),
            flag("discovery-fallback", OneOf(&["exit", "proxy"]), "exit", ""),
            idle("backend-batch-interval", Duration, "0s", ""),
            idle("backend-batch-limit", Int, "0", ""),
            idle("backend-bbolt-freelist-type", Text, "map", ""),
            idle("bootstrap-defrag-threshold-megabytes", Uint, "0", ""),
            idle("corrupt-check-time", Duration, "0s", ""),
            idle("discovery-cacert", Text, "", ""),
            idle("discovery-cert", Text, "", ""),
            idle("discovery-dial-timeout", Duration, "2s", ""),
            idle("discovery-insecure-skip-tls-verify", Bool, "false", ""),
            idle("discovery-insecure-transport", Bool, "true", ""),
            idle("discovery-keepalive-time", Duration, "2s", ""),
            idle("discovery-keepalive-timeout", Duration, "6s", ""),
            idle("discovery-key", Text, "", ""),
            idle("discovery-password", Text, "", ""),
            idle("discovery-request-timeout", Duration, "5s", ""),
            idle("discovery-user", Text, "", ""),
            idle("distributed-tracing-address", Text, "localhost:4317", ""),
            idle("distributed-tracing-instance-id", Text, "", ""),
            idle("distributed-tracing-sampling-rate", Int, "0", ""),
            idle("distributed-tracing-service-name", Text, "etcd", ""),
            idle("downgrade-check-time", Duration, "5s", ""),
            idle("enable-grpc-gateway", Bool, "true", ""),
            idle("force-new-cluster", Bool, "false", ""),
            idle("initial-election-tick-advance", Bool, "true", ""),
            idle("log-rotation-config-json", Text, r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#, ""),
            idle("max-learners", Int, "1", ""),
            warned("max-snapshots", Uint, "5", "", "is deprecated in 3.6 and will be decommissioned in 3.8."),
            idle("max-wals", Uint, "5", ""),
            idle("memory-mlock", Bool, "false", ""),
            idle("pre-vote", Bool, "true", ""),
            idle("raft-read-timeout", Duration, "5s", ""),
            idle("raft-write-timeout", Duration, "5s", ""),
            idle("snapshot-catchup-entries", Uint, "5000", ""),
            idle("snapshot-count", Uint, "10000", ""),
            idle("strict-reconfig-check", Bool, "true", ""),
            warned("v2-deprecation", AnyOf(&[ "write-only", "write-only-skip-check", "write-only-drop-data", "gone", ]), "write-only", "", "is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input."),
            warned("peer-auto-tls", Bool, "false", "", NO_PEERS),
            warned("peer-cert-allowed-cn", Text, "", "", NO_PEERS),
            warned("peer-cert-allowed-hostname", Text, "", "", NO_PEERS),
            warned("peer-cert-file", File, "", "", NO_PEERS),
            warned("peer-client-cert-auth", Bool, "false", "", NO_PEERS),
            warned("peer-client-cert-file", File, "", "", NO_PEERS),
            warned("peer-client-key-file", File, "", "", NO_PEERS),
            warned("peer-crl-file", Text, "", "", NO_PEERS),
            warned("peer-key-file", File, "", "", NO_PEERS),
            warned("peer-skip-client-san-verification", Bool, "false", "", NO_PEERS),
            warned("peer-trusted-ca-file", File, "", "", NO_PEERS),
        ],
    },
    Group {
        heading: "Not supported yet: refused, unless the value is the default or asks for nothing",
        env_prefix: ETCD,
        flags: &[
            only("config-file", Text, "", &[""], NOT_YET, ""),
            only("auth-token", Text, "simple", &["simple"], NOT_YET, ""),
            only("auth-token-ttl", Uint, "300", &["300"], NOT_YET, ""),
            only("auto-tls", Bool, "false", &["false"], NOT_YET, ""),
            only("bcrypt-cost", Uint, "10", &["10"], NOT_YET, ""),
            only("cert-file", Text, "", &[""], NOT_YET, ""),
            only("cipher-suites", Text, "", &[], NOT_YET, ""),
            only("client-cert-allowed-hostname", Text, "", &[], NOT_YET, ""),
            only("client-cert-auth", Bool, "false", &["false"], NOT_YET, ""),
            only("client-cert-file", Text, "", &[""], NOT_YET, ""),
            only("client-crl-file", Text, "", &[""], NOT_YET, ""),
            only("client-key-file", Text, "", &[""], NOT_YET, ""),
            only("cors", Text, "*", &["*"], NOT_YET, ""),
            only("enable-distributed-tracing", Bool, "false", &["false"], NOT_YET, ""),
            only("enable-log-rotation", Bool, "false", &["false"], NOT_YET, ""),
            only("enable-pprof", Bool, "false", &["false"], NOT_YET, ""),
            only("grpc-keepalive-interval", Duration, "2h", &["2h"], NOT_YET, ""),
            only("grpc-keepalive-min-time", Duration, "5s", &["5s"], NOT_YET, ""),
            only("grpc-keepalive-timeout", Duration, "20s", &["20s"], NOT_YET, ""),
            only("host-whitelist", Text, "*", &["*", ""], NOT_YET, ""),
            only("key-file", Text, "", &[""], NOT_YET, ""),
            only("listen-client-http-urls", Urls, "", &[""], NOT_YET, ""),
            only("listen-metrics-urls", Urls, "", &[""], NOT_YET, ""),
            only("metrics", Text, "basic", &["basic"], NOT_YET, ""),
            only("self-signed-cert-validity", Uint, "1", &["1"], NOT_YET, ""),
            only("socket-reuse-address", Bool, "false", &["false"], NOT_YET, ""),
            only("socket-reuse-port", Bool, "false", &["false"], NOT_YET, ""),
            only("tls-max-version", Text, "", &[""], NOT_YET, ""),
            only("tls-min-version", Text, "TLS1.2", &["TLS1.2", ""], NOT_YET, ""),
            only("trusted-ca-file", Text, "", &[""], NOT_YET, ""),
            only("warning-apply-duration", Duration, "100ms", &["100ms"], NOT_YET, ""),
            only("warning-unary-request-duration", Duration, "300ms", &["300ms", "0"], NOT_YET, ""),
        ],
    },
    Group {
        heading: "Not supported",
        env_prefix: ETCD,
        flags: &[
            only("discovery-endpoints", Text, "", &[""], SINGLE, ""),
            only("discovery-srv", Text, "", &[""], SINGLE, ""),
            only("discovery-srv-name", Text, "", &[""], SINGLE, ""),
            only("discovery-token", Text, "", &[""], SINGLE, ""),
            only("unsafe-no-fsync", Bool, "false", &["false"], "cannot be used: what was answered must be on disk", ""),
        ],
    },
    Group {
        heading: "Flags of older releases, ignored",
        env_prefix: ETCD,
        flags: &[
            of_old("cluster-active-size"),
            of_old("cluster-remove-delay"),
            of_old("cluster-sync-interval"),
            of_old("config"),
            of_old("force"),
            of_old("max-result-buffer"),
            of_old("max-retry-attempts"),
            of_old("peer-heartbeat-interval"),
            of_old("peer-election-timeout"),
            of_old("retry-interval"),
            of_old("snapshot"),
            of_old("v"),
            of_old("vv"),
            of_old("test.coverprofile"),
            of_old("test.outputdir"),
            warned("experimental-initial-corrupt-check", Bool, "false", "", OF_OLD),
            warned("experimental-compact-hash-check-enabled", Bool, "false", "", OF_OLD),
            warned("enable-v2", Gone, "false", "", OF_OLD),
        ],
    },
];
