//! Calls out over HTTP, which no host of handlers offers.

use hapax_guest::prelude::*;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest};

#[hapax_guest::handler]
pub fn handle(_message: &Message) -> Result<Outcome, Failure> {
    let request = OutgoingRequest::new(Fields::new());
    match outgoing_handler::handle(request, None) {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => Err(Failure::retry(error.to_string())),
    }
}
