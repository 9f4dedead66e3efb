use std::io;

use thiserror::Error;

/// Why bytes are not the stream of a guest, or cannot become one.
///
/// Offsets count from the first byte that the function or [`crate::libxc::Checker`] was given.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The descriptor cannot be read.
    #[error("Cannot read {what} at byte {offset}")]
    Read {
        /// What was read.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Why not.
        source: io::Error,
    },
    /// The bytes end too early.
    #[error(
        "The stream ends at byte {offset}, in {what}, which lacks {missing} more bytes; it was not saved or not copied \
         completely: use another copy"
    )]
    Truncated {
        /// What was read.
        what: &'static str,
        /// Where the bytes end.
        offset: u64,
        /// How many more were needed at once.
        missing: u64,
    },
    /// A part does not begin with its mark.
    #[error("{what} does not begin at byte {offset}; this is not a saved guest, or it is damaged")]
    Mark {
        /// The part.
        what: &'static str,
        /// Where it should begin.
        offset: u64,
    },
    /// The file is of a machine with another byte order.
    #[error(
        "The file's byte order is {found:#010x} instead of 0x01020304: it was saved on a machine with another byte \
         order, or is damaged, and cannot be restored here"
    )]
    ByteOrder {
        /// What was found.
        found: u32,
    },
    /// The header demands what its reader has to know.
    #[error(
        "The file has the mandatory flags {unknown:#x}, which are unknown; it was saved by a newer xl: restore it there"
    )]
    MandatoryFlags {
        /// Those that are unknown.
        unknown: u32,
    },
    /// The header's configuration is not JSON.
    #[error(
        "The file has no configuration in libxl's JSON; it was saved by an xl before Xen 4.5 and cannot be restored here"
    )]
    NoJson,
    /// The stream is of the kind from before Xen 4.6.
    #[error(
        "The file has no stream of version 2; it was saved by an xl before Xen 4.6 and cannot be restored here"
    )]
    NotStreamV2,
    /// The JSON's length contradicts the header, or its end is missing.
    #[error("The configuration in the header {why}, at byte {offset}; the file is damaged")]
    JsonBounds {
        /// Where.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// Something is larger than anything that is accepted.
    #[error("{what} has {length} bytes at byte {offset}; at most {limit} are accepted")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Its size in bytes.
        length: u64,
        /// The most that is accepted, in bytes.
        limit: u64,
    },
    /// A part has another version.
    #[error("{what} has version {found} at byte {offset}; only version {known} is supported")]
    Version {
        /// The part.
        what: &'static str,
        /// Where.
        offset: u64,
        /// The version.
        found: u32,
        /// The one that is supported.
        known: u32,
    },
    /// A part's options, or bytes that must be zero, are set.
    #[error("{what} has the options {found:#x} at byte {offset}, which are not supported")]
    Options {
        /// The part.
        what: &'static str,
        /// Where.
        offset: u64,
        /// The options.
        found: u64,
    },
    /// The guest is of another type.
    #[error("The guest at byte {offset} is of type {found}, not an HVM guest (2); use xl for it")]
    GuestType {
        /// Where.
        offset: u64,
        /// The type: 1 is PV.
        found: u32,
    },
    /// The guest's pages have another size.
    #[error("The guest at byte {offset} has pages of 2^{found} bytes instead of 2^12; the stream is damaged")]
    PageSize {
        /// Where.
        offset: u64,
        /// Bits of an address within a page.
        found: u16,
    },
    /// A record of a type that is unknown, or that has no place in the stream of an HVM guest.
    #[error(
        "{stream} has a record of type {kind:#x} at byte {offset}, which is not supported; it was saved by a newer Xen, \
         or is damaged"
    )]
    UnknownRecord {
        /// The stream.
        stream: &'static str,
        /// The type.
        kind: u32,
        /// Where.
        offset: u64,
    },
    /// A record of a guest that is replicated continuously.
    #[error(
        "{stream} has a checkpoint record ({kind:#x}) at byte {offset}: it is of Remus or COLO, which are not supported"
    )]
    Checkpoint {
        /// The stream.
        stream: &'static str,
        /// The type.
        kind: u32,
        /// Where.
        offset: u64,
    },
    /// A record comes twice.
    #[error("{stream} has a second record of type {kind:#x} at byte {offset}; it is damaged")]
    DoubledRecord {
        /// The stream.
        stream: &'static str,
        /// The type.
        kind: u32,
        /// Where.
        offset: u64,
    },
    /// A record comes in the wrong place.
    #[error(
        "{stream} has a record of type {kind:#x} at byte {offset} where {expected} is expected; it is damaged"
    )]
    OutOfOrder {
        /// The stream.
        stream: &'static str,
        /// The type.
        kind: u32,
        /// Where.
        offset: u64,
        /// What should come.
        expected: &'static str,
    },
    /// A record has a length that its type cannot have.
    #[error(
        "{stream} has a record of type {kind:#x} at byte {offset} with {length} bytes, which it cannot have"
    )]
    RecordLength {
        /// The stream.
        stream: &'static str,
        /// The type.
        kind: u32,
        /// Where.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// Bytes between records are not zero.
    #[error("{stream} has padding at byte {offset} that is not zero; it is damaged")]
    Padding {
        /// The stream.
        stream: &'static str,
        /// Where.
        offset: u64,
    },
    /// A record of pages names a page that no HVM guest has.
    #[error(
        "The record at byte {offset} has a page of the impossible number or type {found:#x}; it is damaged"
    )]
    Page {
        /// Where the record begins.
        offset: u64,
        /// The entry: number and type.
        found: u64,
    },
    /// The state is of another emulator than upstream QEMU.
    #[error(
        "The state at byte {offset} is of emulator {id}, number {index}; only upstream QEMU (2), number 0, is supported"
    )]
    Emulator {
        /// Where.
        offset: u64,
        /// Which: 1 is qemu-xen-traditional.
        id: u32,
        /// Which of several.
        index: u32,
    },
    /// The stream ended without QEMU's state.
    #[error(
        "The stream ends at byte {offset} without the state of QEMU, which an HVM guest cannot go on without"
    )]
    NoEmulator {
        /// Where it ends.
        offset: u64,
    },
    /// Our own part of the header is damaged.
    #[error("Outrigger's part of the file's header {why}; the file is damaged")]
    Tail {
        /// What is wrong.
        why: &'static str,
    },
    /// Our own part of the header is intact and cannot be understood, or cannot be written.
    #[error(
        "Outrigger's part of the file's header is not understood; it was saved by another version of Outrigger"
    )]
    Metadata(#[source] serde_json::Error),
    /// There is no state, only its beginning and end.
    #[error("QEMU's state has no content; QEMU failed while it was saved")]
    EmptyState,
    /// QEMU's state does not begin or go on as one does.
    #[error("QEMU's state is not one at byte {offset}; it is damaged, or something else")]
    State {
        /// Where.
        offset: u64,
    },
    /// QEMU's state has no end.
    #[error(
        "QEMU's state has no end after its {length} bytes; QEMU failed while it was saved, or bytes were lost"
    )]
    StateEnd {
        /// Its length in bytes.
        length: u64,
    },
    /// Two states, of which QEMU would load the older.
    #[error(
        "QEMU's state has a second state at byte {offset}: the guest was saved twice by stock xl, and QEMU would load \
         the first, outdated one; save the guest again after it was restarted"
    )]
    TwoStates {
        /// Where the second begins.
        offset: u64,
    },
}
