//! Values as Go's `flag` package writes them, and as etcd checks them.
//!
//! The words of a refusal are Go's and etcd's, as they are what an operator searches for.

use super::url::{self, Url};

/// What may stand as the value of a flag.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// Text that names a file; it must be readable.
    File,
    /// Needs no value: `--flag` alone is true. The same holds of `Ignored` and `Gone`.
    Bool,
    Uint,
    Uint32,
    Int,
    Duration,
    Urls,
    OneOf(&'static [&'static str]),
    /// A comma list of these.
    AnyOf(&'static [&'static str]),
    /// Feature gates: `Name=true,…`.
    Gates,
    /// A size: a number of bytes, or one with KiB, MiB or GiB.
    Bytes,
    /// A number of things, of which there is at least one.
    Count,
    /// Anything.
    Ignored,
    /// A switch that may only be off.
    Gone,
}

/// A value that has been parsed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Uint(u64),
    Int(i64),
    /// In nanoseconds.
    Duration(i64),
    Urls(Vec<Url>),
    Gates(Vec<(&'static str, bool)>),
}

/// Every feature gate of etcd 3.7.
const GATES: &[&str] = &[
    "AllAlpha",
    "AllBeta",
    "StopGRPCServiceOnDefrag",
    "InitialCorruptCheck",
    "CompactHashCheck",
    "TxnModeWriteWithSharedBuffer",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "SetMemberLocalAddr",
    "FastLeaseKeepAlive",
    "PriorityRequest",
];

const SIZE_MIN: u64 = 1 << 20;
const SIZE_MAX: u64 = 1 << 40;
const COUNT_MAX: u64 = 1024;

const NANOS_AN_HOUR: i64 = 3_600_000_000_000;

impl Kind {
    /// Whether the flag stands alone, and never takes the next word as its value.
    pub(super) fn is_switch(self) -> bool {
        matches!(self, Kind::Bool | Kind::Ignored | Kind::Gone)
    }

    /// What stands for the value in `--help`.
    pub(super) fn word(self) -> String {
        match self {
            Kind::Text => "TEXT".into(),
            Kind::File => "FILE".into(),
            Kind::Bool | Kind::Ignored | Kind::Gone => "BOOL".into(),
            Kind::Uint | Kind::Uint32 | Kind::Int | Kind::Count => "NUMBER".into(),
            Kind::Duration => "DURATION".into(),
            Kind::Urls => "URL,…".into(),
            Kind::OneOf(words) => words.join("|"),
            Kind::AnyOf(_) => "WORD,…".into(),
            Kind::Gates => "NAME=BOOL,…".into(),
            Kind::Bytes => "SIZE".into(),
        }
    }

    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Kind::Text | Kind::File | Kind::Ignored => Ok(Value::Text(text.into())),
            Kind::Bool => boolean(text)
                .map(Value::Bool)
                .ok_or_else(|| "parse error".into()),
            Kind::Gone => match boolean(text) {
                Some(false) => Ok(Value::Bool(false)),
                Some(true) => Err("etcd 3.7 no longer has it".into()),
                None => Err("parse error".into()),
            },
            Kind::Uint => unsigned(text)
                .map(Value::Uint)
                .map_err(NumberError::for_flag),
            Kind::Uint32 => uint32(text).map(Value::Uint),
            Kind::Int => signed(text).map(Value::Int).map_err(NumberError::for_flag),
            Kind::Duration => duration(text)
                .map(Value::Duration)
                .map_err(|_| "parse error".into()),
            // An empty list is taken, and means the default: see `Settings`.
            Kind::Urls if text.is_empty() => Ok(Value::Urls(Vec::new())),
            Kind::Urls => url::list(text.split(',')).map(Value::Urls),
            Kind::OneOf(words) if words.contains(&text) => Ok(Value::Text(text.into())),
            Kind::OneOf(_) => Err("invalid value".into()),
            Kind::AnyOf(words) => match text.split(',').find(|word| !words.contains(word)) {
                None => Ok(Value::Text(text.into())),
                Some(word) => Err(format!("invalid value {word:?}")),
            },
            Kind::Gates => gates(text).map(Value::Gates),
            Kind::Bytes => size(text).map(Value::Uint),
            Kind::Count => match unsigned(text) {
                Ok(count @ 1..=COUNT_MAX) => Ok(Value::Uint(count)),
                _ => Err(format!("must be a number from 1 to {COUNT_MAX}")),
            },
        }
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Why a number is none.
#[derive(Debug, PartialEq)]
enum NumberError {
    Syntax,
    Range,
}

impl NumberError {
    fn for_flag(self) -> String {
        match self {
            NumberError::Syntax => "parse error".into(),
            NumberError::Range => "value out of range".into(),
        }
    }
}

/// An integer as Go's literals write it: decimal, or with 0x, 0b, 0o or 0 ahead; `_` between digits.
fn unsigned(text: &str) -> Result<u64, NumberError> {
    let bytes = text.as_bytes();
    let (radix, digits) = match (bytes.first(), bytes.get(1).map(u8::to_ascii_lowercase)) {
        (Some(b'0'), Some(b'x')) => (16, &bytes[2..]),
        (Some(b'0'), Some(b'o')) => (8, &bytes[2..]),
        (Some(b'0'), Some(b'b')) => (2, &bytes[2..]),
        (Some(b'0'), Some(_)) => (8, &bytes[1..]),
        _ => (10, bytes),
    };
    // An underscore stands after a digit or the prefix, and before a digit.
    let mut value = 0u64;
    let mut underscore_may_follow = radix != 10;
    for byte in digits {
        if *byte == b'_' {
            if !underscore_may_follow {
                return Err(NumberError::Syntax);
            }
            underscore_may_follow = false;
            continue;
        }
        let digit = char::from(*byte)
            .to_digit(radix)
            .ok_or(NumberError::Syntax)?;
        let larger = value
            .checked_mul(radix.into())
            .and_then(|value| value.checked_add(digit.into()));
        value = larger.ok_or(NumberError::Range)?;
        underscore_may_follow = true;
    }
    match digits.last() {
        None | Some(b'_') => Err(NumberError::Syntax),
        Some(_) => Ok(value),
    }
}

fn signed(text: &str) -> Result<i64, NumberError> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = i128::from(unsigned(digits)?);
    i64::try_from(if negative { -value } else { value }).map_err(|_| NumberError::Range)
}

