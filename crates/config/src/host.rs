//! `xl.conf`: what a host's administrator has set for every guest.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::document::Entry;
use crate::guest;
use crate::load::{MAX_FILE_SIZE, read_bounded};
use crate::model::{Affinity, CpuSet, GrantLimits, GuestConfig, Nic};
use crate::parser::parse;
use crate::reader::{Reader, nearest};
use crate::source::SourceFile;

/// What `xl.conf(5)` says and concerns guests of this toolstack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostDefaults {
    /// `vif.default.bridge`, and the older `defaultbridge`.
    pub bridge: Option<String>,
    /// `vif.default.script`, and the older `vifscript`.
    pub script: Option<String>,
    /// `vif.default.gatewaydev`.
    pub gateway_dev: Option<String>,
    /// `vm.cpumask` and `vm.hvm.cpumask` together: where HVM guests may run; absent: everywhere.
    pub cpus: Option<CpuSet>,
    /// `max_grant_frames`, `max_maptrack_frames`, `max_grant_version`.
    pub grants: GrantLimits,
    /// What is wrong in the file, one line each with its place; as long as there is something, nothing is made by it.
    pub errors: Vec<String>,
}

/// The number of `/dev/null`, major 1 and minor 3.
const NULL_DEVICE: u64 = 0x103;
/// How many errors of the file are kept.
const MAX_ERRORS: usize = 10;

/// An `xl.conf` that was read, or could not be: the errors are in [`HostDefaults::errors`], too.
#[derive(Clone, Debug)]
pub struct LoadedHost {
    /// The file, for rendering the diagnostics.
    pub source: SourceFile,
    /// What it says.
    pub defaults: HostDefaults,
    /// Errors, and warnings of what has no effect, in the file's order.
    pub diagnostics: Vec<Diagnostic>,
}

/// Keys that xl knows and that have no effect here.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    (
        "autoballoon",
        "dom0's memory is never changed for a guest: limit it with Xen's dom0_mem, or by xl mem-set; where memory is short, the error says by how much",
    ),
    ("blkdev_start", "the image of a guest without a disk's name is never attached to dom0"),
    ("bootloader_restrict", "no boot loader of a guest runs in dom0"),
    ("claim_mode", "memory is not claimed; if it does not suffice, the guest is undone"),
    ("colo.default.proxyscript", "COLO is not supported"),
    ("domid_policy", "Xen chooses the domids"),
    ("lockfile", "no lock is shared with xl"),
    ("output_format", "it is the format of what xl prints"),
    ("remus.default.netbufscript", "Remus is not supported"),
    ("run_hotplug_scripts", "the daemon runs hotplug scripts itself"),
    ("vm.pv.cpumask", "there are no PV guests"),
];

const READ: &[&str] = &[
    "defaultbridge",
    "max_grant_frames",
    "max_grant_version",
    "max_maptrack_frames",
    "vif.default.backend",
    "vif.default.bridge",
    "vif.default.gatewaydev",
    "vif.default.script",
    "vifscript",
    "vm.cpumask",
    "vm.hvm.cpumask",
];

