//! What each kind of expression leaves in the program of a statement's cost.

use sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, DataType, Expr, UnaryOperator, Value, ValueWithSpan,
};

use super::Dialect;
use super::builtins::Class;
use super::cost::Target;
use super::searches::small_number;
use super::walk::Walk;

const LIKE: Class = Class::Search {
    ns: 2.0,
    grows: 0.0,
};
const STRIP: Class = Class::Search {
    ns: 20.0,
    grows: 1.0,
};
const REGEX: Class = Class::Linear {
    ns: 200.0,
    grows: 0.0,
};
const JOIN: Class = Class::Linear {
    ns: 3.0,
    grows: 1.0,
};
const LOOK: Class = Class::Linear {
    ns: 1.0,
    grows: 0.0,
};

impl Walk<'_> {
    /// Puts the value of an expression in place of what its parts have left since the mark.
    pub fn weigh_node(&mut self, expression: &Expr, mark: u32) {
        match expression {
            // They have left theirs already.
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {}
            Expr::Function(_) => self.cost.truncate(mark + 1),
            Expr::Value(ValueWithSpan { value, span: _ }) => self.weigh_value(value),
            Expr::TypedString(typed) => self.weigh_value(&typed.value.value),
            Expr::Cast { data_type, .. } => match length(data_type) {
                Some(characters) => self.cost.cut(characters, mark),
                None => self.cost.cast(target(data_type), mark),
            },
            Expr::Substring { substring_for, .. } => {
                match substring_for.as_deref().and_then(small_number) {
                    Some(characters) => self.cost.cut(characters, mark),
                    None => self.cost.call(Class::Cut, 0, mark),
                }
            }
            _ => {
                let quoted = match expression {
                    Expr::AtTimeZone { .. } => 0b10,
                    _ => 0,
                };
                let class = node_class(self.dialect, expression);
                self.cost.call(class, quoted, mark);
            }
        }
    }

    fn weigh_value(&mut self, value: &Value) {
        match value {
            Value::Placeholder(name) => {
                let number = name.strip_prefix('$').and_then(|name| name.parse().ok());
                self.cost.parameter(number.unwrap_or(0));
            }
            Value::SingleQuotedString(text) => self.cost.push(text.len(), false),
            Value::Number(digits, _) => self.cost.push(digits.len(), true),
            _ => self.cost.push(1, true),
        }
    }
}

fn node_class(dialect: Dialect, expression: &Expr) -> Class {
    match expression {
        Expr::Nested(_)
        | Expr::Collate { .. }
        | Expr::Interval(_)
        | Expr::Case { .. }
        | Expr::Subquery(_) => Class::Pick,
        Expr::UnaryOp {
            op: UnaryOperator::Plus | UnaryOperator::Minus,
            ..
        } => JOIN,
        Expr::Tuple(_) | Expr::Array(_) => Class::Linear {
            ns: 10.0,
            grows: 2.0,
        },
        Expr::CompoundFieldAccess { .. } | Expr::Overlay { .. } => Class::Linear {
            ns: 4.0,
            grows: 1.0,
        },
        Expr::Like { .. } | Expr::ILike { .. } | Expr::Position { .. } => LIKE,
        Expr::SimilarTo { .. } | Expr::RLike { .. } => REGEX,
        Expr::Trim { .. } => STRIP,
        Expr::AnyOp { compare_op, .. } | Expr::AllOp { compare_op, .. } => {
            operator_class(dialect, compare_op)
        }
        Expr::IsDistinctFrom(..) | Expr::IsNotDistinctFrom(..) => Class::Equal,
        Expr::Between { .. } => LOOK,
        // The rest looks at a truth value, a time, or whether there is something.
        _ => Class::Free,
    }
}

