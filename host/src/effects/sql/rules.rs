//! The rules of SQL: whether a guest's statement may run, decided from its text alone.
//!
//! ```text
//!  text ─▶ pieces ─▶ sqlparser ─▶ walk ─▶ coverage ─▶ Statement
//!          own lexer  on those    field by  every word was
//!          refuses    pieces      field     understood
//! ```
//!
//! Guarantees: what passes is one SELECT, INSERT, UPDATE or DELETE that touches only granted tables, calls only
//! pure built-ins and granted functions, and is cut into tokens by the database exactly as it was cut here. The
//! text that is sent is the guest's own, so everything about which a database could think otherwise is refused.
//! Whatever is not understood is refused, never passed on.
//!
//! Deliberately does not: talk to a database, know a schema (views, triggers, column defaults and computed columns
//! are the owner's word), bind values, or bound what a statement costs to run; those are the caller's.

mod builtins;
mod cost;
mod coverage;
mod expression;
mod from;
mod functions;
mod grants;
mod lexer;
mod merge;
mod names;
mod query;
mod refusal;
mod searches;
mod types;
mod walk;
mod weigh;
mod words;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use lru::LruCache;
use sqlparser::dialect::{MySqlDialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;
use tokio::sync::{Semaphore, oneshot};

#[cfg(test)]
pub use builtins::all as all_built_ins;
pub use builtins::sqlite_value_bytes;
pub use cost::{Excess, RowBounds};
pub use grants::{BadGrant, Grants, Table};
#[cfg(test)]
pub use lexer::all_operators;
pub use merge::{Merge, RowPart};
pub use refusal::{Refusal, code};
pub use searches::MAX_SHORT_BYTES;

use cost::{Cost, SMALL_BYTES};
use lexer::Pieces;
use refusal::Checked;
use walk::Walk;

/// Longest statement accepted, in bytes, unless the consumer's limits say otherwise.
pub const DEFAULT_MAX_STATEMENT_BYTES: usize = 64 * 1024;

/// Bound on the text kept by one cache, in bytes: a guest that makes a new text for each message must not be able
/// to fill the host's memory with them.
const MAX_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The stack that a judgement gets. Parsing the worst statements that pass the lexer's bounds takes 1.5 MiB in a
/// release build and 10 MiB in a debug build, and the caller is a host call on a guest's fiber, which has far less
/// and whose overflow would end the process.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Texts that are judged at the same time, whatever the guests send.
static SEATS: Semaphore = Semaphore::const_new(8);

/// How deep `sqlparser` may recurse. A parenthesis costs it two or three levels.
const PARSER_DEPTH: usize = 120;

/// The time of one row of SQLite: several times what the store plans with, which counts each call once.
const SQLITE_NANOSECONDS: f64 = 1e10;

/// The longest value of SQLite that a row is weighed with: what the store takes unless it is told otherwise.
const SQLITE_VALUE_BYTES: u64 = 20 << 20;

/// The longest value of Postgres.
const LONGEST: f64 = 1_073_741_824.0;

/// A parameter as handlers bind them.
const SHORT_PARAMETER: Width = Width {
    bytes: 64,
    number: true,
};

use super::speculation::Plainness;
pub use crate::store::Dialect;
use crate::store::{ASSUMED_BYTES, BuiltIns, CatalogQuestion, NamedColumn, Width};

impl Dialect {
    /// How many parameters one statement can carry on this store.
    pub const fn max_parameters(self) -> u16 {
        match self {
            // Both protocols count parameters in an unsigned 16-bit number.
            Dialect::Postgres | Dialect::Mysql => u16::MAX,
            // SQLITE_MAX_VARIABLE_NUMBER since 3.32.
            Dialect::Sqlite => 32_766,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Dialect::Postgres => "PostgreSQL",
            Dialect::Sqlite => "SQLite",
            Dialect::Mysql => "MySQL",
        }
    }
}

/// What a statement does. A `WITH … DELETE … SELECT` is a [`Kind::Select`] whose [`Statement::writes`] is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    Select,
    Insert,
    Update,
    Delete,
}

