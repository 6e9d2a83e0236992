//! Puts while the server works on the disk for itself: what a client waits for at worst.

use std::time::{Duration, Instant};

use crate::load::{Ask, Load, Outcome};
use crate::process::Server;
use crate::report::{Report, median};
use crate::requests::{fill, puts};
use crate::{Failure, Plan};

const CLIENTS: usize = 100;

/// A sweep shorter than this is watched a little longer.
const SWEEP_WATCHED_MIN: Duration = Duration::from_secs(2);

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let (flush, sweep) = (plan.has("put-during-flush"), plan.has("put-during-sweep"));
    if !flush && !sweep {
        return Ok(());
    }
    let servers = plan.start()?;
    for server in &servers {
        fill(plan, server, plan.scale.keys)?;
    }
    let mut flushed = [Vec::new(), Vec::new()];
    let mut swept = [Vec::new(), Vec::new()];
    let mut sweep_ms = [Vec::new(), Vec::new()];
    for round in 1..=plan.runs {
        for (index, server) in servers.iter().enumerate() {
            eprintln!(
                "put-during-…: round {round} of {}, {}",
                plan.runs, server.name
            );
            // The sweep's revisions are these puts, also where only the sweep is measured.
            flushed[index].push(while_flushing(plan, server)?);
            if sweep {
                let (outcome, took) = while_sweeping(plan, server)?;
                swept[index].push(outcome);
                sweep_ms[index].push(took.as_secs_f64() * 1000.0);
            }
            server.wait_quiet()?;
        }
    }
    if flush {
        report.requests("put-during-flush", flushed);
    }
    if sweep {
        report.requests("put-during-sweep", swept);
        report.measure(
            "sweep",
            "physical compaction meanwhile, ms",
            sweep_ms.map(median),
        );
    }
    Ok(())
}

/// More puts than a memtable holds.
fn while_flushing(plan: &Plan, server: &Server) -> Result<Outcome, Failure> {
    let keys = plan.scale.keys;
    puts(plan, Ask::Put { keys }, CLIENTS, plan.scale.flush_puts).run_out(server)
}

/// Puts from the moment a compaction is asked for until its rows have left the disk.
fn while_sweeping(plan: &Plan, server: &Server) -> Result<(Outcome, Duration), Failure> {
    let newest = server.client(async |mut client| client.revision().await)?;
    let oldest = newest - plan.scale.swept_revisions as i64;
    server.client(async |mut client| client.compact(oldest).await)?;
    let load = Load {
        ask: Ask::Put {
            keys: plan.scale.keys,
        },
        clients: CLIENTS,
        requests_max: None,
        seed: plan.seed,
        threads: plan.threads,
    };
    let mut driving = load.start(server)?;
    driving.wait(plan.scale.warm_up)?;
    driving.measure()?;
    let begin = Instant::now();
    server.client(async |mut client| client.compact(newest).await)?;
    let took = begin.elapsed();
    driving.wait(SWEEP_WATCHED_MIN.saturating_sub(took))?;
    Ok((driving.stop()?, took))
}
