use thiserror::Error;

/// Why libxl's JSON cannot become a configuration of ours.
///
/// Keys are paths such as `b_info.type.hvm.bios` or `disks[1].format`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// It is larger than what is read.
    #[error("The configuration has {length} bytes; at most {limit} are read")]
    TooLarge {
        /// Its size in bytes.
        length: usize,
        /// The most that is read, in bytes.
        limit: usize,
    },
    /// It is not JSON.
    #[error("The configuration is not JSON; the file is damaged")]
    Syntax(#[source] serde_json::Error),
    /// The guest is of another type.
    #[error("`c_info.type` is `{found}`: only HVM guests (`hvm`) are supported; use xl for this one")]
    NotHvm {
        /// The type, empty if there is none.
        found: String,
    },
    /// A value does not have the JSON type that libxl gives it.
    #[error("`{key}` is not {wanted}; the file is damaged, or of another release of Xen")]
    WrongType {
        /// The key.
        key: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A number is too large or too small.
    #[error("`{key}` is {found}, which it cannot be; the file is damaged, or of another release of Xen")]
    OutOfRange {
        /// The key.
        key: String,
        /// The number.
        found: i128,
    },
    /// The guest has what Outrigger does not support, and would lack it.
    #[error("`{key}` is not supported: {why}")]
    NotSupported {
        /// The key.
        key: String,
        /// Why not, or what to do.
        why: &'static str,
    },
    /// The value cannot be written in the language of xl.cfg(5).
    #[error(
        "`{key}` has a value that xl.cfg cannot express: a comma, a control character, or a part of a MiB"
    )]
    NotExpressible {
        /// The key.
        key: String,
    },
    /// The configuration is refused as that of a new guest would be.
    #[error("{}: {reason}{}", refused(key), others(*more))]
    Refused {
        /// The key; empty if it is none of them alone.
        key: String,
        /// The diagnostic's name, such as `config::refused`.
        id: &'static str,
        /// Why, and what to do.
        reason: String,
        /// How many other errors there were.
        more: usize,
    },
}

fn refused(key: &str) -> String {
    if key.is_empty() { "The configuration is refused".to_owned() } else { format!("`{key}` is refused") }
}

fn others(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more errors)") }
}
