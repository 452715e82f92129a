//! CBOR as the protocol has it: strict (protocol/PROTOCOL.md, CBOR).

use crate::error::{Code, Error, Result};

const DEPTH: u32 = 64;
const ITEMS: u32 = 1_048_576;
/// From so many entries on, keys are compared sorted and not each with each.
const MANY: usize = 16;

/// A value of a message, of a node's parameters or of its result.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer, from -2^64 to 2^64 - 1.
    Int(i128),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A map, in the order in which it was written.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// An empty map; see [`Value::with`].
    pub fn map() -> Self {
        Self::Map(Vec::new())
    }

    /// A map with one more entry.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        if let Self::Map(entries) = &mut self {
            entries.push((key.into(), value.into()));
        }
        self
    }

    /// The value of a key, [`Value::Null`] if there is none.
    pub fn get(&self, key: &str) -> &Value {
        self.find(key).unwrap_or(&Value::Null)
    }

    /// The value of a key, if this is a map that has it.
    pub fn find(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Map(entries) => entries.iter().find(|entry| entry.0 == key).map(|entry| &entry.1),
            _ => None,
        }
    }

    /// The items of a list; none of anything else.
    pub fn items(&self) -> &[Value] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if it is some.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The integer, if it is one of that range.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => i64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The integer, if it is one of that range.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Reads one item of CBOR, to its last byte, by the strict rules of the protocol.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader { bytes, at: 0, items: 0 };
        let value = reader
            .item(0)
            .map_err(|why| Error::code_of(Code::MalformedCbor, format!("at byte {}: {why}", reader.at)))?;
        if reader.at != bytes.len() {
            return Err(Error::code_of(
                Code::MalformedCbor,
                format!("{} bytes behind the item", bytes.len() - reader.at),
            ));
        }
        Ok(value)
    }

    /// The value in CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    /// Appends the value in CBOR.
    pub fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Null => to.push(0xF6),
            Self::Bool(value) => to.push(0xF4 + u8::from(*value)),
            Self::Int(number) if *number >= 0 => head(to, 0, (*number).min(u64::MAX.into()) as u64),
            Self::Int(number) => head(to, 1, (-1 - *number).min(u64::MAX.into()) as u64),
            Self::Float(number) if number.is_nan() => to.extend_from_slice(&[0xF9, 0x7E, 0]),
            Self::Float(number) if number.is_infinite() => {
                to.extend_from_slice(&[0xF9, if *number > 0.0 { 0x7C } else { 0xFC }, 0]);
            }
            Self::Float(number) => {
                to.push(0xFB);
                to.extend_from_slice(&number.to_be_bytes());
            }
            Self::Text(text) => {
                head(to, 3, text.len() as u64);
                to.extend_from_slice(text.as_bytes());
            }
            Self::Bytes(bytes) => {
                head(to, 2, bytes.len() as u64);
                to.extend_from_slice(bytes);
            }
            Self::List(items) => {
                head(to, 4, items.len() as u64);
                items.iter().for_each(|item| item.write(to));
            }
            Self::Map(entries) => {
                head(to, 5, entries.len() as u64);
                for (key, value) in entries {
                    head(to, 3, key.len() as u64);
                    to.extend_from_slice(key.as_bytes());
                    value.write(to);
                }
            }
        }
    }
}

