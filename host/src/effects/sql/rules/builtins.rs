//! The functions that are pure built-ins of each dialect, each with what a call of it costs.
//!
//! Pure means: no effect, no session state, no clock and no randomness. Functions that make a value of any length out
//! of a number (`repeat`, `lpad`, `printf`) are in no list either. A name stands in exactly one line, so none is
//! listed without a class, and `cost` bounds the calls of one row by it. What a class promises is held against both
//! databases by the tests: the figures are nanoseconds on a slow machine with room to spare.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::Dialect;

/// How the time and the result of a call depend on the lengths of its arguments.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Class {
    /// On nothing; the result is short.
    Free,
    /// The result is one of the arguments.
    Pick,
    /// `ns` for each byte; the result has `grows` bytes for each byte.
    Linear { ns: f64, grows: f64 },
    /// Two values that are compared only where they have the same length.
    Equal,
    /// A search: `ns` for each pair of a byte of the first argument and a byte of the others.
    Search { ns: f64, grows: f64 },
    /// A search for the second argument, each of which becomes the third.
    Replace { ns: f64 },
    /// A search whose result has the last argument in place of each byte, at worst.
    Expand { ns: f64 },
    /// All but the first, with the first between them.
    Joined,
    /// `ns` times the square of the bytes.
    Square { ns: f64 },
    /// Arithmetic of long numbers: `ns` for each pair of their digits.
    Digits { ns: f64 },
    /// Takes numbers from each other, and from a document what an array names.
    Minus,
    /// Compares the positions of all words of a query with each other.
    Rank,
    /// The first or last characters; how many stands in the text, or else all.
    Cut,
    /// The values of many rows in one.
    Collect,
}

const fn linear(ns: f64, grows: f64) -> Class {
    Class::Linear { ns, grows }
}

const SCAN: Class = linear(4.0, 0.0);
const COPY: Class = linear(4.0, 1.0);
const NUMBER: Class = linear(4.0, 1.0);
const FOLD: Class = linear(40.0, 2.0);
const DIGEST: Class = linear(20.0, 0.0);
const ESCAPE: Class = linear(10.0, 4.0);
const FORMAT: Class = linear(20.0, 8.0);
const READ: Class = linear(20.0, 1.0);
const WRITE: Class = linear(60.0, 2.0);
const QUOTE: Class = linear(60.0, 6.0);
const OBJECTS: Class = linear(250.0, 4.0);
const PATTERN: Class = linear(200.0, 1.0);
const FIND: Class = Class::Search {
    ns: 2.0,
    grows: 0.0,
};
const STRIP: Class = Class::Search {
    ns: 20.0,
    grows: 1.0,
};

type List = &'static [(Class, &'static str)];

const POSTGRES: List = &[
    (
        Class::Free,
        "count row_number rank dense_rank percent_rank cume_dist ntile grouping pi
         bool_and bool_or every bit_and bit_or bit_xor corr covar_pop covar_samp
         radians degrees sin cos tan asin acos atan cot atan2 sinh cosh tanh cbrt
         chr to_hex num_nulls num_nonnulls
         date_trunc date_part date_bin make_date make_time make_timestamp make_timestamptz make_interval age
         justify_days justify_hours justify_interval isfinite timezone",
    ),
    (
        Class::Pick,
        "coalesce nullif greatest least min max lag lead first_value last_value nth_value any_value mode
         percentile_cont percentile_disc",
    ),
    (
        NUMBER,
        "abs ceil ceiling floor round sign trunc scale min_scale trim_scale sum",
    ),
    (
        Class::Digits { ns: 0.15 },
        "mod div power pow sqrt exp ln log log10 gcd lcm width_bucket avg
         stddev stddev_pop stddev_samp variance var_pop var_samp",
    ),
    (
        SCAN,
        "length char_length character_length octet_length bit_length ascii get_byte starts_with
         array_length cardinality array_upper array_lower array_ndims jsonb_typeof jsonb_array_length",
    ),
    (DIGEST, "md5 sha224 sha256 sha384 sha512"),
    (linear(3.0, 1.0), "concat array_cat array_append array_prepend"),
    (FOLD, "lower upper initcap reverse"),
    (Class::Cut, "left right substr"),
    (STRIP, "btrim ltrim rtrim"),
    (
        Class::Search {
            ns: 20.0,
            grows: 4.0,
        },
        "translate",
    ),
    (FIND, "strpos split_part"),
    (
        Class::Search {
            ns: 2.0,
            grows: 32.0,
        },
        "string_to_array",
    ),
    (
        Class::Replace { ns: 2.0 },
        "replace",
    ),
    (
        Class::Expand { ns: 2.0 },
        "regexp_replace array_replace array_to_string",
    ),
    (Class::Joined, "concat_ws"),
    (
        PATTERN,
        "regexp_match regexp_like regexp_count regexp_substr regexp_instr",
    ),
    (
        ESCAPE,
        "encode decode convert_from convert_to quote_literal quote_ident",
    ),
    (FORMAT, "to_number to_char to_date to_timestamp"),
    (
        READ,
        "json_array_length json_typeof json_extract_path json_extract_path_text jsonb_extract_path
         jsonb_extract_path_text jsonb_path_exists jsonb_path_match jsonb_path_query_array jsonb_path_query_first
         jsonb_exists",
    ),
    (
        QUOTE,
        "to_json to_jsonb json_build_object jsonb_build_object json_build_array jsonb_build_array row_to_json row",
    ),
    (OBJECTS, "json_object jsonb_object"),
    (
        WRITE,
        "jsonb_set jsonb_insert json_strip_nulls jsonb_strip_nulls array_remove array_position array_positions",
    ),
    (linear(400.0, 20.0), "jsonb_pretty"),
    (
        Class::Search {
            ns: 3.0,
            grows: 1.0,
        },
        "jsonb_contains jsonb_contained jsonb_exists_any jsonb_exists_all jsonb_delete
         arraycontains arraycontained arrayoverlap",
    ),
    (
        Class::Collect,
        "array array_agg string_agg json_agg jsonb_agg json_object_agg jsonb_object_agg",
    ),
    (linear(200.0, 2.0), "to_tsvector"),
    (PATTERN, "ts_match_vq"),
    (
        Class::Square { ns: 0.2 },
        "plainto_tsquery websearch_to_tsquery phraseto_tsquery to_tsquery",
    ),
    (Class::Rank, "ts_rank"),
];

