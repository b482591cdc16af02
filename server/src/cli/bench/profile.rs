//! Where the time of steps goes: rows by operation and shape.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::{ProfileRow, Roof};
use serde_json::json;

use super::report::Report;

/// Some steps, or some prompts.
#[derive(Debug, Default)]
pub(super) struct Profile {
    count: u32,
    time: Duration,
    rows: BTreeMap<(&'static str, [usize; 2]), ProfileRow>,
}

impl Profile {
    /// One more.
    pub(super) fn add(&mut self, time: Duration, rows: Vec<ProfileRow>) {
        self.count += 1;
        self.time += time;
        for row in rows {
            self.rows
                .entry((row.operation, row.dims))
                .and_modify(|sum| {
                    sum.num_calls += row.num_calls;
                    sum.time += row.time;
                    sum.bytes += row.bytes;
                    sum.operations += row.operations;
                })
                .or_insert(row);
        }
    }

    /// Rows of the mean of all, the longest first; last what no operation accounts for.
    pub(super) fn tell(self, report: &mut Report, (what, value): (&str, u32), roof: Roof) {
        let count = f64::from(self.count.max(1));
        let whole = self.time.as_secs_f64();
        let mut rows: Vec<ProfileRow> = self.rows.into_values().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
        let known: Duration = rows.iter().map(|row| row.time).sum();
        for row in &rows {
            let time = row.time.as_secs_f64();
            let rate = |amount: u64| (amount > 0).then(|| amount as f64 / time);
            let (bytes, operations) = (rate(row.bytes), rate(row.operations));
            let [n, k] = row.dims;
            report.row(json!({
                what: value,
                "operation": row.operation,
                "shape": format!("{n} x {k}"),
                "calls": row.num_calls as f64 / count,
                "ms": time * 1e3 / count,
                "share": time / whole,
                "gb_per_s": bytes.map(|rate| rate / 1e9),
                "of_bandwidth": bytes.map(|rate| rate / roof.bytes_per_second),
                "gflop_per_s": operations.map(|rate| rate / 1e9),
                "of_matrix_rate": operations.map(|rate| rate / roof.flops_per_second),
            }));
        }
        let rest = self.time.saturating_sub(known).as_secs_f64();
        report.row(json!({
            what: value,
            "operation": "everything else",
            "shape": null,
            "calls": null,
            "ms": rest * 1e3 / count,
            "share": rest / whole,
            "gb_per_s": null,
            "of_bandwidth": null,
            "gflop_per_s": null,
            "of_matrix_rate": null,
        }));
    }
}

/// What the columns mean.
pub(super) fn explain(report: &mut Report) {
    report.note(
        "Milliseconds and calls of one step (of a prompt: of all its steps); a product's shape is outputs x\n\
         inputs. Bytes are what the operation moves at least, of weights as stored; what is still in a\n\
         cache is read faster than memory.",
    );
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn rows_are_means_and_add_up_to_the_whole() {
        let row = |operation, ms| ProfileRow {
            operation,
            dims: [2, 3],
            num_calls: 2,
            time: Duration::from_millis(ms),
            bytes: 4_000_000,
            operations: 0,
        };
        let mut profile = Profile::default();
        profile.add(Duration::from_millis(10), vec![row("a", 2), row("b", 4)]);
        profile.add(Duration::from_millis(10), vec![row("a", 2)]);
        let mut report = Report::new("decode");
        let roof = Roof {
            bytes_per_second: 4e9,
            flops_per_second: 1e9,
        };
        profile.tell(&mut report, ("batch", 8), roof);
        let told: Value = serde_json::from_str(&report.json()).expect("it is JSON");
        let rows = told["rows"].as_array().expect("there are rows");
        let shares: f64 = rows
            .iter()
            .map(|row| row["share"].as_f64().expect("each has one"))
            .sum();
        assert!((shares - 1.0).abs() < 1e-9);
        assert_eq!(rows.len(), 3);
        let a = rows
            .iter()
            .find(|row| row["operation"] == "a")
            .expect("it was called");
        assert_eq!(
            (&a["calls"], &a["ms"], &a["batch"]),
            (&json!(2.0), &json!(2.0), &json!(8))
        );
        assert_eq!(
            (&a["of_bandwidth"], &a["gflop_per_s"]),
            (&json!(0.5), &Value::Null)
        );
        assert_eq!(rows[2]["operation"], "everything else");
        assert_eq!(rows[2]["ms"], json!(6.0));
    }
}
