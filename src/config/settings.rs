//! What was given: the command line by the rules of Go's `flag` package, then the environment.
//!
//! - `-x v`, `--x v`, `-x=v` and `--x=v` are one; the next word is the value, whatever it is.
//! - A switch takes no next word: `--b`, `--b=true`.
//! - The last of repeated flags counts, and every one must parse.
//! - A variable counts if its flag is not given; both together are refused, whatever they say.

use std::collections::{BTreeMap, HashMap};

use super::Refusal;
use super::flags::{self, Flag, GROUPS};
use super::url::Url;
use super::values::Value;

/// A value for every flag of the table.
pub(super) struct Settings {
    /// Given or default. Every flag has one, of its own kind.
    values: HashMap<&'static str, Value>,
    /// By flag or by variable, in that order.
    given: Vec<&'static Flag>,
    /// The first word that is no flag.
    pub(super) positional: Option<String>,
    /// For the operator, once there is a log.
    pub(super) warnings: Vec<String>,
    pub(super) notices: Vec<String>,
}

/// What a command line asks for.
pub(super) enum Asked {
    Run(Settings),
    Help,
}

/// The flags of a subcommand, or all.
#[derive(Clone, Copy)]
pub(super) struct Known(pub(super) Option<&'static [&'static str]>);

impl Known {
    pub(super) fn holds(self, flag: &Flag) -> bool {
        self.0.is_none_or(|names| names.contains(&flag.name))
    }

    fn find(self, name: &str) -> Option<&'static Flag> {
        flags::flags().find(|flag| flag.name == name && self.holds(flag))
    }
}

