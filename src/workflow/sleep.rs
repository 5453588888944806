//! When an app that nobody uses is put to sleep, and when it is woken.
//!
//! The rule that it keeps: only an app whose live release answers requests sleeps, never one that is being deployed,
//! and never one with a request under way. It sleeps without losing a request: the route says so first, then what
//! runs drains, then it is stopped.

use super::deploy::AppView;
use crate::clock::Timestamp;
use crate::domain::*;

/// How an app is used, as the router sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// When somebody last asked for something. Never earlier than the start of a router that knows nothing before it.
    pub last: Timestamp,
    /// Requests are under way or wait.
    pub busy: bool,
    /// It sleeps, and somebody asked for it.
    pub knocked: bool,
}

/// What is to be done about an app's sleep now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    Awake,
    FallAsleep,
    Asleep,
    WakeUp,
}

pub(super) fn rest(app: &App, view: &AppView) -> Rest {
    let serves = view.live.as_ref().is_some_and(|live| live.formation.contains_key("web"));
    let asleep = app.asleep_since.is_some();
    let Some(limit) = view.sleep_after.filter(|_| serves) else {
        return if asleep { Rest::WakeUp } else { Rest::Awake };
    };
    // A router that does not know the app says nothing about its use.
    let Some(used) = view.used else {
        return if asleep { Rest::Asleep } else { Rest::Awake };
    };
    if asleep {
        return if used.knocked { Rest::WakeUp } else { Rest::Asleep };
    }
    let deploying = app.newest().is_some_and(|deploy| deploy.outcome.is_none());
    let live_since = match app.live_deploy().and_then(|deploy| deploy.outcome.as_ref()) {
        Some(Outcome::Live { at }) => *at,
        _ => app.created_at,
    };
    let last = used.last.max(live_since).max(app.woken_at.unwrap_or_default());
    let idle = !used.busy && !deploying && view.now.since(last) >= limit;
    if idle { Rest::FallAsleep } else { Rest::Awake }
}

#[cfg(test)]
mod tests {
    use super::super::deploy::{plan_app, tests::view_of_a_restart};
    use super::super::{Action, ProcessState};
    use super::*;
    use std::time::Duration;

    const LIMIT: i64 = 1_800_000;

    type Change = fn(&mut App, &mut AppView);

    fn idle(now: i64) -> (App, AppView) {
        let (app, mut view) = view_of_a_restart(now, TargetState::Active, true);
        view.sleep_after = Some(Duration::from_millis(LIMIT as u64));
        view.used = Some(Use::default());
        (app, view)
    }

    #[test]
    fn only_who_is_not_used_falls_asleep() {
        let (app, view) = idle(LIMIT);
        assert_eq!(rest(&app, &view), Rest::FallAsleep);
        assert_eq!(rest(&app, &idle(LIMIT - 1).1), Rest::Awake);
        let changes: [(&str, Change); 7] = [
            ("never", |_, view| view.sleep_after = None),
            ("no router", |_, view| view.used = None),
            ("just used", |_, view| view.used = Some(Use { last: Timestamp(1), ..Use::default() })),
            ("in use", |_, view| view.used = Some(Use { busy: true, ..Use::default() })),
            ("just woken", |app, _| app.woken_at = Some(Timestamp(1))),
            ("deploying", |app, _| {
                let next = Deploy { number: 2, release: None, outcome: None, ..app.deploys[0].clone() };
                app.deploys.push(next);
            }),
            ("no web", |_, view| drop(view.live.as_mut().and_then(|live| live.formation.remove("web")))),
        ];
        for (name, change) in changes {
            let (mut app, mut view) = idle(LIMIT);
            change(&mut app, &mut view);
            assert_eq!(rest(&app, &view), Rest::Awake, "{name}");
        }
    }

    #[test]
    fn an_app_falls_asleep_without_losing_a_request() {
        let (mut app, mut view) = idle(LIMIT);
        let process = view.processes[0].id.clone();
        let plan = plan_app(&app, &view);
        let [Action::Sleep, Action::SetRoute { route: Some(route) }] = plan.actions.as_slice() else {
            panic!("{plan:?}")
        };
        assert!(route.asleep && !route.hold && route.notice == Some(Notice::Asleep));
        assert_eq!(route.targets[0].state, TargetState::Draining);

        // It is stopped when nothing is left on it.
        app.asleep_since = Some(Timestamp(LIMIT));
        view.route = Some(route.clone());
        for (in_flight, stopped) in [(1, false), (0, true)] {
            let target = view.targets.get_mut(&process).expect("its target");
            (target.state, target.in_flight) = (TargetState::Draining, in_flight);
            let plan = plan_app(&app, &view);
            assert_eq!(plan.actions.contains(&Action::Stop { process: process.clone() }), stopped, "{plan:?}");
        }

        // Who sleeps is left alone, and is not taken for crashed.
        let ended = Ended::Exited { code: 0 };
        let at = Timestamp(LIMIT + 5_000);
        view.now = at;
        view.processes[0].state = ProcessState::Exited { ended, started_at: Timestamp(0), at };
        view.targets.clear();
        let plan = plan_app(&app, &view);
        let [Action::SetRoute { route: Some(route) }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert!(route.asleep && route.targets.is_empty());
        view.route = Some(route.clone());
        view.now = Timestamp(10 * LIMIT);
        assert_eq!(plan_app(&app, &view).actions, []);

        // A knock wakes it, at once, whatever the backoff of crashes would say.
        view.used = Some(Use { knocked: true, busy: true, ..Use::default() });
        let plan = plan_app(&app, &view);
        let start = |action: &Action| matches!(action, Action::StartProcess { attempt: 3, crashes: 0, .. });
        assert!(plan.actions.contains(&Action::Wake) && plan.actions.iter().any(start), "{plan:?}");
        let Some(Action::SetRoute { route: Some(route) }) = plan.actions.last() else { panic!("{plan:?}") };
        assert!(route.hold && !route.asleep, "{route:?}");
    }

    #[test]
    fn what_was_told_to_end_gets_no_request_of_who_wakes_the_app() {
        let (mut app, mut view) = idle(LIMIT + 100);
        app.asleep_since = Some(Timestamp(LIMIT));
        view.processes[0].state = ProcessState::Stopping { started_at: Timestamp(0) };
        view.targets.values_mut().for_each(|target| target.state = TargetState::Draining);
        view.used = Some(Use { knocked: true, busy: true, ..Use::default() });
        let plan = plan_app(&app, &view);
        let start = |action: &Action| matches!(action, Action::StartProcess { attempt: 3, crashes: 0, .. });
        assert!(plan.actions.contains(&Action::Wake) && plan.actions.iter().any(start), "{plan:?}");
        let Some(Action::SetRoute { route: Some(route) }) = plan.actions.last() else { panic!("{plan:?}") };
        assert!(route.hold && route.targets[0].state == TargetState::Draining, "{route:?}");
    }

    #[test]
    fn who_must_not_sleep_any_more_is_woken() {
        let (mut app, mut view) = idle(10 * LIMIT);
        app.asleep_since = Some(Timestamp(LIMIT));
        assert_eq!(rest(&app, &view), Rest::Asleep);
        view.used = None;
        assert_eq!(rest(&app, &view), Rest::Asleep, "a router without a table knows of no use");
        view.sleep_after = None;
        assert_eq!(rest(&app, &view), Rest::WakeUp);
    }
}
