//! INSERT, UPDATE and DELETE.

use sqlparser::ast::{
    Assignment, AssignmentTarget, ConflictTarget, Delete, DoUpdate, FromTable, Insert, OnConflict,
    OnConflictAction, OnInsert, SqliteOnConflict, TableAliasWithoutColumns, TableObject,
    TableWithJoins, Update, UpdateTableFromKind,
};

use super::grants::Table;
use super::names::Columns;
use super::refusal::{Checked, code};
use super::walk::{Outline, Walk};
use super::{Dialect, Kind};

impl Walk<'_> {
    pub fn insert(&mut self, insert: &Insert) -> Checked<Outline> {
        let Insert {
            insert_token: _,
            optimizer_hints,
            or,
            ignore: _,
            into,
            table,
            table_alias,
            columns,
            overwrite,
            source,
            assignments,
            partitioned,
            after_columns,
            has_table_keyword,
            on,
            returning,
            output,
            replace_into,
            priority,
            insert_alias,
            settings,
            format_clause,
            multi_table_insert_type,
            multi_table_into_clauses,
            multi_table_when_clauses,
            multi_table_else_clause,
        } = insert;
        self.absent(optimizer_hints.is_empty(), "an optimizer hint")?;
        self.conflict_clause(or.as_ref())?;
        self.absent(!replace_into, "REPLACE")?;
        self.absent(*into, "INSERT without INTO")?;
        self.absent(!overwrite, "INSERT OVERWRITE")?;
        self.absent(partitioned.is_none(), "PARTITION")?;
        self.absent(after_columns.is_empty(), "a second list of columns")?;
        self.absent(!has_table_keyword, "INSERT INTO TABLE")?;
        self.absent(output.is_none(), "OUTPUT")?;
        self.absent(priority.is_none(), "a priority")?;
        self.absent(insert_alias.is_none(), "an alias of the new row")?;
        self.absent(settings.is_none(), "SETTINGS")?;
        self.absent(format_clause.is_none(), "FORMAT")?;
        let single = multi_table_insert_type.is_none()
            && multi_table_into_clauses.is_empty()
            && multi_table_when_clauses.is_empty()
            && multi_table_else_clause.is_none();
        self.absent(single, "INSERT into several tables")?;
        let target = match table {
            TableObject::TableName(name) => self.write_table(name)?,
            TableObject::TableFunction(_) | TableObject::TableQuery(_) => {
                return self.clause("a target that is not a table");
            }
        };
        if let Some(TableAliasWithoutColumns { explicit, alias }) = table_alias {
            self.absent(*explicit, "an alias of the target without AS")?;
            self.alias(alias)?;
        }
        for column in columns {
            self.single(column)?;
        }
        if let Some(source) = source {
            let outline = self.outside_from(|walk| walk.query(source))?;
            self.only_select(&outline)?;
        }
        // The rows to insert are made without a look at the target; what follows sees it.
        self.frames.push(Vec::new());
        match table_alias {
            Some(named) => self.add_row(&self.folded(&named.alias), &target),
            None => self.add_source(&target, Columns::of_table(target.clone()), None),
        }
        self.assignments(assignments)?;
        match on {
            None => {}
            Some(OnInsert::DuplicateKeyUpdate(assignments)) => {
                self.absent(self.dialect == Dialect::Mysql, "ON DUPLICATE KEY UPDATE")?;
                self.assignments(assignments)?;
            }
            Some(OnInsert::OnConflict(on_conflict)) => {
                self.add_row("excluded", &target);
                self.on_conflict(on_conflict)?;
            }
            // The parser reserves the right to add kinds.
            Some(_) => return self.clause("this ON clause"),
        }
        self.write_outline(Kind::Insert, &target, returning.as_deref())
    }

    fn on_conflict(&mut self, on_conflict: &OnConflict) -> Checked {
        let OnConflict {
            conflict_target,
            action,
        } = on_conflict;
        self.absent(self.dialect != Dialect::Mysql, "ON CONFLICT")?;
        match conflict_target {
            None => {}
            Some(ConflictTarget::Columns(columns)) => {
                columns.iter().try_for_each(|column| self.name(column))?;
            }
            Some(ConflictTarget::OnConstraint(name)) => self.single(name)?,
        }
        match action {
            OnConflictAction::DoNothing => Ok(()),
            OnConflictAction::DoUpdate(DoUpdate {
                assignments,
                selection,
            }) => {
                self.assignments(assignments)?;
                self.optional(selection.as_ref())
            }
        }
    }

    pub fn update(&mut self, update: &Update) -> Checked<Outline> {
        let Update {
            update_token: _,
            optimizer_hints,
            table,
            assignments,
            from,
            selection,
            returning,
            output,
            or,
            order_by,
            limit,
        } = update;
        self.absent(optimizer_hints.is_empty(), "an optimizer hint")?;
        self.conflict_clause(or.as_ref())?;
        self.absent(output.is_none(), "OUTPUT")?;
        let TableWithJoins { relation, joins } = table;
        self.frames.push(Vec::new());
        let target = self.target(relation)?;
        self.absent(joins.is_empty(), "UPDATE of a join (use a subquery)")?;
        match from {
            None => {}
            Some(UpdateTableFromKind::AfterSet(tables)) => {
                self.absent(self.dialect != Dialect::Mysql, "UPDATE … FROM")?;
                tables
                    .iter()
                    .try_for_each(|table| self.table_with_joins(table))?;
            }
            Some(UpdateTableFromKind::BeforeSet(_)) => return self.clause("FROM before SET"),
        }
        self.assignments(assignments)?;
        self.optional(selection.as_ref())?;
        self.order_by_expressions(order_by)?;
        self.optional(limit.as_ref())?;
        self.write_outline(Kind::Update, &target, returning.as_deref())
    }

    pub fn delete(&mut self, delete: &Delete) -> Checked<Outline> {
        let Delete {
            delete_token: _,
            optimizer_hints,
            tables,
            from,
            using,
            selection,
            returning,
            output,
            order_by,
            limit,
        } = delete;
        self.absent(optimizer_hints.is_empty(), "an optimizer hint")?;
        self.absent(tables.is_empty(), "DELETE from several tables")?;
        self.absent(output.is_none(), "OUTPUT")?;
        let from = match from {
            FromTable::WithFromKeyword(from) => from,
            FromTable::WithoutKeyword(_) => return self.clause("DELETE without FROM"),
        };
        let [TableWithJoins { relation, joins }] = from.as_slice() else {
            return self.clause("DELETE from several tables");
        };
        self.absent(joins.is_empty(), "DELETE from a join (use a subquery)")?;
        self.frames.push(Vec::new());
        let target = self.target(relation)?;
        if let Some(using) = using {
            self.absent(self.dialect == Dialect::Postgres, "DELETE … USING")?;
            using
                .iter()
                .try_for_each(|table| self.table_with_joins(table))?;
        }
        self.optional(selection.as_ref())?;
        self.order_by_expressions(order_by)?;
        self.optional(limit.as_ref())?;
        self.write_outline(Kind::Delete, &target, returning.as_deref())
    }

    /// The end of a write, and of what it sees.
    fn write_outline(
        &mut self,
        kind: Kind,
        target: &Table,
        returning: Option<&[sqlparser::ast::SelectItem]>,
    ) -> Checked<Outline> {
        let columns = match returning {
            Some(items) => {
                // Since version 18 the row before and the row after have names.
                self.add_row("old", target);
                self.add_row("new", target);
                self.select_items(items)?
            }
            None => Columns::default(),
        };
        self.frames.pop();
        Ok(Outline {
            kind,
            returns_rows: returning.is_some(),
            columns,
        })
    }

    /// `OR IGNORE` skips a row; the others end or undo more than the statement, or delete rows in passing.
    fn conflict_clause(&self, or: Option<&SqliteOnConflict>) -> Checked {
        match or {
            None => Ok(()),
            Some(SqliteOnConflict::Ignore) => {
                self.absent(self.dialect == Dialect::Sqlite, "OR IGNORE")
            }
            Some(
                SqliteOnConflict::Rollback
                | SqliteOnConflict::Abort
                | SqliteOnConflict::Fail
                | SqliteOnConflict::Replace,
            ) => Err(self.refuse(
                code::CLAUSE,
                "OR ROLLBACK, FAIL, ABORT and REPLACE are not allowed: the transaction is the host's, and replacing deletes rows unseen",
                "use INSERT … ON CONFLICT DO UPDATE, or OR IGNORE",
            )),
        }
    }

    fn assignments(&mut self, assignments: &[Assignment]) -> Checked {
        for Assignment { target, value } in assignments {
            match target {
                AssignmentTarget::ColumnName(name) => self.column_name(name)?,
                AssignmentTarget::Tuple(names) => {
                    names.iter().try_for_each(|name| self.column_name(name))?;
                }
            }
            self.value_or_default(value)?;
        }
        Ok(())
    }
}
