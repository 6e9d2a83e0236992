//! URLs as etcd takes them: a scheme, an address, and nothing more.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A URL that etcd would take in one of its lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Url {
    /// As given, without blanks around it and with the scheme in lower case.
    pub(super) text: String,
    pub(super) scheme: Scheme,
    /// For http and https without its brackets; may be empty, and then means nothing in particular.
    host: String,
    /// For http and https; digits, or empty.
    port: String,
    /// For unix and unixs, the file.
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

/// Where to listen for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// As given, for logs.
    pub text: String,
    /// What to bind.
    pub address: ListenAddress,
}

/// What a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An address and a port. As in etcd, `0.0.0.0` and `[::]` both stand for all of both families.
    Ip(SocketAddr),
    /// A port of whatever `localhost` is; etcd prefers its IPv4 address.
    Localhost(u16),
    /// A socket file, relative to the working folder.
    Unix(PathBuf),
}

/// A list of URLs, sorted by their text and each once.
pub(super) fn list<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Url>, String> {
    let mut urls = texts.map(parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    urls.dedup_by(|a, b| a.text == b.text);
    Ok(urls)
}

/// The texts of peer URLs that a client gives, as etcd would keep them; refused as etcd refuses them.
pub fn peer_urls(given: &[String]) -> Result<Vec<String>, String> {
    if given.is_empty() {
        return Err("no valid URLs given".into());
    }
    let urls = list(given.iter().map(String::as_str))?;
    Ok(texts(&urls))
}

/// The texts of a list.
pub(super) fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(|url| url.text.clone()).collect()
}

/// The texts of a list, joined by commas.
pub(super) fn joined(urls: &[Url]) -> String {
    texts(urls).join(",")
}

impl Url {
    /// Whether it says where to go: a host, or a file.
    pub(super) fn has_host(&self) -> bool {
        matches!(self.scheme, Scheme::Unix | Scheme::Unixs) || !self.host.is_empty()
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.scheme, Scheme::Https | Scheme::Unixs)
    }

    /// `host:port`, as a listener would bind it.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// What binding this URL would mean; refused is a host that would have to be looked up.
    pub(super) fn listen(&self) -> Result<ListenAddress, String> {
        if matches!(self.scheme, Scheme::Unix | Scheme::Unixs) {
            return match self.path.as_str() {
                "" => Err(format!("URL names no socket file: {}", self.text)),
                path => Ok(ListenAddress::Unix(path.into())),
            };
        }
        let ip: Option<IpAddr> = self.host.parse().ok();
        if ip.is_none() && self.host != "localhost" {
            return Err(format!("expected IP in URL for binding ({})", self.text));
        }
        let port = match self.port.as_str() {
            "" => 0, // As Go: any free one.
            port => port
                .parse()
                .map_err(|_| format!("listen tcp: address {port}: invalid port"))?,
        };
        Ok(match ip {
            Some(ip) => ListenAddress::Ip(SocketAddr::new(ip, port)),
            None => ListenAddress::Localhost(port),
        })
    }
}

fn parse(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let refused = |why: String| format!("parse {text:?}: {why}");
    if text.chars().any(|c| c.is_ascii_control()) {
        return Err(refused("net/url: invalid control character in URL".into()));
    }
    let (scheme_name, rest) = split_scheme(text).map_err(refused)?;
    let (scheme_text, scheme) = match scheme_name.to_ascii_lowercase().as_str() {
        "http" => ("http", Scheme::Http),
        "https" => ("https", Scheme::Https),
        "unix" => ("unix", Scheme::Unix),
        "unixs" => ("unixs", Scheme::Unixs),
        _ => {
            return Err(format!(
                "URL scheme must be http, https, unix, or unixs: {text}"
            ));
        }
    };
    let full_rest = rest;
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    // Without slashes at its start the rest is neither a host nor a path.
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None if rest.starts_with('/') => ("", rest),
        None => ("", ""),
    };
    let host_port = authority
        .rsplit_once('@')
        .map_or(authority, |(_user, host)| host);
    check_host(host_port).map_err(refused)?;
    let path = percent_decoded(path).map_err(refused)?;
    let mut url = Url {
        text: format!("{scheme_text}:{full_rest}"),
        scheme,
        host: String::new(),
        port: String::new(),
        path: String::new(),
    };
    if matches!(scheme, Scheme::Unix | Scheme::Unixs) {
        url.path = format!("{host_port}{path}");
        return Ok(url);
    }
    let (host, port) = host_port
        .rsplit_once(':')
        .filter(|(host, _)| !host.starts_with('[') || host.ends_with(']'))
        .ok_or_else(|| format!(r#"URL address does not have the form "host:port": {text}"#))?;
    if !path.is_empty() {
        return Err(format!("URL must not contain a path: {text}"));
    }
    url.host = host.trim_start_matches('[').trim_end_matches(']').into();
    url.port = port.into();
    Ok(url)
}

/// Splits off what stands before the first colon, if it has the form of a scheme.
fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    match end {
        Some(0) if text.starts_with(':') => Err("missing protocol scheme".into()),
        Some(end)
            if text[end..].starts_with(':')
                && text.starts_with(|c: char| c.is_ascii_alphabetic()) =>
        {
            Ok((&text[..end], &text[end + 1..]))
        }
        // What has no scheme is a path, and its first part may not look like one.
        _ if text
            .split(['/', '?', '#'])
            .next()
            .is_some_and(|first| first.contains(':')) =>
        {
            Err("first path segment in URL cannot contain colon".into())
        }
        _ => Ok(("", text)),
    }
}

