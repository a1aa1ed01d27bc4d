//! Runs the statements under tests/fixtures/sql and compares their verdicts.

use super::*;

#[path = "../../../../../../tests/fixtures/sql/reader.rs"]
mod reader;

use reader::parse;

#[test]
fn postgres_statements_are_judged_as_the_corpus_says() {
    judge_corpus(Dialect::Postgres, "postgres.txt");
}

#[test]
fn sqlite_statements_are_judged_as_the_corpus_says() {
    judge_corpus(Dialect::Sqlite, "sqlite.txt");
}

#[test]
fn mysql_statements_are_judged_as_the_corpus_says() {
    judge_corpus(Dialect::Mysql, "mysql.txt");
}

fn judge_corpus(dialect: Dialect, file: &str) {
    let path = format!(
        "{}/../tests/fixtures/sql/{file}",
        env!("CARGO_MANIFEST_DIR")
    );
    let corpus = std::fs::read_to_string(&path).expect("the corpus can be read");
    let cases = parse(&corpus);
    assert!(
        cases.len() >= 150,
        "only {} statements in {file}",
        cases.len()
    );
    let rules = rules(dialect);
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let (verdict, why) = match rules.check(&case.text) {
                Ok(statement) => (describe(&statement), String::new()),
                Err(refusal) => (format!("refused {}", refusal.code), refusal.to_string()),
            };
            (verdict != case.verdict).then(|| {
                format!(
                    "{file}:{}: {}\n    expected {}\n    got      {verdict} {why}",
                    case.line, case.text, case.verdict
                )
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn describe(statement: &Statement) -> String {
    let mut text = "allowed".to_owned();
    for (does, tables) in [("reads", &statement.reads), ("writes", &statement.writes)] {
        if !tables.is_empty() {
            let names: Vec<String> = tables.iter().map(name).collect();
            text.push_str(&format!("; {does} {}", names.join(" ")));
        }
    }
    text
}

fn name(table: &Table) -> String {
    let name = table.to_string();
    if name.contains(|c: char| c.is_ascii_uppercase()) {
        format!("\"{name}\"")
    } else {
        name
    }
}
