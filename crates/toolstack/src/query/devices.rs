//! The devices of a guest: their configuration, and the connection state of both ends.

use config::{Channel, Disk, Nic, Uuid, Vdev};
use xen_types::DomId;
use xenbus::{DeviceId, DeviceKind, XenbusState};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::device::backend::state;
use crate::device::nic::bridge_of;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::nodes::below;
use crate::record::GuestRecord;

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskEntry {
    /// As it is configured.
    pub disk: Disk,
    /// The stubdomain's PV disk that is behind QEMU's drive, if QEMU has one.
    pub stub_vdev: Option<Vdev>,
    /// The guest's end.
    pub link: Link,
}

/// A network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicEntry {
    /// As it is configured.
    pub nic: Nic,
    /// Its address.
    pub mac: config::MacAddr,
    /// The bridge that it joins.
    pub bridge: String,
    /// QEMU emulates a NIC for it.
    pub emulated: bool,
    /// The guest's end.
    pub link: Link,
}

/// A channel of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelEntry {
    /// Its number among the guest's PV consoles.
    pub number: u32,
    /// As it is configured.
    pub channel: Channel,
    /// The guest's end.
    pub link: Link,
}

/// How far a device is connected, as in `xl block-list`. The guest's numbers are not trusted; they are only displayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The frontend's state; absent when it has none.
    pub state: Option<XenbusState>,
    /// Its event channel.
    pub event_channel: Option<u64>,
    /// Its rings' grants.
    pub rings: Vec<Option<u64>>,
    /// The backend's directory.
    pub backend: String,
}

impl Toolstack {
    /// The disks of a guest, in their order.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none; when xenstore does not answer.
    pub fn disks(&self, id: GuestId) -> Result<Vec<DiskEntry>, Error> {
        let record = self.record_of(id)?;
        let domid = self.shown_domid(&record)?;
        let stub_of = |record: &GuestRecord, vdev| {
            record.emulated_disks.iter().find(|disk| disk.vdev == vdev).map(|disk| disk.stub_vdev)
        };
        let entry = |disk: &Disk| {
            let id = DeviceId::of_dom0(DeviceKind::Vbd, domid, disk.vdev.devid());
            let link = self.link(id, &["ring-ref"])?;
            Ok(DiskEntry { disk: disk.clone(), stub_vdev: stub_of(&record, disk.vdev), link })
        };
        record.config.disks.iter().map(entry).collect()
    }

    /// The network interfaces of a guest, in their order.
    ///
    /// # Errors
    /// As for [`Self::disks`].
    pub fn nics(&self, id: GuestId) -> Result<Vec<NicEntry>, Error> {
        let record = self.record_of(id)?;
        let domid = self.shown_domid(&record)?;
        let uuid: Uuid = record.uuid;
        let entry = |nic: &Nic| {
            let id = DeviceId::of_dom0(DeviceKind::Vif, domid, nic.devid);
            Ok(NicEntry {
                mac: nic.address(&uuid),
                bridge: bridge_of(nic).to_owned(),
                emulated: record.emulated_nics.contains(&nic.devid),
                link: self.link(id, &["tx-ring-ref", "rx-ring-ref"])?,
                nic: nic.clone(),
            })
        };
        record.config.nics.iter().map(entry).collect()
    }

    /// The channels of a guest, in their order.
    ///
    /// # Errors
    /// As for [`Self::disks`].
    pub fn channels(&self, id: GuestId) -> Result<Vec<ChannelEntry>, Error> {
        let record = self.record_of(id)?;
        let domid = self.shown_domid(&record)?;
        let entry = |(number, channel): (u32, &Channel)| {
            let mut link = self.link(DeviceId::of_dom0(DeviceKind::Console, domid, number), &["ring-ref"])?;
            // A console's port has another name than that of other devices.
            link.event_channel =
                self.number(&below(&DeviceId::of_dom0(DeviceKind::Console, domid, number).front(), "port"))?;
            Ok(ChannelEntry { number, channel: channel.clone(), link })
        };
        (1..).zip(&record.config.channels).map(entry).collect()
    }

    /// The domid that a guest's devices are listed with.
    fn shown_domid(&self, record: &GuestRecord) -> Result<DomId, Cause> {
        let gone = || Cause::NotRunning { name: record.name.clone(), reason: None };
        let domid = record.domid.ok_or_else(gone)?;
        self.holder(domid, record.uuid)?.ours().ok_or_else(gone)
    }

    fn link(&self, id: DeviceId, rings: &[&str]) -> Result<Link, Cause> {
        let (front, back) = (id.front(), id.back());
        Ok(Link {
            state: state(self, &front)?,
            event_channel: self.number(&below(&front, "event-channel"))?,
            rings: rings.iter().map(|ring| self.number(&below(&front, ring))).collect::<Result<_, _>>()?,
            backend: back.to_string(),
        })
    }

    /// A number of a guest's making.
    fn number(&self, path: &XsPath) -> Result<Option<u64>, Cause> {
        let value = self.xenstore.read(path)?;
        Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.trim().parse().ok()))
    }
}