/// A statement that may run.
#[derive(Debug)]
pub struct Statement {
    /// What is sent to the database: the guest's text, without white space or a semicolon at its end. Parameters
    /// are `$1`, `$2`, …; for a database that wants `?` see [`Statement::positional`].
    pub text: String,
    pub kind: Kind,
    /// A SELECT, or a RETURNING clause.
    pub returns_rows: bool,
    /// The highest parameter: how many values the guest must give. None in between is missing.
    pub parameters: u16,
    /// Tables it reads, without those of which it is only the target.
    pub reads: BTreeSet<Table>,
    /// Tables it writes or locks rows of.
    pub writes: BTreeSet<Table>,
    /// How to run many of these as one statement, when that means the same.
    pub merge: Option<Merge>,
    /// What has to be a column in the database, or else could be a call. Asked once, before it runs.
    pub named_columns: Vec<NamedColumn>,
    /// What has to be the database's own, or else could be somebody's function. Asked with them.
    pub built_ins: BuiltIns,
    /// Functions that the consumer is granted, by their last names.
    granted: Vec<String>,
    proven: AtomicBool,
    cost: Cost,
    row: RowBounds,
    /// A row costs little whatever columns hold, as long as parameters are small.
    light: bool,
    /// What the catalog knows of the columns that `cost` names.
    widths: OnceLock<Vec<Option<Width>>>,
    /// Whether many of these may be written as one although each was to run at once.
    pub plainness: Plainness,
    /// Parameters that may have at most [`MAX_SHORT_BYTES`]: what a search looks for.
    pub short: Vec<u16>,
    placeholders: Vec<Placeholder>,
}

/// Where a parameter stands in the text.
#[derive(Clone, Copy, Debug)]
struct Placeholder {
    start: usize,
    end: usize,
    number: u16,
}

impl Statement {
    /// Whether nothing is left to ask the database before the statement runs.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
            || self.named_columns.is_empty() && self.built_ins.is_empty() && self.light
    }

    /// What to ask the catalog before the statement runs.
    pub fn question(&self) -> CatalogQuestion {
        let tables = self.reads.union(&self.writes);
        let columns = if self.light { &[] } else { self.cost.columns() };
        CatalogQuestion {
            built_ins: self.built_ins.clone(),
            granted: self.granted.clone(),
            tables: tables
                .map(|table| (table.schema.clone(), table.name.clone()))
                .collect(),
            columns: columns.to_vec(),
        }
    }

    /// Notes how wide the columns are.
    pub fn columns_are(&self, widths: Vec<Option<Width>>) {
        // Lanes that ask at the same time hear the same.
        let _ = self.widths.set(widths);
    }

    /// The bound that a row is over with parameters of these lengths, and whether it is with short ones, too.
    pub fn excess(&self, parameters: &[Width]) -> Option<(Excess, bool)> {
        if self.light && parameters.iter().all(|width| width.bytes <= SMALL_BYTES) {
            return None;
        }
        let widths = self.widths.get();
        let weigh = |most: u64| {
            let parameter = |number: u16| {
                let given = parameters.get(usize::from(number).wrapping_sub(1));
                let given = given.copied().unwrap_or(SHORT_PARAMETER);
                Width {
                    bytes: given.bytes.min(most),
                    ..given
                }
            };
            let column = |column: usize| *widths?.get(column)?;
            self.cost.weigh(parameter, column, LONGEST).excess(self.row)
        };
        let excess = weigh(u64::MAX)?;
        Some((excess, weigh(SHORT_PARAMETER.bytes).is_some()))
    }

    /// The database knows all of `named_columns`.
    pub fn proven(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// The text with each `$n` as a `?`, and the `n` of each `?` in order: what MySQL's protocol wants.
    pub fn positional(&self) -> (String, Vec<u16>) {
        let mut text = String::with_capacity(self.text.len());
        let mut order = Vec::with_capacity(self.placeholders.len());
        let mut copied = 0;
        for placeholder in &self.placeholders {
            text.push_str(&self.text[copied..placeholder.start]);
            text.push('?');
            order.push(placeholder.number);
            copied = placeholder.end;
        }
        text.push_str(&self.text[copied..]);
        (text, order)
    }
}

