//! What follows from the watch over a release: a canary that gets its share, and a switch that is taken back.
//!
//! The rule that it keeps: only a release that a person or a push brought is sent back, never one that was gone back
//! to, and never while something newer is under way. So a watch ends in one step back at most.

use super::deploy::{AppView, attempts};
use super::keep::crashes_after;
use super::{Action, Plan, ProcessState, guard};
use crate::domain::*;
use std::time::Duration;

/// How often the numbers are looked at. What happens to processes is looked at when it happens.
const LOOK: Duration = Duration::from_secs(10);
/// So many crashes in a row are a crash loop.
const CRASHES: u32 = 3;

/// What the router counted of a release under watch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WatchView {
    pub new: Measured,
    /// What the release before it did meanwhile, beside a canary.
    pub beside: Measured,
}

/// How far a release is that gets a share of the requests first.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Share {
    /// As soon as it is ready.
    Begins,
    Of {
        percent: u8,
        again_in: Duration,
    },
    Worse(Failure),
    /// Its time is over; it gets all as soon as it is ready.
    Over {
        percent: u8,
    },
}

/// How far a pending deploy's canary is; `None` where none was asked for, or there is nothing to share with.
pub(super) fn share(app: &App, deploy: &Deploy, view: &AppView) -> Option<Share> {
    let Cause::Promotion { canary: Some((percent, _)), .. } = deploy.cause else { return None };
    let (release, before) = (deploy.release?, app.live?);
    // Who sleeps, or has crashed, has no visitors to share.
    if app.asleep_since.is_some() || !serves(app, view) {
        return None;
    }
    let Some(watch) = app.canary_of(deploy) else { return Some(Share::Begins) };
    if let Some(measured) = &view.measured
        && let Some(finding) = guard::worse_than_beside(&watch.baseline, &measured.new, &measured.beside)
    {
        return Some(Share::Worse(Failure::Worse { release, before, canary: true, finding }));
    }
    if view.now >= watch.until {
        return Some(Share::Over { percent });
    }
    Some(Share::Of { percent, again_in: watch.until.since(view.now).min(LOOK) })
}

fn serves(app: &App, view: &AppView) -> bool {
    view.targets.iter().any(|(process, target)| {
        target.state == TargetState::Active
            && view.processes.iter().any(|known| known.id == *process && known.release == app.live)
    })
}

/// Looks after the live release while it is watched, and once more when its time is over.
pub(super) fn guard(app: &App, view: &AppView, plan: &mut Plan) {
    let Some(watch) = app.watched().filter(|watch| watch.percent.is_none()) else { return };
    let live = app.live_deploy().filter(|deploy| matches!(deploy.outcome, Some(Outcome::Live { .. })));
    let Some(deploy) = live else { return };
    let measured = view.measured.as_ref();
    let finding = crash_loop(app, watch, view)
        .or_else(|| measured.and_then(|measured| guard::worse(&watch.baseline, &measured.new)));
    match finding {
        Some(finding) => {
            let failure = Failure::Worse { release: watch.release, before: watch.before, canary: false, finding };
            plan.act(Action::GoBack { deploy: deploy.number, failure });
            plan.look_again_in(Duration::ZERO);
        }
        None if view.now >= watch.until => plan.act(Action::EndWatch),
        None => plan.look_again_in(watch.until.since(view.now).min(LOOK)),
    }
}

