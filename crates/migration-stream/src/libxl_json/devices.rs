//! Disks, NICs and channels, as the strings that xl.cfg(5) has for them.

use config::Rate;

use super::error::JsonError;
use super::fields::Fields;

/// A device's string, the key it came from, and what else belongs to it.
pub(super) struct Device<T> {
    pub(super) text: String,
    pub(super) origin: String,
    pub(super) more: T,
}

/// The words of a device: `key=value`, parted by commas.
#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn flag(&mut self, word: &str) {
        self.0.push(word.to_owned());
    }

    fn number(&mut self, key: &str, value: impl std::fmt::Display) {
        self.0.push(format!("{key}={value}"));
    }

    /// Adds a value, which must not look like a word of its own.
    fn text(&mut self, key: &str, value: &str, origin: String) -> Result<(), JsonError> {
        if value.contains(|c: char| c == ',' || c.is_control()) || value.trim() != value {
            return Err(JsonError::NotExpressible { key: origin });
        }
        self.number(key, value);
        Ok(())
    }

    /// Adds one member of an object, if the object has it.
    fn member(&mut self, key: &str, fields: &mut Fields<'_>, member: &str) -> Result<(), JsonError> {
        match fields.text(member)? {
            Some(value) => self.text(key, value, fields.path(member)),
            None => Ok(()),
        }
    }

    fn backend(&mut self, fields: &mut Fields<'_>) -> Result<(), JsonError> {
        let id = fields.unsigned("backend_domid")?.filter(|id| *id != 0);
        match (fields.text("backend_domname")?, id) {
            (Some(name), _) => self.text("backend", name, fields.path("backend_domname")),
            (None, Some(id)) => {
                self.number("backend", id);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    fn trusted(&mut self, fields: &mut Fields<'_>) -> Result<(), JsonError> {
        if fields.defbool("trusted")? == Some(false) {
            self.flag("untrusted");
        }
        Ok(())
    }

    fn finish(self) -> String {
        self.0.join(",")
    }
}

fn refuse_colo(fields: &Fields<'_>, start: &str) -> Result<(), JsonError> {
    match fields.beginning_with(start) {
        Some(key) => Err(JsonError::NotSupported { key, why: "COLO is not supported" }),
        None => Ok(()),
    }
}

/// Whether a member of 0 or 1 is set.
fn is_set(fields: &mut Fields<'_>, key: &str) -> Result<bool, JsonError> {
    Ok(fields.number(key)?.is_some_and(|number| number != 0))
}

pub(super) fn disk(mut fields: Fields<'_>, ignored: &mut Vec<String>) -> Result<Device<()>, JsonError> {
    let mut words = Words::default();
    for key in ["colo_enable", "colo_restore_enable"] {
        if fields.defbool(key)? == Some(true) {
            return Err(JsonError::NotSupported { key: fields.path(key), why: "COLO is not supported" });
        }
    }
    // It means nothing without the others.
    fields.number("colo_port")?;
    for start in ["colo_", "active_disk", "hidden_disk"] {
        refuse_colo(&fields, start)?;
    }
    words.member("vdev", &mut fields, "vdev")?;
    let cdrom = is_set(&mut fields, "is_cdrom")?;
    if cdrom {
        words.flag("devtype=cdrom");
    }
    let format = fields.text("format")?.filter(|format| *format != "unknown").unwrap_or("raw");
    words.text("format", format, fields.path("format"))?;
    backend_type(&mut words, &mut fields, format)?;
    if !is_set(&mut fields, "readwrite")? && !cdrom {
        words.flag("access=ro");
    }
    if fields.text("specification")?.is_some_and(|word| word == "virtio") {
        words.flag("specification=virtio");
    }
    words.backend(&mut fields)?;
    words.member("script", &mut fields, "script")?;
    match fields.defbool("discard_enable")? {
        Some(true) => words.flag("discard"),
        Some(false) => words.flag("no-discard"),
        None => {}
    }
    if fields.boolean("direct_io_safe")? == Some(true) {
        words.flag("direct-io-safe");
    }
    words.trusted(&mut fields)?;
    is_set(&mut fields, "removable")?;
    let target = fields.text("pdev_path")?.unwrap_or_default();
    // One comma at the very end is dropped by the reader.
    words.0.push(format!("target={target},"));
    let origin = fields.own();
    fields.finish(ignored);
    Ok(Device { text: words.finish(), origin, more: () })
}

/// Which program serves the disk. A raw image is the same to the guest, whoever serves it; libxl has every CD drive
/// served by QEMU.
fn backend_type(words: &mut Words, fields: &mut Fields<'_>, format: &str) -> Result<(), JsonError> {
    match fields.text("backend")? {
        None | Some("unknown") => Ok(()),
        Some("qdisk") if matches!(format, "raw" | "empty") => Ok(()),
        Some(other) => words.text("backendtype", other, fields.path("backend")),
    }
}

pub(super) fn nic(
    mut fields: Fields<'_>,
    ignored: &mut Vec<String>,
) -> Result<Device<Option<Rate>>, JsonError> {
    let mut words = Words::default();
    refuse_colo(&fields, "colo")?;
    if fields.text("vlan")?.is_some() {
        return Err(JsonError::NotSupported {
            key: fields.path("vlan"),
            why: "VLANs of bridges are not supported yet, and the guest would be in another network",
        });
    }
    if let Some(devid) = fields.number("devid")?.filter(|devid| *devid != -1) {
        words.number("devid", devid);
    }
    if let Some(mac) = fields.text("mac")?.filter(|mac| *mac != "00:00:00:00:00:00") {
        words.text("mac", mac, fields.path("mac"))?;
    }
    match fields.text("nictype")? {
        None | Some("unknown") => {}
        Some("vif_ioemu") => words.flag("type=ioemu"),
        Some(other) => words.text("type", other, fields.path("nictype"))?,
    }
    if let Some(mtu) = fields.number("mtu")?.filter(|mtu| *mtu > 0) {
        words.number("mtu", mtu);
    }
    for (key, member) in [
        ("model", "model"),
        ("bridge", "bridge"),
        ("ip", "ip"),
        ("vifname", "ifname"),
        ("script", "script"),
        ("gatewaydev", "gatewaydev"),
    ] {
        words.member(key, &mut fields, member)?;
    }
    words.backend(&mut fields)?;
    words.trusted(&mut fields)?;
    let rate = rate(&mut fields)?;
    let origin = fields.own();
    fields.finish(ignored);
    Ok(Device { text: words.finish(), origin, more: rate })
}

/// The limit of a NIC. It is not written as a word, which would round it.
fn rate(fields: &mut Fields<'_>) -> Result<Option<Rate>, JsonError> {
    let bytes = fields.unsigned("rate_bytes_per_interval")?.filter(|bytes| *bytes != 0);
    let usecs = fields.unsigned("rate_interval_usecs")?.unwrap_or(0);
    let Some(bytes_per_interval) = bytes else { return Ok(None) };
    let interval_usecs = u32::try_from(usecs).ok().filter(|usecs| *usecs > 0);
    let key = || fields.path("rate_interval_usecs");
    let interval_usecs =
        interval_usecs.ok_or_else(|| JsonError::OutOfRange { key: key(), found: usecs.into() })?;
    Ok(Some(Rate { bytes_per_interval, interval_usecs }))
}

pub(super) fn channel(mut fields: Fields<'_>, ignored: &mut Vec<String>) -> Result<Device<()>, JsonError> {
    let mut words = Words::default();
    words.member("name", &mut fields, "name")?;
    words.backend(&mut fields)?;
    fields.number("devid")?;
    // libxl writes the member of the union that counts.
    if let Some(mut socket) = fields.object("connection.socket")? {
        words.flag("connection=socket");
        words.member("path", &mut socket, "path")?;
        socket.finish(ignored);
    } else if fields.any("connection.pty").is_some() {
        words.flag("connection=pty");
    }
    let origin = fields.own();
    fields.finish(ignored);
    Ok(Device { text: words.finish(), origin, more: () })
}
