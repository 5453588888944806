//! The one integration test binary.

mod support {
    pub mod authority;
    pub mod browser;
    pub mod load;
    pub mod machine;
    pub mod receiver;
    pub mod schemas;
    pub mod servers;
    pub mod town;
}

mod access;
mod addons;
mod browser;
mod builds;
mod certificates;
mod changes;
mod commands;
mod config_vars;
mod crash;
mod dealing;
mod documents;
mod github_client;
mod github_schemas;
mod github_with_sim;
mod guard;
mod images;
mod intake;
mod layers;
mod machine;
mod manifest;
mod monorepo;
mod monitoring;
mod nodes;
mod operations;
mod orders;
mod sim_schemas;
mod sleep;
mod steady;
mod pipelines;
mod protection;
mod runners;
mod story;
