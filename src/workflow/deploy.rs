//! How an app gets from what it runs to what it should run, one look at a time: build → release phase → boot →
//! healthy → switch → drain → stop. The same for review apps, staging, production, promotions and rollbacks.
//!
//! The rule that it keeps: the live release is not touched before the new one answers healthy, and a process is
//! stopped only when no request is left on it. If anything fails before the switch, nothing of the live one changed.

use super::addons::{AddonStep, AddonsView, look_again, next_of_addons};
use super::keep::{is_coming, is_surplus, keep_running, watch_what_comes_back};
use super::once::{end_one_offs, farewell, is_done_postdeploy, is_of, one_offs, postdeploy, release_phase};
use super::sleep::{Rest, Use, rest};
use super::watch::{self, Share, WatchView};
use super::{Action, Others, Plan, ProcessState, ProcessView, TargetView};
use crate::clock::Timestamp;
use crate::domain::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a boot or a drain is looked at, while it lasts.
pub(super) const WATCH: Duration = Duration::from_millis(100);

/// All that is observed about one app.
#[derive(Debug, Clone)]
pub struct AppView {
    pub now: Timestamp,
    /// The verdict of the newest deploy's gate; `None` while there is none.
    pub gate: Option<Verdict>,
    /// What checks of others say of the newest deploy's commit, where its stage waits for them.
    pub others: Others,
    /// Whether GitHub was asked just now, or that is what it said a while ago.
    pub others_asked: bool,
    /// The build of the newest deploy's tree.
    pub build: Option<Build>,
    pub build_process_over: bool,
    /// What the newest deploy's code asks for, and what the app has.
    pub addons: AddonsView,
    /// Config vars that the newest deploy's release needs and nobody has set.
    pub missing: Vec<String>,
    /// The release of the newest deploy, with the formation as it is wanted now.
    pub next: Option<Release>,
    /// What has the traffic, with the formation as it is wanted now.
    pub live: Option<Release>,
    /// The newest deploy's slug declares `scripts.postdeploy` for such an app.
    pub postdeploy: bool,
    /// The live slug declares `scripts.pr-predestroy` for such an app.
    pub predestroy: bool,
    pub processes: Vec<ProcessView>,
    /// The route that the router has confirmed.
    pub route: Option<WantedRoute>,
    pub targets: BTreeMap<ProcessId, TargetView>,
    /// What the code of each release says about its web processes.
    pub web: BTreeMap<ReleaseNumber, WebSettings>,
    /// After how long without use the live release is put to sleep, if ever.
    pub sleep_after: Option<Duration>,
    /// `None` while the router does not know the app.
    pub used: Option<Use>,
    /// What the router counted of a release under watch; `None` while none is.
    pub measured: Option<WatchView>,
    /// as on Heroku, a web process binds `$PORT` within 60 s.
    pub boot_timeout: Duration,
    /// How long requests in flight on an old process are waited for.
    pub drain_limit: Duration,
}

pub fn plan_app(app: &App, view: &AppView) -> Plan {
    let mut plan = Plan::default();
    match app.wanted {
        Wanted::Gone => retire(app, view, &mut plan),
        Wanted::Held => {
            end_one_offs(app, view, &mut plan);
            stop_all(view, &mut plan);
            set_route(
                view,
                Some(WantedRoute {
                    release: None,
                    targets: Vec::new(),
                    notice: Some(Notice::Held),
                    hold: false,
                    asleep: false,
                    canary: None,
                }),
                &mut plan,
            );
        }
        Wanted::Running => run(app, view, &mut plan),
    }
    plan
}

