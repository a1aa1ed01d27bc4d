//! Sends copies of a message past its target, by the headers that RabbitMQ reads as routing keys.

use hapax_guest::HeaderValue;
use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<String>,
}

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(name) = &order.sin {
        let copies = HeaderValue::Json(r#"["stolen"]"#.to_owned());
        let sent = outbox::to("out")
            .header(name.as_str(), copies)
            .json(&*order);
        return match sent {
            Ok(_) => Ok(Outcome::Done),
            Err(error) => Err(Failure::reject(error.to_string())),
        };
    }
    Ok(Outcome::Done)
}
