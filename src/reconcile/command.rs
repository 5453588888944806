//! What a person asks for outside of a pull request, on a page or in a terminal: the same decisions as a comment's,
//! written in one transaction. Nothing is done here; the loop makes it true.

use super::apply::{app_at, apply, enqueue};
use super::deliver::{fresh_for, promotable};
use super::{Trouble, World, observe, policy, split};
use crate::domain::*;
use crate::store::{StoreError, queue};
use crate::workflow::{
    Change, PromotionWish, Snapshot, decide, destroy_app as decide_destruction, operate, promote as decide_promotion,
    retry_release as decide_retry, roll_back as decide_rollback, targets,
};
use tracing::info;

/// A deploy that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    pub app: AppName,
    pub deploy: u64,
    /// What whoever ordered it must know.
    pub notes: Vec<Note>,
}

/// Puts staging's live slug into production. Who may use the machine is not asked for a second person; the audit log
/// says that it was the operator.
pub async fn promote(
    world: &World,
    repository: &Repository,
    wish: &PromotionWish<'_>,
    by: &str,
) -> Result<Result<Ordered, Refusal>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", repository.id)).await;
    let mut snapshot = snapshot(world, repository)?;
    let key = AppKey::new(Stage::Production, wish.to);
    if let Some(known) = promotable(world, &snapshot, key, by, None).await? {
        snapshot.promotable.insert(key.part, known);
    }
    let decided = decide_promotion(wish, by, &snapshot);
    order(world, repository, key, OrderKind::Promote, by, decided).await
}

/// Why a promotion to each of these apps of production would be refused now, if it would.
pub fn promotions_refused(
    world: &World,
    repository: &Repository,
    to: &[AppKey],
) -> Result<Vec<Option<Refusal>>, Trouble> {
    let serving = observe::serving_of(world, repository)?;
    let wish = |key: &AppKey| PromotionWish { to: key.part, ..PromotionWish::default() };
    Ok(to.iter().map(|key| decide_promotion(&wish(key), "", &serving).err()).collect())
}

/// Makes an earlier release of an app its newest one; the one before the live one unless named.
pub async fn roll_back(
    world: &World,
    app: &App,
    to: Option<ReleaseNumber>,
    by: &str,
) -> Result<Result<Ordered, Refusal>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", app.repository)).await;
    let repository = repository_of(world, app.repository)?;
    let mut snapshot = snapshot(world, &repository)?;
    snapshot.gone = observe::gone(world, &snapshot.releases);
    let kind = OrderKind::Rollback { app: app.name.clone(), to };
    // Between the page and the click the app may have gone, or been held.
    let decided = decide_rollback(app.key(), to, by, &snapshot);
    order(world, &repository, app.key(), kind, by, decided).await
}

/// Tests a run's commit again, as the Re-run button on GitHub does.
pub async fn rerun(
    world: &World,
    run: &TestRun,
    by: &str,
    only_failed: bool,
) -> Result<Result<RunNumber, Refusal>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", run.repository)).await;
    let repository = repository_of(world, run.repository)?;
    let event =
        Event::RerunAsked { commit: run.commit.clone(), run: Some(run.number), by: Some(by.to_owned()), only_failed };
    let pull = match run.pull {
        Some(number) => world.store.pull(repository.id, number)?,
        None => None,
    };
    let changes = decide(&event, &Snapshot { pull, ..snapshot(world, &repository)? });
    if changes.is_empty() {
        return Ok(Err(Refusal::NothingToTest));
    }
    let (fresh, now, commit) = (fresh_for(world, &changes)?, world.now(), run.commit.clone());
    let number = world
        .commit(move |tx| {
            apply(tx, &repository, &changes, fresh, now)?;
            let made = tx.runs_of(repository.id)?.into_iter().filter(|run| run.commit == commit);
            Ok(made.map(|run| run.number).max())
        })
        .await?
        .ok_or_else(|| Trouble::bug("a run that was just made is not there"))?;
    info!(run = %number, "{by} asked for test run {number}");
    world.wake.notify_waiters();
    Ok(Ok(number))
}

