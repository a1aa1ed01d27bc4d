//! The fourth consumer: the real `hapax run`, from the program that is running, with a configuration like
//! any other.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::sync::watch;

use super::place::{
    AMQP_VARIABLE, Contestant, DATABASE_VARIABLE, EVENTS, HAPAX_FILE, ORDERS, Place,
};
use super::process::report;
use super::progress::Progress;

/// Messages that may be on their way when the process is killed. After the kill each of them comes again
/// marked as redelivered, and Hapax runs those alone.
const PREFETCH: u16 = 256;

/// Messages in one transaction.
const BATCH: usize = 128;

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Writes the configuration and says how to run it. Returns where the host answers.
pub fn command(command: &mut Command, place: &Place, plugin: &Path) -> anyhow::Result<SocketAddr> {
    // The port is free now. Another program would have to take it in the next moments.
    let health = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let file = place.dir_of(Contestant::Hapax).join("hapax.toml");
    std::fs::write(&file, configuration(place, plugin, health)?)?;
    command.args(["run", "--config"]).arg(file);
    Ok(health)
}

fn configuration(place: &Place, plugin: &Path, health: SocketAddr) -> anyhow::Result<String> {
    let surroundings = &place.surroundings;
    let mut text = String::from("[store]\n");
    match surroundings.database {
        Some(_) => {
            let schema = place.name_of(Contestant::Hapax);
            writeln!(text, "url = {{ env = \"{DATABASE_VARIABLE}\" }}")?;
            writeln!(text, "schema = \"{schema}\"\nmigrate = true")?;
        }
        None => writeln!(text, "url = \"sqlite:{HAPAX_FILE}\"")?,
    }
    match surroundings.amqp {
        Some(_) => writeln!(text, "\n[broker]\nurl = {{ env = \"{AMQP_VARIABLE}\" }}")?,
        None => writeln!(text, "\n[broker]\nurl = \"embedded:\"")?,
    }
    writeln!(
        text,
        "\n[health]\nlisten = \"{health}\"\n\n[admin]\nlisten = \"off\""
    )?;
    let orders = place.queue_of(Contestant::Hapax, ORDERS);
    let events = place.queue_of(Contestant::Hapax, EVENTS);
    let plugin = plugin
        .to_str()
        .context("the path of the plugin is not UTF-8")?;
    // JSON's strings are strings of TOML, too.
    let plugin = serde_json::to_string(plugin)?;
    writeln!(
        text,
        "\n[[consumer]]\nname = \"points\"\nqueue = \"{orders}\"\nplugin = {plugin}\n\
         key = \"body:/order_id\"\nprefetch = {PREFETCH}\nbatch = {BATCH}\n\
         grant = {{ write = [\"t_points\"] }}\n\
         targets = {{ points-credited = {{ exchange = \"\", routing-key = \"{events}\" }} }}"
    )?;
    Ok(text)
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