fn crash_loop(app: &App, watch: &Watch, view: &AppView) -> Option<Finding> {
    let live = view.live.as_ref()?;
    live.processes().filter(|(kind, _)| *kind == "web").find_map(|(kind, ordinal)| {
        let all = attempts(view, live.number, kind, ordinal);
        let process = all.last()?;
        let ProcessState::Exited { ended, started_at, at } = &process.state else { return None };
        let crashes = crashes_after(app, process.crashes, ended, *started_at, *at, view.now);
        (crashes >= CRASHES && *at <= watch.until).then(|| Finding::Crashes {
            process: process.name(),
            crashes,
            ended: ended.clone(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::TargetView;
    use super::super::deploy::{plan_app, tests::view_of_a_restart};
    use super::*;
    use crate::clock::Timestamp;

    const UNTIL: i64 = 120_000;

    fn counts(errors: u64, requests: u64) -> Measured {
        Measured { requests, errors, latency: Vec::new() }
    }

    fn watch(release: u32, percent: Option<u8>) -> Watch {
        Watch {
            release: ReleaseNumber(release),
            before: ReleaseNumber(if percent.is_some() { 1 } else { 0 }),
            since: Timestamp(0),
            until: Timestamp(UNTIL),
            percent,
            baseline: counts(0, 1_000),
            first_minute: Measured::default(),
        }
    }

    /// Release 1 serves, under watch, and the router counted this of it.
    fn switched(now: i64, new: Measured) -> (App, AppView) {
        let (mut app, mut view) = view_of_a_restart(now, TargetState::Active, true);
        app.watch = Some(watch(1, None));
        view.measured = Some(WatchView { new, beside: Measured::default() });
        (app, view)
    }

    fn goes_back(app: &App, view: &AppView) -> Option<Finding> {
        plan_app(app, view).actions.into_iter().find_map(|action| match action {
            Action::GoBack { deploy: 1, failure: Failure::Worse { finding, canary: false, .. } } => Some(finding),
            _ => None,
        })
    }

    #[test]
    fn a_switch_is_taken_back_while_it_is_watched_only() {
        let (app, view) = switched(1_000, counts(50, 100));
        assert!(matches!(goes_back(&app, &view), Some(Finding::Errors { errors: 50, requests: 100, .. })));
        assert_eq!(goes_back(&app, &switched(1_000, counts(1, 100)).1), None, "no worse");
        let calm = plan_app(&app, &switched(1_000, counts(1, 100)).1);
        assert_eq!((calm.actions.len(), calm.again_in), (0, Some(LOOK)));

        // What came last is judged too, and however late somebody looks, once.
        for late in [UNTIL, 10 * UNTIL] {
            assert!(goes_back(&app, &switched(late, counts(50, 100)).1).is_some());
            let (mut app, view) = switched(late, counts(1, 100));
            assert_eq!(plan_app(&app, &view).actions, [Action::EndWatch]);
            app.watch = None;
            assert_eq!(plan_app(&app, &view).actions, []);
        }

        type Change = fn(&mut App);
        let changes: [(&str, Change); 4] = [
            ("not watched", |app| app.watch = None),
            ("another release is watched", |app| app.watch = Some(watch(7, None))),
            ("something newer is under way", |app| {
                let next = Deploy { number: 2, release: None, outcome: None, ..app.deploys[0].clone() };
                app.deploys.push(next);
            }),
            ("it went back already", |app| app.deploys[0].outcome = failed()),
        ];
        for (name, change) in changes {
            let (mut app, view) = switched(1_000, counts(50, 100));
            change(&mut app);
            assert_eq!(goes_back(&app, &view), None, "{name}");
        }
    }

    fn failed() -> Option<Outcome> {
        Some(Outcome::Failed { failure: Failure::NothingToRun, at: Timestamp(0) })
    }

    #[test]
    fn a_newer_deploy_that_failed_does_not_end_the_watch() {
        let (mut app, view) = switched(1_000, counts(50, 100));
        let newer = Deploy { number: 2, release: None, outcome: failed(), ..app.deploys[0].clone() };
        app.deploys.push(newer);
        assert!(goes_back(&app, &view).is_some());

        let (mut app, mut view) = canary(1_000, true, counts(20, 50), counts(0, 450));
        app.watch = Some(watch(1, None));
        assert_eq!(goes_back(&app, &view), None, "the canary is under way");
        app.deploys[1].outcome = failed();
        (view.next, view.measured) = (None, Some(WatchView { new: counts(50, 100), beside: Measured::default() }));
        assert!(goes_back(&app, &view).is_some());
    }

    #[test]
    fn a_crash_loop_is_gone_back_from_at_its_third_crash() {
        for (crashes, expected) in [(0, None), (1, None), (2, Some(3))] {
            let (app, mut view) = switched(3_000, Measured::default());
            let ended = Ended::Exited { code: 1 };
            view.processes[0].crashes = crashes;
            view.processes[0].state =
                ProcessState::Exited { ended, started_at: Timestamp(1_000), at: Timestamp(2_000) };
            let found = goes_back(&app, &view).map(|finding| match finding {
                Finding::Crashes { crashes, .. } => crashes,
                other => panic!("{other:?}"),
            });
            assert_eq!(found, expected, "after {crashes} crashes");
        }
        let (app, mut view) = switched(2 * UNTIL, Measured::default());
        view.processes[0].crashes = 2;
        for (at, expected) in [(UNTIL, true), (UNTIL + 1, false)] {
            let ended = Ended::Exited { code: 1 };
            view.processes[0].state = ProcessState::Exited { ended, started_at: Timestamp(at - 1), at: Timestamp(at) };
            assert_eq!(goes_back(&app, &view).is_some(), expected, "a crash at {at}");
        }
    }

    /// Release 1 serves; release 2 is promoted with a share of a tenth and answers.
    fn canary(now: i64, begun: bool, new: Measured, beside: Measured) -> (App, AppView) {
        let (mut app, mut view) = view_of_a_restart(now, TargetState::Active, true);
        let mut release = view.live.clone().expect("a live release");
        (release.number, release.deploy) = (ReleaseNumber(2), 2);
        let promotion = Cause::Promotion {
            from: app.name.clone(),
            release: ReleaseNumber(1),
            slug: release.slug.clone(),
            canary: Some((10, 120)),
            hotfix: false,
        };
        let deploy = Deploy {
            number: 2,
            cause: promotion,
            release: Some(release.number),
            outcome: None,
            ..app.deploys[0].clone()
        };
        app.deploys.push(deploy);
        app.canary = begun.then(|| watch(2, Some(10)));
        let process = release.process_id("web", 1, 1);
        let mut known = view.processes[0].clone();
        (known.id, known.release, known.attempt, known.crashes) = (process.clone(), Some(release.number), 1, 0);
        view.processes.push(known);
        let state = if begun { TargetState::Active } else { TargetState::Warming };
        view.targets.insert(process, TargetView { state, healthy: true, seen: String::new(), in_flight: 0 });
        view.next = Some(release);
        view.measured = begun.then_some(WatchView { new, beside });
        (app, view)
    }

    fn route(plan: &Plan) -> Option<&WantedRoute> {
        plan.actions.iter().find_map(|action| match action {
            Action::SetRoute { route } => route.as_ref(),
            _ => None,
        })
    }

    fn shared(plan: &Plan) -> Option<(ReleaseNumber, u8)> {
        route(plan).and_then(|route| route.canary)
    }

    #[test]
    fn a_canary_gets_its_share_then_all() {
        let (app, view) = canary(1_000, false, Measured::default(), Measured::default());
        let plan = plan_app(&app, &view);
        assert!(plan.actions.contains(&Action::Watch { deploy: 2 }) && shared(&plan).is_none(), "{plan:?}");

        let (app, view) = canary(1_000, true, counts(0, 50), counts(0, 450));
        let plan = plan_app(&app, &view);
        assert_eq!(shared(&plan), Some((ReleaseNumber(2), 10)), "{plan:?}");
        assert!(!plan.actions.contains(&Action::GoLive { deploy: 2 }));

        let (app, view) = canary(UNTIL, true, counts(0, 50), counts(0, 450));
        let plan = plan_app(&app, &view);
        assert!(plan.actions.contains(&Action::GoLive { deploy: 2 }) && shared(&plan).is_none(), "{plan:?}");
    }

    #[test]
    fn a_canary_that_ends_is_drained_however_long_the_release_beside_it_has_served() {
        const ENDED: i64 = 5_000_000;
        let stopped = |outcome: Outcome, waited: i64, in_flight: u64| {
            let (mut app, mut view) = canary(ENDED, true, counts(0, 50), counts(0, 450));
            app.deploys[1].outcome = Some(outcome);
            view.drain_limit = Duration::from_secs(600);
            view.route = route(&plan_app(&app, &view)).cloned();
            view.now = Timestamp(ENDED + waited);
            let process = view.processes[1].id.clone();
            let target = view.targets.get_mut(&process).expect("the canary's target");
            (target.state, target.in_flight) = (TargetState::Draining, in_flight);
            plan_app(&app, &view).actions.contains(&Action::Stop { process })
        };
        let failure = Failure::NothingToRun;
        for outcome in [Outcome::Failed { failure, at: Timestamp(ENDED) }, Outcome::Superseded { at: Timestamp(ENDED) }]
        {
            assert!(!stopped(outcome.clone(), 100, 1), "a request is still under way");
            assert!(stopped(outcome.clone(), 100, 0));
            assert!(stopped(outcome, 600_000, 1), "it has had its time");
        }
    }

    #[test]
    fn a_canary_that_is_worse_never_gets_all() {
        let (app, view) = canary(1_000, true, counts(20, 50), counts(0, 450));
        let plan = plan_app(&app, &view);
        let failed = plan.actions.iter().any(|action| {
            matches!(action, Action::FailDeploy { deploy: 2, failure: Failure::Worse { canary: true, .. }, .. })
        });
        assert!(failed && shared(&plan).is_none(), "{plan:?}");
        let targets = &route(&plan).expect("a route").targets;
        let states: Vec<_> = targets.iter().map(|target| (target.release.0, target.state)).collect();
        assert_eq!(states, [(1, TargetState::Active), (2, TargetState::Draining)]);
        // When all fail alike, it is not the canary's fault.
        let (app, view) = canary(1_000, true, counts(20, 50), counts(180, 450));
        assert_eq!(shared(&plan_app(&app, &view)), Some((ReleaseNumber(2), 10)));
    }
}