/// etcd reads this one flag by another way, whose words show.
fn uint32(text: &str) -> Result<u64, String> {
    let why = match unsigned(text) {
        Ok(value) if value <= u32::MAX.into() => return Ok(value),
        Ok(_) | Err(NumberError::Range) => "value out of range",
        Err(NumberError::Syntax) => "invalid syntax",
    };
    Err(format!("strconv.ParseUint: parsing {text:?}: {why}"))
}

/// Why a duration is none.
#[derive(Debug, PartialEq)]
enum DurationError<'a> {
    Invalid,
    MissingUnit,
    UnknownUnit(&'a str),
}

/// Nanoseconds of a duration as Go writes it: `1h2m3.5s`, `100us`, `-5m`, `0`.
fn duration(text: &str) -> Result<i64, DurationError<'_>> {
    use DurationError::{Invalid, MissingUnit, UnknownUnit};
    let (negative, mut rest) = match text.as_bytes().first().ok_or(Invalid)? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(Invalid);
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(Invalid);
        }
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse::<i64>().map_err(|_| Invalid)?.into()
        };
        let unit_len = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let unit: i128 = match &after[..unit_len] {
            "" => return Err(MissingUnit),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => NANOS_AN_HOUR.into(),
            unknown => return Err(UnknownUnit(unknown)),
        };
        // More than 18 digits after the point cannot matter: a unit has at most 13 digits.
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10i128.pow(fraction.len() as u32);
        let fraction: i128 = if fraction.is_empty() {
            0
        } else {
            fraction.parse().map_err(|_| Invalid)?
        };
        total = total
            .checked_add(whole * unit + fraction * unit / scale)
            .ok_or(Invalid)?;
        rest = &after[unit_len..];
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| Invalid)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (digits, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?.trim_end(), *unit)))
        .unwrap_or((text, 1u64));
    match unsigned(digits).map(|count| count.checked_mul(unit)) {
        Ok(Some(bytes @ SIZE_MIN..=SIZE_MAX)) => Ok(bytes),
        Ok(_) | Err(NumberError::Range) => Err("must be from 1MiB to 1024GiB".into()),
        Err(NumberError::Syntax) => {
            Err("must be a number of bytes, such as 67108864 or 64MiB".into())
        }
    }
}

