//! Landfall: a self-hosted CI/CD bot driven by GitHub webhooks.

pub mod domain;
pub mod ci;
pub mod workflow;
pub mod clock;
pub mod store;
pub mod github;
pub mod platform;
pub mod slug;
pub mod router;
pub mod reconcile;
pub mod web;
pub mod sim;
