//! Whole command lines and environments, and what becomes of them.

use std::collections::BTreeSet;
use std::path::Path;

use super::flags::Effect;
use super::*;

fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Parsed, Refusal> {
    parse(
        args.iter().map(OsString::from),
        env.iter().map(|(name, value)| (name.into(), value.into())),
    )
}

#[track_caller]
fn config(line: &str) -> Config {
    config_of(&line.split_whitespace().collect::<Vec<_>>(), &[])
}

#[track_caller]
fn config_of(args: &[&str], env: &[(&str, &str)]) -> Config {
    match run(args, env) {
        Ok(Parsed::Serve(config)) => *config,
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

#[track_caller]
fn refused(args: &[&str], env: &[(&str, &str)], code: u8, message: &str) {
    match run(args, env) {
        Err(refusal) => assert_eq!(
            (refusal.message.as_str(), refusal.code),
            (message, code),
            "{args:?} {env:?}"
        ),
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

#[track_caller]
fn printed(args: &[&str]) -> String {
    match run(args, &[]) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn defaults_are_those_of_etcd() {
    for flag in flags::flags() {
        assert!(flag.kind.parse(flag.default).is_ok(), "--{}", flag.name);
        if let Effect::Only(accepted, _) = flag.effect {
            assert!(
                accepted.iter().all(|text| flag.kind.parse(text).is_ok()),
                "--{}",
                flag.name
            );
        }
    }
    let names: BTreeSet<&str> = flags::flags().map(|flag| flag.name).collect();
    assert_eq!(names.len(), flags::flags().count(), "a name is there twice");

    let config = config("");
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, Path::new("default.etcd"));
    assert_eq!(config.wal_dir, None);
    assert_eq!(
        config.listen_client_urls[0].address,
        ListenAddress::Localhost(2379)
    );
    assert_eq!(config.advertise_client_urls, ["http://localhost:2379"]);
    assert_eq!(config.max_request_bytes, 1536 * 1024);
    assert_eq!(
        (config.max_txn_ops, config.max_concurrent_streams),
        (128, u32::MAX)
    );
    assert_eq!(config.quota_backend_bytes, 0);
    assert_eq!(
        (config.log_level, config.log_format),
        (LogLevel::Info, LogFormat::Json)
    );
    assert_eq!(
        (config.cache_bytes, config.disk_reserve_bytes),
        (64 << 20, 128 << 20)
    );
    assert_eq!(
        (config.member_id(), config.cluster_id()),
        (0x8e9e05c52164694d, 0xcdf818194e3a8c32)
    );
    assert_eq!(config.check_bootstrap(), Ok(()));
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn command_lines_are_read_as_go_does() {
    for line in [
        "-name a",
        "--name a",
        "-name=a",
        "--name=a",
        "--name b --name a --",
        "--pre-vote --v --vv=x --name a",
    ] {
        assert_eq!(config(line).name, "a", "{line}");
    }
    assert_eq!(config("--name --data-dir").name, "--data-dir");
    assert_eq!(config("--name=a=b").name, "a=b");
    assert_eq!(config_of(&["--name", ""], &[]).data_dir, Path::new(".etcd"));
    assert_eq!(config("--max-txn-ops=0x1_0").max_txn_ops, 16);
    assert_eq!(config("--quota-backend-bytes=-1").quota_backend_bytes, -1);
    assert_eq!(
        config("--log-level=WARN --log-format console --log-outputs=stdout").log_level,
        LogLevel::Warn
    );
    assert_eq!(
        config("--cache-size=1GiB --network-threads 4").cache_bytes,
        1 << 30
    );
}

#[test]
fn words_that_do_not_parse() {
    for (args, code, message) in [
        (&["--foo"][..], 2, "flag provided but not defined: -foo"),
        (&["--foo=1\n2"], 2, "flag provided but not defined: -foo"),
        (&["--a\nb"], 2, r"flag provided but not defined: -a\nb"),
        (&["--Name=a"], 2, "flag provided but not defined: -Name"),
        (&["--data"], 2, "flag provided but not defined: -data"),
        (&["---x"], 2, "bad flag syntax: ---x"),
        (&["--=x"], 2, "bad flag syntax: --=x"),
        (&["--name"], 2, "flag needs an argument: -name"),
        (
            &["--pre-vote=x"],
            2,
            r#"invalid boolean value "x" for -pre-vote: parse error"#,
        ),
        (
            &["--pre-vote", "false"],
            1,
            r#""false" is not a valid flag"#,
        ),
        (&["x", "--foo"], 1, r#""x" is not a valid flag"#),
        (&["-"], 1, r#""-" is not a valid flag"#),
        (&["--", "--name=a"], 1, r#""--name=a" is not a valid flag"#),
        (&["--name=a", "check"], 1, r#""check" is not a valid flag"#),
        (
            &["--max-txn-ops=-1"],
            2,
            r#"invalid value "-1" for flag -max-txn-ops: parse error"#,
        ),
        (
            &["--max-txn-ops=x", "--max-txn-ops=1"],
            2,
            r#"invalid value "x" for flag -max-txn-ops: parse error"#,
        ),
        (
            &["--max-concurrent-streams=5000000000"],
            2,
            r#"invalid value "5000000000" for flag -max-concurrent-streams: strconv.ParseUint: parsing "5000000000": value out of range"#,
        ),
        (
            &["--initial-cluster-state=x"],
            2,
            r#"invalid value "x" for flag -initial-cluster-state: invalid value"#,
        ),
        (
            &["--v2-deprecation=not-yet"],
            2,
            r#"invalid value "not-yet" for flag -v2-deprecation: invalid value "not-yet""#,
        ),
        (
            &["--feature-gates=X=true"],
            2,
            r#"invalid value "X=true" for flag -feature-gates: unrecognized feature gate: X"#,
        ),
        (
            &["--enable-v2"],
            2,
            r#"invalid boolean value "true" for -enable-v2: etcd 3.7 no longer has it"#,
        ),
        (
            &["--experimental-foo=1"],
            2,
            "flag provided but not defined: -experimental-foo",
        ),
        (
            &["--experimental-cache-size=1GiB"],
            2,
            "flag provided but not defined: -experimental-cache-size",
        ),
        (
            &["--cache-size=1"],
            2,
            r#"invalid value "1" for flag -cache-size: must be from 1MiB to 1024GiB"#,
        ),
        (
            &["gateway", "start"],
            1,
            "gateway is not supported: run the proxy of etcd itself",
        ),
    ] {
        refused(args, &[], code, message);
    }
}

#[test]
fn values_that_do_not_do() {
    for (line, message) in [
        (
            "--listen-client-urls=http://1.1.1.1:1",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--listen-client-urls=",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--listen-client-urls=http://a:1 --advertise-client-urls=http://a:1",
            "expected IP in URL for binding (http://a:1)",
        ),
        (
            "--listen-peer-urls=http://:1",
            "expected IP in URL for binding (http://:1)",
        ),
        (
            "--listen-client-urls=https://1.1.1.1:1 --advertise-client-urls=https://a:1",
            "--listen-client-urls: TLS is not supported yet: https://1.1.1.1:1",
        ),
        (
            "--listen-peer-urls=https://1.1.1.1:1",
            "cannot listen on TLS for 1.1.1.1:1: KeyFile and CertFile are not presented",
        ),
        (
            "--peer-cert-file=/nowhere/a",
            "--peer-cert-file: open /nowhere/a: No such file or directory (os error 2)",
        ),
        ("--peer-key-file=/", "--peer-key-file: open /: not a file"),
        (
            "--advertise-client-urls=http://:1",
            r#"--advertise-client-urls "http://:1" must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (unexpected empty host (http://:1))"#,
        ),
        (
            "--initial-advertise-peer-urls=http://:1",
            r#"--initial-advertise-peer-urls "http://:1" must be "host:port" (unexpected empty host (http://:1))"#,
        ),
        (
            "--heartbeat-interval=0",
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
        (
            "--election-timeout=0",
            "--election-timeout must be >0 (set to 0ms)",
        ),
        (
            "--election-timeout=499",
            "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            "--election-timeout=50001",
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        (
            "--heartbeat-interval=18446744073709551615",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[18446744073709551615ms]",
        ),
        (
            "--compact-hash-check-time=0",
            "--compact-hash-check-time must be >0 (set to 0s)",
        ),
        (
            "--compact-hash-check-time=-1.5s",
            "--compact-hash-check-time must be >0 (set to -1.5s)",
        ),
        (
            "--auto-compaction-mode=x",
            r#"unknown auto-compaction-mode "x""#,
        ),
        ("--auto-compaction-mode=", "undefined auto-compaction-mode"),
        (
            "--auto-compaction-retention=x",
            r#"error parsing CompactionRetention: time: invalid duration "x""#,
        ),
        (
            "--auto-compaction-retention=-1",
            r#"error parsing CompactionRetention: time: missing unit in duration "-1""#,
        ),
        (
            "--auto-compaction-mode=revision --auto-compaction-retention=0.5",
            r#"error parsing CompactionRetention: time: missing unit in duration "0.5""#,
        ),
        (
            "--auto-compaction-retention=1d",
            r#"error parsing CompactionRetention: time: unknown unit "d" in duration "1d""#,
        ),
        (
            "--auto-compaction-retention=0x1",
            r#"error parsing CompactionRetention: time: unknown unit "x" in duration "0x1""#,
        ),
        (
            "--auto-compaction-retention=2562048",
            r#"error parsing CompactionRetention: time: invalid duration "2562048""#,
        ),
        (
            "--auto-compaction-retention=-5m",
            "--auto-compaction-retention must not be negative (set to -5m)",
        ),
        (
            "--auto-compaction-mode=revision --auto-compaction-retention=-1ns",
            "--auto-compaction-retention must not be negative (set to -1ns)",
        ),
        (
            "--compaction-batch-limit=-1",
            "--compaction-batch-limit must not be negative",
        ),
        (
            "--compaction-sleep-interval=-1ms",
            "--compaction-sleep-interval must not be negative",
        ),
        (
            "--initial-cluster=a=http://a:1,b=http://b:1",
            "--initial-cluster names 2 members: only a single member is supported",
        ),
        (
            "--discovery-srv=x",
            "--discovery-srv cannot be used: only a single member is supported",
        ),
        (
            "--discovery-fallback=proxy",
            r#"v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy""#,
        ),
        (
            "--feature-gates=LeaseCheckpointPersist=true",
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
        ("--logger=capnslog", "--logger=capnslog is removed in v3.5"),
        ("--logger=x", r#"unknown logger option "x""#),
        ("--log-level=x", r#"unrecognized level: "x""#),
        (
            "--log-format=xml",
            "unknown log format: xml, supported values json, console",
        ),
        (
            "--log-outputs=default,stderr",
            r#"multi logoutput for "default" is not supported yet"#,
        ),
        (
            "--log-outputs=a.log",
            r#"--log-outputs "a.log" is not supported yet: use stderr or stdout"#,
        ),
        (
            "--log-outputs=",
            r#"--log-outputs "" is not supported yet: use stderr or stdout"#,
        ),
        ("--cert-file=a", "--cert-file is not supported yet"),
        (
            "--client-cert-auth",
            "--client-cert-auth is not supported yet",
        ),
        ("--cipher-suites=", "--cipher-suites is not supported yet"),
        (
            "--tls-min-version=TLS1.3",
            "--tls-min-version is not supported yet",
        ),
        ("--auth-token=jwt", "--auth-token is not supported yet"),
        ("--cors=http://a:1", "--cors is not supported yet"),
        ("--config-file=a.yml", "--config-file is not supported yet"),
        (
            "--listen-metrics-urls=http://1.1.1.1:1",
            "--listen-metrics-urls is not supported yet",
        ),
        (
            "--unsafe-no-fsync",
            "--unsafe-no-fsync cannot be used: what was answered must be on disk",
        ),
    ] {
        refused(
            &line.split_whitespace().collect::<Vec<_>>(),
            &[],
            1,
            message,
        );
    }
}

#[test]
fn a_watch_progress_interval_is_100_ms_at_least() {
    for (given, millis) in [("5s", 5000), ("1ms", 100), ("-1s", 100), ("0", 100)] {
        let config = config(&format!(
            "--name=m --watch-progress-notify-interval={given}"
        ));
        assert_eq!(
            config.watch_progress_interval.as_millis(),
            millis,
            "{given}"
        );
    }
    let old = config("--name=m --experimental-watch-progress-notify-interval=5s");
    assert_eq!(old.watch_progress_interval.as_secs(), 5);
}

#[test]
fn a_retention_is_a_time_or_a_number_of_revisions() {
    let hours = |hours| Some(Retention::Period(Duration::from_hours(hours)));
    for (mode, text, retention) in [
        ("periodic", "", None),
        ("periodic", "0", None),
        ("periodic", "0h", None),
        ("periodic", "1", hours(1)),
        ("periodic", "+072", hours(72)),
        ("periodic", "2562047", hours(2_562_047)),
        ("periodic", "1h", hours(1)),
        (
            "periodic",
            "1s",
            Some(Retention::Period(Duration::from_secs(1))),
        ),
        (
            "periodic",
            "1ns",
            Some(Retention::Period(Duration::from_nanos(1))),
        ),
        ("revision", "0", None),
        ("revision", "1000", Some(Retention::Revisions(1000))),
        ("revision", "1s", Some(Retention::Revisions(1_000_000_000))),
        (
            "revision",
            "9223372036854775807",
            Some(Retention::Revisions(i64::MAX as u64)),
        ),
    ] {
        let config = config(&format!(
            "--name=m --auto-compaction-mode={mode} --auto-compaction-retention={text}"
        ));
        assert_eq!(config.auto_compaction, retention, "{mode} {text}");
        assert_eq!(config.warnings, [""; 0]);
    }
}

#[test]
fn the_sweep_has_the_pace_of_etcd() {
    for (line, pace) in [
        ("", (1000, 10)),
        (
            "--compaction-batch-limit=0 --compaction-sleep-interval=0",
            (1000, 10),
        ),
        (
            "--compaction-batch-limit=1 --compaction-sleep-interval=1h",
            (1, 3_600_000),
        ),
    ] {
        let config = config(line);
        assert_eq!(
            (config.sweep_rows, config.sweep_rest.as_millis()),
            pace,
            "{line}"
        );
    }
    let old = config("--name=m --experimental-compaction-batch-limit=5");
    assert_eq!((old.sweep_rows, old.warnings.len()), (5, 1));
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let config = config(
        "--name=m --watch-progress-notify-interval=600s --config-file= --tls-min-version=TLS1.2 --client-cert-auth=false \
         --auto-compaction-retention=0h --snapshot-count=1 --pre-vote=false --listen-metrics-urls= --host-whitelist= \
         --feature-gates=AllAlpha=true,LeaseCheckpointPersist=true --memory-mlock --logger=zap --metrics=basic",
    );
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn old_names_are_taken_with_a_warning() {
    let config = config(
        "--name=m --v --config=x --enable-v2=false --experimental-initial-corrupt-check \
         --experimental-max-learners=2 --max-snapshots=3 --peer-auto-tls",
    );
    let warned: Vec<&str> = config
        .warnings
        .iter()
        .filter_map(|text| text.split(' ').next())
        .collect();
    assert_eq!(
        warned,
        [
            "--experimental-max-learners",
            "--v",
            "--config",
            "--enable-v2",
            "--experimental-initial-corrupt-check",
            "--max-snapshots",
            "--peer-auto-tls"
        ]
    );
}

#[test]
fn the_environment_fills_in() {
    let env = [
        ("ETCD_NAME", "e"),
        ("ETCD_LISTEN_CLIENT_URLS", "unix:s,http://[::]:1"),
        ("ETCD_LISTEN_CLIENT_URLS", "http://[::]:1,unix:/s"),
        ("ETCD_ADVERTISE_CLIENT_URLS", "http://h:1"),
        ("METASTORE_FLUSH_SIZE", "2MiB"),
        ("ETCD_WAL_DIR", ""),
        ("ETCD_CACHE_SIZE", "1GiB"),
        ("ETCD_PORT", "secret"),
        ("ETCD_VERSION", "3"),
        ("ETCD_UNSUPPORTED_ARCH", "riscv64"),
        ("ETCDCTL_API", "3"),
        ("etcd_name", "x"),
    ];
    let config = config_of(&[], &env);
    assert_eq!((config.name.as_str(), config.flush_bytes), ("e", 2 << 20));
    assert_eq!(config.data_dir, Path::new("e.etcd"));
    assert_eq!(config.listen_client_urls.len(), 2);
    assert_eq!(
        config.warnings,
        [
            "cannot set special environment variable: ETCD_VERSION",
            "unrecognized environment variable: ETCD_CACHE_SIZE",
            "unrecognized environment variable: ETCD_PORT",
            "unrecognized environment variable: ETCD_WAL_DIR",
        ]
    );
    assert_eq!(config.notices.len(), 4);
}

#[test]
fn the_environment_is_refused() {
    let shadowed = "conflicting environment variable is shadowed by corresponding command-line flag \
                    (either unset environment variable or disable flag)): ETCD_NAME";
    refused(&["--name=a"], &[("ETCD_NAME", "a")], 1, shadowed);
    refused(
        &["--name=a"],
        &[("ETCD_NAME", ""), ("ETCD_MAX_TXN_OPS", "x")],
        1,
        shadowed,
    );
    refused(
        &[],
        &[("ETCD_MAX_TXN_OPS", "x")],
        1,
        r#"invalid value "x" for ETCD_MAX_TXN_OPS: parse error"#,
    );
    refused(
        &[],
        &[("ETCD_CLIENT_CERT_AUTH", "true")],
        1,
        "--client-cert-auth is not supported yet",
    );
    refused(
        &[],
        &[("ETCD_LISTEN_CLIENT_URLS", "http://0.0.0.0:1")],
        1,
        "--advertise-client-urls is required when --listen-client-urls is set explicitly",
    );
}

#[test]
fn a_new_store_needs_a_cluster_of_itself() {
    let urls = "--initial-advertise-peer-urls=http://h:2,http://h:1";
    for (line, message) in [
        ("", None),
        ("--name=m", None),
        (&format!("--name=m {urls}"), None),
        (
            &format!("--name=m {urls} --initial-cluster=m=http://h:1,m=http://h:2"),
            None,
        ),
        (
            urls,
            Some(
                "--initial-cluster has default=http://localhost:2380 but missing from --initial-advertise-peer-urls=http://h:1,http://h:2",
            ),
        ),
        (
            &format!("--name=m {urls} --initial-cluster=m=http://h:1"),
            Some(
                "--initial-advertise-peer-urls has http://h:2 but missing from --initial-cluster=m=http://h:1",
            ),
        ),
        (
            "--name=m --initial-cluster=x=http://h:1",
            Some(r#"couldn't find local name "m" in the initial cluster configuration"#),
        ),
        (
            "--name=m --initial-cluster=",
            Some(r#"couldn't find local name "m" in the initial cluster configuration"#),
        ),
        (
            "--name=m --initial-cluster=m",
            Some(
                "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
            ),
        ),
        (
            "--name=m --initial-cluster-state=existing",
            Some(
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
            ),
        ),
    ] {
        let refusal = config(line)
            .check_bootstrap()
            .err()
            .map(|refusal| refusal.message);
        assert_eq!(refusal.as_deref(), message, "{line}");
    }
    let url = "http://127.0.0.1:24701";
    let config = config(&format!(
        "--name=m --initial-advertise-peer-urls={url} --initial-cluster=m={url} --initial-cluster-token=t"
    ));
    assert_eq!(
        (config.member_id(), config.cluster_id()),
        (0xefbeef547e8d812f, 0xab6649a599f4703c)
    );
}

#[test]
fn help_names_every_flag() {
    for args in [
        &["-h"][..],
        &["--help"],
        &["--name=a", "--help", "--foo"],
        &["-help=x"],
    ] {
        let text = printed(args);
        for group in flags::GROUPS {
            assert!(text.contains(group.heading));
            for flag in group.flags {
                assert!(
                    text.contains(&format!("  --{}", flag.name)),
                    "--{}",
                    flag.name
                );
                assert!(
                    flag.name == "version" || text.contains(&flags::env_name(group, flag)),
                    "--{}",
                    flag.name
                );
            }
        }
    }
    refused(
        &["--foo", "--help"],
        &[],
        2,
        "flag provided but not defined: -foo",
    );
    assert!(!printed(&["check", "--help"]).contains("--cert-file"));
}

#[test]
fn version_is_in_the_form_of_etcd() {
    let text = printed(&["--log-level=x", "--version"]);
    let keys: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(text.lines().next(), Some("etcd Version: 3.7.3"));
    assert_eq!(
        keys,
        [
            "etcd Version",
            "Git SHA",
            "Go Version",
            "Go OS/Arch",
            "MetaStore Version"
        ]
    );
    refused(
        &["--version", "--foo"],
        &[],
        2,
        "flag provided but not defined: -foo",
    );
    refused(&["--version", "x"], &[], 1, r#""x" is not a valid flag"#);
    assert_eq!(config("--version=false --name=m").name, "m");
}

#[test]
fn check_has_flags_of_its_own() {
    let parsed = |args: &[&str], env: &[(&str, &str)]| match run(args, env) {
        Ok(Parsed::Check { data_dir, wal_dir }) => (data_dir, wal_dir),
        other => panic!("{args:?}: {other:?}"),
    };
    assert_eq!(parsed(&["check"], &[]), ("default.etcd".into(), None));
    assert_eq!(
        parsed(&["check", "--data-dir", "d", "-wal-dir=w"], &[]),
        ("d".into(), Some("w".into()))
    );
    assert_eq!(
        parsed(
            &["check", "--data-dir=d"],
            &[("ETCD_DATA_DIR", "e"), ("ETCD_WAL_DIR", "w")]
        ),
        ("d".into(), Some("w".into()))
    );
    refused(
        &["check", "--cache-size=1GiB"],
        &[],
        2,
        "flag provided but not defined: -cache-size",
    );
    refused(&["check", "x"], &[], 1, r#""x" is not a valid flag"#);
}

#[cfg(unix)]
#[test]
fn what_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let bad = || OsString::from_vec(vec![b'-', 0xff]);
    assert_eq!(parse([bad()], []).unwrap_err().code, 2);
    assert_eq!(
        parse([], [("ETCD_NAME".into(), bad())])
            .unwrap_err()
            .message,
        "ETCD_NAME is not UTF-8"
    );
    assert!(parse([], [(bad(), bad())]).is_ok());
}

proptest::proptest! {
    /// Whatever is written, the answer is a configuration or one line.
    #[test]
    fn no_words_panic(
        flag in proptest::sample::select(flags::flags().map(|flag| flag.name).collect::<Vec<_>>()),
        value in ".{0,12}|[-0-9_xhmsu.µ]{0,9}|(http|unix):/?/?[\\[\\]a%@:0-9/.]{0,9}",
        word in ".{0,8}",
    ) {
        for refusal in [run(&[&format!("--{flag}={value}"), &word], &[]), run(&[&word], &[]), run(&[&format!("--{flag}={value}")], &[])] {
            if let Err(refusal) = refusal {
                proptest::prop_assert!(!refusal.message.contains(char::is_control));
            }
        }
    }
}

#[track_caller]
fn tool(line: &str) -> Tool {
    match run(&line.split_whitespace().collect::<Vec<_>>(), &[]) {
        Ok(Parsed::Tool(tool)) => tool,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_snapshot_is_saved_from_one_endpoint() {
    for (given, url) in [
        ("", "http://127.0.0.1:2379"),
        ("--endpoints=", "http://127.0.0.1:2379"),
        ("--endpoints 10.0.0.1:1", "http://10.0.0.1:1"),
        ("--endpoints=[::1]:1", "http://[::1]:1"),
        ("--endpoints=http://a:1", "http://a:1"),
        ("--endpoints=unix:///run/a", "unix:///run/a"),
    ] {
        match tool(&format!("snapshot save f {given}")) {
            Tool::Save { from, .. } => assert_eq!(from, SaveFrom::Endpoint(url.into())),
            other => panic!("{given}: {other:?}"),
        }
    }
    for (given, code, message) in [
        (
            "--endpoints=https://a:1",
            1,
            "--endpoints: TLS is not supported yet: https://a:1",
        ),
        (
            "--endpoints=ftp://a:1",
            2,
            "--endpoints: URL scheme must be http, https, unix, or unixs: ftp://a:1",
        ),
        (
            "--endpoints=a",
            2,
            r#"--endpoints: URL address does not have the form "host:port": http://a"#,
        ),
        ("--endpoints=:1", 2, "--endpoints: no host in http://:1"),
        (
            "--endpoints=a:1,b:1",
            1,
            "snapshot must be requested to one selected node, not multiple [a:1 b:1]",
        ),
        (
            "--endpoints=a:1 --data-dir=b",
            1,
            "--endpoints and --data-dir exclude one another",
        ),
        ("--wal-dir=b", 1, "--wal-dir goes with --data-dir alone"),
    ] {
        let line = format!("snapshot save f {given}");
        let words: Vec<_> = line.split_whitespace().collect();
        refused(&words, &[], code, message);
    }
}

#[test]
fn the_tools_take_the_flags_of_etcdutl() {
    match tool(
        "snapshot restore f --data-dir=d --initial-memory-map-size=10737418240 --timeout=0s -w json \
         --skip-hash-check=F --bump-revision=9_000_000_000_000 --mark-compacted",
    ) {
        Tool::Restore {
            check_hash, bump, ..
        } => assert_eq!((check_hash, bump), (true, 9_000_000_000_000)),
        other => panic!("{other:?}"),
    }
    for (word, expected) in [
        ("simple", Format::Simple),
        ("json", Format::Json),
        ("fields", Format::Fields),
        ("table", Format::Table),
    ] {
        match tool(&format!("snapshot status f -w {word}")) {
            Tool::Status { format, .. } => assert_eq!(format, expected),
            other => panic!("{other:?}"),
        }
    }
    for (line, code, message) in [
        (
            "snapshot restore f --skip-hash-check=flase",
            2,
            r#"invalid value "flase" for flag --skip-hash-check: parse error"#,
        ),
        (
            "snapshot restore f --bump-revision=-1",
            2,
            r#"invalid value "-1" for flag --bump-revision: parse error"#,
        ),
        (
            "snapshot restore f --bump-revision=9000000000000000000 --mark-compacted",
            2,
            "--bump-revision: must be at most 4611686018427387904",
        ),
        (
            "snapshot restore f --bump-revision=1",
            1,
            "--mark-compacted required if --revision-bump > 0, and only then",
        ),
        (
            "snapshot status f -w protobuf",
            2,
            "protobuf not supported as output format",
        ),
        ("snapshot save f -w yaml", 2, "unsupported output format"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        refused(&words, &[], code, message);
    }
}
