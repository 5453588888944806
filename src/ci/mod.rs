//! What test runners say, read without trust; how their files are spread over nodes; what becomes of them. Pure.

pub mod cases;
pub mod judge;
pub mod junit;
pub mod knapsack;
pub mod presets;
pub mod split;
pub mod tap;
pub mod wire;
