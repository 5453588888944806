//! The one integration test binary.

mod support {
    pub mod browser;
    pub mod load;
    pub mod machine;
    pub mod schemas;
    pub mod town;
}

mod browser;
mod crash;
mod dealing;
mod documents;
mod github_client;
mod github_schemas;
mod github_with_sim;
mod intake;
mod layers;
mod machine;
mod manifest;
mod sim_schemas;
mod story;
