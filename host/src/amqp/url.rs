//! Reads the URL of a broker.
//!
//! What names no host, or more than one thing, is an error before anybody is asked for its address: a piece of a
//! password that was not percent-encoded must never be looked up as a name. No error holds a piece of the URL.

use std::fmt;

use lapin::uri::AMQPUri;
use url::{Host, ParseError, Url};

use super::frames::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};

const FORMS: &str = "write `amqp://USER:PASSWORD@HOST:5672/%2f` or `amqps://…`";
const ENCODE: &str = "percent-encode `@` as %40, `:` as %3A, `/` as %2F, `?` as %3F and `#` as %23 in user, password and virtual host";

/// What is wrong with a URL, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlError {
    pub problem: String,
    pub help: &'static str,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.help)
    }
}

impl std::error::Error for UrlError {}

fn error(problem: impl Into<String>, help: &'static str) -> UrlError {
    let problem = problem.into();
    UrlError { problem, help }
}

/// Reads an `amqp://` or `amqps://` URL.
pub fn parse(text: &str) -> Result<AMQPUri, UrlError> {
    let scheme = ["amqp", "amqps"].into_iter().find_map(|scheme| {
        let start = text.get(..scheme.len())?;
        let rest = text[scheme.len()..].strip_prefix(':')?;
        start.eq_ignore_ascii_case(scheme).then_some((scheme, rest))
    });
    let Some((scheme, rest)) = scheme else {
        return Err(error("does not begin with `amqp://` or `amqps://`", FORMS));
    };
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(error(format!("`//` is missing after `{scheme}:`"), FORMS));
    };
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if behind.contains('@') {
        return Err(error("an `@` stands behind the host", ENCODE));
    }
    if behind.contains('#') {
        return Err(error("a `#` stands behind the host", ENCODE));
    }
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    if host.contains(',') {
        return Err(error(
            "names more than one host",
            "write one host; a name may have several addresses, which are tried one after the other",
        ));
    }
    let url = Url::parse(text).map_err(|reason| unreadable(reason, host))?;
    let mut uri: AMQPUri = text.parse().map_err(|_| {
        error(
            "holds something that cannot be read",
            "percent-encode names and the password as UTF-8; the parameters are numbers, but for `auth_mechanism`",
        )
    })?;
    match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => {}
        Some(Host::Domain(_)) | None => return Err(error("names no host", FORMS)),
        // amq-protocol knows names only, and takes anything else for localhost.
        Some(Host::Ipv4(address)) => uri.authority.host = address.to_string(),
        Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
    }
    if uri.authority.port == 0 {
        return Err(error(
            "the port is out of bounds",
            "write a port from 1 to 65535",
        ));
    }
    match uri.query.frame_max {
        None | Some(0) => {}
        Some(bytes) if (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&bytes) => {}
        Some(_) => {
            return Err(error(
                "`frame_max` is out of bounds",
                "write one from 4096 to 1048576, or leave it out",
            ));
        }
    }
    Ok(uri)
}

fn unreadable(reason: ParseError, host: &str) -> UrlError {
    match reason {
        ParseError::InvalidPort if host.rsplit(':').next().is_some_and(is_number) => {
            error("the port is out of bounds", "write a port from 1 to 65535")
        }
        ParseError::InvalidPort => error("the port is not a number", ENCODE),
        ParseError::InvalidIpv6Address => error(
            "not an IPv6 address",
            "write one in brackets, as in `amqp://USER:PASSWORD@[2001:db8::5]:5672/`; a zone is not supported",
        ),
        ParseError::EmptyHost => error("names no host", FORMS),
        reason => error(reason.to_string(), ENCODE),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
