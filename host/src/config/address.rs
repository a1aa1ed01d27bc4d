//! Owns the form of a server's URL, `SCHEME://USER:PASSWORD@HOST:PORT/PATH?NAME=VALUE`, before anybody connects.
//!
//! Guarantees that in a URL that passes, all readers see the same host: a character of a password that ends the
//! user's part of it, as a raw `@`, `/`, `?` or `#` does, is refused here, before a piece of the password is looked
//! up as a name. Nothing that is said repeats any part of the URL. Does not know what a parameter means.

use std::ops::Range;

use url::Url;

use super::rule::Invalid;

const ENCODE: &str = "percent-encode special characters in the user and the password: `@` is `%40`, `:` is `%3A`, `/` \
                      is `%2F`, `?` is `%3F`, `#` is `%23`, `%` is `%25`";

const ONE_HOST: &str = "a URL names one server: give several one address with a TCP proxy (HAProxy) or a name in DNS, \
                        and write that";

/// Where the secrets of a well-formed URL are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Secrets {
    /// The user, where it stands without a password: then it may be one.
    pub user_alone: Option<Range<usize>>,
    /// The password, and values of parameters that are one.
    pub passwords: Vec<Range<usize>>,
}

/// Insists on the form of a URL of a server.
pub(super) fn check(url: &str) -> Result<(), Invalid> {
    read(url).map(drop)
}

/// Insists on the form, and finds the secrets.
pub(super) fn read(url: &str) -> Result<Secrets, Invalid> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(no_slashes(url));
    };
    if !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Invalid::new(
            "does not begin with the name of a scheme",
            "write `postgres://…`, `amqp://…` or `amqps://…`",
        ));
    }
    if rest.contains("://") {
        return Err(Invalid::new("two URLs in one value", ONE_HOST));
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Invalid::new("holds a blank or a control character", ENCODE));
    }
    if rest.contains(['"', '\\', '`', '<', '>', '^', '|', '{', '}']) {
        return Err(Invalid::new(
            "holds a character that no URL may hold as it is",
            ENCODE,
        ));
    }
    if rest.contains('#') {
        return Err(Invalid::new(
            "a `#` ends the address, and what follows would be lost",
            ENCODE,
        ));
    }
    if !is_encoded(rest) {
        return Err(Invalid::new("a `%` that two digits do not follow", ENCODE));
    }
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    if rest[authority.len()..].contains('@') {
        return Err(Invalid::new(
            "an `@` after a `/` or a `?`, which end the user's part",
            ENCODE,
        ));
    }
    if authority.matches('@').count() > 1 {
        return Err(Invalid::new("more than one `@` before the host", ENCODE));
    }
    let (user, host) = match authority.split_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    check_host(host)?;
    let mut secrets = Secrets {
        user_alone: None,
        passwords: Vec::new(),
    };
    let start = scheme.len() + "://".len();
    match user.map(|user| (user.len(), user.find(':'))) {
        Some((end, Some(colon))) => secrets.passwords.push(start + colon + 1..start + end),
        Some((end, None)) => secrets.user_alone = Some(start..start + end),
        None => {}
    }
    if let Some(query) = rest.find('?') {
        check_query(&rest[query + 1..], start + query + 1, &mut secrets)?;
    }
    match Url::parse(url) {
        Ok(parsed) if parsed.cannot_be_a_base() => Err(no_slashes(url)),
        Ok(_) => Ok(secrets),
        Err(error) => Err(Invalid::new(error.to_string(), ENCODE)),
    }
}

fn no_slashes(url: &str) -> Invalid {
    let label = match url.find([':', '/']) {
        Some(end) if url[end..].starts_with("//") => "the `:` before `//` is missing",
        Some(_) => "`//` is missing after the `:`",
        None => "not a URL",
    };
    Invalid::new(
        label,
        "write `SCHEME://USER:PASSWORD@HOST/…`, with `://` after the scheme",
    )
}

