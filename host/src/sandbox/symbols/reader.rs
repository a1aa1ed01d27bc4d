//! The process that reads debug information: a guest's author writes that, and libraries that parse it recurse as
//! deep, and allocate as much, as it says. No bound on its bytes bounds either, since a few of them can stand for
//! a table of any size. So it is read where the system sets the bounds: in a process of this same program that
//! holds nothing else, with a limit on its memory and its time. A file that asks for more ends that process.
//!
//! It is asked through a socket in place of its standard input, and leaves when that closes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::ops::Range;

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, Error, LittleEndian};
use serde::{Deserialize, Serialize};

use super::super::text::{MAX_TEXT_BYTES, bounded};
use super::{Frame, Module};

/// Memory that the process may take beyond what it has when it starts.
#[cfg(target_os = "linux")]
const MEMORY_BYTES: u64 = 512 << 20;

/// Processor time of all that one process reads.
#[cfg(unix)]
const CPU_SECONDS: u64 = 30;

/// The largest question or answer.
const MAX_PACKET_BYTES: u32 = 256 * 1024;

/// Where the sources of languages' own libraries were when those were built: Rust's, and C's under it.
const LIBRARIES: &[&str] = &["/rustc/", "wasisdk://"];

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// What is sent of a module before the bytes of its sections.
#[derive(Serialize, Deserialize)]
struct Outline {
    code: Range<usize>,
    /// Names and lengths, in the order of the bytes.
    sections: Vec<(String, usize)>,
}

/// Tells the process what it is asked about.
pub(super) fn send_modules(to: &mut impl Write, modules: &[Module]) -> io::Result<()> {
    let count = u32::try_from(modules.len()).map_err(io::Error::other)?;
    to.write_all(&count.to_le_bytes())?;
    for module in modules {
        let sections: Vec<_> = module.sections.iter().collect();
        let outline = Outline {
            code: module.code.clone(),
            sections: sections
                .iter()
                .map(|(name, bytes)| ((*name).clone(), bytes.len()))
                .collect(),
        };
        send(to, &serde_json::to_vec(&outline)?)?;
        for (_, bytes) in sections {
            to.write_all(bytes)?;
        }
    }
    Ok(())
}

fn receive_modules(from: &mut impl Read) -> io::Result<Vec<Module>> {
    let mut modules = Vec::new();
    for _ in 0..read_u32(from)? {
        let outline: Outline = serde_json::from_slice(&receive(from)?)?;
        let mut sections = HashMap::new();
        for (name, length) in outline.sections {
            let mut bytes = vec![0; length];
            from.read_exact(&mut bytes)?;
            sections.insert(name, bytes.into());
        }
        modules.push(Module {
            code: outline.code,
            sections,
        });
    }
    Ok(modules)
}

/// The backtrace of these frames, as the process reads it.
pub(super) fn ask(process: &mut (impl Read + Write), frames: &[Frame]) -> io::Result<String> {
    send(process, &serde_json::to_vec(frames)?)?;
    Ok(bounded(&receive(process)?, MAX_TEXT_BYTES))
}

/// Answers until nobody asks any more. This is all that the process does.
#[cfg(unix)]
pub(super) fn serve() -> io::Result<()> {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    confine()?;
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let modules = receive_modules(&mut line)?;
    let modules: Vec<_> = modules.iter().map(Readable::of).collect();
    while let Ok(question) = receive(&mut line) {
        let frames: Vec<Frame> = serde_json::from_slice(&question)?;
        send(&mut line, render(&modules, &frames).as_bytes())?;
    }
    Ok(())
}

/// Sets the bounds of this process, for good.
#[cfg(unix)]
fn confine() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |most: u64| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Cpu, limit(CPU_SECONDS))?;
    #[cfg(target_os = "linux")]
    {
        let pages = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = pages
            .split(' ')
            .next()
            .and_then(|pages| pages.parse().ok())
            .ok_or_else(|| io::Error::other("the size of this process is not known"))?;
        let bytes = pages * rustix::param::page_size() as u64 + MEMORY_BYTES;
        setrlimit(Resource::As, limit(bytes))?;
        // Where the machine runs out of memory all the same, this process goes, and not the host.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    }
    Ok(())
}

fn send(to: &mut impl Write, packet: &[u8]) -> io::Result<()> {
    let length = u32::try_from(packet.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(packet)
}

fn receive(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = read_u32(from)?;
    if length > MAX_PACKET_BYTES {
        return Err(io::Error::other(format!("a packet of {length} bytes")));
    }
    let mut packet = vec![0; length as usize];
    from.read_exact(&mut packet)?;
    Ok(packet)
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// A module whose debug information has been read.
pub(super) struct Readable<'a> {
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

/// One frame a line, innermost first: `handle at points/src/lib.rs:9:41`. Functions that were inlined into one
/// another are frames of their own. Frames of the language's own library are left out when there are others:
/// what led there is in the panic's text.
pub(super) fn render(modules: &[Readable], frames: &[Frame]) -> String {
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
