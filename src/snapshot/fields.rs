//! The fields of a protobuf message, one by one: for messages of etcd's files that no client sends.

use crate::storage::varint;

/// The fields of a message; `None` for what is no field, and nothing behind it.
#[derive(Debug, Clone)]
pub struct Fields<'a>(pub &'a [u8]);

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number of any kind.
    Number(u64),
    /// Bytes, a text or another message.
    Bytes(&'a [u8]),
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut take = || {
            let tag = varint::take(&mut self.0)?;
            let field = match tag & 7 {
                0 => Field::Number(varint::take(&mut self.0)?),
                2 => Field::Bytes(varint::take_bytes(&mut self.0)?),
                _ => return None,
            };
            Some((tag >> 3, field))
        };
        let field = take();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}