/// The rules of one consumer, with the statements it has already been allowed.
///
/// `check` may be called from many threads; lanes that want no contention make one `Rules` each, which costs little
/// as long as the cache is empty.
#[derive(Debug)]
pub struct Rules {
    dialect: Dialect,
    grants: Arc<Grants>,
    max_statement_bytes: usize,
    row: RowBounds,
    allowed: Mutex<Allowed>,
}

/// Allowed statements by their text; refusals are not kept, so that hostile texts push out nothing of use.
#[derive(Debug)]
struct Allowed {
    statements: LruCache<Box<str>, Arc<Statement>>,
    text_bytes: usize,
    max_statements: usize,
}

impl Rules {
    pub fn new(dialect: Dialect, grants: &Grants, cache_entries: usize) -> Self {
        Self {
            dialect,
            grants: Arc::new(grants.clone()),
            max_statement_bytes: DEFAULT_MAX_STATEMENT_BYTES,
            row: RowBounds::default(),
            allowed: Mutex::new(Allowed {
                statements: LruCache::unbounded(),
                text_bytes: 0,
                max_statements: cache_entries,
            }),
        }
    }

    pub fn with_max_statement_bytes(mut self, bytes: usize) -> Self {
        self.max_statement_bytes = bytes;
        self
    }

    pub fn with_row_bounds(mut self, bounds: RowBounds) -> Self {
        self.row = bounds;
        self
    }

    /// Allows the statement or says why not. A text seen before costs a look-up; judging a new one blocks.
    pub fn check(&self, text: &str) -> Result<Arc<Statement>, Refusal> {
        if let Some(statement) = self.known(text) {
            return Ok(statement);
        }
        self.must_fit(text)?;
        let (dialect, grants, row) = (self.dialect, &self.grants, self.row);
        let judged = thread::scope(|scope| {
            judges_desk()
                .spawn_scoped(scope, || judge(dialect, grants, row, text))
                .map(thread::ScopedJoinHandle::join)
        });
        match judged {
            Ok(Ok(verdict)) => self.keep(text, verdict),
            Ok(Err(_)) => Err(defect()),
            Err(error) => Err(no_thread(&error)),
        }
    }

    /// The same for those who must not be held up: a new text is judged on another thread meanwhile. When the
    /// future is dropped, the verdict is too.
    pub async fn admit(&self, text: &str) -> Result<Arc<Statement>, Refusal> {
        if let Some(statement) = self.known(text) {
            return Ok(statement);
        }
        self.must_fit(text)?;
        let seat = SEATS.acquire().await;
        let (answer, verdict) = oneshot::channel();
        let (dialect, grants, row) = (self.dialect, Arc::clone(&self.grants), self.row);
        let own = text.to_owned();
        let judging = judges_desk().spawn(move || {
            // Nobody may be waiting any more, which is no loss.
            let _ = answer.send(judge(dialect, &grants, row, &own));
            drop(seat);
        });
        match judging {
            Ok(_) => self.keep(text, verdict.await.unwrap_or_else(|_| Err(defect()))),
            Err(error) => Err(no_thread(&error)),
        }
    }

    fn known(&self, text: &str) -> Option<Arc<Statement>> {
        self.lock().statements.get(text).map(Arc::clone)
    }

    /// Two lanes may judge the same new text at the same time: cheaper than holding the lock while parsing.
    fn keep(&self, text: &str, verdict: Checked<Statement>) -> Checked<Arc<Statement>> {
        let statement = Arc::new(verdict?);
        self.lock().keep(text, &statement);
        Ok(statement)
    }

