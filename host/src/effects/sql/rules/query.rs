//! Queries: SELECT, VALUES, UNION and common table expressions.

use std::collections::BTreeSet;

use sqlparser::ast::{
    Cte, Distinct, Expr, Fetch, GroupByExpr, GroupByWithModifier, LimitClause, LockClause,
    NamedWindowDefinition, NamedWindowExpr, Offset, OrderBy, OrderByExpr, OrderByKind,
    OrderByOptions, OrderBySort, Query, Select, SelectFlavor, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, SetOperator, SetQuantifier, Statement as Tree,
    TableAlias, TableAliasColumnDef, Values, WildcardAdditionalOptions, With,
};

use super::Dialect;
use super::Kind;
use super::cost::RECURSED;
use super::grants::is_host_name;
use super::names::{Columns, Cte as InScope};
use super::refusal::{Checked, code};
use super::walk::{Outline, Walk};

impl Walk<'_> {
    pub fn query(&mut self, query: &Query) -> Checked<Outline> {
        let mark = self.cost.mark();
        let outline = self.deeper(|walk| walk.query_here(query))?;
        self.cost.truncate(mark);
        Ok(outline)
    }

    fn query_here(&mut self, query: &Query) -> Checked<Outline> {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        self.absent(for_clause.is_none(), "FOR XML or FOR JSON")?;
        self.absent(settings.is_none(), "SETTINGS")?;
        self.absent(format_clause.is_none(), "FORMAT")?;
        self.absent(pipe_operators.is_empty(), "a pipe operator")?;
        let scope = self.scope.len();
        let recursing = self.recursing.take();
        if let Some(with) = with {
            self.with(with)?;
        }
        for lock in locks {
            self.lock(lock)?;
        }
        let locking = self.locking;
        self.locking = locking || !locks.is_empty();
        self.frames.push(Vec::new());
        let outline = self.body(body, recursing)?;
        // Only the FROM of this query is locked by it.
        self.locking = false;
        if let Some(order_by) = order_by {
            self.order_by(order_by)?;
        }
        if let Some(limit) = limit_clause {
            self.limit(limit)?;
        }
        if let Some(Fetch {
            with_ties: _,
            percent,
            quantity,
        }) = fetch
        {
            self.absent(!percent, "FETCH … PERCENT")?;
            self.optional(quantity.as_ref())?;
        }
        self.locking = locking;
        self.frames.pop();
        self.scope.truncate(scope);
        Ok(outline)
    }

    fn with(&mut self, with: &With) -> Checked {
        let With {
            with_token: _,
            recursive,
            cte_tables,
        } = with;
        let locking = std::mem::take(&mut self.locking);
        let later = self.later.len();
        if *recursive && self.dialect == Dialect::Postgres {
            // There all of them see each other, whatever their order.
            let names = cte_tables.iter().rev();
            let names: Vec<String> = names.map(|cte| self.folded(&cte.alias.name)).collect();
            self.later.extend(names);
        }
        for cte in cte_tables {
            let Cte {
                alias,
                query,
                from,
                materialized: _,
                closing_paren_token: _,
            } = cte;
            self.absent(from.is_none(), "FROM after a common table expression")?;
            self.table_alias(alias)?;
            let folded = self.folded(&alias.name);
            if self.later.len() > later {
                self.later.pop();
            }
            if is_host_name(&folded) {
                return self.clause("a common table expression with the name of a host's table");
            }
            // Only a recursive one sees itself; without RECURSIVE the same name inside it is a real table. Taking a
            // name for a table where the database would not only asks for a grant too many.
            let own = self.scope.len();
            let before = self.sources;
            if *recursive {
                self.scope.push(InScope {
                    name: folded.clone(),
                    columns: self.renamed(Columns::of_nodes(BTreeSet::from([RECURSED])), alias),
                    sources: 0,
                });
                self.recursing = Some(own);
            }
            let outline = self.query(query)?;
            if self.dialect != Dialect::Postgres {
                self.only_select(&outline)?;
            }
            self.scope.truncate(own);
            self.scope.push(InScope {
                name: folded,
                columns: self.renamed(outline.columns, alias),
                sources: self.sources - before,
            });
        }
        self.later.truncate(later);
        self.locking = locking;
        Ok(())
    }

    fn lock(&mut self, lock: &LockClause) -> Checked {
        let LockClause {
            lock_type: _,
            of,
            nonblock: _,
        } = lock;
        self.absent(self.dialect != Dialect::Sqlite, "a row lock")?;
        match of {
            Some(of) => self.single(of),
            None => Ok(()),
        }
    }

    /// `recursing`: the common table expression that this is the query of, if it sees itself.
    fn body(&mut self, body: &SetExpr, recursing: Option<usize>) -> Checked<Outline> {
        let select = |columns| Outline {
            kind: Kind::Select,
            returns_rows: true,
            columns,
        };
        match body {
            SetExpr::Select(inner) => self.select(inner).map(select),
            SetExpr::Query(inner) => self.query(inner),
            SetExpr::Values(values) => self.values(values).map(select),
            SetExpr::SetOperation {
                left,
                op,
                set_quantifier,
                right,
            } => {
                match op {
                    SetOperator::Union | SetOperator::Except | SetOperator::Intersect => {}
                    SetOperator::Minus => return self.clause("MINUS"),
                }
                match set_quantifier {
                    SetQuantifier::All | SetQuantifier::Distinct | SetQuantifier::None => {}
                    SetQuantifier::ByName
                    | SetQuantifier::AllByName
                    | SetQuantifier::DistinctByName => return self.clause("BY NAME"),
                }
                let mut columns = self.side(left)?.columns;
                // What comes first names the columns of all, and of what sees itself.
                if let Some(cte) = recursing.and_then(|place| self.scope.get_mut(place)) {
                    cte.name_columns(&columns);
                }
                let right = self.side(right)?.columns;
                columns.weight = columns.weight.max(right.weight);
                columns.nodes.extend(right.nodes);
                Ok(select(columns))
            }
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement) => match statement {
                Tree::Insert(insert) => self.insert(insert),
                Tree::Update(update) => self.update(update),
                Tree::Delete(delete) => self.delete(delete),
                _ => self.clause("this statement"),
            },
            SetExpr::Merge(_) => self.clause("MERGE"),
            SetExpr::Table(_) => self.clause("TABLE"),
        }
    }

    /// One side of a set operation, which has a FROM of its own.
    fn side(&mut self, body: &SetExpr) -> Checked<Outline> {
        self.frames.push(Vec::new());
        let outline = self.deeper(|walk| walk.body(body, None))?;
        self.frames.pop();
        self.absent(
            outline.kind == Kind::Select,
            "a write inside a set operation",
        )?;
        Ok(outline)
    }

    fn values(&mut self, values: &Values) -> Checked<Columns> {
        let Values {
            explicit_row,
            value_keyword,
            rows,
        } = values;
        self.absent(!explicit_row, "VALUES ROW")?;
        self.absent(!value_keyword, "VALUE")?;
        let before = self.weight;
        let node = self.cost.node();
        for row in rows {
            let mark = self.cost.mark();
            for value in &row.content {
                self.cost.begin();
                self.value_or_default(value)?;
                self.cost.end(node);
            }
            self.cost.truncate(mark);
        }
        let width = rows.first().map_or(0, |row| row.content.len());
        Ok(Columns::of_values(width, self.weight - before, node))
    }

    /// A value to store, or the word DEFAULT, which the parser takes for a column.
    pub fn value_or_default(&mut self, value: &Expr) -> Checked {
        match value {
            Expr::Identifier(ident)
                if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default") =>
            {
                self.keyword(ident)
            }
            _ => self.outside_from(|walk| walk.expression(value)),
        }
    }

    /// Expressions are not part of the FROM that a row lock covers.
    pub fn outside_from<T>(&mut self, walk: impl FnOnce(&mut Self) -> Checked<T>) -> Checked<T> {
        let locking = std::mem::take(&mut self.locking);
        let result = walk(self);
        self.locking = locking;
        result
    }

    fn select(&mut self, select: &Select) -> Checked<Columns> {
        let Select {
            select_token: _,
            optimizer_hints,
            distinct,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having,
            named_window,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        self.absent(optimizer_hints.is_empty(), "an optimizer hint")?;
        self.absent(
            select_modifiers
                .as_ref()
                .is_none_or(|modifiers| !modifiers.is_any_set()),
            "a SELECT modifier",
        )?;
        self.absent(top.is_none(), "TOP")?;
        self.absent(exclude.is_none(), "EXCLUDE")?;
        self.absent(into.is_none(), "SELECT … INTO")?;
        self.absent(lateral_views.is_empty(), "LATERAL VIEW")?;
        self.absent(prewhere.is_none(), "PREWHERE")?;
        self.absent(connect_by.is_empty(), "CONNECT BY")?;
        self.absent(cluster_by.is_empty(), "CLUSTER BY")?;
        self.absent(distribute_by.is_empty(), "DISTRIBUTE BY")?;
        self.absent(sort_by.is_empty(), "SORT BY")?;
        self.absent(qualify.is_none(), "QUALIFY")?;
        self.absent(value_table_mode.is_none(), "AS STRUCT or AS VALUE")?;
        self.absent(*flavor == SelectFlavor::Standard, "FROM before SELECT")?;
        for table in from {
            self.table_with_joins(table)?;
        }
        self.outside_from(|walk| {
            match distinct {
                None | Some(Distinct::All | Distinct::Distinct) => {}
                Some(Distinct::On(expressions)) => {
                    walk.absent(walk.dialect == Dialect::Postgres, "DISTINCT ON")?;
                    walk.expressions(expressions)?;
                }
            }
            let columns = walk.select_items(projection)?;
            walk.optional(selection.as_ref())?;
            walk.group_by(group_by)?;
            walk.optional(having.as_ref())?;
            for NamedWindowDefinition(name, window) in named_window {
                walk.name(name)?;
                match window {
                    NamedWindowExpr::WindowSpec(spec) => walk.window(spec)?,
                    NamedWindowExpr::NamedWindow(_) => return walk.clause("WINDOW … AS name"),
                }
            }
            Ok(columns)
        })
    }

    fn group_by(&mut self, group_by: &GroupByExpr) -> Checked {
        match group_by {
            GroupByExpr::All(_) => self.clause("GROUP BY ALL"),
            GroupByExpr::Expressions(expressions, modifiers) => {
                for modifier in modifiers {
                    match modifier {
                        GroupByWithModifier::Rollup => {}
                        GroupByWithModifier::Cube
                        | GroupByWithModifier::Totals
                        | GroupByWithModifier::GroupingSets(_) => {
                            return self.clause("this modifier of GROUP BY");
                        }
                    }
                }
                self.expressions(expressions)
            }
        }
    }

    pub fn select_items(&mut self, items: &[SelectItem]) -> Checked<Columns> {
        let mut heaviest = 0;
        let node = self.cost.node();
        for item in items {
            let before = self.weight;
            self.cost.begin();
            match item {
                SelectItem::UnnamedExpr(expression) => self.expression(expression)?,
                SelectItem::ExprWithAlias { expr, alias } => {
                    self.expression(expr)?;
                    self.alias(alias)?;
                }
                SelectItem::ExprWithAliases { .. } => return self.clause("a list of aliases"),
                SelectItem::QualifiedWildcard(kind, options) => {
                    match kind {
                        SelectItemQualifiedWildcardKind::ObjectName(name) => {
                            self.column_name(name)?;
                        }
                        SelectItemQualifiedWildcardKind::Expr(_) => {
                            return self.clause("the fields of an expression");
                        }
                    }
                    self.wildcard(options)?;
                }
                SelectItem::Wildcard(options) => self.wildcard(options)?,
            }
            heaviest = heaviest.max(self.weight - before);
            self.cost.end(node);
        }
        Ok(self.outputs(items, heaviest, node))
    }

    pub fn wildcard(&mut self, options: &WildcardAdditionalOptions) -> Checked {
        let WildcardAdditionalOptions {
            wildcard_token: _,
            opt_ilike,
            opt_exclude,
            opt_except,
            opt_replace,
            opt_rename,
            opt_alias,
        } = options;
        self.absent(
            opt_ilike.is_none()
                && opt_exclude.is_none()
                && opt_except.is_none()
                && opt_replace.is_none()
                && opt_rename.is_none()
                && opt_alias.is_none(),
            "an option of *",
        )
    }

    pub fn order_by_expressions(&mut self, order_by: &[OrderByExpr]) -> Checked {
        for OrderByExpr {
            expr,
            options,
            with_fill,
        } in order_by
        {
            let OrderByOptions {
                sort,
                nulls_first: _,
            } = options;
            match sort {
                None | Some(OrderBySort::Asc | OrderBySort::Desc) => {}
                Some(OrderBySort::Using(_)) => return self.clause("ORDER BY … USING"),
            }
            self.absent(with_fill.is_none(), "WITH FILL")?;
            self.expression(expr)?;
        }
        Ok(())
    }

    fn order_by(&mut self, order_by: &OrderBy) -> Checked {
        let OrderBy { kind, interpolate } = order_by;
        self.absent(interpolate.is_none(), "INTERPOLATE")?;
        match kind {
            OrderByKind::Expressions(expressions) => self.order_by_expressions(expressions),
            OrderByKind::All(_) => self.clause("ORDER BY ALL"),
        }
    }

    fn limit(&mut self, limit: &LimitClause) -> Checked {
        match limit {
            LimitClause::LimitOffset {
                limit,
                offset,
                limit_by,
            } => {
                self.absent(limit_by.is_empty(), "LIMIT … BY")?;
                self.optional(limit.as_ref())?;
                if let Some(Offset { value, rows: _ }) = offset {
                    self.expression(value)?;
                }
                Ok(())
            }
            LimitClause::OffsetCommaLimit { offset, limit } => {
                self.expression(offset)?;
                self.expression(limit)
            }
        }
    }

    pub fn table_alias(&mut self, alias: &TableAlias) -> Checked {
        let TableAlias {
            explicit: _,
            name,
            columns,
            at,
        } = alias;
        self.absent(at.is_none(), "AT after an alias")?;
        self.alias(name)?;
        for TableAliasColumnDef { name, data_type } in columns {
            self.name(name)?;
            if let Some(data_type) = data_type {
                self.data_type(data_type)?;
            }
        }
        Ok(())
    }

    /// Used where a kind of statement is not welcome.
    pub fn subquery(&mut self, query: &Query) -> Checked {
        let outline = self.outside_from(|walk| walk.query(query))?;
        self.only_select(&outline)?;
        self.cost.subquery(&outline.columns.nodes);
        Ok(())
    }

    /// A write may only be the statement itself or, in PostgreSQL, a common table expression of it.
    pub fn only_select(&self, outline: &Outline) -> Checked {
        if outline.kind == Kind::Select {
            return Ok(());
        }
        Err(self.refuse(
            code::CLAUSE,
            "a write is only allowed as the statement itself, or in PostgreSQL's WITH",
            "move it to the front of the statement",
        ))
    }
}
