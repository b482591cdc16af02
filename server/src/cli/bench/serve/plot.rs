//! Plots as SVG: lines or dots over two axes, of which one may be logarithmic.

use std::fmt::Write as _;

/// Of the picture, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 44.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;

/// Told apart by most eyes, on black and on white.
const COLOURS: &[&str] = &[
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// What is plotted.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) is_x_logarithmic: bool,
    pub(super) has_dots: bool,
    pub(super) series: Vec<Series>,
    /// Where a limit lies, on the axis of x or of y.
    pub(super) x_limit: Option<f64>,
    pub(super) y_limit: Option<f64>,
}

/// Points of one colour.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Axis {
    /// Covers all values, and 0 unless it is logarithmic.
    fn over(values: impl Iterator<Item = f64>, is_logarithmic: bool) -> Self {
        let (mut low, mut high) = if is_logarithmic {
            (f64::INFINITY, 0.0)
        } else {
            (0.0, 0.0)
        };
        for value in values {
            if !is_logarithmic || value > 0.0 {
                low = value.min(low);
                high = value.max(high);
            }
        }
        if is_logarithmic && low.is_finite() {
            low = 10_f64.powf(low.log10().floor());
            high = 10_f64.powf(high.log10().ceil()).max(low * 10.0);
        } else if high <= low || is_logarithmic {
            (low, high) = if is_logarithmic {
                (1.0, 10.0)
            } else {
                (0.0, 1.0)
            };
        }
        Self {
            low,
            high,
            is_logarithmic,
        }
    }

    /// From 0 to 1.
    fn place(self, value: f64) -> f64 {
        if self.is_logarithmic {
            let value = value.max(self.low);
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round numbers.
    fn ticks(self) -> Vec<f64> {
        if self.is_logarithmic {
            let first = self.low.log10().round() as i32;
            let last = self.high.log10().round() as i32;
            return (first..=last).map(|power| 10_f64.powi(power)).collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = step
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let num = ((self.high - self.low) / step + 1e-9) as u32;
        (0..=num)
            .map(|at| self.low + f64::from(at) * step)
            .collect()
    }
}

impl Plot<'_> {
    /// A picture with its title, for a page whose style names the classes.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let xs = points().map(|point| point.0).chain(self.x_limit);
        let ys = points().map(|point| point.1).chain(self.y_limit);
        let x = Axis::over(xs, self.is_x_logarithmic);
        let y = Axis::over(ys, false);
        let across = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let up = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - TOP);
        let mut out = String::new();
        let mut put = |text: String| {
            out += &text;
            out.push('\n');
        };
        put(format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">",
            escaped(self.title)
        ));
        let (floor, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in x.ticks() {
            let at = across(tick);
            put(format!("<path class=grid d=\"M{at:.1} {TOP}V{floor}\"/>"));
            let label = short(tick);
            put(format!(
                "<text x={at:.1} y={} text-anchor=middle>{label}</text>",
                floor + 15.0
            ));
        }
        for tick in y.ticks() {
            let at = up(tick);
            put(format!("<path class=grid d=\"M{LEFT} {at:.1}H{end}\"/>"));
            let label = short(tick);
            put(format!(
                "<text x={} y={:.1} text-anchor=end>{label}</text>",
                LEFT - 6.0,
                at + 4.0
            ));
        }
        if let Some(limit) = self.x_limit {
            put(format!(
                "<path class=limit d=\"M{:.1} {TOP}V{floor}\"/>",
                across(limit)
            ));
        }
        if let Some(limit) = self.y_limit {
            put(format!(
                "<path class=limit d=\"M{LEFT} {:.1}H{end}\"/>",
                up(limit)
            ));
        }
        put(format!(
            "<text x={} y={} text-anchor=middle>{}</text>",
            f64::midpoint(LEFT, end),
            HEIGHT - 8.0,
            escaped(self.x)
        ));
        put(format!(
            "<text transform=\"translate(14 {}) rotate(-90)\" text-anchor=middle>{}</text>",
            f64::midpoint(TOP, floor),
            escaped(self.y)
        ));
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let at = |point: &(f64, f64)| format!("{:.1} {:.1}", across(point.0), up(point.1));
            if self.has_dots {
                // Lines of no length with round ends.
                let dots: Vec<String> = series
                    .points
                    .iter()
                    .map(|p| format!("M{}h0", at(p)))
                    .collect();
                put(format!(
                    "<path class=dots stroke=\"{colour}\" d=\"{}\"/>",
                    dots.concat()
                ));
            } else {
                let line: Vec<String> = series.points.iter().map(at).collect();
                put(format!(
                    "<polyline stroke=\"{colour}\" points=\"{}\"/>",
                    line.join(" ")
                ));
            }
        }
        put("</svg>".into());
        if self.series.len() > 1 {
            let mut legend = String::new();
            for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
                let name = escaped(&series.name);
                write!(
                    legend,
                    "<span><b style=\"background:{colour}\"></b>{name}</span> "
                )
                .expect("a string takes all");
            }
            put(format!("<p class=legend>{legend}</p>"));
        }
        put("</figure>".into());
        out
    }
}

/// A number as a tick's label.
fn short(value: f64) -> String {
    let text = if value != 0.0 && value.abs() < 0.01 {
        format!("{value:.4}")
    } else {
        format!("{value:.2}")
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text that is nothing but text.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_cover_what_is_there() {
        let axis = Axis::over([3.0, 47.0].into_iter(), false);
        assert_eq!((axis.place(0.0), axis.place(47.0)), (0.0, 1.0));
        assert_eq!(axis.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        let axis = Axis::over([0.0, 0.3, 20.0].into_iter(), true);
        assert_eq!((axis.low, axis.high), (0.1, 100.0));
        assert_eq!(axis.place(0.0), 0.0, "what is too small lies at the edge");
        assert_eq!(axis.ticks().len(), 4);
        for is_logarithmic in [false, true] {
            let axis = Axis::over(std::iter::empty(), is_logarithmic);
            assert!(
                axis.place(axis.high) == 1.0 && axis.ticks().len() > 1,
                "{axis:?}"
            );
        }
        let one = Axis::over([5.0].into_iter(), true);
        assert!(one.high > one.low);
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (10.0, "10"),
            (0.25, "0.25"),
            (0.001, "0.001"),
            (1e4, "10000"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn names_are_text() {
        let plot = Plot {
            title: "<script>",
            x: "a & b",
            y: "y",
            is_x_logarithmic: false,
            has_dots: true,
            series: vec![Series {
                name: "s".into(),
                points: vec![(1.0, 2.0)],
            }],
            x_limit: None,
            y_limit: Some(1.0),
        };
        let svg = plot.svg();
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;"));
        assert!(svg.contains("a &amp; b") && svg.contains("class=limit"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
