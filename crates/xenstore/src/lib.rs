//! The xenstore wire protocol, a client, and an in-process server for tests.
