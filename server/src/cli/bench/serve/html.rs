//! The report as one page that needs nothing beside it.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::outcome::{Objectives, Outcomes, PIECE};
use super::plot::{Plot, Series, escaped};
use super::{name_of, number_in, seconds};
use crate::cli::bench::report::Report;

/// Dots in one plot.
const MAX_DOTS: usize = 2000;
/// Points of a line over time.
const MAX_TIMES: usize = 200;

const STYLE: &str = "
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1.5rem }
dt { opacity: .7 } dd { margin: 0 }
table { border-collapse: collapse; margin: 1.5rem 0 }
th { text-align: left; font-weight: normal; opacity: .7 } td { text-align: right }
th, td { padding: .15rem .9rem .15rem 0; font-variant-numeric: tabular-nums }
tr + tr { border-top: 1px solid #8884 }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 }
svg { width: 100%; fill: none; stroke-width: 1.5 }
svg text { fill: currentColor; font-size: 11px; opacity: .8 }
.grid { stroke: currentColor; opacity: .12; stroke-width: 1 }
.limit { stroke: #c00; stroke-dasharray: 4 3 }
.dots { stroke-width: 3.5; stroke-linecap: round; opacity: .55 }
.legend b { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
.legend span { margin-right: 1em } .legend { margin: 0 }
";

/// One run and what was asked of it.
pub(super) struct Run {
    pub(super) rate: Option<f64>,
    pub(super) outcomes: Outcomes,
}

pub(super) fn page(report: &Report, runs: &[Run], objectives: Objectives) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width\">\n\
         <title>nemoserve bench serve</title>\n<style>{STYLE}</style>\n\
         <h1>nemoserve bench serve</h1>\n"
    );
    let mut put = |text: String| writeln!(out, "{text}").expect("a string takes all");
    put("<dl>".into());
    for (key, value) in report.facts() {
        put(format!("<dt>{}<dd>{}", escaped(&key), escaped(&value)));
    }
    put("</dl>\n<table>".into());
    for line in report.columns() {
        let (key, cells) = line.split_first().expect("every line has its key");
        let cells: Vec<String> = cells
            .iter()
            .map(|cell| format!("<td>{}", escaped(cell)))
            .collect();
        put(format!("<tr><th>{}{}", escaped(key), cells.concat()));
    }
    put("</table>\n<main>".into());
    for plot in plots(report, runs, objectives) {
        put(plot.svg());
    }
    put("</main>".into());
    for note in report.notes() {
        put(format!("<p>{}</p>", escaped(note)));
    }
    out
}

fn plots(report: &Report, runs: &[Run], objectives: Objectives) -> Vec<Plot<'static>> {
    let of_runs = |points: &dyn Fn(&Run) -> Vec<(f64, f64)>| -> Vec<Series> {
        let series = runs.iter().map(|run| Series {
            name: name_of(run.rate),
            points: points(run),
        });
        series.collect()
    };
    let plain = |title, x, y, series| Plot {
        title,
        x,
        y,
        is_x_logarithmic: false,
        has_dots: false,
        series,
        x_limit: None,
        y_limit: None,
    };
    let mut plots = vec![
        Plot {
            is_x_logarithmic: true,
            x_limit: objectives.ttft_ms,
            ..plain(
                "Time to first token",
                "ms",
                "share of requests",
                of_runs(&|run| shares(&run.outcomes.ttfts())),
            )
        },
        Plot {
            is_x_logarithmic: true,
            x_limit: objectives.itl_ms,
            ..plain(
                "Time between tokens",
                "ms",
                "share of gaps",
                of_runs(&|run| shares(&run.outcomes.gaps)),
            )
        },
        Plot {
            has_dots: true,
            y_limit: objectives.ttft_ms,
            ..plain(
                "Time to first token over the run",
                "s after the beginning",
                "ms",
                of_runs(&|run| dots(&run.outcomes)),
            )
        },
        plain(
            "Tokens over the run",
            "s after the beginning",
            "tokens per s",
            of_runs(&|run| throughput(&run.outcomes)),
        ),
    ];
    if runs.len() > 1 {
        let by_rate = |name: &str, key: &str| Series {
            name: name.into(),
            points: report
                .rows()
                .iter()
                .filter_map(|row| Some((number_in(row, "rate_per_s")?, number_in(row, key)?)))
                .collect(),
        };
        plots.push(Plot {
            y_limit: objectives.ttft_ms,
            ..plain(
                "Time to first token by rate",
                "requests per s",
                "ms",
                vec![by_rate("p50", "ttft_ms_p50"), by_rate("p99", "ttft_ms_p99")],
            )
        });
        plots.push(plain(
            "Answered by rate",
            "requests per s",
            "requests per s",
            vec![
                by_rate("all", "requests_per_s"),
                by_rate("within objectives", "good_per_s"),
            ],
        ));
    }
    plots
}

/// Which share of all took how long at most, in milliseconds.
fn shares(times: &Histogram<u64>) -> Vec<(f64, f64)> {
    if times.is_empty() {
        return Vec::new();
    }
    let share = |at: u32| f64::from(at) / 200.0;
    (0..=200)
        .map(|at| (times.value_at_quantile(share(at)) as f64 / 1e3, share(at)))
        .collect()
}

fn dots(outcomes: &Outcomes) -> Vec<(f64, f64)> {
    let every = outcomes.timings.len().div_ceil(MAX_DOTS).max(1);
    let shown = outcomes.timings.iter().step_by(every);
    shown
        .map(|timing| (seconds(timing.due), seconds(timing.ttft) * 1e3))
        .collect()
}

fn throughput(outcomes: &Outcomes) -> Vec<(f64, f64)> {
    let every = outcomes.pieces.len().div_ceil(MAX_TIMES).max(1);
    let span = seconds(PIECE) * every as f64;
    let sums = outcomes
        .pieces
        .chunks(every)
        .map(|pieces| pieces.iter().sum::<u64>());
    sums.enumerate()
        .map(|(at, sum)| ((at as f64 + 0.5) * span, sum as f64 / span))
        .collect()
}
