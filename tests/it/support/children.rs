//! Starts child processes that cannot outlive the test run.
//!
//! Linux kills a child whose parent-death signal is set when the parent *thread* ends, and the
//! threads that run tests end early. So every child is started by one thread that lives as long
//! as the process. A test run that is killed takes its servers and hosts with it.

use std::io;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

type Order = (Command, mpsc::Sender<io::Result<Child>>);

static NURSERY: OnceLock<mpsc::Sender<Order>> = OnceLock::new();

/// Starts `command`. The child gets SIGKILL when this process dies, however it dies.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    die_with_parent(&mut command);
    let nursery = NURSERY.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("nursery".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    // A caller that no longer waits has nobody to tell.
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread can be started at the beginning of a test run");
        orders
    });
    let (answer, result) = mpsc::channel();
    nursery
        .send((command, answer))
        .expect("the nursery thread never ends");
    result.recv().expect("the nursery thread never ends")
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes one prctl system call, which is async-signal-safe, and touches
    // no memory of the parent. It runs after the change of user, which would clear the setting.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