fn head(to: &mut Vec<u8>, major: u8, number: u64) {
    let major = major << 5;
    match number {
        0..=23 => to.push(major | number as u8),
        24..=0xFF => to.extend_from_slice(&[major | 24, number as u8]),
        0x100..=0xFFFF => {
            to.push(major | 25);
            to.extend_from_slice(&(number as u16).to_be_bytes());
        }
        0x1_0000..=0xFFFF_FFFF => {
            to.push(major | 26);
            to.extend_from_slice(&(number as u32).to_be_bytes());
        }
        _ => {
            to.push(major | 27);
            to.extend_from_slice(&number.to_be_bytes());
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    items: u32,
}

type Read<T> = Result<T, &'static str>;

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Read<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let length =
            usize::try_from(length).ok().filter(|length| *length <= left.len()).ok_or("the item is cut short")?;
        self.at += length;
        Ok(&left[..length])
    }

    fn head(&mut self) -> Read<(u8, u8, u64)> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let number = match info {
            0..=23 => u64::from(info),
            24..=27 => self.take(1 << (info - 24))?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            28..=30 => return Err("a reserved length"),
            _ => return Err("an indefinite length"),
        };
        Ok((major, info, number))
    }

    fn text(&mut self, length: u64) -> Read<String> {
        std::str::from_utf8(self.take(length)?).map(str::to_owned).map_err(|_| "text that is no UTF-8")
    }

    fn count(&mut self, more: u64) -> Read<()> {
        let more = u32::try_from(more).ok().filter(|more| *more <= ITEMS).ok_or("too many items")?;
        self.items += more;
        if self.items > ITEMS {
            return Err("too many items");
        }
        Ok(())
    }

    fn item(&mut self, depth: u32) -> Read<Value> {
        self.count(1)?;
        let (major, info, number) = self.head()?;
        match major {
            0 => Ok(Value::Int(number.into())),
            1 => Ok(Value::Int(-1 - i128::from(number))),
            2 => Ok(Value::Bytes(self.take(number)?.to_vec())),
            3 => self.text(number).map(Value::Text),
            4 | 5 if depth == DEPTH => Err("lists and maps nested too deeply"),
            4 | 5 if number > (self.bytes.len() - self.at) as u64 => Err("the item is cut short"),
            4 => (0..number).map(|_| self.item(depth + 1)).collect::<Read<_>>().map(Value::List),
            5 => self.entries(number, depth),
            6 => Err("a tag"),
            _ => Self::simple(info, number),
        }
    }

    fn entries(&mut self, number: u64, depth: u32) -> Read<Value> {
        let mut entries = Vec::new();
        for _ in 0..number {
            self.count(1)?;
            let (major, _, length) = self.head()?;
            if major != 3 {
                return Err("a key that is no text");
            }
            entries.push((self.text(length)?, self.item(depth + 1)?));
        }
        let mut keys: Vec<&str> = entries.iter().map(|entry: &(String, Value)| entry.0.as_str()).collect();
        let twice = if keys.len() < MANY {
            (1..keys.len()).any(|at| keys[..at].contains(&keys[at]))
        } else {
            keys.sort_unstable();
            keys.windows(2).any(|pair| pair[0] == pair[1])
        };
        if twice {
            return Err("a key that is there twice");
        }
        Ok(Value::Map(entries))
    }

    fn simple(info: u8, number: u64) -> Read<Value> {
        match info {
            20 => Ok(Value::Bool(false)),
            21 => Ok(Value::Bool(true)),
            22 => Ok(Value::Null),
            25 => Ok(Value::Float(half(number as u16))),
            26 => Ok(Value::Float(f32::from_bits(number as u32).into())),
            27 => Ok(Value::Float(f64::from_bits(number))),
            _ => Err("a simple value that is neither false, true nor null"),
        }
    }
}

fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3FF));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 {
        -size
    } else {
        size
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident($convert:expr)),+ $(,)?) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(($convert)(value))
            }
        })+
    };
}

from! {
    bool => Bool(|value| value),
    i32 => Int(i128::from),
    u32 => Int(i128::from),
    i64 => Int(i128::from),
    u64 => Int(i128::from),
    usize => Int(|value| value as i128),
    f64 => Float(|value| value),
    &str => Text(str::to_owned),
    String => Text(|value| value),
    &[u8] => Bytes(<[u8]>::to_vec),
    Vec<u8> => Bytes(|value| value),
    Vec<Value> => List(|value| value),
}
