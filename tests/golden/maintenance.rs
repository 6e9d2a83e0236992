//! The commands of scripts that speak of the node itself: alarms, members, the leader, versions.
//!
//! `self` is the id of the member, and `own` its own peer URL: both differ from run to run.

use metastore::proto::etcdserverpb::alarm_request::AlarmAction;
use metastore::proto::etcdserverpb::cluster_client::ClusterClient;
use metastore::proto::etcdserverpb::downgrade_request::DowngradeAction;
use metastore::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, DefragmentRequest, DowngradeRequest, Member,
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, ResponseHeader, StatusRequest,
};
use tonic::Status;
use tonic::transport::Channel;

use super::answer;
use super::request::{Error, Words};

/// Where the servers of the tests have their peer URLs.
const OWN_HOST: &str = "http://127.0.0.1:";

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
        "member" => node.member(words).await,
        "move_leader" => node.move_leader(words).await,
        "defragment" => node.defragment(words).await,
        "downgrade" => node.downgrade(words).await,
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

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    async fn own_id(&self) -> Result<u64, Error> {
        let status = self.maintenance().status(StatusRequest {}).await;
        let header = status.map_err(refused)?.into_inner().header;
        Ok(header.ok_or("an answer has a header")?.member_id)
    }

    async fn own_url(&self) -> Result<String, Error> {
        let request = MemberListRequest { linearizable: true };
        let list = self.cluster().member_list(request).await;
        let list = list.map_err(refused)?.into_inner();
        Ok(list.members[0].peer_ur_ls[0].clone())
    }

    async fn id(&self, word: &str) -> Result<u64, Error> {
        match word {
            "self" => self.own_id().await,
            number => Ok(number.parse()?),
        }
    }

    async fn urls(&self, words: Vec<&str>) -> Result<Vec<String>, Error> {
        let mut urls = Vec::new();
        for word in words {
            urls.push(match word {
                "own" => self.own_url().await?,
                url => url.to_owned(),
            });
        }
        Ok(urls)
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

    /// `add URL ... [learner]`, `update ID URL ...`, `remove ID`, `promote ID`.
    async fn member(&self, mut words: Words<'_>) -> Result<String, Error> {
        match words.first("what is to be done")? {
            "add" => {
                let is_learner = words.flag("learner");
                let request = MemberAddRequest {
                    peer_ur_ls: self.urls(words.rest()).await?,
                    is_learner,
                };
                let answer = self.cluster().member_add(request).await;
                let answer = answer.map_err(refused)?.into_inner();
                Ok(members(answer.header.as_ref(), &answer.members))
            }
            "update" => {
                let id = self.id(words.first("the id")?).await?;
                let peer_ur_ls = self.urls(words.rest()).await?;
                let request = MemberUpdateRequest { id, peer_ur_ls };
                let answer = self.cluster().member_update(request).await;
                let answer = answer.map_err(refused)?.into_inner();
                Ok(members(answer.header.as_ref(), &answer.members))
            }
            "remove" => {
                let id = self.id(words.first("the id")?).await?;
                let request = words.done(MemberRemoveRequest { id })?;
                let answer = self.cluster().member_remove(request).await;
                let answer = answer.map_err(refused)?.into_inner();
                Ok(members(answer.header.as_ref(), &answer.members))
            }
            "promote" => {
                let id = self.id(words.first("the id")?).await?;
                let request = words.done(MemberPromoteRequest { id })?;
                let answer = self.cluster().member_promote(request).await;
                let answer = answer.map_err(refused)?.into_inner();
                Ok(members(answer.header.as_ref(), &answer.members))
            }
            "list" => {
                let request = MemberListRequest { linearizable: true };
                let answer = self.cluster().member_list(words.done(request)?).await;
                let answer = answer.map_err(refused)?.into_inner();
                Ok(members(answer.header.as_ref(), &answer.members))
            }
            what => Err(format!("there is no {what:?} of members").into()),
        }
    }

    async fn move_leader(&self, mut words: Words<'_>) -> Result<String, Error> {
        let target_id = self.id(words.first("the id")?).await?;
        let request = words.done(MoveLeaderRequest { target_id })?;
        let answer = self.maintenance().move_leader(request).await;
        let answer = answer.map_err(refused)?.into_inner();
        Ok(answer::header(answer.header.as_ref()))
    }

    async fn defragment(&self, words: Words<'_>) -> Result<String, Error> {
        let request = words.done(DefragmentRequest {})?;
        let answer = self.maintenance().defragment(request).await;
        let answer = answer.map_err(refused)?.into_inner();
        Ok(answer::header(answer.header.as_ref()))
    }

    /// `validate VERSION`, `enable VERSION`, `cancel`, or a number for the action.
    async fn downgrade(&self, mut words: Words<'_>) -> Result<String, Error> {
        let action = match words.first("the action")? {
            "validate" => DowngradeAction::Validate as i32,
            "enable" => DowngradeAction::Enable as i32,
            "cancel" => DowngradeAction::Cancel as i32,
            number => number.parse()?,
        };
        let version = words.rest().first().unwrap_or(&"").to_string();
        let request = DowngradeRequest { action, version };
        let answer = self.maintenance().downgrade(request).await;
        let answer = answer.map_err(refused)?.into_inner();
        let header = answer::header(answer.header.as_ref());
        Ok(format!("{header} version={:?}", answer.version))
    }
}

fn one_blank(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn members(header: Option<&ResponseHeader>, members: &[Member]) -> String {
    let own = header.map_or(0, |header| header.member_id);
    let mut text = answer::header(header);
    for member in members {
        let id = match member.id {
            id if id == own => "self",
            _ => "other",
        };
        let shown = |url: &String| match url.starts_with(OWN_HOST) {
            true => "own".to_owned(),
            false => url.clone(),
        };
        let peers: Vec<String> = member.peer_ur_ls.iter().map(shown).collect();
        let (name, clients) = (&member.name, member.client_ur_ls.len());
        let learner = member.is_learner;
        text +=
            &format!("\n  {id} name={name} peers={peers:?} clients={clients} learner={learner}");
    }
    text
}
