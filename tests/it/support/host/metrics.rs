//! Reads the Prometheus text format, as far as the host writes it.

use anyhow::Context;

pub struct Metrics {
    series: Vec<Series>,
}

struct Series {
    name: String,
    /// `label="value"` pairs as they stand between the braces.
    labels: Vec<String>,
    value: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> anyhow::Result<Metrics> {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = lines
            .map(|line| series(line).with_context(|| format!("not a metric: {line}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Metrics { series })
    }

    /// The sum over all series of this name that carry all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let matching = self
            .series
            .iter()
            .filter(|series| series.name == name)
            .filter(|series| wanted.iter().all(|label| series.labels.contains(label)));
        matching.map(|series| series.value as u64).sum()
    }
}

fn series(line: &str) -> Option<Series> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    Some(Series {
        name: name.to_owned(),
        labels: labels.split(',').map(str::to_owned).collect(),
        value: value.parse().ok()?,
    })
}