/// Reads the file. Without one, everything is at its default; one that cannot be read is an error like those in it.
#[must_use]
pub fn load_host(path: &Path) -> LoadedHost {
    let name = path.display().to_string();
    match read_regular(path) {
        Ok(bytes) if bytes.len() as u64 > MAX_FILE_SIZE => {
            let message = format!("The file is larger than {MAX_FILE_SIZE} bytes");
            failed(name, Diagnostic::error("config::too-large", message))
        }
        Ok(bytes) => of_source(SourceFile::from_bytes(name, &bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => load_host_str(&name, ""),
        Err(error) => {
            let message = format!("The file could not be read: {error}");
            failed(name, Diagnostic::error("config::unreadable", message))
        }
    }
}

/// The bytes of a file. Opening a FIFO would wait for its writer.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        read_bounded(path)
    } else if metadata.file_type().is_char_device() && metadata.rdev() == NULL_DEVICE {
        // In place of a file, or a link in its place: there is none.
        Ok(Vec::new())
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

fn failed(name: String, diagnostic: Diagnostic) -> LoadedHost {
    finished(SourceFile::new(name, ""), HostDefaults::default(), vec![diagnostic])
}

/// Reads what is in memory; `name` is what diagnostics call it.
#[must_use]
pub fn load_host_str(name: &str, text: &str) -> LoadedHost {
    of_source(SourceFile::new(name, text))
}

fn of_source(source: SourceFile) -> LoadedHost {
    let (document, mut diagnostics) = parse(&source);
    let (entries, more) = document.entries();
    diagnostics.extend(more);
    diagnostics.extend(entries.iter().filter_map(judge));
    let mut reader = Reader::new(&entries);
    let defaults = read(&mut reader);
    diagnostics.append(&mut reader.diagnostics);
    diagnostics.sort_by_key(|d| (d.span.is_none(), d.span));
    finished(source, defaults, diagnostics)
}

/// Keeps the errors: a line that cannot be read may be the one that keeps guests off some CPUs.
fn finished(source: SourceFile, defaults: HostDefaults, diagnostics: Vec<Diagnostic>) -> LoadedHost {
    let errors = diagnostics.iter().filter(|d| d.is_error()).take(MAX_ERRORS);
    let errors = errors.map(|d| {
        let help = d.help.iter().map(|help| format!("; {help}"));
        std::iter::once(d.one_line(&source)).chain(help).collect()
    });
    let defaults = HostDefaults { errors: errors.collect(), ..defaults };
    LoadedHost { source, defaults, diagnostics }
}

fn judge(entry: &Entry) -> Option<Diagnostic> {
    let key = entry.key.as_str();
    if READ.contains(&key) {
        return None;
    }
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == key) {
        let message = format!("`{key}` has no effect");
        return Some(Diagnostic::warning("config::no-effect", message).at(entry.key_span).help(*why));
    }
    let unknown = Diagnostic::warning("config::unknown-key", format!("`{key}` is not a key of xl.conf"));
    let unknown = unknown.at(entry.key_span);
    Some(match nearest(key, READ) {
        Some(near) => unknown.help(format!("did you mean `{near}`?")),
        None => unknown,
    })
}

fn read(reader: &mut Reader<'_>) -> HostDefaults {
    check_backend(reader);
    let most = i32::MAX as u32;
    HostDefaults {
        bridge: newer(reader, "vif.default.bridge", "defaultbridge"),
        script: newer(reader, "vif.default.script", "vifscript").filter(|script| !is_usual(script)),
        gateway_dev: reader.text("vif.default.gatewaydev"),
        cpus: cpus(reader),
        grants: GrantLimits {
            max_grant_frames: reader.u32("max_grant_frames", 1..=most),
            max_maptrack_frames: reader.u32("max_maptrack_frames", 0..=most),
            max_version: reader
                .u32("max_grant_version", 0..=2)
                .and_then(|version| u8::try_from(version).ok()),
        },
        errors: Vec::new(),
    }
}

/// Backends run only in dom0.
fn check_backend(reader: &mut Reader<'_>) {
    let Some(backend) = reader.text("vif.default.backend") else { return };
    if !matches!(backend.as_str(), "0" | "Domain-0") {
        let span = reader.value_span("vif.default.backend");
        reader.refuse("vif.default.backend", span, "backends run only in dom0; remove the line from xl.conf");
    }
}

/// xl's own default, which joins the bridge, as is done without a script.
fn is_usual(script: &str) -> bool {
    matches!(script, "vif-bridge" | "/etc/xen/scripts/vif-bridge")
}

/// A key that has replaced another one.
fn newer(reader: &mut Reader<'_>, new: &'static str, old: &'static str) -> Option<String> {
    let old = reader.text(old);
    reader.text(new).or(old)
}

fn cpus(reader: &mut Reader<'_>) -> Option<CpuSet> {
    let all = mask(reader, "vm.cpumask");
    let hvm = mask(reader, "vm.hvm.cpumask");
    match (all, hvm) {
        (Some(all), Some(hvm)) => {
            let both = all.intersection(&hvm);
            if both.is_none() {
                let span = reader.value_span("vm.hvm.cpumask");
                let message = "`vm.cpumask` and `vm.hvm.cpumask` have no CPU in common";
                reader.push(Diagnostic::error("config::conflict", message).at(span));
            }
            both
        }
        (one, other) => one.or(other),
    }
}

fn mask(reader: &mut Reader<'_>, key: &'static str) -> Option<CpuSet> {
    let atom = reader.atom(key)?;
    guest::cpu_set(reader, atom)
}

/// Why a guest or a network interface is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    /// The file has errors.
    #[error("No guest or network interface is created, because xl.conf has errors")]
    Broken {
        /// [`HostDefaults::errors`].
        errors: Vec<String>,
    },
    /// The guest may run on no CPU that the host's administrator allows.
    #[error(
        "xl.conf allows none of the CPUs that are asked for: its `vm.cpumask` and `vm.hvm.cpumask` exclude them"
    )]
    NoCpuAllowed,
}

