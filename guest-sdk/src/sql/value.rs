//! Rust values as SQL values, and back.
//!
//! Reading is strict about meaning and lenient about form: a store without booleans returns 0 and
//! 1, and a sum of integers comes back as a decimal. A value that would change is never returned.

use super::Value;
use crate::{Decimal, Timestamp, Uuid};

/// A value that can be a parameter.
pub trait ToValue {
    /// The SQL value.
    fn to_value(&self) -> Value;
}

/// A value that can be read from a row.
pub trait FromValue<'v>: Sized {
    /// Reads it. `None` when the SQL value is of another type or does not fit.
    fn from_value(value: &'v Value) -> Option<Self>;
}

impl ToValue for Value {
    fn to_value(&self) -> Value {
        self.clone()
    }
}

impl<'v> FromValue<'v> for &'v Value {
    fn from_value(value: &'v Value) -> Option<Self> {
        Some(value)
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_value)
    }
}

impl<'v, T: FromValue<'v>> FromValue<'v> for Option<T> {
    fn from_value(value: &'v Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

macro_rules! to_value {
    ($($from:ty => |$value:ident| $to:expr;)+) => {$(
        impl ToValue for $from {
            fn to_value(&self) -> Value {
                let $value = self;
                $to
            }
        }
    )+};
}

to_value! {
    bool => |value| Value::Bool(*value);
    f32 => |value| Value::F64((*value).into());
    f64 => |value| Value::F64(*value);
    str => |value| Value::Text(value.to_owned());
    String => |value| Value::Text(value.clone());
    [u8] => |value| Value::Bytes(value.to_owned());
    Vec<u8> => |value| Value::Bytes(value.clone());
    Decimal => |value| Value::Decimal(value.0.clone());
    Timestamp => |value| Value::Timestamp(value.0);
    Uuid => |value| Value::Uuid(value.0.clone());
    serde_json::Value => |value| Value::Json(value.to_string());
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Value {
        self.as_slice().to_value()
    }
}

macro_rules! integers {
    ($($integer:ty)+) => {$(
        /// A number beyond 64 bits with sign travels as an exact decimal.
        impl ToValue for $integer {
            fn to_value(&self) -> Value {
                i64::try_from(*self)
                    .map_or_else(|_| Value::Decimal(self.to_string()), Value::S64)
            }
        }

        impl FromValue<'_> for $integer {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::S64(number) => Self::try_from(*number).ok(),
                    Value::Decimal(number) => number.parse().ok(),
                    _ => None,
                }
            }
        }
    )+};
}

integers!(i8 i16 i32 i64 u8 u16 u32 u64 usize);

macro_rules! from_value {
    ($($to:ty: $($pattern:pat => $from:expr),+;)+) => {$(
        impl<'v> FromValue<'v> for $to {
            fn from_value(value: &'v Value) -> Option<Self> {
                match value {
                    $($pattern => Some($from),)+
                    _ => None,
                }
            }
        }
    )+};
}

from_value! {
    bool: Value::Bool(value) => *value, Value::S64(0) => false, Value::S64(1) => true;
    f64: Value::F64(value) => *value;
    &'v str: Value::Text(text) => text, Value::Uuid(text) => text, Value::Json(text) => text;
    &'v [u8]: Value::Bytes(bytes) => bytes;
    Vec<u8>: Value::Bytes(bytes) => bytes.clone();
    Timestamp: Value::Timestamp(micros) => Self(*micros);
    Uuid: Value::Uuid(text) | Value::Text(text) => Self(text.clone());
}

impl FromValue<'_> for String {
    fn from_value(value: &Value) -> Option<Self> {
        <&str>::from_value(value).map(str::to_owned)
    }
}

impl FromValue<'_> for Decimal {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Decimal(text) => Some(Self(text.clone())),
            Value::S64(number) => Some(Self(number.to_string())),
            _ => None,
        }
    }
}

impl FromValue<'_> for serde_json::Value {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Json(text) | Value::Text(text) => serde_json::from_str(text).ok(),
            _ => None,
        }
    }
}
