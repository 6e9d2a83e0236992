//! The commands beside the server: their words, by the rules of etcdutl, which takes flags before
//! and behind the file.

use std::collections::HashMap;
use std::path::PathBuf;

use super::values::{Kind, Value};
use super::{Config, Parsed, Refusal, url};

/// A command that works on files, and ends.
#[derive(Debug)]
pub enum Tool {
    /// Save a snapshot of a running server, or of a stopped one's folder.
    Save {
        /// Where to.
        file: PathBuf,
        /// From where.
        from: SaveFrom,
    },
    /// Say what a snapshot file holds.
    Status {
        /// The file.
        file: PathBuf,
        /// In which form.
        format: Format,
    },
    /// Make a store of a snapshot file.
    Restore {
        /// The file.
        file: PathBuf,
        /// Whether the checksum at its end counts.
        check_hash: bool,
        /// Revisions that are passed over.
        bump: u64,
        /// Where to, and who the store is.
        config: Box<Config>,
    },
    /// Make a store of a stopped etcd's data directory, or of a snapshot file.
    Import {
        /// Either.
        from: PathBuf,
        /// Where to; and who the store is, if it is a file.
        config: Box<Config>,
    },
}

/// In which form it is told what a file holds: those of etcdutl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One line.
    Simple,
    /// One JSON object.
    Json,
    /// A line for each field.
    Fields,
    /// A table for the eye.
    Table,
}

/// Where a snapshot is saved from.
#[derive(Debug, PartialEq, Eq)]
pub enum SaveFrom {
    /// A server's URL, without TLS.
    Endpoint(String),
    /// The folders of a stopped server.
    Folder {
        /// Its data folder.
        data_dir: PathBuf,
        /// Its log's folder.
        wal_dir: Option<PathBuf>,
    },
}

/// Where a server is asked that nobody has named.
const ENDPOINT: &str = "http://127.0.0.1:2379";

const HELP: &str = "\
Usage:
  metastore snapshot save FILE [--endpoints URL | --data-dir DIR [--wal-dir DIR]]
  metastore snapshot status FILE [-w simple|json|fields|table]
  metastore snapshot restore FILE [--data-dir DIR] [--wal-dir DIR] [--name NAME]
      [--initial-cluster NAME=URL] [--initial-cluster-token TOKEN] [--initial-advertise-peer-urls URL]
      [--skip-hash-check] [--bump-revision N --mark-compacted]
  metastore import FILE_OR_DIR [flags of restore]
  metastore export FILE --data-dir DIR [--wal-dir DIR]

save asks http://127.0.0.1:2379 if it is told nothing else; with --data-dir, and as export, it reads the
files of a stopped server. restore and import make a new data directory and never write into one.
";

/// Flags that say where a new store goes and who it is: those of the server.
const PLACE: [&str; 6] = [
    "data-dir",
    "wal-dir",
    "name",
    "initial-cluster",
    "initial-cluster-token",
    "initial-advertise-peer-urls",
];

/// Far more revisions than any server comes to, and room behind them.
const BUMP_MAX: u64 = 1 << 62;

const SWITCHES: [&str; 2] = ["skip-hash-check", "mark-compacted"];

/// Parses the words of a command.
pub(super) fn parse(words: &[String]) -> Result<Parsed, Refusal> {
    let mut words = Words::read(words)?;
    if words.help {
        return Ok(Parsed::Print(HELP.into()));
    }
    let mut command = words.positional("the command")?;
    if command == "snapshot" {
        command = format!("snapshot {}", words.positional("save, status or restore")?);
    }
    let format = words.global()?;
    let tool = match &command[..] {
        "snapshot save" | "export" => {
            let file = words.positional("the file")?.into();
            let wal_dir = words.take("wal-dir").map(PathBuf::from);
            let data_dir = words.take("data-dir").map(PathBuf::from);
            let endpoint = words.take("endpoints");
            let from = match (data_dir, endpoint) {
                (Some(_), Some(_)) => {
                    return Err(Refusal::new(
                        "--endpoints and --data-dir exclude one another".into(),
                    ));
                }
                (Some(data_dir), None) => SaveFrom::Folder { data_dir, wal_dir },
                (None, _) if command == "export" => {
                    return Err(Refusal::syntax("--data-dir is missing".into()));
                }
                (None, _) if wal_dir.is_some() => {
                    return Err(Refusal::new("--wal-dir goes with --data-dir alone".into()));
                }
                (None, endpoint) => SaveFrom::Endpoint(one_url(&endpoint.unwrap_or_default())?),
            };
            Tool::Save { file, from }
        }
        "snapshot status" => Tool::Status {
            file: words.positional("the file")?.into(),
            format: format
                .ok_or_else(|| Refusal::syntax("protobuf not supported as output format".into()))?,
        },
        "snapshot restore" => {
            let file = words.positional("the file")?.into();
            let bump = words.number("bump-revision")?;
            if bump > BUMP_MAX {
                return Err(Refusal::syntax(format!(
                    "--bump-revision: must be at most {BUMP_MAX}"
                )));
            }
            // How etcd maps its file is nothing to us.
            words.number("initial-memory-map-size")?;
            let mark = words.switch("mark-compacted")?;
            if mark != (bump > 0) {
                return Err(Refusal::new(
                    "--mark-compacted required if --revision-bump > 0, and only then".into(),
                ));
            }
            Tool::Restore {
                file,
                check_hash: !words.switch("skip-hash-check")?,
                bump,
                config: words.place()?,
            }
        }
        "import" => Tool::Import {
            from: words.positional("the file or the folder")?.into(),
            config: words.place()?,
        },
        other => return Err(Refusal::syntax(format!("unknown command {other:?}"))),
    };
    words.done()?;
    Ok(Parsed::Tool(tool))
}

