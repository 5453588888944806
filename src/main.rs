//! The one binary: everything is in the library.

use std::process::ExitCode;

/// The router makes many small allocations for each request.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    landfall::cli::main()
}
