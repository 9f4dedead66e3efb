//! The contract between the toolstack and the device-model stubdomain, as types.
