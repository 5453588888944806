//! What keeps a live release as it should be: as many processes of each type as were asked for, of the size asked for,
//! restarted when they crash.
//!
//! The rule that it keeps: a crash is answered by a restart at once, then later and later, and nothing that a person or
//! sleep ended counts as a crash.

use super::deploy::{AppView, WATCH, attempts, start};
use super::{Action, Plan, ProcessState, ProcessView};
use crate::clock::Timestamp;
use crate::domain::*;
use std::time::Duration;

/// The same for a process of the live release that has not answered for longer than a boot may take.
pub(super) const WATCH_LATE: Duration = Duration::from_secs(5);
/// Crash restarts: at once, then 1 s, 2 s, 4 s … up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
/// A process that ran this long before it crashed starts with a clean slate.
pub const STABLE: Duration = Duration::from_secs(600);

/// A restart that is due within this time is waited for by requests.
const WORTH_WAITING: Duration = Duration::from_secs(5);

/// Starts what is missing of the live release and restarts what crashed.
pub(super) fn keep_running(app: &App, live: &Release, view: &AppView, plan: &mut Plan) {
    for (kind, ordinal) in live.processes() {
        let attempts = attempts(view, live.number, kind, ordinal);
        let Some(process) = attempts.last() else {
            plan.act(start(live, kind, ordinal, 1));
            plan.look_again_in(WATCH);
            continue;
        };
        if let (ProcessState::Running { since }, Some(before)) = (&process.state, app.restart_at)
            && (*since..=view.now).contains(&before)
            && is_restarted(app, process)
        {
            if kind == "web" {
                // As with a new size: the old one goes when the new one answers.
                plan.act(start(live, kind, ordinal, process.attempt + 1));
            } else {
                plan.act(Action::Stop { process: process.id.clone() });
            }
            plan.look_again_in(WATCH);
            continue;
        }
        if let ProcessState::Stopping { started_at } = process.state {
            // What was not wanted is wanted again. Others than web wait for its end: two might do the same work.
            if kind == "web" && is_changed_since(app, started_at, view.now) {
                plan.act(start(live, kind, ordinal, process.attempt + 1));
                plan.look_again_in(WATCH);
            }
            continue;
        }
        if let ProcessState::Exited { started_at, at, ended } = &process.state {
            let due = due_again(app, process.crashes, ended, *started_at, *at, view.now);
            if view.now >= due {
                plan.act(Action::StartProcess {
                    release: live.number,
                    kind: kind.to_owned(),
                    ordinal,
                    attempt: process.attempt + 1,
                    crashes: crashes_after(app, process.crashes, ended, *started_at, *at, view.now),
                });
                plan.look_again_in(WATCH);
            } else {
                plan.look_again_in(due.since(view.now).max(Duration::from_millis(10)));
            }
            continue;
        }
        // Another size needs another process. The old one goes when this one answers.
        let size = live.formation.get(kind).map(|scale| &scale.size);
        if process.size.is_some() && process.size.as_ref() != size {
            plan.act(start(live, kind, ordinal, process.attempt + 1));
            plan.look_again_in(WATCH);
        }
    }
}

fn is_restarted(app: &App, process: &ProcessView) -> bool {
    app.restart_only.as_ref().is_none_or(|only| *only == process.kind || *only == process.name())
}

/// Whether a process of the live or the booting release is not wanted any more: there are fewer of its type now, or
/// another one, of another size or started anew, has taken its place.
pub(super) fn is_surplus(process: &ProcessView, view: &AppView) -> bool {
    let of = |release: &&Release| process.release == Some(release.number);
    let Some(release) = view.live.iter().chain(&view.next).find(of) else { return false };
    if !is_scalable(&process.kind) {
        return false;
    }
    if !release.processes().any(|(kind, ordinal)| kind == process.kind && ordinal == process.ordinal) {
        return true;
    }
    let attempts = attempts(view, release.number, &process.kind, process.ordinal);
    attempts.last().is_some_and(|newest| {
        let took_over = match process.kind.as_str() {
            "web" => view.targets.get(&newest.id).is_some_and(|target| target.healthy),
            _ => matches!(newest.state, ProcessState::Running { .. }),
        };
        newest.id != process.id && took_over
    })
}

