//! What a script says, as requests: the words of a command, and the small language inside `txn`.

use goldenscript::Argument;
use metastore::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use metastore::proto::etcdserverpb::request_op::Request;
use metastore::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::codegen::Bytes;

/// Why a script cannot be understood.
pub(crate) type Error = Box<dyn std::error::Error>;
type Result<T> = std::result::Result<T, Error>;

/// The byte that `key_size=` and `value_size=` repeat.
pub(crate) const FILLING: u8 = b'x';

/// Text as bytes: each character is the byte of its number, so `\xff` is one byte.
pub(crate) fn bytes(text: &str) -> Result<Bytes> {
    text.chars()
        .map(|c| u8::try_from(c).map_err(|_| format!("{c:?} is no byte").into()))
        .collect()
}

fn filling(size: &str) -> Result<Bytes> {
    Ok(vec![FILLING; size.parse()?].into())
}

/// The words after a command's name. Each is taken once; what is left over is a mistake in the script.
pub(crate) struct Words<'a> {
    positional: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    pub(crate) fn new(arguments: &'a [Argument]) -> Self {
        let mut words = Self {
            positional: Vec::new(),
            named: Vec::new(),
        };
        for argument in arguments {
            match argument {
                Argument::Positional(word) => words.positional.push(word),
                Argument::KeyValue(name, value) => words.named.push((name, value)),
                other => unreachable!("goldenscript has two kinds of arguments, not {other}"),
            }
        }
        words
    }

    /// All words as they stand.
    pub(crate) fn rest(self) -> Vec<&'a str> {
        assert!(self.named.is_empty(), "a flag is one quoted word");
        self.positional
    }

    pub(crate) fn first(&mut self, what: &str) -> Result<&'a str> {
        if self.positional.is_empty() {
            return Err(format!("{what} is missing").into());
        }
        Ok(self.positional.remove(0))
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let found = self.positional.iter().position(|word| *word == name);
        found.map(|at| self.positional.remove(at)).is_some()
    }

    fn named(&mut self, name: &str) -> Option<&'a str> {
        let found = self.named.iter().position(|(word, _)| *word == name)?;
        Some(self.named.remove(found).1)
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<i64> {
        Ok(self.named(name).map(str::parse).transpose()?.unwrap_or(0))
    }

    /// A key: the next word, or `key_size=`.
    fn key(&mut self) -> Result<Bytes> {
        match self.named("key_size") {
            Some(size) => filling(size),
            None => bytes(self.first("the key")?),
        }
    }

    /// A value: the next word, or `value_size=`.
    fn value(&mut self) -> Result<Bytes> {
        match self.named("value_size") {
            Some(size) => filling(size),
            None => bytes(self.first("the value")?),
        }
    }

    /// The end of an interval that begins at `key`: `end=`, `prefix` or `from_key`; nothing means that key alone.
    fn range_end(&mut self, key: &[u8]) -> Result<Bytes> {
        if self.flag("prefix") {
            return Ok(end_of_prefix(key));
        }
        if self.flag("from_key") {
            return Ok(Bytes::from_static(b"\0"));
        }
        bytes(self.named("end").unwrap_or(""))
    }

    pub(crate) fn done<T>(self, request: T) -> Result<T> {
        match (self.positional.first(), self.named.first()) {
            (None, None) => Ok(request),
            (Some(word), _) => Err(format!("unexpected {word:?}").into()),
            (_, Some((name, _))) => Err(format!("unexpected {name}=").into()),
        }
    }
}

fn end_of_prefix(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}

