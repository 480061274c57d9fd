// SPDX-License-Identifier: GPL-2.0
//! From the guest's lines to results, tables and plots.

use super::line::{Line, Subject};
use super::results::{Collected, Measure, Origin, Results};
use super::{curves, plot, table};

const LINES: &str = r#"
{"type":"plan","rounds":2,"seed":1,"steps":11,"fio":"fio-3"}
{"type":"round","round":null}
{"type":"kernel","subject":"nbd","name":"read-4k","processors":0.5}
{"type":"kernel","subject":"limit","name":"read-4k","processors":0.0}
{"type":"sample","round":0,"subject":"nbd","name":"read-4k","kind":"read","block":4096,"depth":4,"connections":1,"transport":"unix","serves":"memory","bytes":40960,"requests":10,"nanoseconds":200000,"server_nanoseconds":40000,"busy_nanoseconds":150000,"connections_used":1}
{"type":"sample","round":1,"subject":"nbd","name":"read-4k","kind":"read","block":4096,"depth":4,"connections":1,"transport":"unix","serves":"memory","bytes":40960,"requests":10,"nanoseconds":240000,"server_nanoseconds":40000,"busy_nanoseconds":180000,"connections_used":1}
{"type":"sample","round":0,"subject":"rnbd","name":"read-4k","kind":"read","block":4096,"depth":4,"connections":1,"transport":"unix","serves":"memory","bytes":40960,"requests":20,"nanoseconds":100000,"server_nanoseconds":20000,"busy_nanoseconds":100000,"connections_used":1}
{"type":"sample","round":1,"subject":"rnbd","name":"read-4k","kind":"read","block":4096,"depth":4,"connections":1,"transport":"unix","serves":"memory","bytes":40960,"requests":20,"nanoseconds":120000,"server_nanoseconds":20000,"busy_nanoseconds":120000,"connections_used":1}
{"type":"sample","round":0,"subject":"limit","name":"read-4k","kind":"read","block":4096,"depth":4,"connections":1,"transport":"unix","serves":"memory","bytes":40960,"requests":10,"nanoseconds":50000,"server_nanoseconds":20000,"busy_nanoseconds":50000,"connections_used":null}
{"type":"latency","round":0,"subject":"nbd","interface":"netlink","connect":[1000,3000,2000],"first_read":[4000],"disconnect":[5000]}
{"type":"latency","round":0,"subject":"rnbd","interface":"netlink","connect":[500,1500,1000],"first_read":[4000],"disconnect":[5000]}
{"type":"latency","round":0,"subject":"rnbd","interface":"netlink, held","connect":[9000],"first_read":[9000],"disconnect":[9000]}
{"type":"scaling","round":0,"subject":"nbd","axis":"devices","count":64,"block":4096,"bytes":40960,"requests":10,"nanoseconds":300000,"server_nanoseconds":0,"busy_nanoseconds":0,"connect":[7000],"disconnect":[8000]}
{"type":"scaling","round":0,"subject":"nbd","axis":"devices","count":1,"block":4096,"bytes":40960,"requests":10,"nanoseconds":200000,"server_nanoseconds":0,"busy_nanoseconds":0,"connect":[6000],"disconnect":[8000]}
{"type":"queue","subject":"nbd","connections":1,"attributes":[["scheduler","none"]]}
"#;

fn results(measure: Measure) -> Results {
    let mut collected = Collected::default();
    for line in LINES.trim().lines() {
        collected.add(serde_json::from_str::<Line>(line).unwrap());
    }
    assert_eq!(collected.progress(), (9, 11));
    let text = |text: &str| text.to_owned();
    let (date, commit, kernel, machine) = (text("a day"), text("abc"), text("7"), text("1 CPU"));
    collected.results(Origin { date, commit, kernel, machine, measure, turns: false, quick: true })
}

#[test]
fn what_the_guest_says_is_worked_out() {
    let results = results(Measure::Instructions);
    let [job] = &results.jobs[..] else { panic!("{} jobs", results.jobs.len()) };
    let nbd = &job.costs[&Subject::Nbd];
    assert!((nbd.all.median - 22.0).abs() < 1e-9 && (nbd.without_server.unwrap().median - 18.0).abs() < 1e-9);
    assert!((nbd.kernel.unwrap() - 11.0).abs() < 1e-9 && (nbd.idle.unwrap() - 0.25).abs() < 1e-9);
    assert_eq!(job.costs[&Subject::Limit].kernel, None, "nothing was sampled");
    assert!((job.costs[&Subject::Rnbd].requests - 2.0).abs() < 1e-9);
    assert!((job.speedup.unwrap().mean - 2.0).abs() < 1e-9);
    // Of the one round that both have.
    assert!((job.over_limit.unwrap().mean - 2.0).abs() < 1e-9);
    assert_eq!((job.over_limit.unwrap().interval, job.ublk_speedup), (None, None));
    let connect = &results.latencies[0];
    assert_eq!((connect.operation, connect.times[&Subject::Rnbd].0), ("connect", 1.0));
    assert!((connect.speedup.unwrap().mean - 2.0).abs() < 1e-9);
    let held = &results.latencies[3];
    assert_eq!((&*held.interface, held.times[&Subject::Rnbd].0), ("netlink, held", 9.0));
    assert!(!held.times.contains_key(&Subject::Nbd) && held.speedup.is_none());
    let scaling: Vec<_> = results.scaling.iter().map(|point| (&*point.axis, point.count)).collect();
    assert_eq!(scaling, [("devices", 1), ("devices", 64)]);
    assert!((results.scaling[1].costs[&Subject::Nbd].cost.median - 30.0).abs() < 1e-9);
}

#[test]
fn tables_and_plots_have_all_of_it() {
    let boots = [results(Measure::Instructions), results(Measure::Time)];
    let markdown = table::markdown(&boots);
    for part in [
        "## Instructions",
        "## Time",
        "| read-4k ",
        "in time",
        "2.00 [2.00, 2.00]",
        "| 64 devices ",
        "| connect by netlink, held ",
    ] {
        assert!(markdown.contains(part), "{part} is not in\n{markdown}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (jobs, scaling) = (folder.path().join("jobs.svg"), folder.path().join("scaling.svg"));
    plot::jobs(&boots, &jobs).unwrap();
    curves::scaling(&boots, &scaling).unwrap();
    assert!(std::fs::read_to_string(jobs).unwrap().contains("read-4k"));
    assert!(std::fs::read_to_string(scaling).unwrap().contains("over devices"));
}
