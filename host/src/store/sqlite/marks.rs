//! Marks inside the one process that has the file: a table in memory, since nobody else can hold any.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::store::{Mark, StoreError};

/// The marks of all sessions of a store.
#[derive(Clone, Default)]
pub(super) struct Marks(Arc<Mutex<HashMap<Mark, Held>>>);

#[derive(Clone, Copy)]
enum Held {
    Shared(u64),
    Seized,
}

/// What one session holds. Dropped with it, it gives everything back.
pub(super) struct OwnMarks {
    marks: Marks,
    held: Vec<Mark>,
    seized: Vec<Mark>,
}

impl Marks {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Mark, Held>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn holders(&self, mark: Mark) -> u64 {
        self.with(|all| match all.get(&mark) {
            Some(Held::Shared(count)) => *count,
            Some(Held::Seized) | None => 0,
        })
    }
}

impl OwnMarks {
    pub fn new(marks: Marks) -> Self {
        Self {
            marks,
            held: Vec::new(),
            seized: Vec::new(),
        }
    }

    pub fn hold(&mut self, mark: Mark) -> Result<(), StoreError> {
        self.marks.with(|all| match all.get_mut(&mark) {
            Some(Held::Seized) => Err(StoreError::LockTimeout(
                "an operator is changing the consumer".to_owned(),
            )),
            Some(Held::Shared(count)) => {
                *count += 1;
                Ok(())
            }
            None => {
                all.insert(mark, Held::Shared(1));
                Ok(())
            }
        })?;
        self.held.push(mark);
        Ok(())
    }

    pub fn drop_one(&mut self, mark: Mark) {
        if let Some(place) = self.held.iter().position(|held| *held == mark) {
            self.held.swap_remove(place);
            self.release(mark);
        }
    }

    pub fn seize(&mut self, mark: Mark) -> bool {
        let seized = self.marks.with(|all| match all.get(&mark) {
            Some(_) => false,
            None => {
                all.insert(mark, Held::Seized);
                true
            }
        });
        if seized {
            self.seized.push(mark);
        }
        seized
    }

    pub fn holders(&self, mark: Mark) -> u64 {
        self.marks.holders(mark)
    }

    fn release(&self, mark: Mark) {
        self.marks.with(|all| match all.get_mut(&mark) {
            Some(Held::Shared(count)) if *count > 1 => *count -= 1,
            _ => {
                all.remove(&mark);
            }
        });
    }
}

impl Drop for OwnMarks {
    fn drop(&mut self) {
        for mark in std::mem::take(&mut self.held) {
            self.release(mark);
        }
        for mark in std::mem::take(&mut self.seized) {
            self.release(mark);
        }
    }
}