/// What an operator costs.
pub(super) fn operator_class(dialect: Dialect, operator: &BinaryOperator) -> Class {
    match operator {
        // There are no long numbers, and what MATCH looks in has an index of its own.
        BinaryOperator::Minus
        | BinaryOperator::Multiply
        | BinaryOperator::Divide
        | BinaryOperator::Modulo
            if dialect == Dialect::Sqlite =>
        {
            LOOK
        }
        BinaryOperator::Match => Class::Free,
        BinaryOperator::Plus => JOIN,
        BinaryOperator::Minus => Class::Minus,
        BinaryOperator::Multiply => Class::Digits { ns: 0.02 },
        BinaryOperator::Divide
        | BinaryOperator::Modulo
        | BinaryOperator::PGExp
        | BinaryOperator::MyIntegerDivide => Class::Digits { ns: 0.15 },
        BinaryOperator::StringConcat => JOIN,
        BinaryOperator::Eq | BinaryOperator::NotEq | BinaryOperator::Spaceship => Class::Equal,
        BinaryOperator::Gt | BinaryOperator::Lt | BinaryOperator::GtEq | BinaryOperator::LtEq => {
            LOOK
        }
        BinaryOperator::Arrow
        | BinaryOperator::LongArrow
        | BinaryOperator::HashArrow
        | BinaryOperator::HashLongArrow => Class::Linear {
            ns: 8.0,
            grows: 1.0,
        },
        BinaryOperator::PGOverlap => Class::Search {
            ns: 1.0,
            grows: 0.0,
        },
        BinaryOperator::PGRegexMatch
        | BinaryOperator::PGRegexIMatch
        | BinaryOperator::PGRegexNotMatch
        | BinaryOperator::PGRegexNotIMatch => REGEX,
        BinaryOperator::PGLikeMatch
        | BinaryOperator::PGILikeMatch
        | BinaryOperator::PGNotLikeMatch
        | BinaryOperator::PGNotILikeMatch
        | BinaryOperator::Glob => LIKE,
        // Truth values and bits; the walk has refused all others.
        _ => Class::Free,
    }
}

/// To how many characters a cast cuts.
fn length(data_type: &DataType) -> Option<usize> {
    let length = match data_type {
        DataType::Character(length)
        | DataType::Char(length)
        | DataType::CharacterVarying(length)
        | DataType::CharVarying(length)
        | DataType::Varchar(length)
        | DataType::Nvarchar(length) => length.as_ref()?,
        _ => return None,
    };
    match length {
        sqlparser::ast::CharacterLength::IntegerLength { length, unit: _ } => {
            usize::try_from(*length).ok()
        }
        sqlparser::ast::CharacterLength::Max => None,
    }
}

fn target(data_type: &DataType) -> Target {
    match data_type {
        DataType::Character(_)
        | DataType::Char(_)
        | DataType::CharacterVarying(_)
        | DataType::CharVarying(_)
        | DataType::Varchar(_)
        | DataType::Nvarchar(_)
        | DataType::Text
        | DataType::Binary(_)
        | DataType::Varbinary(_)
        | DataType::Blob(_) => Target::Text,
        DataType::Numeric(_) | DataType::Decimal(_) | DataType::Dec(_) => Target::Numeric,
        DataType::JSON | DataType::JSONB => Target::Document,
        DataType::Array(ArrayElemTypeDef::SquareBracket(..))
        | DataType::Bytea
        | DataType::TsVector
        | DataType::TsQuery
        | DataType::Bit(_)
        | DataType::BitVarying(_)
        | DataType::VarBit(_) => Target::Array,
        DataType::Custom(name, _) => {
            let name = name.to_string().to_ascii_lowercase();
            match name.trim_matches('"') {
                "bpchar" | "citext" => Target::Text,
                // Any length, and types of the schema, of which nothing is known.
                name if matches!(name, "cidr" | "inet" | "macaddr" | "macaddr8" | "money")
                    || name.ends_with("range") && !name.ends_with("multirange") =>
                {
                    Target::Short
                }
                _ => Target::Array,
            }
        }
        _ => Target::Short,
    }
}