const SQLITE: List = &[
    (
        Class::Free,
        "count row_number rank dense_rank percent_rank cume_dist ntile pi typeof
         radians degrees sin cos tan asin acos atan acosh asinh atan2 atanh cosh sinh tanh
         abs ceil ceiling floor round sign mod power pow sqrt exp ln log log10 log2 trunc sum avg total",
    ),
    (
        Class::Pick,
        "coalesce nullif ifnull iif min max lag lead first_value last_value nth_value
         likelihood likely unlikely",
    ),
    (SCAN, "length octet_length unicode"),
    (COPY, "concat"),
    (FOLD, "lower upper"),
    (ESCAPE, "hex quote char"),
    (Class::Cut, "substr substring"),
    (
        Class::Search {
            ns: 4.0,
            grows: 1.0,
        },
        "ltrim rtrim trim unhex",
    ),
    (
        Class::Search {
            ns: 0.5,
            grows: 0.0,
        },
        "instr glob",
    ),
    (Class::Replace { ns: 0.5 }, "replace"),
    (Class::Joined, "concat_ws"),
    (
        linear(100.0, 6.0),
        "json json_array json_array_length json_extract json_insert json_object json_quote json_remove
         json_replace json_set json_type json_valid",
    ),
    (
        Class::Search {
            ns: 0.5,
            grows: 2.0,
        },
        "json_patch",
    ),
    (
        Class::Collect,
        "group_concat string_agg json_group_array json_group_object",
    ),
    (
        FORMAT,
        "date time datetime julianday strftime timediff unixepoch",
    ),
];

const MYSQL: List = &[
    (
        Class::Free,
        "count row_number rank dense_rank percent_rank cume_dist ntile pi grouping
         abs ceil ceiling floor round sign radians degrees sin cos tan asin acos atan atan2 cot
         mod power pow sqrt exp ln log log10 log2 truncate conv bin oct bit_count
         bit_and bit_or bit_xor std stddev stddev_pop stddev_samp variance var_pop var_samp sum avg
         isnull interval inet_aton inet_ntoa inet6_aton inet6_ntoa
         adddate addtime convert_tz date date_add date_format date_sub datediff day dayname dayofmonth dayofweek
         dayofyear from_days from_unixtime hour last_day makedate maketime microsecond minute month monthname
         period_add period_diff quarter sec_to_time second str_to_date subdate subtime time time_format
         time_to_sec timediff timestamp to_days to_seconds week weekday weekofyear year yearweek",
    ),
    (
        Class::Pick,
        "coalesce nullif if ifnull greatest least min max values value elt
         lag lead first_value last_value nth_value",
    ),
    (
        SCAN,
        "length octet_length bit_length char_length character_length ascii ord strcmp field",
    ),
    (COPY, "concat insert"),
    (FOLD, "lower upper lcase ucase reverse"),
    (DIGEST, "md5 sha sha1 sha2 crc32"),
    (ESCAPE, "hex unhex quote to_base64 from_base64"),
    (Class::Cut, "left right mid substr substring"),
    (STRIP, "ltrim rtrim trim"),
    (FIND, "instr locate position substring_index find_in_set"),
    (Class::Replace { ns: 2.0 }, "replace"),
    (Class::Expand { ns: 2.0 }, "regexp_replace"),
    (Class::Joined, "concat_ws"),
    (PATTERN, "regexp_substr regexp_instr"),
    (
        READ,
        "json_contains_path json_depth json_extract json_keys json_length json_type json_unquote json_valid
         json_value json_search",
    ),
    (
        QUOTE,
        "json_array json_array_append json_array_insert json_insert json_object json_quote json_remove json_replace
         json_set",
    ),
    (
        Class::Search {
            ns: 3.0,
            grows: 2.0,
        },
        "json_contains json_merge_patch json_merge_preserve json_overlaps",
    ),
    (Class::Collect, "group_concat json_arrayagg json_objectagg"),
];