/// Does again what a node of a run did: the same files in the same order and batches, in the same environment. The new
/// run is told to nobody else. `None` where that node did nothing.
pub async fn repeat(world: &World, run: &TestRun, node: u16, by: &str) -> Result<Option<RunNumber>, Trouble> {
    if node >= run.nodes || run.tree.is_none() || run.repeats.is_some() {
        return Ok(None);
    }
    let dealt = match run.split {
        Some(_) => match split::part_of(world, run.number, node).await? {
            Some(part) => Some(part),
            None => return Ok(None),
        },
        None => None,
    };
    let (run, now) = (run.clone(), world.now());
    let number = world
        .commit(move |tx| {
            let number = RunNumber(tx.next_number("run")?);
            let ordinal = tx.next_number(&format!("run of {}", run.repository))?;
            let split = dealt
                .as_ref()
                .map(|(_, items)| SplitSummary { planned: items.len() as u64, ..SplitSummary::default() });
            if let Some((plan, items)) = &dealt {
                split::put_plan(tx, number, plan, items)?;
            }
            tx.put_run(&TestRun {
                number,
                ordinal,
                pull: None,
                created_at: now,
                started_at: Some(now),
                nodes: 1,
                results: std::collections::BTreeMap::new(),
                cancelled: None,
                verdict: None,
                finished_at: None,
                split,
                only_failed_of: None,
                repeats: Some(Repeated { run: run.number, node, nodes: run.nodes }),
                ..run.clone()
            })?;
            enqueue(tx, &Subject::Run(number), now)?;
            Ok::<RunNumber, StoreError>(number)
        })
        .await?;
    info!(run = %number, "{by} asked for a part of a test run to be done again, as run {number}");
    world.wake.notify_waiters();
    Ok(Some(number))
}

/// Ends one run. `false` when it was over or being ended already.
pub async fn cancel(world: &World, number: RunNumber, by: &str) -> Result<bool, Trouble> {
    let (login, now) = (by.to_owned(), world.now());
    let cancelled = world
        .commit(move |tx| {
            let Some(mut run) = tx.run(number)? else { return Ok(false) };
            if run.verdict.is_some() || run.cancelled.is_some() {
                return Ok(false);
            }
            run.cancelled = Some(Cancelled::By { login });
            tx.put_run(&run)?;
            enqueue(tx, &Subject::Run(number), now)?;
            Ok::<bool, StoreError>(true)
        })
        .await?;
    world.wake.notify_waiters();
    Ok(cancelled)
}

/// Runs the newest deploy's slug once more, where that deploy failed after it was built.
pub async fn retry_release(world: &World, app: &App, by: &str) -> Result<Result<Ordered, Refusal>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", app.repository)).await;
    let repository = repository_of(world, app.repository)?;
    let decided = decide_retry(app.key(), by, &snapshot(world, &repository)?).map(|change| (change, Vec::new()));
    order(world, &repository, app.key(), OrderKind::RetryRelease { app: app.name.clone() }, by, decided).await
}

/// Takes an app away, with its add-ons and all that they hold.
pub async fn destroy(world: &World, app: &App, by: &str) -> Result<Result<(), Refusal>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", app.repository)).await;
    let repository = repository_of(world, app.repository)?;
    let pull = match app.pull() {
        Some(number) => world.store.pull(repository.id, number)?,
        None => None,
    };
    let decided = decide_destruction(app.key(), pull.as_ref(), by, &snapshot(world, &repository)?);
    let now = world.now();
    let mut record = OperatorOrder {
        number: 0,
        repository: repository.id,
        what: OrderKind::Destroy { app: app.name.clone() },
        by: by.to_owned(),
        given_at: now,
        answer: Answer::Done,
        notes: Vec::new(),
    };
    let (changes, refusal) = match decided {
        Ok(changes) => (changes, None),
        Err(refusal) => (Vec::new(), Some(refusal)),
    };
    if let Some(reason) = &refusal {
        record.answer = Answer::Refused { reason: reason.clone() };
    } else {
        info!(app = %app.name, "{by} has {} taken away", app.name);
    }
    let fresh = fresh_for(world, &changes)?;
    world
        .commit(move |tx| {
            apply(tx, &repository, &changes, fresh, now)?;
            record.number = tx.next_number("order")?;
            tx.put_order(&record)
        })
        .await?;
    world.wake.notify_waiters();
    Ok(refusal.map_or(Ok(()), Err))
}

