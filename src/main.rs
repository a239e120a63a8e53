//! The program: arguments in, exit status out. Everything else is in the
//! library beside it, where tests reach it.

fn main() -> std::process::ExitCode {
    gosandbox::cli::main().end()
}
