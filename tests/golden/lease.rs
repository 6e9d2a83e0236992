//! The commands of scripts that speak to the Lease service.

#![allow(
    clippy::disallowed_methods,
    reason = "it polls for the end of a lease, with a deadline"
)]

use std::time::{Duration, Instant};

use metastore::proto::etcdserverpb::lease_client::LeaseClient;
use metastore::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::Status;
use tonic::transport::Channel;

use super::answer;
use super::request::{Error, Words};

/// How long a lease may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// What is left of a lease that should have been removed some time ago.
const OVERDUE_SECS: i64 = -2;

/// How many seconds a machine under load may be late.
const LATE_SECS_MAX: i64 = 3;

/// Runs the command, if it is one of these.
pub(crate) async fn run(
    channel: Channel,
    name: &str,
    words: Words<'_>,
) -> Option<Result<String, Error>> {
    let mut client = LeaseClient::new(channel);
    Some(match name {
        "grant" => grant(&mut client, words).await,
        "revoke" => revoke(&mut client, words).await,
        "keep_alive" => keep_alive(&mut client, words).await,
        "ttl" => ttl(&mut client, words).await,
        "leases" => leases(&mut client, words).await,
        "ended" => ended(&mut client, words).await,
        "overdue" => overdue(&mut client, words).await,
        _ => return None,
    })
}

type Client = LeaseClient<Channel>;

fn refused(status: Status) -> Error {
    answer::refusal(&status).into()
}

/// An id that the server chose is another each time.
async fn grant(client: &mut Client, mut words: Words<'_>) -> Result<String, Error> {
    let request = LeaseGrantRequest {
        ttl: words.first("the TTL")?.parse()?,
        id: words.number("id")?,
    };
    let asked = request.id;
    let granted = client.lease_grant(words.done(request)?).await;
    let granted = granted.map_err(refused)?.into_inner();
    let id = match granted.id {
        id if id == asked => id.to_string(),
        id if asked == 0 && id > 0 => "chosen".into(),
        id => format!("{id}, though {asked} was asked for"),
    };
    let error = match &granted.error[..] {
        "" => String::new(),
        error => format!(" error={error:?}"),
    };
    let header = answer::header(granted.header.as_ref());
    Ok(format!("{header} id={id} ttl={}{error}", granted.ttl))
}

async fn revoke(client: &mut Client, mut words: Words<'_>) -> Result<String, Error> {
    let id = words.first("the id")?.parse()?;
    let revoked = client.lease_revoke(words.done(LeaseRevokeRequest { id })?);
    let revoked = revoked.await.map_err(refused)?.into_inner();
    Ok(answer::header(revoked.header.as_ref()))
}

async fn keep_alive(client: &mut Client, words: Words<'_>) -> Result<String, Error> {
    let mut requests = Vec::new();
    for word in words.rest() {
        requests.push(LeaseKeepAliveRequest { id: word.parse()? });
    }
    let mut lines = Vec::new();
    let answers = client.lease_keep_alive(tokio_stream::iter(requests)).await;
    let mut answers = answers.map_err(refused)?.into_inner();
    while let Some(answer) = answers.message().await.map_err(refused)? {
        let header = answer::header(answer.header.as_ref());
        lines.push(format!("{header} id={} ttl={}", answer.id, answer.ttl));
    }
    lines.push("end".into());
    Ok(lines.join("\n"))
}

/// What is left is told as `full`, as long as it is nearly all that was granted.
async fn ttl(client: &mut Client, mut words: Words<'_>) -> Result<String, Error> {
    let request = LeaseTimeToLiveRequest {
        id: words.first("the id")?.parse()?,
        keys: words.flag("keys"),
    };
    let LeaseTimeToLiveResponse {
        header,
        id,
        ttl,
        granted_ttl,
        mut keys,
    } = look(client, words.done(request)?).await?;
    let full = granted_ttl > 0 && (granted_ttl - LATE_SECS_MAX..=granted_ttl).contains(&ttl);
    let left = if full { "full".into() } else { ttl.to_string() };
    let mut text = answer::header(header.as_ref());
    text += &format!(" id={id} granted={granted_ttl} left={left}");
    keys.sort();
    for key in keys {
        text += &format!("\n  {}", answer::bytes(&key));
    }
    Ok(text)
}

async fn look(
    client: &mut Client,
    request: LeaseTimeToLiveRequest,
) -> Result<LeaseTimeToLiveResponse, Error> {
    let answer = client.lease_time_to_live(request).await.map_err(refused)?;
    Ok(answer.into_inner())
}

async fn leases(client: &mut Client, words: Words<'_>) -> Result<String, Error> {
    let request = words.done(LeaseLeasesRequest {})?;
    let answer = client.lease_leases(request).await.map_err(refused)?;
    let answer = answer.into_inner();
    let ids: Vec<_> = answer.leases.iter().map(|lease| lease.id).collect();
    Ok(format!(
        "{} {ids:?}",
        answer::header(answer.header.as_ref())
    ))
}

/// Waits until the leases are gone, and shows what the server then says of the first.
async fn ended(client: &mut Client, words: Words<'_>) -> Result<String, Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    for word in words.rest().into_iter().rev() {
        let request = LeaseTimeToLiveRequest {
            id: word.parse()?,
            keys: true,
        };
        loop {
            let answer = look(client, request).await?;
            if answer.granted_ttl == 0 {
                said = answer::header(answer.header.as_ref());
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("lease {word} does not end").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(said)
}

/// Waits until the lease should have been removed, and is not.
async fn overdue(client: &mut Client, mut words: Words<'_>) -> Result<String, Error> {
    let request = LeaseTimeToLiveRequest {
        id: words.first("the id")?.parse()?,
        keys: false,
    };
    let request = words.done(request)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = look(client, request).await?;
        if answer.granted_ttl == 0 {
            return Err("the lease is gone".into());
        }
        if answer.ttl <= OVERDUE_SECS {
            return Ok(answer::header(answer.header.as_ref()));
        }
        if Instant::now() > deadline {
            return Err("the lease does not run out".into());
        }
        tokio::time::sleep(POLL).await;
    }
}
