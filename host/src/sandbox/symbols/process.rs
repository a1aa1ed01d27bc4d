//! The host's end of the process that reads debug information: starts it, asks it, and tells why it ended.

use std::fmt;
use std::sync::OnceLock;

use super::{Frame, Module, reader};

/// The argument with which this program is the process. No command has that name.
const ARGUMENT: &str = "__read-debug-information";

/// How long the process has for one answer, the first of which reads all that there is.
#[cfg(unix)]
const ANSWER: std::time::Duration = std::time::Duration::from_secs(20);

/// Questions that one process answers, so that its limit of processor time is one for a number of them.
const MAX_QUESTIONS: u32 = 1_000;

/// Set where this program answers to [`ARGUMENT`]. Another one that uses the host as a library, as a benchmark does,
/// would begin its own work.
static READS: OnceLock<()> = OnceLock::new();

/// Why debug information is not read.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// There is more of it than is kept.
    Bytes(usize),
    /// The process that read it has ended, or does not answer.
    Ended(String),
    /// There is no process.
    NotStarted(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => {
                write!(f, "it has {bytes} bytes, and {} are read", super::MAX_BYTES)
            }
            Self::Ended(how) => write!(f, "the process that read it {how}"),
            Self::NotStarted(error) => write!(f, "no process to read it: {error}"),
        }
    }
}

/// Takes this process for a reader of debug information if that is what it was started for, and returns how it
/// ended. Otherwise notes that this program can be one. To be called first of all.
pub fn serve_if_asked() -> Option<std::process::ExitCode> {
    use std::process::ExitCode;
    if std::env::args_os()
        .nth(1)
        .is_none_or(|first| first != ARGUMENT)
    {
        let _ = READS.set(());
        return None;
    }
    #[cfg(unix)]
    if reader::serve().is_ok() {
        return Some(ExitCode::SUCCESS);
    }
    Some(ExitCode::FAILURE)
}

#[cfg(unix)]
pub(super) use unix::Process;

#[cfg(unix)]
mod unix {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that has been told of all modules.
    pub(in super::super) struct Process {
        child: Child,
        line: UnixStream,
        questions: u32,
    }

    impl Process {
        pub(in super::super) fn start(modules: &[Module]) -> Result<Self, Refusal> {
            let mut process =
                Self::spawn().map_err(|error| Refusal::NotStarted(error.to_string()))?;
            let told = reader::send_modules(&mut process.line, modules);
            told.map_err(|error| process.ended(&error))?;
            Ok(process)
        }

        fn spawn() -> io::Result<Self> {
            let (line, theirs) = UnixStream::pair()?;
            line.set_read_timeout(Some(ANSWER))?;
            line.set_write_timeout(Some(ANSWER))?;
            let child = program()?
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .current_dir("/")
                // A key that interrupts the host in a terminal is not meant for this one.
                .process_group(0)
                .spawn()?;
            Ok(Self {
                child,
                line,
                questions: 0,
            })
        }

        pub(in super::super) fn is_used_up(&self) -> bool {
            self.questions >= MAX_QUESTIONS
        }

        pub(in super::super) fn ask(&mut self, frames: &[Frame]) -> Result<String, Refusal> {
            self.questions += 1;
            reader::ask(&mut self.line, frames).map_err(|error| self.ended(&error))
        }

        /// Ends the process if it has not ended by itself, and says how it did.
        fn ended(&mut self, error: &io::Error) -> Refusal {
            let late = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            );
            if late {
                let _ = self.child.kill();
            }
            let status = self.child.wait();
            Refusal::Ended(match status {
                _ if late => format!("did not answer within {ANSWER:?}"),
                Ok(status) => match status.signal() {
                    Some(signal) => format!(
                        "has ended with signal {signal}: it is damaged, or wants more memory or time than there is"
                    ),
                    None => format!("has ended: {status}"),
                },
                Err(_) => format!("does not answer: {error}"),
            })
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// This program, even when its file has been replaced since it started.
    #[cfg(not(test))]
    fn program() -> io::Result<Command> {
        READS
            .get()
            .ok_or_else(|| io::Error::other("this program has none"))?;
        let program = match cfg!(target_os = "linux") {
            true => "/proc/self/exe".into(),
            false => std::env::current_exe()?,
        };
        let mut command = Command::new(program);
        command
            .arg(ARGUMENT)
            .env_clear()
            // What its allocator would reserve at the start is memory that no limit takes away again.
            .env("MIMALLOC_ARENA_RESERVE", "0");
        Ok(command)
    }

    /// The tests are the program, and one of them is the process.
    #[cfg(test)]
    fn program() -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", super::super::tests::PROCESS, "--nocapture"])
            .env(ARGUMENT, "1");
        Ok(command)
    }

    #[cfg(test)]
    pub(in super::super) fn is_process() -> bool {
        std::env::var_os(ARGUMENT).is_some()
    }
}

#[cfg(all(test, unix))]
pub(super) use unix::is_process;

/// There is none where the system has no such bounds.
#[cfg(not(unix))]
pub(super) struct Process;

#[cfg(not(unix))]
impl Process {
    pub(super) fn start(_: &[Module]) -> Result<Self, Refusal> {
        Err(Refusal::NotStarted("not on this system".into()))
    }

    pub(super) fn is_used_up(&self) -> bool {
        false
    }

    pub(super) fn ask(&mut self, _: &[Frame]) -> Result<String, Refusal> {
        Err(Refusal::NotStarted("not on this system".into()))
    }
}
