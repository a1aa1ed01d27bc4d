//! Expressions: operators, predicates, literals, casts and subqueries.

use sqlparser::ast::{
    AccessExpr, Array, BinaryOperator, CaseWhen, CastKind, CeilFloorKind, DateTimeField, Expr,
    ExtractSyntax, Interval, Subscript, TypedString, UnaryOperator, Value, ValueWithSpan,
    WindowFrame, WindowFrameBound, WindowSpec,
};

use super::Dialect;
use super::refusal::{Checked, code};
use super::walk::Walk;
use super::weigh::operator_class;

impl Walk<'_> {
    pub fn expression(&mut self, expression: &Expr) -> Checked {
        self.deeper(|walk| {
            // `a AND b AND c …` leans to the left: follow that side in a loop, so that long chains are not deep.
            let mut expression = expression;
            let mut operators = Vec::new();
            while let Expr::BinaryOp { left, op, right } = expression {
                walk.binary_operator(op)?;
                walk.short_operands(op, left, right)?;
                operators.push((op, walk.cost.mark()));
                walk.expression(right)?;
                expression = left;
            }
            let mark = walk.cost.mark();
            walk.node(expression)?;
            walk.weigh_node(expression, mark);
            for (operator, mark) in operators.into_iter().rev() {
                let class = operator_class(walk.dialect, operator);
                walk.cost.call(class, 0, mark);
            }
            Ok(())
        })
    }

    pub fn expressions<'e>(&mut self, expressions: impl IntoIterator<Item = &'e Expr>) -> Checked {
        expressions
            .into_iter()
            .try_for_each(|expression| self.expression(expression))
    }

    pub fn optional(&mut self, expression: Option<&Expr>) -> Checked {
        expression.map_or(Ok(()), |expression| self.expression(expression))
    }

    /// What is not a chain of binary operators.
    fn node(&mut self, expression: &Expr) -> Checked {
        match expression {
            Expr::Identifier(ident) => self.column(&[ident]),
            Expr::CompoundIdentifier(idents) => self.column(&idents.iter().collect::<Vec<_>>()),
            Expr::Value(ValueWithSpan { value, span: _ }) => self.value(value),
            Expr::Nested(inner)
            | Expr::IsFalse(inner)
            | Expr::IsNotFalse(inner)
            | Expr::IsTrue(inner)
            | Expr::IsNotTrue(inner)
            | Expr::IsNull(inner)
            | Expr::IsNotNull(inner)
            | Expr::IsUnknown(inner)
            | Expr::IsNotUnknown(inner) => self.expression(inner),
            Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
                self.means_operators(&["="]);
                self.expressions([&**left, &**right])
            }
            Expr::BinaryOp { left, op, right } => {
                self.binary_operator(op)?;
                self.short_operands(op, left, right)?;
                self.expressions([&**left, &**right])
            }
            Expr::UnaryOp { op, expr } => {
                self.unary_operator(op)?;
                self.expression(expr)
            }
            Expr::Tuple(expressions) => self.expressions(expressions),
            Expr::GroupingSets(sets) | Expr::Cube(sets) | Expr::Rollup(sets) => {
                self.expressions(sets.iter().flatten())
            }
            Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::Between { .. }
            | Expr::Like { .. }
            | Expr::ILike { .. }
            | Expr::SimilarTo { .. }
            | Expr::RLike { .. }
            | Expr::AnyOp { .. }
            | Expr::AllOp { .. }
            | Expr::Exists { .. }
            | Expr::Subquery(_) => self.predicate(expression),
            Expr::Case {
                case_token: _,
                end_token: _,
                operand,
                conditions,
                else_result,
            } => {
                self.means_operators(&["="]);
                self.optional(operand.as_deref())?;
                for CaseWhen { condition, result } in conditions {
                    self.expressions([condition, result])?;
                }
                self.optional(else_result.as_deref())
            }
            Expr::Cast {
                kind,
                expr,
                data_type,
                format,
            } => {
                match kind {
                    CastKind::Cast | CastKind::DoubleColon => {}
                    CastKind::TryCast | CastKind::SafeCast => return self.clause("TRY_CAST"),
                }
                self.absent(format.is_none(), "FORMAT in a cast")?;
                self.expression(expr)?;
                self.data_type(data_type)?;
                if let Expr::Value(literal) = &**expr {
                    self.not_the_clock(&literal.value)?;
                }
                Ok(())
            }
            Expr::TypedString(TypedString {
                data_type,
                value,
                uses_odbc_syntax,
            }) => {
                self.absent(!uses_odbc_syntax, "ODBC syntax")?;
                self.data_type(data_type)?;
                self.value(&value.value)?;
                self.not_the_clock(&value.value)
            }
            Expr::Interval(interval) => self.interval(interval),
            Expr::Function(function) => self.function(function),
            Expr::Extract { .. }
            | Expr::Ceil { .. }
            | Expr::Floor { .. }
            | Expr::Position { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. }
            | Expr::Overlay { .. } => self.grammar_function(expression),
            Expr::AtTimeZone {
                timestamp,
                time_zone,
            } => self.expressions([&**timestamp, &**time_zone]),
            Expr::Collate { expr, collation } => {
                self.expression(expr)?;
                self.single(collation)
            }
            Expr::Array(Array { elem, named }) => {
                self.absent(
                    *named && self.dialect == Dialect::Postgres,
                    "an array without ARRAY",
                )?;
                self.array(elem)
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                self.expression(root)?;
                for access in access_chain {
                    match access {
                        AccessExpr::Subscript(Subscript::Index { index }) => {
                            self.expression(index)?;
                        }
                        AccessExpr::Subscript(Subscript::Slice { .. }) => {
                            return self.clause("an array slice");
                        }
                        AccessExpr::Dot(_) => return self.clause("a field of an expression"),
                    }
                }
                Ok(())
            }
            Expr::JsonAccess { .. }
            | Expr::IsJson { .. }
            | Expr::IsNormalized { .. }
            | Expr::InUnnest { .. }
            | Expr::Convert { .. }
            | Expr::Prefixed { .. }
            | Expr::Struct { .. }
            | Expr::Named { .. }
            | Expr::Dictionary(_)
            | Expr::Map(_)
            | Expr::MatchAgainst { .. }
            | Expr::Wildcard(_)
            | Expr::QualifiedWildcard(..)
            | Expr::OuterJoin(_)
            | Expr::Prior(_)
            | Expr::Lambda(_)
            | Expr::MemberOf(_) => self.clause("this expression"),
        }
    }

    /// Inside `ARRAY[…]`, further dimensions are written without the word.
    fn array(&mut self, elements: &[Expr]) -> Checked {
        for element in elements {
            match element {
                Expr::Array(Array { elem, named: false }) => {
                    self.deeper(|walk| walk.array(elem))?;
                }
                _ => self.expression(element)?,
            }
        }
        Ok(())
    }

    fn predicate(&mut self, expression: &Expr) -> Checked {
        self.means_operators(match expression {
            Expr::InList { .. } | Expr::InSubquery { .. } => &["=", "<>"],
            Expr::Between { .. } => &["<", "<=", ">", ">="],
            Expr::Like { .. } => &["~~", "!~~"],
            Expr::ILike { .. } => &["~~*", "!~~*"],
            Expr::SimilarTo { .. } => &["~", "!~"],
            _ => &[],
        });
        match expression {
            Expr::InList {
                expr,
                list,
                negated: _,
            } => {
                self.expression(expr)?;
                self.expressions(list)
            }
            Expr::InSubquery {
                expr,
                subquery,
                negated: _,
            } => {
                self.expression(expr)?;
                self.subquery(subquery)
            }
            Expr::Between {
                expr,
                negated: _,
                low,
                high,
            } => self.expressions([&**expr, &**low, &**high]),
            Expr::Like {
                negated: _,
                any,
                expr,
                pattern,
                escape_char,
            }
            | Expr::ILike {
                negated: _,
                any,
                expr,
                pattern,
                escape_char,
            } => {
                self.absent(!any, "LIKE ANY")?;
                self.expressions([&**expr, &**pattern])?;
                self.must_be_short("the pattern of LIKE", pattern)?;
                self.optional(escape_char.as_deref())
            }
            Expr::SimilarTo {
                negated: _,
                expr,
                pattern,
                escape_char,
            } => {
                self.expressions([&**expr, &**pattern])?;
                self.must_be_short("the pattern of SIMILAR TO", pattern)?;
                self.optional(escape_char.as_deref())
            }
            Expr::RLike {
                negated: _,
                expr,
                pattern,
                regexp: _,
            } => {
                self.absent(self.dialect == Dialect::Mysql, "REGEXP")?;
                self.must_be_short("the pattern of REGEXP", pattern)?;
                self.expressions([&**expr, &**pattern])
            }
            Expr::AnyOp {
                left,
                compare_op,
                right,
                is_some: _,
            }
            | Expr::AllOp {
                left,
                compare_op,
                right,
            } => {
                self.binary_operator(compare_op)?;
                self.short_operands(compare_op, left, right)?;
                self.expressions([&**left, &**right])
            }
            Expr::Exists {
                subquery,
                negated: _,
            }
            | Expr::Subquery(subquery) => self.subquery(subquery),
            _ => self.clause("this expression"),
        }
    }

    /// Functions that the standard writes with words of their own between the arguments.
    fn grammar_function(&mut self, expression: &Expr) -> Checked {
        match expression {
            Expr::Extract {
                field,
                syntax,
                expr,
            } => {
                self.absent(
                    matches!(syntax, ExtractSyntax::From),
                    "EXTRACT with a comma",
                )?;
                self.date_field(field)?;
                self.expression(expr)
            }
            Expr::Ceil { expr, field } | Expr::Floor { expr, field } => {
                match field {
                    CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) => {}
                    CeilFloorKind::DateTimeField(_) | CeilFloorKind::Scale(_) => {
                        return self.clause("CEIL or FLOOR to something");
                    }
                }
                self.expression(expr)
            }
            Expr::Position { expr, r#in } => {
                self.must_be_short("what POSITION looks for", expr)?;
                self.expressions([&**expr, &**r#in])
            }
            Expr::Substring {
                expr,
                substring_from,
                substring_for,
                special: _,
                shorthand: _,
            } => {
                self.expression(expr)?;
                self.optional(substring_from.as_deref())?;
                self.optional(substring_for.as_deref())
            }
            Expr::Trim {
                trim_where: _,
                trim_what,
                expr,
                trim_characters,
            } => {
                for characters in trim_what
                    .as_deref()
                    .into_iter()
                    .chain(trim_characters.iter().flatten())
                {
                    self.must_be_short("what TRIM takes away", characters)?;
                    self.expression(characters)?;
                }
                self.expression(expr)
            }
            Expr::Overlay {
                expr,
                overlay_what,
                overlay_from,
                overlay_for,
            } => {
                self.expressions([&**expr, &**overlay_what, &**overlay_from])?;
                self.optional(overlay_for.as_deref())
            }
            _ => self.clause("this expression"),
        }
    }

    fn interval(&mut self, interval: &Interval) -> Checked {
        let Interval {
            value,
            leading_field,
            leading_precision,
            last_field,
            fractional_seconds_precision,
        } = interval;
        self.absent(
            leading_precision.is_none() && fractional_seconds_precision.is_none(),
            "a precision of INTERVAL",
        )?;
        for field in [leading_field, last_field].into_iter().flatten() {
            self.date_field(field)?;
        }
        self.expression(value)
    }

    /// The parser takes any word for a field; those that are not standard carry a name.
    fn date_field(&self, field: &DateTimeField) -> Checked {
        match field {
            DateTimeField::Custom(_) | DateTimeField::Week(Some(_)) => {
                self.clause("this field of a date")
            }
            // The rest are words, and words are checked against the grammar.
            _ => Ok(()),
        }
    }

    fn value(&self, value: &Value) -> Checked {
        match value {
            Value::Number(..)
            | Value::SingleQuotedString(_)
            | Value::Boolean(_)
            | Value::Null
            | Value::Placeholder(_) => Ok(()),
            Value::DollarQuotedString(_)
            | Value::TripleSingleQuotedString(_)
            | Value::TripleDoubleQuotedString(_)
            | Value::EscapedStringLiteral(_)
            | Value::UnicodeStringLiteral(_)
            | Value::SingleQuotedByteStringLiteral(_)
            | Value::DoubleQuotedByteStringLiteral(_)
            | Value::TripleSingleQuotedByteStringLiteral(_)
            | Value::TripleDoubleQuotedByteStringLiteral(_)
            | Value::SingleQuotedRawStringLiteral(_)
            | Value::DoubleQuotedRawStringLiteral(_)
            | Value::TripleSingleQuotedRawStringLiteral(_)
            | Value::TripleDoubleQuotedRawStringLiteral(_)
            | Value::NationalStringLiteral(_)
            | Value::QuoteDelimitedStringLiteral(_)
            | Value::NationalQuoteDelimitedStringLiteral(_)
            | Value::HexStringLiteral(_)
            | Value::DoubleQuotedString(_) => self.clause("this kind of literal"),
        }
    }

    /// `'now'` and its like are the database's clock in disguise. A courtesy, not a wall: the same text may come
    /// as a parameter, and reads nothing but the time.
    pub fn not_the_clock(&self, value: &Value) -> Checked {
        if let Value::SingleQuotedString(text) = value {
            let text = text.trim().to_ascii_lowercase();
            if ["now", "today", "tomorrow", "yesterday"].contains(&text.as_str()) {
                return Err(self.refuse(
                    code::FUNCTION,
                    format!("'{text}' reads the database's clock, which differs between attempts"),
                    "pass context.now() as a parameter",
                ));
            }
        }
        Ok(())
    }

    fn binary_operator(&mut self, operator: &BinaryOperator) -> Checked {
        self.means_operators(&[&operator.to_string()]);
        match operator {
            BinaryOperator::Plus
            | BinaryOperator::Minus
            | BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::StringConcat
            | BinaryOperator::Gt
            | BinaryOperator::Lt
            | BinaryOperator::GtEq
            | BinaryOperator::LtEq
            | BinaryOperator::Spaceship
            | BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::And
            | BinaryOperator::Or
            | BinaryOperator::Xor
            | BinaryOperator::BitwiseOr
            | BinaryOperator::BitwiseAnd
            | BinaryOperator::BitwiseXor
            | BinaryOperator::MyIntegerDivide
            | BinaryOperator::Match
            | BinaryOperator::Glob
            | BinaryOperator::PGBitwiseXor
            | BinaryOperator::PGBitwiseShiftLeft
            | BinaryOperator::PGBitwiseShiftRight
            | BinaryOperator::PGExp
            | BinaryOperator::PGOverlap
            | BinaryOperator::Arrow
            | BinaryOperator::LongArrow
            | BinaryOperator::HashArrow
            | BinaryOperator::HashLongArrow => Ok(()),
            // `a ~ b` is an operator of PostgreSQL only; elsewhere `~` takes one operand.
            BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::PGLikeMatch
            | BinaryOperator::PGILikeMatch
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch
                if self.dialect == Dialect::Postgres =>
            {
                Ok(())
            }
            // SQLite has no REGEXP of its own: it calls whatever function an extension has named so.
            BinaryOperator::Regexp
            | BinaryOperator::DuckIntegerDivide
            | BinaryOperator::Custom(_)
            | BinaryOperator::PGStartsWith
            | BinaryOperator::AtAt
            | BinaryOperator::AtArrow
            | BinaryOperator::ArrowAt
            | BinaryOperator::HashMinus
            | BinaryOperator::AtQuestion
            | BinaryOperator::Question
            | BinaryOperator::QuestionAnd
            | BinaryOperator::QuestionPipe
            | BinaryOperator::PGCustomBinaryOperator(_)
            | BinaryOperator::Overlaps
            | BinaryOperator::DoubleHash
            | BinaryOperator::LtDashGt
            | BinaryOperator::AndLt
            | BinaryOperator::AndGt
            | BinaryOperator::LtLtPipe
            | BinaryOperator::PipeGtGt
            | BinaryOperator::AndLtPipe
            | BinaryOperator::PipeAndGt
            | BinaryOperator::LtCaret
            | BinaryOperator::GtCaret
            | BinaryOperator::QuestionHash
            | BinaryOperator::QuestionDash
            | BinaryOperator::QuestionDashPipe
            | BinaryOperator::QuestionDoublePipe
            | BinaryOperator::At
            | BinaryOperator::TildeEq
            | BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::PGLikeMatch
            | BinaryOperator::PGILikeMatch
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch
            | BinaryOperator::Assignment => Err(self.refuse(
                code::OPERATOR,
                format!("the operator {operator} is not allowed"),
                "use a granted function instead",
            )),
        }
    }

    fn unary_operator(&mut self, operator: &UnaryOperator) -> Checked {
        self.means_operators(&[&operator.to_string()]);
        match operator {
            UnaryOperator::Plus
            | UnaryOperator::Minus
            | UnaryOperator::Not
            | UnaryOperator::BitwiseNot => Ok(()),
            UnaryOperator::AtDashAt
            | UnaryOperator::BangNot
            | UnaryOperator::DoubleAt
            | UnaryOperator::Hash
            | UnaryOperator::PGAbs
            | UnaryOperator::PGCubeRoot
            | UnaryOperator::PGPostfixFactorial
            | UnaryOperator::PGPrefixFactorial
            | UnaryOperator::PGSquareRoot
            | UnaryOperator::QuestionDash
            | UnaryOperator::QuestionPipe => Err(self.refuse(
                code::OPERATOR,
                format!("the operator {operator} is not allowed"),
                "use a function instead",
            )),
        }
    }

    pub fn window(&mut self, spec: &WindowSpec) -> Checked {
        let WindowSpec {
            window_name,
            partition_by,
            order_by,
            window_frame,
        } = spec;
        if let Some(name) = window_name {
            self.name(name)?;
        }
        self.expressions(partition_by)?;
        self.order_by_expressions(order_by)?;
        if let Some(WindowFrame {
            units: _,
            start_bound,
            end_bound,
        }) = window_frame
        {
            for bound in [Some(start_bound), end_bound.as_ref()]
                .into_iter()
                .flatten()
            {
                match bound {
                    WindowFrameBound::CurrentRow => {}
                    WindowFrameBound::Preceding(rows) | WindowFrameBound::Following(rows) => {
                        self.optional(rows.as_deref())?;
                    }
                }
            }
        }
        Ok(())
    }
}
