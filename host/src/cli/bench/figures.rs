//! From measurements to figures: medians over the rounds, and ratios within each round.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::measure::Measured;
use super::scenario::{RATIOS, Scenario};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub messages: usize,
    pub unique: usize,
    pub rounds: usize,
    pub lanes: u16,
    pub seed: u64,
    pub scenarios: Vec<Figures>,
    /// Medians of the ratios of the rounds.
    pub ratios: BTreeMap<&'static str, f64>,
}

/// One scenario over all rounds: medians.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub name: String,
    #[serde(skip)]
    pub title: String,
    #[serde(skip)]
    pub paced: bool,
    pub messages_per_second: f64,
    /// (fastest - slowest) / median.
    pub spread: f64,
    /// Of the consuming process, milliseconds for 1,000 messages.
    pub cpu_ms_per_1000: Option<f64>,
    pub database_cpu_ms_per_1000: Option<f64>,
    pub broker_cpu_ms_per_1000: Option<f64>,
    /// The most that the consuming process had in RAM in any round.
    pub rss_bytes: Option<u64>,
    /// From publish to the arrival of the event, of paced scenarios.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

impl Figures {
    /// From at least one round.
    pub fn of(scenario: Scenario, rounds: &[Measured]) -> Self {
        let rates = rounds.iter().map(|round| round.messages_per_second);
        let rates = rates.collect::<Vec<_>>();
        let middle = median(&rates).unwrap_or_default();
        let fastest = rates.iter().copied().fold(0.0, f64::max);
        let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let known = |get: fn(&Measured) -> Option<f64>| {
            median(&rounds.iter().filter_map(get).collect::<Vec<_>>())
        };
        Self {
            name: scenario.name(),
            title: scenario.title(),
            paced: scenario.rate().is_some(),
            messages_per_second: middle,
            spread: if middle > 0.0 {
                (fastest - slowest) / middle
            } else {
                0.0
            },
            cpu_ms_per_1000: known(|round| round.host_cpu),
            database_cpu_ms_per_1000: known(|round| round.database_cpu),
            broker_cpu_ms_per_1000: known(|round| round.broker_cpu),
            rss_bytes: rounds.iter().filter_map(|round| round.rss_bytes).max(),
            p50_ms: known(|round| percentile_ms(&round.latencies, 0.50)),
            p99_ms: known(|round| percentile_ms(&round.latencies, 0.99)),
        }
    }
}

/// The ratios whose both sides were measured. Each round gives one of its own, because what slows a machine
/// down for a while slows down both of its sides.
pub fn ratios(rounds: &[(Scenario, Vec<Measured>)]) -> BTreeMap<&'static str, f64> {
    let rates = |wanted: Scenario| {
        let (_, measured) = rounds.iter().find(|(scenario, _)| *scenario == wanted)?;
        let rates = measured.iter().map(|round| round.messages_per_second);
        Some(rates.collect::<Vec<_>>())
    };
    RATIOS
        .into_iter()
        .filter_map(|(name, of, to)| {
            let each = rates(of)?.into_iter().zip(rates(to)?);
            let each = each.map(|(of, to)| of / to).collect::<Vec<_>>();
            Some((name, median(&each)?))
        })
        .collect()
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    Some(if sorted.len() % 2 == 1 {
        upper
    } else {
        (sorted[half - 1] + upper) / 2.0
    })
}

/// Of sorted durations, by the nearest-rank method.
fn percentile_ms(sorted: &[Duration], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let value = sorted.get(rank.saturating_sub(1))?;
    Some(value.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(rates: &[f64]) -> Vec<Measured> {
        let measured = |rate: &f64| Measured {
            messages_per_second: *rate,
            ..Measured::default()
        };
        rates.iter().map(measured).collect()
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted = (1..=200).map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(percentile_ms(&sorted, 0.50), Some(100.0));
        assert_eq!(percentile_ms(&sorted, 0.99), Some(198.0));
        assert_eq!(percentile_ms(&sorted[..1], 0.99), Some(1.0));
        assert_eq!(percentile_ms(&[], 0.5), None);
    }

    #[test]
    fn the_spread_is_between_the_fastest_and_the_slowest_round() {
        let figures = Figures::of(Scenario::Drain, &rounds(&[90.0, 100.0, 120.0]));
        assert_eq!(figures.messages_per_second, 100.0);
        assert!((figures.spread - 0.3).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_compares_what_ran_in_one_round() {
        // The machine got twice as slow: in each round the ratio is 2.
        let measured = [
            (Scenario::Relay, rounds(&[200.0, 100.0])),
            (Scenario::ByHand, rounds(&[100.0, 50.0])),
        ];
        let ratios = ratios(&measured);
        assert_eq!(ratios.get("hapax_relay/by_hand"), Some(&2.0));
        assert_eq!(ratios.len(), 1);
    }
}
