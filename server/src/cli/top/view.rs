//! A reading on the screen, and as plain text.

use std::fmt::Write as _;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline};

use super::reading::{History, Latency, Pool, Reading};

/// Draws everything. `trouble` is why the last look failed, if it did.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    url: &str,
    reading: &Reading,
    history: &History,
    trouble: Option<&str>,
) {
    let [title, lines, middle, pools, bottom, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(6),
        Constraint::Length(6),
        Constraint::Length(3),
        Constraint::Length(7),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    let mut head = vec![
        format!(" {} ", reading.model).bold().reversed(),
        format!(" {}", reading.build).into(),
        format!("  {url}").dim(),
    ];
    if let Some(trouble) = trouble {
        head.push(format!("  {trouble}").fg(Color::Red).bold());
    }
    frame.render_widget(Line::from(head), title);
    frame.render_widget(Line::from(" q quits".dim()), foot);

    let [speed, queue] = halves(lines);
    let rate = whole(reading.generation_rate);
    sparkline(
        frame,
        speed,
        &format!(" {rate} tokens/s "),
        (&history.generation, Color::Green),
    );
    let waiting = whole(reading.waiting);
    sparkline(
        frame,
        queue,
        &format!(" {waiting} waiting "),
        (&history.waiting, Color::Yellow),
    );

    let [work, latency] = halves(middle);
    panel(frame, work, " work ", work_lines(reading));
    panel(frame, latency, " latency ", latency_lines(reading));

    let [blocks, slots] = halves(pools);
    gauge(frame, blocks, " KV blocks ", reading.blocks);
    gauge(frame, slots, " state slots ", reading.slots);

    let [cache, answers] = halves(bottom);
    panel(frame, cache, " prefix cache ", cache_lines(reading));
    panel(
        frame,
        answers,
        " answers and drafts ",
        answer_lines(reading),
    );
}

/// The same, for programs and for logs.
pub(super) fn plain(url: &str, reading: &Reading) -> String {
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{line}").expect("a string takes it");
    line(&format!("{} ({}) at {url}", reading.model, reading.build));
    for part in [
        work_lines(reading),
        latency_lines(reading),
        pool_lines(reading),
        cache_lines(reading),
        answer_lines(reading),
    ] {
        for one in part {
            line(one.trim_end());
        }
    }
    text
}

fn halves(area: Rect) -> [Rect; 2] {
    Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area)
}

fn panel(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<String>) {
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    let block = Block::bordered().title(title);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn sparkline(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    (values, colour): (&std::collections::VecDeque<u64>, Color),
) {
    // What fits, the newest at the right end.
    let room = usize::from(area.width.saturating_sub(2));
    let skipped = values.len().saturating_sub(room);
    let shown: Vec<u64> = values.iter().skip(skipped).copied().collect();
    let line = Sparkline::default()
        .data(&shown)
        .style(Style::new().fg(colour))
        .block(Block::bordered().title(title));
    frame.render_widget(line, area);
}

fn gauge(frame: &mut Frame<'_>, area: Rect, title: &str, pool: Option<Pool>) {
    let block = Block::bordered().title(title);
    let Some(pool) = pool.filter(|pool| pool.total > 0.0) else {
        frame.render_widget(Paragraph::new("-").block(block), area);
        return;
    };
    let share = (pool.used / pool.total).clamp(0.0, 1.0);
    let colour = match share {
        ..0.7 => Color::Green,
        ..0.9 => Color::Yellow,
        _ => Color::Red,
    };
    let gauge = Gauge::default()
        .ratio(share)
        .label(counts(&pool))
        .gauge_style(Style::new().fg(colour))
        .block(block);
    frame.render_widget(gauge, area);
}

fn work_lines(reading: &Reading) -> Vec<String> {
    vec![
        row("running", &whole(reading.running)),
        row("waiting", &whole(reading.waiting)),
        row(
            "tokens/s",
            &format!(
                "{} drawn, {} of prompts",
                whole(reading.generation_rate),
                whole(reading.prompt_rate)
            ),
        ),
        row(
            "requests/s",
            &format!(
                "{}, engine seen {} ago",
                tenths(reading.request_rate),
                seconds(reading.heartbeat_age)
            ),
        ),
    ]
}

fn latency_lines(reading: &Reading) -> Vec<String> {
    let line = |name: &str, latency: &Latency| {
        let [p50, p90, p99] = [latency.p50, latency.p90, latency.p99].map(seconds);
        format!("{name:<12} p50 {p50:>8}  p90 {p90:>8}  p99 {p99:>8}")
    };
    vec![
        line("first token", &reading.time_to_first_token),
        line("next token", &reading.inter_token),
        line("in the queue", &reading.queue),
        line("in all", &reading.whole),
    ]
}

fn pool_lines(reading: &Reading) -> Vec<String> {
    let line = |name: &str, pool: Option<Pool>| {
        let text = pool.map_or("-".to_owned(), |pool| counts(&pool));
        row(name, &text)
    };
    vec![
        line("KV blocks", reading.blocks),
        line("state slots", reading.slots),
    ]
}

fn cache_lines(reading: &Reading) -> Vec<String> {
    let mut lines = vec![
        row(
            "cached",
            &format!(
                "{} of prompt tokens lately, {} in all",
                percent(reading.cached_lately),
                percent(reading.cached)
            ),
        ),
        row("evictions", &whole(reading.evictions)),
    ];
    let misses = reading.misses.iter();
    let misses: Vec<_> = misses
        .map(|(reason, num)| format!("{reason} {num:.0}"))
        .collect();
    lines.push(row("misses", &misses.join(", ")));
    lines.push(row("preemptions", &whole(reading.preemptions)));
    lines
}

fn answer_lines(reading: &Reading) -> Vec<String> {
    let listed = |list: &[(String, f64)]| {
        let parts = list.iter().map(|(name, num)| format!("{name} {num:.0}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let drafts = reading
        .drafts
        .map_or("none".to_owned(), |(drafts, accepted)| {
            format!(
                "{drafts:.0}, {} came true",
                percent(Some(accepted / drafts))
            )
        });
    vec![
        row("answers", &listed(&reading.answers)),
        row("cancelled", &whole(reading.cancelled)),
        row("drafts", &drafts),
        row("by position", &listed(&reading.accepted_by_position)),
    ]
}

fn row(name: &str, text: &str) -> String {
    format!("{name:<12} {text}")
}

fn counts(pool: &Pool) -> String {
    let Pool {
        used,
        cached,
        total,
    } = pool;
    format!("{used:.0} used, {cached:.0} cached of {total:.0}")
}

fn whole(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.0}"))
}

fn tenths(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.1}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share))
}

