//! What a person sees: what is about to happen, how far it is, the table, and what to try next.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::time::Duration;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, TableComponent, presets,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Report;
use super::orders::Orders;
use super::place::{Contestant, Surroundings};
use super::tally::Tally;
use crate::output::{FAINT, GOOD, STRONG, thousands};

/// Fits into 80 columns.
const BAR: &str = "  {prefix:24}  {bar:16.cyan/dim}  {pos:>7}  {msg}";
const DONE: &str = "  {prefix:24}  {bar:16.green/dim}  {pos:>7}  {msg}";
const SPINNER: &str = "  {spinner} {msg}";

/// The progress of everything, on standard error.
pub struct Screen {
    bars: MultiProgress,
    /// Without a terminal nothing moves; a line is written when a consumer is done.
    plain: bool,
}

/// One consumer's line.
pub struct Bar {
    bar: ProgressBar,
    title: &'static str,
    plain: bool,
}

impl Screen {
    /// With `--json` and no terminal there is nothing to see.
    pub fn new(json: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr_with_hz(15)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            plain: !terminal && !json,
        }
    }

    /// Leaves the lines of the consumers behind, so that something else can be written below them.
    pub fn end(&self) {
        if !self.bars.is_hidden() {
            eprintln!();
        }
    }

    /// Shows what is being done until the result is dropped.
    pub fn doing(&self, what: &str) -> impl Drop + use<> {
        let spinner = self.bars.add(ProgressBar::new_spinner());
        spinner.set_style(style(SPINNER));
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(80));
        Spinner(spinner)
    }

    pub fn bar(&self, contestant: Contestant, deliveries: u64) -> Bar {
        let bar = self
            .bars
            .add(ProgressBar::new(deliveries).with_prefix(contestant.title()));
        bar.set_style(style(BAR));
        bar.tick();
        Bar {
            bar,
            title: contestant.title(),
            plain: self.plain,
        }
    }
}

struct Spinner(ProgressBar);

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Bar {
    /// After a kill some messages are done twice, so there are more to do than there were.
    pub fn at(&self, handled: u64) {
        self.bar
            .set_position(handled.min(self.bar.length().unwrap_or(handled)));
    }

    pub fn killed(&self, after: u64) {
        self.bar
            .set_message(format!("SIGKILL at {}", thousands(after)));
    }

    pub fn finish(&self, seconds: f64) {
        self.bar.set_position(self.bar.length().unwrap_or_default());
        self.bar.set_style(style(DONE));
        let killed = self.bar.message();
        if self.plain {
            eprintln!("{}: {killed}, done in {seconds:.1} s", self.title);
        }
        self.bar
            .abandon_with_message(format!("{killed}  {seconds:.1} s"));
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates are constant");
    style.progress_chars("━╸─").with_key(
        "pos",
        |state: &indicatif::ProgressState, out: &mut dyn Write| {
            // Nothing can be done when a line of progress cannot be written.
            let _ = write!(out, "{:>7}", thousands(state.pos()));
        },
    )
}

/// What is about to happen.
pub fn introduction(orders: &Orders, surroundings: &Surroundings) -> String {
    let deliveries = thousands(orders.deliveries.len() as u64);
    let duplicates = thousands((orders.deliveries.len() - orders.unique) as u64);
    let broker = if surroundings.amqp.is_some() {
        "RabbitMQ"
    } else {
        "embedded broker"
    };
    let store = if surroundings.database.is_some() {
        "Postgres"
    } else {
        "SQLite"
    };
    let steps = [
        (
            "publish",
            format!("{deliveries} paid orders to four queues, {duplicates} of them duplicates"),
        ),
        (
            "consume",
            "four consumers at once, each in a process of its own, same messages".to_owned(),
        ),
        (
            "kill",
            "SIGKILL in the middle of the work, then start again".to_owned(),
        ),
        (
            "count",
            "rows in the business table, events in the output queue".to_owned(),
        ),
    ];
    let mut text = format!(
        "\n  {STRONG}hapax demo{STRONG:#}  {FAINT}{broker}, {store}, seed {}{FAINT:#}\n\n",
        orders.seed
    );
    for (step, what) in steps {
        text.push_str(&format!("  {STRONG}{step:8}{STRONG:#} {what}\n"));
    }
    text + "\n"
}

/// The table, what it says, and what to try next.
pub fn conclusion(report: &Report) -> String {
    format!("\n{}\n{}\n{}", table(report), explanation(report), next())
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if io::stdout().is_terminal() {
        table.set_style(TableComponent::HeaderLines, '─');
    }
    let header = [
        "",
        "deliveries",
        "unique",
        "effects",
        "events",
        "doubled",
        "lost",
    ];
    table.set_header(header.map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    for consumer in &report.consumers {
        let Tally {
            deliveries,
            unique,
            effects,
            events,
            doubled,
            lost,
        } = consumer.tally;
        let mut row = vec![Cell::new(consumer.name)];
        if consumer.is_hapax() {
            row[0] = Cell::new(consumer.name).add_attribute(Attribute::Bold);
        }
        row.extend([deliveries, unique, effects, events].map(|count| Cell::new(thousands(count))));
        row.extend([doubled, lost].map(|count| {
            let color = if count == 0 { Color::Green } else { Color::Red };
            Cell::new(thousands(count))
                .fg(color)
                .add_attribute(Attribute::Bold)
        }));
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((2, 0));
    }
    // The line under the header begins where the text does.
    table.trim_fmt().replace("\n──", "\n  ") + "\n"
}

fn explanation(report: &Report) -> String {
    let mut text = format!(
        "  {FAINT}doubled: effects or events beyond one per order\n  \
         lost: orders without effect or without event\n  \
         The flags are kept in a SQLite file that stands for Redis.{FAINT:#}\n\n"
    );
    if report.is_exact() {
        text.push_str(&format!(
            "  A flag beside the work is wrong on one side of a crash: set after it, the\n  \
             work is done twice; set before it, the work is lost. Hapax commits key, row\n  \
             and event in {STRONG}one transaction{STRONG:#}, and acknowledges after it.\n"
        ));
    } else {
        let bad = crate::output::BAD;
        text.push_str(&format!(
            "  {bad}Hapax lost or doubled something. That is a bug.{bad:#} Please report it with the\n  \
             seed {} and this table.\n",
            report.seed
        ));
    }
    text
}

fn next() -> String {
    let program = program();
    let steps = [
        (
            "on your own servers",
            format!("{program} demo --amqp URL --database URL"),
        ),
        (
            "write a handler",
            "plugins/points/src/lib.rs is a whole one: start from it".to_owned(),
        ),
        (
            "run it as a daemon",
            format!("{program} run --config hapax.toml"),
        ),
    ];
    let mut text = format!("  {STRONG}Next{STRONG:#}\n");
    for (what, how) in steps {
        text.push_str(&format!("  {what:20} {GOOD}{how}{GOOD:#}\n"));
    }
    text + "\n"
}

/// As this program was called, where that fits on a line.
fn program() -> String {
    const LONGEST: usize = 24;
    let called = std::env::args().next().unwrap_or_default();
    if (1..=LONGEST).contains(&called.len()) {
        called
    } else {
        "hapax".to_owned()
    }
}
