//! `hapax check`: what a host would do with this configuration, and everything that is wrong with it.
//!
//! Without `--connect` only files are opened. With it the store and the broker are asked too. Nothing is
//! declared, migrated, consumed or written.

mod report;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use lapin::Connection;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use crate::amqp::{self, Screen};
use crate::config::{self, Config, StoreKind};
use crate::host::{StartError, broker_address, inspect, open_store, rules};
use crate::operations::Request;
use crate::output;
use crate::sandbox::{Plugin, Sandbox, SandboxOptions};
use crate::source::amqp::{Broker, QueueError, look};
use crate::store::{Dialect, StoreError};

use super::access::Access;
use super::{Error, USAGE, print_json};
use report::{ConsumerReport, PluginReport, Report};

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Ask the store and the broker too
    #[arg(long)]
    connect: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: &CheckArgs, config: Arc<Config>) -> Result<ExitCode, Error> {
    let mut report = Report::new(&config);
    report.warnings.extend(crate::host::warnings(&config));
    check_consumers(&config, &mut report).await?;
    if arguments.connect {
        check_store(&config, &mut report).await;
        check_broker(&config, &mut report).await;
    }
    if arguments.json {
        print_json(&report)?;
    } else {
        output::print(&report.render())?;
        output::complain(&report.render_problems());
    }
    Ok(ExitCode::from(report.exit_code))
}

impl Report {
    fn problem(&mut self, code: u8, text: impl Into<String>) {
        self.problems.push(text.into());
        // What the configuration can mend comes before what may mend itself.
        self.exit_code = match (self.exit_code, code) {
            (USAGE, _) | (_, USAGE) => USAGE,
            (0, code) => code,
            (known, _) => known,
        };
    }
}

/// Loads every plugin, and reads every grant.
async fn check_consumers(config: &Config, report: &mut Report) -> Result<(), Error> {
    let limits = || config.consumers.iter().map(|consumer| &consumer.limits);
    let sandbox = Sandbox::new(SandboxOptions {
        concurrent_instances: 1,
        max_memory: limits()
            .map(|limits| limits.memory)
            .max()
            .unwrap_or_default(),
        max_table_elements: limits()
            .map(|limits| limits.table_elements)
            .max()
            .unwrap_or_default(),
        metered: false,
        compile_timeout: config.host.compile_timeout,
    })
    .map_err(StartError::Sandbox)?;
    let dialect = match config.store.kind {
        StoreKind::Sqlite { .. } => Dialect::Sqlite,
        StoreKind::Postgres { .. } => Dialect::Postgres,
    };
    for consumer in &config.consumers {
        let (sandbox, path) = (Arc::clone(&sandbox), consumer.plugin.clone());
        let loaded = tokio::task::spawn_blocking(move || Plugin::load(&sandbox, &path)).await;
        let plugin = match loaded.expect("loading a component does not panic") {
            Ok(plugin) => {
                check_memory(consumer, &plugin, report);
                Some(PluginReport::new(&plugin, consumer.random))
            }
            Err(error) => {
                report.problem(USAGE, format!("consumer {}: {error}", consumer.name));
                None
            }
        };
        if let Err(error) = rules(consumer, dialect) {
            report.problem(USAGE, error.to_string());
        }
        report.consumers.push(ConsumerReport::new(consumer, plugin));
    }
    Ok(())
}

fn check_memory(consumer: &config::Consumer, plugin: &Plugin, report: &mut Report) {
    let (needs, may) = (plugin.initial_memory_bytes(), consumer.limits.memory);
    if needs > may {
        report.problem(
            USAGE,
            format!(
                "consumer {}: the plugin begins with {needs} bytes of memory, and `limits.memory` is {may}; \
                 no message could run",
                consumer.name
            ),
        );
    }
}

