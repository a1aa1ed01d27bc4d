//! Functions: those that are pure built-ins of the dialect, and those that are granted.
//!
//! Pure means: no effect, no session state, no clock and no randomness. Functions that make a value of any length out
//! of a number (`repeat`, `lpad`, `printf`) are in no list either. Values can still be made large, by joining or
//! replacing; the store bounds what leaves the database. Whatever is not in the lists may be granted by name.

use std::collections::HashSet;
use std::sync::LazyLock;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgOperator, FunctionArgumentClause,
    FunctionArgumentList, FunctionArguments, ObjectName, ObjectNamePart, Value, WindowType,
};

use super::Dialect;
use super::grants::Table;
use super::refusal::{Checked, code};
use super::walk::Walk;

type Names = LazyLock<HashSet<&'static str>>;

fn list(parts: &[&'static str]) -> HashSet<&'static str> {
    parts
        .iter()
        .flat_map(|part| part.split_ascii_whitespace())
        .collect()
}

/// Window functions and the like, which all three have.
const COMMON: &str = "
    count sum avg min max coalesce nullif
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
    abs ceil ceiling floor round sign mod power pow sqrt exp ln radians degrees pi
    sin cos tan asin acos atan
    lower upper length ltrim rtrim replace octet_length concat concat_ws";

static POSTGRES: Names = LazyLock::new(|| {
    list(&[
        COMMON,
        "array_agg string_agg bool_and bool_or every bit_and bit_or bit_xor any_value mode
         json_agg jsonb_agg json_object_agg jsonb_object_agg
         stddev stddev_pop stddev_samp variance var_pop var_samp corr covar_pop covar_samp
         percentile_cont percentile_disc grouping row
         greatest least num_nulls num_nonnulls
         trunc div cbrt log log10 cot atan2 sinh cosh tanh width_bucket gcd lcm scale min_scale trim_scale
         initcap char_length character_length bit_length left right substr btrim reverse split_part strpos
         starts_with translate ascii chr md5 sha224 sha256 sha384 sha512 encode decode to_hex get_byte
         convert_from convert_to quote_literal quote_ident
         regexp_replace regexp_match regexp_like regexp_count regexp_substr regexp_instr
         string_to_array array_to_string to_number
         date_trunc date_part date_bin to_char to_date to_timestamp make_date make_time make_timestamp
         make_timestamptz make_interval age justify_days justify_hours justify_interval isfinite timezone
         to_json to_jsonb json_build_object jsonb_build_object json_build_array jsonb_build_array json_object
         jsonb_object json_array_length jsonb_array_length json_extract_path json_extract_path_text
         jsonb_extract_path jsonb_extract_path_text jsonb_set jsonb_insert json_strip_nulls jsonb_strip_nulls
         jsonb_pretty json_typeof jsonb_typeof jsonb_path_exists jsonb_path_match jsonb_path_query_array
         jsonb_path_query_first row_to_json jsonb_contains jsonb_contained jsonb_exists jsonb_exists_any
         jsonb_exists_all jsonb_delete
         array array_append array_prepend array_cat array_length array_position array_positions array_remove
         array_replace cardinality array_upper array_lower array_ndims arraycontains arraycontained arrayoverlap
         to_tsvector plainto_tsquery websearch_to_tsquery phraseto_tsquery to_tsquery ts_rank ts_match_vq",
    ])
});

static SQLITE: Names = LazyLock::new(|| {
    list(&[
        COMMON,
        "total group_concat string_agg
         acosh asinh atan2 atanh cosh sinh tanh log log10 log2 trunc
         char glob hex ifnull iif instr likelihood likely unlikely quote substr substring trim typeof unhex
         unicode
         json json_array json_array_length json_extract json_insert json_object json_patch json_quote json_remove
         json_replace json_set json_type json_valid json_group_array json_group_object
         date time datetime julianday strftime timediff unixepoch",
    ])
});

static MYSQL: Names = LazyLock::new(|| {
    list(&[
        COMMON,
        "bit_and bit_or bit_xor group_concat json_arrayagg json_objectagg std stddev stddev_pop stddev_samp
         variance var_pop var_samp grouping
         greatest least if ifnull isnull interval values value
         atan2 cot crc32 log log10 log2 truncate conv bin oct hex unhex
         ascii bit_length char_length character_length elt field find_in_set insert instr lcase
         left locate mid ord position quote reverse right strcmp substr substring substring_index trim ucase
         to_base64 from_base64 md5 sha sha1 sha2 regexp_replace regexp_substr regexp_instr
         adddate addtime convert_tz date date_add date_format date_sub datediff day dayname dayofmonth dayofweek
         dayofyear from_days from_unixtime hour last_day makedate maketime microsecond minute month monthname
         period_add period_diff quarter sec_to_time second str_to_date subdate subtime time time_format
         time_to_sec timediff timestamp to_days to_seconds week weekday weekofyear year yearweek
         json_array json_array_append json_array_insert json_contains json_contains_path json_depth json_extract
         json_insert json_keys json_length json_merge_patch json_merge_preserve json_object json_overlaps
         json_quote json_remove json_replace json_search json_set json_type json_unquote json_valid json_value
         inet_aton inet_ntoa inet6_aton inet6_ntoa nullif bit_count",
    ])
});

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
        let built_in = match self.dialect {
            Dialect::Postgres => &POSTGRES,
            Dialect::Sqlite => &SQLITE,
            Dialect::Mysql => &MYSQL,
        };
        let plain = matches!(
            name.0.as_slice(),
            [ObjectNamePart::Identifier(ident)] if ident.quote_style.is_none()
        );
        if (plain && built_in.contains(callee.name.as_str())) || self.grants.may_call(&callee) {
            return Ok(callee);
        }
        Err(self.bad_function(&callee))
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
