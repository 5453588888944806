//! Whether an owner has the add-ons that its code asks for, and when they go.
//!
//! What is no longer asked for stays until its owner goes: taking a line out of `app.json` never takes data away.

use super::{Action, Plan, ProcessView};
use crate::clock::Timestamp;
use crate::domain::*;
use std::time::Duration;

/// How often providers that are not ready are looked at. Each add-on's own `again_at` holds besides.
const WATCH: Duration = Duration::from_millis(150);

/// What is asked for, and what there is of it.
#[derive(Debug, Clone, Default)]
pub struct AddonsView {
    pub wanted: Vec<AddonRequest>,
    pub have: Vec<Addon>,
}

pub(super) enum AddonStep {
    Ready,
    Ensure,
    Failed(Failure),
}

pub(super) fn next_of_addons<'a>(
    wanted: &[AddonRequest],
    have: impl Iterator<Item = &'a Addon> + Clone,
    asked_at: Timestamp,
) -> AddonStep {
    let wanted = match attachments(wanted) {
        Ok(wanted) => wanted,
        Err(failure) => return AddonStep::Failed(failure),
    };
    let mut ready = true;
    for one in &wanted {
        let Some(addon) = have.clone().find(|addon| addon.attachment == one.attachment) else {
            ready = false;
            continue;
        };
        if addon.service() != one.request.service() && addon.state != AddonState::Going {
            let problem = AddonProblem::Taken { name: one.attachment.clone() };
            return AddonStep::Failed(Failure::Addon { plan: one.request.plan.clone(), problem });
        }
        match &addon.state {
            AddonState::Provisioned { .. } if is_as_asked(addon, one) => {}
            // Whoever asks after a failure was known wants it tried again.
            AddonState::Failed { problem, at } if asked_at <= *at => {
                let (plan, problem) = (addon.plan.clone(), problem.clone());
                return AddonStep::Failed(Failure::Addon { plan, problem });
            }
            _ => ready = false,
        }
    }
    if ready { AddonStep::Ready } else { AddonStep::Ensure }
}

/// Whether the record says the same as the request.
pub fn is_as_asked(addon: &Addon, wanted: &WantedAddon) -> bool {
    addon.plan == wanted.request.plan && addon.options == wanted.request.options
}

pub(super) fn look_again(plan: &mut Plan) {
    plan.look_again_in(WATCH);
}

/// Takes away the add-ons of nodes that have nothing left to run. Whether any were left.
pub(super) fn drop_of_nodes(
    have: &[Addon],
    processes: &[ProcessView],
    is_over: impl Fn(u16) -> bool,
    plan: &mut Plan,
) -> bool {
    let mut nodes: Vec<u16> = have
        .iter()
        .filter_map(|addon| match addon.owner {
            AddonOwner::Node { node, .. } => Some(node),
            AddonOwner::App { .. } => None,
        })
        .collect();
    nodes.dedup();
    for node in &nodes {
        let used = processes.iter().any(|process| process.ordinal == *node && !process.is_over());
        if is_over(*node) && !used {
            plan.act(Action::DropNodeAddons { node: *node });
        }
    }
    !nodes.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn addon(state: AddonState) -> Addon {
        let owner = AddonOwner::App { name: "hello-pr-1".parse().unwrap(), id: "a".to_owned() };
        Addon {
            id: AddonId::new(&owner, "DATABASE"),
            owner,
            plan: "heroku-postgresql".to_owned(),
            kind: AddonKind::Postgres,
            attachment: "DATABASE".to_owned(),
            ordinal: 0,
            own: true,
            options: BTreeMap::new(),
            created_at: Timestamp(0),
            state,
            password: Sealed(String::new()),
            config: None,
            handle: None,
            again_at: None,
            note: None,
        }
    }

    fn step(plan: &str, have: &[Addon], asked_at: i64) -> &'static str {
        let wanted = [AddonRequest { plan: plan.to_owned(), name: None, options: BTreeMap::new() }];
        match next_of_addons(&wanted, have.iter(), Timestamp(asked_at)) {
            AddonStep::Ready => "ready",
            AddonStep::Ensure => "ensure",
            AddonStep::Failed(_) => "failed",
        }
    }

    #[test]
    fn what_is_there_as_it_was_asked_for_needs_nothing() {
        let there = addon(AddonState::Provisioned { at: Timestamp(5) });
        let failed =
            addon(AddonState::Failed { problem: AddonProblem::Unknown { service: "x".to_owned() }, at: Timestamp(5) });
        assert_eq!(step("heroku-postgresql", &[], 1), "ensure");
        assert_eq!(step("heroku-postgresql", std::slice::from_ref(&there), 1), "ready");
        assert_eq!(step("heroku-postgresql:standard-0", std::slice::from_ref(&there), 1), "ensure");
        assert_eq!(step("heroku-postgresql", &[addon(AddonState::Wanted { since: Timestamp(1) })], 1), "ensure");
        assert_eq!(step("heroku-postgresql", &[addon(AddonState::Going)], 1), "ensure");
        assert_eq!(step("heroku-postgresql", std::slice::from_ref(&failed), 1), "failed");
        assert_eq!(step("heroku-postgresql", std::slice::from_ref(&failed), 6), "ensure");
        assert!(matches!(next_of_addons(&[], [&there].into_iter(), Timestamp(1)), AddonStep::Ready));
    }
}
