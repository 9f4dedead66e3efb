use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::guest;
use crate::model::{Disk, Nic, Vdev};
use crate::source::{SourceFile, Span};
use crate::text::Text;

/// The longest text of one device that is read, in bytes.
const MAX_TEXT: usize = 4096;

/// A device that was given by itself, as on a command line, and what there is to say of it.
#[derive(Clone, Debug)]
pub struct LoadedDevice<T> {
    /// The text, for rendering the diagnostics.
    pub source: SourceFile,
    /// The device; absent when there was an error.
    pub device: Option<T>,
    /// Errors and warnings, in the text's order.
    pub diagnostics: Vec<Diagnostic>,
}

impl<T> LoadedDevice<T> {
    /// All diagnostics for a person, a blank line between each two; empty when there is none.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let rendered: Vec<String> = self.diagnostics.iter().map(|d| d.render(&self.source, color)).collect();
        rendered.join("\n\n")
    }
}

/// Reads one disk in the language of `xl-disk-configuration(5)`.
///
/// ```
/// let loaded = config::load_disk("disk", "/srv/a.img,raw,xvdb,ro");
/// assert_eq!(loaded.device.unwrap().vdev.to_string(), "xvdb");
/// ```
#[must_use]
pub fn load_disk(name: &str, text: &str) -> LoadedDevice<Disk> {
    load(name, text, guest::lone_disk)
}

/// Reads one network interface in the language of `xl-network-configuration(5)`; `devid` is its number when it names
/// none.
#[must_use]
pub fn load_nic(name: &str, text: &str, devid: u32) -> LoadedDevice<Nic> {
    load(name, text, |atom| guest::lone_nic(atom, devid))
}

/// Whether a text can be a guest's name.
///
/// # Errors
/// Why it cannot, as words about it.
pub fn check_name(name: &str) -> Result<(), String> {
    guest::name_problem(name).map_or(Ok(()), |problem| Err(format!("it {problem}")))
}

/// Reads the name of a virtual device, such as `hdc` or `xvdb`, or its number in xenstore.
///
/// # Errors
/// Why it is none, as a sentence for a person.
pub fn device_name(text: &str) -> Result<Vdev, String> {
    guest::disk_name(text)
}

fn load<T>(
    name: &str,
    text: &str,
    read: impl FnOnce(&Atom) -> (Option<T>, Vec<Diagnostic>),
) -> LoadedDevice<T> {
    if text.len() > MAX_TEXT {
        let message = format!("A device's text is at most {MAX_TEXT} bytes long");
        let diagnostics = vec![Diagnostic::error("config::too-large", message)];
        return LoadedDevice { source: SourceFile::new(name, ""), device: None, diagnostics };
    }
    let span = Span::new(0, text.len());
    let atom = Atom { text: Text::verbatim(text, 0), span, quoted: true };
    let (device, diagnostics) = read(&atom);
    let failed = diagnostics.iter().any(Diagnostic::is_error);
    LoadedDevice { source: SourceFile::new(name, text), device: device.filter(|_| !failed), diagnostics }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DiskSource;

    #[test]
    fn disk_by_itself_is_the_disk_of_a_file() {
        let disk = load_disk("disk", "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/srv/a,b.iso");
        let disk = disk.device.unwrap();
        assert!(disk.is_cdrom());
        assert_eq!(disk.source, DiskSource::Path("/srv/a,b.iso".to_owned()));
    }

    #[test]
    fn mistake_is_pointed_at() {
        let loaded = load_disk("disk", "/srv/a.img,qcow2,xvdb,w");
        assert!(loaded.device.is_none());
        assert!(loaded.render(false).contains("disk:1:12"), "{}", loaded.render(false));
        assert!(load_nic("vif", "bridge=xenbr0,bridgee=1", 0).device.is_none());
        assert!(load_disk("disk", &"x".repeat(5000)).device.is_none());
    }

    #[test]
    fn interface_takes_the_number_that_is_free() {
        assert_eq!(load_nic("vif", "bridge=br1", 3).device.unwrap().devid, 3);
        assert_eq!(load_nic("vif", "devid=7", 3).device.unwrap().devid, 7);
        assert_eq!(load_nic("vif", "", 3).device.unwrap().devid, 3);
    }

    #[test]
    fn devices_have_names_and_numbers() {
        for text in ["hdc", "5632"] {
            assert_eq!(device_name(text).unwrap().to_string(), "hdc", "{text}");
        }
        assert!(device_name("/dev/hdc").is_err());
    }
}
