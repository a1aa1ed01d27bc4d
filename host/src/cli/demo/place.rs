//! Where a run of the demo happens: a temporary directory, a random name for what it makes on servers,
//! and the four consumers that run there.

use std::path::{Path, PathBuf};

use super::peer::Strategy;

/// The queue that each consumer reads.
pub const ORDERS: &str = "orders.paid";

/// The queue that its events end up in.
pub const EVENTS: &str = "points.credited";

/// Embedded: the queues of a consumer other than Hapax.
pub const BROKER_FILE: &str = "broker.db";

/// Without a server: the business table of a consumer other than Hapax.
pub const SHOP_FILE: &str = "shop.db";

/// Without servers: the store of Hapax, with its queues and its business table.
pub const HAPAX_FILE: &str = "hapax.db";

/// How the child processes learn of servers. Not by argument: URLs carry passwords.
pub const AMQP_VARIABLE: &str = "HAPAX_DEMO_AMQP";
pub const DATABASE_VARIABLE: &str = "HAPAX_DEMO_DATABASE";

/// The servers, where there are any.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub amqp: Option<String>,
    pub database: Option<String>,
}

/// One of the four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    Peer(Strategy),
    Hapax,
}

/// A run's own corner. Dropping it removes the directory.
pub struct Place {
    pub dir: PathBuf,
    /// `hapax_demo_` and random letters.
    pub name: String,
    pub surroundings: Surroundings,
}

impl Surroundings {
    /// What the parent said to this child process.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self {
            amqp: variable(AMQP_VARIABLE),
            database: variable(DATABASE_VARIABLE),
        }
    }

    /// What to say to child processes.
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        let amqp = self.amqp.as_deref().map(|url| (AMQP_VARIABLE, url));
        let database = self.database.as_deref().map(|url| (DATABASE_VARIABLE, url));
        amqp.into_iter().chain(database).collect()
    }
}

impl Contestant {
    pub const ALL: [Self; 4] = [
        Self::Peer(Strategy::None),
        Self::Peer(Strategy::FlagAfter),
        Self::Peer(Strategy::FlagBefore),
        Self::Hapax,
    ];

    /// As people read it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Peer(Strategy::None) => "no protection",
            Self::Peer(Strategy::FlagAfter) => "flag set after the work",
            Self::Peer(Strategy::FlagBefore) => "flag set before the work",
            Self::Hapax => "Hapax",
        }
    }

    /// In the names of files, queues and schemas.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Peer(Strategy::None) => "none",
            Self::Peer(Strategy::FlagAfter) => "flag_after",
            Self::Peer(Strategy::FlagBefore) => "flag_before",
            Self::Hapax => "hapax",
        }
    }
}

impl Place {
    pub fn make(surroundings: Surroundings) -> std::io::Result<Self> {
        let letters = std::iter::repeat_with(fastrand::lowercase)
            .take(8)
            .collect::<String>();
        let name = format!("hapax_demo_{letters}");
        let dir = std::env::temp_dir().join(&name);
        // Not `create_dir_all`: a directory that is there already is not ours.
        std::fs::create_dir(&dir)?;
        let place = Self {
            dir,
            name,
            surroundings,
        };
        for contestant in Contestant::ALL {
            std::fs::create_dir(place.dir_of(contestant))?;
        }
        Ok(place)
    }

    pub fn dir_of(&self, contestant: Contestant) -> PathBuf {
        self.dir.join(contestant.slug())
    }

    /// The schema of a consumer's table, and the beginning of its queues' names.
    pub fn name_of(&self, contestant: Contestant) -> String {
        format!("{}_{}", self.name, contestant.slug())
    }

    /// A queue of a consumer, as its broker names it. Each has an embedded broker of its own.
    pub fn queue_of(&self, contestant: Contestant, queue: &str) -> String {
        match self.surroundings.amqp {
            Some(_) => format!("{}.{queue}", self.name_of(contestant)),
            None => queue.to_owned(),
        }
    }

    /// The file with a consumer's queues, when the broker is the embedded one.
    pub fn broker_file(&self, contestant: Contestant) -> PathBuf {
        self.dir_of(contestant).join(match contestant {
            Contestant::Peer(_) => BROKER_FILE,
            Contestant::Hapax => HAPAX_FILE,
        })
    }

    /// The file with a consumer's business table, when there is no server for it.
    pub fn shop_file(&self, contestant: Contestant) -> PathBuf {
        self.dir_of(contestant).join(match contestant {
            Contestant::Peer(_) => SHOP_FILE,
            Contestant::Hapax => HAPAX_FILE,
        })
    }

    /// Where a consumer's processes write what they have to say.
    pub fn log_of(&self, contestant: Contestant) -> PathBuf {
        self.dir_of(contestant).join("log")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        eprintln!("cannot remove {}: {error}", dir.display());
    }
}
