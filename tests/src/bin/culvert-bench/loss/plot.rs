//! Curves as SVG: one panel or several side by side, a logarithmic axis of shares.

use std::fmt::Write as _;

/// A curve: its name, and a share from 0 to 1 for each place of the horizontal axis.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) shares: Vec<f64>,
}

/// One diagram.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) places: Vec<String>,
    pub(crate) curves: Vec<Curve>,
}

/// Shares below are drawn here: one in so many.
const DECADES: f64 = 5.0;
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
/// Room for the marks of the axes.
const LEFT: f64 = 64.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 48.0;
/// Height of a line of the legend, which is below all panels.
const LINE: f64 = 18.0;
/// Colours that people who see red and green alike can tell apart (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Draws panels side by side, whose curves have the same names, with what the vertical axis means.
pub(crate) fn svg(axis: &str, panels: &[Panel]) -> String {
    let mut out = String::new();
    let names: Vec<_> = panels.iter().flat_map(|panel| &panel.curves).map(|c| &c.name).collect();
    let names = &names[..panels.first().map_or(0, |panel| panel.curves.len())];
    let width = WIDTH * panels.len() as f64;
    let height = HEIGHT + LINE * names.len() as f64 + LINE;
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">"
    );
    let _ = writeln!(out, "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>");
    for (at, panel) in panels.iter().enumerate() {
        draw(&mut out, axis, panel, WIDTH * at as f64);
    }
    for (at, name) in names.iter().enumerate() {
        let y = HEIGHT + LINE * (at as f64 + 1.0);
        let colour = COLOURS[at % COLOURS.len()];
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{end}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"{colour}\" \
             stroke-width=\"2\"/><text x=\"{text}\" y=\"{y}\">{name}</text>",
            middle = y - 4.0,
            end = LEFT + 30.0,
            text = LEFT + 38.0
        );
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, axis: &str, panel: &Panel, left: f64) {
    let (x0, x1) = (left + LEFT, left + WIDTH - 16.0);
    let (y0, y1) = (HEIGHT - BOTTOM, TOP);
    let step = (x1 - x0) / panel.places.len() as f64;
    let x_of = |place: usize| x0 + step * (place as f64 + 0.5);
    let y_of = |share: f64| {
        let decades = -share.max(1e-9).log10();
        y1 + (y0 - y1) * (decades / DECADES).clamp(0.0, 1.0)
    };
    let _ = writeln!(out, "<text x=\"{x0}\" y=\"20\" font-weight=\"bold\">{}</text>", panel.title);
    for decade in 0..=DECADES as i32 {
        let y = y_of(10f64.powi(-decade));
        let mark = match decade {
            5 => "≤ 0.001 %".to_owned(),
            _ => format!("{} %", 10f64.powi(2 - decade)),
        };
        let _ = writeln!(
            out,
            "<line x1=\"{x0}\" x2=\"{x1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
            x0 - 6.0,
            y + 4.0
        );
    }
    for (place, name) in panel.places.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            x_of(place),
            y0 + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{axis}</text>",
        f64::midpoint(x0, x1),
        y0 + 36.0
    );
    for (at, curve) in panel.curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let points: Vec<_> = curve
            .shares
            .iter()
            .enumerate()
            .map(|(place, share)| format!("{:.1},{:.1}", x_of(place), y_of(*share)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            points.join(" ")
        );
        for point in &points {
            let Some((x, y)) = point.split_once(',') else { continue };
            let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_drawn_and_named_once() {
        let panel = |title: &str| Panel {
            title: title.to_owned(),
            places: vec!["1 %".to_owned(), "10 %".to_owned()],
            curves: ["one", "two"]
                .map(|name| Curve { name: name.to_owned(), shares: vec![0.5, 0.0] })
                .into(),
        };
        let svg = svg("loss", &[panel("left"), panel("right")]);
        assert_eq!(svg.matches("<polyline").count(), 4);
        assert_eq!(svg.matches(">one</text>").count(), 1);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