/// `1.5 ms`, `12 s`.
fn seconds(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 0.9995 => format!("{:.1} ms", 1000.0 * value),
        Some(value) => format!("{value:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::exposition::Exposition;
    use super::*;

    const BEFORE: &str = "\
vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 1
nemoserve_build_info{version=\"1.2\",device=\"cpu\",dtype=\"f32\"} 1
nemoserve_requests_running 1
nemoserve_requests_waiting 0
nemoserve_generation_tokens_total 100
nemoserve_prompt_tokens_total 1000
nemoserve_cached_prompt_tokens_total 0
nemoserve_kv_blocks{state=\"used\"} 0
nemoserve_kv_blocks{state=\"cached\"} 0
nemoserve_kv_blocks{state=\"total\"} 400
";

    const NOW: &str = "\
vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 7
nemoserve_build_info{version=\"1.2\",device=\"cpu\",dtype=\"f32\"} 1
nemoserve_requests_running 7
nemoserve_requests_waiting 13
nemoserve_generation_tokens_total 1334
nemoserve_prompt_tokens_total 3000
nemoserve_cached_prompt_tokens_total 500
nemoserve_kv_blocks{state=\"used\"} 300
nemoserve_kv_blocks{state=\"cached\"} 50
nemoserve_kv_blocks{state=\"total\"} 400
nemoserve_state_slots{state=\"used\"} 7
nemoserve_state_slots{state=\"cached\"} 2
nemoserve_state_slots{state=\"total\"} 16
nemoserve_prefix_cache_misses_total{reason=\"no_snapshot\"} 4
nemoserve_prefix_cache_misses_total{reason=\"evicted\"} 2
nemoserve_time_to_first_token_seconds_bucket{le=\"0.1\"} 10
nemoserve_time_to_first_token_seconds_bucket{le=\"+Inf\"} 10
nemoserve_requests_total{route=\"/v1/completions\",status=\"200\"} 5
nemoserve_draft_tokens_total 10
nemoserve_accepted_draft_tokens_total 9
nemoserve_engine_heartbeat_age_seconds 0.002
";

    fn reading() -> Reading {
        let [before, now] = [BEFORE, NOW].map(|text| Exposition::parse(text).expect("well-formed"));
        Reading::new(&now, Some((&before, Duration::from_secs(1))))
    }

    fn screen(width: u16, height: u16, trouble: Option<&str>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        let mut history = History::default();
        for _ in 0..300 {
            history.note(&reading());
        }
        terminal
            .draw(|frame| draw(frame, "http://x", &reading(), &history, trouble))
            .expect("it is drawn");
        terminal.backend().to_string()
    }

    const FACTS: [&str; 11] = [
        "1234",
        "13",
        "300 used, 50 cached of 400",
        "7 used, 2 cached of 16",
        "25.0 % of prompt tokens lately, 16.7 % in all",
        "no_snapshot 4, evicted 2",
        "p50  50.0 ms",
        "2xx 5",
        "10, 90.0 % came true",
        "1.2, cpu, f32",
        "2.0 ms ago",
    ];

    #[test]
    fn everything_is_on_the_screen() {
        let shown = screen(130, 30, None);
        for fact in FACTS {
            assert!(shown.contains(fact), "{fact:?} is missing:\n{shown}");
        }
        assert!(shown.contains('█'), "a line and two gauges:\n{shown}");
        let troubled = screen(130, 30, Some("connection refused"));
        assert!(troubled.contains("connection refused"), "{troubled}");
    }

    #[test]
    fn a_small_screen_is_no_reason_to_end() {
        for (width, height) in [(1, 1), (20, 5), (40, 12)] {
            screen(width, height, Some("trouble"));
        }
    }

    #[test]
    fn the_plain_text_says_the_same() {
        let text = plain("http://x", &reading());
        for fact in FACTS {
            assert!(text.contains(fact), "{fact:?} is missing:\n{text}");
        }
        assert!(text.is_ascii() && text.lines().all(|line| line == line.trim_end()));
    }
}