fn run(app: &App, view: &AppView, plan: &mut Plan) {
    let pending = app.newest().filter(|deploy| deploy.outcome.is_none());
    let share = pending.and_then(|deploy| watch::share(app, deploy, view));
    let mut booting = pending.and_then(|deploy| advance(deploy, view, share.as_ref(), plan));
    if let (Some(share), Some(boot)) = (share, &mut booting) {
        match share {
            Share::Begins if boot.ready => {
                plan.act(Action::Watch { deploy: boot.deploy });
                plan.look_again_in(WATCH);
                boot.ready = false;
            }
            Share::Begins => {}
            Share::Of { percent, again_in } => {
                boot.ready = false;
                boot.percent = Some(percent);
                plan.look_again_in(again_in);
            }
            Share::Worse(_) => booting = None,
            Share::Over { percent } => boot.percent = Some(percent),
        }
    }
    watch::guard(app, view, plan);
    let ready = booting.is_some_and(|boot| boot.ready);
    let rest = rest(app, view);
    match rest {
        Rest::FallAsleep => plan.act(Action::Sleep),
        Rest::WakeUp => plan.act(Action::Wake),
        Rest::Awake | Rest::Asleep => {}
    }
    let asleep = matches!(rest, Rest::FallAsleep | Rest::Asleep) && !ready;
    if let Some(live) = &view.live
        && !asleep
        && booting.is_none_or(|boot| boot.release.number != live.number)
    {
        keep_running(app, live, view, plan);
    }
    let route = route(app, view, booting, ready, asleep);
    watch_what_comes_back(&route, view, plan);
    set_route(view, Some(route), plan);
    if let Some(boot) = booting.filter(|boot| boot.ready)
        && postdeploy(app, boot, view, plan)
    {
        plan.act(Action::GoLive { deploy: boot.deploy });
    }
    one_offs(app, view, plan);
    clear_away(app, view, booting, asleep, plan);
}

/// A release whose processes are coming up beside the live one.
#[derive(Clone, Copy)]
pub(super) struct Boot<'a> {
    pub deploy: u64,
    pub release: &'a Release,
    /// Every one of its web processes answers healthy.
    ready: bool,
    /// It has so many of a hundred requests already.
    percent: Option<u8>,
}

/// Takes the newest deploy one step on; what it returns is booting.
fn advance<'a>(deploy: &Deploy, view: &'a AppView, share: Option<&Share>, plan: &mut Plan) -> Option<Boot<'a>> {
    let fail = |failure: Failure, tail_of: Option<&ProcessView>| Action::FailDeploy {
        deploy: deploy.number,
        failure,
        tail_of: tail_of.map(|process| process.id.clone()),
    };
    let Some(release) = &view.next else {
        if let Some(begins) = deploy.not_before.filter(|begins| *begins > view.now) {
            plan.look_again_in(begins.since(view.now));
            return None;
        }
        if let Some(run) = deploy.gate {
            match &view.gate {
                None => return None,
                Some(verdict) if !verdict.is_green() => {
                    let failure = match verdict {
                        // No test ran; what is in the way, a build that fails above all, is in the deploy's way too.
                        Verdict::Errored { failure } => failure.clone(),
                        _ => Failure::Tests { run },
                    };
                    plan.act(fail(failure, None));
                    return None;
                }
                Some(_) => {}
            }
        }
        let awaited: &[String] = match &view.others {
            Others::Green => &[],
            Others::Waiting { contexts } => contexts,
            Others::Red { contexts } => {
                plan.act(fail(Failure::Checks { contexts: contexts.clone() }, None));
                return None;
            }
        };
        if deploy.waits_for != awaited || (view.others_asked && view.others != Others::Green) {
            plan.act(Action::AwaitChecks { deploy: deploy.number, contexts: awaited.to_vec() });
        }
        if view.others != Others::Green {
            return None;
        }
        match &deploy.cause {
            // What it had then is what it has now: nothing of an app's add-ons goes before the app.
            Cause::Rollback { .. } => make_release(deploy, view, plan),
            Cause::Promotion { .. } | Cause::Config { .. } | Cause::Retry { .. } => {
                after_addons(deploy, view, plan, &fail);
            }
            Cause::Push => match next_of_build(view.build.as_ref(), view.build_process_over, deploy.asked_at) {
                BuildStep::Ensure => plan.act(Action::EnsureBuild { commit: deploy.commit.clone() }),
                BuildStep::Collect(key) => plan.act(Action::CollectBuild { key }),
                BuildStep::Wait => {}
                BuildStep::Done => after_addons(deploy, view, plan, &fail),
                BuildStep::Failed(failure) => plan.act(fail(failure, None)),
            },
        }
        return None;
    };
    if !deploy.released {
        release_phase(deploy, release, view, plan, &fail);
        return None;
    }
    // An app that somebody scaled to nothing is as it should be; one that has nothing to scale is not.
    if !release.process_types.iter().any(|(kind, command)| is_scalable(kind) && !command.is_empty()) {
        plan.act(fail(Failure::NothingToRun, None));
        return None;
    }
    if let Some(Share::Worse(failure)) = share {
        plan.act(fail(failure.clone(), None));
        return None;
    }
    // A canary that does not answer for a moment is judged by what its visitors saw.
    let sharing = matches!(share, Some(Share::Of { .. }));
    let mut healthy = true;
    for (kind, ordinal) in release.processes().filter(|(kind, _)| *kind == "web") {
        let attempts = attempts(view, release.number, kind, ordinal);
        let Some(process) = attempts.last() else {
            plan.act(start(release, kind, ordinal, 1));
            plan.look_again_in(WATCH);
            healthy = false;
            continue;
        };
        match &process.state {
            ProcessState::Exited { ended, .. } => {
                // A machine that went away under it says nothing about the code.
                let blameless = matches!(ended, Ended::Lost);
                if blameless && process.attempt < 3 {
                    plan.act(start(release, kind, ordinal, process.attempt + 1));
                    plan.look_again_in(WATCH);
                    healthy = false;
                    continue;
                }
                let failure = Failure::Crashed { process: process.name(), ended: ended.clone(), tail: Vec::new() };
                plan.act(fail(failure, Some(process)));
                return None;
            }
            ProcessState::Starting | ProcessState::Running { .. } | ProcessState::Stopping { .. } => {
                let target = view.targets.get(&process.id);
                if target.is_some_and(|target| target.healthy) && !process.is_stopping() {
                    continue;
                }
                healthy = false;
                let booted_for = match &process.state {
                    ProcessState::Running { since } => view.now.since(*since),
                    _ => Duration::ZERO,
                };
                if booted_for >= view.boot_timeout && !sharing {
                    let failure = Failure::NotHealthy {
                        process: process.name(),
                        seconds: view.boot_timeout.as_secs(),
                        seen: target.map_or_else(String::new, |target| target.seen.clone()),
                        tail: Vec::new(),
                    };
                    plan.act(fail(failure, Some(process)));
                    return None;
                }
                plan.look_again_in(WATCH);
            }
        }
    }
    Some(Boot { deploy: deploy.number, release, ready: healthy, percent: None })
}

