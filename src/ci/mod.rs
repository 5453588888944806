//! What test runners say, read without trust. Pure.

pub mod tap;
