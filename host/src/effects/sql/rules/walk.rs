//! The state of a walk over the parser's tree: what was understood, what was touched, which names are in scope.
//!
//! The walk itself is spread over the files named after what they judge. Each takes nodes apart field by field,
//! without `..`, so that a parser that learns something new does not compile until somebody has judged it.

use std::collections::BTreeSet;

use sqlparser::ast::{Ident, ObjectName, ObjectNamePart, Statement as Tree};

use super::cost::{Builder, Cost};
use super::coverage::Understood;
use super::grants::{Grants, Named, Table, fold, owner, place};
use super::lexer::{PieceKind, Pieces};
use super::names::{Columns, Cte, Source};
use super::refusal::{Checked, Refusal, code};
use super::{Dialect, Kind, words};
use crate::store::{BuiltIns, NamedColumn};

/// How deep the walk follows the tree: deeper than any statement a person writes, and shallow enough for the stack.
const MAX_DEPTH: usize = 150;

pub(super) struct Walk<'a> {
    pub dialect: Dialect,
    pub grants: &'a Grants,
    pub pieces: &'a Pieces<'a>,
    understood: Vec<Understood>,
    reads: BTreeSet<Table>,
    writes: BTreeSet<Table>,
    /// Common table expressions in scope, innermost last.
    pub scope: Vec<Cte>,
    /// Names of those that are written further on but can be seen already, folded.
    pub later: Vec<String>,
    /// The place in `scope` of the one whose query comes next, while it may refer to itself.
    pub recursing: Option<usize>,
    /// What stands in the FROM of each query around here, innermost last.
    pub frames: Vec<Vec<Source>>,
    pub named_columns: BTreeSet<NamedColumn>,
    /// Parameters that something is searched for, or that patterns are made of.
    pub short: BTreeSet<u16>,
    /// What a row costs.
    pub cost: Builder,
    /// The names that have to mean what the database has built in.
    pub built_ins: BuiltIns,
    /// What stands in all FROMs so far, written out.
    pub sources: u64,
    /// The names so far, written out.
    pub weight: u64,
    /// Inside the FROM of a query that locks the rows it reads.
    pub locking: bool,
    depth: usize,
    /// The last name judged: where a node without a position of its own is reported.
    here: usize,
}

/// What a walk found.
pub(super) struct Walked {
    pub understood: Vec<Understood>,
    pub reads: BTreeSet<Table>,
    pub writes: BTreeSet<Table>,
    pub named_columns: BTreeSet<NamedColumn>,
    pub short: BTreeSet<u16>,
    pub cost: Cost,
    pub built_ins: BuiltIns,
}

/// What kind of statement was walked.
pub(super) struct Outline {
    pub kind: Kind,
    pub returns_rows: bool,
    /// Of the rows that it returns.
    pub columns: Columns,
}

impl<'a> Walk<'a> {
    pub fn new(dialect: Dialect, grants: &'a Grants, pieces: &'a Pieces<'a>) -> Self {
        Self {
            dialect,
            grants,
            pieces,
            understood: vec![Understood::No; pieces.len()],
            reads: BTreeSet::new(),
            writes: BTreeSet::new(),
            scope: Vec::new(),
            later: Vec::new(),
            recursing: None,
            frames: Vec::new(),
            named_columns: BTreeSet::new(),
            short: BTreeSet::new(),
            cost: Builder::new(),
            built_ins: BuiltIns::default(),
            sources: 0,
            weight: 0,
            locking: false,
            depth: 0,
            here: 0,
        }
    }

    pub fn finish(self) -> Walked {
        Walked {
            understood: self.understood,
            reads: self.reads,
            writes: self.writes,
            named_columns: self.named_columns,
            short: self.short,
            cost: self.cost.finish(),
            built_ins: self.built_ins,
        }
    }

    /// The four kinds of statements that may run.
    pub fn statement(&mut self, tree: &Tree) -> Checked<Outline> {
        match tree {
            Tree::Query(query) => self.query(query),
            Tree::Insert(insert) => self.insert(insert),
            Tree::Update(update) => self.update(update),
            Tree::Delete(delete) => self.delete(delete),
            _ => Err(self.pieces.refuse(
                0,
                code::KIND,
                "this kind of statement is not allowed",
                "only SELECT, INSERT, UPDATE and DELETE are",
            )),
        }
    }

    /// These signs have to mean the operators of the database itself, which only Postgres lets others have, too.
    pub fn means_operators(&mut self, signs: &[&str]) {
        if self.dialect == Dialect::Postgres {
            let words = |sign: &&&str| !sign.contains(|c: char| c.is_ascii_alphabetic());
            let signs = signs.iter().filter(words).map(|sign| (*sign).to_owned());
            self.built_ins.operators.extend(signs);
        }
    }