/// The release has the config vars of the app's add-ons, so they come first.
fn after_addons(
    deploy: &Deploy,
    view: &AppView,
    plan: &mut Plan,
    fail: &dyn Fn(Failure, Option<&ProcessView>) -> Action,
) {
    match next_of_addons(&view.addons.wanted, view.addons.have.iter(), deploy.asked_at) {
        AddonStep::Ready => make_release(deploy, view, plan),
        AddonStep::Ensure => {
            plan.act(Action::EnsureAddons { deploy: deploy.number });
            look_again(plan);
        }
        AddonStep::Failed(failure) => plan.act(fail(failure, None)),
    }
}

/// The release of a deploy whose slug is there: once its config is whole.
fn make_release(deploy: &Deploy, view: &AppView, plan: &mut Plan) {
    if view.missing.is_empty() {
        plan.act(Action::MakeRelease { deploy: deploy.number });
    } else if deploy.missing != view.missing {
        plan.act(Action::AwaitConfig { deploy: deploy.number, names: view.missing.clone() });
    }
}

/// What a build that something waits for needs next.
pub(super) enum BuildStep {
    Ensure,
    Collect(BuildKey),
    Wait,
    Done,
    Failed(Failure),
}

pub(super) fn next_of_build(build: Option<&Build>, process_over: bool, asked_at: Timestamp) -> BuildStep {
    match build {
        None => BuildStep::Ensure,
        Some(build) => match &build.state {
            BuildState::Running if process_over => BuildStep::Collect(build.key.clone()),
            BuildState::Running => BuildStep::Wait,
            BuildState::Succeeded { .. } => BuildStep::Done,
            // Whoever asks after a failure was known wants it tried again.
            BuildState::Failed { at, .. } if asked_at > *at => BuildStep::Ensure,
            BuildState::Overtaken { .. } => BuildStep::Ensure,
            BuildState::Failed { failure, .. } => BuildStep::Failed(failure.clone()),
        },
    }
}

