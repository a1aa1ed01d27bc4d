//! Searches: functions and operators whose time is a product of the lengths of two values.
//!
//! A database looks for a statement's deadline between functions, not within one, so the shorter of the two has to be
//! short for certain: written in the text, a parameter (whose length is looked at when it is bound), or cut to a
//! length. The same bounds what REPLACE can make of a value.

use sqlparser::ast::{
    Array, BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Value,
    ValueWithSpan,
};

use super::grants::Table;
use super::refusal::{Checked, code};
use super::walk::Walk;

/// The longest value to search for, or pattern, in bytes.
pub const MAX_SHORT_BYTES: usize = 1024;
/// Of how many such values it may be put together.
const MAX_SHORT_PARTS: usize = 16;

/// Which arguments have to be short, from 0.
fn short_places(function: &str) -> &'static [usize] {
    match function {
        "strpos" | "instr" | "btrim" | "ltrim" | "rtrim" | "trim" | "split_part"
        | "string_to_array" | "substring_index" | "regexp_match" | "regexp_like"
        | "regexp_count" | "regexp_substr" | "regexp_instr" | "jsonb_contains" | "jsonb_delete"
        | "arrayoverlap" | "arraycontains" | "json_patch" | "array_to_string" | "unhex"
        | "jsonb_exists_any" | "jsonb_exists_all" => &[1],
        "replace" | "translate" | "regexp_replace" | "array_replace" => &[1, 2],
        "locate" | "glob" | "position" | "jsonb_contained" | "arraycontained" => &[0],
        "json_merge_patch" | "json_contains" | "json_overlaps" | "find_in_set" => &[1],
        _ => &[],
    }
}

impl Walk<'_> {
    /// Insists that what a function searches for is short, unless the function is granted.
    pub fn short_arguments(&mut self, callee: &Table, args: &[FunctionArg]) -> Checked {
        if self.grants.may_call(callee) {
            return Ok(());
        }
        for place in short_places(&callee.name) {
            let value = args.get(*place).and_then(expression);
            if let Some(value) = value {
                self.must_be_short(&format!("what `{callee}` searches for"), value)?;
            }
        }
        Ok(())
    }

    /// The same for operators: patterns, and arrays of which one is looked up in the other.
    pub fn short_operands(
        &mut self,
        operator: &BinaryOperator,
        left: &Expr,
        right: &Expr,
    ) -> Checked {
        match operator {
            BinaryOperator::Glob
            | BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::PGLikeMatch
            | BinaryOperator::PGILikeMatch
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch => {
                self.must_be_short(&format!("the pattern of `{operator}`"), right)
            }
            BinaryOperator::PGOverlap if !self.is_short(left) => {
                self.must_be_short("one side of `&&`", right)
            }
            _ => Ok(()),
        }
    }

    pub fn must_be_short(&mut self, what: &str, value: &Expr) -> Checked {
        if self.is_short(value) {
            return Ok(());
        }
        Err(self.refuse(
            code::FUNCTION,
            format!("{what} is of any length, and the search could take as long"),
            format!(
                "use a literal or a parameter of at most {MAX_SHORT_BYTES} bytes, or cut it: substring(x, 1, 100)"
            ),
        ))
    }

    fn is_short(&mut self, value: &Expr) -> bool {
        self.short_parts(value)
            .is_some_and(|parts| parts <= MAX_SHORT_PARTS)
    }

    /// Of how many short parts a value consists, if of nothing else, whatever the tables hold. Notes the parameters
    /// that this depends on.
    fn short_parts(&mut self, value: &Expr) -> Option<usize> {
        match value {
            Expr::Value(ValueWithSpan { value, .. }) => {
                let short = match value {
                    Value::Placeholder(name) => {
                        self.short.insert(name.strip_prefix('$')?.parse().ok()?);
                        true
                    }
                    Value::SingleQuotedString(text) => text.len() <= MAX_SHORT_BYTES,
                    Value::Number(..) | Value::Boolean(_) | Value::Null => true,
                    _ => false,
                };
                short.then_some(1)
            }
            Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => self.short_parts(inner),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::StringConcat,
                right,
            } => Some(self.short_parts(left)? + self.short_parts(right)?),
            Expr::Array(Array { elem, .. }) => elem
                .iter()
                .try_fold(0, |sum, element| Some(sum + self.short_parts(element)?)),
            Expr::Substring {
                substring_for: Some(length),
                ..
            } => is_small_number(length).then_some(1),
            Expr::Function(function) => self.short_call(function),
            _ => None,
        }
    }

    fn short_call(&mut self, function: &Function) -> Option<usize> {
        let FunctionArguments::List(list) = &function.args else {
            return None;
        };
        let mut arguments = list.args.iter().map(expression);
        match function.name.to_string().to_ascii_lowercase().as_str() {
            "concat" | "lower" | "upper" | "coalesce" => {
                arguments.try_fold(0, |sum, argument| Some(sum + self.short_parts(argument?)?))
            }
            "left" | "right" => is_small_number(arguments.nth(1)??).then_some(1),
            "substr" | "substring" => is_small_number(arguments.nth(2)??).then_some(1),
            _ => None,
        }
    }
}

fn expression(argument: &FunctionArg) -> Option<&Expr> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    }
}

fn is_small_number(length: &Expr) -> bool {
    small_number(length).is_some_and(|length| length <= MAX_SHORT_BYTES)
}

/// A number that stands in the text.
pub(super) fn small_number(length: &Expr) -> Option<usize> {
    match length {
        Expr::Value(ValueWithSpan {
            value: Value::Number(digits, _),
            ..
        }) => digits.parse().ok(),
        _ => None,
    }
}

/// How many characters `left`, `right` and `substr` leave, where that stands in the text.
pub(super) fn last_number(arguments: &[FunctionArg]) -> Option<usize> {
    match arguments {
        [_, length] | [_, _, length] => small_number(expression(length)?),
        _ => None,
    }
}
