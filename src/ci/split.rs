//! Spreading test files over nodes so that all of them end at nearly the same time, near the best time possible.
//!
//! Nodes pull work. Predictions say how long each file will take ([`predict`]), a plan says what is to be run
//! ([`plan`]), a deal says how much of it a node gets now ([`deal`]), and the board ([`board`]) keeps who holds what and
//! what is settled. [`bound`] is what no schedule can beat. Nothing here reads a clock: time comes in with each event,
//! so the same events always lead to the same board, and a run can be played again from its record.
//!
//! The rule that all of it keeps: a planned item counts exactly once, whoever dies when, and a run is green only with the
//! proof of it ([`Board::proof`]).

pub mod board;
pub mod bound;
pub mod deal;
pub mod plan;
pub mod predict;
pub mod proof;

pub use board::{Answer, Board, Event, Lease, LeaseId, LeaseState, Outcome, Recorded, Refusal, Settled};
pub use bound::{Lane, lower_bound};
pub use deal::Rules;
pub use plan::{CaseTime, Item, plan};
pub use predict::{Measured, Predictions, predict};
pub use proof::{Gap, Proof, uneven};

#[cfg(test)]
mod tests;