pub(super) fn start(release: &Release, kind: &str, ordinal: u16, attempt: u32) -> Action {
    Action::StartProcess { release: release.number, kind: kind.to_owned(), ordinal, attempt, crashes: 0 }
}

pub(super) fn attempts<'a>(
    view: &'a AppView,
    release: ReleaseNumber,
    kind: &str,
    ordinal: u16,
) -> Vec<&'a ProcessView> {
    let mut found: Vec<&ProcessView> = view
        .processes
        .iter()
        .filter(|process| process.release == Some(release) && process.kind == kind && process.ordinal == ordinal)
        .collect();
    found.sort_by_key(|process| process.attempt);
    found
}

/// Who may get requests now. `switch` says that the booting release takes over.
fn route(app: &App, view: &AppView, booting: Option<Boot<'_>>, switch: bool, asleep: bool) -> WantedRoute {
    let booting_number = booting.map(|boot| boot.release.number);
    let mut targets = Vec::new();
    for process in view.processes.iter().filter(|process| process.kind == "web" && !process.is_over()) {
        let Some(release) = process.release else { continue };
        let known = view.targets.get(&process.id);
        let healthy = known.is_some_and(|target| target.healthy);
        let leaves = process.is_stopping() || is_surplus(process, view);
        let state = if leaves {
            if !known.is_some_and(|target| target.state != TargetState::Warming) {
                continue;
            }
            TargetState::Draining
        } else if Some(release) == booting_number {
            let shares = booting.is_some_and(|boot| boot.percent.is_some());
            if switch || shares { TargetState::Active } else { TargetState::Warming }
        } else if Some(release) == app.live && !switch && !asleep {
            match known.map(|target| target.state) {
                Some(TargetState::Active) => TargetState::Active,
                _ if healthy => TargetState::Active,
                _ => TargetState::Warming,
            }
        } else if known.is_some_and(|target| target.state != TargetState::Warming) {
            TargetState::Draining
        } else {
            continue;
        };
        let checks = view.web.get(&release).map(Checks::of).unwrap_or_default();
        let drains = state == TargetState::Draining;
        let drains_since = drains.then(|| drains_since(process, view).unwrap_or(view.now));
        let (process, name) = (process.id.clone(), process.name());
        targets.push(WantedTarget { process, name, release, state, drains_since, checks });
    }
    targets.sort_by(|left, right| left.process.cmp(&right.process));
    let serving = if switch { booting_number } else { app.live };
    let active = targets.iter().any(|target| target.state == TargetState::Active);
    let coming = booting.is_some() || view.live.as_ref().is_some_and(|live| is_coming(app, live, view));
    let notice = match active {
        _ if app.maintenance => Some(Notice::Maintenance),
        true => None,
        false if asleep => Some(Notice::Asleep),
        false => Some(notice(app, view)),
    };
    let canary =
        booting.filter(|_| !switch).and_then(|boot| boot.percent.map(|percent| (boot.release.number, percent)));
    let hold = !active && !asleep && coming && !app.maintenance;
    WantedRoute { release: serving, notice, targets, hold, asleep, canary }
}

fn notice(app: &App, view: &AppView) -> Notice {
    match app.newest() {
        Some(deploy) if deploy.outcome.is_none() => Notice::Building,
        Some(deploy) if matches!(deploy.outcome, Some(Outcome::Failed { .. })) && app.live.is_none() => Notice::Failed,
        Some(_) if view.live.as_ref().is_some_and(|live| !live.formation.contains_key("web")) => Notice::NoWeb,
        Some(_) => Notice::Crashed,
        None => Notice::Building,
    }
}

fn set_route(view: &AppView, wanted: Option<WantedRoute>, plan: &mut Plan) {
    if view.route != wanted {
        plan.act(Action::SetRoute { route: wanted });
        plan.look_again_in(WATCH);
    }
}

