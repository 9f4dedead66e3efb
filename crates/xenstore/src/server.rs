//! A xenstored in this process, for tests.

use std::collections::BTreeMap;

use xen_types::DomId;

use crate::{Permissions, Xenstore};

/// A xenstored in this process.
#[derive(Debug)]
pub struct Server {}
