//! Rust values as parameters, and columns as Rust values.

use hapax_guest::prelude::*;
use hapax_guest::sql::{FromValue, Value};
use hapax_guest::testing::Message;
use hapax_guest::{Decimal, Timestamp, Uuid};
use serde_json::json;

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn decimal(text: &str) -> Value {
    Value::Decimal(text.to_owned())
}

#[test]
fn each_type_has_its_case() {
    let bytes: &[u8] = &[1, 2];
    let values = params![
        true,
        7_u8,
        -7_i64,
        1.5_f64,
        "a",
        String::from("b"),
        bytes,
        vec![3_u8],
        [4_u8; 2],
        Decimal::from("-12.50"),
        Timestamp(9),
        Uuid::from("67e55044"),
        json!({"a": 1}),
        Some(1),
        None::<String>,
        &&"c",
    ];
    let expected = [
        Value::Bool(true),
        Value::S64(7),
        Value::S64(-7),
        Value::F64(1.5),
        text("a"),
        text("b"),
        Value::Bytes(vec![1, 2]),
        Value::Bytes(vec![3]),
        Value::Bytes(vec![4, 4]),
        decimal("-12.50"),
        Value::Timestamp(9),
        Value::Uuid("67e55044".to_owned()),
        Value::Json(r#"{"a":1}"#.to_owned()),
        Value::S64(1),
        Value::Null,
        text("c"),
    ];
    assert_eq!(values, expected);
}

#[test]
fn parameters_are_not_moved() {
    let name = String::from("Ada");
    let once = params![name];
    assert_eq!(once, params![name]);
}

#[test]
fn no_parameters_need_no_type() {
    assert!(params![].is_empty());
}

#[test]
fn a_number_beyond_64_bits_with_sign_stays_exact() {
    assert_eq!(params![u64::MAX], [decimal("18446744073709551615")]);
    assert_eq!(
        u64::from_value(&decimal("18446744073709551615")),
        Some(u64::MAX)
    );
}

#[test]
fn a_value_that_would_change_is_not_returned() {
    assert_eq!(u8::from_value(&Value::S64(256)), None);
    assert_eq!(u64::from_value(&Value::S64(-1)), None);
    assert_eq!(i64::from_value(&decimal("1.5")), None);
    assert_eq!(i64::from_value(&text("1")), None);
    assert_eq!(bool::from_value(&Value::S64(2)), None);
    assert_eq!(String::from_value(&Value::Null), None);
}

#[test]
fn what_stores_without_the_type_return_is_read() {
    assert_eq!(bool::from_value(&Value::S64(1)), Some(true));
    assert_eq!(i64::from_value(&decimal("12")), Some(12));
    assert_eq!(
        Decimal::from_value(&Value::S64(12)),
        Some(Decimal::from("12"))
    );
    assert_eq!(
        Uuid::from_value(&text("67e55044")),
        Some(Uuid::from("67e55044"))
    );
    assert_eq!(
        serde_json::Value::from_value(&text("[1]")),
        Some(json!([1]))
    );
}

#[test]
fn null_is_an_option() {
    assert_eq!(Option::<i64>::from_value(&Value::Null), Some(None));
    assert_eq!(Option::<i64>::from_value(&Value::S64(1)), Some(Some(1)));
    assert_eq!(Option::<i64>::from_value(&text("1")), None);
}

#[test]
fn columns_are_found_by_name_and_position() {
    let read = |_: &[u8]| -> Result<(), Failure> {
        let rows = sql::query("SELECT id, name FROM t", params![])?;
        let ids: Vec<i64> = rows
            .iter()
            .map(|row| row.get("id"))
            .collect::<Result<_, _>>()?;
        assert_eq!(ids, [1, 2]);
        let first = rows.first().expect("there are two rows");
        assert_eq!(first.get::<&str>(1)?, "Ada");
        assert_eq!(rows.scalar::<i64>()?, Some(1));
        Ok(())
    };
    let run = Message::bytes("")
        .rows(
            "FROM t",
            &["id", "name"],
            [params![1, "Ada"], params![2, "Grace"]],
        )
        .run(read);
    assert_eq!(run.result, Ok(Outcome::Done));
}

#[test]
fn a_column_error_tells_the_type_and_not_the_value() {
    let read = |column: &str| -> Result<(), Failure> {
        sql::query("SELECT secret FROM t", params![])?
            .first()
            .expect("a row")
            .get::<i64>(column)?;
        Ok(())
    };
    let message = |body: &str| Message::text(body).rows("FROM t", &["secret"], [params!["s3cr3t"]]);
    let reason = "column secret is text, which is not a i64";
    assert_eq!(
        message("secret").run(read).result,
        Err(Failure::retry(reason))
    );
    let reason = "the row has no column public";
    assert_eq!(
        message("public").run(read).result,
        Err(Failure::retry(reason))
    );
}
