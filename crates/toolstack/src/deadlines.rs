use std::time::Duration;

/// How long each wait may last. No wait of this crate is without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the stubdomain's start until its QEMU says `running`.
    pub device_model: Duration,
    /// Until every backend has taken its device.
    pub backends: Duration,
    /// Until a backend has closed when its device goes.
    pub backends_close: Duration,
    /// Until a killed domain is gone.
    pub domain_gone: Duration,
    /// Until a guest with PV drivers acknowledges a shutdown request.
    pub shutdown_ack: Duration,
    /// Until a guest with PV drivers acknowledges the request to suspend. It may have to write out much first.
    pub suspend_ack: Duration,
    /// From then until it is suspended.
    pub suspend: Duration,
    /// Until the state of a device model has moved, while none of it moves.
    pub state: Duration,
    /// Until the memory of a guest has been written or read, as large as it may be.
    pub memory: Duration,
    /// Until another host has answered one message that needs no work.
    pub peer: Duration,
    /// Until another host has built a guest, loaded it, or taken it over.
    pub peer_work: Duration,
    /// Until a guest has released a device that is to be detached.
    pub release: Duration,
    /// Until QEMU has answered one command.
    pub qmp: Duration,
    /// Until QEMU has drawn a picture of the screen.
    pub screen: Duration,
    /// One hotplug script.
    pub script: Duration,
    /// Without a new heartbeat of the stubdomain's agent, until its device model is considered dead.
    pub heartbeat: Duration,
    /// From when another program has destroyed the stubdomain until it must have destroyed the guest, too.
    pub orphaned: Duration,
    /// A write of a state file that another operation of the guest waits for.
    pub state_file: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            device_model: Duration::from_secs(60),
            backends: Duration::from_secs(20),
            backends_close: Duration::from_secs(5),
            domain_gone: Duration::from_secs(20),
            shutdown_ack: Duration::from_secs(10),
            suspend_ack: Duration::from_secs(60),
            suspend: Duration::from_secs(60),
            state: Duration::from_secs(30),
            memory: Duration::from_secs(4 * 3600),
            peer: Duration::from_secs(15),
            peer_work: Duration::from_secs(180),
            release: Duration::from_secs(10),
            qmp: Duration::from_secs(10),
            screen: Duration::from_secs(30),
            script: Duration::from_secs(40),
            heartbeat: stubdom_abi::HEARTBEAT_STALE,
            orphaned: Duration::from_secs(3),
            state_file: Duration::from_secs(30),
        }
    }
}

impl Deadlines {
    /// The variable whose number stretches all deadlines, for slow (emulated) machines.
    pub const SCALE_VARIABLE: &'static str = "OUTRIGGER_TIME_SCALE";

    /// The default deadlines, stretched by [`Self::SCALE_VARIABLE`] when that is a number from 0.01 to 1000.
    #[must_use]
    pub fn from_environment() -> Self {
        let scale = std::env::var(Self::SCALE_VARIABLE)
            .ok()
            .and_then(|text| text.trim().parse::<f64>().ok())
            .filter(|scale| (0.01..=1000.0).contains(scale))
            .unwrap_or(1.0);
        Self::default().scaled(scale)
    }

    /// All deadlines times `scale`.
    #[must_use]
    pub fn scaled(&self, scale: f64) -> Self {
        Self {
            device_model: self.device_model.mul_f64(scale),
            backends: self.backends.mul_f64(scale),
            backends_close: self.backends_close.mul_f64(scale),
            domain_gone: self.domain_gone.mul_f64(scale),
            shutdown_ack: self.shutdown_ack.mul_f64(scale),
            suspend_ack: self.suspend_ack.mul_f64(scale),
            suspend: self.suspend.mul_f64(scale),
            state: self.state.mul_f64(scale),
            memory: self.memory.mul_f64(scale),
            peer: self.peer.mul_f64(scale),
            peer_work: self.peer_work.mul_f64(scale),
            release: self.release.mul_f64(scale),
            qmp: self.qmp.mul_f64(scale),
            screen: self.screen.mul_f64(scale),
            script: self.script.mul_f64(scale),
            heartbeat: self.heartbeat.mul_f64(scale),
            orphaned: self.orphaned.mul_f64(scale),
            state_file: self.state_file.mul_f64(scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_stretches_every_deadline() {
        let twice = Deadlines::default().scaled(2.0);
        assert_eq!(twice.device_model, Deadlines::default().device_model * 2);
        assert_eq!(twice.script, Deadlines::default().script * 2);
    }
}
