//! What of the host's memory this process may still take, as the kernel tells.
//!
//! `/proc/self/cgroup` names the control group that the process is in. The limit of every group above
//! holds for it, too, and the one that leaves least decides:
//!
//! ```text
//! 0::/system.slice/nemoserve.service
//!
//! /sys/fs/cgroup ............................... the root has no limit; a container's own has one
//! /sys/fs/cgroup/system.slice .................. MemoryMax= of the slice
//! /sys/fs/cgroup/system.slice/nemoserve.service  MemoryMax= of the unit
//! ```
//!
//! A container may see only its own groups, and a path that is not among them: then the root is its own.

use std::fs;
use std::path::Path;

/// Bytes: the machine's, or what the control groups leave if that is less. `None`: nobody tells.
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| machine_available(&text));
    let groups = read("/proc/self/cgroup")
        .and_then(|text| groups_available(&text, Path::new("/sys/fs/cgroup")));
    machine.into_iter().chain(groups).min()
}

fn machine_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// How a version of control groups calls what it tells.
struct Names {
    /// Below the root.
    folder: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Of `memory.stat`, those of groups below included.
    file_pages: [&'static str; 2],
}

const V1: Names = Names {
    folder: "memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_pages: ["total_inactive_file", "total_active_file"],
};

const V2: Names = Names {
    folder: "",
    limit: "memory.max",
    usage: "memory.current",
    file_pages: ["inactive_file", "active_file"],
};

/// What the groups of a process leave it at least. `paths` is its `/proc/self/cgroup`: lines of number,
/// controllers and path, of which version 2 has one, `0::PATH`.
fn groups_available(paths: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in paths.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let names = match (number, controllers) {
            ("0", "") => &V2,
            _ if controllers.split(',').any(|one| one == "memory") => &V1,
            _ => continue,
        };
        let top = root.join(names.folder);
        let own = top.join(path.trim_start_matches('/'));
        let groups = own.ancestors().take_while(|group| group.starts_with(&top));
        for left in groups.filter_map(|group| group_available(group, names)) {
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
    }
    least
}

/// What one group leaves; `None` without a limit, or where it is not to be seen.
fn group_available(group: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let (limit, usage) = (number(names.limit)?, number(names.usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    // Pages of files count as used and are given back when somebody needs them: mapped weights are
    // such, and being read at every step they are active ones.
    let file_pages: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| names.file_pages.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(usage.saturating_sub(file_pages)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// What `/sys/fs/cgroup` would be.
    struct Root(TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary folder"))
        }

        fn group(self, path: &str, files: &[(&str, &str)]) -> Self {
            let group = self.0.path().join(path);
            fs::create_dir_all(&group).expect("a folder can be made");
            for (name, text) in files {
                fs::write(group.join(name), text).expect("a file can be written");
            }
            self
        }

        /// A group of version 2, of whose use 40 bytes are pages of files.
        fn v2(self, path: &str, max: &str, current: &str) -> Self {
            let stat = "anon 60\nfile 50\nshmem 10\ninactive_file 30\nactive_file 10\n";
            self.group(
                path,
                &[
                    ("memory.max", max),
                    ("memory.current", current),
                    ("memory.stat", stat),
                ],
            )
        }

        #[track_caller]
        fn check(&self, paths: &str, expect: Option<u64>) {
            assert_eq!(groups_available(paths, self.0.path()), expect, "{paths}");
        }
    }

    const UNIT: &str = "0::/system.slice/nemoserve.service\n";

    #[test]
    fn the_units_own_limit_holds() {
        let root = Root::new()
            .v2("system.slice", "max\n", "5000\n")
            .v2("system.slice/nemoserve.service", "1000\n", "100\n")
            .v2("system.slice/other.service", "10\n", "10\n");
        root.check(UNIT, Some(940));
        root.check("0::/system.slice\n", None);
        root.check("0::/user.slice/session-1.scope\n", None);
    }

    #[test]
    fn of_all_groups_above_the_one_that_leaves_least_decides() {
        let unit = "system.slice/nemoserve.service";
        let roomy = Root::new().v2("", "9000\n", "40\n");
        let roomy = roomy
            .v2("system.slice", "8000\n", "7140\n")
            .v2(unit, "1000\n", "40\n");
        // The slice has the larger limit, and others in it have used it up.
        roomy.check(UNIT, Some(900));
        let unlimited = Root::new()
            .v2("system.slice", "500\n", "40\n")
            .v2(unit, "max\n", "40\n");
        unlimited.check(UNIT, Some(500));
    }

    #[test]
    fn a_containers_root_is_its_own_group() {
        let root = Root::new().v2("", "1000\n", "140\n");
        for paths in ["0::/\n", "0::/docker/4af1\n", "0::/../../other\n", "0::/"] {
            root.check(paths, Some(900));
        }
    }

    #[test]
    fn nothing_is_below_nothing() {
        let root = Root::new().v2("full", "100\n", "5000\n");
        root.check("0::/full\n", Some(0));
    }

    #[test]
    fn version_1_is_read_by_its_own_names() {
        let files = [
            ("memory.limit_in_bytes", "1000\n"),
            ("memory.usage_in_bytes", "300\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 150\n"),
        ];
        let root = Root::new().group("memory/a", &files);
        let hybrid = "5:cpu,cpuacct:/other\n4:hugetlb,memory:/a/b:c\n1:name=systemd:/a\n0::/\n";
        root.check(hybrid, Some(850));
    }

    #[test]
    fn what_cannot_be_read_limits_nobody() {
        let bare = [("memory.max", "1000\n"), ("memory.current", "100\n")];
        let root = Root::new().group("bare", &bare).group("new", &bare[..1]);
        root.check("0::/bare\n", Some(900));
        root.check("0::/new\n", None);
        root.check("", None);
        root.check("nonsense\n0:memory\n::\n", None);
    }

    #[test]
    fn the_machines_memory_is_what_the_kernel_calls_available() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   1234 kB\n";
        assert_eq!(machine_available(text), Some(1234 * 1024));
        assert_eq!(machine_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn this_machine_tells() {
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
    }
}
