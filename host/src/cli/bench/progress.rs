//! How far a measured process is, as it says itself. It decides when the clock stops; what was really done
//! is counted afterwards.

use std::io::{self, Write};

/// Counts since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages that it is done with.
    pub handled: u64,
    /// Events that the broker has confirmed.
    pub emitted: u64,
}

impl Progress {
    /// Writes itself as a line.
    pub fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{} {}", self.handled, self.emitted)?;
        out.flush()
    }

    /// Reads such a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (handled, emitted) = line.split_once(' ')?;
        Some(Self {
            handled: handled.parse().ok()?,
            emitted: emitted.parse().ok()?,
        })
    }

    /// Reads the page `/metrics` of a Hapax host.
    pub fn from_metrics(page: &str) -> Self {
        let handled = ["committed", "duplicates", "parked"];
        Self {
            handled: handled
                .map(|name| metric_sum(page, &format!("hapax_{name}_total")))
                .iter()
                .sum(),
            emitted: metric_sum(page, "hapax_relay_confirmed_total"),
        }
    }
}

/// A counter or gauge, summed over its labels.
pub fn metric_sum(page: &str, name: &str) -> u64 {
    page.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_two_numbers() {
        let progress = Progress {
            handled: 7,
            emitted: 5,
        };
        assert_eq!(Progress::parse("7 5"), Some(progress));
        for line in ["", "7", "7 x", "7 5 1"] {
            assert_eq!(Progress::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_page_of_a_host_is_summed_over_labels() {
        let page = "# TYPE hapax_committed counter\n\
                    hapax_committed_total{consumer=\"points\"} 6\n\
                    hapax_duplicates_total{consumer=\"points\",fate=\"committed\"} 3\n\
                    hapax_duplicates_total{consumer=\"points\",fate=\"waiting\"} 1\n\
                    hapax_relay_confirmed_total{target=\"credited\"} 4\n\
                    # EOF\n";
        let progress = Progress {
            handled: 10,
            emitted: 4,
        };
        assert_eq!(Progress::from_metrics(page), progress);
    }
}
