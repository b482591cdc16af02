//! Tables and a plot.

use std::fmt::Write as _;

use crate::Outcome;
use crate::workload::Request;

/// One workload in the plot.
pub(crate) struct Row {
    workload: &'static str,
    bars: Vec<(&'static str, f64)>,
}

impl Row {
    pub(crate) fn new(workload: &'static str, requests: &[Request], outcomes: &[Outcome]) -> Self {
        let bars = outcomes.iter().map(|o| (o.name, o.hit_rate(requests)));
        Self {
            workload,
            bars: bars.collect(),
        }
    }
}

/// A table in Markdown.
pub(crate) fn print(workload: &str, requests: &[Request], outcomes: &[Outcome]) {
    let tokens: u64 = requests.iter().map(|r| u64::from(r.prompt_len())).sum();
    println!(
        "\n**{workload}**: {} requests, {:.1} M prompt tokens\n",
        requests.len(),
        tokens as f64 / 1e6
    );
    println!("| policy | cached | computed, M tokens | TTFT p50, s | p99, s |");
    println!("| --- | --- | --- | --- | --- |");
    for outcome in outcomes {
        let rate = outcome.hit_rate(requests);
        let times = outcome.times_to_first_token(requests);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!(
            "| {} | {:.1} % | {:.1} | {:.2} | {:.2} |",
            outcome.name,
            100.0 * rate,
            tokens as f64 * (1.0 - rate) / 1e6,
            at(0.5),
            at(0.99)
        );
    }
}

const COLOURS: [(&str, &str); 7] = [
    ("no cache", "#bbbbbb"),
    ("block-aligned (align)", "#d9a66c"),
    ("LRU of ends", "#9ab7d3"),
    ("Marconi", "#5b8db8"),
    ("ours", "#3c7d3c"),
    ("hindsight", "#e0e0e0"),
    ("endless memory", "#f0f0f0"),
];

/// Share of prompt tokens that needed no computing, as bars.
pub(crate) fn svg(rows: &[Row]) -> String {
    let (left, bar, width) = (220, 11, 420);
    let group = COLOURS.len() * bar + 14;
    let height = rows.len() * group + 60;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"13\">Prompt tokens that needed no computing, by policy</text>\n",
        left + width + 60
    );
    let mut x = 8;
    for (name, colour) in COLOURS {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{colour}\" stroke=\"#888\" stroke-width=\"0.5\"/>\
             <text x=\"{}\" y=\"35\">{name}</text>",
            x + 14
        );
        x += 34 + 6 * name.len();
    }
    for (at, row) in rows.iter().enumerate() {
        let top = 50 + at * group;
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\">{}</text>",
            top + group / 2,
            row.workload
        );
        for (i, (name, share)) in row.bars.iter().enumerate() {
            let colour = COLOURS
                .iter()
                .find(|(known, _)| known == name)
                .map_or("black", |c| c.1);
            let y = top + i * bar;
            let long = share * width as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{y}\" width=\"{long:.1}\" height=\"{}\" fill=\"{colour}\" stroke=\"#888\" stroke-width=\"0.5\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"9\">{:.0} %</text>",
                bar - 1,
                left as f64 + long + 4.0,
                y + bar - 2,
                share * 100.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
