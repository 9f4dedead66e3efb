//! The local API of `outriggerd`: a varlink interface on a unix socket.
//!
//! Varlink frames are JSON objects ended by a NUL byte (<https://varlink.org>). The interface's text is
//! [`INTERFACE`]; the daemon serves it verbatim through `org.varlink.service.GetInterfaceDescription`, so that any
//! varlink tool can introspect it. This crate has the frames ([`frame`]), the calls ([`call`]), the types of the interface
//! ([`types`]) and a blocking [`client`]; it neither knows Xen nor the toolstack.
#![forbid(unsafe_code)]

pub mod call;
pub mod client;
pub mod frame;
mod parameters;
mod processors;
mod refusal;
pub mod types;

/// The interface definition that the daemon serves.
pub const INTERFACE: &str = include_str!("io.outrigger.varlink");

/// The name of the interface, the first part of each method's and error's full name.
pub const INTERFACE_NAME: &str = "io.outrigger";

/// Where the daemon listens unless told otherwise. Mode 0600, owner root.
pub const DEFAULT_SOCKET: &str = "/run/outrigger/outriggerd.sock";

#[cfg(test)]
mod tests {
    use super::*;

    /// Each error that the types know must be in the text that we serve, and the other way round.
    #[test]
    fn interface_text_and_types_name_the_same_errors() {
        let declared = |word: &str| {
            let mut names: Vec<&str> = INTERFACE
                .lines()
                .filter_map(|line| line.strip_prefix(word)?.split([' ', '(']).next())
                .collect();
            names.sort_unstable();
            names
        };
        let mut errors = types::ERRORS.to_vec();
        errors.sort_unstable();
        assert_eq!(declared("error "), errors);
    }
}