/// Stops what belongs to no release that counts, once it has drained, and forgets what has ended.
fn clear_away(app: &App, view: &AppView, booting: Option<Boot<'_>>, asleep: bool, plan: &mut Plan) {
    let pending = app.newest().filter(|deploy| deploy.outcome.is_none());
    for process in &view.processes {
        let of_live = process.release.is_some() && process.release == app.live;
        let of_pending = pending.is_some_and(|deploy| deploy.release.is_some() && deploy.release == process.release);
        match &process.state {
            ProcessState::Exited { .. } => {
                let in_use = if process.kind == "run" {
                    app.open_one_offs().any(|one_off| is_of(process, one_off))
                } else if !is_scalable(&process.kind) {
                    of_pending || (is_done_postdeploy(process) && !app.postdeploy_done)
                } else {
                    // The newest attempt is what the restart's backoff is counted from.
                    (of_live || of_pending)
                        && attempts(view, process.release.unwrap_or(ReleaseNumber(0)), &process.kind, process.ordinal)
                            .last()
                            .is_some_and(|newest| newest.id == process.id)
                };
                if !in_use {
                    plan.act(Action::Discard { process: process.id.clone() });
                }
            }
            ProcessState::Stopping { .. } => plan.look_again_in(WATCH),
            // A migration is not cut off because something newer is wanted; its time limit ends it.
            ProcessState::Starting | ProcessState::Running { .. } if !is_scalable(&process.kind) => {}
            ProcessState::Starting | ProcessState::Running { .. } => {
                let surplus = is_surplus(process, view);
                let stays = of_pending || (of_live && !asleep && booting.is_none_or(|boot| !boot.ready));
                if stays && !surplus {
                    continue;
                }
                if of_live && !asleep && !surplus {
                    // The switch is planned in this very look; the drain begins with the next one.
                    plan.look_again_in(WATCH);
                    continue;
                }
                let drained = match view.targets.get(&process.id) {
                    None => true,
                    Some(target) if target.state == TargetState::Draining => target.in_flight == 0,
                    Some(target) => target.state == TargetState::Warming,
                };
                let waited = drains_since(process, view).is_some_and(|at| view.now.since(at) >= view.drain_limit);
                if drained || waited {
                    plan.act(Action::Stop { process: process.id.clone() });
                }
                plan.look_again_in(WATCH);
            }
        }
    }
}

/// Since when a process gets nothing new, if the router has confirmed that.
fn drains_since(process: &ProcessView, view: &AppView) -> Option<Timestamp> {
    let targets = view.route.iter().flat_map(|route| &route.targets);
    targets.filter(|target| target.process == process.id).find_map(|target| target.drains_since)
}

fn stop_all(view: &AppView, plan: &mut Plan) {
    for process in &view.processes {
        match process.state {
            ProcessState::Exited { .. } => plan.act(Action::Discard { process: process.id.clone() }),
            ProcessState::Stopping { .. } => plan.look_again_in(WATCH),
            ProcessState::Starting | ProcessState::Running { .. } => {
                plan.act(Action::Stop { process: process.id.clone() });
                plan.look_again_in(WATCH);
            }
        }
    }
}

