// SPDX-License-Identifier: GPL-2.0
//! The plot: for each job, how many times as fast as nbd.ko rnbd.ko and the limit are.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::line::Subject;
use super::results::Results;

const ROW: u32 = 26;
const RNBD: RGBColor = RGBColor(0x1b, 0x6e, 0xc2);
const LIMIT: RGBColor = RGBColor(0xc8, 0xc8, 0xc8);

/// Writes the SVG.
pub fn write(results: &Results, to: &Path) -> Result<()> {
    let rows = results.jobs.len() as u32;
    let size = (960, 90 + ROW * rows.max(1));
    let root = SVGBackend::new(to, size).into_drawing_area();
    draw(results, &root).map_err(|error| anyhow!("draw {}: {error}", to.display()))?;
    root.present().map_err(|error| anyhow!("write {}: {error}", to.display()))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw<B: DrawingBackend>(results: &Results, root: &DrawingArea<B, plotters::coord::Shift>) -> Drawn
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let origin = &results.origin;
    let title = format!(
        "times as fast as nbd.ko ({}); commit {}, {}, kernel {}",
        origin.measure.name(),
        origin.commit,
        origin.date,
        origin.kernel
    );
    let limits = results.jobs.iter().filter_map(|job| Some(job.speedup?.mean * job.over_limit?.mean));
    let longest = results.jobs.iter().filter_map(|job| Some(job.speedup?.mean)).chain(limits.clone());
    let end = longest.fold(1.5, f64::max) * 1.05;
    let rows = results.jobs.len();
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(220)
        .build_cartesian_2d(0.0..end, (0..rows as i32).into_segmented())?;
    let name = |place: &SegmentValue<i32>| match place {
        SegmentValue::CenterOf(row) => rows
            .checked_sub(1 + *row as usize)
            .and_then(|index| results.jobs.get(index))
            .map_or(String::new(), |job| job.name.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(rows)
        .y_label_formatter(&name)
        .x_label_formatter(&|times| format!("{times:.1}"))
        .label_style(("sans-serif", 12))
        .draw()?;
    for (index, job) in results.jobs.iter().enumerate() {
        let row = (rows - 1 - index) as i32;
        let bar = |to: f64, color: RGBColor, margin| {
            let from = (0.0, SegmentValue::Exact(row));
            let mut bar = Rectangle::new([from, (to, SegmentValue::Exact(row + 1))], color.filled());
            bar.set_margin(margin, margin, 0, 0);
            bar
        };
        if let (Some(speedup), Some(over)) = (job.speedup, job.over_limit) {
            chart.draw_series([bar(speedup.mean * over.mean, LIMIT, 3)])?;
        }
        if let Some(speedup) = job.speedup {
            chart.draw_series([bar(speedup.mean, RNBD, 7)])?;
            if let Some((low, high)) = speedup.interval {
                let center = SegmentValue::CenterOf(row);
                chart.draw_series([PathElement::new(
                    [(low, center.clone()), (high.min(end), center)],
                    BLACK,
                )])?;
            }
        }
    }
    let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(rows as i32))];
    chart
        .draw_series([PathElement::new(one, RED)])?
        .label("nbd.ko")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 12, y)], RED));
    for (subject, color) in [(Subject::Rnbd, RNBD), (Subject::Limit, LIMIT)] {
        chart
            .draw_series(std::iter::empty::<Rectangle<(f64, SegmentValue<i32>)>>())?
            .label(subject.to_string())
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], color.filled()));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    Ok(())
}
