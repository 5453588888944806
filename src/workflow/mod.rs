//! Every decision that Landfall takes, a file for each thing that a user can watch. Pure: no async, no input or
//! output, no clock, no randomness; what a decision needs comes in as data, what it wants goes out as data.
//!
//! Three questions are answered here. `intake`: an event happened, what is wanted now? `deploy`, `test_run`: this
//! is wanted and that is observed, what must be done next? `report`: this is the state, what should people see?

mod addons;
mod alerts;
mod checks;
mod commands;
mod config;
mod deploy;
mod guard;
mod flaky;
mod formation;
mod intake;
mod keep;
mod once;
mod parse;
mod policy;
mod report;
mod sleep;
mod slots;
mod split;
mod targets;
mod test_run;
mod watch;

pub use addons::{AddonsView, is_as_asked};
pub use alerts::{AlertFacts, look as look_at_alerts};
pub use checks::{CheckState, Others, Protection, RequiredCheck, SeenCheck, others};
pub use commands::{PromotionWish, destroy_app, needs_right, operate, promote, retry_release, roll_back};
pub use config::{AfterConfig, Chosen, Level, Levels, Settled, after_config, environment_of, first_formation, settle};
pub use deploy::{AppView, plan_app};
pub use flaky::{Flaky, flaky};
pub use formation::{ScaleLimits, ScaleOrder, ScaleRefusal, parse_scale, scaled};
pub use intake::{Promotable, Right, Snapshot, catch_up_staging, decide, run_again};
pub use keep::{STABLE, crashes_after, is_changed_since};
pub use parse::mentioned_commands;
pub use policy::{NoApp, barred, expiry, is_other_review_app, no_right, review_app_refused, stale, waiting_for_room};
pub use report::{
    AppLine, CheckReport, CommandLine, CommentView, DeploymentReport, DeploymentState, PullView, Reaction, RunLine,
    ShippedLine, StatusReport, StatusState, app_line, app_reports, comment_view, deployment_key, reactions, run_report,
};
pub use sleep::Use;
pub use slots::{Claim, share};
pub use split::{
    BatchRecord, CaseRecord, MeasuredRun, SplitPlan, SplitView, Way, holds, is_red, measured, node_results, red_paths,
    summary, way,
};
pub use targets::targets;
pub use test_run::{RunView, SETUP_FAILED, plan_run, test_script, verdict};
pub use watch::WatchView;

use crate::ci::split::LeaseId;
use crate::clock::Timestamp;
use crate::domain::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something that is wanted from now on. All changes of one delivery are written in one transaction with the mark
/// that it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    PutPull(Pull),
    /// Serve this commit there; an app that does not exist yet is made.
    Deploy {
        key: AppKey,
        commit: Sha,
        branch: String,
        cause: Cause,
        by: Option<String>,
        /// Wait for the tests that the same delivery starts for this commit.
        after_tests: bool,
    },
    /// The deploy that the changes before it made begins no earlier.
    NotBefore {
        at: Timestamp,
    },
    /// Show the pull request, but run nothing of it.
    Hold {
        key: AppKey,
    },
    /// Take the app away.
    Remove {
        key: AppKey,
    },
    StartRun {
        pull: Option<PullNumber>,
        /// The folder whose tests are wanted.
        part: Part,
        branch: String,
        commit: Sha,
        only_failed_of: Option<RunNumber>,
        /// Nothing that changed concerns the folder: say so, and run nothing.
        untouched: bool,
    },
    /// End the runs that are still going on for this pull request or branch, but those of `except`.
    CancelRuns {
        pull: Option<PullNumber>,
        branch: String,
        except: Option<Sha>,
        because: Cancelled,
    },
    PutPipeline(Box<PipelineState>),
    /// What an app waits for may be there.
    Look {
        app: AppName,
    },
    /// Start anew what was started before that moment.
    Restart {
        key: AppKey,
        before: Timestamp,
    },
    /// Run so many of each process type from now on.
    Scale {
        key: AppKey,
        formation: BTreeMap<String, Scale>,
    },
    /// End its sleep, as a visitor's knock does.
    Wake {
        key: AppKey,
    },
    /// The app is not stale before that moment.
    Keep {
        key: AppKey,
        until: Timestamp,
    },
    Answer(CommandRecord),
    /// As `Answer`, for a command whose effect is the deploy or the run that the same delivery starts.
    AnswerWithNewest(CommandRecord),
    /// Nothing can be read or reported there any more. Its review apps go, its test runs end; staging and production
    /// serve people who know nothing of GitHub, and stay until somebody takes them away by name.
    EndGrant,
}

impl Change {
    /// A short line for the list of deliveries; names no title or branch, which are other people's text.
    pub fn summary(&self) -> String {
        match self {
            Change::PutPull(pull) => format!("know pull request {} at {}", pull.number, pull.head.short()),
            Change::Deploy { key, commit, cause, .. } => {
                let how = match cause {
                    Cause::Push => "deploy",
                    Cause::Promotion { .. } => "promote",
                    Cause::Rollback { .. } => "roll back",
                    Cause::Config { .. } => "set config of",
                    Cause::Retry { .. } => "try again",
                };
                format!("{how} {} to {}", commit.short(), key.environment())
            }
            Change::NotBefore { .. } => "wait for a while first".to_owned(),
            Change::Hold { key } => format!("hold {}", key.environment()),
            Change::Remove { key } => format!("remove {}", key.environment()),
            Change::StartRun { commit, untouched: true, .. } => {
                format!("leave {} untested: it concerns nothing there", commit.short())
            }
            Change::StartRun { commit, .. } => format!("test {}", commit.short()),
            Change::CancelRuns { .. } => "cancel older test runs".to_owned(),
            Change::Look { app } => format!("look at {app}"),
            Change::PutPipeline(_) => "change the pipeline's state".to_owned(),
            Change::Restart { key, .. } => format!("restart {}", key.environment()),
            Change::Scale { key, .. } => format!("scale {}", key.environment()),
            Change::Wake { key } => format!("wake {}", key.environment()),
            Change::Keep { key, .. } => format!("keep {} longer", key.environment()),
            Change::Answer(record) | Change::AnswerWithNewest(record) => {
                format!("answer a command in pull request {}", record.pull)
            }
            Change::EndGrant => "end what depends on the grant of the repository".to_owned(),
        }
    }
}

