//! Custom domains that a repository's own file gives to its apps.
//!
//! A file is a stranger's word until the operator's configuration allows the name to exactly this repository. Besides
//! that, what the operator gave to an app by name is never a repository's, nor are the hosts that Landfall itself and its
//! apps have; and of two repositories that may both have a domain, it is the first one's until its file names it no
//! more. All of it is looked at again whenever a table of routes is made, since the configuration may have changed.

use super::World;
use crate::domain::*;
use crate::store::StoreError;

/// What is wrong with the domains that a policy names, if anything is.
pub(super) fn refused(
    world: &World,
    repository: &Repository,
    policy: &PipelineSettings,
) -> Result<Option<String>, StoreError> {
    for domain in policy.domains() {
        if world.config.is_own_host(domain) {
            return Ok(Some(format!("domains: {domain} is a host of Landfall itself")));
        }
        if world.config.domains.contains_key(domain) {
            return Ok(Some(format!("domains: {domain} is given away in the operator's [domains]")));
        }
        if !world.config.allows_domain(repository, domain) {
            return Ok(Some(format!(
                "domains: the operator does not allow {domain} here; in landfall.toml that would be \
                 allowed_domains.\"{}\" = [\"{domain}\"]",
                repository.full_name()
            )));
        }
        if world.store.domain_holder(domain)?.is_some_and(|holder| holder != repository.id) {
            return Ok(Some(format!("domains: {domain} is another repository's already")));
        }
    }
    Ok(None)
}

/// Whether the repository has every domain that its rules name, by what the configuration says now.
pub(super) fn settled(world: &World, repository: &Repository, policy: &PipelineSettings) -> Result<bool, StoreError> {
    for domain in policy.domains() {
        if world.store.domain_holder(domain)? != Some(repository.id) {
            return Ok(false);
        }
    }
    Ok(refused(world, repository, policy)?.is_none())
}

/// Those that a policy names and the configuration lets the repository have: an earlier policy may name more.
pub(super) fn allowed(world: &World, repository: &Repository, policy: &PipelineSettings) -> Vec<String> {
    let named = policy.domains().filter(|domain| !is_taken(world, domain));
    named.filter(|domain| world.config.allows_domain(repository, domain)).cloned().collect()
}

/// Whether a domain is the operator's or Landfall's own, whatever a file says.
fn is_taken(world: &World, domain: &str) -> bool {
    world.config.domains.contains_key(domain) || world.config.is_own_host(domain)
}

/// Which app each domain is named for.
pub(super) fn named(policy: &PipelineSettings) -> Vec<(AppKey, String)> {
    let keys = policy.staging_keys().into_iter().chain(policy.production_keys());
    keys.flat_map(|key| policy.domains_of(key).map(move |domain| (key, domain.clone()))).collect()
}

/// The custom domains that lead to an app now: the operator's, and those of its repository's file.
pub fn of_app(world: &World, app: &App) -> Result<Vec<String>, StoreError> {
    let mut domains: Vec<String> =
        world.config.domains.iter().filter(|(_, to)| **to == app.name).map(|(domain, _)| domain.clone()).collect();
    if app.pull().is_some() {
        return Ok(domains);
    }
    let policy = world.store.pipeline(app.repository)?.policy;
    for domain in policy.domains_of(app.key()) {
        if usable(world, domain, app.repository)? {
            domains.push(domain.clone());
        }
    }
    Ok(domains)
}

/// Those that a certificate is asked for: all that lead somewhere, if the operator agreed to the authority's terms.
pub fn certified(world: &World) -> Result<Vec<String>, StoreError> {
    if !world.config.acme.agree_to_terms {
        return Ok(Vec::new());
    }
    let mut domains: Vec<String> = world.config.domains.keys().cloned().collect();
    for (domain, holder) in world.store.held_domains()? {
        if usable(world, &domain, holder)? {
            domains.push(domain);
        }
    }
    Ok(domains)
}

fn usable(world: &World, domain: &str, holder: RepositoryId) -> Result<bool, StoreError> {
    if world.store.domain_holder(domain)? != Some(holder) || is_taken(world, domain) {
        return Ok(false);
    }
    let repository = world.store.repository(holder)?;
    Ok(repository.is_some_and(|repository| repository.granted && world.config.allows_domain(&repository, domain)))
}