/// `get KEY …`, also the request of `stream`.
pub(crate) fn range(mut words: Words<'_>) -> Result<RangeRequest> {
    let key = words.key()?;
    let request = RangeRequest {
        range_end: words.range_end(&key)?,
        key,
        limit: words.number("limit")?,
        revision: words.number("rev")?,
        sort_order: sort_order(words.named("sort").unwrap_or("none"))?,
        sort_target: sort_target(words.named("target").unwrap_or("key"))?,
        serializable: words.flag("serializable"),
        keys_only: words.flag("keys_only"),
        count_only: words.flag("count_only"),
        min_mod_revision: words.number("min_mod")?,
        max_mod_revision: words.number("max_mod")?,
        min_create_revision: words.number("min_create")?,
        max_create_revision: words.number("max_create")?,
    };
    words.done(request)
}

/// What happens between the first part of a stream and the second.
#[derive(Default)]
pub(crate) struct Meanwhile {
    pub(crate) txn: Option<TxnRequest>,
    pub(crate) compact: Option<CompactionRequest>,
}

/// `stream KEY ... [meanwhile=TXN] [meanwhile_compact=N]`.
pub(crate) fn stream(mut words: Words<'_>) -> Result<(RangeRequest, Meanwhile)> {
    let txn = words.named("meanwhile").map(parse_txn).transpose()?;
    let revision = words
        .named("meanwhile_compact")
        .map(str::parse)
        .transpose()?;
    let compact = revision.map(|revision| CompactionRequest {
        revision,
        physical: true,
    });
    Ok((range(words)?, Meanwhile { txn, compact }))
}

fn sort_order(word: &str) -> Result<i32> {
    Ok(match word {
        "none" => SortOrder::None as i32,
        "asc" => SortOrder::Ascend as i32,
        "desc" => SortOrder::Descend as i32,
        number => number.parse()?,
    })
}

fn sort_target(word: &str) -> Result<i32> {
    Ok(match word {
        "key" => SortTarget::Key as i32,
        "version" => SortTarget::Version as i32,
        "create" => SortTarget::Create as i32,
        "mod" => SortTarget::Mod as i32,
        "value" => SortTarget::Value as i32,
        number => number.parse()?,
    })
}

/// `put KEY VALUE …`.
pub(crate) fn put(mut words: Words<'_>) -> Result<PutRequest> {
    let request = PutRequest {
        key: words.key()?,
        value: words.value()?,
        lease: words.number("lease")?,
        prev_kv: words.flag("prev_kv"),
        ignore_value: words.flag("ignore_value"),
        ignore_lease: words.flag("ignore_lease"),
    };
    words.done(request)
}

/// `del KEY …`.
pub(crate) fn delete(mut words: Words<'_>) -> Result<DeleteRangeRequest> {
    let key = words.key()?;
    let request = DeleteRangeRequest {
        range_end: words.range_end(&key)?,
        key,
        prev_kv: words.flag("prev_kv"),
    };
    words.done(request)
}

/// `compact REVISION [physical]`.
pub(crate) fn compact(mut words: Words<'_>) -> Result<CompactionRequest> {
    let request = CompactionRequest {
        revision: words.first("the revision")?.parse()?,
        physical: words.flag("physical"),
    };
    words.done(request)
}

/// `fill PREFIX COUNT [value_size=N]`: the puts of that many keys, numbered from 0 with four digits.
pub(crate) fn fill(mut words: Words<'_>) -> Result<Vec<PutRequest>> {
    let prefix = words.first("the prefix")?;
    let count: usize = words.first("the count")?.parse()?;
    let value = words
        .named("value_size")
        .map_or_else(|| bytes("v"), filling)?;
    let put = |number| -> Result<PutRequest> {
        Ok(PutRequest {
            key: bytes(&format!("{prefix}{number:04}"))?,
            value: value.clone(),
            ..Default::default()
        })
    };
    words.done((0..count).map(put).collect::<Result<_>>()?)
}

