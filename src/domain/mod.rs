//! The field's words: data and rules, no input or output. Everything else imports it; it imports nothing of ours
//! but the type of a moment.

mod ids;

pub use ids::*;