/// When a process of the live release that ended is to be started anew.
fn due_again(
    app: &App,
    crashes: u32,
    ended: &Ended,
    started_at: Timestamp,
    at: Timestamp,
    now: Timestamp,
) -> Timestamp {
    // The clock was set back since, so nobody knows how long ago that was.
    if at > now {
        return now;
    }
    at + match crashes_after(app, crashes, ended, started_at, at, now) {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(16)).min(LONGEST_BACKOFF),
    }
}

/// How many times in a row a process has crashed, now that it has ended. An end that nobody can blame it for (it was
/// put to sleep, a person wanted it to end, the machine went away) counts for nothing.
pub fn crashes_after(
    app: &App,
    crashes: u32,
    ended: &Ended,
    started_at: Timestamp,
    at: Timestamp,
    now: Timestamp,
) -> u32 {
    if matches!(ended, Ended::Lost) || is_changed_since(app, started_at, now) {
        0
    } else if at.since(started_at) >= STABLE {
        1
    } else {
        crashes.saturating_add(1)
    }
}

/// Whether what is to run of the app was changed since a process was started. It ends for that then, however late. A
/// change that is yet to come was made before the clock was set back, and says nothing.
pub fn is_changed_since(app: &App, started_at: Timestamp, now: Timestamp) -> bool {
    let changes = [app.restart_at, app.scaled_at, app.asleep_since, app.woken_at];
    changes.into_iter().flatten().any(|changed| (started_at..=now).contains(&changed))
}

/// Whether a process of the live release is about to answer, so that requests had better wait for it than be refused.
pub(super) fn is_coming(app: &App, live: &Release, view: &AppView) -> bool {
    live.processes().filter(|(kind, _)| *kind == "web").any(|(kind, ordinal)| {
        let attempts = attempts(view, live.number, kind, ordinal);
        let Some(process) = attempts.last() else { return true };
        match &process.state {
            ProcessState::Starting => true,
            ProcessState::Running { since } => view.now.since(*since) < view.boot_timeout,
            // Another one takes its place, now or when it has ended.
            ProcessState::Stopping { .. } => true,
            ProcessState::Exited { ended, started_at, at } => {
                due_again(app, process.crashes, ended, *started_at, *at, view.now).since(view.now) <= WORTH_WAITING
            }
        }
    })
}

/// A process that was started anew gets requests as soon as it answers; nobody tells us when that is.
pub(super) fn watch_what_comes_back(route: &WantedRoute, view: &AppView, plan: &mut Plan) {
    for target in route.targets.iter().filter(|target| target.state == TargetState::Warming) {
        let state = view.processes.iter().find(|process| process.id == target.process).map(|process| &process.state);
        let booted_for = match state {
            Some(ProcessState::Running { since }) => view.now.since(*since),
            _ => Duration::ZERO,
        };
        plan.look_again_in(if booted_for < view.boot_timeout { WATCH } else { WATCH_LATE });
    }
}

#[cfg(test)]
mod tests {
    use super::super::TargetView;
    use super::super::deploy::{plan_app, tests::view_of_a_restart};
    use super::*;

    fn stopping(started_at: i64) -> ProcessState {
        ProcessState::Stopping { started_at: Timestamp(started_at) }
    }

    fn exited(started_at: i64, at: i64) -> ProcessState {
        let ended = Ended::Exited { code: 1 };
        ProcessState::Exited { ended, started_at: Timestamp(started_at), at: Timestamp(at) }
    }

    /// The attempts that are started, each after how many crashes.
    fn started(app: &App, view: &AppView) -> Vec<(u32, u32)> {
        let started = plan_app(app, view).actions.into_iter().filter_map(|action| match action {
            Action::StartProcess { attempt, crashes, .. } => Some((attempt, crashes)),
            _ => None,
        });
        started.collect()
    }

    fn route(app: &App, view: &AppView) -> WantedRoute {
        let mut routes = plan_app(app, view).actions.into_iter().filter_map(|action| match action {
            Action::SetRoute { route } => route,
            _ => None,
        });
        routes.next_back().or_else(|| view.route.clone()).expect("a route")
    }