/// The text after `txn`:
/// ```text
/// txn     = ["if" guards] "{" ops "}" ["else" "{" ops "}"]
/// guards  = guard {"," guard}
/// guard   = ["repeat" N] target "(" KEY [", prefix" | ", from_key" | ", end=" KEY] ")" result operand
/// target  = "version" | "create" | "mod" | "value" | "lease" | number
/// result  = "=" | "!=" | ">" | "<" | "?" number
/// operand = what suits the target, or NAME ":" what suits that name, or "unset"
/// ops     = [op] {(";" or new line) [op]}
/// op      = ["repeat" N] (txn | "get" … | "put" … | "del" … | "nothing")
/// ```
/// `nothing` is an operation with no member set. In a repeated guard or operation `#` stands for its number.
pub(crate) fn txn(mut words: Words<'_>) -> Result<TxnRequest> {
    let text = words.first("the txn's text")?;
    words.done(parse_txn(text)?)
}

fn parse_txn(text: &str) -> Result<TxnRequest> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
    };
    parser.skip_separators();
    let txn = parser.txn()?;
    parser.skip_separators();
    match parser.peek() {
        None => Ok(txn),
        Some(token) => Err(format!("unexpected {token:?} after the txn").into()),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A bare word, in which `#` and `:` keep their meaning.
    Bare(String),
    Quoted(String),
    /// One of `{ } ( ) , ; = > < ?`; `!` for `!=`; a new line is `;`.
    Sign(char),
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\n' => tokens.push(Token::Sign(';')),
            '!' if rest.next_if_eq(&'=').is_some() => tokens.push(Token::Sign('!')),
            '{' | '}' | '(' | ')' | ',' | ';' | '=' | '>' | '<' | '?' => {
                tokens.push(Token::Sign(c))
            }
            '"' => {
                let mut word = String::new();
                loop {
                    match rest.next() {
                        Some('"') => break,
                        Some(c) => word.push(c),
                        None => return Err(format!("no quote closes {word:?}").into()),
                    }
                }
                tokens.push(Token::Quoted(word));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || "_-./@:#".contains(*c))
                {
                    word.push(c);
                }
                tokens.push(Token::Bare(word));
            }
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Result<Token> {
        let token = self.peek().cloned().ok_or("the txn ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn take_sign(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn take_bare(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(&Token::Bare(word.into()));
        self.at += usize::from(found);
        found
    }

    fn sign(&mut self, sign: char) -> Result<()> {
        match self.next()? {
            Token::Sign(found) if found == sign => Ok(()),
            found => Err(format!("{sign:?} must come before {found:?}").into()),
        }
    }

    fn word(&mut self) -> Result<String> {
        match self.next()? {
            Token::Bare(word) | Token::Quoted(word) => Ok(word),
            Token::Sign(sign) => Err(format!("a word must come before {sign:?}").into()),
        }
    }

    fn skip_separators(&mut self) {
        while self.take_sign(';') {}
    }

    fn txn(&mut self) -> Result<TxnRequest> {
        let mut txn = TxnRequest::default();
        if self.take_bare("if") {
            self.repeated(&mut txn.compare, Self::guard)?;
            while self.take_sign(',') {
                self.repeated(&mut txn.compare, Self::guard)?;
            }
        }
        txn.success = self.ops()?;
        if self.take_bare("else") {
            txn.failure = self.ops()?;
        }
        Ok(txn)
    }

    /// What stands next, once or as often as `repeat` says, with each turn's number for `#`.
    fn repeated<T>(
        &mut self,
        items: &mut Vec<T>,
        item: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<()> {
        if !self.take_bare("repeat") {
            items.push(item(self)?);
            return Ok(());
        }
        let times: usize = self.word()?.parse()?;
        let start = self.at;
        let tokens = self.tokens.clone();
        for number in 0..times {
            self.tokens = tokens.iter().map(|token| token.numbered(number)).collect();
            self.at = start;
            items.push(item(self)?);
        }
        self.tokens = tokens;
        Ok(())
    }

    fn ops(&mut self) -> Result<Vec<RequestOp>> {
        let mut ops = Vec::new();
        self.sign('{')?;
        loop {
            self.skip_separators();
            if self.take_sign('}') {
                return Ok(ops);
            }
            self.repeated(&mut ops, Self::op)?;
            if !self.take_sign(';') {
                self.sign('}')?;
                return Ok(ops);
            }
        }
    }

    fn op(&mut self) -> Result<RequestOp> {
        let begins_txn =
            [Some(&Token::Bare("if".into())), Some(&Token::Sign('{'))].contains(&self.peek());
        if begins_txn {
            return Ok(RequestOp {
                request: Some(Request::RequestTxn(self.txn()?)),
            });
        }
        let name = self.word()?;
        let arguments = self.arguments()?;
        let words = Words::new(&arguments);
        let request = match name.as_str() {
            "get" => Some(Request::RequestRange(range(words)?)),
            "put" => Some(Request::RequestPut(put(words)?)),
            "del" => Some(Request::RequestDeleteRange(delete(words)?)),
            "nothing" => words.done(None)?,
            _ => return Err(format!("a txn has no operation {name:?}").into()),
        };
        Ok(RequestOp { request })
    }

    fn arguments(&mut self) -> Result<Vec<Argument>> {
        let mut arguments = Vec::new();
        while let Some(Token::Bare(_) | Token::Quoted(_)) = self.peek() {
            let word = self.word()?;
            arguments.push(match self.take_sign('=') {
                true => Argument::KeyValue(word, self.word()?),
                false => Argument::Positional(word),
            });
        }
        Ok(arguments)
    }

    fn guard(&mut self) -> Result<Compare> {
        let target_name = self.word()?;
        self.sign('(')?;
        let mut arguments = vec![Argument::Positional(self.word()?)];
        if self.take_sign(',') {
            arguments.extend(self.arguments()?);
        }
        self.sign(')')?;
        let result = self.result()?;
        let target_union = self.operand(&target_name)?;
        let mut words = Words::new(&arguments);
        let key = words.key()?;
        let range_end = words.range_end(&key)?;
        words.done(Compare {
            result,
            target: target(&target_name)?,
            range_end,
            key,
            target_union,
        })
    }

    fn result(&mut self) -> Result<i32> {
        Ok(match self.next()? {
            Token::Sign('=') => CompareResult::Equal as i32,
            Token::Sign('!') => CompareResult::NotEqual as i32,
            Token::Sign('>') => CompareResult::Greater as i32,
            Token::Sign('<') => CompareResult::Less as i32,
            Token::Sign('?') => self.word()?.parse()?,
            token => return Err(format!("{token:?} compares nothing").into()),
        })
    }

    fn operand(&mut self, target: &str) -> Result<Option<TargetUnion>> {
        let (member, operand) = match self.next()? {
            Token::Bare(word) if word == "unset" => return Ok(None),
            Token::Bare(word) => match word.split_once(':') {
                Some((member, operand)) => (member.to_owned(), operand.to_owned()),
                None => (target.to_owned(), word),
            },
            Token::Quoted(word) => (target.to_owned(), word),
            Token::Sign(sign) => return Err(format!("an operand must come before {sign:?}").into()),
        };
        Ok(Some(match member.as_str() {
            "version" => TargetUnion::Version(operand.parse()?),
            "create" => TargetUnion::CreateRevision(operand.parse()?),
            "mod" => TargetUnion::ModRevision(operand.parse()?),
            "value" => TargetUnion::Value(bytes(&operand)?),
            "lease" => TargetUnion::Lease(operand.parse()?),
            _ => {
                return Err(
                    format!("no operand suits {member:?}: name one, as in version:0").into(),
                );
            }
        }))
    }
}

impl Token {
    fn numbered(&self, number: usize) -> Self {
        match self {
            Self::Bare(word) => Self::Bare(word.replace('#', &number.to_string())),
            other => other.clone(),
        }
    }
}

fn target(word: &str) -> Result<i32> {
    Ok(match word {
        "version" => CompareTarget::Version as i32,
        "create" => CompareTarget::Create as i32,
        "mod" => CompareTarget::Mod as i32,
        "value" => CompareTarget::Value as i32,
        "lease" => CompareTarget::Lease as i32,
        number => number.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TxnRequest> {
        txn(Words::new(&[Argument::Positional(text.into())]))
    }

    fn put_op(key: &str, value: &str) -> RequestOp {
        let put = PutRequest {
            key: bytes(key).unwrap(),
            value: bytes(value).unwrap(),
            ..Default::default()
        };
        RequestOp {
            request: Some(Request::RequestPut(put)),
        }
    }

    #[test]
    fn a_txn_has_guards_and_two_branches() {
        let txn = parse(
            r#"if version(k) = 0, value(m, end=n) != "b c" { put a 1; get z rev=-1 } else { del q }"#,
        );
        let txn = txn.unwrap();
        assert_eq!(txn.compare[0].target_union, Some(TargetUnion::Version(0)));
        assert_eq!(txn.compare[1].result, CompareResult::NotEqual as i32);
        assert_eq!(txn.compare[1].range_end, "n");
        assert_eq!(
            txn.compare[1].target_union,
            Some(TargetUnion::Value("b c".into()))
        );
        assert_eq!(txn.success[0], put_op("a", "1"));
        let past = RangeRequest {
            key: "z".into(),
            revision: -1,
            ..Default::default()
        };
        assert_eq!(txn.success[1].request, Some(Request::RequestRange(past)));
        assert_eq!(txn.failure.len(), 1);
    }

    #[test]
    fn txns_nest_and_lines_separate() {
        let txn =
            parse("{\n put a 1\n if version(k) > 1 {\n { nothing }\n } else { put b 2 }\n}\n")
                .unwrap();
        assert_eq!(txn.success[0], put_op("a", "1"));
        let Some(Request::RequestTxn(inner)) = &txn.success[1].request else {
            panic!("{txn:?}")
        };
        assert_eq!(inner.failure, [put_op("b", "2")]);
        let Some(Request::RequestTxn(inmost)) = &inner.success[0].request else {
            panic!("{txn:?}")
        };
        assert_eq!(inmost.success, [RequestOp { request: None }]);
    }

    #[test]
    fn repeat_numbers_its_turns() {
        let txn = parse("if repeat 2 create(k#) = 0 { repeat 3 put k# v#; put z 1 }").unwrap();
        assert_eq!(
            [&txn.compare[0].key[..], &txn.compare[1].key],
            [b"k0", b"k1"]
        );
        assert_eq!(
            txn.success,
            [
                put_op("k0", "v0"),
                put_op("k1", "v1"),
                put_op("k2", "v2"),
                put_op("z", "1")
            ]
        );
    }

    #[test]
    fn guards_may_be_out_of_the_ordinary() {
        let txn =
            parse("if 9(k) ?7 version:1, version(k) = value:x, mod(k, prefix) < unset {}").unwrap();
        assert_eq!((txn.compare[0].target, txn.compare[0].result), (9, 7));
        assert_eq!(
            txn.compare[1].target_union,
            Some(TargetUnion::Value("x".into()))
        );
        assert_eq!(
            (&txn.compare[2].range_end[..], &txn.compare[2].target_union),
            (&b"l"[..], &None)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "{",
            "{} {}",
            "{ pot k v }",
            "{ put k }",
            "{ get k lime=1 }",
            "if { }",
            "if 9(k) = 1 {}",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_prefix_ends_where_its_last_byte_can_grow() {
        assert_eq!(end_of_prefix(b"a"), "b");
        assert_eq!(end_of_prefix(b"a\xff\xff"), "b");
        assert_eq!(end_of_prefix(b"\xff"), "\0");
    }

    #[test]
    fn characters_are_bytes() {
        assert_eq!(bytes("a\0\u{ff}").unwrap(), &b"a\0\xff"[..]);
        assert!(bytes("→").is_err());
    }
}
