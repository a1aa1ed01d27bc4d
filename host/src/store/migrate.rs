//! The migrations of every dialect: the same numbers and names in each.
//!
//! Owns the list, the script that a dialect runs, and the rule which schemas this host can work with:
//! schema N serves hosts N and N−1, so that hosts can be replaced one after another. It opens no
//! connection; the dialects run the script, one host at a time.

use super::{Dialect, StoreError};

struct Migration {
    number: i64,
    name: &'static str,
    postgres: &'static str,
    sqlite: &'static str,
}

macro_rules! migration {
    ($number:literal, $name:literal) => {
        Migration {
            number: $number,
            name: $name,
            postgres: include_str!(concat!("../../migrations/postgres/", $name, ".sql")),
            sqlite: include_str!(concat!("../../migrations/sqlite/", $name, ".sql")),
        }
    };
}

/// In the order in which they are applied.
const MIGRATIONS: &[Migration] = &[migration!(1, "0001_spine"), migration!(2, "0002_withheld")];

/// The name in `hapax_meta` under which the number of the schema is kept.
pub(super) const SCHEMA: &str = "schema";

/// The number of the last migration that this host knows.
pub(super) fn known() -> i64 {
    MIGRATIONS.last().map_or(0, |migration| migration.number)
}

/// The names of the migrations after `schema` (0: no tables yet), or why this host cannot work with it.
pub(super) fn pending(schema: i64) -> Result<Vec<String>, StoreError> {
    if schema > known() + 1 {
        return Err(StoreError::Unusable(format!(
            "the tables have schema {schema}, and this version of hapax works with schemas up to {}: \
             run a newer version",
            known() + 1
        )));
    }
    Ok(after(schema)
        .map(|migration| migration.name.to_owned())
        .collect())
}

fn after(schema: i64) -> impl Iterator<Item = &'static Migration> {
    MIGRATIONS
        .iter()
        .filter(move |migration| migration.number > schema)
}

/// The statements of the migrations after `schema`, for a session that is in a transaction and whose
/// unqualified names mean the schema of the tables.
pub(super) fn script(dialect: Dialect, schema: i64) -> String {
    let mut script = String::new();
    for migration in after(schema) {
        let statements = match dialect {
            Dialect::Postgres => migration.postgres,
            Dialect::Sqlite => migration.sqlite,
            Dialect::Mysql => "",
        };
        script.push_str(&format!(
            "-- {}\n{}\n",
            migration.name,
            statements.trim_end()
        ));
        script.push_str(&format!(
            "INSERT INTO hapax_meta (name, value) VALUES ('{SCHEMA}', '{}')\n\
             ON CONFLICT (name) DO UPDATE SET value = excluded.value;\n",
            migration.number
        ));
    }
    script
}

/// Makes a schema of Postgres when it is not there, and the target of unqualified names. `CREATE SCHEMA
/// IF NOT EXISTS` alone wants a privilege even where there is nothing to create.
pub(super) fn enter_schema(schema: &str) -> String {
    format!(
        "DO $$ BEGIN\n  \
           IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '{schema}') THEN\n    \
             CREATE SCHEMA \"{schema}\";\n  \
           END IF;\n\
         END $$;\n\
         SET LOCAL search_path TO \"{schema}\";\n"
    )
}

/// Every migration as one script that a person can run with the database's own shell.
pub fn sql(dialect: Dialect, schema: &str) -> String {
    let enter = match dialect {
        Dialect::Postgres => enter_schema(schema),
        Dialect::Sqlite | Dialect::Mysql => String::new(),
    };
    format!("BEGIN;\n{enter}{}COMMIT;\n", script(dialect, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_a_hole_and_named_after_their_number() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.number, index as i64 + 1);
            assert!(
                migration
                    .name
                    .starts_with(&format!("{:04}_", migration.number))
            );
        }
    }

    #[test]
    fn a_schema_that_is_one_ahead_is_served_and_two_ahead_is_refused() {
        assert!(pending(known() + 1).is_ok_and(|names| names.is_empty()));
        let refused = pending(known() + 2).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Unusable(why) if why.contains("newer version")),
            "{refused}"
        );
    }

    #[test]
    fn every_dialect_has_the_same_tables_except_those_of_the_embedded_broker() {
        let tables = |dialect| {
            let mut names: Vec<String> = script(dialect, 0)
                .lines()
                .filter_map(|line| line.strip_prefix("CREATE TABLE "))
                .map(|rest| rest.trim_end_matches(" (").to_owned())
                .filter(|name| name != "hapax_queue" && name != "hapax_message")
                .collect();
            names.sort();
            names
        };
        assert_eq!(tables(Dialect::Postgres), tables(Dialect::Sqlite));
        assert_eq!(tables(Dialect::Postgres).len(), 7);
    }
}
