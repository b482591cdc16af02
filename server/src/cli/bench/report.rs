//! A table for people, or the same numbers for programs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// A wider table is turned on its side.
const MAX_WIDTH: usize = 200;

/// What was measured.
#[derive(Debug)]
pub(super) struct Report {
    name: &'static str,
    about: Map<String, Value>,
    rows: Vec<Map<String, Value>>,
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            about: Map::new(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A fact that holds for all rows.
    pub(super) fn about(&mut self, key: &str, value: impl Into<Value>) {
        self.about.insert(key.into(), value.into());
    }

    /// How busy the machine is, where it tells: numbers taken beside other work are no numbers.
    pub(super) fn about_load(&mut self) {
        let text = std::fs::read_to_string("/proc/loadavg").ok();
        let load = text.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        self.about("load_average", load);
    }

    /// All rows have the same keys, in the same order; `null` is what does not apply.
    pub(super) fn row(&mut self, row: Value) {
        let Value::Object(row) = row else {
            unreachable!("rows are objects");
        };
        self.rows.push(row);
    }

    /// For people only.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(super) fn json(&self) -> String {
        let whole = json!({"bench": self.name, "about": self.about, "rows": self.rows});
        format!("{whole:#}\n")
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("nemoserve bench {}\n", self.name);
        for (key, value) in self.facts() {
            writeln!(out, "  {key:<20} {value}").expect("a string takes all");
        }
        let mut lines = lines(&self.columns());
        let mut widths = widths(&lines);
        if widths.iter().map(|width| width + 2).sum::<usize>() > MAX_WIDTH {
            lines = self.columns();
            widths = self::widths(&lines);
        }
        out.push('\n');
        for line in &lines {
            for (cell, width) in line.iter().zip(&widths) {
                write!(out, "  {cell:>width$}").expect("a string takes all");
            }
            out.push('\n');
        }
        for note in &self.notes {
            writeln!(out, "\n{note}").expect("a string takes all");
        }
        out
    }

    /// What holds for all rows, as people read it.
    pub(super) fn facts(&self) -> impl Iterator<Item = (String, String)> {
        self.about
            .iter()
            .map(|(key, value)| (words(key), cell(value)))
    }

    pub(super) fn rows(&self) -> &[Map<String, Value>] {
        &self.rows
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Each key and what the rows have under it.
    pub(super) fn columns(&self) -> Vec<Vec<String>> {
        let keys = self.rows.first().into_iter().flat_map(Map::keys);
        keys.map(|key| {
            let cells = self.rows.iter().map(|row| cell(&row[key]));
            std::iter::once(words(key)).chain(cells).collect()
        })
        .collect()
    }
}

/// Columns become lines.
fn lines(columns: &[Vec<String>]) -> Vec<Vec<String>> {
    let num = columns.first().map_or(0, Vec::len);
    (0..num)
        .map(|at| columns.iter().map(|column| column[at].clone()).collect())
        .collect()
}

fn widths(lines: &[Vec<String>]) -> Vec<usize> {
    let num = lines.first().map_or(0, Vec::len);
    (0..num)
        .map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0))
        .collect()
}

fn words(key: &str) -> String {
    key.replace('_', " ")
}

/// Numbers with three digits that say something.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().expect("just asked");
            match number.abs() {
                0.0 => "0".into(),
                size if size >= 1e5 => format!("{number:.3e}"),
                size => {
                    let decimals = (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
                    format!("{number:.decimals$}")
                }
            }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_short() {
        for (value, text) in [
            (json!(12), "12"),
            (json!(null), "-"),
            (json!(1.23456), "1.23"),
            (json!(0.012345), "0.0123"),
            (json!(123.4), "123"),
            (json!(3.2e11), "3.200e11"),
            (json!(0.0), "0"),
        ] {
            assert_eq!(cell(&value), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let mut report = Report::new("decode");
        report.row(json!({"batch": 1, "tokens_per_s": 5.0}));
        report.row(json!({"batch": 128, "tokens_per_s": null}));
        let text = report.text();
        assert!(text.contains("  batch  tokens per s\n"), "{text}");
        assert!(text.contains("    128             -\n"), "{text}");
        let parsed: Value = serde_json::from_str(&report.json()).expect("it is JSON");
        assert_eq!(parsed["rows"][1]["batch"], 128);

        let mut wide = Report::new("serve");
        let row: Map<String, Value> = (10..40)
            .map(|at| (format!("key_{at}"), at.into()))
            .collect();
        wide.row(Value::Object(row));
        assert!(
            wide.text().contains("  key 10  10\n  key 11  11\n"),
            "{}",
            wide.text()
        );
    }
}
