//! Programs that run once beside an app's processes: the release phase, `postdeploy`, `pr-predestroy` and what people
//! ask to run.
//!
//! The rule that it keeps: each is started at most once by itself. Whether an interrupted one may run again is for a
//! person to say, since a migration that ran half is not to be run twice.

use super::deploy::{AppView, Boot, WATCH, attempts, start};
use super::{Action, Plan, ProcessState, ProcessView};
use crate::domain::*;

pub(super) fn release_phase(
    deploy: &Deploy,
    release: &Release,
    view: &AppView,
    plan: &mut Plan,
    fail: &dyn Fn(Failure, Option<&ProcessView>) -> Action,
) {
    if release.release_command().is_none() {
        plan.act(Action::MarkReleased { deploy: deploy.number });
        return;
    }
    // At most one attempt for each release: whether an interrupted migration may run again is for a person to say.
    match attempts(view, release.number, "release", 1).last() {
        // One migration at a time in each app.
        None if view.processes.iter().any(|process| process.kind == "release" && !process.is_over()) => {
            plan.look_again_in(WATCH);
        }
        None => plan.act(start(release, "release", 1, 1)),
        Some(process) => match &process.state {
            ProcessState::Exited { ended, .. } if ended.is_success() => {
                plan.act(Action::MarkReleased { deploy: deploy.number });
            }
            ProcessState::Exited { ended, .. } => {
                plan.act(fail(Failure::ReleasePhase { ended: ended.clone(), tail: Vec::new() }, Some(process)));
            }
            ProcessState::Starting | ProcessState::Running { .. } | ProcessState::Stopping { .. } => {}
        },
    }
}

/// `scripts.postdeploy` of an app's first release: it answers by now, and is reported live once the script succeeded.
/// Whether nothing of it is left to do.
pub(super) fn postdeploy(app: &App, boot: Boot<'_>, view: &AppView, plan: &mut Plan) -> bool {
    if !view.postdeploy || app.postdeploy_done || app.live.is_some() {
        return true;
    }
    if view.processes.iter().any(is_done_postdeploy) {
        plan.act(Action::MarkPostdeploy);
        return false;
    }
    match attempts(view, boot.release.number, "postdeploy", 1).last() {
        None if view.processes.iter().any(|process| process.kind == "postdeploy" && !process.is_over()) => {
            plan.look_again_in(WATCH);
        }
        None => plan.act(start(boot.release, "postdeploy", 1, 1)),
        // As with the release phase: whether it may run again is for a person to say.
        Some(process) => {
            if let ProcessState::Exited { ended, .. } = &process.state {
                plan.act(Action::FailDeploy {
                    deploy: boot.deploy,
                    failure: Failure::Postdeploy { ended: ended.clone(), tail: Vec::new() },
                    tail_of: Some(process.id.clone()),
                });
            }
        }
    }
    false
}

/// `scripts.pr-predestroy`, while everything that it may need is still there. Whether nothing of it is left to do.
pub(super) fn farewell(app: &App, view: &AppView, plan: &mut Plan) -> bool {
    let Some(live) = view.live.as_ref().filter(|_| view.predestroy && !app.farewell.done) else { return true };
    let attempt = app.farewell.attempt.max(1);
    let attempts = attempts(view, live.number, "predestroy", 1);
    match attempts.into_iter().find(|process| process.attempt == attempt) {
        None => plan.act(start(live, "predestroy", 1, attempt)),
        Some(process) => {
            if let ProcessState::Exited { ended, .. } = &process.state {
                plan.act(Action::EndFarewell { process: process.id.clone(), ended: ended.clone() });
            }
        }
    }
    false
}

/// Whether a process is a `postdeploy` that succeeded, be it that of a deploy which was overtaken meanwhile.
pub(super) fn is_done_postdeploy(process: &ProcessView) -> bool {
    process.kind == "postdeploy" && matches!(&process.state, ProcessState::Exited { ended, .. } if ended.is_success())
}

/// What people asked to run once: started once, and written down when it has ended.
pub(super) fn one_offs(app: &App, view: &AppView, plan: &mut Plan) {
    for one_off in app.open_one_offs() {
        let process = view.processes.iter().find(|process| is_of(process, one_off));
        match process.map(|process| (process, &process.state)) {
            None if one_off.stop => {
                plan.act(Action::EndOneOff { number: one_off.number, ended: Ended::Signalled { signal: 15 } });
            }
            None => plan.act(Action::StartProcess {
                release: one_off.release,
                kind: "run".to_owned(),
                ordinal: one_off.number,
                attempt: 1,
                crashes: 0,
            }),
            Some((_, ProcessState::Exited { ended, .. })) => {
                plan.act(Action::EndOneOff { number: one_off.number, ended: ended.clone() });
            }
            Some((process, ProcessState::Starting | ProcessState::Running { .. })) if one_off.stop => {
                plan.act(Action::Stop { process: process.id.clone() });
                plan.look_again_in(WATCH);
            }
            Some((_, ProcessState::Starting | ProcessState::Running { .. } | ProcessState::Stopping { .. })) => {}
        }
    }
}

/// Of an app that is held nothing runs, and nothing of it begins anew once it may run again.
pub(super) fn end_one_offs(app: &App, view: &AppView, plan: &mut Plan) {
    for one_off in app.open_one_offs() {
        match view.processes.iter().find(|process| is_of(process, one_off)).map(|process| &process.state) {
            None => plan.act(Action::EndOneOff { number: one_off.number, ended: Ended::Signalled { signal: 15 } }),
            Some(ProcessState::Exited { ended, .. }) => {
                plan.act(Action::EndOneOff { number: one_off.number, ended: ended.clone() });
            }
            Some(_) => {}
        }
    }
}

pub(super) fn is_of(process: &ProcessView, one_off: &OneOff) -> bool {
    process.kind == "run" && process.ordinal == one_off.number && process.release == Some(one_off.release)
}