    pub fn means_function(&mut self, name: &str) {
        if self.dialect == Dialect::Postgres {
            self.built_ins.functions.insert(name.to_owned());
            if name == "nullif" {
                self.means_operators(&["="]);
            }
        }
    }

    /// Goes one level down, within bounds.
    pub fn deeper<T>(&mut self, walk: impl FnOnce(&mut Self) -> Checked<T>) -> Checked<T> {
        if self.depth >= MAX_DEPTH {
            return Err(self.refuse(
                code::TOO_DEEP,
                "the statement is nested too deeply",
                "flatten it, or split it",
            ));
        }
        self.depth += 1;
        let result = walk(self);
        self.depth -= 1;
        result
    }

    /// A refusal at the last name that was judged.
    pub fn refuse(
        &self,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Refusal {
        self.pieces.refuse(self.here, code, message, help)
    }

    /// A clause that is not allowed.
    pub fn clause<T>(&self, what: &str) -> Checked<T> {
        Err(self.refuse(
            code::CLAUSE,
            format!("{what} is not allowed on {}", self.dialect.name()),
            "leave it out",
        ))
    }

    /// Refuses a clause unless it is absent.
    pub fn absent(&self, absent: bool, what: &str) -> Checked {
        if absent { Ok(()) } else { self.clause(what) }
    }

    /// A name that stands for itself: a column, an alias, a window, a constraint.
    pub fn name(&mut self, ident: &Ident) -> Checked {
        let index = self.understand(ident, Understood::Name)?;
        self.unreserved(index, ident)
    }

    /// A name that may be followed by a list of columns.
    pub fn head(&mut self, ident: &Ident) -> Checked {
        let index = self.understand(ident, Understood::Head)?;
        self.unreserved(index, ident)
    }

    /// A word that is grammar here although the parser took it for a name.
    pub fn keyword(&mut self, ident: &Ident) -> Checked {
        self.understand(ident, Understood::Name).map(|_| ())
    }

    fn understand(&mut self, ident: &Ident, as_what: Understood) -> Checked<usize> {
        // A name the parser made up, or took from a string literal, has no piece of its own.
        let index = self.pieces.index(ident.span).filter(|index| {
            let quoted = match self.pieces.get(*index).map(|piece| piece.kind) {
                Some(PieceKind::Word) => false,
                Some(PieceKind::Quoted) => true,
                _ => return false,
            };
            let text = self.pieces.text(*index);
            ident.quote_style.is_some() == quoted
                && text.trim_matches(['"', '`']) == ident.value.as_str()
        });
        let Some(index) = index else {
            return Err(self.refuse(
                code::SYNTAX,
                "a name is written in a way that is not understood",
                "a string literal is no name; quote names the way the standard does",
            ));
        };
        self.here = index;
        self.understood[index] = as_what;
        Ok(index)
    }

    fn unreserved(&self, index: usize, ident: &Ident) -> Checked {
        if ident.quote_style.is_none() && words::is_reserved(self.dialect, &ident.value) {
            return Err(self.pieces.refuse(
                index,
                code::NAME,
                format!("`{}` is a reserved word of {}", ident.value, self.dialect.name()),
                "quote it if it is a name; for the time use context.now(), users and sessions are the host's",
            ));
        }
        Ok(())
    }

    /// One or two names as a table or function.
    fn place(&self, what: Named, parts: &[&Ident]) -> Checked<Table> {
        let folded = |ident: &Ident| {
            fold(
                self.dialect,
                what,
                &ident.value,
                ident.quote_style.is_some(),
            )
        };
        let table = match parts {
            [name] => place(self.dialect, None, folded(name)),
            [schema, name] => place(self.dialect, Some(folded(schema)), folded(name)),
            _ => {
                return Err(self.refuse(
                    code::NAME,
                    "this name has too many parts",
                    "write `name` or `schema.name`",
                ));
            }
        };
        if let Some(reason) = owner(self.dialect, what, &table) {
            return Err(self.refuse(
                code::NAME,
                format!("`{table}` {reason}"),
                "use your own tables; the host keeps its own",
            ));
        }
        Ok(table)
    }

    /// The parts of a qualified name, each of them understood; the last one as a head.
    fn parts<'n>(&mut self, name: &'n ObjectName) -> Checked<Vec<&'n Ident>> {
        let ObjectName(parts) = name;
        let mut idents = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            match part {
                ObjectNamePart::Identifier(ident) if index + 1 == parts.len() => {
                    self.head(ident)?
                }
                ObjectNamePart::Identifier(ident) => self.name(ident)?,
                ObjectNamePart::Function(_) => return self.clause("a computed name"),
            }
            if let ObjectNamePart::Identifier(ident) = part {
                idents.push(ident);
            }
        }
        Ok(idents)
    }

    /// A table that is read, unless the name is that of a common table expression; and its columns.
    pub fn read_table(&mut self, name: &ObjectName) -> Checked<(Table, Columns)> {
        let parts = self.parts(name)?;
        if let [ident] = parts.as_slice() {
            let folded = self.folded(ident);
            if self.later.contains(&folded) {
                return self
                    .clause("a common table expression before the place where it is written");
            }
            if let Some(cte) = self.scope.iter().rfind(|cte| cte.name == folded) {
                let (columns, behind) = (cte.columns.clone(), cte.sources);
                self.count_sources(behind)?;
                let own = Table {
                    schema: None,
                    name: folded,
                };
                return Ok((own, columns));
            }
        }
        self.count_sources(0)?;
        let table = self.place(Named::Table, &parts)?;
        if self.locking {
            self.record_write(table.clone(), "locks rows of")?;
        } else if self.grants.may_read(&table) {
            self.reads.insert(table.clone());
        } else {
            return Err(self.not_granted(&table, "reads", "read"));
        }
        Ok((table.clone(), Columns::of_table(table)))
    }

    /// A table that is written. It is always a table: names of common table expressions do not hide targets.
    pub fn write_table(&mut self, name: &ObjectName) -> Checked<Table> {
        let parts = self.parts(name)?;
        let table = self.place(Named::Table, &parts)?;
        self.record_write(table.clone(), "writes")?;
        Ok(table)
    }

    fn record_write(&mut self, table: Table, does: &str) -> Checked {
        if !self.grants.may_write(&table) {
            return Err(self.not_granted(&table, does, "write"));
        }
        self.writes.insert(table);
        Ok(())
    }

    fn not_granted(&self, table: &Table, does: &str, list: &str) -> Refusal {
        self.refuse(
            code::TABLE,
            format!("the statement {does} `{table}`, which the consumer is not granted"),
            format!("add `{table}` to grant.{list} of the consumer"),
        )
    }

    /// A function or a type that is not built in, by its parts; reserved words may name functions.
    pub fn callee(&mut self, name: &ObjectName) -> Checked<Table> {
        let ObjectName(parts) = name;
        let mut idents = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                ObjectNamePart::Identifier(ident) => {
                    self.understand(ident, Understood::Head)?;
                    idents.push(ident);
                }
                ObjectNamePart::Function(_) => return self.clause("a computed name"),
            }
        }
        // A quoted name is never a built-in here: MySQL looks it up among stored functions.
        self.place(Named::Function, &idents)
    }

    /// Calls of a function for which the parser keeps no name; the caller has judged it.
    pub fn understand_calls(&mut self, function: &str) {
        for index in 0..self.pieces.len() {
            if self.pieces.is(index, function) && self.pieces.is(index + 1, "(") {
                self.understood[index] = Understood::Head;
            }
        }
    }

    /// A name of one part, such as a column in a list.
    pub fn single(&mut self, name: &ObjectName) -> Checked {
        match name.0.as_slice() {
            [ObjectNamePart::Identifier(ident)] => self.name(ident),
            _ => self.clause("a qualified name here"),
        }
    }

    /// A column, as `column`, `table.column` or `schema.table.column`.
    pub fn column(&mut self, parts: &[&Ident]) -> Checked {
        self.qualified(parts)?;
        self.weigh_name(parts)?;
        self.must_be_column(parts)
    }

    fn qualified(&mut self, parts: &[&Ident]) -> Checked {
        if parts.len() > 3 {
            return self.clause("a name of more than three parts");
        }
        parts.iter().try_for_each(|part| self.name(part))
    }

    /// A column to assign to, or what stands before `.*`: neither is ever read as a call.
    pub fn column_name(&mut self, name: &ObjectName) -> Checked {
        let mut parts = Vec::with_capacity(name.0.len());
        for part in &name.0 {
            match part {
                ObjectNamePart::Identifier(ident) => parts.push(ident),
                ObjectNamePart::Function(_) => return self.clause("a computed name"),
            }
        }
        self.qualified(&parts)
    }

    /// An alias. Without AS the database could read a keyword of its own instead.
    pub fn alias(&mut self, ident: &Ident) -> Checked {
        self.head(ident)?;
        let index = self.here;
        let explicit = index > 0 && self.pieces.is(index - 1, "as");
        if !explicit && ident.quote_style.is_none() && words::is_grammar(&ident.value) {
            return Err(self.refuse(
                code::NAME,
                format!("`{}` may be read as a keyword", ident.value),
                "write AS before the alias",
            ));
        }
        Ok(())
    }
}
