//! Who may ask: a program on this machine that shows the token, and no web page.
//!
//! A page in somebody's browser can send requests anywhere. It cannot choose the headers that this looks at: the
//! browser says for which host the request is, from which page it comes, and whether it asks at all when the content
//! type is not one that forms have. A page whose name is made to lead here (DNS rebinding) is known by the host.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{Listen, Secret};
use crate::http::server::Reached;

use super::Refused;

/// What a browser says of where a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(super) struct Caller {
    /// `None` for a socket in the file system.
    address: Option<SocketAddr>,
    token: Option<Tag>,
}

impl Caller {
    pub(super) fn new(listen: &Listen, token: Option<&Secret>) -> Self {
        Self {
            address: match listen {
                Listen::Tcp(address) => Some(*address),
                Listen::Unix(_) => None,
            },
            token: token.map(|token| Tag::of(token.expose())),
        }
    }

    /// Whether a request may be answered. A refusal tells nothing about this daemon.
    pub(super) fn admits(&self, request: &Request) -> Result<(), Refused> {
        let headers = request.headers();
        let reached = request.extensions().get::<Reached>();
        let reached = reached.and_then(|reached| reached.0);
        let host = only(headers, &header::HOST).and_then(|host| host.parse::<Authority>().ok());
        let (Some(host), true) = (&host, self.is_named(host.as_ref(), reached)) else {
            let reason = "the request names another host; ask 127.0.0.1, localhost or [::1], or the address that \
                          `admin.listen` names";
            return Err((StatusCode::MISDIRECTED_REQUEST, "wrong-host", reason.into()));
        };
        // A target may name a host of its own.
        if let Some(target) = request.uri().authority()
            && target != host
        {
            let reason = "the request names two hosts".to_owned();
            return Err((StatusCode::MISDIRECTED_REQUEST, "wrong-host", reason));
        }
        let browser = || {
            let reason = "this API is not for browsers".to_owned();
            (StatusCode::FORBIDDEN, "browser", reason)
        };
        if headers.contains_key(header::ORIGIN) {
            let own = format!("http://{host}");
            let same =
                only(headers, &header::ORIGIN).is_some_and(|it| it.eq_ignore_ascii_case(&own));
            if !same {
                return Err(browser());
            }
        }
        if headers.contains_key(SEC_FETCH_SITE) && only(headers, &SEC_FETCH_SITE) != Some("none") {
            return Err(browser());
        }
        self.knows_the_token(headers)
    }

    /// Whether a host is this daemon's, by an address or as the machine itself, and its port if it has one.
    fn is_named(&self, host: Option<&Authority>, reached: Option<SocketAddr>) -> bool {
        let Some(host) = host else { return false };
        if host.as_str().contains('@') {
            return false;
        }
        let own = [self.address, reached];
        let mut own = own.iter().flatten();
        let named = host.host().trim_start_matches('[').trim_end_matches(']');
        let is_host = match named.parse::<IpAddr>() {
            Ok(ip) => {
                let local = [
                    [127, 0, 0, 1].into(),
                    IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
                ];
                local.contains(&ip)
                    || own
                        .clone()
                        .any(|own| own.ip() == ip && !ip.is_unspecified())
            }
            Err(_) => named.eq_ignore_ascii_case("localhost"),
        };
        let port = host.port();
        is_host && port.is_none_or(|port| own.any(|own| own.port() == port.as_u16()))
    }

    fn knows_the_token(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let shown = only(headers, &header::AUTHORIZATION)
            .and_then(|shown| shown.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let refused = |code, reason: &str| Err((StatusCode::UNAUTHORIZED, code, reason.to_owned()));
        match shown {
            Some((_, shown)) if token.is_of(shown) => Ok(()),
            Some(_) => refused("wrong-token", "this is not the token"),
            None => refused("no-token", "a token is needed: `Authorization: Bearer …`"),
        }
    }
}

/// Whether the body says that it is JSON, which no form of a web page can.
pub(super) fn is_json(headers: &HeaderMap) -> Result<(), Refused> {
    let kind = only(headers, &header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let reason = "the content type of a request is application/json".to_owned();
    Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", reason))
}

/// A header's value, where it is there once and is text.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// What a token is compared by: the time that it takes tells nothing about the token.
struct Tag(Vec<u8>);

impl Tag {
    fn of(token: &str) -> Self {
        Self(Self::mac(token).finalize().into_bytes().to_vec())
    }

    fn is_of(&self, shown: &str) -> bool {
        // In constant time, as its page says.
        Self::mac(shown).verify_slice(&self.0).is_ok()
    }

    fn mac(token: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"hapax admin token").expect("of any length");
        mac.update(token.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests;
