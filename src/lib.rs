//! Landfall: a self-hosted CI/CD bot driven by GitHub webhooks.
//!
//! # The map
//! A data flow reads top to bottom: intake → workflow → act → publish.
//!
//! ```text
//! GitHub ─POST─▶ web/intake ─▶ store: delivery + queue entry, one transaction, durable ─▶ 202
//!                                    │ reconcile::step() claims the next entry (a lease, not a removal)
//!                  github/payload    ▼ bytes → event
//!                  reconcile/deliver facts read again from GitHub
//!                  workflow          (event, snapshot) → changes                   pure
//!                                    ▼ wanted state written, subjects enqueued     one transaction
//!                  reconcile/observe platform, router, store → view
//!                  workflow          (wanted, view) → plan                         pure
//!                  reconcile/act     slug · platform · router                      repeatable, one at a time
//!                  workflow/report   state → reports                               pure
//!                  reconcile/publish what differs from the last report ─▶ GitHub
//! ```
//!
//! # The layers
//! Who may import whom is kept by `tests/layers.rs`, as are the names that only one module may say.

pub mod domain;
pub mod ci;
pub mod workflow;
pub mod clock;
pub mod outside;
pub mod text;
pub mod vault;
pub mod config;
pub mod store;
pub mod github;
pub mod platform;
pub mod slug;
pub mod addons;
pub mod acme;
pub mod meters;
pub mod figures;
pub mod drains;
pub mod router;
pub mod reconcile;
pub mod node;
pub mod web;
pub mod server;
pub mod sim;
pub mod demo;
pub mod cli;
