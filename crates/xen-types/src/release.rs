use core::fmt;

/// A release of Xen, such as 4.17: what its libraries, packages and files are named after.
///
/// Point releases (4.17.5) do not count: libraries and interfaces stay the same within a release. Paths and package
/// names are Debian's, where several releases are installed side by side, each in `/usr/lib/xen-<release>`.
///
/// ```
/// use xen_types::Release;
/// let release = Release::parse("4.20.5-pre").ok_or("no release")?;
/// assert_eq!(release, Release::new(4, 20));
/// assert_eq!(release.tool("xl"), "/usr/lib/xen-4.20/bin/xl");
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    /// The major number: 4 in 4.17.
    pub major: u16,
    /// The minor number: 17 in 4.17.
    pub minor: u16,
}

impl Release {
    /// The release in Debian 12.
    pub const DEBIAN_12: Self = Self::new(4, 17);

    /// Makes a release of its two numbers.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Reads the beginning of a version, such as `4.17`, `4.17.5` or `4.20.5-pre`; `None` when it is no version.
    #[must_use]
    pub const fn parse(version: &str) -> Option<Self> {
        let Some((major, [b'.', rest @ ..])) = number(version.as_bytes()) else { return None };
        match number(rest) {
            Some((minor, [] | [b'.' | b'-', ..])) => Some(Self::new(major, minor)),
            _ => None,
        }
    }

    /// The release that Linux says it runs on (`/sys/hypervisor`); `None` where that is not Xen, or not known.
    #[must_use]
    pub fn running() -> Option<Self> {
        const FOLDER: &str = "/sys/hypervisor";
        let read = |name: &str| std::fs::read_to_string(format!("{FOLDER}/{name}")).ok();
        let number = |name: &str| read(name)?.trim().parse().ok();
        if read("type")?.trim() != "xen" {
            return None;
        }
        Some(Self::new(number("version/major")?, number("version/minor")?))
    }

    const fn is_at_least(self, minor: u16) -> bool {
        self.major > 4 || (self.major == 4 && self.minor >= minor)
    }
}

/// Where Debian's packages of this release have their files.
impl Release {
    /// The folder of Xen's programs that fit this release.
    #[must_use]
    pub fn tools_dir(self) -> String {
        format!("/usr/lib/xen-{self}/bin")
    }

    /// One of Xen's programs that fit this release, such as `xl`.
    #[must_use]
    pub fn tool(self, name: &str) -> String {
        format!("{}/{name}", self.tools_dir())
    }

    /// The folder of what is loaded into guests: hvmloader, and firmware where Xen has its own.
    #[must_use]
    pub fn firmware_dir(self) -> String {
        format!("/usr/lib/xen-{self}/boot")
    }

    /// The program that sets an HVM guest up before its firmware runs.
    #[must_use]
    pub fn hvmloader(self) -> String {
        format!("{}/hvmloader", self.firmware_dir())
    }

    /// The folder of what oxenstored loads to speak to this release of Xen; from 4.20 on. Before, it is linked with it.
    #[must_use]
    pub fn oxenstored_plugins(self) -> Option<String> {
        self.is_at_least(20).then(|| format!("/usr/lib/xen-{self}/ocaml/xsd_glue"))
    }

    /// The hypervisor, packed with gzip.
    #[must_use]
    pub fn hypervisor(self) -> String {
        format!("/boot/xen-{self}-amd64.gz")
    }
}

/// The names of packages that differ between releases.
impl Release {
    /// Debian's package with the hypervisor.
    #[must_use]
    pub fn hypervisor_package(self) -> String {
        format!("xen-hypervisor-{self}-amd64")
    }

    /// Debian's package with Xen's programs and hvmloader.
    #[must_use]
    pub fn utils_package(self) -> String {
        format!("xen-utils-{self}")
    }

    /// Debian's package with the libraries whose interface changes with each release, libxenctrl and libxenguest
    /// among them.
    #[must_use]
    pub fn libraries_package(self) -> String {
        format!("libxenmisc{self}")
    }

    /// The package with our daemons built for this release.
    #[must_use]
    pub fn daemons_package(self) -> String {
        format!("outriggerd-xen{self}")
    }
}

/// What differs between releases.
impl Release {
    /// Whether alternate p2m tables (`altp2m`) are chosen when a domain is made, in `xen_domctl_createdomain`.
    ///
    /// From 4.19 on, `HVM_PARAM_ALTP2M` can only be read: setting it fails with `EEXIST`.
    #[must_use]
    pub const fn altp2m_is_set_at_creation(self) -> bool {
        self.is_at_least(19)
    }

