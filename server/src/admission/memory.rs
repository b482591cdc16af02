//! How much memory the process may still take, read now and then.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A reading is good for so long.
const FRESH: Duration = Duration::from_millis(500);

/// The last reading.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Option<(Instant, u64)>>);

impl Memory {
    /// Bytes, at most [`FRESH`] old.
    pub(crate) fn available(&self, now: Instant) -> u64 {
        let mut last = self.0.lock();
        match *last {
            Some((at, bytes)) if now.saturating_duration_since(at) < FRESH => bytes,
            _ => {
                let bytes = read();
                *last = Some((now, bytes));
                bytes
            }
        }
    }
}

/// The machine's, or what the control group has left if that is less. Who does not tell has enough.
fn read() -> u64 {
    let file = |path: &str| std::fs::read_to_string(path).ok();
    let machine = file("/proc/meminfo").and_then(|text| machine_available(&text));
    let group = || {
        let max = file("/sys/fs/cgroup/memory.max")?;
        let current = file("/sys/fs/cgroup/memory.current")?;
        let stat = file("/sys/fs/cgroup/memory.stat")?;
        group_available(&max, &current, &stat)
    };
    [machine, group()]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
}

fn machine_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Pages of files count as used and are given back when somebody needs them: mapped weights are such.
fn group_available(max: &str, current: &str, stat: &str) -> Option<u64> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let pages = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find_map(|(key, value)| (key == name).then(|| number(value))?)
    };
    let files = pages("inactive_file")? + pages("active_file")?;
    let used = number(current)?.saturating_sub(files);
    Some(number(max)?.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says() {
        let meminfo = "MemTotal:       24000000 kB\nMemAvailable:   1234 kB\n";
        assert_eq!(machine_available(meminfo), Some(1234 * 1024));
        assert_eq!(machine_available("MemTotal: 1 kB\n"), None);
        let stat = "anon 100\nfile 60\ninactive_file 30\nactive_file 20\n";
        assert_eq!(group_available("1000\n", "150\n", stat), Some(900));
        assert_eq!(group_available("100\n", "250\n", stat), Some(0));
        assert_eq!(group_available("max\n", "150\n", stat), None);
        assert_eq!(group_available("1000\n", "150\n", "anon 100\n"), None);
    }

    #[test]
    fn a_reading_is_kept_for_a_while() {
        let memory = Memory::default();
        let now = Instant::now();
        let first = memory.available(now);
        assert!(first > 0);
        *memory.0.lock() = Some((now, 7));
        assert_eq!(memory.available(now + FRESH / 2), 7);
        assert_ne!(memory.available(now + FRESH), 7);
    }
}
