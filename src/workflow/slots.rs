//! Who gets the next free slot: runs of default branches first, then the repository that has the fewest nodes, then the
//! run that has, then the oldest.

use crate::domain::{RepositoryId, RunNumber};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What one run has and wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub run: RunNumber,
    pub repository: RepositoryId,
    /// It comes before all that are not.
    pub first: bool,
    /// Nodes that run now.
    pub running: usize,
    /// Nodes that it would start.
    pub wanted: usize,
}

/// How many of `free` slots are `run`'s.
pub fn share(free: usize, claims: &[Claim], run: RunNumber) -> usize {
    let mut claims = claims.to_vec();
    let mut of_repository: BTreeMap<RepositoryId, usize> = BTreeMap::new();
    for claim in &claims {
        *of_repository.entry(claim.repository).or_default() += claim.running;
    }
    let mut own = 0;
    for _ in 0..free {
        let rank = |claim: &&mut Claim| {
            let repository = of_repository.get(&claim.repository).copied().unwrap_or_default();
            (Reverse(claim.first), repository, claim.running, claim.run)
        };
        let Some(next) = claims.iter_mut().filter(|claim| claim.wanted > 0).min_by_key(rank) else { break };
        next.wanted -= 1;
        next.running += 1;
        *of_repository.entry(next.repository).or_default() += 1;
        own += usize::from(next.run == run);
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(run: u64, repository: u64, first: bool, running: usize, wanted: usize) -> Claim {
        Claim { run: RunNumber(run), repository: RepositoryId(repository), first, running, wanted }
    }

    fn shares(free: usize, claims: &[Claim]) -> Vec<usize> {
        claims.iter().map(|claim| share(free, claims, claim.run)).collect()
    }

    #[test]
    fn slots_are_shared_fairly_and_the_default_branch_comes_first() {
        assert_eq!(shares(4, &[claim(1, 1, false, 0, 8)]), [4]);
        assert_eq!(shares(4, &[claim(1, 1, false, 0, 8), claim(2, 2, false, 0, 8)]), [2, 2]);
        let three = [claim(1, 1, false, 0, 8), claim(2, 1, false, 0, 8), claim(3, 2, false, 0, 8)];
        assert_eq!((shares(3, &three), shares(4, &three)), (vec![1, 1, 1], vec![1, 1, 2]));
        assert_eq!(shares(2, &[claim(1, 1, false, 4, 4), claim(2, 1, false, 0, 4)]), [0, 2]);
        assert_eq!(shares(2, &[claim(1, 1, false, 0, 4), claim(2, 1, true, 3, 1)]), [1, 1]);
        assert_eq!(
            shares(9, &[claim(1, 1, false, 0, 1), claim(2, 2, false, 0, 2)]),
            [1, 2],
            "nobody waits for nothing"
        );
        assert_eq!(shares(0, &[claim(1, 1, true, 0, 1)]), [0]);
        assert_eq!(share(1, &[], RunNumber(7)), 0);
    }
}
