use super::*;
use std::fmt;
use std::sync::{Arc, Mutex};

/// What a subscriber has written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn writer(&self) -> impl Fn() -> Written + Send + Sync + 'static {
        let written = self.clone();
        move || written.clone()
    }

    fn text(&self) -> String {
        let bytes = self.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("a log is UTF-8")
    }
}

/// All that steers a terminal, begins a line, or turns the direction of what is read, and a URL.
const HOSTILE: &str = "a\u{1b}]0;OWNED\u{7}\u{1b}[31m\r\nFAKE INFO forged\u{85}\u{9b}2J\u{7f}\u{8}\u{61c}\u{200e}\u{2028}\u{202e}\u{2066}\u{206f}\u{feff}\u{0} vhost /,amqp://hapax:hunter2@mq:5672// not found";

/// Shows the same in each way of showing, and has the same as its cause.
struct Hostile(u32);

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HOSTILE)
    }
}

impl fmt::Display for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HOSTILE)
    }
}

impl std::error::Error for Hostile {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        const CAUSES: [Hostile; 2] = [Hostile(0), Hostile(1)];
        static HELD: [Hostile; 2] = CAUSES;
        let cause = self.0.checked_sub(1)?;
        Some(&HELD[cause as usize])
    }
}

/// One record with the text in every kind of field, of itself and of the span around it.
fn say_it_all() {
    let error: &(dyn std::error::Error + 'static) = &Hostile(2);
    let span = tracing::info_span!(
        "message",
        shown = %Hostile(0), debugged = ?Hostile(0), text = HOSTILE, later = tracing::field::Empty
    );
    span.record("later", tracing::field::display(Hostile(0)));
    let _entered = span.enter();
    tracing::info!(
        shown = %Hostile(0), debugged = ?Hostile(0), text = HOSTILE, error,
        bytes = &b"\x1b[2J"[..], number = 7, "{HOSTILE}"
    );
}

fn everything() -> EnvFilter {
    filter("trace").expect("valid")
}

#[track_caller]
fn assert_harmless(written: &str) {
    let line = written.strip_suffix('\n').expect("a line");
    assert_eq!(output::clean(line), line);
    assert!(!written.contains("hunter2"), "{written}");
    assert!(written.contains("amqp://hapax:***@mq:5672//"), "{written}");
}

#[test]
fn nothing_in_a_record_can_steer_a_terminal_or_forge_a_line() {
    let written = Written::default();
    let subscriber = as_text(everything(), false, written.writer());
    tracing::subscriber::with_default(subscriber, say_it_all);
    let text = written.text();
    assert_harmless(&text);
    assert_eq!(text.matches("FAKE INFO").count(), 11, "{text}");
    assert!(text.contains("error.sources=["), "{text}");
    assert!(text.contains("number=7"), "{text}");
}

#[test]
fn colours_of_the_host_are_all_that_a_terminal_gets() {
    let written = Written::default();
    let subscriber = as_text(everything(), true, written.writer());
    tracing::subscriber::with_default(subscriber, say_it_all);
    let text = written.text();
    assert!(
        text.contains("\u{1b}[3mshown\u{1b}[0m\u{1b}[2m=\u{1b}[0ma\\u{1b}]0;OWNED"),
        "{text}"
    );
    let plain: String = text
        .split("\u{1b}[")
        .map(|piece| piece.trim_start_matches(|c: char| c.is_ascii_digit()))
        .map(|piece| piece.strip_prefix('m').unwrap_or(piece))
        .collect();
    assert_harmless(&plain);
}

#[test]
fn json_is_json_and_can_be_looked_at() {
    let written = Written::default();
    let subscriber = as_json(everything(), written.writer());
    tracing::subscriber::with_default(subscriber, say_it_all);
    let text = written.text();
    assert_harmless(&text);
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let message = record["message"].as_str().expect("a text");
    assert_eq!(message, HOSTILE.replace("hunter2", "***"));
    assert_eq!(record["shown"], record["message"]);
}

#[test]
fn the_text_of_a_panic_is_harmless() {
    let text = panic_text(&HOSTILE.to_owned());
    assert_eq!(text, panic_text(&HOSTILE));
    assert_harmless(&(text + "\n"));
    assert_eq!(panic_text(&7), "without a text");
}

#[test]
fn a_filter_for_everything_does_not_reach_the_crates_that_print_payloads() {
    let shown = filter("trace").expect("valid").to_string();
    assert!(
        shown.contains("lapin=off") && shown.contains("trace"),
        "{shown}"
    );
}

#[test]
fn a_filter_that_names_a_silenced_crate_wins() {
    let shown = filter("info,lapin=debug").expect("valid").to_string();
    assert!(
        shown.contains("lapin=debug") && !shown.contains("lapin=off"),
        "{shown}"
    );
}

#[test]
fn a_filter_that_is_none_is_an_error_that_quotes_it() {
    let error = filter("hapax=loud").expect_err("no level").to_string();
    assert!(
        error.contains("hapax=loud") && error.contains("write for example"),
        "{error}"
    );
}
