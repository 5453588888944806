//! Pages and the API over a world whose every text is hostile.

mod house;
mod logs;
mod orders;
mod pages;
