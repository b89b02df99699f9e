//! A plot of lines over two logarithmic axes, as SVG.

use std::fmt::Write;

/// One line.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) is_dashed: bool,
}

/// Size of the picture, and of its margins: left, right, top, bottom.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 440.0;
const MARGINS: [f64; 4] = [70.0, 210.0, 40.0, 50.0];
const COLOURS: [&str; 7] =
    ["#1b6ca8", "#1b6ca8", "#2a9d5c", "#2a9d5c", "#c0392b", "#c0392b", "#555555"];

/// Draws lines, whose values are all positive.
pub(super) fn plot(title: &str, across: &str, up: &str, lines: &[Line]) -> String {
    let [left, right, top, bottom] = MARGINS;
    let points = || lines.iter().flat_map(|line| &line.points);
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MAX, f64::min).max(0.1);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.2, f64::max);
    let (x0, x1) = (least(&mut points().map(|p| p.0)), most(&mut points().map(|p| p.0)));
    let decade = |value: f64| 10_f64.powf(value.log10().floor());
    let (y0, y1) = (
        decade(least(&mut points().map(|p| p.1))),
        decade(most(&mut points().map(|p| p.1))) * 10.0,
    );
    let share = |value: f64, from: f64, to: f64| (value / from).ln() / (to / from).ln().max(1e-9);
    let x = |value: f64| left + share(value, x0, x1) * (WIDTH - left - right);
    let y = |value: f64| HEIGHT - bottom - share(value, y0, y1) * (HEIGHT - top - bottom);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    let mut add = |text: String| {
        let _ = writeln!(svg, "{text}");
    };
    let mut tick = y0;
    while tick <= y1 * 1.001 {
        let (at, end) = (y(tick), WIDTH - right);
        add(format!("<path d=\"M{left} {at:.1}H{end}\" stroke=\"#dddddd\"/>"));
        add(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            left - 6.0,
            at + 4.0
        ));
        tick *= 10.0;
    }
    let mut ticks: Vec<f64> = points().map(|p| p.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        let at = x(tick);
        let foot = HEIGHT - bottom + 18.0;
        add(format!("<text x=\"{at:.1}\" y=\"{foot:.1}\" text-anchor=\"middle\">{tick}</text>"));
    }
    let middle = left + (WIDTH - left - right) / 2.0;
    add(format!(
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{across}</text>",
        HEIGHT - 12.0
    ));
    let half = HEIGHT / 2.0;
    add(format!(
        "<text x=\"16\" y=\"{half}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {half})\">{up}</text>"
    ));
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let dash = if line.is_dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let path: Vec<String> =
            line.points.iter().map(|(px, py)| format!("{:.1} {:.1}", x(*px), y(*py))).collect();
        add(format!(
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            path.join("L")
        ));
        let (from, at) = (WIDTH - right + 14.0, top + 16.0 + 20.0 * number as f64);
        add(format!("<path d=\"M{from} {at}h26\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>"));
        add(format!("<text x=\"{}\" y=\"{}\">{}</text>", from + 32.0, at + 4.0, line.name));
    }
    svg.push_str("</svg>\n");
    svg
}
