use axum::body::Body;

use super::*;

const LISTEN: &str = "10.1.2.3:9470";

/// The code that a request with these headers is refused with, or nothing.
fn asked(listen: &str, headers: &[(&str, &str)]) -> &'static str {
    let token = Secret::token("sesame");
    let address = listen.parse().expect("an address");
    let caller = Caller::new(&Listen::Tcp(address), Some(&token));
    refused(&caller, "/v1/operations", headers)
}

fn refused(caller: &Caller, target: &str, headers: &[(&str, &str)]) -> &'static str {
    let mut request = Request::builder().uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).expect("a request");
    let reached = caller.address.map(|address| {
        let ip = match address.ip() {
            ip if ip.is_unspecified() => [192, 168, 0, 7].into(),
            ip => ip,
        };
        SocketAddr::new(ip, address.port())
    });
    request.extensions_mut().insert(Reached(reached));
    caller
        .admits(&request)
        .err()
        .map_or("", |refused| refused.1)
}

const TOKEN: (&str, &str) = ("authorization", "Bearer sesame");

#[test]
fn a_host_is_named_by_its_address_or_as_this_machine() {
    let host = |listen: &str, host: &str| asked(listen, &[("host", host), TOKEN]);
    for good in [
        "10.1.2.3:9470",
        "10.1.2.3",
        "127.0.0.1:9470",
        "127.0.0.1",
        "LocalHost:9470",
        "localhost",
        "[::1]:9470",
        "[::1]",
    ] {
        assert_eq!(host(LISTEN, good), "", "{good}");
    }
    for bad in [
        "evil.example:9470",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:9470",
        "127.0.0.1:80",
        "10.1.2.4:9470",
        "0.0.0.0:9470",
        "[::]:9470",
        "2130706433:9470",
        "user@127.0.0.1:9470",
        "",
    ] {
        assert_eq!(host(LISTEN, bad), "wrong-host", "{bad}");
    }
    // Who listens on all addresses is asked by the one that was reached.
    assert_eq!(host("0.0.0.0:9470", "192.168.0.7:9470"), "");
    assert_eq!(host("0.0.0.0:9470", "0.0.0.0:9470"), "wrong-host");
    assert_eq!(host("[::1]:9470", "[::1]:9470"), "");
    let twice = [("host", "127.0.0.1"), ("host", "evil.example"), TOKEN];
    assert_eq!(asked(LISTEN, &twice), "wrong-host");
    assert_eq!(asked(LISTEN, &[TOKEN]), "wrong-host");
}

#[test]
fn a_target_that_names_another_host_is_refused() {
    let token = Secret::token("sesame");
    let address = LISTEN.parse().expect("an address");
    let caller = Caller::new(&Listen::Tcp(address), Some(&token));
    let headers = [("host", "127.0.0.1:9470"), TOKEN];
    let target = |target: &str| refused(&caller, target, &headers);
    assert_eq!(target("http://127.0.0.1:9470/v1/operations"), "");
    assert_eq!(target("http://evil.example/v1/operations"), "wrong-host");
}

#[test]
fn a_web_page_is_turned_away() {
    let with = |name: &str, value: &str| {
        let headers = [("host", "127.0.0.1:9470"), TOKEN, (name, value)];
        asked("127.0.0.1:9470", &headers)
    };
    assert_eq!(with("origin", "http://127.0.0.1:9470"), "");
    for origin in [
        "http://evil.example",
        "null",
        "https://127.0.0.1:9470",
        "http://127.0.0.1",
        "http://localhost:9470",
        "",
    ] {
        assert_eq!(with("origin", origin), "browser", "{origin}");
    }
    assert_eq!(with("sec-fetch-site", "none"), "");
    for site in ["cross-site", "same-site", "same-origin", ""] {
        assert_eq!(with("sec-fetch-site", site), "browser", "{site}");
    }
}

#[test]
fn the_token_is_needed_and_compared_as_a_whole() {
    let shown = |value: &str| {
        let headers = [("host", "localhost"), ("authorization", value)];
        asked("127.0.0.1:9470", &headers)
    };
    assert_eq!(
        asked("127.0.0.1:9470", &[("host", "localhost")]),
        "no-token"
    );
    assert_eq!(shown("Bearer sesame"), "");
    assert_eq!(shown("bearer sesame"), "");
    for wrong in ["Bearer ", "Bearer sesam", "Bearer sesame2", "Bearer SESAME"] {
        assert_eq!(shown(wrong), "wrong-token", "{wrong}");
    }
    for none in ["sesame", "Basic sesame", ""] {
        assert_eq!(shown(none), "no-token", "{none}");
    }
    let twice = [("host", "localhost"), TOKEN, TOKEN];
    assert_eq!(asked("127.0.0.1:9470", &twice), "no-token");
}

#[test]
fn a_socket_in_the_file_system_needs_no_token_and_turns_pages_away_too() {
    let caller = Caller::new(&Listen::Unix("/run/hapax/admin.sock".into()), None);
    let asked = |headers: &[(&str, &str)]| refused(&caller, "/v1/operations", headers);
    assert_eq!(asked(&[("host", "localhost")]), "");
    assert_eq!(asked(&[("host", "evil.example")]), "wrong-host");
    assert_eq!(
        asked(&[("host", "localhost"), ("origin", "http://evil.example")]),
        "browser"
    );
}

#[test]
fn a_body_says_that_it_is_json() {
    let kind = |value: &str| {
        let mut headers = HeaderMap::new();
        let value = value.parse().expect("a value");
        headers.insert(header::CONTENT_TYPE, value);
        is_json(&headers).is_ok()
    };
    assert!(kind("application/json") && kind("Application/JSON; charset=utf-8"));
    assert!(!kind("text/plain") && !kind("application/x-www-form-urlencoded"));
    assert!(!kind("text/plain; application/json") && !kind("application/jsonp"));
    assert!(is_json(&HeaderMap::new()).is_err());
}