    #[test]
    fn what_is_wanted_again_while_it_ends_is_started_beside_it() {
        let (mut app, mut view) = view_of_a_restart(2_000, TargetState::Active, true);
        view.processes[0].state = stopping(0);
        app.scaled_at = Some(Timestamp(1_000));
        assert_eq!(started(&app, &view), [(3, 0)]);
        let wanted = route(&app, &view);
        assert!(wanted.hold && wanted.targets[0].state == TargetState::Draining, "{wanted:?}");

        // A process that ends at a limit was not told to by anybody: it has crashed, and is started anew as such.
        app.scaled_at = None;
        assert_eq!(started(&app, &view), []);
        assert!(route(&app, &view).hold);
        view.processes[0].state = exited(0, 1_900);
        assert_eq!(started(&app, &view), [], "after two crashes a second passes");
        view.now = Timestamp(2_900);
        assert_eq!(started(&app, &view), [(3, 2)]);
    }

    #[test]
    fn a_worker_that_is_wanted_again_waits_for_the_end_of_the_one_before_it() {
        let (mut app, mut view) = view_of_a_restart(2_000, TargetState::Active, true);
        let live = view.live.as_mut().expect("a release");
        live.process_types.insert("worker".to_owned(), "work".to_owned());
        live.formation.insert("worker".to_owned(), Scale { quantity: 1, size: "basic".to_owned() });
        let mut worker = view.processes[0].clone();
        (worker.id, worker.kind, worker.state) = (live.process_id("worker", 1, 2), "worker".to_owned(), stopping(0));
        view.processes.push(worker);
        app.woken_at = Some(Timestamp(1_000));
        assert_eq!(started(&app, &view), []);
        view.processes[1].state = exited(0, 1_900);
        assert_eq!(started(&app, &view), [(3, 0)], "that it slept is no crash");
    }

    #[test]
    fn an_old_process_that_ends_serves_no_more_though_the_new_one_has_crashed() {
        let (mut app, mut view) = view_of_a_restart(2_000, TargetState::Draining, true);
        app.restart_at = Some(Timestamp(500));
        view.processes[0].state = stopping(0);
        let new = view.live.as_ref().expect("a release").process_id("web", 1, 3);
        let known = view.processes[0].clone();
        view.processes.push(ProcessView {
            id: new.clone(),
            attempt: 3,
            crashes: 0,
            state: exited(600, 1_900),
            ..known
        });
        let wanted = route(&app, &view);
        let states: Vec<TargetState> = wanted.targets.iter().map(|target| target.state).collect();
        assert!(wanted.hold && states == [TargetState::Draining], "{wanted:?}");
        assert_eq!(started(&app, &view), [(4, 1)]);
    }

    #[test]
    fn a_release_whose_process_ends_does_not_get_the_traffic() {
        let (mut app, mut view) = view_of_a_restart(2_000, TargetState::Active, true);
        let mut next = view.live.clone().expect("a release");
        (next.number, next.deploy) = (ReleaseNumber(2), 2);
        let deploy = Deploy { number: 2, release: Some(next.number), outcome: None, ..app.deploys[0].clone() };
        app.deploys.push(deploy);
        let id = next.process_id("web", 1, 1);
        let known = view.processes[0].clone();
        let state = stopping(1_000);
        view.processes.push(ProcessView { id: id.clone(), release: Some(next.number), attempt: 1, state, ..known });
        let answers = TargetView { state: TargetState::Warming, healthy: true, seen: String::new(), in_flight: 0 };
        view.targets.insert(id, answers);
        view.next = Some(next);
        assert_eq!(route(&app, &view).targets.len(), 1);
        assert!(!plan_app(&app, &view).actions.contains(&Action::GoLive { deploy: 2 }));
    }

    #[test]
    fn a_clock_that_is_set_back_restarts_nothing_over_and_over() {
        const RESTART: i64 = 3_600_000;
        let (mut app, mut view) = view_of_a_restart(RESTART / 2, TargetState::Active, true);
        app.restart_at = Some(Timestamp(RESTART));
        view.processes[0].state = ProcessState::Running { since: Timestamp(RESTART / 2 - 60_000) };
        assert_eq!(started(&app, &view), []);
        // A crash counts as one, and one that is yet to come is over.
        view.processes[0].state = exited(RESTART / 2 - 60_000, RESTART / 2 - 1_000);
        assert_eq!(started(&app, &view), [(3, 2)]);
        view.processes[0].state = exited(RESTART - 60_000, RESTART - 1_000);
        assert_eq!(started(&app, &view), [(3, 2)]);
    }
}
