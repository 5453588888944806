//! A repository with its stages, and what would happen on a promotion.

use super::{AppCard, PullLine, RunCard, card, run_card, safe_url};
use crate::domain::*;
use crate::reconcile::{World, command};
use crate::store::StoreError;
use crate::web::problem::Problem;
use serde::Serialize;
use std::cmp::Reverse;

/// Runs and commands that a page shows.
const RECENT: usize = 10;

#[derive(Debug, Clone, Serialize)]
pub struct Pipeline {
    pub owner: String,
    pub name: String,
    pub full_name: String,
    pub url: Option<String>,
    pub private: bool,
    pub default_branch: String,
    pub review: Vec<AppCard>,
    pub staging: Option<AppCard>,
    pub production: Option<AppCard>,
    /// Where a stage has several apps: all but its first.
    pub further: Vec<AppCard>,
    /// The newest first.
    pub runs: Vec<RunCard>,
    /// To the first app of production.
    pub promotion: Promotion,
    /// To the others.
    pub promotions: Vec<Promotion>,
    pub rules: Rules,
}

/// What holds for the stages now.
#[derive(Debug, Clone, Serialize)]
pub struct Rules {
    /// Why the newest `.github/landfall.toml` is refused, so that an earlier one's rules hold.
    pub error: Option<String>,
    pub read_at: Option<Sha>,
    pub locks: Vec<Lock>,
    /// Why nothing goes to production now, other than a lock.
    pub frozen: Option<Refusal>,
    pub policy: PipelineSettings,
    /// Each key that is set, and by whom.
    pub lines: Vec<RuleLine>,
    pub dashboard: DashboardRules,
    pub freeze: Option<Freeze>,
}

/// What staging has that production has not, and whether it could go there now.
#[derive(Debug, Clone, Serialize)]
pub struct Promotion {
    /// The app of production, as it is named where it is asked for.
    pub app: AppName,
    /// Which of several; empty for the one.
    pub part: Part,
    pub possible: bool,
    pub refusal: Option<Refusal>,
    pub from: Option<Side>,
    pub to: Option<Side>,
    /// The difference of the two commits on GitHub.
    pub compare_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    pub app: AppName,
    pub release: ReleaseNumber,
    pub commit: Sha,
}

#[derive(Debug, Clone, Serialize)]
pub struct PipelineDetail {
    #[serde(flatten)]
    pub pipeline: Pipeline,
    pub pulls: Vec<PullLine>,
    pub commands: Vec<super::AuditLine>,
    pub config: Vec<StageConfig>,
}

