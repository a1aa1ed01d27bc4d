//! What a qualified name stands for on PostgreSQL, where `u.f` is a column of `u` if there is one, and else a call
//! of `f` with the row of `u`.
//!
//! A call in disguise would pass the list of functions unseen, so a qualified name has to be a column for certain:
//! one that the text itself names, in a list of columns or as the output of a subquery, or one that the database
//! knows of a table, which is then asked before the statement runs for the first time ([`NamedColumn`]). Where the
//! text leaves open what a name refers to, it has to be a column of everything it could refer to.
//!
//! The other databases know no such calls; there nothing is resolved.

use std::collections::BTreeSet;

use sqlparser::ast::{Expr, Function, Ident, ObjectNamePart, SelectItem, TableAlias};

use super::Dialect;
use super::grants::{Named, Table, fold, place};
use super::refusal::{Checked, code};
use super::walk::Walk;
use crate::store::NamedColumn;

/// What may stand in all FROMs of a statement, with common table expressions written out at each reference.
const MAX_SOURCES: u64 = 500;
/// How many names a statement may have when each is replaced by the expression that it stands for.
const MAX_WEIGHT: u64 = 50_000;

/// The columns of something that stands in FROM, as far as they are known: a name that is not among them may still
/// be one.
#[derive(Clone, Default, Debug)]
pub(super) struct Columns {
    names: BTreeSet<String>,
    /// And all columns of these tables.
    of: BTreeSet<Table>,
    /// How many names the largest expression behind one of them has, written out.
    pub weight: u64,
    /// The select lists that make them.
    pub nodes: BTreeSet<u16>,
}

impl Columns {
    pub fn of_table(table: Table) -> Self {
        Self {
            of: BTreeSet::from([table]),
            ..Self::default()
        }
    }

    /// Columns of which no more is known than the select lists that make them.
    pub fn of_nodes(nodes: BTreeSet<u16>) -> Self {
        Self {
            nodes,
            ..Self::default()
        }
    }

    /// How the columns of VALUES are called.
    pub fn of_values(width: usize, weight: u64, node: u16) -> Self {
        Self {
            names: (1..=width)
                .map(|number| format!("column{number}"))
                .collect(),
            weight,
            nodes: BTreeSet::from([node]),
            ..Self::default()
        }
    }

    fn add(&mut self, more: &Columns) {
        self.names.extend(more.names.iter().cloned());
        self.of.extend(more.of.iter().cloned());
        self.weight = self.weight.max(more.weight);
        self.nodes.extend(&more.nodes);
    }
}

/// A common table expression in scope.
#[derive(Debug)]
pub(super) struct Cte {
    /// Folded.
    pub name: String,
    pub columns: Columns,
    /// What stands in all FROMs of its query, written out.
    pub sources: u64,
}

impl Cte {
    /// Names the columns, unless a list has.
    pub fn name_columns(&mut self, columns: &Columns) {
        if self.columns.names.is_empty() {
            let nodes = std::mem::take(&mut self.columns.nodes);
            self.columns = columns.clone();
            self.columns.nodes.extend(nodes);
        }
    }
}

/// Something in FROM, or a row that the database gives a name to.
#[derive(Debug)]
pub(super) struct Source {
    /// Folded; what stands before the point. Empty for what has no name.
    name: String,
    /// The table, where it goes by its own name.
    table: Option<Table>,
    columns: Columns,
}

