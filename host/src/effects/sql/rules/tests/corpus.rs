//! Runs the statements under tests/fixtures/sql and compares their verdicts.

use super::*;

/// One statement of the corpus and what is expected of it.
struct Case {
    line: usize,
    text: String,
    verdict: String,
}

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

fn parse(corpus: &str) -> Vec<Case> {
    let mut verdict = String::new();
    let mut cases = Vec::new();
    for (index, line) in corpus.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(heading) = line.strip_prefix('[') {
            verdict = heading
                .strip_suffix(']')
                .expect("a heading ends with ]")
                .to_owned();
            continue;
        }
        cases.push(Case {
            line: index + 1,
            text: unescape(line),
            verdict: verdict.clone(),
        });
    }
    cases
}

/// Puts in the characters written as `\u{…}`.
fn unescape(line: &str) -> String {
    let mut parts = line.split("\\u{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_once('}').expect("an escape ends with }");
        let code = u32::from_str_radix(digits, 16).expect("an escape is hexadecimal");
        text.push(char::from_u32(code).expect("an escape is a character"));
        text.push_str(rest);
    }
    text
}