    /// Whether an HVM or PVH domain may map another domain's pages, so that a stubdomain may be one; from 4.19 on.
    #[must_use]
    pub const fn hvm_may_map_foreign_pages(self) -> bool {
        self.is_at_least(19)
    }

    /// Whether HVM guests get no event channels for emulated interrupts (`XEN_X86_EMU_USE_PIRQ`) unless the
    /// configuration asks for them with `hvm_pirq`; from 4.19 on. Before, all had them.
    #[must_use]
    pub const fn hvm_pirq_is_optional(self) -> bool {
        self.is_at_least(19)
    }

    /// Whether the ring of a PV console says if a backend is connected; from 4.21 on.
    ///
    /// libxenguest then marks the ring of a new domain as not connected, and whoever serves it has to mark it as
    /// connected: kernels that know of this write nothing before.
    #[must_use]
    pub const fn console_ring_has_connection(self) -> bool {
        self.is_at_least(21)
    }

    /// Whether `DOMID_ANY` asks Xen to choose the number of a new domain; from 4.22 on. Before, 0 does.
    #[must_use]
    pub const fn domid_any_chooses(self) -> bool {
        self.is_at_least(22)
    }

    /// Whether a page that an HVM domain is given while Xen records what is written counts as written (`p2m_add_page`);
    /// from 4.22 on. Before, neither that nor what the domain writes to it is recorded until the record is next taken.
    #[must_use]
    pub const fn log_dirty_has_added_pages(self) -> bool {
        self.is_at_least(22)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A plain decimal number at the beginning, and what follows it.
const fn number(text: &[u8]) -> Option<(u16, &[u8])> {
    let mut number = None;
    let mut rest = text;
    while let [digit @ b'0'..=b'9', behind @ ..] = rest {
        let so_far = match number {
            None => 0_u16,
            Some(so_far) => so_far,
        };
        let Some(tens) = so_far.checked_mul(10) else { return None };
        let Some(sum) = tens.checked_add((*digit - b'0') as u16) else { return None };
        number = Some(sum);
        rest = behind;
    }
    match number {
        Some(number) => Some((number, rest)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_to_the_minor_number() {
        for version in ["4.17", "4.17.5", "4.17-rc1", "4.17.5-pre"] {
            assert_eq!(Release::parse(version), Some(Release::DEBIAN_12), "{version}");
        }
        for bad in ["", "4", "4.", ".17", "4.x", "4.17x", "4.17 ", "+4.17", "4.+17", "65536.1", "4.99999"] {
            assert_eq!(Release::parse(bad), None, "{bad:?} was accepted");
        }
        assert_eq!(Release::parse(&Release::new(65535, 0).to_string()), Some(Release::new(65535, 0)));
    }

    #[test]
    fn releases_are_ordered_as_numbers() {
        assert!(Release::new(4, 9) < Release::new(4, 17) && Release::new(4, 22) < Release::new(5, 0));
    }

    #[test]
    fn files_and_packages_are_debians() {
        let release = Release::new(4, 20);
        assert_eq!(release.hvmloader(), "/usr/lib/xen-4.20/boot/hvmloader");
        assert_eq!(release.tool("vchan-socket-proxy"), "/usr/lib/xen-4.20/bin/vchan-socket-proxy");
        assert_eq!(release.hypervisor(), "/boot/xen-4.20-amd64.gz");
        assert_eq!(release.hypervisor_package(), "xen-hypervisor-4.20-amd64");
        assert_eq!(release.utils_package(), "xen-utils-4.20");
        assert_eq!(release.libraries_package(), "libxenmisc4.20");
        assert_eq!(release.daemons_package(), "outriggerd-xen4.20");
        assert_eq!(release.oxenstored_plugins().as_deref(), Some("/usr/lib/xen-4.20/ocaml/xsd_glue"));
        assert_eq!(Release::DEBIAN_12.oxenstored_plugins(), None);
    }

    #[track_caller]
    fn begins_with(minor: u16, has: fn(Release) -> bool) {
        assert!(!has(Release::new(4, minor - 1)) && has(Release::new(4, minor)));
        assert!(!has(Release::new(3, 99)) && has(Release::new(5, 0)));
    }

    #[test]
    fn each_ability_begins_with_its_release() {
        begins_with(19, Release::altp2m_is_set_at_creation);
        begins_with(19, Release::hvm_may_map_foreign_pages);
        begins_with(19, Release::hvm_pirq_is_optional);
        begins_with(21, Release::console_ring_has_connection);
        begins_with(22, Release::domid_any_chooses);
        begins_with(22, Release::log_dirty_has_added_pages);
    }
}