/// Does what a comment may ask for, for somebody at the machine; `pull` where it is about a pull request.
pub async fn give(
    world: &World,
    repository: &Repository,
    command: Command,
    pull: Option<PullNumber>,
    by: &str,
) -> Result<Result<Answer, Refusal>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", repository.id)).await;
    let mut snapshot = snapshot(world, repository)?;
    if let Some(number) = pull {
        snapshot.pull = world.store.pull(repository.id, number)?;
    }
    if let Command::Rollback { .. } = command {
        snapshot.gone = observe::gone(world, &snapshot.releases);
    }
    let number = pull.unwrap_or(PullNumber(0));
    if let Command::Promote { .. } = command
        && let Some(key) = targets(&command, number, &snapshot).ok().and_then(|keys| keys.first().copied())
        && let Some(known) = promotable(world, &snapshot, key, by, None).await?
    {
        snapshot.promotable.insert(key.part, known);
    }
    let decided = operate(&command, number, by, &snapshot);
    let now = world.now();
    let mut record = OperatorOrder {
        number: 0,
        repository: repository.id,
        what: OrderKind::Command { command, pull },
        by: by.to_owned(),
        given_at: now,
        answer: Answer::Done,
        notes: Vec::new(),
    };
    let (changes, refusal) = match decided {
        Ok((changes, notes)) => {
            record.notes = notes;
            (changes, None)
        }
        Err(reason) => {
            record.answer = Answer::Refused { reason: reason.clone() };
            (Vec::new(), Some(reason))
        }
    };
    for change in &changes {
        info!(repository = %repository.full_name(), "asked for by {by}: {}", change.summary());
    }
    let (fresh, repository) = (fresh_for(world, &changes)?, repository.clone());
    let answer = world
        .commit(move |tx| {
            apply(tx, &repository, &changes, fresh, now)?;
            for change in &changes {
                match change {
                    Change::Deploy { key, .. } => {
                        let app = app_at(tx, repository.id, *key)?;
                        if let Some((app, deploy)) = app.and_then(|app| Some((app.name.clone(), app.newest()?.number)))
                        {
                            record.answer = Answer::Deploying { app, deploy };
                        }
                    }
                    Change::StartRun { .. } if record.answer == Answer::Done => {
                        let newest = tx.runs_of(repository.id)?.into_iter().map(|run| run.number).max();
                        record.answer = newest.map_or(Answer::Done, |run| Answer::Testing { run });
                    }
                    _ => {}
                }
            }
            record.number = tx.next_number("order")?;
            tx.put_order(&record)?;
            Ok(record.answer)
        })
        .await?;
    world.wake.notify_waiters();
    Ok(refusal.map_or(Ok(answer), Err))
}

/// Sets the rules that the dashboard says; an empty text takes them away. The inner error says what is wrong with them.
pub async fn set_rules(
    world: &World,
    repository: &Repository,
    text: &str,
    by: &str,
) -> Result<Result<(), String>, Trouble> {
    let _alone = world.locks.lock(&format!("repository {}", repository.id)).await;
    policy::set_on_dashboard(world, repository, text, by).await
}