    fn must_fit(&self, text: &str) -> Checked {
        if text.len() <= self.max_statement_bytes {
            return Ok(());
        }
        Err(Refusal::whole(
            code::TOO_LARGE,
            format!(
                "the statement has {} bytes, {} are allowed",
                text.len(),
                self.max_statement_bytes
            ),
            "pass long values as parameters, or split the statement",
        ))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allowed> {
        // The cache is whole after every step, so a panic elsewhere does not make it wrong.
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread with a stack that is large enough for any statement.
fn judges_desk() -> thread::Builder {
    thread::Builder::new()
        .name("sql-rules".to_owned())
        .stack_size(STACK_BYTES)
}

/// A panic while judging is a defect of the parser or of these rules: what cannot be judged does not run.
fn defect() -> Refusal {
    Refusal::whole(
        code::UNDECIDED,
        "the statement could not be judged",
        "this is a defect of the host: please report the statement",
    )
}

fn no_thread(error: &std::io::Error) -> Refusal {
    Refusal::whole(
        code::UNDECIDED,
        format!("the statement could not be judged: no thread to judge it on ({error})"),
        "raise the limit of threads of the host's process; the message can be retried",
    )
}

impl Allowed {
    fn keep(&mut self, text: &str, statement: &Arc<Statement>) {
        if self.max_statements == 0 {
            return;
        }
        self.text_bytes += text.len();
        if self
            .statements
            .put(text.into(), Arc::clone(statement))
            .is_some()
        {
            self.text_bytes -= text.len();
        }
        while self.statements.len() > self.max_statements || self.text_bytes > MAX_CACHE_BYTES {
            let Some((oldest, _)) = self.statements.pop_lru() else {
                break;
            };
            self.text_bytes -= oldest.len();
        }
    }
}

/// Judges one text: the whole pipeline of this module, without the cache.
fn judge(dialect: Dialect, grants: &Grants, row: RowBounds, text: &str) -> Checked<Statement> {
    kind(text)?;
    let pieces = lexer::cut(dialect, text)?;
    let parameters = parameters(dialect, &pieces)?;
    let tree = parse(dialect, &pieces)?;
    let mut walk = Walk::new(dialect, grants, &pieces);
    let outline = walk.statement(&tree)?;
    let walked = walk.finish();
    coverage::check(dialect, &pieces, &walked.understood)?;
    let light = must_be_bounded(dialect, row, &pieces, &walked)?;
    Ok(Statement {
        text: pieces.text.to_owned(),
        kind: outline.kind,
        returns_rows: outline.returns_rows,
        parameters,
        reads: walked.reads,
        writes: walked.writes,
        merge: merge::shape(&pieces),
        named_columns: walked.named_columns.into_iter().collect(),
        built_ins: walked.built_ins,
        granted: grants.function_names(),
        proven: AtomicBool::new(false),
        cost: walked.cost,
        row,
        light,
        widths: OnceLock::new(),
        plainness: Plainness::default(),
        short: walked.short.into_iter().collect(),
        placeholders: pieces
            .iter()
            .filter_map(|piece| match piece.kind {
                lexer::PieceKind::Parameter(number) => Some(Placeholder {
                    start: piece.start,
                    end: piece.end,
                    number,
                }),
                _ => None,
            })
            .collect(),
    })
}

/// Refuses a statement of which one row would cost too much whatever is bound and whatever the tables hold, and tells
/// whether it costs little whatever they hold.
fn must_be_bounded(
    dialect: Dialect,
    row: RowBounds,
    pieces: &Pieces,
    walked: &walk::Walked,
) -> Checked<bool> {
    let of = |bytes: u64, number: bool| Width { bytes, number };
    let excess = match dialect {
        // The store cuts the values of a statement by its calls; here is left what is written out many times.
        Dialect::Sqlite => {
            let words = (0..pieces.len()).map(|index| pieces.text(index));
            let longest = sqlite_value_bytes(words).min(SQLITE_VALUE_BYTES);
            let parameter = |number: u16| {
                let short = walked.short.contains(&number);
                of(if short { SMALL_BYTES } else { longest }, false)
            };
            let column = |_| Some(of(longest, false));
            let weight = walked.cost.weigh(parameter, column, longest as f64);
            (weight.nanoseconds > SQLITE_NANOSECONDS).then_some(Excess::Time)
        }
        Dialect::Postgres | Dialect::Mysql => {
            let column = |_| Some(SHORT_PARAMETER);
            let weight = walked.cost.weigh(|_| SHORT_PARAMETER, column, LONGEST);
            weight.excess(row)
        }
    };
    if let Some(excess) = excess {
        let (message, help) = excess.tell(dialect);
        return Err(Refusal::whole(code::TOO_COSTLY, message, help));
    }
    if dialect == Dialect::Sqlite {
        return Ok(true);
    }
    let column = |_| Some(of(ASSUMED_BYTES, false));
    let weight = walked
        .cost
        .weigh(|_| of(SMALL_BYTES, false), column, LONGEST);
    Ok(weight.excess(row).is_none())
}

/// Names the kind of statement that is refused, before its details are: `COMMIT` should not hear about commas.
fn kind(text: &str) -> Checked {
    let start = text.len() - text.trim_start().len();
    let length = text[start..]
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(text.len() - start);
    let word = &text[start..start + length];
    let allowed = ["select", "insert", "update", "delete", "with", "values"];
    if length == 0 || allowed.iter().any(|kind| word.eq_ignore_ascii_case(kind)) {
        return Ok(());
    }
    Err(Refusal::at(
        text,
        start,
        start + length,
        code::KIND,
        format!("{} is not allowed", word.to_ascii_uppercase()),
        "only SELECT, INSERT, UPDATE and DELETE are; transactions and sessions belong to the host, the schema to migrations",
    ))
}

/// The highest parameter, after checking that every lower one is used too: a database cannot tell the type of one
/// that never appears.
fn parameters(dialect: Dialect, pieces: &Pieces) -> Checked<u16> {
    let used: BTreeSet<u16> = pieces
        .iter()
        .filter_map(|piece| match piece.kind {
            lexer::PieceKind::Parameter(number) => Some(number),
            _ => None,
        })
        .collect();
    let Some(&highest) = used.last() else {
        return Ok(0);
    };
    if highest > dialect.max_parameters() {
        return Err(Refusal::whole(
            code::PARAMETER,
            format!(
                "${highest} is more than the {} parameters that {} takes",
                dialect.max_parameters(),
                dialect.name()
            ),
            "split the statement",
        ));
    }
    if let Some(missing) = (1..=highest).find(|number| !used.contains(number)) {
        return Err(Refusal::whole(
            code::PARAMETER,
            format!("${highest} is used, but ${missing} is not"),
            "number the parameters $1, $2, … without a gap",
        ));
    }
    Ok(highest)
}

fn parse(dialect: Dialect, pieces: &Pieces) -> Checked<sqlparser::ast::Statement> {
    let grammar: &dyn sqlparser::dialect::Dialect = match dialect {
        Dialect::Postgres => &PostgreSqlDialect {},
        Dialect::Sqlite => &SQLiteDialect {},
        Dialect::Mysql => &MySqlDialect {},
    };
    let mut parser = Parser::new(grammar)
        .with_recursion_limit(PARSER_DEPTH)
        .with_tokens_with_locations(pieces.tokens.clone());
    // Not `parse_statements`: it stops at the word END and forgets the rest.
    let parsed = parser.parse_statement();
    // Where the parser stopped is the best place to point at, whatever it says.
    let stopped = parser
        .get_current_index()
        .min(pieces.len().saturating_sub(1));
    match parsed {
        Ok(tree) if parser.peek_token_ref().token == Token::EOF => Ok(tree),
        Ok(_) => Err(pieces.refuse(
            stopped + 1,
            code::SYNTAX,
            "the statement should end before this",
            "send one plain statement per call, and write AS before an alias",
        )),
        Err(ParserError::RecursionLimitExceeded) => Err(pieces.refuse(
            stopped,
            code::TOO_DEEP,
            "the statement is nested too deeply",
            "flatten it, or split it",
        )),
        Err(ParserError::TokenizerError(reason) | ParserError::ParserError(reason)) => {
            // What the parser found may be a string literal, and its position counts pieces: both stay out.
            let expected = reason
                .strip_prefix("Expected: ")
                .and_then(|rest| rest.split_once(", found:"))
                .map(|(expected, _)| format!(": expected {expected} near here"))
                .unwrap_or_default();
            Err(pieces.refuse(
                stopped,
                code::SYNTAX,
                format!("the statement is not understood{expected}"),
                "what cannot be checked does not run: write it in plainer SQL",
            ))
        }
    }
}
