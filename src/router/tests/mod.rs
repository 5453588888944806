//! The router against real sockets: in-process supervisors hand over connections to in-process apps, clients speak
//! raw HTTP, and the router runs on a thread of its own.

mod world;

mod balance;
mod clients;
mod closed;
mod control;
mod failures;
mod handover;
mod headers;
mod secure;
mod smuggling;
mod socket;
mod streamed;
mod switching;
mod waiting;