impl Walk<'_> {
    /// Something stands in FROM under its alias, or under its own name.
    pub fn add_source(&mut self, own: &Table, columns: Columns, alias: Option<&TableAlias>) {
        let source = match alias {
            None => Source {
                name: own.name.clone(),
                table: Some(own.clone()),
                columns,
            },
            Some(alias) => Source {
                name: self.folded(&alias.name),
                table: None,
                columns: self.renamed(columns, alias),
            },
        };
        self.innermost().push(source);
    }

    /// The same for what has no name of its own: a subquery.
    pub fn add_unnamed(&mut self, columns: Columns, alias: Option<&TableAlias>) {
        let nameless = Table {
            schema: None,
            name: String::new(),
        };
        self.add_source(&nameless, columns, alias);
    }

    /// A row that goes by a name of its own beside the table it belongs to, such as `excluded`.
    pub fn add_row(&mut self, name: &str, table: &Table) {
        let source = Source {
            name: name.to_owned(),
            table: None,
            columns: Columns::of_table(table.clone()),
        };
        self.innermost().push(source);
    }

    /// What a name weighs: as much as the largest expression that it may stand for.
    pub fn weigh_name(&mut self, parts: &[&Ident]) -> Checked {
        let sources = self.frames.iter().flatten();
        let nodes = sources.flat_map(|source| source.columns.nodes.iter().copied());
        let nodes: BTreeSet<u16> = nodes.collect();
        if let Some(last) = parts.last() {
            let column = self.folded(last);
            self.cost.name(&column, &nodes);
        }
        let sources = self.frames.iter().flatten();
        let heaviest = sources.map(|source| source.columns.weight).max();
        self.weight = self.weight.saturating_add(heaviest.unwrap_or(1).max(1));
        self.must_stay_small()
    }

    /// Counts something in a FROM, with all that stands behind it.
    pub fn count_sources(&mut self, behind: u64) -> Checked {
        self.sources = self.sources.saturating_add(1).saturating_add(behind);
        self.must_stay_small()
    }

    /// Databases write subqueries out where they are named, before they look at a clock: a short text whose names
    /// double at each step would take all memory there is.
    fn must_stay_small(&self) -> Checked {
        if self.sources <= MAX_SOURCES && self.weight <= MAX_WEIGHT {
            return Ok(());
        }
        Err(self.refuse(
            code::TOO_DEEP,
            "the statement grows too large when its subqueries are written out",
            "name each subquery once, or split the statement",
        ))
    }

    fn innermost(&mut self) -> &mut Vec<Source> {
        if self.frames.is_empty() {
            self.frames.push(Vec::new());
        }
        let innermost = self.frames.len() - 1;
        &mut self.frames[innermost]
    }

    /// How many sources this FROM has so far.
    pub fn source_count(&mut self) -> usize {
        self.innermost().len()
    }

    /// Takes the sources after the first `count` away, and returns all their columns: they are one now.
    pub fn join_sources(&mut self, count: usize) -> Columns {
        let mut columns = Columns::default();
        for source in self.innermost().drain(count..) {
            columns.add(&source.columns);
        }
        columns
    }

    /// The columns behind an alias: a list hides the names of as many as it has, and nobody knows which.
    pub fn renamed(&self, columns: Columns, alias: &TableAlias) -> Columns {
        if alias.columns.is_empty() {
            return columns;
        }
        Columns {
            names: alias
                .columns
                .iter()
                .map(|column| self.folded(&column.name))
                .collect(),
            of: BTreeSet::new(),
            weight: columns.weight,
            nodes: columns.nodes,
        }
    }

    pub fn folded(&self, ident: &Ident) -> String {
        fold(
            self.dialect,
            Named::Table,
            &ident.value,
            ident.quote_style.is_some(),
        )
    }

    /// Insists that a qualified name is a column.
    pub fn must_be_column(&mut self, parts: &[&Ident]) -> Checked {
        let [before @ .., last] = parts else {
            return Ok(());
        };
        if self.dialect != Dialect::Postgres || before.is_empty() {
            return Ok(());
        }
        let column = self.folded(last);
        let candidates = self.referred(before);
        let known = !candidates.is_empty()
            && candidates
                .iter()
                .all(|columns| columns.names.contains(&column) || !columns.of.is_empty());
        if !known {
            return Err(self.refuse(
                code::NAME,
                format!("`{column}` could be read as a call of a function of that name"),
                "qualify only columns that FROM names: write AS alias (column, …), or leave out what stands before the point",
            ));
        }
        for columns in candidates {
            if !columns.names.contains(&column) {
                self.named_columns.insert(NamedColumn {
                    name: column.clone(),
                    tables: columns
                        .of
                        .into_iter()
                        .map(|table| (table.schema, table.name))
                        .collect(),
                });
            }
        }
        Ok(())
    }

    /// The columns of everything that these names could refer to, from the inside out: the database skips what it
    /// does not see from where the name stands.
    fn referred(&self, names: &[&Ident]) -> Vec<Columns> {
        let folded: Vec<String> = names.iter().map(|ident| self.folded(ident)).collect();
        let refers = |source: &&Source| match folded.as_slice() {
            [name] => source.name == *name,
            [schema, name] => {
                let table = place(self.dialect, Some(schema.clone()), name.clone());
                source.table.as_ref() == Some(&table)
            }
            _ => false,
        };
        self.frames
            .iter()
            .flatten()
            .filter(refers)
            .map(|source| source.columns.clone())
            .collect()
    }

    /// How the columns are called that a SELECT or RETURNING makes, the largest of which weighs so much.
    pub fn outputs(&self, items: &[SelectItem], weight: u64, node: u16) -> Columns {
        let mut columns = Columns {
            weight,
            nodes: BTreeSet::from([node]),
            ..Columns::default()
        };
        for item in items {
            match item {
                SelectItem::UnnamedExpr(expression) => {
                    columns.names.extend(self.output_name(expression));
                }
                SelectItem::ExprWithAlias { alias, .. } => {
                    columns.names.insert(self.folded(alias));
                }
                SelectItem::Wildcard(_) => {
                    for source in self.frames.last().into_iter().flatten() {
                        columns.add(&source.columns);
                    }
                }
                SelectItem::QualifiedWildcard(kind, _) => {
                    if let sqlparser::ast::SelectItemQualifiedWildcardKind::ObjectName(name) = kind
                    {
                        let idents: Vec<&Ident> =
                            name.0.iter().filter_map(ObjectNamePart::as_ident).collect();
                        if let [only] = self.referred(&idents).as_slice() {
                            columns.add(only);
                        }
                    }
                }
                SelectItem::ExprWithAliases { .. } => {}
            }
        }
        columns
    }

    /// Source: `FigureColname` in PostgreSQL's parse_target.c, as far as it is plain.
    fn output_name(&self, expression: &Expr) -> Option<String> {
        match expression {
            Expr::Identifier(ident) => Some(self.folded(ident)),
            Expr::CompoundIdentifier(idents) => idents.last().map(|ident| self.folded(ident)),
            Expr::Function(Function { name, .. }) => {
                let last = name.0.last().and_then(ObjectNamePart::as_ident);
                last.map(|ident| self.folded(ident))
            }
            Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => self.output_name(inner),
            _ => None,
        }
    }
}
