//! What a person sees: what is measured now, the table, the ratios, and how to read them.

use std::io::{self, IsTerminal};
use std::time::Duration;

use comfy_table::{
    Attribute, Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::figures::{Figures, Report};
use super::scenario::Scenario;
use crate::cli::demo::place::Surroundings;
use crate::output::{FAINT, STRONG, count, thousands};

const BAR: &str = "  {spinner} {bar:24.cyan/dim}  {pos}/{len}  {msg}";

/// The progress, on standard error.
pub struct Screen {
    bar: ProgressBar,
    plain: bool,
}

impl Screen {
    pub fn new(json: bool, measurements: usize) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(BAR).expect("the template is constant");
        let bar = ProgressBar::with_draw_target(Some(measurements as u64), target)
            .with_style(style.progress_chars("━╸─"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            bar,
            plain: !terminal && !json,
        }
    }

    pub fn begin(&self, scenario: Scenario) {
        self.bar.set_message(scenario.title());
    }

    pub fn done(&self, scenario: Scenario, messages_per_second: f64) {
        self.bar.inc(1);
        if self.plain {
            eprintln!("{}: {messages_per_second:.0} msg/s", scenario.title());
        }
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// What is about to happen.
pub fn introduction(
    surroundings: &Surroundings,
    messages: usize,
    rounds: usize,
    lanes: u16,
) -> String {
    let broker = match surroundings.amqp {
        Some(_) => "RabbitMQ",
        None => "embedded broker",
    };
    let store = match surroundings.database {
        Some(_) => "Postgres",
        None => "SQLite",
    };
    format!(
        "\n  {STRONG}hapax bench{STRONG:#}  {FAINT}{broker}, {store}, {} messages, {rounds} rounds, {}{FAINT:#}\n\n",
        thousands(messages as u64),
        count(u64::from(lanes), "lane")
    )
}

/// The table, the ratios, and how to read them.
pub fn conclusion(report: &Report) -> String {
    let (paced, full): (Vec<_>, Vec<_>) =
        report.scenarios.iter().partition(|figures| figures.paced);
    let mut tables = Vec::new();
    if !full.is_empty() {
        tables.push(throughput(&full));
    }
    if !paced.is_empty() {
        tables.push(latency(&paced));
    }
    let mut text = tables.join("\n");
    if !report.ratios.is_empty() {
        text.push_str(&format!("\n  {STRONG}Ratios{STRONG:#}\n"));
        for (name, ratio) in &report.ratios {
            text.push_str(&format!("  {name:40} {ratio:6.2}\n"));
        }
    }
    text.push_str(&format!(
        "\n  {FAINT}Medians of the rounds. spread: (fastest - slowest) / median. CPU: milliseconds for 1,000\n  \
         messages. Each round was verified: rows, distinct orders and events are what was published.{FAINT:#}\n\n"
    ));
    text
}

fn throughput(scenarios: &[&Figures]) -> String {
    let mut table = table([
        "",
        "msg/s",
        "spread",
        "host CPU",
        "db CPU",
        "broker CPU",
        "RSS MB",
    ]);
    for figures in scenarios {
        table.add_row([
            Cell::new(&figures.title),
            Cell::new(thousands(figures.messages_per_second as u64)),
            Cell::new(format!("{:.0} %", figures.spread * 100.0)),
            number(figures.cpu_ms_per_1000, 0),
            number(figures.database_cpu_ms_per_1000, 0),
            number(figures.broker_cpu_ms_per_1000, 0),
            number(figures.rss_bytes.map(|bytes| bytes as f64 / 1e6), 0),
        ]);
    }
    finish(table)
}

fn latency(scenarios: &[&Figures]) -> String {
    let mut table = table(["publish → event", "p50 ms", "p99 ms", "host CPU", "db CPU"]);
    for figures in scenarios {
        table.add_row([
            Cell::new(&figures.title),
            number(figures.p50_ms, 1),
            number(figures.p99_ms, 1),
            number(figures.cpu_ms_per_1000, 0),
            number(figures.database_cpu_ms_per_1000, 0),
        ]);
    }
    finish(table)
}

fn number(value: Option<f64>, digits: usize) -> Cell {
    Cell::new(value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}")))
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if io::stdout().is_terminal() {
        table.set_style(TableComponent::HeaderLines, '─');
    }
    table.set_header(header.map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    table
}

fn finish(mut table: Table) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((2, 0));
    }
    // The line under the header begins where the text does.
    table.trim_fmt().replace("\n──", "\n  ") + "\n"
}
