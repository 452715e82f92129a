//! What the daemon says about an end of a route: read by the schema, with every default that may be left out.

use std::rc::Rc;

use crate::abi::{Policy, CREDITS_MAX};
use crate::error::{Code, Error, Result};
use crate::value::Value;

/// The texts of a route's end.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) route: String,
    pub(crate) peer: String,
    pub(crate) topic: String,
    pub(crate) content_type: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) names: Rc<Names>,
    pub(crate) tap_of: String,
    pub(crate) policy: Policy,
    pub(crate) class: usize,
    pub(crate) credits: u32,
    pub(crate) watermark: u32,
    pub(crate) credit_low: u32,
    pub(crate) epoch: u64,
    pub(crate) base_seq: u64,
    pub(crate) limit_ns: u64,
    pub(crate) resume: u64,
}

/// A message of the daemon's that is not as PROTOCOL.md describes it.
pub(crate) fn malformed(message: &Value) -> Error {
    let kind = message.get("type").as_str().unwrap_or("port");
    Error::code_of(Code::MalformedMessage, format!("a {kind} is not as PROTOCOL.md describes it"))
}

/// A field that may be left out.
pub(crate) fn count(map: &Value, key: &str, otherwise: u64) -> Result<u64> {
    map.find(key).map_or(Ok(otherwise), |value| value.as_u64().ok_or_else(|| malformed(map)))
}

pub(crate) fn text<'a>(map: &'a Value, key: &str, otherwise: &'a str) -> Result<&'a str> {
    map.find(key).map_or(Ok(otherwise), |value| value.as_str().ok_or_else(|| malformed(map)))
}

/// A field that is always there.
pub(crate) fn name<'a>(map: &'a Value, key: &str) -> Result<&'a str> {
    map.get(key).as_str().ok_or_else(|| malformed(map))
}

impl Port {
    pub(crate) fn read(value: &Value) -> Result<Self> {
        let refuse = || malformed(value);
        let half = |key, otherwise| count(value, key, otherwise).and_then(|n| u32::try_from(n).map_err(|_| refuse()));
        let names = Names {
            route: name(value, "route")?.to_owned(),
            peer: name(value, "peer")?.to_owned(),
            topic: text(value, "topic", "")?.to_owned(),
            content_type: text(value, "content_type", "application/json")?.to_owned(),
        };
        let policy = match text(value, "policy", "block")? {
            "block" => Policy::Block,
            "drop_newest" => Policy::DropNewest,
            "latest" => Policy::Latest,
            _ => return Err(refuse()),
        };
        let classes = ["best-effort", "normal", "high", "realtime"];
        let class = text(value, "qos", "normal")?;
        let class = classes.iter().position(|known| *known == class).ok_or_else(refuse)?;
        let mut port = Self {
            names: Rc::new(names),
            tap_of: text(value, "tap_of", "")?.to_owned(),
            policy,
            class,
            credits: half("credits", 64)?,
            watermark: half("watermark", 48)?,
            credit_low: half("credit_low", 32)?,
            epoch: count(value, "epoch", 0)?,
            base_seq: count(value, "base_seq", 0)?,
            limit_ns: count(value, "limit_ns", 0)?,
            resume: count(value, "resume", 0)?,
        };
        if port.credits == 0 || u64::from(port.credits) > CREDITS_MAX {
            return Err(refuse());
        }
        if !port.tap_of.is_empty() {
            // The defaults are of routes that wait.
            (port.watermark, port.credit_low) = ((port.credits * 3 / 4).max(1), port.credits / 2);
            port.policy = Policy::Latest;
        }
        Ok(port)
    }
}
