//! Data types that a cast may name.
//!
//! Casting to PostgreSQL's `reg…` types looks names up in the catalogs; casting to a type of the schema runs that
//! type's own functions, so such types are granted like functions.

use sqlparser::ast::{ArrayElemTypeDef, DataType, ObjectName, ObjectNamePart};

use super::Dialect;
use super::refusal::{Checked, code};
use super::walk::Walk;

/// PostgreSQL's types that the parser has no name for.
const PLAIN_POSTGRES: &[&str] = &[
    "bpchar",
    "cidr",
    "citext",
    "daterange",
    "hstore",
    "inet",
    "int4multirange",
    "int4range",
    "int8multirange",
    "int8range",
    "jsonpath",
    "ltree",
    "macaddr",
    "macaddr8",
    "money",
    "numrange",
    "tsrange",
    "tstzrange",
];

impl Walk<'_> {
    pub fn data_type(&mut self, data_type: &DataType) -> Checked {
        let name = data_type.to_string().to_ascii_lowercase();
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        // What is written with a length or in several words is grammar, and always the database's own.
        if self.dialect == Dialect::Postgres && name.bytes().all(is_word) {
            self.built_ins.types.insert(name);
        }
        match data_type {
            DataType::Character(_)
            | DataType::Char(_)
            | DataType::CharacterVarying(_)
            | DataType::CharVarying(_)
            | DataType::Varchar(_)
            | DataType::Nvarchar(_)
            | DataType::Uuid
            | DataType::Binary(_)
            | DataType::Varbinary(_)
            | DataType::Blob(_)
            | DataType::Numeric(_)
            | DataType::Decimal(_)
            | DataType::DecimalUnsigned(_)
            | DataType::Dec(_)
            | DataType::DecUnsigned(_)
            | DataType::Float(_)
            | DataType::FloatUnsigned(_)
            | DataType::TinyInt(_)
            | DataType::TinyIntUnsigned(_)
            | DataType::Int2(_)
            | DataType::Int2Unsigned(_)
            | DataType::SmallInt(_)
            | DataType::SmallIntUnsigned(_)
            | DataType::MediumInt(_)
            | DataType::MediumIntUnsigned(_)
            | DataType::Int(_)
            | DataType::Int4(_)
            | DataType::Int8(_)
            | DataType::Integer(_)
            | DataType::IntUnsigned(_)
            | DataType::Int4Unsigned(_)
            | DataType::IntegerUnsigned(_)
            | DataType::BigInt(_)
            | DataType::BigIntUnsigned(_)
            | DataType::Int8Unsigned(_)
            | DataType::Signed
            | DataType::SignedInteger
            | DataType::Unsigned
            | DataType::UnsignedInteger
            | DataType::Float4
            | DataType::Real
            | DataType::RealUnsigned
            | DataType::Float8
            | DataType::Double(_)
            | DataType::DoubleUnsigned(_)
            | DataType::DoublePrecision
            | DataType::DoublePrecisionUnsigned
            | DataType::Bool
            | DataType::Boolean
            | DataType::Date
            | DataType::Time(..)
            | DataType::Datetime(_)
            | DataType::Timestamp(..)
            | DataType::Interval { .. }
            | DataType::JSON
            | DataType::JSONB
            | DataType::Text
            | DataType::Bytea
            | DataType::Bit(_)
            | DataType::BitVarying(_)
            | DataType::VarBit(_)
            | DataType::TsVector
            | DataType::TsQuery => Ok(()),
            DataType::Array(element) => match element {
                ArrayElemTypeDef::SquareBracket(inner, _) => {
                    self.absent(self.dialect == Dialect::Postgres, "an array type")?;
                    self.deeper(|walk| walk.data_type(inner))
                }
                ArrayElemTypeDef::None
                | ArrayElemTypeDef::AngleBracket(_)
                | ArrayElemTypeDef::Parenthesis(_)
                | ArrayElemTypeDef::Qualified(..) => self.clause("this way to write an array type"),
            },
            DataType::Custom(name, modifiers) => {
                self.absent(modifiers.is_empty(), "a modifier of this type")?;
                self.custom_type(name)
            }
            DataType::Regclass => Err(self.bad_type("regclass")),
            DataType::Table(_)
            | DataType::NamedTable { .. }
            | DataType::CharacterLargeObject(_)
            | DataType::CharLargeObject(_)
            | DataType::Clob(_)
            | DataType::TinyBlob
            | DataType::MediumBlob
            | DataType::LongBlob
            | DataType::Bytes(_)
            | DataType::BigNumeric(_)
            | DataType::BigDecimal(_)
            | DataType::UTinyInt
            | DataType::USmallInt
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Int128
            | DataType::Int256
            | DataType::HugeInt
            | DataType::UHugeInt
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32
            | DataType::UInt64
            | DataType::UInt128
            | DataType::UInt256
            | DataType::UBigInt
            | DataType::Float32
            | DataType::Float64
            | DataType::Date32
            | DataType::Datetime64(..)
            | DataType::TimestampNtz(_)
            | DataType::TinyText
            | DataType::MediumText
            | DataType::LongText
            | DataType::String(_)
            | DataType::FixedString(_)
            | DataType::Map(..)
            | DataType::Tuple(_)
            | DataType::Nested(_)
            | DataType::Enum(..)
            | DataType::Set(_)
            | DataType::Struct(..)
            | DataType::Union(_)
            | DataType::Nullable(_)
            | DataType::LowCardinality(_)
            | DataType::Unspecified
            | DataType::Trigger
            | DataType::AnyType
            | DataType::GeometricType(_) => Err(self.bad_type(&data_type.to_string())),
        }
    }

    fn custom_type(&mut self, name: &ObjectName) -> Checked {
        let callee = self.callee(name)?;
        let quoted = name.0.iter().any(
            |part| matches!(part, ObjectNamePart::Identifier(ident) if ident.quote_style.is_some()),
        );
        let plain = self.dialect == Dialect::Postgres
            && !quoted
            && callee.schema.is_none()
            && PLAIN_POSTGRES.contains(&callee.name.as_str());
        // Looking names up in the catalogs is nothing that can be granted.
        let looks_up = callee.name.starts_with("reg");
        if plain || (self.grants.may_call(&callee) && !looks_up) {
            if self.grants.may_call(&callee) {
                self.built_ins.types.remove(&callee.name);
            }
            return Ok(());
        }
        Err(self.bad_type(&callee.to_string()))
    }

    fn bad_type(&self, name: &str) -> super::Refusal {
        let help = if name.starts_with("reg") {
            "compare names as text instead".to_owned()
        } else {
            format!(
                "if `{name}` is a type of your schema, add it to grant.functions of the consumer"
            )
        };
        self.refuse(
            code::TYPE,
            format!("the type `{name}` is not a plain data type"),
            help,
        )
    }
}
