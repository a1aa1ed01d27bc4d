//! What the test double answers to which statement.

use crate::bindings::hapax::plugin::sql as wit;
use crate::sql::{Column, ErrorKind, Value};

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Rows(wit::Rows),
    Affected(u64),
    Violation(wit::Error),
}

/// The answers in the order in which the test gave them. Of several that match a statement, each
/// is used once, and the last one from then on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script(Vec<(String, Answer)>);

impl Script {
    pub(crate) fn add(&mut self, part: &str, answer: Answer) {
        self.0.push((part.to_owned(), answer));
    }

    pub(crate) fn answer(&mut self, statement: &str) -> Option<Answer> {
        let matches = |(part, _): &(String, Answer)| statement.contains(part.as_str());
        let first = self.0.iter().position(matches)?;
        if self.0[first + 1..].iter().any(matches) {
            Some(self.0.remove(first).1)
        } else {
            Some(self.0[first].1.clone())
        }
    }
}

pub(crate) fn rows(columns: &[&str], rows: Vec<Vec<Value>>) -> Answer {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        type_: "test".to_owned(),
    };
    Answer::Rows(wit::Rows {
        columns: columns.iter().map(column).collect(),
        rows,
    })
}

pub(crate) fn violation(kind: ErrorKind, constraint: &str) -> Answer {
    Answer::Violation(wit::Error {
        kind,
        code: "test".to_owned(),
        constraint: Some(constraint.to_owned()),
        message: "scripted by the test".to_owned(),
    })
}
