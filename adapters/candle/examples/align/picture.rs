//! The picture of a run: held-out reward by step, KL by step, and reward against KL (the paper's frontier).
//!
//! It is an SVG with the viewer's own fonts, so that it is drawn on a machine that has none.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::evaluation::Evaluation;
use crate::log::Run;

const SIZE: (u32, u32) = (1260, 440);
const COLORS: [RGBColor; 2] = [RGBColor(0, 90, 181), RGBColor(200, 60, 20)];
const FONT: &str = "sans-serif";

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A place with the half-lengths of its vertical and horizontal error bars.
struct Point {
    x: f64,
    y: f64,
    x_error: f64,
    y_error: f64,
}

struct Axes {
    title: &'static str,
    x: &'static str,
    y: &'static str,
}

pub fn draw(path: &Path, runs: &[Run], title: &str) -> Result<()> {
    draw_panels(path, runs, title).map_err(|error| anyhow!("cannot draw the picture {}: {error}", path.display()))
}

fn draw_panels(path: &Path, runs: &[Run], title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, (FONT, 20))?;
    let panels = root.split_evenly((1, 3));
    let points = |point: fn(&Evaluation) -> Point| {
        runs.iter().map(|run| run.evaluations.iter().map(point).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let reward_by_step = points(|evaluation| Point {
        x: step(evaluation),
        y: evaluation.mean_reward,
        x_error: 0.0,
        y_error: evaluation.reward_error,
    });
    let kl_by_step = points(|evaluation| Point {
        x: step(evaluation),
        y: evaluation.kl,
        x_error: 0.0,
        y_error: evaluation.kl_error,
    });
    let frontier = points(|evaluation| Point {
        x: evaluation.kl,
        y: evaluation.mean_reward,
        x_error: evaluation.kl_error,
        y_error: evaluation.reward_error,
    });
    let names = runs.iter().map(|run| run.objective.label());
    let names = names.collect::<Vec<_>>();
    let axes = Axes { title: "Reward", x: "gradient step", y: "mean reward, held-out prompts" };
    draw_panel(&panels[0], &axes, &names, &reward_by_step)?;
    let axes = Axes { title: "Distance from the reference", x: "gradient step", y: "KL(policy || reference), nats" };
    draw_panel(&panels[1], &axes, &names, &kl_by_step)?;
    let axes = Axes { title: "Frontier", x: "KL(policy || reference), nats", y: "mean reward, held-out prompts" };
    draw_panel(&panels[2], &axes, &names, &frontier)?;
    root.present()?;
    Ok(())
}

fn step(evaluation: &Evaluation) -> f64 {
    evaluation.step as f64
}

fn draw_panel(
    panel: &Panel<'_>,
    axes: &Axes,
    names: &[&str],
    series: &[Vec<Point>],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || series.iter().flatten();
    let x_range = range(all().map(|point| (point.x, point.x_error)), 0.04);
    // Room above the curves for the legend.
    let mut y_range = range(all().map(|point| (point.y, point.y_error)), 0.06);
    y_range.end += 0.16 * (y_range.end - y_range.start);
    let mut chart = ChartBuilder::on(panel)
        .caption(axes.title, (FONT, 17))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(x_range, y_range)?;
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_labels(6)
        .y_labels(7)
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| number(*value))
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for (index, points) in series.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        for point in points {
            let bars = [
                [(point.x, point.y - point.y_error), (point.x, point.y + point.y_error)],
                [(point.x - point.x_error, point.y), (point.x + point.x_error, point.y)],
            ];
            for bar in bars {
                chart.draw_series(LineSeries::new(bar, color.mix(0.45)))?;
            }
        }
        chart.draw_series(points.iter().map(|point| Circle::new((point.x, point.y), 4, color.filled())))?;
        chart
            .draw_series(LineSeries::new(points.iter().map(|point| (point.x, point.y)), color.stroke_width(2)))?
            .label(names[index])
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 14))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.25))
        .draw()?;
    Ok(())
}

/// From the lowest to the highest end of an error bar, widened by `margin` of the length on either side.
fn range(places: impl Iterator<Item = (f64, f64)>, margin: f64) -> Range<f64> {
    let mut low = f64::INFINITY;
    let mut high = f64::NEG_INFINITY;
    for (place, error) in places {
        // An error of a single sample is not a number.
        let error = if error.is_finite() { error } else { 0.0 };
        low = low.min(place - error);
        high = high.max(place + error);
    }
    if !(low.is_finite() && high.is_finite()) {
        return -1.0..1.0;
    }
    let length = (high - low).max(1e-6);
    low - margin * length..high + margin * length
}

/// Whole numbers without a point, others with two digits.
fn number(value: f64) -> String {
    if (value - value.round()).abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.2}") }
}
