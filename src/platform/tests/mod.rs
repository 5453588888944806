//! The contract with real processes: each test has a data folder of its own, and ends with nothing left on the machine.

mod escape;
mod limits;
mod lives;
mod memory;
mod slugs;
mod world;
