//! What stands in FROM: tables, joins, subqueries and granted table functions.

use sqlparser::ast::{
    Join, JoinConstraint, JoinOperator, TableFactor, TableFunctionArgs, TableWithJoins,
};

use super::Dialect;
use super::grants::Table;
use super::names::Columns;
use super::refusal::Checked;
use super::walk::Walk;

impl Walk<'_> {
    pub fn table_with_joins(&mut self, table: &TableWithJoins) -> Checked {
        let TableWithJoins { relation, joins } = table;
        self.deeper(|walk| walk.table_factor(relation))?;
        for join in joins {
            let Join {
                relation,
                global,
                join_operator,
            } = join;
            self.absent(!global, "GLOBAL JOIN")?;
            self.deeper(|walk| walk.table_factor(relation))?;
            self.join_operator(join_operator)?;
        }
        Ok(())
    }

    fn join_operator(&mut self, operator: &JoinOperator) -> Checked {
        match operator {
            JoinOperator::Join(constraint)
            | JoinOperator::Inner(constraint)
            | JoinOperator::Left(constraint)
            | JoinOperator::LeftOuter(constraint)
            | JoinOperator::Right(constraint)
            | JoinOperator::RightOuter(constraint)
            | JoinOperator::FullOuter(constraint)
            | JoinOperator::CrossJoin(constraint) => match constraint {
                JoinConstraint::On(condition) => {
                    self.outside_from(|walk| walk.expression(condition))
                }
                JoinConstraint::Using(columns) => {
                    self.means_operators(&["="]);
                    columns.iter().try_for_each(|column| self.single(column))
                }
                JoinConstraint::Natural => {
                    self.means_operators(&["="]);
                    Ok(())
                }
                JoinConstraint::None => Ok(()),
            },
            JoinOperator::Semi(_)
            | JoinOperator::LeftSemi(_)
            | JoinOperator::RightSemi(_)
            | JoinOperator::Anti(_)
            | JoinOperator::LeftAnti(_)
            | JoinOperator::RightAnti(_)
            | JoinOperator::CrossApply
            | JoinOperator::OuterApply
            | JoinOperator::AsOf { .. }
            | JoinOperator::StraightJoin(_)
            | JoinOperator::ArrayJoin
            | JoinOperator::LeftArrayJoin
            | JoinOperator::InnerArrayJoin => self.clause("this kind of join"),
        }
    }

    fn table_factor(&mut self, factor: &TableFactor) -> Checked {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                self.absent(with_hints.is_empty(), "a table hint")?;
                self.absent(version.is_none(), "a table version")?;
                self.absent(partitions.is_empty(), "PARTITION")?;
                self.absent(json_path.is_none(), "a path into a table")?;
                self.absent(sample.is_none(), "TABLESAMPLE")?;
                self.absent(index_hints.is_empty(), "an index hint")?;
                let (own, columns) = match args {
                    Some(TableFunctionArgs { args, settings }) => {
                        self.absent(settings.is_none(), "SETTINGS")?;
                        (self.table_function(name, args)?, Columns::default())
                    }
                    None => {
                        self.absent(!with_ordinality, "WITH ORDINALITY of a table")?;
                        self.read_table(name)?
                    }
                };
                self.add_source(&own, columns, alias.as_ref());
                self.optional_alias(alias.as_ref())
            }
            TableFactor::Derived {
                lateral,
                subquery,
                alias,
                sample,
            } => {
                self.absent(
                    !lateral || self.dialect != Dialect::Sqlite,
                    "a LATERAL subquery",
                )?;
                self.absent(sample.is_none(), "TABLESAMPLE")?;
                let outline = self.query(subquery)?;
                self.only_select(&outline)?;
                self.count_sources(0)?;
                self.add_unnamed(outline.columns, alias.as_ref());
                self.optional_alias(alias.as_ref())
            }
            TableFactor::Function {
                lateral: _,
                name,
                args,
                with_ordinality: _,
                alias,
            } => {
                let own = self.table_function(name, args)?;
                self.add_source(&own, Columns::default(), alias.as_ref());
                self.optional_alias(alias.as_ref())
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias,
            } => {
                let before = self.source_count();
                self.deeper(|walk| walk.table_with_joins(table_with_joins))?;
                if alias.is_some() {
                    let columns = self.join_sources(before);
                    self.add_unnamed(columns, alias.as_ref());
                }
                self.optional_alias(alias.as_ref())
            }
            TableFactor::UNNEST {
                alias,
                array_exprs,
                with_offset,
                with_offset_alias,
                with_ordinality: _,
            } => {
                self.absent(!with_offset && with_offset_alias.is_none(), "WITH OFFSET")?;
                let own = self.granted_unnest(array_exprs)?;
                self.add_source(&own, Columns::default(), alias.as_ref());
                self.optional_alias(alias.as_ref())
            }
            TableFactor::TableFunction { .. }
            | TableFactor::JsonTable { .. }
            | TableFactor::OpenJsonTable { .. }
            | TableFactor::Pivot { .. }
            | TableFactor::Unpivot { .. }
            | TableFactor::UnpivotExpr { .. }
            | TableFactor::MatchRecognize { .. }
            | TableFactor::XmlTable { .. }
            | TableFactor::SemanticView { .. } => self.clause("this in FROM"),
        }
    }

    fn optional_alias(&mut self, alias: Option<&sqlparser::ast::TableAlias>) -> Checked {
        alias.map_or(Ok(()), |alias| self.table_alias(alias))
    }

    /// The target of an UPDATE or DELETE: a plain table with at most an alias.
    pub fn target(&mut self, factor: &TableFactor) -> Checked<Table> {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                let plain = args.is_none()
                    && with_hints.is_empty()
                    && version.is_none()
                    && !with_ordinality
                    && partitions.is_empty()
                    && json_path.is_none()
                    && sample.is_none()
                    && index_hints.is_empty();
                self.absent(plain, "a target with options")?;
                let table = self.write_table(name)?;
                let columns = Columns::of_table(table.clone());
                self.add_source(&table, columns, alias.as_ref());
                self.optional_alias(alias.as_ref())?;
                Ok(table)
            }
            _ => self.clause("a target that is not a table"),
        }
    }
}
