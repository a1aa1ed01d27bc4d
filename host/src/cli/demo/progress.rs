//! How far a consuming process is, as it says itself. It decides when the demo kills and when it looks
//! whether the queue is empty, and nothing that is counted.

use std::io::{self, Write};

/// Counts since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages that were delivered to it.
    pub received: u64,
    /// Messages that it is done with.
    pub handled: u64,
    /// Messages that it is in the middle of: begun, and their event is not with the broker.
    pub underway: u64,
    /// Events that it has committed and not sent.
    pub unsent: u64,
}

impl Progress {
    /// Writes itself as a line.
    pub fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", self.line())?;
        out.flush()
    }

    fn line(&self) -> String {
        format!(
            "{} {} {} {}",
            self.received, self.handled, self.underway, self.unsent
        )
    }

    /// Reads such a line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        let progress = Self {
            received: next()?,
            handled: next()?,
            underway: next()?,
            unsent: next()?,
        };
        numbers.next().is_none().then_some(progress)
    }

    /// Reads the page `/metrics` of a Hapax host.
    pub fn from_metrics(page: &str) -> Self {
        let sum = |name: &str| {
            page.lines()
                .filter_map(|line| line.strip_prefix(name))
                .filter(|rest| rest.starts_with(['{', ' ']))
                .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
                .sum::<u64>()
        };
        let received = sum("hapax_deliveries_total");
        let handled = sum("hapax_committed_total")
            + sum("hapax_duplicates_total")
            + sum("hapax_parked_total");
        Self {
            received,
            handled,
            underway: received.saturating_sub(handled),
            unsent: sum("hapax_relay_in_memory"),
        }
    }

    /// Nothing that it was given is left to do.
    pub fn is_idle(&self) -> bool {
        self.handled >= self.received && self.unsent == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_four_numbers() {
        let progress = Progress {
            received: 7,
            handled: 5,
            underway: 1,
            unsent: 2,
        };
        assert_eq!(progress.line(), "7 5 1 2");
        assert_eq!(Progress::parse("7 5 1 2"), Some(progress));
        for line in ["", "7 5 1", "7 5 1 2 3", "7 5 1 x", "7,5,1,2"] {
            assert_eq!(Progress::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_page_of_a_host_is_summed_over_labels() {
        let page = "# TYPE hapax_deliveries counter\n\
                    hapax_deliveries_total{consumer=\"points\"} 12\n\
                    hapax_committed_total{consumer=\"points\"} 6\n\
                    hapax_duplicates_total{consumer=\"points\",fate=\"committed\"} 3\n\
                    hapax_duplicates_total{consumer=\"points\",fate=\"waiting\"} 1\n\
                    hapax_relay_in_memory 4\n\
                    # EOF\n";
        let progress = Progress::from_metrics(page);
        assert_eq!(
            progress,
            Progress {
                received: 12,
                handled: 10,
                underway: 2,
                unsent: 4
            }
        );
        assert!(!progress.is_idle());
    }
}
