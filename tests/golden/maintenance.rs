//! The commands of scripts that speak of the node itself.
//!
//! `self` is the id of the member, which differs from run to run.

use metastore::proto::etcdserverpb::alarm_request::AlarmAction;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, StatusRequest};
use tonic::Status;
use tonic::transport::Channel;

use super::answer;
use super::request::{Error, Words};

/// Runs the command, if it is one of these.
pub(crate) async fn run(
    channel: Channel,
    name: &str,
    words: Words<'_>,
) -> Option<Result<String, Error>> {
    let node = Node { channel };
    Some(match name {
        "status" => node.status(words).await,
        "alarm" => node.alarm(words).await,
        _ => return None,
    })
}

fn refused(status: Status) -> Error {
    answer::refusal(&status).into()
}

struct Node {
    channel: Channel,
}

impl Node {
    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    async fn own_id(&self) -> Result<u64, Error> {
        let status = self.maintenance().status(StatusRequest {}).await;
        let header = status.map_err(refused)?.into_inner().header;
        Ok(header.ok_or("an answer has a header")?.member_id)
    }

    async fn id(&self, word: &str) -> Result<u64, Error> {
        match word {
            "self" => self.own_id().await,
            number => Ok(number.parse()?),
        }
    }

    async fn status(&self, words: Words<'_>) -> Result<String, Error> {
        words.done(())?;
        let status = self.maintenance().status(StatusRequest {}).await;
        let status = status.map_err(refused)?.into_inner();
        let header = status.header.as_ref();
        let own = header.map_or(0, |header| header.member_id);
        let leader = if status.leader == own {
            "self"
        } else {
            "other"
        };
        // One blank or two, as the wording of protobuf's text goes.
        let mut errors: Vec<String> = status.errors.iter().map(|error| one_blank(error)).collect();
        for error in &mut errors {
            *error = error.replace(&format!("memberID:{own} "), "memberID:self ");
        }
        errors.sort();
        let (version, learner) = (&status.version, status.is_learner);
        Ok(format!(
            "{} version={version} leader={leader} learner={learner} errors={errors:?}",
            answer::header(header)
        ))
    }

    /// `get [TYPE]`, `activate TYPE [member=ID]`, `deactivate TYPE [member=ID]`, or a number for the action.
    async fn alarm(&self, mut words: Words<'_>) -> Result<String, Error> {
        let action = match words.first("the action")? {
            "get" => AlarmAction::Get as i32,
            "activate" => AlarmAction::Activate as i32,
            "deactivate" => AlarmAction::Deactivate as i32,
            number => number.parse()?,
        };
        let member = words.named("member").unwrap_or("self");
        let alarm = match words.rest().first() {
            None | Some(&"none") => AlarmType::None as i32,
            Some(&"nospace") => AlarmType::Nospace as i32,
            Some(&"corrupt") => AlarmType::Corrupt as i32,
            Some(number) => number.parse()?,
        };
        let own = self.own_id().await?;
        let request = AlarmRequest {
            action,
            member_id: self.id(member).await?,
            alarm,
        };
        let answer = self.maintenance().alarm(request).await;
        let answer = answer.map_err(refused)?.into_inner();
        let shown = |alarm: &AlarmMember| {
            let kind = match AlarmType::try_from(alarm.alarm) {
                Ok(kind) => kind.as_str_name().to_owned(),
                Err(_) => alarm.alarm.to_string(),
            };
            match alarm.member_id {
                id if id == own => format!("self {kind}"),
                id => format!("{id} {kind}"),
            }
        };
        // There is no order among alarms.
        let mut alarms: Vec<String> = answer.alarms.iter().map(shown).collect();
        alarms.sort();
        let header = answer::header(answer.header.as_ref());
        Ok(format!("{header} [{}]", alarms.join(", ")))
    }
}

fn one_blank(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