fn gates(text: &str) -> Result<Vec<(&'static str, bool)>, String> {
    let mut gates = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let Some((name, switch)) = part.split_once('=') else {
            return Err(format!("missing bool value for {part}"));
        };
        let (name, switch) = (name.trim(), switch.trim());
        let on = boolean(switch).ok_or_else(|| {
            format!(r#"invalid value of {name}={switch}, err: strconv.ParseBool: parsing {switch:?}: invalid syntax"#)
        })?;
        let known = GATES.iter().find(|gate| **gate == name);
        gates.push((
            *known.ok_or_else(|| format!("unrecognized feature gate: {name}"))?,
            on,
        ));
    }
    Ok(gates)
}

/// What a retention for automatic compaction says: by period nanoseconds, and a bare number is one
/// of hours; else revisions, and a duration is as many as its nanoseconds. As etcd, which reads
/// plain decimals here and Go's literals elsewhere.
pub(super) fn retention(text: &str, by_period: bool) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    match text.parse::<i64>() {
        _ if text.is_empty() => Ok(0),
        Ok(hours @ 0..) if by_period => hours.checked_mul(NANOS_AN_HOUR).ok_or_else(invalid),
        Ok(revisions @ 0..) => Ok(revisions),
        _ => duration(text).map_err(|why| match why {
            DurationError::Invalid => invalid(),
            DurationError::MissingUnit => format!("time: missing unit in duration {text:?}"),
            DurationError::UnknownUnit(unit) => {
                format!("time: unknown unit {unit:?} in duration {text:?}")
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_go_literals() {
        for (text, value) in [
            ("0", 0),
            ("128", 128),
            ("0x1F", 31),
            ("0b101", 5),
            ("0o17", 15),
            ("017", 15),
            ("1_000", 1000),
            ("0_7", 7),
            ("0x_f", 15),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(unsigned(text), Ok(value), "{text}");
        }
        for text in [
            "", "-1", "+1", "1m", "08", "1__0", "_1", "1_", "0x", "0_", "5.5", "1e3", " 1", "٣",
        ] {
            assert_eq!(unsigned(text), Err(NumberError::Syntax), "{text}");
        }
        assert_eq!(unsigned("18446744073709551616"), Err(NumberError::Range));
        assert_eq!(signed("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(signed("9223372036854775808"), Err(NumberError::Range));
        assert_eq!(signed("+5"), Ok(5));
        assert_eq!(signed("--5"), Err(NumberError::Syntax));
    }

    #[test]
    fn durations_are_go_s() {
        let second = 1_000_000_000;
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("5s", 5 * second),
            ("1h2m3.5s", 3723 * second + second / 2),
            ("100us", 100_000),
            ("1µs", 1_000),
            (".5s", second / 2),
            ("1.s", second),
            ("-5m", -300 * second),
            ("0.1234567890123456789999s", 123_456_789),
        ] {
            assert_eq!(duration(text), Ok(nanos), "{text}");
        }
        for text in [
            "",
            "-",
            ".s",
            "s",
            "9999999999h",
            "99999999999999999999",
            "99999999999999999999s",
            "é",
            "--1s",
        ] {
            assert_eq!(duration(text), Err(DurationError::Invalid), "{text}");
        }
        for (text, unit) in [
            ("1d", "d"),
            ("5 s", " s"),
            ("1é", "é"),
            ("1s2x", "x"),
            ("0x1", "x"),
        ] {
            assert_eq!(
                duration(text),
                Err(DurationError::UnknownUnit(unit)),
                "{text}"
            );
        }
        for text in ["5", "-1", "0.5", "1s5"] {
            assert_eq!(duration(text), Err(DurationError::MissingUnit), "{text}");
        }
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("2048 KiB"), Ok(2 << 20));
        assert_eq!(size("1024GiB"), Ok(1 << 40));
        for text in [
            "",
            "MiB",
            "64MB",
            "64m",
            "-1MiB",
            "1KiB",
            "1025GiB",
            "99999999999999999GiB",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn gates_are_known_and_switched() {
        assert_eq!(
            gates(" AllAlpha = true, AllBeta=0 ,"),
            Ok(vec![("AllAlpha", true), ("AllBeta", false)])
        );
        assert_eq!(
            gates("Foo=true"),
            Err("unrecognized feature gate: Foo".into())
        );
        assert_eq!(
            gates("AllAlpha"),
            Err("missing bool value for AllAlpha".into())
        );
        assert!(gates("AllAlpha=x").unwrap_err().contains("parsing \"x\""));
    }
}