/// Lets a parked or waiting delivery be worked on now. `false` when it was applied, ignored or never came.
pub async fn replay(world: &World, id: &str) -> Result<bool, Trouble> {
    let (id, now) = (id.to_owned(), world.now());
    let found = world
        .commit(move |tx| {
            let Some(mut record) = tx.delivery(&id)? else { return Ok(false) };
            match record.delivery.state {
                DeliveryState::Applied { .. } | DeliveryState::Ignored { .. } => return Ok(false),
                DeliveryState::Queued | DeliveryState::Retrying { .. } | DeliveryState::Parked { .. } => {}
            }
            record.delivery.state = DeliveryState::Queued;
            record.delivery.attempts = 0;
            tx.put_delivery(&record)?;
            queue::enqueue(tx, &format!("delivery:{id}"), now)?;
            Ok::<bool, StoreError>(true)
        })
        .await?;
    world.wake.notify_waiters();
    Ok(found)
}

/// Replays every parked delivery and looks again at every parked subject. Gives their keys.
pub async fn replay_parked(world: &World) -> Result<Vec<String>, Trouble> {
    let mut replayed = Vec::new();
    for entry in parked(world)? {
        match entry.key.strip_prefix("delivery:") {
            Some(id) => {
                if !replay(world, id).await? {
                    // Its record says that it is done, so nothing is left to do for the entry.
                    let key = entry.key.clone();
                    world.commit(move |tx| queue::remove(tx, &key)).await?;
                    continue;
                }
            }
            None => {
                let (key, now) = (entry.key.clone(), world.now());
                world.commit(move |tx| queue::unpark(tx, &key, now)).await?;
            }
        }
        replayed.push(entry.key);
    }
    world.wake.notify_waiters();
    Ok(replayed)
}

/// What waits for a person, in the order of its keys.
pub fn parked(world: &World) -> Result<Vec<queue::QueueEntry>, StoreError> {
    Ok(queue::entries(&world.store, "")?.into_iter().filter(|entry| entry.parked.is_some()).collect())
}

fn repository_of(world: &World, id: RepositoryId) -> Result<Repository, Trouble> {
    world.store.repository(id)?.ok_or_else(|| Trouble::bug("an app or a run of an unknown repository"))
}

fn snapshot(world: &World, repository: &Repository) -> Result<Snapshot, Trouble> {
    let mut snapshot = observe::known_of(world, repository)?;
    for app in &snapshot.apps {
        snapshot.releases.extend(world.store.releases(&app.name)?);
    }
    Ok(snapshot)
}

/// Writes an order down, for the audit log, together with what it leads to.
async fn order(
    world: &World,
    repository: &Repository,
    key: AppKey,
    what: OrderKind,
    by: &str,
    decided: Result<(Change, Vec<Note>), Refusal>,
) -> Result<Result<Ordered, Refusal>, Trouble> {
    let now = world.now();
    let mut record = OperatorOrder {
        number: 0,
        repository: repository.id,
        what,
        by: by.to_owned(),
        given_at: now,
        answer: Answer::Done,
        notes: Vec::new(),
    };
    let (change, notes) = match decided {
        Ok(decided) => decided,
        Err(reason) => {
            record.answer = Answer::Refused { reason: reason.clone() };
            world
                .commit(move |tx| {
                    record.number = tx.next_number("order")?;
                    tx.put_order(&record)
                })
                .await?;
            return Ok(Err(reason));
        }
    };
    info!(repository = %repository.full_name(), "asked for by the operator: {}", change.summary());
    record.notes.clone_from(&notes);
    let changes = vec![change];
    let (fresh, repository) = (fresh_for(world, &changes)?, repository.clone());
    let ordered = world
        .commit(move |tx| {
            apply(tx, &repository, &changes, fresh, now)?;
            let app = app_at(tx, repository.id, key)?;
            let newest = app.and_then(|app| app.newest().map(|deploy| (app.name.clone(), deploy.number)));
            if let Some((app, deploy)) = &newest {
                record.number = tx.next_number("order")?;
                record.answer = Answer::Deploying { app: app.clone(), deploy: *deploy };
                tx.put_order(&record)?;
            }
            Ok(newest)
        })
        .await?
        .map(|(app, deploy)| Ordered { app, deploy, notes })
        .ok_or_else(|| Trouble::bug("a deploy that was just ordered is not there"))?;
    world.wake.notify_waiters();
    Ok(Ok(ordered))
}