/// The config vars that a stage's apps share. Never a value.
#[derive(Debug, Clone, Serialize)]
pub struct StageConfig {
    pub stage: &'static str,
    pub vars: Vec<super::ConfigLine>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Home {
    pub pipelines: Vec<Pipeline>,
    pub parked: u64,
    pub webhook_url: String,
    /// Those that fire.
    pub alerts: Vec<super::AlertLine>,
}

pub fn home(world: &World) -> Result<Home, Problem> {
    let mut repositories = world.store.repositories()?;
    repositories.sort_by_key(|repository| repository.full_name().to_lowercase());
    let pipelines: Result<Vec<Pipeline>, Problem> =
        repositories.iter().map(|repository| pipeline(world, repository)).collect();
    Ok(Home {
        pipelines: pipelines?,
        parked: crate::store::queue::depth(&world.store)?.parked,
        webhook_url: world.config.page("/webhooks/github"),
        alerts: super::firing(world)?,
    })
}

pub fn find_repository(world: &World, owner: &str, name: &str) -> Result<Repository, Problem> {
    let same = |repository: &Repository| {
        repository.owner.eq_ignore_ascii_case(owner) && repository.name.eq_ignore_ascii_case(name)
    };
    let found = world.store.repositories()?.into_iter().find(same);
    found.ok_or_else(|| Problem::not_found("pipeline", format!("{owner}/{name}")))
}

/// Which app of production is meant by a name, or by none where there is one only.
pub fn production_part(world: &World, repository: &Repository, named: Option<&str>) -> Result<Part, Problem> {
    let (apps, policy) = (world.store.apps_of(repository.id)?, world.store.pipeline(repository.id)?.policy);
    let keys = policy.production_keys();
    let name = |key: &AppKey| {
        let there = apps.iter().find(|app| app.key() == *key).map(|app| app.name.clone());
        there.unwrap_or_else(|| policy.name_of(repository, *key))
    };
    match (named, keys.as_slice()) {
        (None, [only]) => Ok(only.part),
        (None, _) => {
            let apps = keys.iter().map(name).collect();
            Err(Problem::Refused { reason: Refusal::WhichApp { apps } })
        }
        (Some(word), keys) => {
            let meant = |key: &&AppKey| name(key).as_str() == word || key.part.as_str() == word;
            let found = keys.iter().find(meant).map(|key| key.part);
            found.ok_or_else(|| Problem::not_found("app", word))
        }
    }
}

pub fn pipeline(world: &World, repository: &Repository) -> Result<Pipeline, Problem> {
    let mut apps = world.store.apps_of(repository.id)?;
    apps.sort_by_key(|app| (Reverse(app.pull()), app.key()));
    let policy = world.store.pipeline(repository.id)?.policy;
    let keys = policy.production_keys();
    let refused = command::promotions_refused(world, repository, &keys)?;
    let all = keys.into_iter().zip(refused);
    let mut promotions = all.map(|(key, refusal)| promotion(repository, &policy, key, refusal, &apps));
    let mut pipeline = Pipeline {
        owner: repository.owner.clone(),
        name: repository.name.clone(),
        full_name: repository.full_name(),
        url: safe_url(&repository.html_url),
        private: repository.private,
        default_branch: repository.default_branch.clone(),
        review: Vec::new(),
        staging: None,
        production: None,
        further: Vec::new(),
        runs: recent_runs(world, repository.id, RECENT)?,
        promotion: promotions.next().ok_or_else(|| Problem::Internal { detail: "no production".to_owned() })?,
        promotions: promotions.collect(),
        rules: rules(world, repository)?,
    };
    for app in &apps {
        let card = card(world, app, Some(repository))?;
        match app.stage {
            Stage::Review(_) => pipeline.review.push(card),
            Stage::Staging if pipeline.staging.is_none() => pipeline.staging = Some(card),
            Stage::Production if pipeline.production.is_none() => pipeline.production = Some(card),
            Stage::Staging | Stage::Production => pipeline.further.push(card),
        }
    }
    Ok(pipeline)
}

fn rules(world: &World, repository: &Repository) -> Result<Rules, StoreError> {
    let state = world.store.pipeline(repository.id)?;
    let frozen = crate::workflow::barred(StageKind::Production, &state, world.now())
        .filter(|refusal| matches!(refusal, Refusal::Frozen { .. }));
    let lines = merged(&state.dashboard.text, &state.file).map(|(_, lines)| lines).unwrap_or_default();
    let PipelineState { error, read_at, locks, policy, dashboard, freeze, .. } = state;
    Ok(Rules { error, read_at, locks, frozen, policy, lines, dashboard, freeze })
}

pub fn recent_runs(world: &World, repository: RepositoryId, most: usize) -> Result<Vec<RunCard>, StoreError> {
    let runs = world.store.newest_runs_of(repository, most)?;
    let repository = world.store.repository(repository)?;
    Ok(runs.iter().map(|run| run_card(world, run, repository.as_ref())).collect())
}

fn promotion(
    repository: &Repository,
    policy: &PipelineSettings,
    key: AppKey,
    refusal: Option<Refusal>,
    apps: &[App],
) -> Promotion {
    let side = |key: AppKey| {
        let app = apps.iter().find(|app| app.key() == key)?;
        Some(Side { app: app.name.clone(), release: app.live?, commit: app.live_deploy()?.commit.clone() })
    };
    let (from, to) = (side(policy.source_of(key)), side(key));
    let there = apps.iter().find(|app| app.key() == key).map(|app| app.name.clone());
    let app = there.unwrap_or_else(|| policy.name_of(repository, key));
    let compare_url = match (&from, &to, safe_url(&repository.html_url)) {
        (Some(from), Some(to), Some(url)) if from.commit != to.commit => {
            Some(format!("{}/compare/{}...{}", url.trim_end_matches('/'), to.commit, from.commit))
        }
        _ => None,
    };
    Promotion { app, part: key.part, possible: refusal.is_none(), refusal, from, to, compare_url }
}

pub fn pipeline_detail(world: &World, repository: &Repository) -> Result<PipelineDetail, Problem> {
    let pulls = world.store.pulls(repository.id)?;
    let commands = super::audit(world, Some(repository.id), RECENT)?;
    let mut open: Vec<&Pull> = pulls.iter().filter(|pull| pull.open).collect();
    open.sort_by_key(|pull| Reverse(pull.number));
    Ok(PipelineDetail {
        pipeline: pipeline(world, repository)?,
        pulls: open.into_iter().map(PullLine::new).collect(),
        commands,
        config: ConfigStage::ALL
            .into_iter()
            .map(|stage| {
                let vars = super::config_of_stage(world, repository, stage, false)?;
                Ok(StageConfig { stage: stage.word(), vars })
            })
            .collect::<Result<_, Problem>>()?,
    })
}
