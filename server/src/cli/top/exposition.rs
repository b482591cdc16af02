//! The text that `/metrics` answers with, read with care: it may be another server's.

/// All samples of one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exposition {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

/// A histogram summed over its labels: upper bounds, ascending, and how many lie at or below each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

impl Exposition {
    /// The error names the line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut samples = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let sample = Sample::parse(line);
            samples.push(sample.map_err(|what| format!("line {number}: {what}"))?);
        }
        Ok(Self { samples })
    }

    /// The sum of all samples of a name whose labels have these values; `None` if there is none.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.of(name, labels).map(|sample| sample.value).peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// Values of a label, with the sum of the samples that have it, in the order of the text.
    pub(super) fn by(&self, name: &str, label: &str) -> Vec<(String, f64)> {
        let mut sums: Vec<(String, f64)> = Vec::new();
        for sample in self.of(name, &[]) {
            let Some(value) = sample.label(label) else {
                continue;
            };
            match sums.iter_mut().find(|(known, _)| known == value) {
                Some((_, sum)) => *sum += sample.value,
                None => sums.push((value.to_owned(), sample.value)),
            }
        }
        sums
    }

    /// The first value of a label that a metric has.
    pub(super) fn label(&self, name: &str, label: &str) -> Option<&str> {
        self.of(name, &[]).find_map(|sample| sample.label(label))
    }

    /// A histogram by its name without `_bucket`.
    pub(super) fn buckets(&self, name: &str) -> Option<Buckets> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.of(&format!("{name}_bucket"), &[]) {
            let bound: f64 = number(sample.label("le")?)?;
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        (!buckets.is_empty()).then_some(Buckets(buckets))
    }

    fn of<'a, 'b>(
        &'a self,
        name: &'b str,
        labels: &'b [(&'b str, &'b str)],
    ) -> impl Iterator<Item = &'a Sample> + use<'a, 'b> {
        self.samples.iter().filter(move |sample| {
            let has = |(label, value): &(&str, &str)| sample.label(label) == Some(value);
            sample.name == name && labels.iter().all(has)
        })
    }
}

impl Sample {
    /// `name{label="value",..} 1.5 timestamp`
    fn parse(line: &str) -> Result<Self, String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let end = line.find(|c| !is_name(c)).unwrap_or(line.len());
        let (name, mut rest) = line.split_at(end);
        if name.is_empty() {
            return Err("expected a name".into());
        }
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            (labels, rest) = parse_labels(inside)?;
        }
        let value = rest.split_whitespace().next().and_then(number);
        Ok(Self {
            name: name.to_owned(),
            labels,
            value: value.ok_or_else(|| format!("{name}: expected a number"))?,
        })
    }

    fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

type Labels = Vec<(String, String)>;

/// What is between the braces, and what follows them.
fn parse_labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, quoted) = rest.split_once("=\"").ok_or("expected label=\"value\"")?;
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Err(format!("{name} is no label"));
        }
        let mut value = String::new();
        let mut letters = quoted.char_indices();
        let end = loop {
            match letters.next() {
                None => return Err(format!("the value of {name} has no end")),
                Some((at, '"')) => break at,
                Some((_, '\\')) => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                    _ => return Err(format!("the value of {name} has an unknown escape")),
                },
                Some((_, letter)) => value.push(letter),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &quoted[end + 1..];
    }
}

/// Numbers as Go writes them.
fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => text.parse().ok(),
    }
}

impl Buckets {
    /// What came since `before`, of the same histogram. All of it if the server began anew.
    pub(super) fn since(&self, before: &Self) -> Self {
        let is_same = self.0.len() == before.0.len() && self.total() >= before.total();
        if !is_same {
            return self.clone();
        }
        let pairs = self.0.iter().zip(&before.0);
        let news = pairs.map(|((bound, now), (_, then))| (*bound, now - then));
        Self(news.collect())
    }

    /// How many there are.
    pub(super) fn total(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// Where a share of them lies at or below, between bounds as if they were spread evenly. `None` if
    /// there are none; beyond the last bound, the bound.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.total();
        if total <= 0.0 {
            return None;
        }
        let rank = share * total;
        let at = self.0.iter().position(|(_, count)| *count >= rank)?;
        let (bound, count) = self.0[at];
        let (floor, below) = at
            .checked_sub(1)
            .map_or((0.0, 0.0), |before| self.0[before]);
        if bound.is_infinite() {
            return Some(floor);
        }
        Some(floor + (bound - floor) * (rank - below) / (count - below).max(f64::MIN_POSITIVE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_as_written() {
        let text = "# HELP a b{c=\"d\"} 1\n# TYPE a counter\n\na 1\na_total{x=\"1\",y=\"q \\\"z\\\" \\\\ \
                    \\n}\"} 2.5 1700000000\n  b:c{} -3e2\nd NaN\ne +Inf\nf{x=\"1\",} 4\n";
        let read = Exposition::parse(text).expect("it is well-formed");
        assert_eq!(read.sum("a", &[]), Some(1.0));
        assert_eq!(read.sum("a_total", &[("x", "1")]), Some(2.5));
        assert_eq!(read.sum("a_total", &[("x", "2")]), None);
        assert_eq!(read.label("a_total", "y"), Some("q \"z\" \\ \n}"));
        assert_eq!(read.sum("b:c", &[]), Some(-300.0));
        assert!(read.sum("d", &[]).expect("it is there").is_nan());
        assert_eq!(read.sum("e", &[]), Some(f64::INFINITY));
        assert_eq!(read.sum("f", &[("x", "1")]), Some(4.0));
    }

    #[test]
    fn nonsense_is_told_by_its_line() {
        for bad in [
            "a",
            "a b",
            "{} 1",
            "a{x=1} 1",
            "a{x=\"1} 1",
            "a{x=\"\\q\"} 1",
            "-a 1",
            "a{",
        ] {
            let error = Exposition::parse(&format!("good 1\n{bad}\n")).expect_err(bad);
            assert!(error.starts_with("line 2"), "{bad}: {error}");
        }
    }

    #[test]
    fn labels_are_summed_over() {
        let text = "r{route=\"a\",status=\"200\"} 3\nr{route=\"b\",status=\"200\"} 4\n\
                    r{route=\"a\",status=\"500\"} 1\n";
        let read = Exposition::parse(text).expect("it is well-formed");
        assert_eq!(read.sum("r", &[]), Some(8.0));
        let by = read.by("r", "status");
        assert_eq!(by, [("200".to_owned(), 7.0), ("500".to_owned(), 1.0)]);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let text =
            "h_bucket{le=\"1\"} 10\nh_bucket{le=\"2\"} 30\nh_bucket{le=\"+Inf\"} 40\nh_sum 1\n";
        let read = Exposition::parse(text).expect("it is well-formed");
        let all = read.buckets("h").expect("it is there");
        assert_eq!(all.total(), 40.0);
        assert_eq!(all.quantile(0.25), Some(1.0));
        assert_eq!(all.quantile(0.5), Some(1.5));
        assert_eq!(all.quantile(0.99), Some(2.0), "beyond the last bound");
        assert_eq!(all.since(&all).quantile(0.5), None, "nothing came");
        assert_eq!(all.since(&Buckets::default()), all, "another histogram");
        assert_eq!(read.buckets("none"), None);
    }
}
