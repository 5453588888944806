//! The field's words: data and rules, no input or output. Everything else imports it; it imports nothing of ours
//! but the type of a moment.

mod ids;
mod secret;
mod failure;
mod guard;
mod part;
mod repository;
mod pipeline;
mod preparation;
mod app;
mod access;
mod addon;
mod alert;
mod config_vars;
mod route;
mod runtime_code;
mod build;
mod test_run;
mod delivery;
mod drain;
mod image;
mod command;
mod event;
mod procfile;
mod manifest;
mod mask;
mod settings;

pub use access::*;
pub use addon::*;
pub use alert::*;
pub use app::*;
pub use build::*;
pub use command::*;
pub use config_vars::*;
pub use delivery::*;
pub use drain::*;
pub use event::*;
pub use failure::*;
pub use guard::*;
pub use ids::*;
pub use image::*;
pub use manifest::*;
pub use mask::*;
pub use part::*;
pub use pipeline::*;
pub use preparation::*;
pub use procfile::*;
pub use repository::*;
pub use route::*;
pub use runtime_code::*;
pub use secret::*;
pub use settings::*;
pub use test_run::*;

#[cfg(test)]
pub(crate) use repository::tests as repository_tests;
