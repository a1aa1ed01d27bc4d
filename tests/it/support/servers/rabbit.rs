//! A private RabbitMQ node: its own name, cookie, ports, port mapper and data directory, only
//! on the loopback address.
//!
//! The management plugin is enabled because its HTTP interface makes a virtual host in a few
//! milliseconds, where `rabbitmqctl` takes more than a second. Its statistics are switched off:
//! they would cost the processor that the test needs.

mod release;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};
use rustix::process::Signal;
use serde_json::json;

use super::launch::{Launch, compose_wanted};
use crate::support::broker::{Api, VirtualHost};
use crate::support::{place, ports};
use release::Programs;

pub use release::Release;

/// Erlang, the plugins and the recovery of queues, on a machine that does other things too.
const START_PATIENCE: Duration = Duration::from_secs(120);

pub struct Rabbit {
    port: u16,
    api: Api,
    launch: Launch,
    /// The Erlang port mapper of this node; without it Erlang would start one that stays.
    port_mapper: Option<Launch>,
    virtual_hosts: AtomicU32,
    version: String,
}

impl Rabbit {
    /// Starts a node of the RabbitMQ that this machine has.
    pub async fn start(name: &str) -> anyhow::Result<Rabbit> {
        Rabbit::start_release(Release::Installed, name).await
    }

    /// Starts a node, waits until an AMQP login works, and says which version it is.
    pub async fn start_release(release: Release, name: &str) -> anyhow::Result<Rabbit> {
        let dir = place::directory(name)?;
        let (port, api_port) = (ports::free(), ports::free());
        let (launch, port_mapper) = if compose_wanted() {
            let service = service(release, &dir, port, api_port)?;
            (Launch::compose(&dir, "rabbitmq", &service)?, None)
        } else {
            let (node, port_mapper) = native(release, &dir, port, api_port)?;
            (node, Some(port_mapper))
        };
        if let Some(port_mapper) = &port_mapper {
            port_mapper.start()?;
        }
        let mut node = Rabbit {
            port,
            api: Api::on_port(api_port),
            launch,
            port_mapper,
            virtual_hosts: AtomicU32::new(0),
            version: String::new(),
        };
        node.start_again().await?;
        node.version = node.api.version().await?;
        eprintln!("{name} is RabbitMQ {}", node.version);
        Ok(node)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// As the broker tells it, such as `3.10.8`.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn url(&self, virtual_host: &str) -> String {
        format!("amqp://guest:guest@{}/{virtual_host}", self.address())
    }

    /// A new, empty virtual host.
    pub async fn create_vhost(&self) -> anyhow::Result<VirtualHost> {
        let number = self.virtual_hosts.fetch_add(1, Ordering::Relaxed);
        let name = format!("shop{number}");
        self.api.create_virtual_host(&name).await?;
        Ok(VirtualHost::new(self.url(&name), name, self.api.clone()))
    }

    /// A virtual host where a queue that is declared without a type becomes a quorum queue.
    pub async fn create_vhost_of_quorum_queues(&self) -> anyhow::Result<VirtualHost> {
        let number = self.virtual_hosts.fetch_add(1, Ordering::Relaxed);
        let name = format!("shop{number}");
        let settings = json!({"default_queue_type": "quorum"});
        self.api.create_virtual_host_with(&name, settings).await?;
        Ok(VirtualHost::new(self.url(&name), name, self.api.clone()))
    }

    /// An orderly shutdown.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.launch.stop()
    }

    /// SIGKILL for the Erlang machine.
    pub fn kill9(&self) -> anyhow::Result<()> {
        self.launch.kill9()
    }

    /// Starts a stopped or killed node with the same data and waits until a login works.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        self.launch.start()?;
        loop {
            let error = match self.login().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if started.elapsed() > START_PATIENCE || self.launch.has_ended() {
                let log = self.launch.log_tail();
                return Err(error.context(format!("RabbitMQ does not start{log}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn log_tail(&self) -> String {
        self.launch.log_tail()
    }

    pub fn discard(&self) {
        self.launch.discard();
        if let Some(port_mapper) = &self.port_mapper {
            port_mapper.discard();
        }
    }

    async fn login(&self) -> anyhow::Result<()> {
        let url = self.url("%2f");
        let login = Connection::connect(&url, ConnectionProperties::default());
        let connection = tokio::time::timeout(Duration::from_secs(5), login).await??;
        connection.close(200, "OK".into()).await?;
        self.api.answers().await
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.discard();
    }
}

fn native(
    release: Release,
    dir: &Path,
    port: u16,
    api_port: u16,
) -> anyhow::Result<(Launch, Launch)> {
    let programs = Arc::new(Programs::of(release)?);
    let server = programs.server()?;
    let mapper_port = ports::free().to_string();
    let distribution_port = ports::free().to_string();
    let node = format!("hapax-{port}@localhost");
    let dir = dir.to_path_buf();

    let listeners = format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {api_port}\n"
    );
    std::fs::write(dir.join("rabbitmq.conf"), listeners + SETTINGS)?;
    std::fs::write(dir.join("enabled_plugins"), "[rabbitmq_management].\n")?;

    let mapper = Launch::process(dir.join("epmd.log"), Signal::TERM, {
        let (programs, dir) = (Arc::clone(&programs), dir.clone());
        let mapper_port = mapper_port.clone();
        move || {
            let mut command = programs.port_mapper(&dir);
            command.args(["-port", &mapper_port, "-address", "127.0.0.1"]);
            command
        }
    });
    let broker = Launch::process(dir.join("rabbitmq.log"), Signal::TERM, move || {
        let mut command = programs.command(&server, &dir);
        let inside = programs.inside(&dir);
        command
            // The start script then becomes the Erlang machine instead of watching over it,
            // so that a signal to the child reaches the node.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("ERL_EPMD_PORT", &mapper_port)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &node)
            .env("RABBITMQ_DIST_PORT", &distribution_port)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", inside.join("rabbitmq.conf"))
            .env(
                "RABBITMQ_ADVANCED_CONFIG_FILE",
                inside.join("advanced.config"),
            )
            .env(
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                inside.join("enabled_plugins"),
            )
            .env("RABBITMQ_MNESIA_BASE", inside.join("mnesia"))
            .env("RABBITMQ_MNESIA_DIR", inside.join("mnesia/node"))
            .env("RABBITMQ_LOG_BASE", inside.join("log"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", inside.join("generated"))
            .env("RABBITMQ_PID_FILE", inside.join("node.pid"))
            // Idle schedulers sleep at once: the test and the host need the processor.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
            );
        command
    });
    Ok((broker, mapper))
}

const SETTINGS: &str = "\
management_agent.disable_metrics_collector = true
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
";

fn service(release: Release, dir: &Path, port: u16, api_port: u16) -> anyhow::Result<String> {
    let configuration = dir.join("rabbitmq.conf");
    // The port is published on the host's loopback address only, so `guest` may come from there.
    std::fs::write(&configuration, format!("loopback_users = none\n{SETTINGS}"))?;
    let (image, configuration) = (release.image(), configuration.display());
    Ok(format!(
        "    image: {image}\n    \
             hostname: broker\n    \
             ports: [\"127.0.0.1:{port}:5672\", \"127.0.0.1:{api_port}:15672\"]\n    \
             volumes: [\"{configuration}:/etc/rabbitmq/conf.d/90-tests.conf:ro\"]\n"
    ))
}
