//! Functions: those that are pure built-ins of the dialect, and those that are granted.
//!
//! The built-ins stand in `builtins`, each with its cost. Whatever is not there may be granted by name.

use std::collections::HashSet;
use std::sync::LazyLock;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgOperator, FunctionArgumentClause,
    FunctionArgumentList, FunctionArguments, ObjectName, ObjectNamePart, Value, WindowType,
};

use super::Dialect;
use super::builtins::{self, Class};
use super::grants::Table;
use super::refusal::{Checked, code};
use super::searches;
use super::walk::Walk;

type Names = LazyLock<HashSet<&'static str>>;

fn list(parts: &[&'static str]) -> HashSet<&'static str> {
    parts
        .iter()
        .flat_map(|part| part.split_ascii_whitespace())
        .collect()
}

/// Functions that read a clock, with or without a parenthesis.
static CLOCKS: Names = LazyLock::new(|| {
    list(&[
        "now current_timestamp current_date current_time localtime localtimestamp clock_timestamp
         statement_timestamp transaction_timestamp timeofday sysdate curdate curtime utc_date utc_time
         utc_timestamp unix_timestamp",
    ])
});

/// Functions that draw random numbers.
static DICE: Names = LazyLock::new(|| {
    list(&["random rand random_normal setseed randomblob gen_random_uuid uuid uuidv4 uuidv7 uuid_generate_v4
           uuid_short gen_random_bytes random_bytes"])
});

/// SQLite's date functions: they read the clock when they are not given a time.
const SQLITE_DATES: &[&str] = &[
    "date",
    "time",
    "datetime",
    "julianday",
    "strftime",
    "unixepoch",
    "timediff",
];

impl Walk<'_> {
    pub fn function(&mut self, function: &Function) -> Checked {
        let Function {
            name,
            uses_odbc_syntax,
            parameters,
            args,
            filter,
            null_treatment: _,
            over,
            within_group,
        } = function;
        self.absent(!uses_odbc_syntax, "ODBC syntax")?;
        self.absent(
            matches!(parameters, FunctionArguments::None),
            "two lists of arguments",
        )?;
        let callee = self.allowed(name)?;
        let mark = self.cost.mark();
        match args {
            // A word that calls a function without parentheses reads the clock or the session.
            FunctionArguments::None => return Err(self.bad_function(&callee)),
            FunctionArguments::Subquery(query) => {
                self.absent(
                    self.dialect == Dialect::Postgres && callee.name == "array",
                    "a bare subquery as the argument",
                )?;
                self.subquery(query)?;
            }
            FunctionArguments::List(list) => self.arguments(&callee, list)?,
        }
        self.weigh_call(&callee, args, mark);
        self.order_by_expressions(within_group)?;
        self.optional(filter.as_deref())?;
        match over {
            None => Ok(()),
            Some(WindowType::WindowSpec(spec)) => self.window(spec),
            Some(WindowType::NamedWindow(name)) => self.name(name),
        }
    }

    /// A function in FROM. All of them have to be granted.
    pub fn table_function(&mut self, name: &ObjectName, args: &[FunctionArg]) -> Checked<Table> {
        let callee = self.callee(name)?;
        if !self.grants.may_call(&callee) {
            return Err(self.bad_function(&callee));
        }
        self.count_sources(0)?;
        self.outside_from(|walk| walk.each_argument(args))?;
        Ok(callee)
    }

    /// `unnest` in FROM, for which the parser keeps no name.
    pub fn granted_unnest(&mut self, arrays: &[Expr]) -> Checked<Table> {
        let unnest = Table {
            schema: None,
            name: "unnest".to_owned(),
        };
        if !self.grants.may_call(&unnest) {
            return Err(self.bad_function(&unnest));
        }
        self.understand_calls("unnest");
        self.count_sources(0)?;
        self.outside_from(|walk| walk.expressions(arrays))?;
        Ok(unnest)
    }

    fn allowed(&mut self, name: &ObjectName) -> Checked<Table> {
        let callee = self.callee(name)?;
        let built_in = builtins::class(self.dialect, &callee.name).is_some();
        let plain = matches!(
            name.0.as_slice(),
            [ObjectNamePart::Identifier(ident)] if ident.quote_style.is_none()
        );
        if self.grants.may_call(&callee) {
            return Ok(callee);
        }
        if plain && built_in {
            self.means_function(&callee.name);
            return Ok(callee);
        }
        Err(self.bad_function(&callee))
    }

    /// Leaves the result of a call in place of its arguments.
    fn weigh_call(&mut self, callee: &Table, args: &FunctionArguments, mark: u32) {
        let class = builtins::class(self.dialect, &callee.name);
        let Some(class) = class.filter(|_| !self.grants.may_call(callee)) else {
            self.cost.granted(mark);
            return;
        };
        let cut = match (class, args) {
            (Class::Cut, FunctionArguments::List(list)) => searches::last_number(&list.args),
            _ => None,
        };
        match cut {
            Some(characters) => self.cost.cut(characters, mark),
            None => self
                .cost
                .call(class, builtins::quoted_places(&callee.name), mark),
        }
    }

    fn bad_function(&self, callee: &Table) -> super::Refusal {
        let name = callee.name.as_str();
        let (message, help) = if CLOCKS.contains(name) {
            (
                format!("`{callee}` reads the database's clock, which differs between attempts"),
                "pass context.now() as a parameter".to_owned(),
            )
        } else if DICE.contains(name) {
            (
                format!("`{callee}` differs between attempts"),
                "make ids with context.new-id() and pass them as parameters".to_owned(),
            )
        } else {
            (
                format!(
                    "the function `{callee}` is not a pure built-in of {}",
                    self.dialect.name()
                ),
                format!(
                    "add `{callee}` to grant.functions of the consumer, if it has no effects outside the transaction"
                ),
            )
        };
        self.refuse(code::FUNCTION, message, help)
    }

    fn arguments(&mut self, callee: &Table, list: &FunctionArgumentList) -> Checked {
        let FunctionArgumentList {
            duplicate_treatment: _,
            args,
            clauses,
        } = list;
        if self.dialect == Dialect::Sqlite && SQLITE_DATES.contains(&callee.name.as_str()) {
            self.sqlite_date(callee, args)?;
        }
        // PostgreSQL: with one argument, `age` counts from today.
        if self.dialect == Dialect::Postgres && callee.name == "age" && args.len() != 2 {
            return self.clause("age() of one timestamp, which reads the clock,");
        }
        self.each_argument(args)?;
        self.short_arguments(callee, args)?;
        for clause in clauses {
            match clause {
                FunctionArgumentClause::IgnoreOrRespectNulls(_)
                | FunctionArgumentClause::Separator(_) => {}
                FunctionArgumentClause::OrderBy(order_by) => self.order_by_expressions(order_by)?,
                FunctionArgumentClause::Where(_)
                | FunctionArgumentClause::Limit(_)
                | FunctionArgumentClause::OnOverflow(_)
                | FunctionArgumentClause::Having(_)
                | FunctionArgumentClause::JsonNullClause(_)
                | FunctionArgumentClause::JsonReturningClause(_) => {
                    return self.clause("this clause in an argument list");
                }
            }
        }
        Ok(())
    }

    fn each_argument(&mut self, args: &[FunctionArg]) -> Checked {
        for arg in args {
            match arg {
                FunctionArg::Unnamed(arg) => self.argument(arg)?,
                FunctionArg::Named {
                    name,
                    arg,
                    operator: FunctionArgOperator::RightArrow,
                }
                | FunctionArg::ExprNamed {
                    name: Expr::Identifier(name),
                    arg,
                    operator: FunctionArgOperator::RightArrow,
                } => {
                    self.keyword(name)?;
                    self.argument(arg)?;
                }
                FunctionArg::Named { .. } | FunctionArg::ExprNamed { .. } => {
                    return self.clause("this way to name an argument");
                }
            }
        }
        Ok(())
    }

    fn argument(&mut self, arg: &FunctionArgExpr) -> Checked {
        match arg {
            FunctionArgExpr::Expr(expression) => self.expression(expression),
            FunctionArgExpr::QualifiedWildcard(name) => self.column_name(name),
            FunctionArgExpr::Wildcard => Ok(()),
            FunctionArgExpr::WildcardWithOptions(options) => self.wildcard(options),
        }
    }

    fn sqlite_date(&self, callee: &Table, args: &[FunctionArg]) -> Checked {
        let time = usize::from(callee.name == "strftime");
        if args.len() <= time {
            return Err(self.refuse(
                code::FUNCTION,
                format!(
                    "`{callee}` without a time reads the clock, which differs between attempts"
                ),
                "pass context.now() as a parameter",
            ));
        }
        for arg in args {
            if let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(literal))) = arg
                && matches!(literal.value, Value::SingleQuotedString(_))
            {
                self.not_the_clock(&literal.value)?;
            }
        }
        Ok(())
    }
}