/// Whether the tables are there, and whether the server keeps what it commits.
async fn check_store(config: &Config, report: &mut Report) {
    if let StoreKind::Sqlite { path } = &config.store.kind
        && !path.exists()
    {
        // Opening it would make it.
        report.notes.push(format!(
            "store: {} is not there yet; `hapax run` makes it",
            path.display()
        ));
        return;
    }
    let store = match open_store(config) {
        Ok(store) => store,
        Err(refused) => return check_daemon(config, refused, report).await,
    };
    let asked = async {
        let pending = store.pending_migrations().await?;
        Ok::<_, StoreError>((pending, store.warnings().await?))
    };
    match asked.await {
        Ok((pending, warnings)) => {
            report.warnings.extend(warnings);
            if pending.is_empty() {
                report
                    .notes
                    .push("store: reached, its tables are up to date".into());
            } else if config.store.migrate {
                report.notes.push(format!(
                    "store: reached; `hapax run` applies {}",
                    pending.join(", ")
                ));
            } else {
                let store = config.store.kind.to_string();
                let missing = StartError::Schema { store, pending };
                report.problem(missing.exit_code(), missing.to_string());
            }
        }
        Err(error) => {
            let store = config.store.kind.to_string();
            let error = StartError::Store { store, error };
            report.problem(error.exit_code(), error.to_string());
        }
    }
}

/// A SQLite file that a running host has is well looked after.
async fn check_daemon(config: &Config, refused: StartError, report: &mut Report) {
    let asked = async {
        let access = Access::through_daemon(config, refused).await?;
        access.execute(Request::Status).await
    };
    match asked.await {
        Ok(_) => report
            .notes
            .push("store: in use by the running host, which answers".into()),
        Err(error) => report.problem(error.code(), error.to_string()),
    }
}

/// Whether queues and exchanges are there.
async fn check_broker(config: &Config, report: &mut Report) {
    let Some(address) = broker_address(config) else {
        return;
    };
    let screen = Arc::new(Screen::open());
    let connection = match address
        .connect_screened("hapax check", Arc::clone(&screen))
        .await
    {
        Ok(connection) => connection,
        Err(error) => {
            let error = StartError::Broker(error);
            report.problem(error.exit_code(), error.to_string());
            return;
        }
    };
    report.notes.push("broker: reached".into());
    for consumer in &config.consumers {
        let name = &consumer.name;
        match inspect(Broker::of(&connection, &screen), consumer).await {
            Ok(warnings) => {
                let warnings = warnings.iter();
                let told = warnings.map(|warning| format!("consumer {name}: {warning}"));
                report.warnings.extend(told);
            }
            Err(QueueError::Missing(queue)) if consumer.declare.is_some() => {
                report.notes.push(format!(
                    "consumer {name}: `hapax run` declares the queue {queue}"
                ));
            }
            Err(error) => report.problem(USAGE, format!("consumer {name}: {error}")),
        }
        for (target, there) in &consumer.targets {
            check_target(&connection, name, target, there, report).await;
        }
    }
    // What was asked is answered.
    amqp::close(&connection).await;
}

/// A target that is missing stops nobody: its messages wait in the outbox. So it is a warning.
async fn check_target(
    connection: &Connection,
    consumer: &str,
    name: &str,
    target: &config::Target,
    report: &mut Report,
) {
    let found = if !target.exchange.is_empty() {
        look_for_exchange(connection, &target.exchange).await
    } else if target.routing_key.is_empty() {
        // The handler names the queue of each message.
        Ok(())
    } else {
        match look(connection, &target.routing_key).await {
            Err(QueueError::Missing(queue)) => Err(format!("there is no queue {queue}")),
            other => other.map_err(|error| error.to_string()),
        }
    };
    if let Err(reason) = found {
        report.warnings.push(format!(
            "consumer {consumer}: messages to the target {name} would wait in the outbox: {reason}"
        ));
    }
}

async fn look_for_exchange(connection: &Connection, exchange: &str) -> Result<(), String> {
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let name = ShortString::try_new(exchange).map_err(|error| error.to_string())?;
    let asked = async {
        let channel = connection.create_channel().await?;
        // A passive declaration does not look at the kind.
        let kind = lapin::ExchangeKind::Direct;
        channel
            .exchange_declare(name, kind, passive, FieldTable::default())
            .await
    };
    asked.await.map_err(|error: lapin::Error| error.to_string())
}