impl Settings {
    /// Reads the words of a command line.
    pub(super) fn read(words: &[String], known: Known) -> Result<Asked, Refusal> {
        let mut settings = Settings::defaults();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                settings.positional = words.next().cloned();
                break;
            }
            let Some(name) = flag_name(word)? else {
                settings.positional = Some(word.clone());
                break;
            };
            let (name, mut value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            let Some(flag) = settings.find(name, known) else {
                if matches!(name, "help" | "h") {
                    return Ok(Asked::Help);
                }
                return Err(Refusal::syntax(format!(
                    "flag provided but not defined: -{name}"
                )));
            };
            if flag.kind.is_switch() {
                let value = value.unwrap_or("true");
                let refused = |why| format!("invalid boolean value {value:?} for -{name}: {why}");
                let parsed = flag
                    .kind
                    .parse(value)
                    .map_err(|why| Refusal::syntax(refused(why)))?;
                settings.set(flag, parsed);
                continue;
            }
            value = value.or_else(|| words.next().map(String::as_str));
            let value =
                value.ok_or_else(|| Refusal::syntax(format!("flag needs an argument: -{name}")))?;
            let refused = |why| format!("invalid value {value:?} for flag -{name}: {why}");
            let parsed = flag
                .kind
                .parse(value)
                .map_err(|why| Refusal::syntax(refused(why)))?;
            settings.set(flag, parsed);
        }
        Ok(Asked::Run(settings))
    }

    /// Adds what the environment says of the flags of the table.
    pub(super) fn read_env(&mut self, env: BTreeMap<String, String>) -> Result<(), Refusal> {
        let by_flag = self.given.len();
        let mut unknown = env;
        // etcd takes these two out before it looks.
        unknown.remove("ETCD_UNSUPPORTED_ARCH");
        if unknown.remove("ETCD_VERSION").is_some() {
            self.warnings
                .push("cannot set special environment variable: ETCD_VERSION".into());
        }
        let mut bad = None;
        for (flag, name) in variables() {
            if self.given[..by_flag]
                .iter()
                .any(|given| given.name == flag.name)
            {
                if unknown.contains_key(&name) {
                    return Err(Refusal::new(format!(
                        "conflicting environment variable is shadowed by corresponding command-line flag \
                         (either unset environment variable or disable flag)): {name}"
                    )));
                }
                continue;
            }
            if unknown.get(&name).is_none_or(String::is_empty) {
                continue;
            }
            let value = unknown.remove(&name).unwrap_or_default();
            match flag.kind.parse(&value) {
                Ok(parsed) => self.set(flag, parsed),
                Err(why) => {
                    bad = bad.or(Some(format!("invalid value {value:?} for {name}: {why}")))
                }
            }
            self.notices
                .push(format!("recognized and used environment variable: {name}"));
        }
        // Names only: the value may be a secret of somebody else's.
        let unrecognized = unknown
            .keys()
            .map(|name| format!("unrecognized environment variable: {name}"));
        self.warnings.extend(unrecognized);
        bad.map_or(Ok(()), |message| Err(Refusal::new(message)))
    }

    /// For a subcommand: adds the variables of its flags, where these are not given.
    pub(super) fn fill_from_env(
        &mut self,
        env: &BTreeMap<String, String>,
        known: Known,
    ) -> Result<(), Refusal> {
        for (flag, name) in variables().filter(|(flag, _)| known.holds(flag)) {
            let Some(value) = env
                .get(&name)
                .filter(|value| !value.is_empty() && !self.is_given(flag.name))
            else {
                continue;
            };
            let refused = |why| Refusal::new(format!("invalid value {value:?} for {name}: {why}"));
            self.set(flag, flag.kind.parse(value).map_err(refused)?);
        }
        Ok(())
    }

    /// Each flag that was given, with its value.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static Flag, &Value)> {
        self.given
            .iter()
            .map(|flag| (*flag, &self.values[flag.name]))
    }

    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|flag| flag.name == name)
    }

    pub(super) fn text(&self, name: &str) -> &str {
        match &self.values[name] {
            Value::Text(text) => text,
            other => unreachable!("--{name} is text by the table, not {other:?}"),
        }
    }

    pub(super) fn bool(&self, name: &str) -> bool {
        match &self.values[name] {
            Value::Bool(on) => *on,
            other => unreachable!("--{name} is a switch by the table, not {other:?}"),
        }
    }

    pub(super) fn uint(&self, name: &str) -> u64 {
        match &self.values[name] {
            Value::Uint(number) => *number,
            other => unreachable!("--{name} is a number by the table, not {other:?}"),
        }
    }

    pub(super) fn int(&self, name: &str) -> i64 {
        match &self.values[name] {
            Value::Int(number) | Value::Duration(number) => *number,
            other => unreachable!("--{name} is a signed number by the table, not {other:?}"),
        }
    }

    pub(super) fn urls(&self, name: &str) -> &[Url] {
        match &self.values[name] {
            Value::Urls(urls) => urls,
            other => unreachable!("--{name} is a list of URLs by the table, not {other:?}"),
        }
    }

    /// The last word on a feature gate, if there is one.
    pub(super) fn gate(&self, gate: &str) -> Option<bool> {
        match &self.values["feature-gates"] {
            Value::Gates(gates) => gates
                .iter()
                .rev()
                .find(|(name, _)| *name == gate)
                .map(|(_, on)| *on),
            other => unreachable!("--feature-gates are gates by the table, not {other:?}"),
        }
    }

    fn defaults() -> Settings {
        let default = |flag: &'static Flag| {
            let value = flag
                .kind
                .parse(flag.default)
                .expect("the table's defaults parse: see the tests");
            (flag.name, value)
        };
        Settings {
            values: flags::flags().map(default).collect(),
            given: Vec::new(),
            positional: None,
            warnings: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// The flag of this name; also of a name that etcd 3.5 had for it.
    fn find(&mut self, name: &str, known: Known) -> Option<&'static Flag> {
        if let Some(flag) = known.find(name) {
            return Some(flag);
        }
        let successor = name
            .strip_prefix("experimental-")
            .filter(|name| flags::was_experimental(name))?;
        let flag = known.find(successor)?;
        self.warnings.push(format!(
            "--{name} is no longer a flag of etcd 3.7: taken as --{successor}"
        ));
        Some(flag)
    }

    fn set(&mut self, flag: &'static Flag, value: Value) {
        // As etcd: an empty list of URLs counts as given, and leaves the default as it is.
        if value != Value::Urls(Vec::new()) {
            self.values.insert(flag.name, value);
        }
        if !self.is_given(flag.name) {
            self.given.push(flag);
        }
    }
}

/// Every flag that has a variable, with its name.
fn variables() -> impl Iterator<Item = (&'static Flag, String)> {
    let of_group = |group: &'static flags::Group| {
        group
            .flags
            .iter()
            .map(move |flag| (flag, flags::env_name(group, flag)))
    };
    GROUPS
        .iter()
        .flat_map(of_group)
        .filter(|(flag, _)| flag.name != "version")
}

/// What follows the dashes; nothing if the word is no flag.
fn flag_name(word: &str) -> Result<Option<&str>, Refusal> {
    let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let name = name.strip_prefix('-').unwrap_or(name);
    if name.is_empty() || name.starts_with(['-', '=']) {
        return Err(Refusal::syntax(format!("bad flag syntax: {word}")));
    }
    Ok(Some(name))
}
