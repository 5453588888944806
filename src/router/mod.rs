//! The data plane: host → targets; health, switch, drain, and what was seen of every request.
//!
//! A process of its own that outlives the control plane: it serves from the last table that it was given, which it
//! keeps on disk. The rules it keeps: a process gets requests only while the table calls it active; the switch to a
//! new table is one atomic swap; once a target that left shows no request in flight, none can come any more
//! (invariant 5). What is not valid HTTP in the strictest reading is refused, not repaired.

mod access;
mod announced;
mod body;
mod certificates;
mod client;
mod clients;
mod control;
mod dial;
mod errors;
mod exchange;
mod framing;
mod handover;
mod health;
mod histogram;
mod keep;
mod keeper;
mod knocks;
mod leaving;
mod link;
mod live;
mod log;
mod metrics;
mod pages;
mod proxy;
mod request;
mod server;
mod siblings;
mod socket;
mod streams;
mod table;
mod tail;
#[cfg(test)]
mod tests;
mod ticks;
mod trailers;
mod trust;
mod tunnel;
mod wire;

pub use access::{Access, is_own_path, seal_password, ticket};
pub use certificates::CertificateFiles;
pub use client::{About, MemoryRouter, Router, RouterError};
pub use control::{AppStatus, Status, TargetStatus};
pub use errors::Code;
pub use histogram::Histogram;
pub use keeper::{Keeper, RouterEnd};
pub use log::LogLine;
pub use metrics::{AppNumbers, Resolution, Slot};
pub use server::{RouterOptions, run};
pub use table::{Canary, Notice, Route, Table, TableError, Target, TargetState, normalise_host};
pub use tail::{TailLine, TailPage};
pub use trust::Trusted;