impl HostDefaults {
    /// Gives a guest what its configuration leaves open, and keeps it on the CPUs that are allowed.
    ///
    /// # Errors
    /// [`HostRefusal`].
    pub fn apply(&self, guest: &mut GuestConfig) -> Result<(), HostRefusal> {
        self.check()?;
        for nic in &mut guest.nics {
            self.apply_nic(nic)?;
        }
        if let Some(allowed) = &self.cpus {
            guest.affinity = restrict(&guest.affinity, allowed, guest.max_vcpus)?;
        }
        let (limits, host) = (&mut guest.grants, &self.grants);
        limits.max_grant_frames = limits.max_grant_frames.or(host.max_grant_frames);
        limits.max_maptrack_frames = limits.max_maptrack_frames.or(host.max_maptrack_frames);
        limits.max_version = limits.max_version.or(host.max_version);
        Ok(())
    }

    /// Gives a network interface what its configuration leaves open.
    ///
    /// # Errors
    /// [`HostRefusal::Broken`].
    pub fn apply_nic(&self, nic: &mut Nic) -> Result<(), HostRefusal> {
        self.check()?;
        for (slot, default) in [
            (&mut nic.bridge, &self.bridge),
            (&mut nic.script, &self.script),
            (&mut nic.gateway_dev, &self.gateway_dev),
        ] {
            if slot.is_none() {
                slot.clone_from(default);
            }
        }
        Ok(())
    }

    /// What a guest that runs may be pinned to: those of the CPUs that are allowed.
    ///
    /// # Errors
    /// [`HostRefusal`].
    pub fn allowed(&self, cpus: CpuSet) -> Result<CpuSet, HostRefusal> {
        self.check()?;
        match &self.cpus {
            Some(allowed) => cpus.intersection(allowed).ok_or(HostRefusal::NoCpuAllowed),
            None => Ok(cpus),
        }
    }

    fn check(&self) -> Result<(), HostRefusal> {
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(HostRefusal::Broken { errors: self.errors.clone() })
    }
}

