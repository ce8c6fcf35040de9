//! After a restart: what is written down, put together with what the supervisor has.
//!
//! | record | supervisor | then |
//! |---|---|---|
//! | ended | anything | ended, as recorded; killed if it runs (see `news`) |
//! | not ended | runs or frozen | goes on; health is asked again |
//! | not ended | ended | ended, as the supervisor saw it |
//! | not ended | has nothing | the start was cut in half: ended, interrupted |
//! | none | has something | removed (see `news`) |

use std::collections::HashMap;
use std::sync::Arc;

use tram_sandbox::protocol::{InstanceInfo, InstanceState};
use tram_site::EndCause;
use tram_types::{InstanceId, Timestamp};

use super::Shared;
use super::entries::{self, Asleep, Entry};
use crate::config::Config;
use crate::end;
use crate::network::{Held, Slot};
use crate::record::{End, Record};

/// An instance and what becomes of it.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) record: Record,
    pub(super) fate: Fate,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    GoesOn {
        pid: Option<i32>,
        started_at: Timestamp,
        asleep: Option<Asleep>,
    },
    Over(End),
}

pub(super) fn decide(records: Vec<Record>, present: &[InstanceInfo], now: Timestamp) -> Vec<Decided> {
    let by_id: HashMap<&str, &InstanceInfo> = present.iter().map(|info| (info.id.as_str(), info)).collect();
    records
        .into_iter()
        .map(|record| {
            let info = by_id.get(record.spec.id.to_string().as_str()).copied();
            let fate = fate(&record, info, now);
            Decided { record, fate }
        })
        .collect()
}

fn fate(record: &Record, info: Option<&InstanceInfo>, now: Timestamp) -> Fate {
    if let Some(end) = &record.end {
        return Fate::Over(end.clone());
    }
    let interrupted = || {
        let cause = if record.stop_ordered {
            EndCause::Stopped
        } else {
            EndCause::Interrupted
        };
        Fate::Over(End { cause, at: now })
    };
    // Without a place it cannot have been launched by us.
    let (Some(info), Some(_)) = (info, record.slot) else {
        return interrupted();
    };
    let started_at = info
        .started_at
        .map_or_else(|| Timestamp::from(info.created_at), Timestamp::from);
    match &info.state {
        InstanceState::Starting => Fate::GoesOn {
            pid: None,
            started_at,
            asleep: None,
        },
        InstanceState::Running { pid } => Fate::GoesOn {
            pid: Some(*pid),
            started_at,
            asleep: None,
        },
        InstanceState::Frozen { pid } => Fate::GoesOn {
            pid: Some(*pid),
            started_at,
            asleep: Some(Asleep::Frozen),
        },
        InstanceState::Checkpointed => Fate::GoesOn {
            pid: None,
            started_at,
            asleep: Some(Asleep::Checkpointed),
        },
        InstanceState::Exited { exit } => Fate::Over(end::end(record, exit)),
    }
}

/// The places that stay taken.
pub(super) fn held(decided: &[Decided], config: &Config) -> Vec<Held> {
    decided
        .iter()
        .filter_map(|one| match one.fate {
            Fate::GoesOn { .. } => {
                let slot = Slot(one.record.slot?);
                let address = config.network.addresses.nth(slot.0);
                Some(Held {
                    slot,
                    member: entries::member(&one.record.spec, address).ok()?,
                })
            }
            Fate::Over(_) => None,
        })
        .collect()
}

