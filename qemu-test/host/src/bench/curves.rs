// SPDX-License-Identifier: GPL-2.0
//! The plot of the scaling: what an I/O costs, and how long attaching and detaching take, over how many there are.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::line::Subject;
use super::plot::{Drawn, NBD, RNBD, origin, write};
use super::results::{Results, ScalingCost, ScalingResult};

type Area<'a, 'b> = &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>;

struct Curve {
    title: &'static str,
    of: fn(&ScalingCost) -> f64,
}

const CURVES: [Curve; 3] = [
    Curve { title: "an I/O, thousands", of: |cost| cost.cost.median },
    Curve { title: "connect, µs", of: |cost| cost.connect },
    Curve { title: "disconnect, µs", of: |cost| cost.disconnect },
];

/// Writes the SVG: a row for each figure, a column for each axis.
pub fn scaling(boots: &[Results], to: &Path) -> Result<()> {
    let Some(first) = boots.first() else { return Ok(()) };
    let all: Vec<&ScalingResult> = boots.iter().flat_map(|boot| &boot.scaling).collect();
    let mut axes: Vec<&str> = all.iter().map(|point| point.axis.as_str()).collect();
    axes.dedup();
    let size = (40 + 300 * axes.len() as u32, 660);
    write(to, size, |root| {
        let title = format!("does it grow? {}", origin(first));
        let root = root.titled(&title, ("sans-serif", 14))?;
        let panels = root.split_evenly((CURVES.len(), axes.len()));
        for (number, panel) in panels.iter().enumerate() {
            let (curve, axis) = (&CURVES[number / axes.len()], axes[number % axes.len()]);
            let points: Vec<_> = all.iter().copied().filter(|point| point.axis == axis).collect();
            draw(panel, curve, axis, &points)?;
        }
        Ok(())
    })
}

fn draw(panel: Area, curve: &Curve, axis: &str, points: &[&ScalingResult]) -> Drawn {
    let of = |subject| {
        let value = move |(place, point): (usize, &&ScalingResult)| {
            Some((place as f64, (curve.of)(point.costs.get(&subject)?)))
        };
        points.iter().enumerate().filter_map(value).collect::<Vec<_>>()
    };
    let subjects = [(Subject::Nbd, NBD), (Subject::Rnbd, RNBD)];
    let values = subjects.iter().flat_map(|(subject, _)| of(*subject)).map(|(_, value)| value);
    let top = values.fold(0.0, f64::max) * 1.6;
    let last = points.len().saturating_sub(1) as f64;
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{} over {axis}", curve.title), ("sans-serif", 13))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(44)
        .build_cartesian_2d(-0.3..last + 0.3, 0.0..top.max(1.0))?;
    let count = |place: &f64| {
        let at = (place.fract() == 0.0).then(|| points.get(*place as usize)).flatten();
        at.map_or(String::new(), |point| point.count.to_string())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(2 * points.len())
        .x_label_formatter(&count)
        .y_labels(5)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 11))
        .draw()?;
    for (subject, color) in subjects {
        let values = of(subject);
        chart
            .draw_series([PathElement::new(values.clone(), color.stroke_width(2))])?
            .label(subject.to_string())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], color.stroke_width(2)));
        chart.draw_series(values.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    Ok(())
}
