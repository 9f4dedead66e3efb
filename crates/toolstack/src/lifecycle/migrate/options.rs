use std::time::Duration;

use config::GuestConfig;

use crate::handover::stream::Packing;

/// How a guest is migrated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrateOptions {
    /// The other host, as the operator named it.
    pub host: String,
    /// Whether the guest runs while most of its memory is sent.
    pub live: bool,
    /// How long it may stand still; without a limit, it is suspended after some rounds in any case.
    pub max_downtime: Option<Duration>,
    /// How much may be sent, in bytes a second.
    pub bandwidth: Option<u64>,
    /// Whether the memory is compressed on its way.
    pub compress: bool,
    /// What the guest's configuration is at the other host, if it is not the same.
    pub dest_config: Option<Box<GuestConfig>>,
}

impl MigrateOptions {
    pub(super) const fn packing(&self) -> Packing {
        if self.compress { Packing::Zstd } else { Packing::None }
    }
}