/// What is to be done now, and when to look again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub again_in: Option<Duration>,
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn look_again_in(&mut self, wait: Duration) {
        self.again_in = Some(self.again_in.map_or(wait, |earlier| earlier.min(wait)));
    }
}

/// One effect. Every one may be repeated: doing it twice is doing it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fetch the commit, and build its tree unless that was done.
    EnsureBuild {
        commit: Sha,
    },
    /// The build process ended: make a slug of its folder, or note why there is none.
    CollectBuild {
        key: BuildKey,
    },
    /// Make the add-ons that the code asks for, before the release that has their config vars.
    EnsureAddons {
        deploy: u64,
    },
    /// Take all add-ons of an app away that goes.
    DropAddons,
    EnsureNodeAddons {
        node: u16,
    },
    DropNodeAddons {
        node: u16,
    },
    /// Write the release of a deploy: slug, config and formation.
    MakeRelease {
        deploy: u64,
    },
    /// Note which required config vars a deploy waits for.
    AwaitConfig {
        deploy: u64,
        names: Vec<String>,
    },
    StartProcess {
        release: ReleaseNumber,
        kind: String,
        ordinal: u16,
        attempt: u32,
        /// How many times in a row it has crashed.
        crashes: u32,
    },
    StartNode {
        node: u16,
        attempt: u32,
    },
    Stop {
        process: ProcessId,
    },
    /// Keep its log, then forget an ended process.
    Discard {
        process: ProcessId,
    },
    SetRoute {
        route: Option<WantedRoute>,
    },
    CollectNode {
        node: u16,
        process: ProcessId,
    },
    /// Read the tail of an ended process' output and fail the deploy with it.
    FailDeploy {
        deploy: u64,
        failure: Failure,
        tail_of: Option<ProcessId>,
    },
    /// Write which checks of others the deploy waits for.
    AwaitChecks {
        deploy: u64,
        contexts: Vec<String>,
    },
    MarkReleased {
        deploy: u64,
    },
    GoLive {
        deploy: u64,
    },
    /// The deploy's release gets a share of the requests from now on: note what there is to compare it with.
    Watch {
        deploy: u64,
    },
    /// The time of the watch over the live release is over, and it is no worse.
    EndWatch,
    /// The live release is worse than the one before it: say so, and want that one again.
    GoBack {
        deploy: u64,
        failure: Failure,
    },
    /// `postdeploy` has succeeded, once and for all.
    MarkPostdeploy,
    /// Write how `pr-predestroy` ended, where the pull request shows it.
    EndFarewell {
        process: ProcessId,
        ended: Ended,
    },
    /// Write how a one-off process ended.
    EndOneOff {
        number: u16,
        ended: Ended,
    },
    /// Say where `scripts.test-setup` of a run of so many nodes is done.
    PlaceSetup {
        nodes: u16,
    },
    /// Start it once for all nodes.
    StartSetup,
    /// Keep what it made.
    CollectSetup,
    /// The run does not wait for it any more; nobody may.
    LeaveSetup,
    PlanNodes {
        nodes: u16,
    },
    /// Leases of nodes that are silent go to others.
    ExpireLeases {
        leases: Vec<LeaseId>,
    },
    /// A node's process is gone: others get what it held.
    NodeLost {
        node: u16,
        attempt: u32,
    },
    /// No node will come any more.
    Abandon,
    Conclude {
        verdict: Verdict,
    },
    /// Nobody uses the app: nothing of it runs until somebody knocks.
    Sleep,
    Wake,
    /// Nothing of the app runs any more: drop its folders and routes, and its record once GitHub knows.
    Forget,
}

/// A process as the platform shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessView {
    pub id: ProcessId,
    pub release: Option<ReleaseNumber>,
    pub kind: String,
    pub ordinal: u16,
    pub attempt: u32,
    /// How many times in a row it had crashed before this start.
    pub crashes: u32,
    /// The dyno size that it was started with, where it is known.
    pub size: Option<String>,
    pub state: ProcessState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessState {
    Starting,
    Running { since: Timestamp },
    Stopping { started_at: Timestamp },
    Exited { ended: Ended, started_at: Timestamp, at: Timestamp },
}

impl ProcessView {
    pub fn is_over(&self) -> bool {
        matches!(self.state, ProcessState::Exited { .. })
    }

    /// It was told to end, so it may refuse whatever is new.
    pub fn is_stopping(&self) -> bool {
        matches!(self.state, ProcessState::Stopping { .. })
    }

    pub fn name(&self) -> String {
        format!("{}.{}", self.kind, self.ordinal)
    }
}

/// A target as the router shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetView {
    pub state: TargetState,
    pub healthy: bool,
    /// What the last health check saw, in the router's words.
    pub seen: String,
    pub in_flight: u64,
}
