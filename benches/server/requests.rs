//! Requests of each kind to a store of 100,000 keys, by time.

use crate::load::{Ask, Load, Outcome, shuffled};
use crate::process::Server;
use crate::report::Report;
use crate::{Failure, Plan};

/// Clients that fill a store before anything is measured.
const FILLERS: usize = 200;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let keys = plan.scale.keys;
    let work: [(&'static str, usize, Ask); 9] = [
        ("put-1", 1, Ask::Put { keys }),
        ("put-100", 100, Ask::Put { keys }),
        ("put-1000", 1000, Ask::Put { keys }),
        ("get-1", 1, Ask::Get { keys, revision: 0 }),
        ("get-500", 500, Ask::Get { keys, revision: 0 }),
        ("list-100", 100, Ask::List { keys, length: 100 }),
        (
            "list-10000",
            10,
            Ask::List {
                keys,
                length: 10_000,
            },
        ),
        ("get-old", 100, Ask::Get { keys, revision: 0 }),
        ("txn-cas", 100, Ask::Swap),
    ];
    if !work.iter().any(|(name, ..)| plan.has(name)) {
        return Ok(());
    }
    let servers = plan.start()?;
    let mut filled_at = [0; 2];
    for (server, filled_at) in servers.iter().zip(&mut filled_at) {
        fill(plan, server, keys)?;
        *filled_at = server.client(async |mut client| client.revision().await)?;
    }
    for (name, clients, ask) in work {
        if !plan.has(name) {
            continue;
        }
        if name == "get-old" {
            for (server, filled_at) in servers.iter().zip(filled_at) {
                grow_old(plan, server, filled_at)?;
            }
        }
        let asks = filled_at.map(|revision| match ask {
            Ask::Get { keys, .. } if name == "get-old" => Ask::Get { keys, revision },
            _ => ask.clone(),
        });
        match in_rounds(plan, &servers, name, clients, &asks) {
            Ok(rounds) => report.requests(name, rounds),
            Err(error) => report.failed(format!("{name}: {error}").into()),
        }
    }
    Ok(())
}

/// Rounds in turn: etcd, ours, etcd, ours, …
pub(crate) fn in_rounds(
    plan: &Plan,
    servers: &[Server; 2],
    name: &str,
    clients: usize,
    asks: &[Ask; 2],
) -> Result<[Vec<Outcome>; 2], Failure> {
    let mut rounds = [Vec::new(), Vec::new()];
    for round in 1..=plan.runs {
        for ((server, ask), outcomes) in servers.iter().zip(asks).zip(&mut rounds) {
            eprintln!("{name}: round {round} of {}, {}", plan.runs, server.name);
            let load = Load {
                ask: ask.clone(),
                clients,
                requests_max: None,
                seed: plan.seed + round,
                threads: plan.threads,
            };
            outcomes.push(load.run_for(server, plan.scale.warm_up, plan.scale.measured)?);
            server.wait_quiet()?;
        }
    }
    Ok(rounds)
}

/// Puts every key once.
pub(crate) fn fill(plan: &Plan, server: &Server, keys: u64) -> Result<(), Failure> {
    eprintln!("{}: filling with {keys} keys", server.name);
    let ask = Ask::PutEach(shuffled(keys, plan.seed));
    puts(plan, ask, FILLERS, keys).run_out(server)?;
    server.wait_quiet()
}

/// Puts by count.
pub(crate) fn puts(plan: &Plan, ask: Ask, clients: usize, count: u64) -> Load {
    Load {
        ask,
        clients,
        requests_max: Some(count),
        seed: plan.seed,
        threads: plan.threads,
    }
}

/// Sees to it that as many puts as there are keys came after `revision`.
fn grow_old(plan: &Plan, server: &Server, revision: i64) -> Result<(), Failure> {
    let keys = plan.scale.keys;
    let newest = server.client(async |mut client| client.revision().await)?;
    let missing = keys.saturating_sub((newest - revision) as u64);
    if missing > 0 {
        eprintln!("{}: putting {missing} keys again", server.name);
        puts(plan, Ask::Put { keys }, FILLERS, missing).run_out(server)?;
        server.wait_quiet()?;
    }
    Ok(())
}
