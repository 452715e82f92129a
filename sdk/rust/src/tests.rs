//! The bytes of protocol/vectors.json, and frames of any bytes in any parts.

use proptest::prelude::*;
use serde_json::Value as Json;

use crate::link::{frame, Frames, FRAME_MAX};
use crate::{Code, Value};

fn vectors() -> Json {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../protocol/vectors.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => {
            number.to_string().parse::<i128>().map_or_else(|_| number.as_f64().unwrap().into(), Value::Int)
        }
        Json::String(text) => text.as_str().into(),
        Json::Array(items) => Value::List(items.iter().map(value_of).collect()),
        Json::Object(entries) => match (entries.get("$bytes"), entries.get("$float")) {
            (Some(hex), _) => bytes_of(hex.as_str().unwrap()).into(),
            (_, Some(number)) => number.as_str().unwrap().parse::<f64>().unwrap().into(),
            _ => Value::Map(entries.iter().map(|(key, value)| (key.clone(), value_of(value))).collect()),
        },
    }
}

/// Whether `said` is `meant`, whatever the order of keys, and with further keys.
fn says(said: &Value, meant: &Value) -> bool {
    match (said, meant) {
        (Value::Map(_), Value::Map(entries)) => entries.iter().all(|(key, value)| says(said.get(key), value)),
        (Value::List(said), Value::List(meant)) => {
            said.len() == meant.len() && said.iter().zip(meant).all(|(said, meant)| says(said, meant))
        }
        (Value::Float(said), Value::Float(meant)) => said == meant || (said.is_nan() && meant.is_nan()),
        _ => said == meant,
    }
}

/// The maps of a stream's frames; the strictness is the reader's, what a message must hold is the worker's.
fn read(bytes: &[u8]) -> Result<Vec<Value>, Code> {
    let (mut left, mut found) = (bytes, Vec::new());
    while let Some((head, rest)) = left.split_first_chunk::<4>() {
        let size = u32::from_be_bytes(*head) as usize;
        if size as u64 > FRAME_MAX {
            return Err(Code::FrameTooLarge);
        }
        if rest.len() < size {
            return Err(Code::ConnectionCut);
        }
        found.push(Value::decode(&rest[..size]).map_err(|error| error.code().unwrap())?);
        left = &rest[size..];
    }
    Ok(found)
}

#[test]
fn golden_frames_are_read() {
    let vectors = vectors();
    for vector in vectors["good"].as_array().unwrap().iter().chain(vectors["accepted"].as_array().unwrap()) {
        let found = read(&bytes_of(vector["hex"].as_str().unwrap())).unwrap();
        let meant: Vec<Value> = vector["messages"].as_array().unwrap().iter().map(value_of).collect();
        assert!(says(&Value::List(found), &Value::List(meant)), "{}", vector["name"]);
    }
}

#[test]
fn golden_frames_are_written_as_they_were_read() {
    for vector in vectors()["good"].as_array().unwrap() {
        let bytes = bytes_of(vector["hex"].as_str().unwrap());
        let again: Vec<u8> =
            read(&bytes).unwrap().iter().flat_map(|message| frame(message, FRAME_MAX).unwrap()).collect();
        assert_eq!(again, bytes, "{}", vector["name"]);
    }
}

#[test]
fn frames_that_are_no_strict_cbor_are_refused() {
    let mut refused = 0;
    for vector in vectors()["refused"].as_array().unwrap() {
        let wanted = match vector["error"].as_str().unwrap() {
            "malformed-cbor" => Code::MalformedCbor,
            "frame-too-large" => Code::FrameTooLarge,
            _ => continue,
        };
        assert_eq!(read(&bytes_of(vector["hex"].as_str().unwrap())), Err(wanted), "{}", vector["name"]);
        refused += 1;
    }
    assert!(refused > 10);
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::Float),
        "[a-zé]{0,30}".prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(4, 60, 8, |inner| {
        let entries = proptest::collection::btree_map("[a-z]{0,8}", inner.clone(), 0..20);
        prop_oneof![
            proptest::collection::vec(inner, 0..8).prop_map(Value::List),
            entries.prop_map(|entries| Value::Map(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_value_is_read_as_it_was_written(value in values()) {
        prop_assert!(says(&Value::decode(&value.encode()).unwrap(), &value));
    }

    #[test]
    fn any_bytes_are_a_value_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = Value::decode(&bytes) {
            prop_assert!(says(&Value::decode(&value.encode()).unwrap(), &value));
        }
    }

    #[test]
    fn what_is_cut_short_is_refused(value in values(), part in 0.0f64..1.0) {
        let bytes = value.encode();
        let cut = (bytes.len() as f64 * part) as usize;
        prop_assert!(Value::decode(&bytes[..cut]).is_err());
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_come(numbers in proptest::collection::vec(any::<u64>(), 0..8), step in 1usize..40) {
        let message = |number: &u64| Value::map().with("type", "ping").with("id", *number);
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| frame(&message(number), FRAME_MAX).unwrap()).collect();
        let (mut frames, mut found) = (Frames::new(), Vec::new());
        for part in bytes.chunks(step) {
            frames.feed(part);
            while let Some(incoming) = frames.next().unwrap() {
                found.push(incoming.message);
            }
        }
        prop_assert_eq!(found, numbers.iter().map(message).collect::<Vec<_>>());
        prop_assert!(!frames.is_cut());
    }
}
