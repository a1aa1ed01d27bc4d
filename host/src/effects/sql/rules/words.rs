//! Lists of words: which are grammar, which are reserved, which may stand where.
//!
//! All lists are in lower case and all look-ups ignore case. A word that is in no list is a name, and has to be
//! found and judged by the walk.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::Dialect;

type Words = LazyLock<HashSet<&'static str>>;

fn list(words: &'static str) -> HashSet<&'static str> {
    words.split_ascii_whitespace().collect()
}

fn has(words: &Words, word: &str) -> bool {
    words.contains(word.to_ascii_lowercase().as_str())
}

/// Words that may stand in a statement without being a name: everything the walk understands is written with these.
static GRAMMAR: Words = LazyLock::new(|| {
    list(
        "select distinct all from where group by having order asc desc nulls first last limit offset fetch next row
         rows only with recursive as materialized not union intersect except join inner left right full outer cross
         natural on using lateral values insert into update set delete returning conflict do nothing default
         duplicate key constraint ignore or and is null true false unknown in between like ilike similar to escape
         exists any some case when then else end cast extract substring substr position trim both leading trailing
         overlay placing for collate at time zone interval over partition window range groups unbounded preceding
         following current filter within share of nowait skip locked array grouping sets cube rollup separator div
         mod xor regexp rlike glob match isnull notnull respect ceil floor ordinality
         year years month months week weeks day days dow doy isodow isoyear hour hours minute minutes second seconds
         epoch quarter century decade millennium millisecond milliseconds microsecond microseconds
         timezone_hour timezone_minute julian
         boolean bool smallint int integer bigint int2 int4 int8 tinyint mediumint real float float4 float8 double
         precision decimal dec numeric signed unsigned char character varying varchar nvarchar text uuid date
         timestamp timestamptz timetz datetime without json jsonb bytea blob binary varbinary bit varbit
         tsvector tsquery",
    )
});

/// Grammar that may be followed by a parenthesis; any other word before one is a call or a list of columns, which
/// the walk has to have understood as such.
static BEFORE_PARENTHESIS: Words = LazyLock::new(|| {
    list(
        "select distinct all from where having by limit offset fetch first next as materialized not union intersect
         except join on using lateral values set conflict or and in between like ilike to escape exists any some
         case when then else cast extract substring substr position trim overlay placing for interval over filter
         within group array sets cube rollup div mod xor regexp rlike glob match returning key default into ceil
         floor is from only
         varchar char character varying nvarchar decimal dec numeric float double bit varbit time timestamp
         timestamptz timetz datetime binary varbinary int integer bigint smallint tinyint signed unsigned precision",
    )
});

/// Words after which a string literal is a string literal and nothing else, on every database.
static BEFORE_STRING: Words = LazyLock::new(|| {
    list(
        "select distinct all where having by limit and or not xor in between like ilike to escape when then else case
         on set values returning from for interval date time timestamp zone separator regexp rlike glob match is
         both leading trailing placing using any some div mod",
    )
});

/// Operators written as words, and everything else that makes the tree one level deeper without a parenthesis.
static CHAINING: Words = LazyLock::new(|| {
    list(
        "and or xor not is in between overlaps like ilike rlike regexp similar match glob div mod member collate at
         isnull notnull operator case interval join binary prior",
    )
});

/// Operators for which the parser copies the whole left side.
static COPYING: Words = LazyLock::new(|| list("div match glob regexp"));

static JOINS: Words = LazyLock::new(|| list("join straight_join apply"));

static SET_OPERATIONS: Words = LazyLock::new(|| list("union intersect except minus"));

/// PostgreSQL: reserved, and reserved except as function or type.
static RESERVED_POSTGRES: Words = LazyLock::new(|| {
    list(
        "all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create
         current_catalog current_date current_role current_time current_timestamp current_user default deferrable
         desc distinct do else end except false fetch for foreign from grant group having in initially intersect
         into lateral leading limit localtime localtimestamp not null offset on only or order placing primary
         references returning select session_user some symmetric system_user table then to trailing true union
         unique user using variadic when where window with authorization binary collation concurrently cross
         current_schema freeze full ilike inner is isnull join left like natural notnull outer overlaps right
         similar tablesample verbose values row",
    )
});

/// SQLite: the keywords that its parser does not fall back to a name for, and those that start a join.
static RESERVED_SQLITE: Words = LazyLock::new(|| {
    list(
        "add all alter and as autoincrement between case check collate commit constraint create current_date
         current_time current_timestamp default deferrable delete distinct drop else escape except exists foreign
         from group having in index insert intersect into is isnull join limit not nothing notnull null on or order
         primary raise references returning select set table then to transaction union unique update using values
         when where cross full inner left natural outer right indexed true false",
    )
});

/// MySQL 8 and MariaDB, together.
static RESERVED_MYSQL: Words = LazyLock::new(|| {
    list(
        "accessible add all alter analyze and as asc asensitive before between bigint binary blob both by call
         cascade case change char character check collate column condition constraint continue convert create cross
         cube cume_dist current_date current_role current_time current_timestamp current_user cursor database
         databases day_hour day_microsecond day_minute day_second dec decimal declare default delayed delete
         delete_domain_id dense_rank desc describe deterministic distinct distinctrow div do_domain_ids double drop
         dual each else elseif empty enclosed escaped except exists exit explain false fetch first_value float float4
         float8 for force foreign from fulltext function general generated get grant group grouping groups having
         high_priority hour_microsecond hour_minute hour_second if ignore ignore_domain_ids
         ignore_server_ids in index infile inner inout insensitive insert int int1 int2 int3 int4 int8 integer
         intersect interval into io_after_gtids io_before_gtids is iterate join json_table key keys kill lag
         last_value lateral lead leading leave left like limit linear lines load localtime localtimestamp lock long
         longblob longtext loop low_priority manual master_bind master_heartbeat_period
         master_ssl_verify_server_cert match maxvalue mediumblob mediumint mediumtext middleint minute_microsecond
         minute_second mod modifies natural no_write_to_binlog not nth_value ntile null numeric of offset on optimize
         optimizer_costs option optionally or order out outer outfile over page_checksum parallel
         parse_vcol_expr partition percent_rank position precision primary procedure purge qualify range rank read
         read_write reads real recursive ref_system_id references regexp release rename repeat replace require resignal
         restrict return returning revoke right rlike row row_number rows rownum schema schemas second_microsecond select
         sensitive separator set show signal slow smallint spatial specific sql sql_big_result
         sql_calc_found_rows sql_small_result sqlexception sqlstate sqlwarning ssl starting stats_auto_recalc
         stats_persistent stats_sample_pages stored straight_join system sysdate table tablesample terminated then tinyblob tinyint
         tinytext to trailing trigger true undo union unique unlock unsigned update usage use using utc_date
         utc_time utc_timestamp values varbinary varchar varcharacter varying virtual when where while window with
         write xor year_month zerofill dumpfile",
    )
});

/// MySQL's functions that are only built in when the parenthesis touches the name.
static MUST_TOUCH: Words = LazyLock::new(|| {
    list(
        "adddate bit_and bit_or bit_xor cast count curdate curtime date_add date_sub extract group_concat max mid min
         now position session_user std stddev stddev_pop stddev_samp subdate substr substring sum sysdate
         system_user trim variance var_pop var_samp",
    )
});

pub(super) fn is_grammar(word: &str) -> bool {
    has(&GRAMMAR, word)
}

pub(super) fn before_parenthesis(word: &str) -> bool {
    has(&BEFORE_PARENTHESIS, word)
}

pub(super) fn before_string(word: &str) -> bool {
    has(&BEFORE_STRING, word)
}

pub(super) fn chains(word: &str) -> bool {
    has(&CHAINING, word)
}

pub(super) fn copies(word: &str) -> bool {
    has(&COPYING, word)
}

pub(super) fn joins_queries(word: &str) -> bool {
    has(&SET_OPERATIONS, word)
}

pub(super) fn joins_tables(word: &str) -> bool {
    has(&JOINS, word)
}

pub(super) fn must_touch(word: &str) -> bool {
    has(&MUST_TOUCH, word)
}

/// Whether the database would not take the word for a name.
pub(super) fn is_reserved(dialect: Dialect, word: &str) -> bool {
    match dialect {
        Dialect::Postgres => has(&RESERVED_POSTGRES, word),
        Dialect::Sqlite => has(&RESERVED_SQLITE, word),
        Dialect::Mysql => has(&RESERVED_MYSQL, word),
    }
}