fn check_host(host_port: &str) -> Result<(), String> {
    let after_host = if host_port.starts_with('[') {
        let end = host_port.rfind(']').ok_or("missing ']' in host")?;
        &host_port[end + 1..]
    } else {
        &host_port[host_port.find(':').unwrap_or(host_port.len())..]
    };
    let digits = after_host.strip_prefix(':').unwrap_or(after_host);
    if !digits.bytes().all(|byte| byte.is_ascii_digit())
        || (digits == after_host && !digits.is_empty())
    {
        return Err(format!("invalid port {after_host:?} after host"));
    }
    if let Some(start) = host_port.find('%') {
        let escape: String = host_port[start..].chars().take(3).collect();
        return Err(format!("invalid URL escape {escape:?}"));
    }
    match host_port.chars().find(|c| {
        c.is_ascii() && !c.is_ascii_alphanumeric() && !"-_.~!$&'()*+,;=:[]<>\"".contains(*c)
    }) {
        Some(c) => Err(format!(
            "invalid character {:?} in host name",
            c.to_string()
        )),
        None => Ok(()),
    }
}

fn percent_decoded(path: &str) -> Result<String, String> {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let decoded = part
            .get(..2)
            .filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = decoded.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let byte = byte.ok_or_else(|| {
            format!(
                "invalid URL escape {:?}",
                format!("%{part}").chars().take(3).collect::<String>()
            )
        })?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    match String::from_utf8(bytes) {
        Ok(path) if !path.contains('\0') => Ok(path),
        _ => Err("the path is not UTF-8, or holds a zero byte".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_in_the_words_of_etcd() {
        for (text, words) in [
            (
                "127.0.0.1:2379",
                r#"parse "127.0.0.1:2379": first path segment in URL cannot contain colon"#,
            ),
            (
                "localhost:2379",
                "URL scheme must be http, https, unix, or unixs: localhost:2379",
            ),
            (":2379", r#"parse ":2379": missing protocol scheme"#),
            (
                "http://a:b",
                r#"parse "http://a:b": invalid port ":b" after host"#,
            ),
            (
                "http://a b:1",
                r#"parse "http://a b:1": invalid character " " in host name"#,
            ),
            (
                "http:127.0.0.1:1",
                r#"URL address does not have the form "host:port": http:127.0.0.1:1"#,
            ),
            (
                "http://::1:24",
                r#"parse "http://::1:24": invalid port "::1:24" after host"#,
            ),
            (
                "http://[::1:24",
                r#"parse "http://[::1:24": missing ']' in host"#,
            ),
            (
                "http://[::1]x:24",
                r#"parse "http://[::1]x:24": invalid port "x:24" after host"#,
            ),
            (
                "ftp://a:1",
                "URL scheme must be http, https, unix, or unixs: ftp://a:1",
            ),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            (
                "HTTP//x",
                "URL scheme must be http, https, unix, or unixs: HTTP//x",
            ),
            (
                "http://1.1.1.1:1/",
                "URL must not contain a path: http://1.1.1.1:1/",
            ),
            (
                "http://127.0.0.1",
                r#"URL address does not have the form "host:port": http://127.0.0.1"#,
            ),
            (
                "http://[::1]",
                r#"URL address does not have the form "host:port": http://[::1]"#,
            ),
            (
                "http://%zz:1",
                r#"parse "http://%zz:1": invalid URL escape "%zz""#,
            ),
            (
                "unix:///a%zé",
                r#"parse "unix:///a%zé": invalid URL escape "%zé""#,
            ),
        ] {
            assert_eq!(parse(text), Err(words.into()), "{text}");
        }
    }

    #[test]
    fn lists_are_sorted_and_each_is_there_once() {
        let urls = list(" http://b:1 ,HTTP://a:1,http://b:1".split(',')).unwrap();
        assert_eq!(joined(&urls), "http://a:1,http://b:1");
    }

    #[test]
    fn listens_on_addresses_only() {
        use ListenAddress::*;
        for (text, address) in [
            (
                "http://127.0.0.1:2379",
                Ok(Ip("127.0.0.1:2379".parse().unwrap())),
            ),
            ("http://u@[::1]:1?q=/x", Ok(Ip("[::1]:1".parse().unwrap()))),
            ("http://localhost:2379", Ok(Localhost(2379))),
            ("http://127.0.0.1:", Ok(Ip("127.0.0.1:0".parse().unwrap()))),
            ("unix://a/b", Ok(Unix("a/b".into()))),
            ("unix:///a%20b", Ok(Unix("/a b".into()))),
            ("unix:/abs", Ok(Unix("/abs".into()))),
            ("unix://127.0.0.1:2379", Ok(Unix("127.0.0.1:2379".into()))),
            ("unix:rel", Err("URL names no socket file: unix:rel".into())),
            (
                "http://name:2379",
                Err("expected IP in URL for binding (http://name:2379)".into()),
            ),
            (
                "http://:2379",
                Err("expected IP in URL for binding (http://:2379)".into()),
            ),
            (
                "http://127.0.0.1:99999",
                Err("listen tcp: address 99999: invalid port".into()),
            ),
        ] {
            assert_eq!(parse(text).unwrap().listen(), address, "{text}");
        }
    }
}
