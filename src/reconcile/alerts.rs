//! Alerts: what was seen of each app is held against its rules, and what follows is told to the operator's webhook.
//!
//! A decision and what is to be told of it are one transaction; a post leaves the record only after somebody took it. A
//! kill between the two posts it once more, with the same number. Posts of one app go out in order, one at a time.

use super::monitor::Seen;
use super::observe::{ended, label};
use super::{Next, Trouble, World};
use crate::clock::Timestamp;
use crate::domain::*;
use crate::outside;
use crate::platform::State;
use crate::router::{Code, Histogram, Resolution, TargetState};
use crate::store::{StoreError, queue};
use crate::workflow::{AlertFacts, STABLE, crashes_after, look_at_alerts};
use serde_json::{Value, json};
use std::time::Duration;
use tracing::{error, info, warn};

/// Over how long rates are taken.
const WINDOW: Duration = Duration::from_secs(300);
/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A post that was tried so often, for about an hour and a half, is given up.
const ATTEMPTS: u32 = 25;

/// One look at every app.
pub(super) async fn look(world: &World, seen: &Seen) -> Result<(), Trouble> {
    for app in world.store.apps()? {
        look_at(world, &app, seen).await?;
    }
    Ok(())
}

async fn look_at(world: &World, app: &App, seen: &Seen) -> Result<(), Trouble> {
    let before = world.store.alerts(&app.name)?.filter(|alerts| alerts.id == app.id);
    let rules = rules(world, app)?;
    if rules == AlertRules::default() && before.is_none() {
        return Ok(());
    }
    let facts = facts(world, app, seen).await?;
    let before = before.unwrap_or_else(|| Alerts::new(app.name.clone(), app.id.clone()));
    let (after, told) = look_at_alerts(&rules, &before, &facts);
    if after == before && told.is_empty() {
        return Ok(());
    }
    let Some(repository) = world.store.repository(app.repository)? else { return Ok(()) };
    let is_told = world.config.alerts.webhook_of(&repository.full_name()).is_some();
    let (name, id, now) = (app.name.clone(), app.id.clone(), facts.now);
    world
        .commit(move |tx| {
            // The app may be gone, and what was waiting may have been told meanwhile.
            if tx.app(&name)?.is_none_or(|app| app.id != id) {
                return Ok(());
            }
            let current = tx.alerts(&name)?.filter(|alerts| alerts.id == id);
            let current = current.unwrap_or_else(|| Alerts::new(name.clone(), id));
            let (mut after, told) = look_at_alerts(&rules, &current, &facts);
            for (kind, firing, reading) in told {
                match &reading {
                    Some(Reading { value, limit, .. }) if firing => {
                        warn!(app = %name, %kind, value, limit, "{name}: {kind} fires");
                    }
                    Some(_) => info!(app = %name, %kind, "{name}: {kind} is over"),
                    None => info!(app = %name, %kind, "{name}: {kind} is watched no more"),
                }
                if is_told {
                    let number = tx.next_number("alert post")?;
                    after.push(AlertPost { number, kind, firing, reading, at: now });
                    queue::enqueue(tx, &key(&name), now)?;
                }
            }
            tx.put_alerts(&after)
        })
        .await?;
    if is_told {
        world.wake.notify_waiters();
    }
    Ok(())
}

fn key(app: &AppName) -> String {
    format!("alert:{app}")
}

fn release_of(world: &World, app: &App) -> Result<Option<Release>, StoreError> {
    app.live.map_or(Ok(None), |number| world.store.release(&app.name, number))
}

/// The rules that hold for an app: those of the code that serves, over the operator's. Nothing is expected of an app
/// that is not to run or sleeps, nor of web processes where there are to be none.
pub fn rules(world: &World, app: &App) -> Result<AlertRules, StoreError> {
    if app.wanted != Wanted::Running || app.asleep_since.is_some() {
        return Ok(AlertRules::default());
    }
    let Some(release) = release_of(world, app)? else { return Ok(AlertRules::default()) };
    let settings = world.store.slug(&release.slug)?.map(|slug| slug.settings().alerts).unwrap_or_default();
    let mut rules = alert_rules(app.stage, &world.config.alerts.settings(), &settings);
    rules.no_healthy_process = rules.no_healthy_process.filter(|_| app.formation_of(&release).contains_key("web"));
    Ok(rules)
}

async fn facts(world: &World, app: &App, seen: &Seen) -> Result<AlertFacts, Trouble> {
    let now = seen.at;
    let mut facts = AlertFacts { now, ..AlertFacts::default() };
    let Some(release) = release_of(world, app)?.filter(|_| app.asleep_since.is_none()) else { return Ok(facts) };
    let router = seen.router.as_ref();
    facts.unanswered = router.is_none();
    let status = router.and_then(|router| router.apps.get(&app.name));
    // Who has no visitors costs no question.
    let visited = status.and_then(|status| status.last_request).is_some_and(|last| now.since(last) < WINDOW);
    if visited {
        let numbers = world.router.numbers(&app.name, Resolution::Minute).await?;
        let mut latency = Histogram::default();
        for slot in numbers.app.iter().filter(|slot| slot.at >= now - WINDOW) {
            // Who is told that the app is under maintenance got what the operator wants.
            let told = slot.codes.get(&Code::H80).copied().unwrap_or_default();
            facts.requests += slot.requests.saturating_sub(told);
            facts.errors += slot.classes[4].saturating_sub(told);
            latency.merge(&slot.latency);
        }
        let p95 = latency.percentile(950).unwrap_or_default();
        facts.p95_millis = u64::try_from(p95.as_millis()).unwrap_or(u64::MAX);
    }
    (facts.crashes, facts.process) = crashes(app, &release, seen);
    let mut targets = router.iter().flat_map(|router| router.targets.values());
    let serves = targets.any(|target| target.app == app.name && target.state == TargetState::Active && target.healthy);
    facts.down = !serves;
    Ok(facts)
}

