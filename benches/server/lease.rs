//! Leases: granted, renewed, put with, kept in memory, and ended.

use crate::load::{Ask, Load, Outcome};
use crate::process::Server;
use crate::report::{Report, mib};
use crate::requests::{in_rounds, puts};
use crate::{Failure, Plan};
use crate::{keep_alive, lease_end};

const CLIENTS: usize = 100;

/// Leases that keys are put with.
const PUT_LEASES: u64 = 1000;

/// Clients that grant what is then measured.
const GRANTERS: usize = 1000;

type Item = fn(&Plan, &mut Report) -> Result<(), Failure>;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let items: [(&str, Item); 6] = [
        ("lease-grant", grant),
        ("lease-put", put),
        ("lease-keepalive", keep_alive::run),
        ("lease-expiry", lease_end::one_by_one),
        ("lease-mass", lease_end::all_at_once),
        ("lease-memory", memory),
    ];
    for (name, item) in items {
        if plan.has(name)
            && let Err(error) = item(plan, report)
        {
            report.failed(format!("{name}: {error}").into());
        }
    }
    Ok(())
}

fn grant(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let servers = plan.start()?;
    let asks = [Ask::Grant, Ask::Grant];
    let rounds = in_rounds(plan, &servers, "lease-grant", CLIENTS, &asks)?;
    report.requests("lease-grant", rounds);
    Ok(())
}

/// A key that is put again mostly leaves one lease for another, which is the most work.
fn put(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let servers = plan.start()?;
    for server in &servers {
        grant_each(plan, server, PUT_LEASES)?;
    }
    let ask = Ask::PutLeased {
        keys: plan.scale.keys,
        leases: PUT_LEASES,
    };
    let asks = [ask.clone(), ask];
    let rounds = in_rounds(plan, &servers, "lease-put", CLIENTS, &asks)?;
    report.requests("lease-put", rounds);
    Ok(())
}

/// Grants the first `count` leases, of ids that `lease_id` tells.
pub(crate) fn grant_each(plan: &Plan, server: &Server, count: u64) -> Result<(), Failure> {
    eprintln!("{}: granting {count} leases", server.name);
    grants(plan, Ask::GrantEach, count).run_out(server)?;
    server.wait_quiet()
}

fn grants(plan: &Plan, ask: Ask, count: u64) -> Load {
    puts(plan, ask, GRANTERS, count)
}

fn memory(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let measures = [
        "resident MiB due to them",
        "of it anonymous (not a mapped file)",
        "peak MiB",
        "grants/s",
        "server CPU µs/grant",
        "written B/grant",
        "data on disk MiB",
        "restart ms after kill -9",
        "resident MiB due to them after the restart",
        "of it anonymous after the restart",
    ];
    // Once: a median of memory says no more.
    let [etcd, ours] = [0, 1].map(|index| keep(plan, plan.start_one(index)?));
    for (measure, pair) in measures.into_iter().zip(etcd?.into_iter().zip(ours?)) {
        report.measure("lease-memory", measure, pair.into());
    }
    Ok(())
}

/// Many leases, and nothing else.
fn keep(plan: &Plan, mut server: Server) -> Result<[f64; 10], Failure> {
    let count = plan.scale.million;
    eprintln!("lease-memory: {count} leases, {}", server.name);
    server.wait_quiet()?;
    let empty = server.usage()?;
    let granted: Outcome = grants(plan, Ask::Grant, count).run_out(&server)?;
    server.wait_quiet()?;
    let full = server.usage()?.since(empty);
    let disk_bytes = server.disk_bytes()?;
    let restart = server.kill_and_restart()?;
    server.wait_quiet()?;
    let restarted = server.usage()?;
    let count = count as f64;
    let due_mib = |with: u64, without: u64| mib(with) - mib(without);
    Ok([
        due_mib(full.resident_bytes, empty.resident_bytes),
        due_mib(full.anonymous_bytes, empty.anonymous_bytes),
        mib(full.peak_bytes),
        count / granted.elapsed.as_secs_f64(),
        full.cpu.as_secs_f64() * 1e6 / count,
        full.written_bytes as f64 / count,
        mib(disk_bytes),
        restart.as_secs_f64() * 1000.0,
        due_mib(restarted.resident_bytes, empty.resident_bytes),
        due_mib(restarted.anonymous_bytes, empty.anonymous_bytes),
    ])
}