fn retire(app: &App, view: &AppView, plan: &mut Plan) {
    if !farewell(app, view, plan) {
        return;
    }
    set_route(view, None, plan);
    stop_all(view, plan);
    if view.processes.is_empty() && view.route.is_none() {
        if view.addons.have.is_empty() {
            plan.act(Action::Forget);
        } else {
            plan.act(Action::DropAddons);
            look_again(plan);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An app of one live release whose only web process is in this state.
    pub fn view_of_a_restart(now: i64, state: TargetState, healthy: bool) -> (App, AppView) {
        let name: AppName = "hello-staging".parse().expect("an app's name");
        let number = ReleaseNumber(1);
        let commit: Sha = "a".repeat(40).parse().expect("a SHA");
        let new = Deploy::new(commit.clone(), "main".to_owned(), Cause::Push, None, Timestamp(0));
        let outcome = Some(Outcome::Live { at: Timestamp(0) });
        let deploy = Deploy { number: 1, release: Some(number), released: true, outcome, ..new };
        let release = Release {
            app: name.clone(),
            number,
            deploy: 1,
            slug: "b".repeat(64).parse().expect("a digest"),
            commit,
            branch: "main".to_owned(),
            cause: Cause::Push,
            by: None,
            created_at: Timestamp(0),
            config: Sealed(String::new()),
            process_types: BTreeMap::from([("web".to_owned(), "serve".to_owned())]),
            formation: BTreeMap::from([("web".to_owned(), Scale { quantity: 1, size: "basic".to_owned() })]),
        };
        let id = release.process_id("web", 1, 2);
        let target = WantedTarget {
            process: id.clone(),
            name: "web.1".to_owned(),
            release: number,
            state,
            drains_since: (state == TargetState::Draining).then_some(Timestamp(0)),
            checks: Checks::default(),
        };
        let hold = state == TargetState::Warming && now < 60_000;
        let notice = (state != TargetState::Active).then_some(Notice::Crashed);
        let new = App::new(name, RepositoryId(1), AppKey::from(Stage::Staging), Timestamp(0));
        let app = App { id: "1".to_owned(), deploys: vec![deploy], live: Some(number), last_release: 1, ..new };
        let view = AppView {
            now: Timestamp(now),
            gate: None,
            others: Others::Green,
            others_asked: false,
            build: None,
            build_process_over: false,
            addons: AddonsView::default(),
            missing: Vec::new(),
            next: None,
            live: Some(release),
            postdeploy: false,
            predestroy: false,
            processes: vec![ProcessView {
                id: id.clone(),
                release: Some(number),
                kind: "web".to_owned(),
                ordinal: 1,
                attempt: 2,
                crashes: 1,
                size: None,
                state: ProcessState::Running { since: Timestamp(0) },
            }],
            route: Some(WantedRoute {
                release: Some(number),
                targets: vec![target],
                notice,
                hold,
                asleep: false,
                canary: None,
            }),
            web: BTreeMap::new(),
            sleep_after: None,
            used: None,
            measured: None,
            targets: BTreeMap::from([(id, TargetView { state, healthy, seen: String::new(), in_flight: 0 })]),
            boot_timeout: Duration::from_secs(60),
            drain_limit: Duration::from_secs(30),
        };
        (app, view)
    }

    #[test]
    fn a_process_that_comes_back_is_watched_until_it_answers() {
        for (now, state, healthy, expected) in [
            (1_000, TargetState::Active, true, None),
            (1_000, TargetState::Warming, false, Some(WATCH)),
            (61_000, TargetState::Warming, false, Some(super::super::keep::WATCH_LATE)),
        ] {
            let (app, view) = view_of_a_restart(now, state, healthy);
            assert_eq!(plan_app(&app, &view), Plan { actions: Vec::new(), again_in: expected }, "{state:?} at {now}");
        }
        let (app, view) = view_of_a_restart(1_000, TargetState::Warming, true);
        let plan = plan_app(&app, &view);
        let [Action::SetRoute { route: Some(route) }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert_eq!(route.targets[0].state, TargetState::Active);
    }

    #[test]
    fn a_web_process_that_is_started_anew_goes_when_the_one_in_its_place_answers_and_others_go_first() {
        let (mut app, mut view) = view_of_a_restart(1_000, TargetState::Active, true);
        app.restart_at = Some(Timestamp(500));
        app.restart_only = Some("worker".to_owned());
        assert_eq!(plan_app(&app, &view).actions, Vec::new(), "another type is meant");
        app.restart_only = Some("web.1".to_owned());
        let plan = plan_app(&app, &view);
        let [Action::StartProcess { attempt: 3, crashes: 0, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        let release = view.live.clone().expect("a release");
        let (old, new) = (release.process_id("web", 1, 2), release.process_id("web", 1, 3));
        let known = view.processes[0].clone();
        let state = ProcessState::Running { since: Timestamp(900) };
        view.processes.push(ProcessView { id: new.clone(), attempt: 3, state, ..known });
        let answers = TargetView { state: TargetState::Warming, healthy: true, seen: String::new(), in_flight: 0 };
        view.targets.insert(new, answers);
        let plan = plan_app(&app, &view);
        let switch = plan.actions.iter().find_map(|action| match action {
            Action::SetRoute { route: Some(route) } => Some(route.clone()),
            _ => None,
        });
        let states: Vec<TargetState> = switch.expect("a switch").targets.iter().map(|target| target.state).collect();
        assert_eq!(states, [TargetState::Draining, TargetState::Active]);
        let stops = |view: &AppView| {
            let stop = Action::Stop { process: old.clone() };
            plan_app(&app, view).actions.contains(&stop)
        };
        let draining =
            |in_flight| TargetView { state: TargetState::Draining, healthy: true, seen: String::new(), in_flight };
        view.targets.insert(old.clone(), draining(1));
        assert!(!stops(&view), "a request is on it");
        view.targets.insert(old.clone(), draining(0));
        assert!(stops(&view));
        let (mut app, mut view) = view_of_a_restart(1_000, TargetState::Active, true);
        app.restart_at = Some(Timestamp(500));
        view.live.as_mut().expect("a release").process_types.insert("worker".to_owned(), "work".to_owned());
        let scale = Scale { quantity: 1, size: "basic".to_owned() };
        view.live.as_mut().expect("a release").formation.insert("worker".to_owned(), scale);
        let mut worker = view.processes[0].clone();
        worker.kind = "worker".to_owned();
        worker.id = release.process_id("worker", 1, 2);
        view.processes.push(worker.clone());
        assert!(plan_app(&app, &view).actions.contains(&Action::Stop { process: worker.id }));
    }

    #[test]
    fn what_a_slow_restart_replaces_has_its_time_to_drain_from_then_on() {
        let (mut app, mut view) = view_of_a_restart(100_000, TargetState::Active, true);
        app.restart_at = Some(Timestamp(500));
        let old = view.processes[0].id.clone();
        let new = view.live.as_ref().expect("a release").process_id("web", 1, 3);
        let state = ProcessState::Running { since: Timestamp(600) };
        let known = view.processes[0].clone();
        view.processes.push(ProcessView { id: new.clone(), attempt: 3, state, ..known });
        let answers = TargetView { state: TargetState::Warming, healthy: true, seen: String::new(), in_flight: 0 };
        view.targets.insert(new, answers);
        view.targets.get_mut(&old).expect("its target").in_flight = 1;
        let plan = plan_app(&app, &view);
        let [Action::SetRoute { route }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        view.route.clone_from(route);
        view.targets.values_mut().for_each(|target| target.state = TargetState::Active);
        view.targets.get_mut(&old).expect("its target").state = TargetState::Draining;
        for (now, expected) in [(129_999, Vec::new()), (130_000, vec![Action::Stop { process: old.clone() }])] {
            view.now = Timestamp(now);
            assert_eq!(plan_app(&app, &view).actions, expected, "at {now}");
        }
    }

    #[test]
    fn a_postdeploy_that_succeeded_is_known_until_it_is_written_down_although_its_deploy_was_overtaken() {
        let (mut app, mut view) = view_of_a_restart(2_000, TargetState::Active, true);
        (app.live, view.live, view.next) = (None, None, None);
        app.deploys[0].outcome = Some(Outcome::Superseded { at: Timestamp(1_000) });
        app.deploys.push(Deploy { number: 2, release: None, outcome: None, ..app.deploys[0].clone() });
        let id: ProcessId = "hello-staging.v1.postdeploy.1.a1".parse().expect("an id");
        let ended = Ended::Exited { code: 0 };
        let state = ProcessState::Exited { ended, started_at: Timestamp(500), at: Timestamp(1_500) };
        view.processes[0] =
            ProcessView { id: id.clone(), kind: "postdeploy".to_owned(), state, ..view.processes[0].clone() };
        let forgets = |app: &App| plan_app(app, &view).actions.contains(&Action::Discard { process: id.clone() });
        assert!(!forgets(&app));
        app.postdeploy_done = true;
        assert!(forgets(&app));
    }

    #[test]
    fn maintenance_is_told_whatever_runs() {
        let (mut app, view) = view_of_a_restart(1_000, TargetState::Active, true);
        app.maintenance = true;
        let plan = plan_app(&app, &view);
        let [Action::SetRoute { route: Some(route) }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert_eq!((route.notice, route.targets[0].state), (Some(Notice::Maintenance), TargetState::Active));
        let (mut app, view) = view_of_a_restart(1_000, TargetState::Warming, false);
        app.maintenance = true;
        let plan = plan_app(&app, &view);
        let route = plan.actions.iter().find_map(|action| match action {
            Action::SetRoute { route: Some(route) } => Some(route),
            _ => None,
        });
        let route = route.expect("another route");
        assert!(!route.hold && route.notice == Some(Notice::Maintenance), "nobody waits for it: {route:?}");
    }
}
