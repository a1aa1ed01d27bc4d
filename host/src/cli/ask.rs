//! Asks a person before something that cannot be taken back, and knows who the person is.

use std::io::{self, IsTerminal, Write};

use super::Error;

/// Goes on when the person agrees, or has agreed with `--yes`. Without a terminal nobody can be asked, and
/// nobody is taken to have agreed.
pub(super) fn confirm(question: &str, yes: bool) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Error::usage(format!(
            "{question} There is no terminal to ask on: add --yes to do it, or --dry-run to see what it means"
        )));
    }
    if agrees(question)? {
        return Ok(());
    }
    Err(Error::failed("nothing was changed"))
}

fn agrees(question: &str) -> io::Result<bool> {
    let mut prompt = anstream::stderr().lock();
    write!(prompt, "{question} [y/N] ")?;
    prompt.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

/// Who works here, for the journal: the login name, also behind `sudo`, and the machine.
pub(super) fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    let user = user.unwrap_or_else(|| "somebody".to_owned());
    match machine {
        Some(machine) => format!("{user}@{machine}"),
        None => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_nobody_is_taken_to_have_agreed() {
        // The tests' standard input is none.
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            return;
        }
        let error = confirm("Discard 3 messages?", false).expect_err("nobody was asked");
        assert_eq!(error.code(), 64);
        assert!(error.to_string().contains("--yes"), "{error}");
        assert!(confirm("Discard 3 messages?", true).is_ok());
    }
}