type Names = LazyLock<HashMap<&'static str, Class>>;

fn names(list: List) -> HashMap<&'static str, Class> {
    let lines = list
        .iter()
        .flat_map(|(class, names)| names.split_ascii_whitespace().map(|name| (name, *class)));
    lines.collect()
}

static POSTGRES_NAMES: Names = LazyLock::new(|| names(POSTGRES));
static SQLITE_NAMES: Names = LazyLock::new(|| names(SQLITE));
static MYSQL_NAMES: Names = LazyLock::new(|| names(MYSQL));

fn table(dialect: Dialect) -> &'static HashMap<&'static str, Class> {
    match dialect {
        Dialect::Postgres => &POSTGRES_NAMES,
        Dialect::Sqlite => &SQLITE_NAMES,
        Dialect::Mysql => &MYSQL_NAMES,
    }
}

/// What a call of a built-in costs; nothing where the name is none.
pub(super) fn class(dialect: Dialect, name: &str) -> Option<Class> {
    table(dialect).get(name).copied()
}

/// How long values may be in a statement of SQLite with these words and signs, so that one row takes little time.
pub fn sqlite_value_bytes<'a>(words: impl Iterator<Item = &'a str>) -> u64 {
    /// Of one row.
    const NANOSECONDS: f64 = 2e9;
    /// Of a statement that searches.
    const SEARCHED_BYTES: f64 = 262_144.0;
    /// Of the values that the calls of one row make, each of which the driver copies.
    const MADE_BYTES: f64 = 50_331_648.0;
    /// No statement is too long for a value of this many bytes.
    const LEAST: f64 = 4096.0;
    let (mut each, mut calls, mut searches) = (1.0, 1.0, false);
    for word in words {
        let word = word.to_ascii_lowercase();
        let class = match word.as_str() {
            "||" => Some(COPY),
            "->" | "->>" => Some(linear(100.0, 1.0)),
            "cast" | "<" | ">" | "<=" | ">=" | "between" => Some(linear(2.0, 1.0)),
            "like" | "glob" | "match" => Some(FIND),
            word => class(Dialect::Sqlite, word),
        };
        let short = super::MAX_SHORT_BYTES as f64;
        if class.is_some_and(|class| class != Class::Free) {
            calls += 1.0;
        }
        each += match class {
            None | Some(Class::Free) => 0.0,
            Some(Class::Linear { ns, .. }) => ns,
            Some(Class::Search { ns, .. } | Class::Replace { ns } | Class::Expand { ns }) => {
                searches = true;
                ns * short
            }
            Some(_) => 4.0,
        };
    }
    let most = if searches { SEARCHED_BYTES } else { f64::MAX };
    // Within an i32, which is what SQLite takes.
    (NANOSECONDS / each)
        .min(MADE_BYTES / calls)
        .min(most)
        .clamp(LEAST, 2e9) as u64
}

/// Every built-in of a dialect, sorted.
#[cfg(test)]
pub fn all(dialect: Dialect) -> Vec<&'static str> {
    let mut all: Vec<&str> = table(dialect).keys().copied().collect();
    all.sort_unstable();
    all
}

/// Which arguments the database quotes whole in an error, from 0, as bits.
pub(super) fn quoted_places(function: &str) -> u8 {
    match function {
        "date_trunc" | "date_part" | "timezone" => 0b1,
        "encode" | "decode" | "convert_from" | "convert_to" | "jsonb_set" | "jsonb_insert" => 0b10,
        "to_tsquery" => 0b11,
        "make_timestamptz" => 0b100_0000,
        "to_number" | "to_date" | "to_timestamp" | "to_char" => 0b11,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_in_stands_in_one_line_of_its_dialect() {
        for list in [POSTGRES, SQLITE, MYSQL] {
            let lines = list.iter().map(|(_, names)| names.split_ascii_whitespace());
            assert_eq!(lines.flatten().count(), names(list).len());
        }
    }
}
