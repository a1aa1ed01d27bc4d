//! The broker that a queue is on, as far as queues depend on its version.
//!
//! Decided by what the broker says of itself when it is connected to, and never by what it answers to a
//! declaration: RabbitMQ 3 takes a delivery limit below zero without a word, and then drops messages by it.

use lapin::Connection;

use crate::amqp::Screen;

/// A connection, and who is at its other end.
#[derive(Clone, Copy)]
pub struct Broker<'c> {
    pub connection: &'c Connection,
    /// `None` where it is another product than RabbitMQ, or does not say.
    pub version: Option<Version>,
}

/// A version of RabbitMQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
}

impl Version {
    /// The first in which a quorum queue without a limit of its own has one, and a negative limit is none.
    const FOUR: Self = Self { major: 4, minor: 0 };

    /// The oldest that is supported.
    const OLDEST: Self = Self {
        major: 3,
        minor: 10,
    };

    /// Reads the properties that a broker tells of itself, such as `RabbitMQ` and `3.10.8`.
    pub fn told(product: &str, version: &str) -> Option<Self> {
        if product != "RabbitMQ" {
            return None;
        }
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl<'c> Broker<'c> {
    /// The broker of a connection, as its screen has heard it introduce itself.
    pub fn of(connection: &'c Connection, screen: &Screen) -> Self {
        let server = screen.server();
        Self {
            connection,
            version: server.and_then(|server| Version::told(&server.product, &server.version)),
        }
    }

    /// A quorum queue drops a message after [`super::DEFAULT_DELIVERY_LIMIT`] returns unless it, or a policy, says
    /// otherwise; a negative limit says that there is none.
    pub(super) fn limits_by_itself(self) -> bool {
        self.version.is_some_and(|version| version >= Version::FOUR)
    }

    /// A negative limit is a limit below zero: a quorum queue drops a message when it is given back for the
    /// first time.
    pub(super) fn drops_below_zero(self) -> bool {
        self.version.is_some_and(|version| version < Version::FOUR)
    }

    /// It refuses arguments of a consumer that the type of its queue does not know.
    pub(super) fn knows_types_of_queues(self) -> bool {
        self.version
            .is_some_and(|version| version >= Version::OLDEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_rabbitmq_says_and_from_nobody_else() {
        let told =
            |version| Version::told("RabbitMQ", version).map(|told| (told.major, told.minor));
        assert_eq!(told("3.10.8"), Some((3, 10)));
        assert_eq!(told("4.0.5"), Some((4, 0)));
        assert_eq!(told("4.3.0-rc.1+7"), Some((4, 3)));
        assert_eq!(told("10.1"), Some((10, 1)));
        for nonsense in ["", "4", "four.0", "-1.0", "99999999999999999999.0"] {
            assert_eq!(told(nonsense), None, "{nonsense}");
        }
        assert_eq!(Version::told("LavinMQ", "4.0.5"), None);
        assert!(Version::told("RabbitMQ", "3.13.7") < Some(Version::FOUR));
        assert!(Version::told("RabbitMQ", "3.9.29") < Some(Version::OLDEST));
    }
}