fn restrict(affinity: &Affinity, allowed: &CpuSet, vcpus: u32) -> Result<Affinity, HostRefusal> {
    let within = |cpus: &CpuSet| cpus.intersection(allowed).ok_or(HostRefusal::NoCpuAllowed);
    Ok(match affinity {
        Affinity::Any => Affinity::All(allowed.clone()),
        Affinity::All(cpus) => Affinity::All(within(cpus)?),
        Affinity::Each(_) => {
            // The vCPUs without a set of their own are restricted, too.
            let sets = (0..vcpus).map(|vcpu| affinity.of(vcpu).map_or_else(|| Ok(allowed.clone()), within));
            Affinity::Each(sets.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> LoadedHost {
        load_host_str("xl.conf", text)
    }

    fn said(text: &str) -> Vec<String> {
        let loaded = host(text);
        loaded.diagnostics.iter().map(|d| d.one_line(&loaded.source)).collect()
    }

    #[test]
    fn defaults_fill_what_a_guest_leaves_open() {
        let loaded = host(
            "vif.default.bridge=\"br0\"\n\
             vif.default.script=\"vif-openvswitch\"\nvif.default.backend=\"Domain-0\"\nvm.hvm.cpumask=\"0-3\"\n\
             max_grant_frames=32\n",
        );
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        let text = "type='hvm'\nname='g'\nmemory=64\ncpus='2-5'\nvif=['', 'bridge=br7,script=vif-bridge']";
        let mut guest = crate::load_str("g", text).config.unwrap();
        loaded.defaults.apply(&mut guest).unwrap();
        let [first, second] = guest.nics.as_slice() else { panic!("{:?}", guest.nics) };
        assert_eq!(
            (first.bridge.as_deref(), first.script.as_deref()),
            (Some("br0"), Some("vif-openvswitch"))
        );
        assert_eq!((second.bridge.as_deref(), second.script.as_deref()), (Some("br7"), Some("vif-bridge")));
        assert_eq!(second.backend, None);
        assert_eq!(guest.affinity, Affinity::All("2-3".parse().unwrap()));
        assert_eq!(guest.grants.max_grant_frames, Some(32));
    }

    #[test]
    fn guest_without_an_allowed_cpu_is_refused() {
        let host = host("vm.cpumask=\"0-3\"\nvm.hvm.cpumask=\"2-7\"\n").defaults;
        assert_eq!(host.cpus, Some("2-3".parse().unwrap()));
        let guest = |cpus: &str| {
            let text = format!("type='hvm'\nname='g'\nmemory=64\nvcpus=2\n{cpus}\n");
            let mut guest = crate::load_str("g", &text).config.unwrap();
            host.apply(&mut guest).map(|()| guest.affinity)
        };
        let set = |text: &str| -> CpuSet { text.parse().unwrap() };
        assert_eq!(guest(""), Ok(Affinity::All(set("2-3"))));
        assert_eq!(guest("cpus=['3']"), Ok(Affinity::Each(vec![set("3"), set("2-3")])));
        assert_eq!(guest("cpus='4-7'"), Err(HostRefusal::NoCpuAllowed));
        assert_eq!(host.allowed(set("all")), Ok(set("2-3")));
        assert_eq!(host.allowed(set("0-2,7")), Ok(set("2")));
        assert_eq!(host.allowed(set("4")), Err(HostRefusal::NoCpuAllowed));
        assert_eq!(HostDefaults::default().allowed(set("4")), Ok(set("4")));
    }

    #[test]
    fn null_device_is_no_file_and_other_devices_are_errors() {
        let null = load_host(Path::new("/dev/null"));
        assert!(null.diagnostics.is_empty(), "{:?}", null.diagnostics);
        assert_eq!(null.defaults, HostDefaults::default());
        assert!(!load_host(Path::new("/dev/zero")).defaults.errors.is_empty());
    }

    #[test]
    fn errors_keep_guests_from_being_made_and_warnings_do_not() {
        let text = "claim_mode=1\nvif.default.bridg=\"x\"\nautoballoon=\"on\"\n";
        let warnings = [
            "xl.conf:1:1: warning[config::no-effect]: `claim_mode` has no effect",
            "xl.conf:2:1: warning[config::unknown-key]: `vif.default.bridg` is not a key of xl.conf",
            "xl.conf:3:1: warning[config::no-effect]: `autoballoon` has no effect",
        ];
        assert_eq!(said(text), warnings);
        assert!(refused_by(&host(text)).is_empty());
        assert!(said("# nothing\n").is_empty());
        for (text, error) in [
            ("max_grant_version=3", "1:19: error[config::out-of-range]: `max_grant_version` must be"),
            ("max_grant_frames=x", "1:18: error[config::syntax]: A value was expected, not `x`"),
            ("max_grant_frames=0", "1:18: error[config::out-of-range]: `max_grant_frames` must be from 1"),
            ("vm.cpumask=\"0-1", "1:12: error[config::unterminated-string]"),
            ("vm.cpumask=\"0-1\"\nvm.hvm.cpumask=\"2\"", "2:16: error[config::conflict]"),
            ("vif.default.backend=\"net\"", "1:21: error[config::refused]: `vif.default.backend` is not"),
        ] {
            let loaded = host(text);
            let errors = refused_by(&loaded);
            assert!(matches!(errors.as_slice(), [one] if one.contains(error)), "{text}: {errors:?}");
            let mut nic = crate::load_nic("vif", "backend=Domain-0", 0).device.unwrap();
            assert_eq!(loaded.defaults.apply_nic(&mut nic), Err(HostRefusal::Broken { errors }));
        }
    }

    /// The errors for which a guest is refused.
    fn refused_by(host: &LoadedHost) -> Vec<String> {
        let mut guest = crate::load_str("g", "type='hvm'\nname='g'\nmemory=64\n").config.unwrap();
        match host.defaults.apply(&mut guest) {
            Err(HostRefusal::Broken { errors }) => errors,
            other => other.map(|()| Vec::new()).unwrap(),
        }
    }

    #[test]
    fn file_that_cannot_be_read_is_an_error_and_one_that_is_missing_is_none() {
        assert_eq!(load_host(Path::new("/nonexistent/xl.conf")).defaults, HostDefaults::default());
        let folder = tempfile::tempdir().unwrap();
        let large = folder.path().join("xl.conf");
        std::fs::write(&large, vec![b'\n'; (1 << 20) + 1]).unwrap();
        for (path, error) in [
            (
                folder.path(),
                "error[config::unreadable]: The file could not be read: it is not a regular file",
            ),
            (Path::new("/dev/zero"), "it is not a regular file"),
            (&large, "error[config::too-large]"),
        ] {
            let errors = refused_by(&load_host(path));
            let name = path.display().to_string();
            assert!(
                matches!(errors.as_slice(), [one] if one.starts_with(&name) && one.contains(error)),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn usual_script_is_no_script() {
        assert_eq!(
            host("vif.default.script=\"vif-bridge\"\nvifscript=\"vif-route\"\n").defaults.script,
            None
        );
        assert_eq!(host("vifscript=\"vif-route\"\n").defaults.script.as_deref(), Some("vif-route"));
    }

    #[test]
    fn bridge_with_vlans_takes_its_script_from_here() {
        let loaded = crate::load_nic("vif", "bridge=ovsbr0:42", 0);
        assert!(
            matches!(loaded.diagnostics.as_slice(), [one] if one.id == "config::vlans" && !one.is_error())
        );
        let mut nic = loaded.device.unwrap();
        host("vif.default.script=\"vif-openvswitch\"\n").defaults.apply_nic(&mut nic).unwrap();
        assert_eq!(nic.script.as_deref(), Some("vif-openvswitch"));
    }

    #[test]
    fn words_of_python_in_a_stray_line_hide_no_other_line() {
        let text = "vm.hvm.cpumask=\"0-3\"\nfor HVM guests only\n";
        assert_eq!(
            said(text),
            ["xl.conf:2:5: error[config::unexpected-character]: `H` is not expected here"]
        );
        assert_eq!(host(text).defaults.cpus, Some("0-3".parse().unwrap()));
        assert_eq!(refused_by(&host(text)).len(), 1);
    }

    #[test]
    fn every_key_that_is_read_is_listed() {
        let mut reader = Reader::new(&[]);
        let _ = read(&mut reader);
        assert_eq!(reader.asked, READ.iter().copied().collect());
    }
}