fn is_encoded(text: &str) -> bool {
    text.match_indices('%').all(|(at, _)| {
        text.as_bytes()
            .get(at + 1..at + 3)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

fn check_host(host: &str) -> Result<(), Invalid> {
    if host.contains(',') {
        return Err(Invalid::new("names several hosts", ONE_HOST));
    }
    let port = match host.rsplit_once(']') {
        Some((_, port)) => port.strip_prefix(':').or(match port {
            "" => None,
            other => Some(other),
        }),
        None => host.split_once(':').map(|(_, port)| port),
    };
    let Some(port) = port.filter(|port| !port.is_empty()) else {
        return Ok(());
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Invalid::new(
            "what follows the host's `:` is no port",
            format!("a port is a number; {ENCODE}"),
        ));
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ => Err(Invalid::new(
            "the port is out of range",
            "a port is a number from 1 to 65535",
        )),
    }
}

/// Parameters have a name and a value, and none of them names more servers.
fn check_query(query: &str, start: usize, secrets: &mut Secrets) -> Result<(), Invalid> {
    let mut at = start;
    for pair in query.split('&') {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Invalid::new(
                "what follows the `?` is no `NAME=VALUE`",
                ENCODE,
            ));
        };
        if matches!(name, "host" | "hostaddr" | "port") && value.contains(',') {
            return Err(Invalid::new("names several hosts", ONE_HOST));
        }
        let value_at = at + name.len() + 1;
        if name.contains("password") && !value.is_empty() {
            secrets.passwords.push(value_at..value_at + value.len());
        }
        at += pair.len() + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label(url: &str) -> String {
        read(url).expect_err(url).label
    }

    #[test]
    fn what_is_well_formed_passes() {
        for url in [
            "amqp://guest:guest@localhost:5672/%2f",
            "amqps://mq",
            "amqp://u@[2001:db8::5]:5671/",
            "amqp://u:p%40ss%23@mq/a?heartbeat=5&x=",
            "amqp://u:a:b,c;d=e&f+g(h)!$*'@mq",
            "postgres:///db?host=/var/run/postgresql",
            "postgres://app:secret@db.example.com:5432/shop?sslmode=verify-full",
            "postgresql://[::1]/shop",
        ] {
            read(url).unwrap_or_else(|invalid| panic!("{url}: {invalid:?}"));
        }
    }

    #[test]
    fn what_would_be_read_in_two_ways_is_named() {
        let told = [
            ("amqp:/u:p@mq", "`//` is missing"),
            ("postgres//u:p@db", "the `:` before `//` is missing"),
            ("amqp://u:p@ss#word@mq", "a `#` ends the address"),
            ("amqp://u:p@ss@mq", "more than one `@`"),
            ("amqp://u:p/ss@mq", "an `@` after a `/`"),
            ("amqp://u:1/ss@mq", "an `@` after a `/`"),
            ("amqp://u:p@ss?w=ord@mq", "an `@` after a `/`"),
            ("amqp://u:p@ss?word", "no `NAME=VALUE`"),
            ("amqp://u:p ss@mq", "a blank"),
            ("amqp://u:p\\ss@mq", "no URL may hold"),
            ("amqp://u:p%zs@mq", "two digits"),
            ("amqp://u:secret", "no port"),
            ("amqp://u:p@mq:99999/", "out of range"),
            ("amqp://u:p@mq:0/", "out of range"),
            ("amqp://u:p@[::1]:x/", "no port"),
            ("amqp://a:1,b:2/%2f", "several hosts"),
            ("postgres://u:p@a,b/db", "several hosts"),
            ("postgres:///db?host=a,b&port=1,2", "several hosts"),
            ("amqp://a/%2f,amqp://u:p@b", "two URLs"),
            ("amqp://a/%2f amqp://u:p@b", "two URLs"),
        ];
        for (url, words) in told {
            assert!(label(url).contains(words), "{url}: {}", label(url));
        }
    }

    #[test]
    fn secrets_are_found() {
        let found = |url: &str| {
            let secrets = read(url).expect(url);
            let all = secrets.passwords.iter().chain(&secrets.user_alone);
            all.map(|range| url[range.clone()].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(found("amqp://u:p:q@mq"), ["p:q"]);
        assert_eq!(found("amqp://token@mq"), ["token"]);
        assert_eq!(
            found("postgres://db/x?sslmode=y&password=p&sslpassword=q"),
            ["p", "q"]
        );
    }

    proptest! {
        /// The host that every reader finds is the one behind the password, and nothing that is said is a piece of it.
        #[test]
        fn no_password_is_a_host(password in "[ -~]{1,24}") {
            let url = format!("amqp://user:{password}@broker.example:5672/%2f");
            match read(&url) {
                Ok(_) => {
                    let parsed = Url::parse(&url).expect("it passed");
                    prop_assert_eq!(parsed.host_str(), Some("broker.example"));
                    prop_assert_eq!(parsed.username(), "user");
                }
                Err(invalid) => {
                    let said = format!("{} {}", invalid.label, invalid.help);
                    prop_assert!(password.len() < 5 || !said.contains(&password), "{}", said);
                }
            }
        }
    }
}
