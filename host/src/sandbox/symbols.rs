//! Where in the sources of a component a trap happened.
//!
//! The debug information is read when the first trap asks for it, and kept for the next one. That takes
//! milliseconds for a component of some megabytes, so it never happens on a thread that runs messages: a handler
//! that traps again and again must not hold up the others.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, Error, LittleEndian};
use tokio::sync::oneshot;

use super::text::{MAX_TEXT_BYTES, bounded};

/// Where the sources of languages' own libraries were when those were built: Rust's, and C's under it.
const LIBRARIES: &[&str] = &["/rustc/", "wasisdk://"];

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// A call that was open when a component trapped.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// The function's name, or its number where it has none.
    pub(super) function: String,
    /// Where in the component's file the instruction stands.
    pub(super) offset: Option<u64>,
}

/// The debug information of one component, and the thread that has read it.
pub(super) struct Symbols {
    modules: Arc<[Module]>,
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
        let mut modules = Vec::new();
        find_modules(component, 0, &mut modules);
        modules.retain(|module: &Module| !module.sections.is_empty());
        Self {
            modules: modules.into(),
            reader: OnceLock::new(),
        }
    }

    /// The backtrace as text. Without the sources' places where the debug information cannot be read.
    pub(super) async fn backtrace(&self, frames: Vec<Frame>) -> String {
        if self.modules.is_empty() || frames.is_empty() {
            return render(&[], &frames);
        }
        let reader = self
            .reader
            .get_or_init(|| start_reader(Arc::clone(&self.modules)));
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
        // There is no thread, or what it read was more than it could bear.
        render(&[], &frames)
    }
}

/// Reads the debug information on a thread of its own, and answers until nobody can ask any more.
fn start_reader(modules: Arc<[Module]>) -> mpsc::Sender<Request> {
    let (requests, inbox) = mpsc::channel::<Request>();
    let started = thread::Builder::new()
        .name("hapax-symbols".into())
        .spawn(move || {
            let modules: Vec<_> = modules.iter().map(Readable::of).collect();
            for request in inbox {
                // The run that asked may have been given up.
                let _ = request.answer.send(render(&modules, &request.frames));
            }
        });
    if let Err(error) = started {
        tracing::warn!(%error, "No thread to read debug information; backtraces name functions only");
    }
    requests
}

/// A module whose debug information has been read.
struct Readable<'a> {
    code: Range<usize>,
    context: Option<Context<Bytes<'a>>>,
}

impl<'a> Readable<'a> {
    fn of(module: &'a Module) -> Self {
        let dwarf = Dwarf::load(|id| {
            let bytes = module
                .sections
                .get(id.name())
                .map_or(&[][..], |bytes| bytes);
            Ok::<_, Error>(EndianSlice::new(bytes, LittleEndian))
        });
        Self {
            code: module.code.clone(),
            context: dwarf.and_then(Context::from_dwarf).ok(),
        }
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

/// Finds the core modules of a component, and of the components in it. `start` is where `binary` stands in the
/// file. The preamble, 8 bytes, tells which of the two it is.
fn find_modules(binary: &[u8], start: usize, modules: &mut Vec<Module>) {
    const CORE_MODULE: u8 = 1;
    const COMPONENT: u8 = 4;
    for (id, content) in (Sections { binary, at: 8 }) {
        let start = start + content.start;
        match id {
            CORE_MODULE => modules.push(module(&binary[content], start)),
            COMPONENT => find_modules(&binary[content], start, modules),
            _ => {}
        }
    }
}

fn module(binary: &[u8], start: usize) -> Module {
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
                    let bytes = binary[end..content.end].into();
                    module.sections.insert(name.to_owned(), bytes);
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

/// One frame a line, innermost first: `handle at points/src/lib.rs:9:41`. Functions that were inlined into one
/// another are frames of their own. Frames of the language's own library are left out when there are others:
/// what led there is in the panic's text.
fn render(modules: &[Readable], frames: &[Frame]) -> String {
    let (mut own, mut all) = (Vec::new(), Vec::new());
    for frame in frames {
        let places = places(modules, frame);
        if places.is_empty() {
            all.push(frame.function.clone());
        }
        for place in places {
            let name = place.function.unwrap_or_else(|| frame.function.clone());
            let Some(file) = place.file else {
                all.push(name);
                continue;
            };
            let text = format!(
                "{name} at {}:{}:{}",
                short_path(&file),
                place.line,
                place.column
            );
            if !LIBRARIES.iter().any(|library| file.starts_with(library)) {
                own.push(text.clone());
            }
            all.push(text);
        }
    }
    let lines = if own.is_empty() { all } else { own };
    bounded(folded(&lines).as_bytes(), MAX_TEXT_BYTES)
}

/// A place in the sources.
struct Place {
    function: Option<String>,
    file: Option<String>,
    line: u32,
    column: u32,
}

/// The place of a frame and of the functions that were inlined around it, innermost first.
fn places(modules: &[Readable], frame: &Frame) -> Vec<Place> {
    let found = frame
        .offset
        .and_then(|offset| usize::try_from(offset).ok())
        .and_then(|offset| {
            let module = modules
                .iter()
                .find(|module| module.code.contains(&offset))?;
            Some((offset - module.code.start, module.context.as_ref()?))
        });
    let Some((address, context)) = found else {
        return Vec::new();
    };
    let Ok(mut frames) = context.find_frames(address as u64).skip_all_loads() else {
        return Vec::new();
    };
    let mut places = Vec::new();
    while let Ok(Some(frame)) = frames.next() {
        let name = frame.function.as_ref();
        let name = name.and_then(|function| function.raw_name().ok());
        let location = frame.location.as_ref();
        places.push(Place {
            function: name.map(|name| name.into_owned()),
            file: location.and_then(|location| Some(location.file?.to_owned())),
            line: location.and_then(|location| location.line).unwrap_or(0),
            column: location.and_then(|location| location.column).unwrap_or(0),
        });
    }
    places
}

/// `points/src/lib.rs` for a path of the machine that built the component.
fn short_path(file: &str) -> &str {
    let Some(source) = file.rfind("/src/") else {
        return file;
    };
    let package = file[..source].rfind('/').map_or(0, |slash| slash + 1);
    &file[package..]
}

/// Lines, with those that repeat written once and counted.
fn folded(lines: &[String]) -> String {
    let runs = lines.chunk_by(|a, b| a == b).map(|run| match run {
        [line] => line.clone(),
        _ => format!("{} ({} times)", run[0], run.len()),
    });
    runs.collect::<Vec<_>>().join("\n")
}
