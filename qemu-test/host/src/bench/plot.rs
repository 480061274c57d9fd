// SPDX-License-Identifier: GPL-2.0
//! The plot of the jobs: how many times as fast as nbd.ko rnbd.ko and the limit are.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::line::Subject;
use super::results::{JobResult, Measure, Results};
use super::statistics::Ratio;

const ROW: u32 = 26;
pub const NBD: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
pub const RNBD: RGBColor = RGBColor(0x1b, 0x6e, 0xc2);
const LIMIT: RGBColor = RGBColor(0xdc, 0xdc, 0xdc);
const UBLK: RGBColor = RGBColor(0x2e, 0x9e, 0x5b);
const TIME: RGBColor = RGBColor(0xe6, 0x8a, 0x00);

pub type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Writes an SVG of this size, which `draw` draws.
pub fn write(to: &Path, size: (u32, u32), draw: impl FnOnce(&Area) -> Drawn) -> Result<()> {
    let root = SVGBackend::new(to, size).into_drawing_area();
    let drawn = root.fill(&WHITE).map_err(Box::from).and_then(|()| draw(&root));
    drawn.map_err(|error: Box<dyn std::error::Error>| anyhow!("draw {}: {error}", to.display()))?;
    root.present().map_err(|error| anyhow!("write {}: {error}", to.display()))
}

/// What has been measured, for a title.
pub fn origin(results: &Results) -> String {
    let origin = &results.origin;
    format!("{}; commit {}, {}, kernel {}", origin.measure.name(), origin.commit, origin.date, origin.kernel)
}

/// Writes the SVG of the jobs: those of the boots in which instructions were counted, if there are any.
pub fn jobs(boots: &[Results], to: &Path) -> Result<()> {
    let Some(first) = boots.first() else { return Ok(()) };
    let measure = first.origin.measure;
    let jobs = boots.iter().filter(|boot| boot.origin.measure == measure).flat_map(|boot| &boot.jobs);
    let jobs: Vec<&JobResult> = jobs.collect();
    let in_time =
        boots.iter().find(|boot| boot.origin.measure == Measure::Time && boot.origin.measure != measure);
    let title = format!("times as fast as nbd.ko, more is better: {}", origin(first));
    write(to, (960, 100 + ROW * jobs.len().max(4) as u32), |root| draw(&title, &jobs, in_time, root))
}

fn limit(job: &JobResult) -> Option<f64> {
    Some(job.speedup?.mean * job.over_limit?.mean)
}

fn draw(title: &str, jobs: &[&JobResult], in_time: Option<&Results>, root: &Area) -> Drawn {
    let time = |job: &JobResult| in_time?.jobs.iter().find(|other| other.name == job.name)?.speedup;
    let ends = |ratio: Ratio| ratio.interval.map_or(ratio.mean, |(_, high)| high);
    let longest = jobs.iter().flat_map(|job| {
        [job.speedup.map(ends), limit(job), time(job).map(|ratio| ratio.mean)].into_iter().flatten()
    });
    let end = longest.fold(1.5, f64::max) * 1.05;
    let rows = jobs.len();
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(230)
        .build_cartesian_2d(0.0..end, (0..rows as i32).into_segmented())?;
    let name = |place: &SegmentValue<i32>| match place {
        SegmentValue::CenterOf(row) => rows
            .checked_sub(1 + *row as usize)
            .and_then(|index| jobs.get(index))
            .map_or(String::new(), |job| format!("{}  ", job.name)),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .set_tick_mark_size(LabelAreaPosition::Left, 0)
        .y_labels(rows)
        .y_label_formatter(&name)
        .x_label_formatter(&|times| format!("{times:.1}"))
        .label_style(("sans-serif", 12))
        .draw()?;
    for (index, job) in jobs.iter().enumerate() {
        let row = (rows - 1 - index) as i32;
        let center = || SegmentValue::CenterOf(row);
        let bar = |to: f64, color: RGBColor, margin| {
            let from = (0.0, SegmentValue::Exact(row));
            let mut bar = Rectangle::new([from, (to, SegmentValue::Exact(row + 1))], color.filled());
            bar.set_margin(margin, margin, 0, 0);
            bar
        };
        chart.draw_series(limit(job).map(|limit| bar(limit, LIMIT, 3)))?;
        let Some(speedup) = job.speedup else { continue };
        chart.draw_series([bar(speedup.mean, RNBD, 7)])?;
        let interval = speedup.interval.map(|(low, high)| [(low, center()), (high.min(end), center())]);
        chart.draw_series(interval.map(|line| PathElement::new(line, BLACK)))?;
        let ublk = job.ublk_speedup.map(|ublk| Circle::new((ublk.mean, center()), 4, UBLK.filled()));
        chart.draw_series(ublk)?;
        chart.draw_series(time(job).map(|time| Circle::new((time.mean, center()), 4, TIME.filled())))?;
        let style = ("sans-serif", 12).into_font().color(&WHITE);
        let number =
            EmptyElement::at((0.0, center())) + Text::new(format!("{:.2}", speedup.mean), (6, -6), style);
        chart.draw_series([number])?;
    }
    let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(rows as i32))];
    chart
        .draw_series([PathElement::new(one, NBD.stroke_width(2))])?
        .label("nbd.ko")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 12, y)], NBD.stroke_width(2)));
    for (label, color) in [
        (format!("{}, and its 95 % interval", Subject::Rnbd), RNBD),
        (format!("{}, without a block device", Subject::Limit), LIMIT),
    ] {
        chart
            .draw_series(std::iter::empty::<Rectangle<(f64, SegmentValue<i32>)>>())?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], color.filled()));
    }
    for (label, color, there) in [
        ("a client behind ublk", UBLK, jobs.iter().any(|job| job.ublk_speedup.is_some())),
        ("rnbd.ko, in time", TIME, in_time.is_some()),
    ] {
        if there {
            chart
                .draw_series(std::iter::empty::<Circle<(f64, SegmentValue<i32>), i32>>())?
                .label(label)
                .legend(move |(x, y)| Circle::new((x + 6, y), 4, color.filled()));
        }
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK)
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    Ok(())
}
