//! `landfall node`: inside a test process of a run whose files are dealt. It pulls batches, runs the test command on
//! them, reads its results and tells what became of each file, until nothing is left.
//!
//! It outlives the control plane: whatever was not acknowledged is said again, for as long as it takes. It trusts
//! nothing of the code under test: what a command leaves running is ended before the next batch, what it writes is
//! read with bounds.

mod artifacts;
mod batch;
mod descendants;
mod files;
mod link;
mod plain;
mod queue;
mod results;
mod setup;

use crate::ci::split::Refusal;
use crate::ci::wire::{Answer, BEAT_MS, Orders, Request};
use crate::domain::{Mask, PHASE};
use link::Link;
pub use plain::run as run_plainly;
pub use queue::run as run_with_queue;
pub use setup::run as run_setup;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Where a node finds the control plane inside its sandbox.
pub const SOCKET: &str = "/landfall/node/s";

/// A newer process of this node has come.
const REPLACED: u8 = 97;
/// The node could not do its work.
const BROKEN: u8 = 98;

/// Works until the run is over. Zero where all that this node did counts as passed. The values of the variables `masked`
/// are shown in no report.
pub fn run(socket: &Path, masked: &[String]) -> ExitCode {
    match work(&mut Link::new(socket), mask_of(masked)) {
        Ok(red) => ExitCode::from(u8::from(red)),
        Err(End::Replaced) => ExitCode::from(REPLACED),
        Err(End::Broken(why)) => {
            eprintln!("landfall: {why}");
            ExitCode::from(BROKEN)
        }
    }
}

fn mask_of(names: &[String]) -> Option<Mask> {
    let values: Vec<String> = names.iter().filter_map(|name| std::env::var(name).ok()).collect();
    Mask::of(values.iter().map(String::as_str))
}

enum End {
    Replaced,
    Broken(String),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> End {
        End::Broken(error.to_string())
    }
}

/// Begins a phase of the node's log.
fn phase(name: &str) {
    println!("{PHASE}{name}");
}

fn work(link: &mut Link, mask: Option<Mask>) -> Result<bool, End> {
    descendants::adopt_orphans()?;
    let orders = join(link)?;
    let place = batch::Place::make(mask)?;
    loop {
        match link.insist(&Request::Pull) {
            Answer::Batch { lease, items, start_up_ms } => {
                let mut beat =
                    || !matches!(link.once(&Request::Beat { lease }), Some(Answer::Stop | Answer::Over { .. }));
                let every = Duration::from_millis(BEAT_MS);
                let said = match batch::run(&place, &orders, &items, start_up_ms, every, &mut beat)? {
                    Some(done) => Request::Done { lease, done: done.bounded() },
                    None => Request::GiveBack { lease },
                };
                match link.insist(&said) {
                    // Somebody else has the rest of it, or it was all over: nothing more is to be said of it.
                    Answer::Taken | Answer::Refused { .. } | Answer::Over { .. } => {}
                    other => return Err(unexpected(&other)),
                }
            }
            Answer::Wait { milliseconds } => std::thread::sleep(Duration::from_millis(milliseconds.clamp(10, 5_000))),
            Answer::Over { red } => {
                if let Answer::Wanted { artifacts: Some(patterns), .. } = link.insist(&Request::Wanted) {
                    artifacts::keep(link, &place.code, patterns);
                }
                return Ok(red);
            }
            Answer::Refused { why: Refusal::Replaced } => return Err(End::Replaced),
            other => return Err(unexpected(&other)),
        }
    }
}

fn join(link: &mut Link) -> Result<Orders, End> {
    match link.insist(&Request::Join) {
        Answer::Welcome { orders } => Ok(orders),
        Answer::Refused { .. } => Err(End::Replaced),
        Answer::Over { .. } => Err(End::Replaced),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> End {
    let text = format!("{answer:?}");
    End::Broken(format!("the control plane said {}", text.chars().take(200).collect::<String>()))
}
