//! The real `hapax run`, from the program that is running, with the configuration of a measurement.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::sync::watch;

use super::place::Place;
use super::progress::Progress;
use super::scenario::Handler;
use crate::cli::demo::place::{AMQP_VARIABLE, DATABASE_VARIABLE};
use crate::cli::demo::process::report;

/// Each look costs the measured host some of its time.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Writes the configuration and says how to run it. Returns where the host answers.
pub fn command(
    command: &mut Command,
    place: &Place,
    plugin: &Path,
    handler: Handler,
    lanes: u16,
) -> anyhow::Result<SocketAddr> {
    // The port is free now. Another program would have to take it in the next moments.
    let health = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let file = place.dir.join("hapax.toml");
    std::fs::write(&file, configuration(place, plugin, handler, lanes, health)?)?;
    command.args(["run", "--config"]).arg(file);
    Ok(health)
}

/// Everything that can be left at its default is.
fn configuration(
    place: &Place,
    plugin: &Path,
    handler: Handler,
    lanes: u16,
    health: SocketAddr,
) -> anyhow::Result<String> {
    let mut text = String::from("[store]\n");
    match place.surroundings.database {
        Some(_) => writeln!(
            text,
            "url = {{ env = \"{DATABASE_VARIABLE}\" }}\nschema = \"{}\"\nmigrate = true",
            place.name
        )?,
        None => writeln!(
            text,
            "url = {}",
            quoted(&format!("sqlite:{}", place.store_file().display()))?
        )?,
    }
    match place.surroundings.amqp {
        Some(_) => writeln!(text, "\n[broker]\nurl = {{ env = \"{AMQP_VARIABLE}\" }}")?,
        None => writeln!(text, "\n[broker]\nurl = \"embedded:\"")?,
    }
    let plugin = plugin
        .to_str()
        .context("the path of the plugin is not UTF-8")?;
    let publish = if handler.publish { "yes" } else { "no" };
    writeln!(
        text,
        "\n[health]\nlisten = \"{health}\"\n\n[admin]\nlisten = \"off\"\n\n\
         [[consumer]]\nname = \"bench\"\nqueue = \"{incoming}\"\nplugin = {plugin}\n\
         key = \"body:/order_id\"\nlanes = {lanes}\ngrant = {{ write = [\"t_points\"] }}\n\
         targets = {{ points-credited = {{ exchange = \"\", routing-key = \"{outgoing}\" }} }}\n\
         config = {{ sql = \"{sql}\", publish = \"{publish}\" }}",
        incoming = place.incoming(),
        outgoing = place.outgoing(),
        plugin = quoted(plugin)?,
        sql = handler.sql,
    )?;
    Ok(text)
}

/// JSON's strings are strings of TOML, too.
fn quoted(text: &str) -> anyhow::Result<String> {
    Ok(serde_json::to_string(text)?)
}

/// Looks at the host's metrics until nobody wants to know. A host that does not answer yet is at zero.
pub async fn watch(health: SocketAddr, sender: watch::Sender<Progress>) {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .build()
        .new_agent();
    let url = format!("http://{health}/metrics");
    while !sender.is_closed() {
        let (agent, url) = (agent.clone(), url.clone());
        let page = tokio::task::spawn_blocking(move || {
            agent
                .get(&url)
                .call()
                .ok()?
                .body_mut()
                .read_to_string()
                .ok()
        });
        if let Ok(Some(page)) = page.await {
            report(&sender, Progress::from_metrics(&page));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
