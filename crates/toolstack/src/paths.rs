use std::path::{Path, PathBuf};

use xen::release::{self, Release};
use xen_types::file_name;

/// Where things live in dom0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// State that must survive a restart of the daemon: one file a guest.
    pub state: PathBuf,
    /// Logs; consoles' in `console/`.
    pub log: PathBuf,
    /// The installed stubdomain image: `vmlinuz`, `initramfs.img`, `manifest.json`.
    pub stubdomain: PathBuf,
    /// Candidates for hvmloader, the first existing one is used.
    pub hvmloader: Vec<PathBuf>,
    /// Candidates for the SeaBIOS image that hvmloader starts.
    pub seabios: Vec<PathBuf>,
    /// Candidates for the OVMF image that hvmloader starts.
    pub ovmf: Vec<PathBuf>,
    /// Hotplug scripts of configurations that name one without a folder.
    pub scripts: PathBuf,
}

impl Default for Paths {
    /// For the release of Xen that this program was built for.
    fn default() -> Self {
        Self::of(release::BUILT)
    }
}

impl Paths {
    /// The usual paths in a dom0 where this release of Xen runs.
    #[must_use]
    pub fn of(xen: Release) -> Self {
        let all = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        let firmware = xen.firmware_dir();
        Self {
            state: PathBuf::from("/var/lib/outrigger"),
            log: PathBuf::from("/var/log/outrigger"),
            stubdomain: PathBuf::from("/usr/lib/outrigger/stubdom"),
            hvmloader: all(&[
                &xen.hvmloader(),
                "/usr/lib/xen/boot/hvmloader",
                "/usr/libexec/xen/boot/hvmloader",
                "/usr/local/lib/xen/boot/hvmloader",
            ]),
            seabios: all(&[
                "/usr/share/seabios/bios-256k.bin",
                &format!("{firmware}/seabios.bin"),
                "/usr/lib/xen/boot/seabios.bin",
                "/usr/share/qemu/bios-256k.bin",
            ]),
            ovmf: all(&[
                "/usr/share/ovmf/OVMF.fd",
                "/usr/share/OVMF/OVMF_CODE.fd",
                &format!("{firmware}/ovmf.bin"),
                "/usr/lib/xen/boot/ovmf.bin",
            ]),
            scripts: PathBuf::from("/etc/xen/scripts"),
        }
    }

    /// The folder of the journals of migrations.
    #[must_use]
    pub fn migrations(&self) -> PathBuf {
        self.state.join("migrations")
    }

    /// The folder of the guests' state files.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.state.join("guests")
    }

    /// The log file that the console daemon keeps of console `number` of the domain called `name`.
    #[must_use]
    pub fn console_log(&self, name: &str, number: u32) -> PathBuf {
        self.log.join("console").join(format!("{}.{number}.log", file_name(name)))
    }

    /// A configured script's path: as it is when it is absolute, else in the scripts' folder.
    #[must_use]
    pub fn script(&self, name: &Path) -> PathBuf {
        self.scripts.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_has_the_name_that_the_console_daemon_gives_it() {
        let log = Paths::default().console_log("a b-dm", 0);
        assert_eq!(log, Path::new("/var/log/outrigger/console/a%20b-dm.0.log"));
    }

    #[test]
    fn what_goes_into_guests_is_of_the_release_that_runs() {
        let paths = Paths::of(Release::new(4, 20));
        let has = |list: &[PathBuf], path: &str| list.iter().any(|each| each == Path::new(path));
        assert_eq!(paths.hvmloader.first().unwrap(), Path::new("/usr/lib/xen-4.20/boot/hvmloader"));
        assert!(has(&paths.seabios, "/usr/lib/xen-4.20/boot/seabios.bin"));
        assert!(has(&paths.ovmf, "/usr/lib/xen-4.20/boot/ovmf.bin"));
        assert_eq!(Paths::default(), Paths::of(release::BUILT));
    }
}
