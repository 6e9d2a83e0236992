//! Each value parses; here they are checked against what we can do, and against one another.
//!
//! `Config::new` calls these in about the order of etcd, so that of two faults the same is named.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::flags::Effect;
use super::settings::Settings;
use super::url::{self, Scheme, Url};
use super::values::{self, Kind, Value};
use super::{ListenUrl, LogFormat, LogLevel, LogOutput, Refusal, Retention};

const ELECTION_MS_MAX: u64 = 50_000;

const COMPACTION_BATCH: u64 = 1000;
const COMPACTION_SLEEP_NANOS: u64 = 10_000_000;

/// Refuses what we cannot heed, and warns of what has no effect.
pub(super) fn check_effects(settings: &mut Settings) -> Result<(), Refusal> {
    let mut warnings = Vec::new();
    for (flag, value) in settings.given() {
        match flag.effect {
            Effect::Used | Effect::None => {}
            Effect::Warned(warning) => warnings.push(format!("--{} {warning}", flag.name)),
            Effect::Only(accepted, reason) => {
                if !accepted
                    .iter()
                    .any(|text| flag.kind.parse(text).as_ref() == Ok(value))
                {
                    return Err(Refusal::new(format!("--{} {reason}", flag.name)));
                }
            }
        }
    }
    settings.warnings.extend(warnings);
    Ok(())
}

/// Checks that look at one flag, and at nothing that is kept.
pub(super) fn check_used_alone(s: &Settings) -> Result<(), Refusal> {
    if s.text("discovery-fallback") == "proxy" {
        let message =
            r#"v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy""#;
        return Err(Refusal::new(message.into()));
    }
    let gate = |name| s.gate(name).or(s.gate("AllAlpha")).unwrap_or(false);
    if gate("LeaseCheckpointPersist") && !gate("LeaseCheckpoint") {
        let message = "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint";
        return Err(Refusal::new(message.into()));
    }
    Ok(())
}

/// As etcd, which reads the files of peer TLS even if no peer URL needs them.
pub(super) fn check_peer_files(s: &Settings) -> Result<(), Refusal> {
    for (flag, value) in s.given() {
        if let (Kind::File, Value::Text(path)) = (flag.kind, value)
            && !path.is_empty()
        {
            let refused =
                |why: String| Refusal::new(format!("--{}: open {path}: {why}", flag.name));
            let metadata = Path::new(path)
                .metadata()
                .map_err(|error| refused(error.to_string()))?;
            if !metadata.is_file() {
                return Err(refused("not a file".into()));
            }
            std::fs::File::open(path).map_err(|error| refused(error.to_string()))?;
        }
    }
    Ok(())
}

/// TLS for clients is not built; that for peers would need its files.
pub(super) fn check_tls(s: &Settings) -> Result<(), Refusal> {
    if let Some(url) = s.urls("listen-client-urls").iter().find(|url| url.is_tls()) {
        return Err(Refusal::new(format!(
            "--listen-client-urls: TLS is not supported yet: {}",
            url.text
        )));
    }
    let has_files = !s.text("peer-cert-file").is_empty() && !s.text("peer-key-file").is_empty();
    let peer_urls = s.urls("listen-peer-urls");
    match peer_urls
        .iter()
        .find(|url| url.scheme == Scheme::Https && !has_files && !s.bool("peer-auto-tls"))
    {
        Some(url) => Err(Refusal::new(format!(
            "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
            url.authority()
        ))),
        None => Ok(()),
    }
}

pub(super) fn log(s: &Settings) -> Result<(LogLevel, LogFormat, LogOutput), Refusal> {
    match s.text("logger") {
        "zap" => {}
        "capnslog" => return Err(Refusal::new("--logger=capnslog is removed in v3.5".into())),
        other => return Err(Refusal::new(format!("unknown logger option {other:?}"))),
    }
    let level = match s.text("log-level").to_ascii_lowercase().as_str() {
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "panic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        _ => {
            return Err(Refusal::new(format!(
                "unrecognized level: {:?}",
                s.text("log-level")
            )));
        }
    };
    let format = match s.text("log-format") {
        "json" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => {
            return Err(Refusal::new(format!(
                "unknown log format: {other}, supported values json, console"
            )));
        }
    };
    let outputs: BTreeSet<&str> = s.text("log-outputs").split(',').collect();
    if outputs.len() > 1 && outputs.contains("default") {
        return Err(Refusal::new(
            r#"multi logoutput for "default" is not supported yet"#.into(),
        ));
    }
    let output = match outputs.into_iter().collect::<Vec<_>>()[..] {
        ["default" | "stderr"] => LogOutput::Stderr,
        ["stdout"] => LogOutput::Stdout,
        _ => {
            let given = s.text("log-outputs");
            return Err(Refusal::new(format!(
                "--log-outputs {given:?} is not supported yet: use stderr or stdout"
            )));
        }
    };
    Ok((level, format, output))
}