/// The most crashes in a row of a process of the release, as its newest attempt tells.
fn crashes(app: &App, release: &Release, seen: &Seen) -> (u32, Option<String>) {
    let mut newest: std::collections::BTreeMap<&str, (u32, u32)> = std::collections::BTreeMap::new();
    for status in &seen.processes {
        let text = |name: &str| status.labels.get(name).map(String::as_str).unwrap_or_default();
        let of_release = text(label::APP) == app.name.as_str() && text(label::RELEASE) == release.number.to_string();
        if !of_release || !is_scalable(text(label::TYPE)) {
            continue;
        }
        let crashes: u32 = text(label::CRASHES).parse().unwrap_or(0);
        let attempt: u32 = text(label::ATTEMPT).parse().unwrap_or(1);
        let crashes = match &status.state {
            State::Running { since } if seen.at.since(*since) >= STABLE => 0,
            State::Exited { code, signal, why, at } if seen.is_crash(app, status) => {
                crashes_after(app, crashes, &ended(*code, *signal, why), status.started_at, *at, seen.at)
            }
            _ => crashes,
        };
        let entry = newest.entry(&status.name).or_default();
        if attempt >= entry.0 {
            *entry = (attempt, crashes);
        }
    }
    let worst = newest.into_iter().max_by_key(|(_, (_, crashes))| *crashes).filter(|(_, (_, crashes))| *crashes > 0);
    worst.map_or((0, None), |(name, (_, crashes))| (crashes, Some(name.to_owned())))
}

/// Tells the oldest thing that is to be told of an app.
pub(super) async fn post(world: &World, app: &str, attempts: u32) -> Result<Next, Trouble> {
    let name: AppName = app.parse().map_err(Trouble::bug)?;
    let Some(alerts) = world.store.alerts(&name)? else { return Ok(Next::Done) };
    let Some(post) = alerts.posts.first().cloned() else { return Ok(Next::Done) };
    let repository = match world.store.app(&name)? {
        Some(app) => world.store.repository(app.repository)?,
        None => None,
    };
    let repository = repository.map(|repository| repository.full_name()).unwrap_or_default();
    let (number, mut given_up) = (post.number, false);
    // Without a webhook (any more) there is nobody to tell.
    if let Some(url) = world.config.alerts.webhook_of(&repository) {
        let body = body(world, &name, &post);
        outside::point("alert webhook").await;
        let request = world.http.post(url.expose()).timeout(PATIENCE);
        let sent = request.header("idempotency-key", format!("{}-{number}", alerts.id)).json(&body).send().await;
        outside::point("alert webhook done").await;
        // The address holds a secret, and an error names it.
        let refused = match sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the webhook for alerts answered {}", answer.status())),
            Err(error) => Some(format!("the webhook for alerts was not reached: {}", error.without_url())),
        };
        match refused {
            None => {}
            Some(why) if attempts + 1 < ATTEMPTS => return Err(Trouble::retry(why)),
            Some(why) => {
                given_up = true;
                error!(app = %name, number, "an alert was given up: {why}");
            }
        }
    }
    let empty = world
        .commit(move |tx| {
            let Some(mut alerts) = tx.alerts(&name)? else { return Ok(true) };
            alerts.posts.retain(|post| post.number != number);
            alerts.lost += u64::from(given_up);
            tx.put_alerts(&alerts)?;
            Ok::<bool, StoreError>(alerts.posts.is_empty())
        })
        .await?;
    Ok(if empty { Next::Done } else { Next::Again { after: Duration::ZERO } })
}

/// What Slack, Mattermost, Rocket.Chat and Discord (at `/slack`) take.
fn body(world: &World, app: &AppName, post: &AlertPost) -> Value {
    let page = world.config.page(&format!("/apps/{app}"));
    let view = view(app, post.kind, Some(post.at), post.reading.as_ref());
    let text = |form: &str| {
        let context = json!({ "form": form, "firing": post.firing, "alert": view, "page": page });
        world.texts.line("alert.txt", context)
    };
    json!({
        "text": text("plain"),
        "blocks": [
            { "type": "section", "text": { "type": "mrkdwn", "text": text("slack") } },
            { "type": "context", "elements": [{ "type": "mrkdwn", "text": text("context") }] },
        ],
    })
}

/// An alert as pages and templates show it.
pub fn view(app: &AppName, kind: AlertKind, since: Option<Timestamp>, reading: Option<&Reading>) -> Value {
    json!({ "app": app, "kind": kind, "since": since.map(Timestamp::rfc3339), "reading": reading })
}
