//! What GitHub protects a branch or an environment with, as far as an app may see it without administering anything.

use super::client::{GitHub, segment, segments};
use super::error::GitHubError;
use super::event::{Account, RepoHandle};
use super::reading;
use super::reads::{SeenCheckRun, repo_path, seen_check_run};
use super::transport::Call;
use crate::domain::Sha;

/// A context that must be green on a branch; `app` where only that app's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredContext {
    pub context: String,
    pub app: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BranchProtection {
    pub protected: bool,
    /// Of the branch's own protection and of rulesets.
    pub required: Vec<RequiredContext>,
}

/// What an environment asks for before a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvironmentProtection {
    pub wait_minutes: u64,
    /// Somebody of these must say so, if there are any.
    pub reviewers: Vec<Reviewer>,
    pub prevent_self_review: bool,
    pub branches: DeployableBranches,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reviewer {
    User(Account),
    /// Organisation and slug.
    Team(String, String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeployableBranches {
    #[default]
    Any,
    Protected,
    /// Patterns, where `*` is any text without a slash.
    Named(Vec<String>),
}

impl GitHub {
    /// What a branch asks for; nothing where there is no such branch.
    pub async fn branch_protection(&self, repo: &RepoHandle, branch: &str) -> Result<BranchProtection, GitHubError> {
        let call = Call::get("get_branch", repo_path(repo, &format!("/branches/{}", segments(branch))));
        let own = self.read_json(self.lane_of(repo)?, Some(repo.id), call, |found| {
            let checks = found.maybe("protection").and_then(|known| known.maybe("required_status_checks"));
            let mut required = Vec::new();
            for check in checks.iter().flat_map(|checks| checks.items("checks")) {
                // -1 is any app.
                let app = check.maybe_number("app_id");
                required.push(RequiredContext { context: check.text("context")?, app });
            }
            let contexts = checks.and_then(|checks| checks.maybe("contexts"));
            for context in contexts.iter().flat_map(|contexts| contexts.elements()) {
                if let Some(context) = context.value().as_str()
                    && required.iter().all(|known| known.context != context)
                {
                    required.push(RequiredContext { context: context.to_owned(), app: None });
                }
            }
            Ok(BranchProtection { protected: found.flag("protected"), required })
        });
        let mut protection = match own.await {
            Ok(protection) => protection,
            Err(GitHubError::NotFound { .. }) => return Ok(BranchProtection::default()),
            Err(error) => return Err(error),
        };
        let path = format!("/rules/branches/{}", segments(branch));
        let rules = self.repo_list(repo, "list_branch_rules", &path, None, |rule| {
            let mut required = Vec::new();
            if rule.text("type")? == "required_status_checks" {
                let parameters = rule.maybe("parameters");
                for check in parameters.iter().flat_map(|parameters| parameters.items("required_status_checks")) {
                    let app = check.maybe_number("integration_id");
                    required.push(RequiredContext { context: check.text("context")?, app });
                }
            }
            Ok(required)
        });
        protection.required.extend(rules.await?.into_iter().flatten());
        Ok(protection)
    }

    /// The newest check runs of a commit, everybody's.
    pub async fn check_runs_of(&self, repo: &RepoHandle, sha: &Sha) -> Result<Vec<SeenCheckRun>, GitHubError> {
        let path = format!("/commits/{sha}/check-runs?filter=latest");
        self.repo_list(repo, "list_check_runs_of_commit", &path, Some("check_runs"), seen_check_run).await
    }

    /// What an environment asks for; nothing where there is none.
    ///
    /// # Errors
    /// `Forbidden` when the app has no `actions: read`.
    pub async fn environment_protection(
        &self,
        repo: &RepoHandle,
        environment: &str,
    ) -> Result<EnvironmentProtection, GitHubError> {
        let path = format!("/environments/{}", segment(environment));
        let call = Call::get("get_environment", repo_path(repo, &path));
        let found = self.read_json(self.lane_of(repo)?, Some(repo.id), call, |found| {
            let mut protection = EnvironmentProtection::default();
            for rule in found.items("protection_rules") {
                match rule.text("type")?.as_str() {
                    "wait_timer" => protection.wait_minutes = rule.maybe_number("wait_timer").unwrap_or(0),
                    "required_reviewers" => {
                        protection.prevent_self_review = rule.flag("prevent_self_review");
                        for entry in rule.items("reviewers") {
                            let Some(who) = entry.maybe("reviewer") else { continue };
                            protection.reviewers.extend(match entry.maybe_text("type").as_deref() {
                                Some("Team") => Some(Reviewer::Team(repo.owner.clone(), who.text("slug")?)),
                                _ => reading::read_account(&who).map(Reviewer::User),
                            });
                        }
                    }
                    _ => {}
                }
            }
            if let Some(policy) = found.maybe("deployment_branch_policy") {
                protection.branches = match policy.flag("protected_branches") {
                    true => DeployableBranches::Protected,
                    false => DeployableBranches::Named(Vec::new()),
                };
            }
            Ok(protection)
        });
        let mut protection = match found.await {
            Ok(protection) => protection,
            Err(GitHubError::NotFound { .. }) => return Ok(EnvironmentProtection::default()),
            Err(error) => return Err(error),
        };
        if let DeployableBranches::Named(patterns) = &mut protection.branches {
            let path = format!("/environments/{}/deployment-branch-policies", segment(environment));
            let under = Some("branch_policies");
            *patterns =
                self.repo_list(repo, "list_branch_policies", &path, under, |policy| policy.text("name")).await?;
        }
        Ok(protection)
    }
}