/// The URL of the one server that is asked. What asks for TLS must not be asked without.
fn one_url(endpoints: &str) -> Result<String, Refusal> {
    if endpoints.is_empty() {
        return Ok(ENDPOINT.into());
    }
    let all: Vec<_> = endpoints.split(',').collect();
    let [endpoint] = all[..] else {
        let all = all.join(" ");
        return Err(Refusal::new(format!(
            "snapshot must be requested to one selected node, not multiple [{all}]"
        )));
    };
    let text = match endpoint {
        url if url.contains("://") || url.starts_with("unix:") => url.to_owned(),
        address => format!("http://{address}"),
    };
    let refused = |why| Refusal::syntax(format!("--endpoints: {why}"));
    let urls = url::list([&text[..]].into_iter()).map_err(refused)?;
    match &urls[..] {
        [url] if url.is_tls() => Err(Refusal::new(format!(
            "--endpoints: TLS is not supported yet: {text}"
        ))),
        [url] if url.has_host() => Ok(url.text.clone()),
        _ => Err(refused(format!("no host in {text}"))),
    }
}

struct Words {
    positional: std::vec::IntoIter<String>,
    named: HashMap<String, String>,
    help: bool,
}

impl Words {
    fn read(words: &[String]) -> Result<Words, Refusal> {
        let (mut positional, mut named, mut help) = (Vec::new(), HashMap::new(), false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let flag = word.strip_prefix("--").or(word.strip_prefix('-'));
            let Some(flag) = flag.filter(|flag| !flag.is_empty()) else {
                positional.push(word.clone());
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let name = if name == "w" { "write-out" } else { name };
            if matches!(name, "help" | "h") {
                help = true;
                continue;
            }
            let value = match value {
                Some(value) => value,
                None if SWITCHES.contains(&name) => "true".to_owned(),
                None => {
                    let missing = || Refusal::syntax(format!("flag needs an argument: --{name}"));
                    words.next().cloned().ok_or_else(missing)?
                }
            };
            named.insert(name.to_owned(), value);
        }
        Ok(Words {
            positional: positional.into_iter(),
            named,
            help,
        })
    }

    fn positional(&mut self, what: &str) -> Result<String, Refusal> {
        let missing = || Refusal::syntax(format!("{what} is missing: see --help"));
        self.positional.next().ok_or_else(missing)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.named.remove(name)
    }

    /// The flags that each of etcdutl's commands takes: the form of the answer, unless it is one that
    /// only other commands have, and how long to wait for a file that is locked. We never wait.
    fn global(&mut self) -> Result<Option<Format>, Refusal> {
        if let Some(timeout) = self.take("timeout") {
            Words::value(Kind::Duration, "timeout", &timeout)?;
        }
        match self.take("write-out").as_deref() {
            None | Some("simple") => Ok(Some(Format::Simple)),
            Some("json") => Ok(Some(Format::Json)),
            Some("fields") => Ok(Some(Format::Fields)),
            Some("table") => Ok(Some(Format::Table)),
            Some("protobuf") => Ok(None),
            Some(_) => Err(Refusal::syntax("unsupported output format".into())),
        }
    }

    fn switch(&mut self, name: &str) -> Result<bool, Refusal> {
        let text = self.take(name).unwrap_or_else(|| "false".into());
        match Words::value(Kind::Bool, name, &text)? {
            Value::Bool(on) => Ok(on),
            other => unreachable!("a switch is on or off, not {other:?}"),
        }
    }

    fn number(&mut self, name: &str) -> Result<u64, Refusal> {
        let text = self.take(name).unwrap_or_else(|| "0".into());
        match Words::value(Kind::Uint, name, &text)? {
            Value::Uint(number) => Ok(number),
            other => unreachable!("a number is one, not {other:?}"),
        }
    }

    fn value(kind: Kind, name: &str, text: &str) -> Result<Value, Refusal> {
        let refused =
            |why| Refusal::syntax(format!("invalid value {text:?} for flag --{name}: {why}"));
        kind.parse(text).map_err(refused)
    }

    /// The server's own reading of its flags; the environment is the server's.
    fn place(&mut self) -> Result<Box<Config>, Refusal> {
        let given = PLACE.iter().filter_map(|name| {
            let value = self.named.remove(*name)?;
            Some(format!("--{name}={value}").into())
        });
        match super::parse(given, [])? {
            Parsed::Serve(config) => {
                config.check_bootstrap()?;
                Ok(config)
            }
            other => unreachable!("flags alone ask to serve, not for {other:?}"),
        }
    }

    fn done(mut self) -> Result<(), Refusal> {
        if let Some(word) = self.positional.next() {
            return Err(Refusal::syntax(format!("unexpected {word:?}: see --help")));
        }
        match self.named.keys().next() {
            Some(name) => Err(Refusal::syntax(format!("unknown flag: --{name}"))),
            None => Ok(()),
        }
    }
}
