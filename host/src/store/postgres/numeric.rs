//! NUMERIC between its binary form and text, digit by digit: no number is rounded on its way.
//!
//! The form, all big-endian 16 bit: number of groups, weight of the first group, sign, digits after the
//! point that are shown, then the groups of four decimal digits. Source: `numeric_send` in
//! `src/backend/utils/adt/numeric.c` of Postgres.

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// The digits that a NUMERIC holds before and after its point.
const WHOLE_DIGITS_MAX: i64 = 131_072;
const FRACTION_DIGITS_MAX: i64 = 16_383;

/// Reads the binary form; `None` when it is not one.
pub(super) fn decode(bytes: &[u8]) -> Option<String> {
    let mut words = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let count = usize::from(words.next()?);
    let weight = i64::from(words.next()? as i16);
    let sign = words.next()?;
    let scale = usize::from(words.next()?);
    match sign {
        NAN => return Some("NaN".to_owned()),
        INFINITY => return Some("Infinity".to_owned()),
        MINUS_INFINITY => return Some("-Infinity".to_owned()),
        _ => {}
    }
    let groups: Vec<u16> = words.collect();
    if groups.len() != count {
        return None;
    }
    // The group that stands for 10000^power; those that are not sent are zero.
    let group = |power: i64| {
        usize::try_from(weight - power)
            .ok()
            .and_then(|at| groups.get(at))
            .copied()
    };
    let mut text = String::from(if sign == NEGATIVE { "-" } else { "" });
    text.push_str(&group(weight.max(0)).unwrap_or(0).to_string());
    for power in (0..weight.max(0)).rev() {
        text.push_str(&format!("{:04}", group(power).unwrap_or(0)));
    }
    if scale > 0 {
        let mut fraction = String::new();
        let mut power = -1;
        while fraction.len() < scale {
            fraction.push_str(&format!("{:04}", group(power).unwrap_or(0)));
            power -= 1;
        }
        text.push('.');
        text.push_str(&fraction[..scale]);
    }
    Some(text)
}

/// Writes the binary form of a decimal number as people and programs write one (`-12.50`, `1.5e3`);
/// `None` when the text is not a number, or has more digits than a NUMERIC.
pub(super) fn encode(text: &str) -> Option<Vec<u8>> {
    let special = match text.trim().to_ascii_lowercase().as_str() {
        "nan" => Some(NAN),
        "infinity" | "inf" => Some(INFINITY),
        "-infinity" | "-inf" => Some(MINUS_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        return Some(words(&[0, 0, sign, 0]));
    }
    let (negative, digits, scale) = parse(text.trim())?;
    // The digits and the place of the point, padded so that groups of four begin at the point.
    let whole = digits.len() as i64 - scale;
    let lead = (-whole).rem_euclid(4);
    let mut padded = "0".repeat(lead as usize) + &digits;
    padded.push_str(&"0".repeat((-(padded.len() as i64)).rem_euclid(4) as usize));
    let mut groups: Vec<u16> = padded
        .as_bytes()
        .chunks(4)
        .map(|four| {
            four.iter()
                .fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
        })
        .collect();
    let mut weight = (whole + lead) / 4 - 1;
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..zeros);
    weight -= zeros as i64;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    let sign = if negative && !groups.is_empty() {
        NEGATIVE
    } else {
        0
    };
    let head = [
        u16::try_from(groups.len()).ok()?,
        i16::try_from(weight).ok()? as u16,
        sign,
        u16::try_from(scale.max(0)).ok()?,
    ];
    let mut form = words(&head);
    form.extend(words(&groups));
    Some(form)
}

/// Sign, digits without a point, and how many of them stand after it (negative: zeros are missing).
fn parse(text: &str) -> Option<(bool, String, i64)> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = i64::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
    let whole_digits = i64::try_from(digits.len()).ok()?.checked_sub(scale)?;
    if scale > FRACTION_DIGITS_MAX || whole_digits > WHOLE_DIGITS_MAX || scale < -WHOLE_DIGITS_MAX {
        return None;
    }
    Some((negative, digits, scale))
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_every_digit_and_its_trailing_zeros() {
        for text in [
            "0",
            "0.00",
            "1",
            "-1",
            "10000",
            "99999999",
            "12.50",
            "-0.000000000001",
            "100000000000000000000",
            "123456789012345678901234567890.123456789",
            "0.1",
            "1.0001",
            "NaN",
            "Infinity",
            "-Infinity",
        ] {
            assert_eq!(decode(&encode(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn an_exponent_moves_the_point() {
        for (text, plain) in [
            ("1.5e3", "1500"),
            ("1e-3", "0.001"),
            ("-2E2", "-200"),
            ("0e10", "0"),
            ("+7", "7"),
        ] {
            assert_eq!(decode(&encode(text).unwrap()).unwrap(), plain, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_number_is_refused_and_so_is_one_without_an_end() {
        for text in [
            "",
            "-",
            ".",
            "1.2.3",
            "abc",
            "1e",
            "1e999999999",
            "1e-20000",
            "--1",
            "1 2",
        ] {
            assert_eq!(encode(text), None, "{text}");
        }
    }
}
