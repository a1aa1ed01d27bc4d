//! `hapax parked replay --edit`: the body in the person's editor.
//!
//! The file lies in a directory that nobody else can read, and is removed, unless the edit is refused: then
//! it is kept and named, since it holds the person's work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::message::Message;
use crate::operations::{Changed, Edit, Request, Response};

use super::super::access::Access;
use super::super::ask::who;
use super::super::{Error, unexpected};

/// Edits one message; `None` when the body came back as it was.
pub(super) async fn run(
    access: &Access,
    id: &str,
    dry_run: bool,
) -> Result<Option<Changed>, Error> {
    let Response::Show(shown) = access.execute(Request::Show(id.to_owned())).await? else {
        return Err(unexpected());
    };
    let message = Message::try_from(shown.message.clone())?;
    let Ok(text) = str::from_utf8(&message.body) else {
        return Err(Error::failed(
            "the body is not text, and cannot be edited: publish a corrected message with `hapax publish`, and \
             discard this one",
        ));
    };
    let file = Draft::new(&shown.entry.id, text)
        .map_err(|error| Error::failed(format!("a file for the editor cannot be made: {error}")))?;
    let edited = file.edit(text).await?;
    // A message of which something was withheld may run with the body that it has.
    if edited == text && shown.withheld.is_none() {
        file.remove();
        return Ok(None);
    }
    let request = Request::Edit(Edit {
        id: shown.entry.id.clone(),
        old_body: STANDARD.encode(&message.body),
        new_body: STANDARD.encode(&edited),
        who: who(),
        dry_run,
    });
    match access.execute(request).await {
        Ok(Response::Changed(changed)) => {
            file.remove();
            Ok(Some(changed))
        }
        Ok(_) => Err(unexpected()),
        Err(error) => Err(Error::Other {
            code: error.code(),
            text: format!(
                "{error}\nwhat was written is kept in {}",
                file.path.display()
            ),
        }),
    }
}

/// The file that the editor opens.
struct Draft {
    directory: PathBuf,
    path: PathBuf,
}

impl Draft {
    fn new(id: &str, text: &str) -> io::Result<Self> {
        let name = format!("hapax-edit-{:016x}", fastrand::u64(..));
        let directory = std::env::temp_dir().join(name);
        private_directory(&directory)?;
        let json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        let extension = if json { "json" } else { "txt" };
        let path = directory.join(format!("{}.{extension}", &id[..id.len().min(8)]));
        fs::write(&path, text)?;
        Ok(Self { directory, path })
    }

    /// What is in the file when the editor has ended.
    async fn edit(&self, text: &str) -> Result<String, Error> {
        let editor = ["VISUAL", "EDITOR"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|editor| !editor.is_empty()))
            .unwrap_or_else(|| "vi".to_owned());
        // As a shell reads it: people write `code --wait` there.
        let status = tokio::process::Command::new("sh")
            .arg("-c")
            .arg(format!("{editor} \"$1\""))
            .arg("sh")
            .arg(&self.path)
            .status()
            .await
            .map_err(|error| Error::failed(format!("the editor cannot be started: {error}")))?;
        if !status.success() {
            self.remove();
            return Err(Error::failed(format!(
                "the editor `{editor}` ended with {status}, and nothing was done; set VISUAL or EDITOR"
            )));
        }
        let mut edited = fs::read_to_string(&self.path).map_err(|error| {
            let path = self.path.display();
            Error::failed(format!(
                "{path} cannot be read, and nothing was done: {error}"
            ))
        })?;
        // Editors end the last line; the body had no such end.
        if edited.ends_with('\n') && !text.ends_with('\n') {
            edited.pop();
        }
        Ok(edited)
    }

    fn remove(&self) {
        // What cannot be removed is in a directory of the person's own.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(unix)]
fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(not(unix))]
fn private_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}
