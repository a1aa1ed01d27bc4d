//! Queues as a host declares them, on each RabbitMQ that there is.

use std::fmt;

use super::broker::VirtualHost;
use super::host::{Config, Consumer, Host};
use super::place::Place;
use super::servers::{self, Release};
use super::store::Store;

/// What `declare` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// As the configuration names it.
    pub kind: &'static str,
    pub release: Release,
}

impl Declared {
    pub const QUORUM: Declared = Declared {
        kind: "quorum",
        release: Release::Installed,
    };
    pub const CLASSIC: Declared = Declared {
        kind: "classic",
        release: Release::Installed,
    };
    pub const QUORUM_4: Declared = Declared {
        kind: "quorum",
        release: Release::Four,
    };
    pub const CLASSIC_4: Declared = Declared {
        kind: "classic",
        release: Release::Four,
    };
    pub const ALL: [Declared; 4] = [
        Declared::QUORUM,
        Declared::CLASSIC,
        Declared::QUORUM_4,
        Declared::CLASSIC_4,
    ];

    /// A consumer that declares its queue.
    pub fn by(self, consumer: Consumer) -> Consumer {
        let kind = self.kind;
        consumer.set("declare", &format!("{{ type = \"{kind}\" }}"))
    }

    /// A virtual host on the broker that tests of this release share.
    pub async fn create_vhost(self) -> anyhow::Result<VirtualHost> {
        servers::rabbit_of(self.release).await?.create_vhost().await
    }

    /// Lets a host make the queue of a consumer, so that messages can be there before the test's own hosts. It has a
    /// store of its own, and takes nothing.
    pub async fn make(
        self,
        place: &Place,
        broker: &VirtualHost,
        consumer: Consumer,
    ) -> anyhow::Result<()> {
        let own = Place {
            dir: place.dir.join("declares"),
            seed: place.seed,
        };
        std::fs::create_dir_all(&own.dir)?;
        let consumer = self
            .by(consumer)
            .set("lanes", "1")
            .set("grant", "{ read = [] }");
        let store = Store::sqlite(&own);
        let config = Config::new("declares", &store.url, &broker.url).consumer(consumer);
        Host::start(&own, &config).await?.stop().await
    }
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_queue", self.kind)?;
        match self.release {
            Release::Installed => Ok(()),
            Release::Four => f.write_str("_of_rabbitmq_4"),
        }
    }
}