pub(super) fn check_bindable(urls: &[Url]) -> Result<Vec<ListenUrl>, Refusal> {
    let listen = |url: &Url| {
        Ok(ListenUrl {
            text: url.text.clone(),
            address: url.listen()?,
        })
    };
    urls.iter()
        .map(listen)
        .collect::<Result<_, String>>()
        .map_err(Refusal::new)
}

pub(super) fn advertised_client_urls(s: &Settings) -> Result<Vec<String>, Refusal> {
    let urls = s.urls("advertise-client-urls");
    if let Some(url) = urls.iter().find(|url| !url.has_host()) {
        return Err(Refusal::new(format!(
            r#"--advertise-client-urls {:?} must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (unexpected empty host ({}))"#,
            url::joined(urls),
            url.text
        )));
    }
    if s.is_given("listen-client-urls") && !s.is_given("advertise-client-urls") {
        let message =
            "--advertise-client-urls is required when --listen-client-urls is set explicitly";
        return Err(Refusal::new(message.into()));
    }
    Ok(url::texts(urls))
}

pub(super) fn advertised_peer_urls(s: &Settings) -> Result<Vec<String>, Refusal> {
    let urls = s.urls("initial-advertise-peer-urls");
    match urls.iter().find(|url| !url.has_host()) {
        Some(url) => Err(Refusal::new(format!(
            r#"--initial-advertise-peer-urls {:?} must be "host:port" (unexpected empty host ({}))"#,
            url::joined(urls),
            url.text
        ))),
        None => Ok(url::texts(urls)),
    }
}

pub(super) fn check_timing(s: &Settings) -> Result<(), Refusal> {
    let (heartbeat, election) = (s.uint("heartbeat-interval"), s.uint("election-timeout"));
    let message = if heartbeat == 0 {
        "--heartbeat-interval must be >0 (set to 0ms)".into()
    } else if election == 0 {
        "--election-timeout must be >0 (set to 0ms)".into()
    } else if heartbeat.saturating_mul(5) > election {
        format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        )
    } else if election > ELECTION_MS_MAX {
        format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        )
    } else if s.int("compact-hash-check-time") <= 0 {
        let given = s.int("compact-hash-check-time") as f64 / 1e9;
        format!("--compact-hash-check-time must be >0 (set to {given}s)")
    } else {
        return Ok(());
    };
    Err(Refusal::new(message))
}

/// What automatic compaction keeps, if it is on.
pub(super) fn auto_compaction(s: &Settings) -> Result<Option<Retention>, Refusal> {
    let by_period = match s.text("auto-compaction-mode") {
        "periodic" => true,
        "revision" => false,
        "" => return Err(Refusal::new("undefined auto-compaction-mode".into())),
        other => {
            return Err(Refusal::new(format!(
                "unknown auto-compaction-mode {other:?}"
            )));
        }
    };
    let text = s.text("auto-compaction-retention");
    let count = match values::retention(text, by_period) {
        Ok(count) => count,
        Err(why) => {
            let message = format!("error parsing CompactionRetention: {why}");
            return Err(Refusal::new(message));
        }
    };
    match u64::try_from(count) {
        // etcd would compact without pause, or try to.
        Err(_) => Err(Refusal::new(format!(
            "--auto-compaction-retention must not be negative (set to {text})"
        ))),
        Ok(0) => Ok(None),
        Ok(nanos) if by_period => Ok(Some(Retention::Period(Duration::from_nanos(nanos)))),
        Ok(revisions) => Ok(Some(Retention::Revisions(revisions))),
    }
}

/// The pace of a sweep: for so many rows, such a rest. 0 of either is the default, as in etcd.
pub(super) fn sweep_pace(s: &Settings) -> Result<(u64, Duration), Refusal> {
    let or_default = |name, default| match u64::try_from(s.int(name)) {
        Ok(0) => Ok(default),
        Ok(given) => Ok(given),
        Err(_) => Err(Refusal::new(format!("--{name} must not be negative"))),
    };
    let rows = or_default("compaction-batch-limit", COMPACTION_BATCH)?;
    let nanos = or_default("compaction-sleep-interval", COMPACTION_SLEEP_NANOS)?;
    Ok((rows, Duration::from_nanos(nanos)))
}
