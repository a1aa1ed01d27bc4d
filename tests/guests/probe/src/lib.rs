//! A handler that does what the message tells it to: the steps in `do`, in order.
//!
//! It decides nothing by itself, so that one component can drive every behaviour of the host. The
//! README lists the steps.

mod echo;
mod sins;
mod step;

use std::time::Duration;

use hapax_guest::prelude::*;
use hapax_guest::sql::Value;
use serde_json::Map;

use step::{Action, Instructions, Publish, Step};

/// Runs the steps; the first one that ends the run decides the result, otherwise it is done.
#[hapax_guest::handler]
pub fn handle(message: &Message, instructions: Json<Instructions>) -> Result<Outcome, Failure> {
    let outcome = run_all(&instructions.steps, message)?;
    Ok(outcome.unwrap_or(Outcome::Done))
}

fn run_all(steps: &[Step], message: &Message) -> Result<Option<Outcome>, Failure> {
    for step in steps {
        if let Some(outcome) = run(step, message)? {
            return Ok(Some(outcome));
        }
    }
    Ok(None)
}

fn run(step: &Step, message: &Message) -> Result<Option<Outcome>, Failure> {
    let retry = |reason: &str| {
        let failure = Failure::retry(reason);
        match step.after_ms {
            Some(delay) => failure.after(Duration::from_millis(delay)),
            None => failure,
        }
    };
    match &step.action {
        Action::Execute(sql) => drop(sql::execute(&sql.statement, sql.values())?),
        Action::ExecuteIgnore(sql) => drop(sql::execute(&sql.statement, sql.values())),
        Action::ExpectAffected(sql, rows) => {
            let touched = sql::execute(&sql.statement, sql.values())?;
            if touched != *rows {
                return Err(Failure::reject(format!("{touched} rows, not {rows}")));
            }
        }
        Action::Defer(sql) => sql::defer(&sql.statement, sql.values()),
        Action::Query(sql) => {
            let rows = sql::query(&sql.statement, sql.values())?;
            if let Some(target) = &step.into {
                outbox::to(target).json(&rows_as_json(&rows))?;
            }
        }
        Action::FailIfMissing(sql) => {
            if sql::query(&sql.statement, sql.values())?.is_empty() {
                return Err(retry("the row is missing"));
            }
        }
        Action::Publish(draft) => drop(publish(draft)?),
        Action::Reply(body) => outbox::reply().json(body)?,
        Action::StatePut(key, value) => state::put_json(key, value)?,
        Action::StatePutIf(key, value, version) => {
            state::put_if(key, value.to_string(), *version)?;
        }
        Action::StateIncrement(key) => {
            let count = state::get_json::<i64>(key)?.unwrap_or(0);
            state::put_json(key, &(count + 1))?;
        }
        Action::StateDelete(key) => state::delete(key),
        Action::EchoContext(target) => drop(outbox::to(target).json(&echo::context(message))?),
        Action::Log(text) => log::info!("{text}"),
        Action::Stderr(text) => eprintln!("{text}"),
        Action::Repeat(times, steps) => {
            for _ in 0..*times {
                if let Some(outcome) = run_all(steps, message)? {
                    return Ok(Some(outcome));
                }
            }
        }
        Action::Done(_) => return Ok(Some(Outcome::Done)),
        Action::Ignored(reason) => return Ok(Some(Outcome::Ignored(reason.clone()))),
        Action::Retry(reason) => return Err(retry(reason)),
        Action::RetryUntilAttempt(attempt) => {
            if context::attempt() < *attempt {
                return Err(retry("not yet"));
            }
        }
        Action::Reject(reason) => return Err(Failure::reject(reason)),
        Action::Panic(text) => panic!("{text}"),
        Action::Spin(_) => sins::spin(),
        Action::Recurse(_) => sins::recurse(0),
        Action::AllocateMib(mib) => sins::allocate(*mib),
        Action::SleepMs(duration) => std::thread::sleep(Duration::from_millis(*duration)),
    }
    Ok(None)
}

fn publish(publish: &Publish) -> Result<String, outbox::Error> {
    let mut draft = outbox::to(&publish.target);
    for (name, value) in &publish.headers {
        draft = draft.header(name, step::header_value(value));
    }
    if let Some(key) = &publish.routing_key {
        draft = draft.routing_key(key);
    }
    if let Some(key) = &publish.ordering_key {
        draft = draft.ordering_key(key);
    }
    if let Some(delay) = publish.delay_ms {
        draft = draft.delay(Duration::from_millis(delay));
    }
    draft.json(&publish.body)
}

/// Rows as a list of objects, each value in the form in which a step gives parameters.
fn rows_as_json(rows: &sql::Rows) -> Vec<serde_json::Value> {
    let object = |values: &[Value]| {
        let names = rows.columns().iter().map(|column| column.name.clone());
        serde_json::Value::Object(Map::from_iter(names.zip(values.iter().map(echo::value))))
    };
    rows.iter().map(|row| object(row.values())).collect()
}
