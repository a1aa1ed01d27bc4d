//! Where in the sources of a component a trap happened.
//!
//! The debug information is read when the first trap asks for it, and kept for the next one. It is the work of
//! somebody who may wish the host ill, so that another process reads it, within bounds ([`reader`]); a thread waits
//! for that, so that a handler that traps again and again does not hold up the others. What is refused is told in
//! each backtrace, which then names functions only.

mod process;
mod reader;

#[cfg(all(test, unix))]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use process::{Process, Refusal};

pub use process::serve_if_asked;

/// Debug information of one component that is kept and read, in bytes. That of a large program in Rust with all
/// there is has some 40 MB.
const MAX_BYTES: usize = 64 << 20;

/// A call that was open when a component trapped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Frame {
    /// The function's name, or its number where it has none. Short.
    pub(super) function: String,
    /// Where in the component's file the instruction stands.
    pub(super) offset: Option<u64>,
}

/// The debug information of one component, and the thread that has it read.
pub(super) struct Symbols {
    modules: Result<Arc<[Module]>, Refusal>,
    /// Started by the first trap. It ends with this.
    reader: OnceLock<mpsc::Sender<Request>>,
}

struct Request {
    frames: Vec<Frame>,
    answer: oneshot::Sender<String>,
}

/// The debug information of one core module.
struct Module {
    /// Where its code is in the component's file. Debug information counts from there.
    code: Range<usize>,
    /// Sections by name, as they stand in the file.
    sections: HashMap<String, Box<[u8]>>,
}

impl Symbols {
    /// Takes the debug information out of a component.
    pub(super) fn of(component: &[u8]) -> Self {
        let mut found = Found::default();
        find_modules(component, 0, &mut found);
        let modules = match found.bytes > MAX_BYTES {
            true => Err(Refusal::Bytes(found.bytes)),
            false => {
                let mut modules = found.modules;
                modules.retain(|module| !module.sections.is_empty());
                Ok(modules.into())
            }
        };
        Self {
            modules,
            reader: OnceLock::new(),
        }
    }

    /// The backtrace as text. Without the sources' places where the debug information cannot be read.
    pub(super) async fn backtrace(&self, frames: Vec<Frame>) -> String {
        let modules = match &self.modules {
            _ if frames.is_empty() => return String::new(),
            Err(refusal) => return without_places(&frames, Some(refusal)),
            Ok(modules) if modules.is_empty() => return without_places(&frames, None),
            Ok(modules) => modules,
        };
        let reader = self
            .reader
            .get_or_init(|| start_reader(Arc::clone(modules)));
        let (answer, text) = oneshot::channel();
        let request = Request {
            frames: frames.clone(),
            answer,
        };
        if reader.send(request).is_ok()
            && let Ok(text) = text.await
        {
            return text;
        }
        without_places(&frames, None)
    }
}

/// Names of functions, and why there is no more than them.
fn without_places(frames: &[Frame], refusal: Option<&Refusal>) -> String {
    let text = reader::render(&[], frames);
    match refusal {
        Some(refusal) => format!("{text}\n(debug information was refused: {refusal})"),
        None => text,
    }
}

/// Has the debug information read, and answers until nobody can ask any more. Who has asked for too much is not
/// asked again.
fn start_reader(modules: Arc<[Module]>) -> mpsc::Sender<Request> {
    let (requests, inbox) = mpsc::channel::<Request>();
    let started = thread::Builder::new()
        .name("hapax-symbols".into())
        .spawn(move || {
            let mut reading = Reading {
                modules,
                process: None,
                refused: None,
            };
            for Request { frames, answer } in inbox {
                // The run that asked may have been given up.
                let _ = answer.send(reading.backtrace(&frames));
            }
        });
    if let Err(error) = started {
        tracing::warn!(%error, "No thread to read debug information; backtraces name functions only");
    }
    requests
}

/// What the thread that waits for the process has.
struct Reading {
    modules: Arc<[Module]>,
    process: Option<Process>,
    refused: Option<Refusal>,
}

impl Reading {
    fn backtrace(&mut self, frames: &[Frame]) -> String {
        if self.refused.is_none() {
            match self.ask(frames) {
                Ok(text) => return text,
                Err(refusal) => {
                    tracing::warn!(
                        %refusal,
                        "Debug information of a plugin was refused; its backtraces name functions only"
                    );
                    self.process = None;
                    self.refused = Some(refusal);
                }
            }
        }
        without_places(frames, self.refused.as_ref())
    }

    fn ask(&mut self, frames: &[Frame]) -> Result<String, Refusal> {
        let process = match self.process.take() {
            Some(process) if !process.is_used_up() => process,
            _ => Process::start(&self.modules)?,
        };
        self.process.insert(process).ask(frames)
    }
}

/// The sections of a component or of a core module, which are laid out alike: an id, a length, content.
struct Sections<'a> {
    binary: &'a [u8],
    at: usize,
}

impl Iterator for Sections<'_> {
    type Item = (u8, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let id = *self.binary.get(self.at)?;
        self.at += 1;
        let length = usize::try_from(leb128(self.binary, &mut self.at)?).ok()?;
        let content = self.at..self.at.checked_add(length)?;
        self.at = content.end;
        (content.end <= self.binary.len()).then_some((id, content))
    }
}

/// What is found in a component.
#[derive(Default)]
struct Found {
    modules: Vec<Module>,
    /// Of debug information, those that are too many included.
    bytes: usize,
}

/// Finds the core modules of a component, and of the components in it, which are nested only so deep
/// (`plugins::shape`). `start` is where `binary` stands in the file. The preamble, 8 bytes, tells which of the two
/// it is.
fn find_modules(binary: &[u8], start: usize, found: &mut Found) {
    const CORE_MODULE: u8 = 1;
    const COMPONENT: u8 = 4;
    for (id, content) in (Sections { binary, at: 8 }) {
        let start = start + content.start;
        match id {
            CORE_MODULE => {
                let module = module(&binary[content], start, &mut found.bytes);
                found.modules.push(module);
            }
            COMPONENT => find_modules(&binary[content], start, found),
            _ => {}
        }
    }
}

fn module(binary: &[u8], start: usize, bytes_so_far: &mut usize) -> Module {
    const CUSTOM: u8 = 0;
    const CODE: u8 = 10;
    let mut module = Module {
        code: 0..0,
        sections: HashMap::new(),
    };
    for (id, content) in (Sections { binary, at: 8 }) {
        match id {
            CODE => module.code = start + content.start..start + content.end,
            CUSTOM => {
                let mut at = content.start;
                let name = leb128(binary, &mut at)
                    .and_then(|length| at.checked_add(usize::try_from(length).ok()?))
                    .filter(|end| *end <= content.end)
                    .and_then(|end| Some((str::from_utf8(&binary[at..end]).ok()?, end)));
                if let Some((name, end)) = name
                    && name.starts_with(".debug_")
                {
                    *bytes_so_far += content.len();
                    if *bytes_so_far <= MAX_BYTES {
                        let bytes = binary[end..content.end].into();
                        module.sections.insert(name.to_owned(), bytes);
                    }
                }
            }
            _ => {}
        }
    }
    module
}

/// A number of at most 32 bits, seven of them in a byte (LEB128), as WebAssembly writes lengths.
fn leb128(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut number = 0_u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