/// Fills the table. Places of instances that are over were removed when the network opened.
pub(super) async fn adopt(shared: &Arc<Shared>, decided: Vec<Decided>) {
    let (mut adopted, mut over) = (0_usize, 0_usize);
    for Decided { mut record, fate } in decided {
        let id: InstanceId = record.spec.id;
        match fate {
            Fate::Over(end) => {
                over += 1;
                let news = record.end.is_none() || record.slot.is_some();
                record.end = Some(end);
                record.slot = None;
                record.devices = None;
                if news {
                    shared.save(&record);
                }
                shared.lock().insert(id, Entry::new(record));
            }
            Fate::GoesOn {
                pid,
                started_at,
                asleep,
            } => {
                adopted += 1;
                let stop_ordered = record.stop_ordered;
                let mut entry = Entry::new(record);
                // Held so that its layers stay; the program runs all the same if this fails.
                entry.image = shared.images.ready(&entry.record.spec.image).await.ok();
                shared.lock().insert(id, entry);
                shared.go_up(id, pid, started_at, asleep.is_some());
                if let Some(asleep) = asleep {
                    shared.asleep(id, asleep);
                }
                if stop_ordered {
                    // The order may have been lost between the record and the supervisor; sending it again is fine.
                    shared.resend_stop(id);
                }
            }
        }
    }
    if adopted + over > 0 {
        tracing::info!(adopted, over, "adopted the instances of an earlier process");
    }
}

#[cfg(test)]
mod tests {
    use tram_sandbox::protocol::{self as wire, ExitCause, ExitRecord, ExitStatus};
    use tram_types::Generation;

    use super::*;
    use crate::testing::instance_spec;

    fn record() -> Record {
        Record {
            spec: instance_spec("app", "web"),
            generation: Generation(1),
            slot: Some(7),
            devices: None,
            became_healthy: true,
            stop_ordered: false,
            end: None,
        }
    }

    fn info(record: &Record, state: InstanceState) -> InstanceInfo {
        InstanceInfo {
            id: wire::InstanceId::new(record.spec.id.to_string()).unwrap(),
            generation: 1,
            state,
            labels: std::collections::BTreeMap::new(),
            created_at: Timestamp::from_micros(5).jiff(),
            started_at: None,
            log_dir: "/".into(),
            upper_dir: None,
        }
    }

    fn one(record: &Record, present: &[InstanceInfo]) -> Fate {
        decide(vec![record.clone()], present, Timestamp::from_micros(9))
            .remove(0)
            .fate
    }

    #[test]
    fn what_runs_goes_on() {
        let record = record();
        let running = info(&record, InstanceState::Running { pid: 4 });
        let started_at = Timestamp::from_micros(5);
        assert_eq!(
            one(&record, &[running]),
            Fate::GoesOn {
                pid: Some(4),
                started_at,
                asleep: None
            }
        );
        let frozen = info(&record, InstanceState::Frozen { pid: 4 });
        assert_eq!(
            one(&record, &[frozen]),
            Fate::GoesOn {
                pid: Some(4),
                started_at,
                asleep: Some(Asleep::Frozen)
            }
        );
        let on_disk = info(&record, InstanceState::Checkpointed);
        assert_eq!(
            one(&record, &[on_disk]),
            Fate::GoesOn {
                pid: None,
                started_at,
                asleep: Some(Asleep::Checkpointed)
            }
        );
    }

    #[test]
    fn what_was_cut_in_half_is_interrupted_and_what_ended_says_how() {
        let mut record = record();
        let at = Timestamp::from_micros(9);
        assert_eq!(
            one(&record, &[]),
            Fate::Over(End {
                cause: EndCause::Interrupted,
                at
            })
        );
        let exit = ExitRecord {
            status: Some(ExitStatus::Code(3)),
            oom_killed: false,
            at: Timestamp::from_micros(8).jiff(),
            cause: ExitCause::Exited,
        };
        let exited = info(&record, InstanceState::Exited { exit });
        let end = End {
            cause: EndCause::Exited { code: 3 },
            at: Timestamp::from_micros(8),
        };
        assert_eq!(one(&record, std::slice::from_ref(&exited)), Fate::Over(end));
        // An order to stop explains every end.
        record.stop_ordered = true;
        assert_eq!(
            one(&record, &[]),
            Fate::Over(End {
                cause: EndCause::Stopped,
                at
            })
        );
        // And what is on record is not decided again.
        record.end = Some(End {
            cause: EndCause::Killed { signal: 9 },
            at,
        });
        assert_eq!(
            one(&record, &[exited]),
            Fate::Over(End {
                cause: EndCause::Killed { signal: 9 },
                at
            })
        );
    }
}
