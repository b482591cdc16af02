//! A table for people, or the same numbers for programs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

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
        for (key, value) in &self.about {
            writeln!(out, "  {:<20} {}", words(key), cell(value)).expect("a string takes all");
        }
        let header: Vec<String> = self
            .rows
            .first()
            .map_or_else(Vec::new, |row| row.keys().map(|key| words(key)).collect());
        let cells = self
            .rows
            .iter()
            .map(|row| row.values().map(cell).collect::<Vec<String>>());
        let lines: Vec<Vec<String>> = std::iter::once(header).chain(cells).collect();
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0))
            .collect();
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
    }
}
